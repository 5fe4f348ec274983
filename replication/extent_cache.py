"""What of a remote pool lies on this node's disk: how much, and what goes when there is too much.

Pieces of groups (CHUNK_BLOCKS each) wait in one of two queues, as in S3-FIFO: new ones in a short queue, from which a
piece that was read again moves to the long one. A scan reads each piece once, from its beginning to its end, so it only
passes through the short queue; what went from there and is wanted again soon goes to the long one at once. What is
read from the page cache leaves no trace here, and costs nothing.

    a piece is stored -> short queue -> read again? -> long queue -> read again meanwhile? -> once more round
                                    `-> goes                     `-> goes
"""

import logging
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from metadata.units import BLOCK_BYTES

log = logging.getLogger(__name__)

CHUNK_BLOCKS = 256
"""1 MiB: the grain of what goes."""
SHORT_PART = 10
"""The short queue is a tenth."""
HITS_MAX = 3
_TRIES_MAX = 64
"""Pieces in use are passed over; after so many in a row the cache is larger than it should be for a while."""


class Cached(Protocol):
    """A group that has pieces here."""

    def local_count(self, start: int, end: int) -> int:
        """How many of these blocks are here and might go."""

    def drop_local(self, start: int, end: int) -> bool:
        """Gives the disk space of these blocks back; False: not now."""


@dataclass(slots=True)
class _Chunk:
    count: int = 0
    read_end: int = 0
    """Reading has come so far: who reads before that reads again."""
    hits: int = 0


_Key = tuple[Cached, int]


class ExtentCache:
    """One to an object pool. Any thread.

    Args:
        limit_bytes: of what may go; what the pool has not yet does not count.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._short: OrderedDict[_Key, _Chunk] = OrderedDict()
        self._long: OrderedDict[_Key, _Chunk] = OrderedDict()
        self._gone: OrderedDict[_Key, None] = OrderedDict()
        """Pieces that went from the short queue lately, as many as the long one has."""
        self._short_count = self._count = 0
        self.evicted_bytes = 0

    @property
    def bytes(self) -> int:
        """What it holds now."""
        return self._count * BLOCK_BYTES

    def note_stored(self, group: Cached, start: int, end: int) -> None:
        """Blocks are here that may go; others go if that is too much."""
        for number in range(start // CHUNK_BLOCKS, -(-end // CHUNK_BLOCKS)):
            count = group.local_count(number * CHUNK_BLOCKS, (number + 1) * CHUNK_BLOCKS)
            with self._lock:
                self._set_count((group, number), count)
        self.shrink(self.limit_bytes)

    def note_read(self, group: Cached, start: int, end: int) -> None:
        """Blocks are read, from here or from the pool."""
        with self._lock:
            for number in range(start // CHUNK_BLOCKS, -(-end // CHUNK_BLOCKS)):
                chunk = self._short.get((group, number)) or self._long.get((group, number))
                if chunk is None:
                    continue
                if max(start, number * CHUNK_BLOCKS) < chunk.read_end:
                    chunk.hits = min(chunk.hits + 1, HITS_MAX)
                chunk.read_end = max(chunk.read_end, end)
        if self.bytes > self.limit_bytes:  # what was in use may go now
            self.shrink(self.limit_bytes)

    def forget(self, group: Cached) -> None:
        """The group is gone, with all that was here of it."""
        with self._lock:
            for key in [key for key in self._gone if key[0] is group]:
                del self._gone[key]
            for key in [key for queue in (self._short, self._long) for key in queue if key[0] is group]:
                self._set_count(key, 0)

    def shrink(self, limit_bytes: int) -> None:
        """Has pieces go until no more is here than that."""
        tries = 0
        while self.bytes > limit_bytes and tries < _TRIES_MAX:
            with self._lock:
                key = self._next_victim()
            if key is None:
                return
            group, number = key
            start = number * CHUNK_BLOCKS
            if group.drop_local(start, start + CHUNK_BLOCKS):
                left = group.local_count(start, start + CHUNK_BLOCKS)
                with self._lock:
                    before = self._count
                    if key in self._short and not left:
                        self._gone[key] = None
                    while len(self._gone) > len(self._long) + len(self._short):
                        self._gone.popitem(last=False)
                    self._set_count(key, left)
                    self.evicted_bytes += (before - self._count) * BLOCK_BYTES
            else:
                tries += 1

    def _next_victim(self) -> _Key | None:
        """The piece to go; it stays in its queue, at the end, until it has gone."""
        for _ in range(len(self._short) + (HITS_MAX + 1) * len(self._long)):
            short = self._short_count * SHORT_PART > self._count or not self._long
            queue = self._short if short and self._short else self._long
            if not queue:
                return None
            key, chunk = next(iter(queue.items()))
            if not chunk.hits:
                queue.move_to_end(key)
                return key
            chunk.hits -= 1
            if queue is self._short:
                del self._short[key]
                self._short_count -= chunk.count
                chunk.hits = 0
                self._long[key] = chunk
            else:
                queue.move_to_end(key)
        return None

    def _set_count(self, key: _Key, count: int) -> None:
        queue = self._long if key in self._long else self._short
        chunk = queue.get(key)
        if chunk is None:
            if not count:
                return
            if key in self._gone:
                del self._gone[key]
                queue = self._long
            chunk = queue[key] = _Chunk()
        grown, chunk.count = count - chunk.count, count
        self._count += grown
        if queue is self._short:
            self._short_count += grown
        if not count:
            del queue[key]
