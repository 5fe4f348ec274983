"""Tables of the nodes of a pool and of the vdisks in use, for ``status`` and ``top``."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tools.render import print_table, readable
from tools.sizes import format_size

VDISKS_SHOWN = 30
_COUNTED = {
    "vdisks_owned": "OWNED",
    "vdisks_loaded": "LOADED",
    "vdisks_followed": "FOLLOWED",
    "forwarded": "FORWARDED",
    "served": "SERVED",
    "taken_over": "TAKEN",
    "handed_over": "GIVEN",
    "deposed": "LOST",
}
"""What a node has and has done: requests forwarded to owners, and served for others; vdisks taken over from dead nodes,
given to others, lost to them."""


def print_nodes(nodes: Sequence[Mapping[str, Any]]) -> None:
    """One line a node; a star for the one that was asked."""
    print_table(
        ["NODE", "SESSION", "ADDRESS", *_COUNTED.values()],
        [
            [
                str(node["node"]) + ("*" if node["here"] else ""),
                str(node["session"]),
                readable("address", node["address"]),
                *(readable(key, node.get(key)) for key in _COUNTED),
            ]
            for node in nodes
        ],
        left=3,
    )


def print_vdisks(vdisks: Sequence[Mapping[str, Any]]) -> None:
    """One line for each vdisk that its owner has at hand, with the peers that follow it and how far behind they are."""
    if not vdisks:
        return
    sys.stdout.write("\n")
    rated = "commits_per_s" in vdisks[0]
    rows = []
    for one in vdisks[:VDISKS_SHOWN]:
        lags = ", ".join(f"{peer['node']}: {peer['lag']}" for peer in one["peers"])
        row = [
            str(one["path"] or f"vdisk {one['vdisk']}"),
            str(one["owner"]),
            lags or "-",
            str(one["version"]),
        ]
        row += [readable("rate", one["commits_per_s"])] if rated else []
        rows.append([*row, format_size(one["dirty_bytes"]), str(one["open_handles"])])
    rate = ["COMMITS/S"] if rated else []
    print_table(["VDISK", "OWNER", "PEERS' LAG", "VERSION", *rate, "DIRTY", "OPEN"], rows, left=3)
    if len(vdisks) > VDISKS_SHOWN:
        sys.stdout.write(f"and {len(vdisks) - VDISKS_SHOWN} more\n")
