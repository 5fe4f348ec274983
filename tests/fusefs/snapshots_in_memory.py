"""The snapshots' interface on a mirror alone: no bytes, no commits; and a kernel that remembers what it is told."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import trio

from fusefs.control import Progress
from metadata.descent import Descent
from metadata.errors import Busy, Exists
from metadata.ids import PARENT, VdiskId
from metadata.snapshots import Snapshot, check_snapshot_name
from replication.snapshots import CloneOrigin
from tests.fusefs.mount_in_memory import VdisksInMemory


@dataclass
class Kernel:
    """What it was told to forget, and which inodes it knows."""

    known: set[int] = field(default_factory=set)
    forgotten: list[tuple[int, bytes]] = field(default_factory=list)
    written_back: list[int] = field(default_factory=list)
    looked_at: list[int] = field(default_factory=list)

    def knows_inode(self, inode: int) -> bool:
        self.looked_at.append(inode)
        return inode in self.known

    async def write_back(self, inode: int, offset: int) -> None:
        await trio.lowlevel.checkpoint()
        self.written_back.append(inode)

    async def forget_entry(self, parent: int, name: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.forgotten.append((parent, name))

    @asynccontextmanager
    async def entry_going(self, parent: int, name: bytes) -> AsyncIterator[None]:
        await trio.lowlevel.checkpoint()
        yield
        await self.forget_entry(parent, name)


@dataclass
class SnapshotsInMemory:
    """Keeps rows of a mirror; a version is whatever the vdisk's stat says."""

    vdisks: VdisksInMemory
    groups: list[list[str]] = field(default_factory=list)
    flattened: list[int] = field(default_factory=list)
    pinned: int = 0

    def _snapshot(self, vdisk: int, name: str, number: int) -> Snapshot:
        check_snapshot_name(name)
        if self.vdisks.family.has_snapshot(vdisk, name):
            raise Exists(f"there is a snapshot of this name already name={name!r}")
        stat = self.vdisks.stat_nowait(VdiskId(vdisk))
        assert stat is not None
        return Snapshot(
            vdisk, name, number, stat.version, stat.size, 2, 0, stat.mtime_ns, self.vdisks.clock_ns()
        )

    async def create(self, targets: Sequence[tuple[VdiskId, str, int]]) -> list[Snapshot]:
        await trio.lowlevel.checkpoint()
        made = [self._snapshot(*target) for target in targets]
        for snapshot in made:
            self.vdisks.family.add_snapshot(snapshot)
        self.groups.append([snapshot.name for snapshot in made])
        return made

    async def remove(self, vdisk: VdiskId, name: str) -> None:
        await trio.lowlevel.checkpoint()
        self.vdisks.family.drop_snapshot(self.vdisks.family.snapshot(vdisk, name))

    async def rename(self, vdisk: VdiskId, name: str, new_name: str) -> Snapshot:
        return await self._change(vdisk, name, lambda old: replace(old, name=new_name))

    async def protect(self, vdisk: VdiskId, name: str, on: bool) -> Snapshot:
        return await self._change(vdisk, name, lambda old: replace(old, protected=on))

    async def _change(self, vdisk: int, name: str, change: Callable[[Snapshot], Snapshot]) -> Snapshot:
        await trio.lowlevel.checkpoint()
        old = self.vdisks.family.snapshot(vdisk, name)
        self.vdisks.family.drop_snapshot(old)
        self.vdisks.family.add_snapshot(change(old))
        return change(old)

    async def rollback(self, vdisk: VdiskId, name: str, *, keep_as: tuple[str, int]) -> Snapshot:
        if self.vdisks.has_handles(vdisk):
            raise Busy("open for writing")
        (kept,) = await self.create([(vdisk, *keep_as)])
        return kept

    @asynccontextmanager
    async def origin(self, vdisk: VdiskId, name: str | None) -> AsyncIterator[CloneOrigin]:
        await trio.lowlevel.checkpoint()
        self.pinned += 1
        try:
            if name is not None:
                snapshot = self.vdisks.family.snapshot(vdisk, name)
                yield CloneOrigin(vdisk, snapshot.version, snapshot.size, 0)
            else:
                stat = self.vdisks.stat_nowait(vdisk)
                assert stat is not None
                yield CloneOrigin(vdisk, stat.version, stat.size, 0)
        finally:
            self.pinned -= 1

    def note_clone(self, child: int, origin: CloneOrigin) -> None:
        assert self.pinned
        adopt(self.vdisks, child, origin.parent)

    async def flatten(self, vdisk: VdiskId, progress: Progress) -> None:
        await trio.lowlevel.checkpoint()
        progress({"done": 1, "total": 2})
        self.flattened.append(vdisk)


def adopt(vdisks: VdisksInMemory, vdisk: int, parent: tuple[int, int]) -> None:
    """Note a clone as the vdisks do."""
    vdisks.family.set_descent(vdisk, Descent(parent=parent, absent=PARENT))
