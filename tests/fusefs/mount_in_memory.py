"""The handlers with a catalog and vdisks in memory, for calling them as pyfuse3 does."""

import errno
import itertools
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pyfuse3
import pytest
import trio
import trio.testing

from fusefs.fuse_abi import RESENT
from fusefs.namespace_store import NamespaceStore
from fusefs.operations import Operations
from fusefs.orphans import Orphans
from fusefs.snapshot_tree import SnapshotTree
from metadata.catalog import ROOT_ID, Catalog
from metadata.catalog_memory import MemoryCatalog
from metadata.errors import InvalidRequest, VdiskfsError
from metadata.ids import VdiskId
from metadata.namespace_plans import plan_root
from replication.family import Family
from replication.vdisks import HANDLE_SHIFT, VdiskStat

SIZE_MAX = 1 << 60
NAME = b"disk"


@dataclass
class Context:
    """What pyfuse3 tells of the caller."""

    uid: int = 1000
    gid: int = 1001
    pid: int = 77
    umask: int = 0o22


@dataclass
class Fields:
    """Which attributes setattr is to change."""

    update_atime: bool = False
    update_mtime: bool = False
    update_ctime: bool = False
    update_mode: bool = False
    update_uid: bool = False
    update_gid: bool = False
    update_size: bool = False


@dataclass
class VdisksInMemory:
    """Sizes and handles, without bytes."""

    stats: dict[int, VdiskStat] = field(default_factory=dict)
    resting: set[int] = field(default_factory=set)
    handles: dict[int, int] = field(default_factory=dict)
    flushed: list[int] = field(default_factory=list)
    forgotten: list[int] = field(default_factory=list)
    broken: dict[int, VdiskfsError] = field(default_factory=dict)
    family: Family = field(default_factory=Family)
    buffered: set[int] = field(default_factory=set)
    knows_all_handles: bool = True
    waits: int = 0
    clock_ns: Callable[[], int] = lambda: 0

    async def open(self, vdisk: VdiskId, *, flags: int = 0) -> int:
        await trio.lowlevel.checkpoint()
        self._check(vdisk)
        number = (len(self.handles) + 1) << HANDLE_SHIFT | vdisk
        self.handles[number] = vdisk
        return number

    def is_remote(self, number: int) -> bool:
        return False

    async def open_version(self, snapshot_id: int) -> int:
        assert self.family.by_id(snapshot_id) is not None
        return await self.open(VdiskId(snapshot_id))

    def has_buffered_writer(self, vdisk: VdiskId) -> bool:
        return vdisk in self.buffered

    def handle_count(self, file_id: int) -> int:
        return list(self.handles.values()).count(file_id)

    def close(self, number: int) -> None:
        self.handles.pop(number, None)

    def has_handles(self, vdisk: VdiskId) -> bool:
        return vdisk in self.handles.values()

    def stat_nowait(self, vdisk: VdiskId) -> VdiskStat | None:
        if vdisk in self.resting or vdisk in self.broken:
            return None
        return self.stats.get(vdisk, VdiskStat(0, 0, 0, 0))

    async def stat(self, vdisk: VdiskId) -> VdiskStat:
        self.waits += 1
        await trio.lowlevel.checkpoint()
        self._check(vdisk)
        self.resting.discard(vdisk)
        return self.stats.get(vdisk, VdiskStat(0, 0, 0, 0))

    async def truncate(self, vdisk: VdiskId, size: int) -> None:
        await trio.lowlevel.checkpoint()
        self._check(vdisk)
        if size > SIZE_MAX:
            raise InvalidRequest("too large", number=errno.EFBIG)
        self.stats[vdisk] = VdiskStat(size, 0, self.clock_ns(), 1)

    async def flush(self, vdisk: VdiskId) -> None:
        await trio.lowlevel.checkpoint()
        self._check(vdisk)
        self.flushed.append(vdisk)

    async def forget(self, vdisk: VdiskId) -> None:
        await trio.lowlevel.checkpoint()
        self._check(vdisk)
        assert not self.has_handles(vdisk)
        self.forgotten.append(vdisk)
        self.stats.pop(vdisk, None)

    async def statfs(self) -> os.statvfs_result:
        return os.statvfs_result((4096, 512, 1000, 600, 500, 0, 0, 0, 0, 255))

    def _check(self, vdisk: int) -> None:
        if vdisk in self.broken:
            raise self.broken[vdisk]


