"""What compaction moves, told to whoever reads: nobody is left with a place whose group is gone.

Places live in rows, in resolved parents' rows, and in plans of reads that wait for a disk. When blocks move,

    index      rows of all generations and the new checksums, one batch, no commit of the vdisk running
    memory     every reader's rows are repointed in place, parents' rows forgotten, before anything else runs
    on the way what a thread looked up in the index before the move is not taken (``touched``)
    plans      whoever waits with places in hand holds (``hold``); groups go when all earlier holds ended
"""

from collections import Counter, deque
from collections.abc import AsyncIterator, Container, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol
from weakref import WeakSet

import trio

from metadata.ids import POSITION_BITS

_ROWS_AT_ONCE = 64
"""Looked through between two chances for guests' requests: a millisecond."""
RECENT_MAX = 4096
"""Moves remembered for look-ups on their way; one that began before the oldest of them starts over."""

Moved = Mapping[int, Mapping[int, int]]
"""By vblock: from the old place of each block to its new one."""


class Placed(Protocol):
    """Whoever keeps places in memory (``Reader``)."""

    def note_moved(self, vdisk: int, moved: Moved) -> None:
        """Blocks of the vdisk lie elsewhere from now on."""

    def note_replaced(self, vdisk: int) -> None:
        """The vdisk's index is another one now."""

    def places_of(self, vdisk: int) -> Iterator[Sequence[int]]:
        """Every row in memory with places of a vdisk."""


class _Everything:
    def __contains__(self, _: object) -> bool:
        return True


_EVERYTHING = _Everything()


class Moves:
    """The moves of a node and those they concern; one in the workspace."""

    def __init__(self) -> None:
        self.readers: WeakSet[Placed] = WeakSet()
        self.serial = 0
        """Counts moves."""
        self._recent: deque[tuple[int, int, Container[int]]] = deque(maxlen=RECENT_MAX)
        self._era = 0
        self._holds: Counter[int] = Counter()
        self._ended = trio.Event()
        self._rebuilding: dict[int, trio.Event] = {}

    def note(self, vdisk: int, moved: Moved) -> None:
        """Tells all readers, at once; the index has it already."""
        self.serial += 1
        self._recent.append((self.serial, vdisk, frozenset(moved)))
        for reader in list(self.readers):
            reader.note_moved(vdisk, moved)

    def note_replaced(self, vdisk: int) -> None:
        """The vdisk's index is another one: what was looked up in it, by anybody, counts no more."""
        self.serial += 1
        self._recent.append((self.serial, vdisk, _EVERYTHING))
        for reader in list(self.readers):
            reader.note_replaced(vdisk)

    @asynccontextmanager
    async def rebuilding(self, vdisk: int) -> AsyncIterator[None]:
        """Inside, the vdisk's index is built anew: nobody looks into it."""
        done = self._rebuilding[vdisk] = trio.Event()
        try:
            self.note_replaced(vdisk)
            await self.wait_past()
            yield
        finally:
            self.note_replaced(vdisk)
            del self._rebuilding[vdisk]
            done.set()

    @property
    def is_rebuilding(self) -> bool:
        """Whether any index is being built anew."""
        return bool(self._rebuilding)

    async def wait_whole(self, vdisks: Iterable[int]) -> None:
        """Returns when none of these is being built anew."""
        if self._rebuilding:
            for vdisk in vdisks:
                while vdisk in self._rebuilding:
                    await self._rebuilding[vdisk].wait()

    def touched(self, since: int, vdisks: set[int], vblock: int) -> bool:
        """Whether the vblock of one of these vdisks has moved since ``serial`` was ``since``."""
        if since == self.serial:
            return False
        if self._recent and self._recent[0][0] > since + 1:
            return True
        return any(
            serial > since and vdisk in vdisks and vblock in vblocks
            for serial, vdisk, vblocks in reversed(self._recent)
        )

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Inside, places may be kept over an await: their groups stay."""
        era = self._era
        self._holds[era] += 1
        try:
            yield
        finally:
            self._holds[era] -= 1
            if not self._holds[era]:
                del self._holds[era]
                self._ended.set()
                self._ended = trio.Event()

    async def wait_past(self) -> None:
        """Returns when every hold that had begun before the call has ended."""
        era = self._era
        self._era += 1
        while any(earlier <= era for earlier in self._holds):
            await self._ended.wait()

    async def still_named(self, vdisk: int, groups: Set[int]) -> set[int]:
        """Those of a vdisk's groups that something in memory still names."""
        named: set[int] = set()
        for reader in list(self.readers):
            for number, places in enumerate(reader.places_of(vdisk)):
                named |= groups & {place >> POSITION_BITS for place in places}
                if number % _ROWS_AT_ONCE == _ROWS_AT_ONCE - 1:
                    await trio.lowlevel.checkpoint()
        return named
