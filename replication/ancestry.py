"""A clone's parents: the blocks its rows call PARENT, found once and then read at no extra cost.

A parent is (vdisk, version) and never changes, so what a vblock's PARENT blocks resolve to never changes
either: the first read walks up the generations, later ones find places and owners in ``_resolved``. Depth is
paid once.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from metadata.descent import Rollbacks
from metadata.ids import HOLE, PARENT
from metadata.index import Index
from metadata.rows import runs, uniform_row
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS, VBLOCK_BYTES
from replication.caches import FifoCache
from replication.groups import GroupSet
from replication.moves import Moved

_ZEROS = bytes(VBLOCK_BYTES)
_NOTHING: list[set[int]] = []
_STRIDE = 16
_PARENTS = array("Q", (PARENT,)) * _STRIDE


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Generation:
    """One ancestor at the version its child was made of.

    ``absent`` is the place of blocks that have no row there; ``overlap`` how many bytes of *its* parent show
    through where it has none.
    """

    groups: GroupSet
    version: int
    absent: int
    overlap: int
    rollbacks: Rollbacks = ()
    """Those before that version; later ones are not seen from it."""

    def shows_parent_throughout(self, vblock: int) -> bool:
        """Whether a vblock without a row is its parent's from end to end."""
        return self.absent == PARENT and self.overlap >= (vblock + 1) * VBLOCK_BYTES


def _own_blocks(row: "array[int]") -> list[int]:
    """Which of a row's blocks do not say PARENT; most often few of them: a thousand generations take their time."""
    if row.count(PARENT) == VBLOCK_BLOCKS:
        return []
    found: list[int] = []
    for start in range(0, VBLOCK_BLOCKS, _STRIDE):
        if row[start : start + _STRIDE] != _PARENTS:
            found += [at for at in range(start, start + _STRIDE) if row[at] != PARENT]
    return found


def absent_row(vblock: int, *, absent: int, overlap: int) -> "array[int]":
    """The row of a vblock that has none: holes, or as far as the parent shows through, PARENT."""
    if absent == HOLE or overlap <= vblock * VBLOCK_BYTES:
        return uniform_row(HOLE)
    row = uniform_row(PARENT)
    visible = -(-(overlap - vblock * VBLOCK_BYTES) // BLOCK_BYTES)
    if visible < VBLOCK_BLOCKS:
        row[visible:] = array("Q", (HOLE,)) * (VBLOCK_BLOCKS - visible)
    return row


class Ancestry:
    """The generations above one vdisk, nearest first; empty for one that is no clone."""

    def __init__(self, index: Index, cache: FifoCache, *, absent: int, generations: list[Generation]) -> None:
        self.absent, self.generations = absent, generations
        self._index, self._cache = index, cache
        self._resolved: dict[int, tuple[array[int], array[int]]] = {}

    def absent_row(self, vblock: int, overlap: int) -> "array[int]":
        """The vdisk's own row where the index has none."""
        return absent_row(vblock, absent=self.absent, overlap=overlap)

    def read_nowait(self, view: memoryview, block_no: int, count: int) -> bool:
        """Fills ``view`` with blocks of one vblock as the parent has them, if memory can."""
        resolved = self._resolved.get(block_no >> 8)
        if resolved is None:
            return False
        at = 0
        for groups, place, length in self._parts(resolved, block_no & 255, count):
            part = view[at : at + length * BLOCK_BYTES]
            if groups is None:
                part[:] = _ZEROS[: len(part)]
            elif not groups.read_run_nowait(part, place, length):
                return False
            at += len(part)
        return True

    def parts(self, block_no: int, count: int) -> list[tuple[GroupSet | None, int, int]] | None:
        """Blocks of one vblock as (owner or None for a hole, place, count); None if not resolved yet."""
        resolved = self._resolved.get(block_no >> 8)
        return None if resolved is None else self._parts(resolved, block_no & 255, count)

    def _parts(
        self, resolved: tuple["array[int]", "array[int]"], first: int, count: int
    ) -> list[tuple[GroupSet | None, int, int]]:
        places, depths = resolved
        parts: list[tuple[GroupSet | None, int, int]] = []
        for start, length, place in runs(places, first, count):
            if place <= PARENT:
                parts.append((None, HOLE, length))
                continue
            at = start
            while at < start + length:  # equal places of two ancestors may look like one run
                depth, end = depths[at], at + 1
                while end < start + length and depths[end] == depth:
                    end += 1
                parts.append((self.generations[depth].groups, places[at], end - at))
                at = end
        return parts

    def find(self, vblock: int) -> tuple["array[int]", "array[int]"]:
        """Thread: what the parent has for a vblock, as places and, for each, how many generations up less one."""
        places, depths = uniform_row(PARENT), array("H", bytes(2 * VBLOCK_BLOCKS))
        open_blocks = VBLOCK_BLOCKS
        for depth, generation in enumerate(self.generations):
            row = self._index.row_at(
                generation.groups.vdisk, vblock, generation.version, rollbacks=generation.rollbacks
            )
            if row is None:
                if generation.shows_parent_throughout(vblock):
                    continue
                row = absent_row(vblock, absent=generation.absent, overlap=generation.overlap)
            for at in _own_blocks(row):
                if places[at] == PARENT:
                    places[at] = row[at]
                    depths[at] = depth
                    open_blocks -= 1
            if not open_blocks:
                break
        if open_blocks:
            for at in range(VBLOCK_BLOCKS):
                if places[at] == PARENT:
                    places[at] = HOLE
        return places, depths

    def find_all(self, vblocks: list[int]) -> dict[int, tuple["array[int]", "array[int]"]]:
        """Thread: ``find`` for each."""
        return {vblock: self.find(vblock) for vblock in vblocks}

    def first_vblock(self, first: int, end: int) -> int | None:
        """Thread: the first vblock in [first, end) of which an ancestor has a row, of any generation."""
        found = [self._index.first_vblock(vdisk, first, end) for vdisk in self.vdisks()]
        return min((vblock for vblock in found if vblock is not None), default=None)

    def vblocks(self, first: int, end: int) -> list[int]:
        """Thread: all of them, in order."""
        return sorted({v for vdisk in self.vdisks() for v in self._index.vblocks(vdisk, first, end)})

    def note_moved(self, vdisk: int, moved: Moved) -> None:
        """Blocks of a vdisk lie elsewhere: what was resolved through it is looked up again."""
        if any(generation.groups.vdisk == vdisk for generation in self.generations):
            for vblock in moved:
                self._resolved.pop(vblock, None)

    def note_replaced(self, vdisk: int) -> None:
        """An ancestor's index is another one: what was resolved through it is looked up again."""
        if vdisk in self.vdisks():
            self._resolved.clear()

    def places_of(self, vdisk: int) -> Iterator[Sequence[int]]:
        """The places of an ancestor that each resolved row has."""
        if vdisk not in self.vdisks():
            return
        for places, depths in list(self._resolved.values()):
            owners = (self.generations[depth].groups.vdisk for depth in depths)
            yield [place for place, owner in zip(places, owners, strict=True) if owner == vdisk]

    def vdisks(self) -> set[int]:
        """The ancestors."""
        return {generation.groups.vdisk for generation in self.generations}

    def install(self, vblock: int, resolved: tuple["array[int]", "array[int]"]) -> None:
        """Keeps what ``find`` found."""
        self._resolved[vblock] = resolved
        self._cache.admit(self._resolved, vblock, _NOTHING)
