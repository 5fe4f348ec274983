"""What the command line asks about names and vdisks: the daemon's side of ls, info, du, map, check, scrub.

Answers are JSON-ready. Sizes are bytes, times nanoseconds, names text with undecodable bytes as surrogates.
Long listings come in pages, so that no answer and no stretch without an await grows with the pool.
"""

import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import trio

from fusefs.control import Progress, Verb
from fusefs.resolution import KINDS, PathResolver, number_in, path_in, text_in
from metadata.catalog import ROOT_ID
from metadata.errors import NotFound, VdiskfsError
from metadata.ids import VdiskId
from metadata.namespace import Inode, Kind, Namespace

LIST_PAGE = 2000
"""Entries in one answer, and between two chances for guests' requests a tenth of them."""
YIELD_EVERY = 200
MAP_STEP_BYTES = 64 << 20
"""Of a vdisk, mapped between two chances for guests' requests."""
MAP_PAGE = 20_000
"""Extents in one answer, about: the step that reaches it is finished."""
Scan = Callable[[Sequence[VdiskId], Progress], Awaitable[list[dict[str, Any]]]]
"""Looks through vdisks and returns its findings, each with the ``vdisk`` it is about."""


class VdiskStat(Protocol):
    """The hot facts of a vdisk."""

    @property
    def size(self) -> int: ...
    @property
    def allocated_bytes(self) -> int: ...
    @property
    def mtime_ns(self) -> int: ...
    @property
    def version(self) -> int: ...


class SnapshotFacts(Protocol):
    """What a snapshot is."""

    @property
    def size(self) -> int: ...
    @property
    def version(self) -> int: ...


class InspectedVdisks(Protocol):
    """What is asked of the vdisks (``replication.vdisks``, and a double in the tests)."""

    def stat_nowait(self, vdisk: VdiskId) -> VdiskStat | None: ...
    async def stat(self, vdisk: VdiskId) -> VdiskStat: ...
    async def describe(self, vdisk: VdiskId) -> dict[str, Any]: ...
    async def map(
        self, vdisk: VdiskId, offset: int, length: int, *, snapshot: str | None
    ) -> list[dict[str, Any]]: ...
    def snapshot(self, vdisk: VdiskId, name: str) -> SnapshotFacts: ...