@dataclass
class Mount:
    """One daemon's handlers, with what they work on."""

    operations: Operations
    orphans: Orphans
    store: NamespaceStore
    vdisks: VdisksInMemory
    catalog: Catalog
    now_ns: list[int]
    listed: list[tuple[bytes, pyfuse3.EntryAttributes, int]]
    ctx: Context = field(default_factory=Context)
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(100))

    async def create(
        self, name: bytes = NAME, *, parent: int = ROOT_ID, flags: int = os.O_RDWR
    ) -> tuple[int, int]:
        """Returns inode and handle."""
        info, attributes = await self.operations.create(parent, name, 0o640, flags, self.ctx)
        return attributes.st_ino, info.fh

    async def mkdir(self, name: bytes, *, parent: int = ROOT_ID, mode: int = 0o755) -> int:
        return (await self.operations.mkdir(parent, name, mode | stat.S_IFDIR, self.ctx)).st_ino

    async def list(self, inode: int, *, after: int = 0) -> list[bytes]:
        """One readdir, as much of it as the kernel's buffer takes (``listed_max``)."""
        self.listed.clear()
        fh = await self.operations.opendir(inode, self.ctx)
        await self.operations.readdir(fh, after, None)
        return [name for name, _, _ in self.listed]

    async def setattr(self, inode: int, *, fh: int | None = None, **wanted: int) -> pyfuse3.EntryAttributes:
        attributes, fields = pyfuse3.EntryAttributes(), Fields()
        for name, value in wanted.items():
            setattr(attributes, f"st_{name}_ns" if name.endswith("time") else f"st_{name}", value)
            setattr(fields, f"update_{name}", True)
        return await self.operations.setattr(inode, attributes, fields, fh, self.ctx)

    def resent(self) -> Context:
        """Of a request that comes again, and whose first coming was not noted."""
        return Context(pid=RESENT | next(self.numbers))


@asynccontextmanager
async def mounted(
    catalog: Catalog, *, vdisks: VdisksInMemory | None = None, listed_max: int = 10**6
) -> AsyncIterator[Mount]:
    now_ns, listed = [1000], []
    vdisks = vdisks or VdisksInMemory()

    def reply(token: object, name: bytes, attributes: pyfuse3.EntryAttributes, position: int) -> bool:
        if len(listed) == listed_max:
            return False
        listed.append((name, attributes, position))
        return True

    def clock_ns() -> int:
        now_ns[0] += 1
        return now_ns[0]

    async with NamespaceStore(catalog) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        vdisks.clock_ns = clock_ns
        tree = SnapshotTree(store.namespace, vdisks.family)
        orphans = Orphans(store, vdisks, node="here")
        operations = Operations(
            store, vdisks, node="here", tree=tree, orphans=orphans, clock_ns=clock_ns, readdir_reply=reply
        )
        yield Mount(operations, orphans, store, vdisks, catalog, now_ns, listed)
        nursery.cancel_scope.cancel()


def on_a_mount(scenario: Callable[[Mount], Awaitable[None]], *, listed_max: int = 10**6) -> None:
    async def main() -> None:
        catalog = MemoryCatalog()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with mounted(catalog, listed_max=listed_max) as mount:
            await scenario(mount)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


@asynccontextmanager
async def refused(number: int) -> AsyncIterator[None]:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        yield
    assert errno.errorcode[caught.value.errno] == errno.errorcode[number]
