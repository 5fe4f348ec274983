"""The snapshot tree as one self-contained page: the template beside this module, with the tree's data in it."""

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any

from tools.render import printable
from tools.tree_nodes import SNAPSHOT, Node, in_order

CELLS_MAX, CELLS_MIN = 4096, 256
CELLS_IN_ALL = 1 << 21
"""So the page of five thousand vdisks stays below ten megabytes, however scattered they are."""

_FIELDS = (
    "id", "kind", "label", "full", "parent", "version", "time", "size", "own", "exclusive", "shared", "held",
)  # fmt: skip


def cells_for(vdisk_count: int) -> int:
    """How many cells the picture of one vdisk may have."""
    return max(CELLS_MIN, min(CELLS_MAX, CELLS_IN_ALL // max(1, vdisk_count)))


def tree_page(nodes: Sequence[Node], maps: Mapping[int, Mapping[str, Any]]) -> str:
    """The page.

    Args:
        nodes: all of the tree.
        maps: by vdisk, its block map: cell_bytes, and its cells in base64.
    """
    paths = {node.id: node.label() for node in nodes}
    rows = []
    for drawn in in_order(nodes):
        node = drawn.node
        label = printable(node.label())
        full = (
            printable(paths.get(node.parent, "") + label) if node.kind == SNAPSHOT and node.parent else label
        )
        rows.append(
            [
                node.id,
                node.kind,
                label,
                full,
                node.parent,
                node.version,
                node.time_ns // 10**9,
                node.size,
                node.own_bytes,
                node.exclusive_bytes,
                node.shared_bytes,
                node.holders(),
            ]
        )
    data = {
        "fields": _FIELDS,
        "nodes": rows,
        "maps": {str(vdisk): dict(found) for vdisk, found in maps.items()},
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True).replace("<", "\\u003c")
    template = resources.files("tools").joinpath("tree_page.html").read_text(encoding="utf-8")
    return template.replace("@DATA@", text, 1)
