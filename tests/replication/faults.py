"""A pool and an index that fail on demand, or hold a thread until a test lets it go; otherwise the real ones."""

import errno
import os
import pathlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from metadata.errors import Unavailable
from metadata.index import Index, IndexBatch
from metadata.records import group_seed
from replication import pool_directory
from replication.pool import GroupFile, pool_error
from replication.pool_directory import DirectoryPool
from tests.replication.rig import Rig

HELD_S = 30


class Faults:
    """What shall go wrong; shared by all files of a pool and its index."""

    def __init__(self) -> None:
        self.failing: Counter[str] = Counter()
        """How many of the next calls of "sync", "write", "read", "apply", ... fail."""
        self.calls: Counter[str] = Counter()
        self.injected = 0
        """How many have failed."""
        self.numbers: dict[str, int] = {}
        """With which errno; EIO if it is not said."""
        self.blocks_free: int | None = None
        """How many blocks may still be reserved; None: as many as the disk has."""
        self._held: dict[str, tuple[threading.Event, threading.Event]] = {}

    def meet(self, what: str, path: str) -> None:
        """Called by whatever may fail, before it works."""
        self.calls[what] += 1
        held = self._held.get(what)
        if held is not None:
            reached, released = held
            reached.set()
            assert released.wait(HELD_S)
        if self.failing[what]:
            self.failing[what] -= 1
            self.injected += 1
            number = self.numbers.get(what, errno.EIO)
            raise pool_error(OSError(number, os.strerror(number)), f"{what} {path}")

    def disarm(self) -> None:
        """Nothing fails any more, and there is space."""
        self.failing.clear()
        self.blocks_free = None

    def reserve(self, block_count: int, path: str) -> None:
        """Called before blocks are preallocated."""
        if self.blocks_free is None or block_count <= 0:
            return
        if block_count > self.blocks_free:
            self.injected += 1
            raise pool_error(OSError(errno.ENOSPC, "full"), f"growing {path}")
        self.blocks_free -= block_count

    @asynccontextmanager
    async def held(self, what: str) -> AsyncIterator["Hold"]:
        """Threads that come to ``what`` wait there until the block ends."""
        hold = Hold()
        self._held[what] = (hold.reached, hold.released)
        try:
            yield hold
        finally:
            del self._held[what]
            hold.released.set()


class Hold:
    """A place where threads are held."""

    def __init__(self) -> None:
        self.reached, self.released = threading.Event(), threading.Event()

    async def wait_reached(self) -> None:
        """Returns when a thread is held there."""
        while not self.reached.is_set():
            await trio.lowlevel.checkpoint()


class FaultyFile(GroupFile):
    """A group file whose calls may fail."""

    faults: Faults

    def ensure_open(self) -> None:
        if self.fd < 0:
            self.faults.meet("open", self.path)
        super().ensure_open()

    def read(self, view: memoryview, position: int) -> int:
        self.faults.meet("read", self.path)
        return super().read(view, position)

    def write(self, data: bytes | bytearray | memoryview, position: int) -> None:
        self.faults.meet("write", self.path)
        super().write(data, position)

    def write_many(self, blocks: Sequence[memoryview], position: int) -> None:
        self.faults.meet("write", self.path)
        super().write_many(blocks, position)

    def sync(self) -> None:
        self.faults.meet("sync", self.path)
        super().sync()

    def preallocate(self, end: int, *, written: bool = False) -> None:
        self.faults.meet("preallocate", self.path)
        self.faults.reserve(end - self.allocated_blocks, self.path)
        super().preallocate(end, written=written)

    def trim(self, end: int) -> None:
        self.faults.meet("trim", self.path)
        if self.faults.blocks_free is not None:
            self.faults.blocks_free += max(0, self.allocated_blocks - end)
        super().trim(end)


class FaultyPool(DirectoryPool):
    """A pool of such files."""

    faults: Faults

    def file(self, vdisk: int, group: int) -> GroupFile:
        file = FaultyFile(
            self.group_path(vdisk, group), vdisk=vdisk, group=group, seed=group_seed(self.salt, vdisk, group)
        )
        file.faults = self.faults
        return file

    def create_group(self, vdisk: int, group: int) -> GroupFile:
        self.faults.meet("create", self.group_path(vdisk, group))
        return super().create_group(vdisk, group)


class FaultyIndex(Index):
    """An index whose batches may fail."""

    faults: Faults

    def apply(self, batch: IndexBatch) -> None:
        try:
            self.faults.meet("apply", self.path)
        except Unavailable as exc:
            raise Unavailable(f"the snapshot index cannot be written: {exc}") from exc
        super().apply(batch)


class FaultyRig(Rig):
    """A rig with these; its faults outlive the nodes."""

    def __init__(self, folder: pathlib.Path, **limits: int) -> None:
        super().__init__(folder, **limits)
        self.faults = Faults()

    def open_pool(self) -> DirectoryPool:
        real = pool_directory.open_pool(self.pool_path)
        pool = FaultyPool(real.path, pool_id=real.pool_id, salt=real.salt)
        pool.faults = self.faults
        return pool

    def open_index(self) -> Index:
        index = FaultyIndex(str(self.index_path))
        index.faults = self.faults
        return index
