"""What is still needed of a vdisk: rows that somebody can see, blocks that such rows name, groups worth moving.

Somebody is the head and each kept version. Versions up to a rollback's ``to`` and those after its ``since`` are
one line of history; a rollback (S, R) makes what comes after R go on from S:

    versions      1 ... S ... R | R+1 ...          a reader above R sees generations in (R, v], then those a reader
                        ^________|                 at S sees; what lies in (S, R] is seen by kept versions there only

So history is a tree of stretches, each with one parent version. A generation is seen if some reader's search,
which goes down its stretch and then on from the parent version, stops at it.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from operator import rshift

from metadata.ids import POSITION_BITS
from metadata.units import BLOCK_BYTES, GROUP_BLOCKS

HEAD = (1 << 64) - 1
"""The version as which the head reads: above all others."""

SMALL_GROUP_BYTES = GROUP_BLOCKS * BLOCK_BYTES // 4
"""Groups smaller than this are joined when others are compacted anyway."""
SMALL_GROUPS_MAX = 8


class Visibility:
    """Which generations of a vblock's rows the head and the kept versions of one vdisk see.

    Args:
        kept: versions, in any order.
        rollbacks: (to, from) versions, in any order.
        head: whether anybody reads the head.
    """

    def __init__(
        self, kept: Iterable[int], rollbacks: Iterable[tuple[int, int]] = (), *, head: bool = True
    ) -> None:
        ordered = sorted(rollbacks, key=lambda rollback: rollback[1])
        self._ends = [since for _, since in ordered]
        """The last version of each stretch but the newest."""
        self._parents = [0, *(to for to, _ in ordered)]
        """The version that each stretch goes on from; 0: nothing."""
        self._readers: list[list[int]] = [[] for _ in self._parents]
        for version in sorted({*kept, HEAD} if head else {*kept}):
            self._readers[self._stretch(version)].append(version)

    def _stretch(self, version: int) -> int:
        return bisect_left(self._ends, version)

    def seen(self, generations: Sequence[int]) -> list[int]:
        """Those of a vblock's generations, newest first, that somebody sees; in the same order."""
        if not self._ends:
            return self._seen_in_stretch(generations, self._readers[0])
        found: list[int] = []
        arriving: dict[int, list[int]] = {}
        for stretch in range(len(self._parents) - 1, -1, -1):
            readers = sorted([*self._readers[stretch], *arriving.get(stretch, ())])
            if not readers:
                continue
            lowest = self._ends[stretch - 1] if stretch else 0
            highest = self._ends[stretch] if stretch < len(self._ends) else HEAD
            here = [generation for generation in generations if lowest < generation <= highest]
            found += self._seen_in_stretch(here, readers)
            parent = self._parents[stretch]
            if parent and (not here or readers[0] < here[-1]):
                arriving.setdefault(self._stretch(parent), []).append(parent)
        return sorted(found, reverse=True)

    @staticmethod
    def _seen_in_stretch(generations: Sequence[int], readers: Sequence[int]) -> list[int]:
        """``readers`` are versions in order; each sees the newest generation at or below it."""
        found, end = [], len(readers)
        for generation in generations:
            first = bisect_left(readers, generation)
            if first < end:
                found.append(generation)
            end = first
        return found


def count_by_group(rows: Sequence[Sequence[int]], counts: Counter[int]) -> None:
    """Adds a vblock's live blocks, each place once however many of its rows name it, to ``counts`` by group."""
    places: Iterable[int] = rows[0] if len(rows) == 1 else set().union(*rows)
    if isinstance(places, range) and places[0] >> POSITION_BITS == places[-1] >> POSITION_BITS:
        counts[places[0] >> POSITION_BITS] += len(places)
        return
    counts.update(map(rshift, places, repeat(POSITION_BITS)))


@dataclass(frozen=True, slots=True)
class GroupUse:
    """An extent group that may be deleted or compacted: what it occupies, and how many of its blocks live."""

    group: int
    occupied_bytes: int
    live_blocks: int

    @property
    def garbage_bytes(self) -> int:
        """What its deletion would give back once its live blocks are elsewhere."""
        return max(0, self.occupied_bytes - self.live_blocks * BLOCK_BYTES)


