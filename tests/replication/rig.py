"""The core on a temporary pool, without a mount: opened, closed and killed as often as a test likes.

A kill in one process: the index keeps only what it had written to its files (its own log is off), the journal and
the group files keep everything, nobody says goodbye.
"""

import itertools
import logging
import math
import os
import pathlib
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import pytest
import trio

from metadata.catalog import Catalog, Change, encode_value, vdisk_key
from metadata.catalog_memory import MemoryCatalog
from metadata.catalog_sqlite import open_sqlite_catalog
from metadata.ids import VdiskId
from metadata.index import Index
from metadata.units import BLOCK_BYTES
from replication import head_read, head_write, pool_directory
from replication.caches import FifoCache
from replication.checking import check
from replication.head import Head
from replication.journal import CAPACITY, Journal
from replication.pool_catalog import CATALOG_NAME
from replication.pool_directory import DirectoryPool
from replication.reader import REQUEST_BYTES_MAX
from replication.scrub import scrub
from replication.vdisks import Vdisks
from replication.workspace import ROWS_MAX, SEGMENTS_MAX, Workspace

DEADLINE_S = 300 if "coverage" in sys.modules else 60
B = BLOCK_BYTES

T = TypeVar("T")
_serial = itertools.count()


class Rig:
    """One pool and one state directory."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        sqlite: bool = False,
        rows_max: int = ROWS_MAX,
        segments_max: int = SEGMENTS_MAX,
        journal_capacity: int = CAPACITY,
    ) -> None:
        self.folder, self.sqlite = folder, sqlite
        self.rows_max, self.segments_max, self.journal_capacity = rows_max, segments_max, journal_capacity
        self.pool_path, self.state_path = str(folder / "pool"), folder / "state"
        self.index_path = self.state_path / "index"
        self._memory_catalog = MemoryCatalog()
        self.node_name = "here"
        self.dying = False
        """The node that runs now is killed when its time is over."""
        self._make()

    def _make(self) -> None:
        pool_directory.format_pool(self.pool_path).close()
        self.state_path.mkdir()

    def open_pool(self) -> DirectoryPool:
        """For a rig whose pool has faults to override."""
        return pool_directory.open_pool(self.pool_path)

    def open_index(self) -> Index:
        """The same for the index."""
        return Index(str(self.index_path))

    async def _open_catalog(self) -> Catalog:
        if not self.sqlite:
            return self._memory_catalog
        return await open_sqlite_catalog(pathlib.Path(self.pool_path, CATALOG_NAME))

    @asynccontextmanager
    async def node(self, *, kill: bool = False) -> AsyncIterator[Vdisks]:
        """The core, running. At the end everything is put to rest, or it is killed."""
        pool = self.open_pool()
        index = self.open_index()
        journal = Journal(str(self.state_path / "journal"), pool.salt, capacity=self.journal_capacity)
        catalog = await self._open_catalog()
        workspace = Workspace(
            pool,
            index,
            journal,
            catalog,
            self.node_name,
            row_cache=FifoCache(self.rows_max),
            segment_cache=FifoCache(self.segments_max),
        )
        self._join(workspace)
        vdisks = Vdisks(workspace)
        killed = kill
        try:
            await vdisks.__aenter__()
            try:
                yield vdisks
            except BaseException:
                killed = True  # the test has failed: no more work on what it left behind
                raise
            killed = kill or self.dying
            if not killed:
                await vdisks.__aexit__(None, None, None)
        finally:
            workspace.close_threads()
            self._close(workspace, killed)
            if self.sqlite:
                await catalog.aclose()

    def _join(self, workspace: Workspace) -> None:
        """For a rig whose node is not alone."""

    def _close(self, workspace: Workspace, killed: bool) -> None:
        if killed:
            self._kill_index(workspace.index)
        else:
            workspace.index.close()
        workspace.journal.close()
        for file in workspace.pool._open:
            file.busy = 0
        workspace.pool.close()

    def _kill_index(self, index: Index) -> None:
        """Keep of it what is in its files now, not what closing would write."""
        kept, copied, now = self.folder / f"index-{next(_serial)}", None, self._index_files()
        while copied != now:  # a compaction may be changing them
            shutil.rmtree(kept, ignore_errors=True)
            with suppress(shutil.Error):
                shutil.copytree(self.index_path, kept)
            copied, now = now, self._index_files()
        index.close()
        shutil.rmtree(self.index_path)
        kept.rename(self.index_path)

    def _index_files(self) -> dict[str, int]:
        sizes = {}
        for path in self.index_path.iterdir():
            with suppress(FileNotFoundError):
                sizes[path.name] = path.stat().st_size
        return {name: size for name, size in sizes.items() if not name.startswith("LOG")}

    def lose_index(self) -> None:
        """The snapshot index is gone."""
        shutil.rmtree(self.index_path)

    def lose_state(self) -> None:
        """Index and journal are gone: the node is lost, the pool is not."""
        shutil.rmtree(self.state_path)
        self.state_path.mkdir()

    def group_files(self, vdisk: int) -> list[pathlib.Path]:
        """The vdisk's extent groups, in log order."""
        folder = pathlib.Path(self.pool_path, "vdisks", f"{vdisk & 0xFF:02x}", f"{vdisk:016x}")
        return sorted(folder.glob("*.group"))


