"""The snapshot tree as one flat list of nodes: the daemon's side of ``vdiskfs tree``.

A node is a vdisk, a snapshot, a vdisk in the trash, or a nameless one that only clones and open files keep. Each
names its parent: a snapshot its vdisk, a clone the snapshot it was made of, or the vdisk where that has no name (any
more). What a node occupies comes from summaries; what it occupies alone is known from them only where
nobody else can see its blocks, else it is counted on request (``exact``).
"""

import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

import trio

from fusefs.control import Progress, Verb
from fusefs.resolution import PathResolver, flag_in, path_in
from metadata.catalog import ROOT_ID
from metadata.errors import NotFound, VdiskfsError
from metadata.ids import VdiskId
from metadata.namespace import Kind, Namespace
from metadata.snapshots import Snapshot
from metadata.units import BLOCK_BYTES
from replication.family import Family
from replication.usage import HEAD
from replication.vdisks import VdiskStat

YIELD_EVERY = 500
"""Nodes between two chances for guests' requests."""

Node = dict[str, Any]
Names = dict[tuple[int, int], int]
"""The snapshot of a vdisk's version; the oldest of several."""
Usage = Callable[[VdiskId], Awaitable[Mapping[int, tuple[int, int]]]]
"""Of a vdisk: blocks that a version (or ``HEAD``) alone sees, and blocks that others see as well."""


class ShownVdisks(Protocol):
    """What is asked of the vdisks (``replication.vdisks``, and a double in the tests)."""

    def stat_nowait(self, vdisk: VdiskId) -> VdiskStat | None: ...
    async def stat(self, vdisk: VdiskId) -> VdiskStat: ...
    def handle_count(self, file_id: int) -> int: ...


class TreeVerb:
    """One to a node; lives as long as its control server."""

    def __init__(
        self, namespace: Namespace, vdisks: ShownVdisks, family: Family, *, paths: PathResolver, usage: Usage
    ) -> None:
        self._namespace, self._vdisks, self._family = namespace, vdisks, family
        self._paths, self._usage = paths, usage

    def verbs(self) -> dict[str, Verb]:
        """The verb, for a control server."""
        return {"tree": self._tree}

    async def _tree(self, arguments: dict[str, Any], progress: Progress) -> object:
        """All nodes, or those at and below ``path`` with what they descend from and what descends from them."""
        top = self._paths.resolve(path_in(arguments)) if arguments.get("path") is not None else ROOT_ID
        chosen, exact = self._chosen(top), flag_in(arguments, "exact")
        nodes: list[Node] = []
        names = self._names()
        for number, vdisk in enumerate(chosen):
            if number % YIELD_EVERY == YIELD_EVERY - 1:
                await trio.lowlevel.checkpoint()
            try:
                mine = await self._nodes_of(VdiskId(vdisk), names)
            except NotFound:
                continue  # gone meanwhile
            if exact:
                await self._count(VdiskId(vdisk), mine)
                progress({"done": number + 1, "total": len(chosen)})
            nodes += mine
        children = Counter(node["parent"] for node in nodes)
        for node in nodes:
            node["children"] = children[node["id"]]
        return {"path": self._paths.path_of(top), "exact": exact, "nodes": nodes}

    def _names(self) -> Names:
        names: Names = {}
        for one in self._family.all_snapshots():
            known = names.setdefault((one.vdisk, one.version), one.id)
            if one.id < known:
                names[one.vdisk, one.version] = one.id
        return names

    def _chosen(self, top: int) -> list[int]:
        """The vdisks to show: a parent before its clones where its number is smaller, which it nearly always is."""
        family, namespace = self._family, self._namespace
        everything = {*namespace.inodes(Kind.FILE), *family.nameless()}
        if top == ROOT_ID:
            return sorted(everything)
        found = {vdisk for vdisk in everything if namespace.is_within(vdisk, top)}
        ahead = list(found)
        while ahead:
            parent = family.descent(ahead.pop()).parent
            if parent is not None and parent[0] not in found:
                found.add(parent[0])
                ahead.append(parent[0])
        ahead = list(found)
        while ahead:
            for child in family.children(ahead.pop()):
                if child not in found:
                    found.add(child)
                    ahead.append(child)
        return sorted(found & everything)

    async def _nodes_of(self, vdisk: VdiskId, names: Names) -> list[Node]:
        """The vdisk's own node, and those of its snapshots."""
        stat: VdiskStat | None = None
        problem: str | None = None
        try:
            stat = self._vdisks.stat_nowait(vdisk) or await self._vdisks.stat(vdisk)
        except NotFound:
            raise
        except VdiskfsError as exc:  # one bad vdisk must not hide the others
            problem = str(exc)
        snapshots = self._family.snapshots(vdisk)
        node = self._vdisk_node(vdisk, stat, names)
        if problem is not None:
            node["problem"] = problem
        return [node, *(self._snapshot_node(snapshot, node["path"]) for snapshot in snapshots)]

    def _vdisk_node(self, vdisk: VdiskId, stat: VdiskStat | None, names: Names) -> Node:
        path = self._paths.path_of(vdisk)
        trashed = self._namespace.trashed(vdisk)
        if trashed is not None:
            path = "/" + os.fsdecode(trashed.path)
        parent = self._family.descent(vdisk).parent_at(None)
        own = stat.allocated_bytes if stat else None
        alone = not self._family.is_needed(vdisk)
        node: Node = {
            "id": vdisk,
            "kind": "trash" if trashed else "nameless" if path is None else "vdisk",
            "path": path,
            "name": os.path.basename(path) if path else None,
            "parent": names.get(parent, parent[0]) if parent else None,
            "parent_version": parent[1] if parent else None,
            "version": stat.version if stat else None,
            "created_ns": None,
            "mtime_ns": stat.mtime_ns if stat else None,
            "size": stat.size if stat else None,
            "own_bytes": own,
            "exclusive_bytes": own if alone else None,
            "shared_bytes": 0 if alone and parent is None and own is not None else None,
            "protected": False,
            "open_handles": self._vdisks.handle_count(vdisk),
        }
        if trashed is not None:
            node |= {"deleted_ns": trashed.deleted_ns, "until_ns": trashed.until_ns}
        return node

    def _snapshot_node(self, snapshot: Snapshot, path: str | None) -> Node:
        return {
            "id": snapshot.id,
            "kind": "snapshot",
            "path": None if path is None else f"{path}@{snapshot.name}",
            "name": snapshot.name,
            "parent": snapshot.vdisk,
            "parent_version": None,
            "version": snapshot.version,
            "created_ns": snapshot.created_ns,
            "mtime_ns": snapshot.mtime_ns,
            "size": snapshot.size,
            "own_bytes": snapshot.own_blocks * BLOCK_BYTES,
            "exclusive_bytes": None,
            "shared_bytes": None,
            "protected": snapshot.protected,
            "open_handles": self._vdisks.handle_count(snapshot.id),
        }

    async def _count(self, vdisk: VdiskId, nodes: Iterable[Node]) -> None:
        try:
            blocks = await self._usage(vdisk)
        except VdiskfsError:
            return  # the node says already what is the matter
        versions = Counter(node["version"] for node in nodes if node["kind"] == "snapshot")
        for node in nodes:
            version = node["version"] if node["kind"] == "snapshot" else HEAD
            alone, shared = blocks.get(version, (0, 0))
            if versions[version] > 1:  # two names for one version
                alone, shared = 0, alone + shared
            node["exclusive_bytes"] = alone * BLOCK_BYTES
            node["shared_bytes"] = shared * BLOCK_BYTES