def live_blocks(counts: Mapping[int, int]) -> int:
    """All of them; HOLE and PARENT, which shift to group 0, are none."""
    return sum(count for group, count in counts.items() if group)


def _live_fraction(use: GroupUse) -> tuple[float, int]:
    return use.live_blocks * BLOCK_BYTES / max(1, use.occupied_bytes), use.group


def plan_compaction(
    uses: Sequence[GroupUse], *, garbage_bytes_max: int, move_bytes_max: int, room_bytes: int = 1 << 62
) -> list[int]:
    """Groups to compact, so that what is garbage afterwards stays below a limit: lowest live fraction first.

    Args:
        uses: closed groups of one vdisk; those without live blocks need no moving.
        garbage_bytes_max: may stay.
        move_bytes_max: live bytes to move in one go, if more than one group is worth it.
        room_bytes: for what is moved: a group that is moved in part gives nothing back.
    """
    garbage = sum(use.garbage_bytes for use in uses if use.live_blocks)
    chosen: list[int] = []
    moved = 0
    for use in sorted((use for use in uses if use.live_blocks), key=_live_fraction):
        if garbage <= garbage_bytes_max or (
            moved + use.live_blocks * BLOCK_BYTES
            > (min(move_bytes_max, room_bytes) if chosen else room_bytes)
        ):
            break
        chosen.append(use.group)
        moved += use.live_blocks * BLOCK_BYTES
        garbage -= use.garbage_bytes
    small = [use for use in uses if use.live_blocks and use.occupied_bytes < SMALL_GROUP_BYTES]
    if len(small) > SMALL_GROUPS_MAX and moved + sum(use.occupied_bytes for use in small) <= room_bytes:
        chosen += [use.group for use in small if use.group not in chosen]
    return chosen


GARBAGE_SHARE_MAX = 0.25
"""Of what lives: more garbage than this is worth a collection."""
GARBAGE_BYTES_MIN = 16 << 20
"""And so much at least: what the log of a vdisk that is written preallocates, twice over."""
FILLING_SHARE_MAX = 0.05
FILLING_BYTES_MIN = 4 << 20
"""The same two for a pool that is filling."""
GROWTH_MIN = 0.25
"""Of the garbage that makes one due: so much must have come since the last collection, which left what it left."""


@dataclass(frozen=True, slots=True)
class Space:
    """What a vdisk occupies, and who reads it; as it is, or as the last collection left it."""

    occupied_bytes: int
    live_bytes: int
    """At least; exactly right behind a collection."""
    readers: tuple[int, ...] = ()
    """Kept versions that somebody reads."""


BURST_BYTES = 1 << 30
"""So much garbage may wait for guests to pause, if the pool has eight times as much free."""


def pressure(space: Space, *, free_bytes: int) -> float:
    """Garbage that cannot wait for guests to pause, as a part of what lives; 0.0: all of it can.

    Args:
        space: as it is.
        free_bytes: of the pool.
    """
    waiting = space.occupied_bytes - space.live_bytes - min(BURST_BYTES, free_bytes // 8)
    return max(0.0, waiting / max(space.live_bytes, 1))


def is_due(now: Space, last: Space | None, *, filling: bool) -> bool:
    """Whether a vdisk is worth collecting.

    Args:
        now: what it is like.
        last: what the last collection of this daemon left; None: there was none.
        filling: the pool has little space.
    """
    share, least = (
        (FILLING_SHARE_MAX, FILLING_BYTES_MIN) if filling else (GARBAGE_SHARE_MAX, GARBAGE_BYTES_MIN)
    )
    live = now.live_bytes
    if last is not None and last.readers == now.readers:
        live = max(live, last.live_bytes if now.readers else 0)
        if now.occupied_bytes - last.occupied_bytes < GROWTH_MIN * max(least, share * live):
            return False
    return now.occupied_bytes - live > max(least, share * live)
