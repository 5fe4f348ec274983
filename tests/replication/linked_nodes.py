"""Nodes with real links between them: sockets, TLS and certificates, in one process."""

import pathlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import trio

from metadata.catalog_memory import MemoryCatalog
from replication.cluster import Answer, Member
from replication.credentials import Credentials, ensure_credentials
from replication.links import NodeLinks


class Members:
    """Who is there, as the test says."""

    def __init__(self, node: str, members: dict[str, Member]) -> None:
        self.node, self._members = node, members
        self.on_lost = []

    def is_certain(self) -> bool:
        return True

    def is_live(self, node: str) -> bool:
        return node in self._members

    def members(self) -> Mapping[str, Member]:
        return self._members

    async def catch_up(self) -> None:
        await trio.lowlevel.checkpoint()


async def join(folder: pathlib.Path, *nodes: str) -> list[Credentials]:
    """A new cluster, with a certificate for each node."""
    catalog = MemoryCatalog()
    made = []
    for node in nodes:
        state = folder / node
        state.mkdir(parents=True)
        made.append(
            await ensure_credentials(catalog, node=node, state=str(state), folder=str(folder / "authority"))
        )
    return made


class Linked:
    """Running links, by node; all see the same members."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}
        self.links: dict[str, NodeLinks] = {}
        self.scopes: dict[str, trio.CancelScope] = {}

    async def start(self, credentials: Credentials, *, identity: str = "", port: int = 0) -> NodeLinks:
        """Begins a node's links, until the test ends or ``stop``."""
        node = credentials.node
        links = NodeLinks(credentials, identity=identity or node, host="127.0.0.1", port=port)
        links.serve("echo", echo)
        await self.nursery.start(self._run, links, node, identity or node)
        return links

    async def stop(self, node: str) -> None:
        """Ends a node's links, as its death does."""
        self.scopes[node].cancel()
        await trio.testing.wait_all_tasks_blocked(0.01)

    async def _run(
        self, links: NodeLinks, node: str, identity: str, task_status: trio.TaskStatus[None]
    ) -> None:
        with trio.CancelScope() as self.scopes[node]:
            async with links:
                self.links[node] = links
                self.members[node] = Member(node, "127.0.0.1", links.port, identity)
                task_status.started()
                await links.run(Members(node, self.members))

    nursery: trio.Nursery


@asynccontextmanager
async def linked(*credentials: Credentials) -> AsyncIterator[Linked]:
    """Links for each node, running."""
    nodes = Linked()
    async with trio.open_nursery() as nodes.nursery:
        for one in credentials:
            await nodes.start(one)
        yield nodes
        nodes.nursery.cancel_scope.cancel()


async def echo(node: str, arguments: Mapping[str, object], data: bytes) -> Answer:
    """Gives back what it got, and from whom."""
    return {"from": node, **arguments}, data
