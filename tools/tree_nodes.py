"""The snapshot tree as the daemon lists it, put in order: who hangs under whom, in which sequence. Pure.

The daemon's list is flat. A snapshot's ``parent`` is its vdisk, a clone's is the snapshot (or the vdisk, for one
made of its head) it was made of; what has none, or one outside the list, is a root. Chains of clones may be
thousands long, so nothing here recurses.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

VDISK, SNAPSHOT, NAMELESS, TRASH = "vdisk", "snapshot", "nameless", "trash"


@dataclass(frozen=True, slots=True)
class Node:
    """A vdisk, or a snapshot of one. Sizes are bytes; None: not known without looking at all the rows."""

    id: int
    kind: str
    path: str
    name: str
    parent: int | None
    version: int
    time_ns: int
    size: int
    own_bytes: int
    exclusive_bytes: int | None
    shared_bytes: int | None
    protected: bool
    open_handles: int
    clones: int

    def label(self) -> str:
        """What it is called in a drawing: a snapshot by its name, the rest by where it is."""
        if self.kind == SNAPSHOT:
            return f"@{self.name}"
        if self.kind == NAMELESS:
            return f"(deleted, vdisk {self.id})"
        where = self.path or self.name or str(self.id)
        return f"{where} (trash)" if self.kind == TRASH else where

    def holders(self) -> str:
        """Who needs it, in words; empty if nobody."""
        held = []
        if self.protected:
            held.append("protected")
        if self.clones:
            held.append(f"{self.clones} clone{'s' if self.clones > 1 else ''}")
        if self.open_handles:
            held.append(f"{self.open_handles} open")
        return ", ".join(held)


@dataclass(frozen=True, slots=True)
class Drawn:
    """A node in the order of the drawing; ``ends``: of it and each ancestor below the root, if it is the last child."""

    node: Node
    depth: int
    ends: tuple[bool, ...]


def read_nodes(listed: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The daemon's nodes; fields it does not tell are nothing, zero, or unknown."""
    clones = Counter(found.get("parent") for found in listed if found["kind"] != SNAPSHOT)
    return [
        Node(
            id=int(found["id"]),
            kind=str(found["kind"]),
            path=str(found.get("path") or ""),
            name=str(found.get("name") or ""),
            parent=found.get("parent"),
            version=int(found.get("version") or 0),
            time_ns=int(found.get("created_ns") or found.get("mtime_ns") or 0),
            size=int(found.get("size") or 0),
            own_bytes=int(found.get("own_bytes") or 0),
            exclusive_bytes=found.get("exclusive_bytes"),
            shared_bytes=found.get("shared_bytes"),
            protected=bool(found.get("protected")),
            open_handles=int(found.get("open_handles") or 0),
            clones=clones[found["id"]],
        )
        for found in listed
    ]


def in_order(nodes: Sequence[Node]) -> Iterator[Drawn]:
    """Every node once, parents before children: roots by path, snapshots by version, then clones by path."""
    known = {node.id for node in nodes}
    below: dict[int | None, list[Node]] = {}
    for node in nodes:
        parent = node.parent if node.parent in known and node.parent != node.id else None
        below.setdefault(parent, []).append(node)
    for siblings in below.values():
        siblings.sort(key=_sequence, reverse=True)
    ahead: list[Drawn] = [Drawn(node, 0, ()) for node in below.get(None, [])]
    drawn = 0
    while ahead:
        now = ahead.pop()
        drawn += 1
        yield now
        children = below.pop(now.node.id, [])
        kept = now.ends[-_ENDS_KEPT:]
        ahead += [Drawn(node, now.depth + 1, (*kept, at == 0)) for at, node in enumerate(children)]
    assert drawn <= len(nodes)


_ENDS_KEPT = 40
"""Deeper lines are drawn without those of their farthest ancestors."""


_KINDS = (SNAPSHOT, VDISK, TRASH, NAMELESS)


def _sequence(node: Node) -> tuple[int, int, str, int]:
    kind = _KINDS.index(node.kind) if node.kind in _KINDS else len(_KINDS)
    return kind, node.version if node.kind == SNAPSHOT else 0, node.path or node.name, node.id


def prefix(drawn: Drawn, *, depth_max: int) -> str:
    """The lines before a node's name; where they would become too wide, the depth as a number instead."""
    if not drawn.depth:
        return ""
    shown = drawn.ends[-depth_max:]
    lines = "".join("   " if ended else "│  " for ended in shown[:-1])
    cut = f"[{drawn.depth}] " if drawn.depth > depth_max else ""
    return cut + lines + ("└─ " if shown[-1] else "├─ ")
