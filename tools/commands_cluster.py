"""The verbs about a pool's cluster: who may be one of its nodes, and who is there. They need no mount."""

import argparse
import datetime
import os
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from fusefs import state_directory
from metadata.catalog import SESSION_PREFIX, Catalog, Change
from metadata.errors import InvalidRequest
from replication.credentials import ensure_credentials, make_cluster, read_cluster
from replication.pool_catalog import authority_folder, open_catalog
from replication.pools import open_pool, resolve_pool
from replication.session import read_member
from tools.render import print_json, print_table

T = TypeVar("T")


def init(arguments: argparse.Namespace) -> int:
    """Make a pool's certificate authority, here or in a folder of the administrator's."""
    folder = _folder(arguments)

    async def make(catalog: Catalog) -> str:
        return (await make_cluster(catalog, folder, is_asked=True)).cluster

    cluster = _with_catalog(arguments.pool, make)
    sys.stdout.write(f"made cluster {cluster}; who can read {folder}/authority.key can let nodes in\n")
    return 0


def join(arguments: argparse.Namespace) -> int:
    """Give a node a new certificate."""
    node, uid = arguments.node, os.geteuid()
    state = os.path.realpath(
        arguments.state or state_directory.default_folder(node, uid=uid, environment=os.environ)
    )

    async def make(catalog: Catalog) -> float:
        if await read_cluster(catalog) is None:
            raise InvalidRequest(
                f"the pool has no cluster yet: 'vdiskfs cluster init' or its first mount makes one pool={arguments.pool}"
            )
        state_directory.make_folder(state)
        made = await ensure_credentials(
            catalog, node=node, state=state, folder=_folder(arguments), is_asked=True
        )
        return made.expires

    until = datetime.datetime.fromtimestamp(_with_catalog(arguments.pool, make), datetime.UTC).date()
    sys.stdout.write(f"{node} has a certificate until {until}, in {state}; mount with --node {node}\n")
    return 0


def list_nodes(arguments: argparse.Namespace) -> int:
    """Show the cluster and the nodes that are there now."""

    async def read(catalog: Catalog) -> dict[str, object]:
        cluster = await read_cluster(catalog)
        await catalog.transact(Change())  # ends the sessions that are over: perhaps no node is there to do so
        rows, _ = await catalog.read(SESSION_PREFIX)
        members = [read_member(row.key, row.value) for row in rows]
        return {
            "cluster": cluster.cluster if cluster else None,
            "nodes": [
                {"node": one.node, "host": one.host, "port": one.port, "identity": one.identity}
                for one in members
            ],
        }

    facts = _with_catalog(arguments.pool, read)
    if arguments.json:
        print_json(facts)
        return 0
    nodes = facts["nodes"]
    assert isinstance(nodes, list)
    sys.stdout.write(f"cluster {facts['cluster'] or 'not made yet'}, {len(nodes)} nodes have a session\n")
    if nodes:
        print_table(
            ["NODE", "ADDRESS", "IDENTITY"],
            [[one["node"], f"{one['host']}:{one['port']}", one["identity"]] for one in nodes],
            left=3,
        )
    return 0


def _folder(arguments: argparse.Namespace) -> str:
    return os.path.realpath(arguments.ca_dir or authority_folder(resolve_pool(arguments.pool)))


def _with_catalog(pool_path: str, call: Callable[[Catalog], Awaitable[T]]) -> T:
    where = resolve_pool(pool_path)
    pool = open_pool(where)
    pool.close()

    async def main() -> T:
        catalog = await open_catalog(where, pool.pool_id)
        try:
            return await call(catalog)
        finally:
            await catalog.aclose()

    return trio.run(main)
