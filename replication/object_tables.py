"""Which objects hold which blocks of an extent group: names, coverage, what to fetch, what to merge. Pure.

An object is called POSITION-COUNT, in hex: so many blocks from that position on. A group's blocks have one content
each, whoever uploads them and however often (replication/object_groups.py), so objects may overlap: any will do.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from metadata.units import BLOCK_BYTES

MERGED_BLOCKS_MAX = (36 << 20) // BLOCK_BYTES
"""A group of 64 MiB and the records that may go beyond make two objects."""
OPEN_SPANS_MAX = 48
"""An open group may have so many objects before any are merged."""
_SPAN_NAME = re.compile(r"([0-9a-f]{5})-([0-9a-f]{5})")
_FAN = 16
"""So many neighbours of about one size become one: each block is copied once for each power of this."""


class Span(NamedTuple):
    """Blocks that one object holds."""

    position: int
    count: int  # type: ignore[assignment]  # tuples have a method of this name that nobody misses

    @property
    def end(self) -> int:
        """Position behind the last one."""
        return self.position + self.count


class Piece(NamedTuple):
    """Part of an object: ``count`` blocks from ``position`` of the group on."""

    span: Span
    position: int
    count: int  # type: ignore[assignment]


def span_name(span: Span) -> str:
    """The object's name in its group; names sort as positions do."""
    return f"{span.position:05x}-{span.count:05x}"


def parse_span(name: str) -> Span | None:
    """The blocks that an object of this name holds; None if it is no such name."""
    match = _SPAN_NAME.fullmatch(name)
    return Span(int(match[1], 16), int(match[2], 16)) if match else None


class Ranges:
    """A set of numbers as few ranges; each operation looks at those it touches."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __bool__(self) -> bool:
        return bool(self._starts)

    def add(self, start: int, end: int) -> None:
        """Puts [start, end) in."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Takes [start, end) out."""
        if start >= end:
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        kept = [
            (low, high)
            for at in range(first, last)
            for low, high in ((self._starts[at], start), (end, self._ends[at]))
            if low < high
        ]
        self._starts[first:last] = [low for low, _ in kept]
        self._ends[first:last] = [high for _, high in kept]

    def within(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are in."""
        first, last = bisect_right(self._ends, start), bisect_left(self._starts, end)
        return [(max(start, self._starts[at]), min(end, self._ends[at])) for at in range(first, last)]

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are not."""
        gaps = []
        for low, high in self.within(start, end):
            if start < low:
                gaps.append((start, low))
            start = high
        if start < end:
            gaps.append((start, end))
        return gaps


class ObjectTable:
    """The objects of one group, as far as they are known."""

    def __init__(self, spans: Iterable[Span] = ()) -> None:
        self.spans: list[Span] = sorted(span for span in set(spans) if span.count)
        self.covered = Ranges()
        for span in self.spans:
            self.covered.add(span.position, span.end)

    @property
    def end(self) -> int:
        """Position behind the last block."""
        return max((high for _, high in self.covered), default=0)

    def add(self, spans: Iterable[Span]) -> None:
        """Objects that are there too."""
        for span in spans:
            at = bisect_left(self.spans, span)
            if span.count and self.spans[at : at + 1] != [span]:
                self.spans.insert(at, span)
                self.covered.add(span.position, span.end)

    def drop(self, spans: Iterable[Span]) -> None:
        """Objects that are gone."""
        gone = set(spans)
        self.spans = [span for span in self.spans if span not in gone]
        self.covered = Ranges()
        for span in self.spans:
            self.covered.add(span.position, span.end)

    def pieces(self, start: int, end: int) -> list[Piece]:
        """Parts of as few objects as will do that hold [start, end), as far as any does."""
        found = []
        while start < end:
            last = bisect_right(self.spans, (start, 1 << 62))
            best = max((span for span in self.spans[:last] if span.end > start), key=_end, default=None)
            if best is None:
                if last == len(self.spans) or self.spans[last].position >= end:
                    break
                start = self.spans[last].position
                continue
            stop = min(end, best.end)
            found.append(Piece(best, start, stop - start))
            start = stop
        return found


def _end(span: Span) -> int:
    return span.end


def superseded(spans: Iterable[Span]) -> list[Span]:
    """Objects that another one holds wholly."""
    found, end = [], 0
    for span in sorted(spans, key=lambda span: (span.position, -span.count)):
        if span.end <= end:
            found.append(span)
        end = max(end, span.end)
    return found


def plan_merge(spans: Iterable[Span], *, is_sealed: bool) -> list[Span] | None:
    """Neighbours to make one object of next; None if the group is well as it is.

    A sealed group's become as few as the size of an object allows. An open group's are merged when many of about one
    size lie side by side, so that a block is not copied again and again.
    """
    rest = set(spans)
    chain = sorted(rest - set(superseded(rest)))
    if is_sealed:
        return next((run for run in _runs(chain, limit=MERGED_BLOCKS_MAX) if len(run) > 1), None)
    if len(chain) <= OPEN_SPANS_MAX:
        return None
    size = _FAN
    while size < MERGED_BLOCKS_MAX:
        for run in _runs(chain, limit=MERGED_BLOCKS_MAX, each=size):
            if len(run) >= _FAN:
                return run
        size *= _FAN
    return None


def _runs(chain: list[Span], *, limit: int, each: int = 1 << 62) -> Iterator[list[Span]]:
    """Objects that follow each other without a gap, none bigger than ``each``, together within ``limit``."""
    run: list[Span] = []
    for span in chain:
        fits = run and span.position <= run[-1].end and span.end - run[0].position <= limit
        if span.count > each or not fits:
            if run:
                yield run
            run = []
        if span.count <= each:
            run.append(span)
    if run:
        yield run
