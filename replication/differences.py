"""The ranges in which two versions differ: of one vdisk, or of two that have an ancestor in common.

A *side* of a comparison is a vdisk at a version together with what it inherits from. Of two sides that are of one vdisk only
the rows written between their versions are looked at. For two vdisks the lines of descent are followed up to the one in
which they meet; what can differ are the vblocks with a row below it, those that changed between the two versions
at which it is read, and those that one line reads through and the other does not. Only those are resolved.

Compaction moves blocks, and repoints all rows that name them. Caught halfway it makes equal blocks look changed,
never the other way round.
"""

import heapq
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, groupby

from metadata.descent import Rollbacks
from metadata.differences import add_changed, add_compared, first_common
from metadata.errors import InvalidRequest
from metadata.ids import HOLE, PARENT
from metadata.index import Index
from metadata.rows import encode_row
from metadata.units import VBLOCK_BLOCKS, VBLOCK_BYTES
from replication.ancestry import absent_row


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A vdisk at the version at which it is read.

    ``absent`` is the place of blocks without a row; ``overlap``: bytes of its own parent that show through there.
    """

    vdisk: int
    version: int
    absent: int
    overlap: int
    rollbacks: Rollbacks = ()

    def reach(self) -> int:
        """How many bytes of its parent show through where it has no row."""
        return self.overlap if self.absent == PARENT else 0


@dataclass(frozen=True, slots=True)
class Side:
    """A vdisk at a version: itself first, then its ancestors, nearest first."""

    size: int
    line: tuple[Ancestor, ...]


class Differences:
    """What is different in ``newer``; one to a question, used in a thread.

    Args:
        older: None stands for nothing: all data of ``newer`` is different.

    Raises:
        InvalidRequest: the two have no ancestor in common.
    """

    def __init__(self, index: Index, older: Side | None, newer: Side) -> None:
        self._index, self._newer = index, newer
        self._older = older or Side(0, ())
        meet: tuple[int, int] | None = (0, len(newer.line))
        if older is not None:
            meet = first_common([a.vdisk for a in older.line], [a.vdisk for a in newer.line])
        if older is not None and meet is None:
            raise InvalidRequest(
                f"nothing in common: vdisks {older.line[0].vdisk} and {newer.line[0].vdisk} are no relatives"
            )
        assert meet is not None
        self._meet = meet

    def words(self, first_vblock: int, end_vblock: int) -> "array[int]":
        """The changed blocks of these vblocks (metadata/differences.py); holes are where the newer side reads zeros."""
        end = min(end_vblock, -(-self._newer.size // VBLOCK_BYTES))
        pairs, suspects = self._pairs(first_vblock, end), self._suspects(first_vblock, end)
        if suspects is not None:
            also = ((vblock, None, None) for vblock in suspects)
            pairs = heapq.merge(pairs, also, key=_vblock_of)
        is_one_vdisk = self._meet == (0, 0)
        words, last = array("Q"), -1
        for vblock, older, newer in pairs:
            if vblock == last:
                continue
            last = vblock
            if is_one_vdisk and (older or newer):
                older = older or self._absent(self._older, vblock)
                newer = newer or self._absent(self._newer, vblock)
                if add_changed(words, vblock * VBLOCK_BLOCKS, older, newer):
                    continue
            places = self._resolve(self._older, vblock), self._resolve(self._newer, vblock)
            if places[0] != places[1]:
                add_compared(words, vblock * VBLOCK_BLOCKS, *places)
        return words

    @staticmethod
    def _absent(side: Side, vblock: int) -> bytes:
        """What a side's own row of a vblock is where the index has none."""
        own = side.line[0]
        return encode_row(absent_row(vblock, absent=own.absent, overlap=own.overlap))

    def _pairs(self, first: int, end: int) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """Vblocks whose rows differ in the vdisk where the lines meet."""
        older, newer = self._line_ends()
        if older is None or newer is None or older.version == newer.version:
            return iter(())
        rollbacks = max(
            older.rollbacks, newer.rollbacks, key=len
        )  # later ones mask nothing for an older version
        return self._index.row_pairs(
            newer.vdisk,
            (older.version, newer.version),
            first_vblock=first,
            end_vblock=end,
            rollbacks=rollbacks,
        )

    def _line_ends(self) -> tuple[Ancestor | None, Ancestor | None]:
        at_older, at_newer = self._meet
        if at_newer >= len(self._newer.line):
            return None, None
        return self._older.line[at_older], self._newer.line[at_newer]

    def _suspects(self, first: int, end: int) -> Iterator[int] | None:
        """Vblocks, in order, that may differ for another reason than their rows in the vdisk in common; None: none."""
        at_older, at_newer = self._meet
        below = (*self._older.line[:at_older], *self._newer.line[:at_newer])
        sources: list[Iterable[int]] = [self._with_rows(a.vdisk, first, end) for a in below]
        if self._meet != (0, 0):
            reaches = [_reach(self._older, at_older), _reach(self._newer, at_newer)]
            sources.append(_between(*reaches, first=first, end=end))
        ends = self._line_ends()
        if ends[0] is not None and ends[1] is not None:
            sources.append(_between(ends[0].reach(), ends[1].reach(), first=first, end=end))
        sources = [source for source in sources if source != range(0)]
        return (vblock for vblock, _ in groupby(heapq.merge(*sources))) if sources else None

    def _with_rows(self, vdisk: int, first: int, end: int) -> Iterator[int]:
        return chain.from_iterable(
            self._index.vblocks(vdisk, start, min(start + _VBLOCKS_AT_ONCE, end))
            for start in range(first, end, _VBLOCKS_AT_ONCE)
        )

    def _resolve(self, side: Side, vblock: int) -> list[int]:
        """Where each block of a vblock lies, through all generations: HOLE, or the place and whose it is."""
        places, unresolved = [HOLE] * VBLOCK_BLOCKS, list(range(VBLOCK_BLOCKS))
        for ancestor in side.line:
            row = self._index.row_at(ancestor.vdisk, vblock, ancestor.version, rollbacks=ancestor.rollbacks)
            if row is None:
                row = absent_row(vblock, absent=ancestor.absent, overlap=ancestor.overlap)
            owner = ancestor.vdisk << _PLACE_BITS
            for at in unresolved:
                if row[at] > PARENT:
                    places[at] = row[at] | owner
            unresolved = [at for at in unresolved if row[at] == PARENT]
            if not unresolved:
                break
        return places


_PLACE_BITS = 64
_VBLOCKS_AT_ONCE = 4096


def _vblock_of(pair: tuple[int, bytes | None, bytes | None]) -> int:
    return pair[0]


def _reach(side: Side, depth: int) -> int:
    """How far the ancestor ``depth`` generations up shows through where those below have no row."""
    return min((ancestor.reach() for ancestor in side.line[:depth]), default=side.size)


def _between(one: int, other: int, *, first: int, end: int) -> range:
    """The vblocks from the smaller of two offsets to the larger one."""
    start, stop = sorted((one, other))
    return range(max(first, start // VBLOCK_BYTES), min(end, -(-stop // VBLOCK_BYTES)))
