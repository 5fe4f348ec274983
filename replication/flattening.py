"""Flattening: a clone gets blocks of its own for all that it reads of its parent, and needs it no more.

The vblocks of which an ancestor has rows are a list that never changes. Each is loaded, what its PARENT blocks
resolve to is read and verified, and appended to the clone's own log by compare: a block that somebody has written
meanwhile stays. After the last one everything that still says PARENT means a hole, so in one stretch the overlap
becomes 0 and the ancestors go from memory; once a commit says so, the parent goes from the catalog.

Versions from before are what they were: if a snapshot, or a clone of one, still reads the parent, the record keeps it
for them (``flattened``) until the last of these goes. Broken off anywhere, another try finds what is left to do.
"""

import functools
from collections.abc import Callable, Mapping

from metadata.errors import Busy
from metadata.ids import HOLE, PARENT, VdiskId
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS, VBLOCK_BYTES
from replication.ancestry import Ancestry
from replication.commit import flush
from replication.head import Head
from replication.head_read import Run, load_rows, plan_runs, read_plan
from replication.head_write import ready
from replication.lag import reach_pool
from replication.ownership import update_record
from replication.vdisks import Vdisks

Progress = Callable[[Mapping[str, object]], None]

_VBLOCKS_AT_ONCE = 65536
"""Of the list, in memory at a time."""
_COMMIT_BYTES = 64 << 20
"""Copied between two commits."""


async def flatten(vdisks: Vdisks, vdisk: VdiskId, progress: Progress) -> None:
    """See ``Snapshots.flatten``."""
    if vdisk in vdisks.flattening:
        raise Busy("the vdisk is being flattened already")
    vdisks.flattening.add(vdisk)
    try:
        async with vdisks.using(vdisk) as head:
            if head.ancestry.generations:
                await _copy_all(head, progress)
                border = _detach(head)
                await flush(head)
                await reach_pool(head)
                await _leave_parent(vdisks, head, border)
    finally:
        vdisks.flattening.discard(vdisk)
    await vdisks.release_unread(vdisk)


async def _copy_all(head: Head, progress: Progress) -> None:
    """Copies what the ancestors have, lowest vblocks first."""
    space, ancestry = head.workspace, head.ancestry
    end, copied = -(-head.size // VBLOCK_BYTES), 0
    first: int | None = 0
    while first is not None and first < end:
        stop = min(end, first + _VBLOCKS_AT_ONCE)
        vblocks = await space.wait_for(functools.partial(ancestry.vblocks, first, stop))
        for vblock in vblocks:
            pending = head.log.pending.data_bytes()
            copied += await _copy_vblock(head, vblock)
            progress({"done": vblock + 1, "total": end, "copied_bytes": copied})
            if pending > _COMMIT_BYTES:
                await flush(head)
        first = await space.wait_for(functools.partial(ancestry.first_vblock, stop, end))
    progress({"done": end, "total": end, "copied_bytes": copied})


async def _copy_vblock(head: Head, vblock: int) -> int:
    """Copies one vblock's blocks that are the parent's; returns how many bytes."""
    await load_rows(head, (vblock,), parents=True)  # not inside: it may wait for who waits for holds to end
    with head.workspace.moves.hold():
        plan = plan_runs(head, vblock * VBLOCK_BLOCKS, VBLOCK_BLOCKS)
        runs = [run for run in plan if run.inherited and run.groups is not None]
        if not runs:
            return 0
        data = await read_plan(head, runs, sum(run.count for run in runs) * BLOCK_BYTES)
    await ready(head, vblock * VBLOCK_BLOCKS, VBLOCK_BLOCKS)
    # No await from here on: blocks that are still the parent's become our own.
    at = 0
    for run in runs:
        _take(head, run, data[at : at + run.count * BLOCK_BYTES])
        at += run.count * BLOCK_BYTES
    return at


def _take(head: Head, run: Run, data: memoryview) -> None:
    row, mtime_ns = head.rows[run.block_no >> 8], head.mtime_ns
    first, start = run.block_no & 255, 0
    while start < run.count:
        end = start
        while end < run.count and row[first + end] == PARENT:
            end += 1
        if end > start:
            part = data[start * BLOCK_BYTES : end * BLOCK_BYTES]
            head.write_blocks(run.block_no + start, part, end - start, size=head.size)
        start = end + 1
    head.mtime_ns = mtime_ns  # nothing has changed for whoever reads it


def _detach(head: Head) -> int:
    """Without an await: what still says PARENT is a hole from here on; returns the first version of which that holds."""
    space = head.workspace
    head.overlap = 0
    head.ancestry = Ancestry(space.index, space.row_cache, absent=HOLE, generations=[])
    for vblock in [v for v in head.rows if v not in head.dirty and v not in head.committing]:
        del head.rows[vblock]  # it may be there without a row in the index, made of what is gone
    head.commits += 1  # so may be what threads look up now
    head.change_no += 1
    return head.log.last_version + 1


async def _leave_parent(vdisks: Vdisks, head: Head, border: int) -> None:
    """Notes which versions still read the parent; if there are none, ``release_unread`` takes it away."""
    family, vdisk = vdisks.family, head.vdisk
    async with family.lock:
        borders = {"flattened": [*family.descent(vdisk).flattened, border]}
        descent = await update_record(vdisks.workspace.catalog, vdisk, borders, owner=head.owner)
        family.set_descent(vdisk, descent)
