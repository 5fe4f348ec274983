"""Mark: a vdisk's rows in the index, streamed: rows that nobody sees go, the blocks that the others name are counted.

A piece of rows is read first, then it is asked who keeps what, then decided. So a version kept meanwhile is either
known, or newer than the piece: it sees the newest rows there, and those are never pruned.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from metadata.liveness import Visibility, count_by_group
from metadata.rows import stored_places
from replication.pacing import Pace
from replication.vdisks import Vdisks

ROWS_AT_ONCE = 128
"""Read and counted in one piece: 3 ms."""

StoredRows = Sequence[tuple[int, list[tuple[int, bytes]]]]


@dataclass(slots=True)
class Mark:
    """What a pass over a vdisk's rows found."""

    live: Counter[int] = field(default_factory=Counter)
    """Blocks by group that rows name, each once."""
    rows: int = 0
    pruned: int = 0


def visibility(vdisks: Vdisks, vdisk: int) -> Visibility:
    """Who sees what of a vdisk, now; of one that is deleted nobody sees the head."""
    descent = vdisks.family.descent(vdisk)
    return Visibility(vdisks.family.read_versions(vdisk), descent.rollbacks, head=not descent.nameless)


async def mark(
    vdisks: Vdisks, vdisk: int, pace: Pace, *, prune: bool, progress: Callable[[int], None] | None = None
) -> Mark:
    """Counts what the rows name that somebody sees.

    Args:
        vdisks: where it is known who sees what.
        vdisk: whose rows.
        pace: of the work.
        prune: delete rows that nobody sees.
        progress: told how many rows each piece had.
    """
    index, found = vdisks.workspace.index, Mark()
    vblock: int | None = 0
    while vblock is not None:
        rows, vblock = await pace.run(_look(vdisks, vdisk, vblock))
        seen = visibility(vdisks, vdisk)
        unseen = await pace.run(_count(rows, seen, found))
        if unseen and prune:
            await vdisks.workspace.wait_for(partial(index.change_rows, vdisk, deletes=unseen))
            found.pruned += len(unseen)
        if progress is not None:
            progress(sum(len(stored) for _, stored in rows))
    return found


async def mark_stored(vdisks: Vdisks, vdisk: int, pace: Pace) -> Mark:
    """Counts what any row names, seen or not."""
    found = Mark()
    vblock: int | None = 0
    while vblock is not None:
        rows, vblock = await pace.run(_look(vdisks, vdisk, vblock))
        await pace.run(_count(rows, None, found))
    return found


def _look(vdisks: Vdisks, vdisk: int, vblock: int) -> Callable[[], tuple[StoredRows, int | None]]:
    return lambda: vdisks.workspace.index.stored_rows(vdisk, vblock, row_count=ROWS_AT_ONCE)


def _count(
    rows: StoredRows, visibility: Visibility | None, found: Mark
) -> Callable[[], list[tuple[int, int]]]:
    """Thread: adds a piece to what was found; returns (vblock, generation) of rows that nobody sees."""

    def count() -> list[tuple[int, int]]:
        unseen: list[tuple[int, int]] = []
        for vblock, stored in rows:
            generations = [generation for generation, _ in stored]
            seen = set(generations if visibility is None else visibility.seen(generations))
            count_by_group(
                [stored_places(data) for generation, data in stored if generation in seen], found.live
            )
            unseen += [(vblock, generation) for generation in generations if generation not in seen]
            found.rows += len(stored)
        return unseen

    return count