class Inspection:
    """The reading verbs of one node; lives as long as its control server.

    Args:
        mountpoint: where the root appears, to follow absolute links.
        check: compares metadata and pool.
        scrub: reads and verifies every block.
    """

    def __init__(
        self, namespace: Namespace, vdisks: InspectedVdisks, *, mountpoint: str, check: Scan, scrub: Scan
    ) -> None:
        self._namespace = namespace
        self._vdisks = vdisks
        self._paths = PathResolver(namespace, mountpoint=mountpoint)
        self._check = check
        self._scrub = scrub

    def verbs(self) -> dict[str, Verb]:
        """The verbs, for a control server."""
        return {
            "ls": self._ls,
            "info": self._info,
            "du": self._du,
            "map": self._map,
            "check": self._run_check,
            "scrub": self._run_scrub,
        }

    async def _ls(self, arguments: dict[str, Any], _: Progress) -> object:
        """One page of a directory, or the one entry; ``next`` is where the next page starts."""
        inode = self._paths.resolve(path_in(arguments))
        if self._namespace.inode(inode).kind is not Kind.DIRECTORY:
            return {"entries": [await self._entry(self._name(inode), inode)], "next": None}
        children = self._namespace.children_after(
            inode, position=number_in(arguments, "after", 0), count=LIST_PAGE
        )
        entries: list[dict[str, Any]] = []
        for name, child in children:
            if len(entries) % YIELD_EVERY == YIELD_EVERY - 1:
                await trio.lowlevel.checkpoint()
            try:
                entries.append(await self._entry(name, child))
            except NotFound:
                continue  # deleted since the page was cut
        return {"entries": entries, "next": children[-1][1] if len(children) == LIST_PAGE else None}

    async def _info(self, arguments: dict[str, Any], _: Progress) -> object:
        inode = self._paths.resolve(path_in(arguments))
        facts = self._attributes(inode) | {"path": self._paths.path_of(inode)}
        if facts["kind"] == "vdisk":
            described = await self._vdisks.describe(VdiskId(inode))
            facts |= {"vdisk": inode, **described}
            if facts.get("parent"):
                facts["parent"] = {**facts["parent"], "path": self._paths.path_of(facts["parent"]["vdisk"])}
            facts["mtime_ns"] = self._mtime_ns(self._namespace.inode(inode), int(described["mtime_ns"]))
        elif facts["kind"] == "directory":
            facts["entries"] = sum(1 for _ in self._namespace.children(inode))
        return facts

    async def _du(self, arguments: dict[str, Any], progress: Progress) -> object:
        """What the entries of a directory occupy, each with all that lies below it, and their sum."""
        inode = self._paths.resolve(path_in(arguments))
        tops = [(self._name(inode), inode)]
        if self._namespace.inode(inode).kind is Kind.DIRECTORY:
            tops = sorted(self._namespace.children(inode))
        entries: list[dict[str, Any]] = []
        total = {"vdisks": 0, "size": 0, "allocated_bytes": 0}
        for name, top in tops:
            sums = await self._usage(top)
            entries.append({"name": os.fsdecode(name), "kind": self._paths.kind(top), **sums})
            total = {key: total[key] + sums[key] for key in total}
            progress({"done": len(entries), "total": len(tops)})
        return {"path": self._paths.path_of(inode), "entries": entries, "total": total}

    async def _map(self, arguments: dict[str, Any], _: Progress) -> object:
        """Where a stretch of a vdisk, or of its snapshot ``name``, lies; ``next_offset``: where the answer stops."""
        vdisk = self._paths.vdisk(path_in(arguments))
        name = None if arguments.get("name") is None else text_in(arguments, "name")
        stat = await self._vdisks.stat(vdisk) if name is None else self._vdisks.snapshot(vdisk, name)
        offset = number_in(arguments, "offset", 0)
        end = min(offset + number_in(arguments, "length", stat.size), stat.size)
        extents: list[dict[str, Any]] = []
        while offset < end and len(extents) < MAP_PAGE:
            step = min(MAP_STEP_BYTES, end - offset)
            for extent in await self._vdisks.map(vdisk, offset, step, snapshot=name):
                if not _lengthen(extents, extent):
                    extents.append(extent)
            offset += step
            await trio.lowlevel.checkpoint()
        return {
            "vdisk": vdisk,
            "name": name,
            "version": stat.version,
            "size": stat.size,
            "extents": extents,
            "next_offset": offset if offset < end else None,
        }

    async def _run_check(self, arguments: dict[str, Any], progress: Progress) -> object:
        return await self._scan(self._check, path_in(arguments), progress)

    async def _run_scrub(self, arguments: dict[str, Any], progress: Progress) -> object:
        return await self._scan(self._scrub, path_in(arguments), progress)

    async def _scan(self, scan: Scan, path: bytes, progress: Progress) -> object:
        """Findings about all vdisks at and below a path, with the vdisks' names."""
        inode = self._paths.resolve(path)
        vdisks = [VdiskId(found) async for found in self._vdisks_below(inode)]
        if inode == ROOT_ID:  # those that have lost their names and are still open count in
            known = set(vdisks)
            vdisks += [
                VdiskId(found) for found in self._namespace.inodes(Kind.FILE) if VdiskId(found) not in known
            ]
        findings = await scan(vdisks, progress)
        for finding in findings:
            vdisk = finding.get("vdisk")
            finding["path"] = self._paths.path_of(vdisk) if isinstance(vdisk, int) else None
        return {"vdisks": len(vdisks), "findings": findings}

    async def _usage(self, top: int) -> dict[str, int]:
        sums = {"vdisks": 0, "size": 0, "allocated_bytes": 0}
        async for vdisk in self._vdisks_below(top):
            try:
                stat = self._vdisks.stat_nowait(VdiskId(vdisk)) or await self._vdisks.stat(VdiskId(vdisk))
            except NotFound:
                continue  # deleted meanwhile
            sums["vdisks"] += 1
            sums["size"] += stat.size
            sums["allocated_bytes"] += stat.allocated_bytes
        return sums

    async def _vdisks_below(self, top: int) -> AsyncGenerator[int, None]:
        """Every vdisk at or below an inode, deepest directories last."""
        ahead, seen = [top], 0
        while ahead:
            inode = ahead.pop()
            kind = self._paths.kind(inode)
            if kind == "vdisk":
                yield inode
            elif kind == "directory":
                ahead.extend(child for _, child in self._namespace.children(inode))
            seen += 1
            if seen % YIELD_EVERY == 0:
                await trio.lowlevel.checkpoint()

    async def _entry(self, name: bytes, inode: int) -> dict[str, Any]:
        entry = self._attributes(inode) | {"name": os.fsdecode(name)}
        if entry["kind"] == "vdisk":
            vdisk = VdiskId(inode)
            try:
                stat = self._vdisks.stat_nowait(vdisk) or await self._vdisks.stat(vdisk)
            except NotFound:
                raise
            except VdiskfsError as problem:  # one bad vdisk must not hide the others
                return entry | {"vdisk": inode, "problem": str(problem)}
            entry |= {
                "vdisk": inode,
                "size": stat.size,
                "allocated_bytes": stat.allocated_bytes,
                "version": stat.version,
                "mtime_ns": self._mtime_ns(self._namespace.inode(inode), stat.mtime_ns),
            }
        return entry

    def _attributes(self, inode: int) -> dict[str, Any]:
        found = self._namespace.inode(inode)
        facts: dict[str, Any] = {
            "kind": KINDS[found.kind],
            "mode": f"{found.mode:04o}",
            "uid": found.uid,
            "gid": found.gid,
            "mtime_ns": found.mtime_ns,
        }
        return facts | ({"target": os.fsdecode(found.target)} if found.kind is Kind.SYMLINK else {})

    @staticmethod
    def _mtime_ns(inode: Inode, written_ns: int) -> int:
        """When the content changed: as somebody set it, unless the vdisk was written after that."""
        return written_ns if written_ns > inode.mtime_set_ns else inode.mtime_ns

    def _name(self, inode: int) -> bytes:
        place = self._namespace.place(inode)
        return place.name if place else b"."


def _lengthen(extents: list[dict[str, Any]], extent: Mapping[str, Any]) -> bool:
    """Whether ``extent`` goes on where the last one ends, in the same nothing; the last one then has both."""
    last = extents[-1] if extents else None
    if last is None or last["kind"] != extent["kind"] or extent["kind"] == "data":
        return False
    if last["offset"] + last["length"] != extent["offset"]:
        return False
    last["length"] += extent["length"]
    return True
