"""The arguments of the verbs for a pool's cluster."""

import argparse
from collections.abc import Callable

from tools.snapshot_arguments import AddVerb

_CLUSTER = "tools.commands_cluster"


def cluster_verbs(node: Callable[[str], str]) -> Callable[[AddVerb], None]:
    """What follows ``vdiskfs cluster``; ``node`` reads a node's name."""

    def add(verb: AddVerb) -> None:
        added = verb("init", f"{_CLUSTER}:init", "make the authority that lets nodes in")
        added.add_argument("pool", metavar="POOL")
        _add_authority(added, "where its key is kept (default: POOL/cluster, and the first mount makes it)")
        added = verb("join", f"{_CLUSTER}:join", "give a node a new certificate")
        added.add_argument("pool", metavar="POOL")
        added.add_argument("--node", type=node, required=True, metavar="NAME", help="the node's name")
        added.add_argument(
            "--state",
            metavar="DIR",
            help="the node's state directory (default: /var/lib/vdiskfs/NODE, or the state home)",
        )
        _add_authority(added, "where the authority's key is (default: POOL/cluster)")
        added = verb("ls", f"{_CLUSTER}:list_nodes", "list the nodes that are there", json=True)
        added.add_argument("pool", metavar="POOL")

    return add


def _add_authority(added: argparse.ArgumentParser, summary: str) -> None:
    added.add_argument("--ca-dir", metavar="DIR", help=summary)