def run(scenario: Callable[[], Awaitable[T]], *, clock: trio.abc.Clock | None = None) -> T:
    """Runs a test's coroutine function, with a deadline where time is real."""

    async def main() -> T:
        with trio.fail_after(DEADLINE_S if clock is None else math.inf):
            return await scenario()

    return trio.run(main, clock=clock)


async def create(vdisks: Vdisks, vdisk: int, size: int = 0) -> Head:
    """A new vdisk's head, with one handle open."""
    row = {"parent": None, "absent": 0, "resting": None, "nameless": False}
    put = (vdisk_key(vdisk), encode_value(row))
    await vdisks.workspace.catalog.transact(Change(compares=((put[0], 0),), puts=(put,)))
    head = await opened(vdisks, vdisk)
    if size:
        await head_write.truncate(head, size)
    return head


async def opened(vdisks: Vdisks, vdisk: int) -> Head:
    """The head of one more handle."""
    return vdisks.heads_by_handle[await vdisks.open(VdiskId(vdisk))]


def handles_of(vdisks: Vdisks, vdisk: int) -> list[int]:
    return [number for number, handle in vdisks.handles.items() if handle.vdisk == vdisk]


async def close_and_rest(vdisks: Vdisks, vdisk: int) -> None:
    """Every handle given back, and the head put to rest at once."""
    for number in handles_of(vdisks, vdisk):
        vdisks.close(number)
    head = vdisks.heads.get(vdisk)
    if head is not None:
        await vdisks.put_to_rest(head)


async def write(head: Head, offset: int, data: bytes) -> None:
    """As the channel does it: at once if that goes, else the slow way; some as a lot of single blocks."""
    if not offset % (3 * B) and len(data) in range(2 * B, 17 * B, B):
        offsets = range(offset, offset + len(data), B)
        blocks = [memoryview(data)[at : at + B] for at in range(0, len(data), B)]
        if head.write_many_nowait(offsets, blocks):
            return
    if not head.write_nowait(offset, memoryview(data)):
        await head_write.write(head, offset, data)


async def read(head: Head, offset: int, size: int) -> bytes:
    """The same."""
    data = head.read_nowait(offset, size) if size <= REQUEST_BYTES_MAX else None
    return await head_read.read(head, offset, size) if data is None else bytes(data)


async def content(head: Head) -> bytes:
    """All of it, by both ways, which must agree."""
    parts = []
    for offset in range(0, head.size, 1 << 20):
        size = min(1 << 20, head.size - offset)
        slow = await head_read.read(head, offset, size)
        assert await read(head, offset, size) == slow
        parts.append(slow)
    return b"".join(parts)


async def sound(vdisks: Vdisks, *ids: int) -> None:
    """Nothing for check and scrub to find."""

    def quiet(_: object) -> None:
        pass

    wanted = [VdiskId(vdisk) for vdisk in ids]
    found = await check(vdisks, wanted, quiet)
    assert found == [], found
    assert await scrub(vdisks, wanted, quiet) == []


async def passes(seconds: float) -> None:
    """So much time of the run's clock."""
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


def block(value: int) -> bytes:
    """4 KiB that are not another block's."""
    return (value + 1).to_bytes(8, "little") * (B // 8)


def blocks(*values: int) -> bytes:
    return b"".join(block(value) for value in values)


def expect_errors(caplog: pytest.LogCaptureFixture, *beginnings: str) -> None:
    """The errors logged all begin so; they are no stray ones."""
    errors = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert [message for message in errors if not message.startswith(beginnings)] == []
    caplog.clear()


def open_descriptors() -> int:
    """How many this process has."""
    return len(os.listdir("/proc/self/fd"))
