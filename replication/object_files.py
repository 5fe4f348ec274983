"""A group file of an object pool: the local file for the hot paths, the group's objects behind it."""

import os

from metadata.errors import NoSpace, NotFound
from metadata.units import BLOCK_BYTES
from replication.object_groups import AHEAD_BLOCKS_MAX, AHEAD_BLOCKS_MIN, ObjectGroup
from replication.pool import GroupFile, pool_error

_ZEROS = bytes(1 << 20)
_NOWHERE = -(1 << 30)
_STREAM_READS = 3
"""Reads that follow each other before more is fetched than they ask for: guests read two neighbours at random, too."""
_NEAR_BLOCKS = 512
"""Requests of a stream arrive in nearly their order."""


class ObjectGroupFile(GroupFile):
    """One descriptor of a group's local file."""

    __slots__ = ("_following", "_streak", "_window", "shared")

    def __init__(self, shared: ObjectGroup, *, seed: int, url: str) -> None:
        super().__init__(url, vdisk=shared.vdisk, group=shared.group, seed=seed)
        self.shared = shared
        self._following, self._streak, self._window = _NOWHERE, 0, 0
        """Where a stream would go on, how many reads it has been one, and how far ahead of it was asked for."""

    def ensure_open(self) -> None:
        if self.fd >= 0:
            return
        self.shared.load()
        try:
            with self._opening:
                if self.fd < 0:
                    fd = os.open(self.shared.path, os.O_RDWR | os.O_CLOEXEC)
                    self.allocated_blocks = os.fstat(fd).st_size // BLOCK_BYTES
                    self.fd = fd
        except FileNotFoundError as exc:
            raise NotFound(f"an extent group is missing from the pool file={self.path}", number=5) from exc
        except OSError as exc:
            raise pool_error(exc, f"opening {self.shared.path}") from exc

    def read_cached(self, view: memoryview, position: int) -> int:
        """What lies here, or is fetched and kept; the caller verifies. A stream is read ahead of."""
        count = len(view) // BLOCK_BYTES
        if 0 <= position - self._following + _NEAR_BLOCKS <= 2 * _NEAR_BLOCKS:
            self._streak += 1
            if self._streak >= _STREAM_READS:
                self._window = min(max(2 * self._window, AHEAD_BLOCKS_MIN), AHEAD_BLOCKS_MAX)
                self.shared.prefetch(position + count, position + count + self._window)
        else:
            self._streak = self._window = 0
        self._following = position + count
        return self.shared.read(self.fd, view, position, sure=False)

    def renew(self, position: int, block_count: int) -> bool:
        return self.shared.renew(position, block_count)

    def read(self, view: memoryview, position: int) -> int:
        """What this process fetched, or appended: nothing that the local disk kept from before."""
        return self.shared.read(self.fd, view, position, sure=True)

    def read_ahead(self, position: int, count: int) -> None:
        self.shared.prefetch(position, position + count)

    def write(self, data: bytes | bytearray | memoryview, position: int) -> None:
        """Writes behind what is there; the local file takes it, ``sync`` brings it into the pool."""
        GroupFile.write(self, data, position)
        self.shared.note_written(position + len(data) // BLOCK_BYTES)

    def write_many(self, blocks: list[memoryview], position: int) -> None:  # type: ignore[override]
        GroupFile.write_many(self, blocks, position)
        self.shared.note_written(position + sum(map(len, blocks)) // BLOCK_BYTES)

    def sync(self) -> None:
        if not self.shared.flushes_here:
            self.shared.sync()
            return
        end = self.shared.written_end
        GroupFile.sync(self)
        self.shared.note_durable(end)

    def preallocate(self, end: int, *, written: bool = False) -> None:
        """Reserves blocks of the local disk; zeros make a sync quicker only if it is that disk's."""
        start = self.allocated_blocks
        try:
            GroupFile.preallocate(self, end)
        except NoSpace:
            self.shared.space.cache.shrink(0)
            GroupFile.preallocate(self, end)
        if written and end > start and self.shared.flushes_here:
            for position in range(start, end, len(_ZEROS) // BLOCK_BYTES):
                GroupFile.write(self, _ZEROS[: (end - position) * BLOCK_BYTES], position)
            GroupFile.sync(self)

    def trim(self, end: int) -> None:
        """Gives back what is preallocated; nothing behind ``end`` was stored, and nothing more is appended for now."""
        GroupFile.trim(self, end)
        self.shared.finish()
