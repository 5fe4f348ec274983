"""What each version of a vdisk occupies alone, and what it shares: counted from the index, row by row."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import trio

from metadata.descent import Spans, is_visible, visible_spans
from metadata.ids import PARENT, VdiskId
from metadata.rows import decode_row
from replication.vdisks import Vdisks

HEAD = (1 << 64) - 1
"""The version as which the head reads: above all others."""
ROWS_AT_ONCE = 512
"""Looked through in a thread before others get a turn: 0.1 s or so."""

Rows = Sequence[tuple[int, bytes]]
"""A vblock's, (generation, bytes), newest first."""


async def count_usage(vdisks: Vdisks, vdisk: VdiskId) -> Mapping[int, tuple[int, int]]:
    """Own blocks that a version alone sees, and those that others see too, by version; ``HEAD`` is the head's.

    A version that clones read shares all it has with them.

    Raises:
        Corrupt, Unavailable: the index cannot be read.
    """
    await vdisks.prepare(vdisk)
    await vdisks.flush(vdisk)
    family, space = vdisks.family, vdisks.workspace
    rollbacks = family.descent(vdisk).rollbacks
    readers = {version: visible_spans(version, rollbacks) for version in (*family.read_versions(vdisk), HEAD)}
    totals = dict.fromkeys(readers, (0, 0))
    vblock: int | None = 0
    while vblock is not None:
        first = vblock

        def look() -> tuple[dict[int, tuple[int, int]], int | None]:
            found, following = space.index.stored_rows(vdisk, first, row_count=ROWS_AT_ONCE)  # noqa: B023
            return _count(found, readers), following

        counted, vblock = await space.wait_for(look)
        for version, (alone, shared) in counted.items():
            before = totals[version]
            totals[version] = before[0] + alone, before[1] + shared
        await trio.lowlevel.checkpoint()
    cloned = set(family.children(vdisk).values())
    return {
        version: (0, alone + shared) if version in cloned else (alone, shared)
        for version, (alone, shared) in totals.items()
    }


def _count(vblocks: Iterable[tuple[int, Rows]], readers: Mapping[int, Spans]) -> dict[int, tuple[int, int]]:
    """Thread: (alone, shared) blocks of some vblocks, by version."""
    totals = dict.fromkeys(readers, (0, 0))
    for _, rows in vblocks:
        seen_by: defaultdict[int, list[int]] = defaultdict(list)
        for version, spans in readers.items():
            generation = next((each for each, _ in rows if is_visible(each, spans)), None)
            if generation is not None:
                seen_by[generation].append(version)
        places = {each: _own(decode_row(row)) for each, row in rows if each in seen_by}
        for generation, versions in seen_by.items():
            mine = places[generation]
            alone = 0
            if len(versions) == 1:
                others = set().union(*(theirs for each, theirs in places.items() if each != generation))
                alone = len(mine - others)
            for version in versions:
                before = totals[version]
                totals[version] = before[0] + alone, before[1] + len(mine) - alone
    return totals


def _own(row: "array[int]") -> set[int]:
    return {place for place in row if place > PARENT}
