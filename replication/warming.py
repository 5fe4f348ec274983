"""Bringing what a vdisk reads into the node's extent cache before anybody reads it.

The places are those of one moment; what is written meanwhile is here anyway. No more is fetched than the cache holds, and what
went again before the end, or did not go in, is counted: whoever asks for too much is told.
"""

import functools
import itertools
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from metadata.errors import NotFound, VdiskfsError
from metadata.ids import POSITION_MASK, VdiskId
from metadata.units import BLOCK_BYTES
from replication.commit import flush
from replication.head import Head
from replication.head_read import first_mapped, load_rows, plan_runs
from replication.object_tables import Ranges
from replication.pool import Pool
from replication.reader import Reader
from replication.vdisks import Vdisks

FETCHES_MAX = 4
"""Threads that wait for the pool at once; each has the pool's own concurrency behind it for what is long."""
PART_BLOCKS = 4096
"""16 MiB: what one of them asks for."""
_VBLOCKS_AT_ONCE = 64

Progress = Callable[[Mapping[str, object]], None]
Places = Mapping[tuple[int, int], Ranges]
"""By vdisk and group: positions of blocks."""


@dataclass(slots=True)
class Warmed:
    """How far it came, in blocks."""

    wanted: int = 0
    done: int = 0
    """Of the wanted, looked at; those that did not fit included."""
    left_out: int = 0
    """More than the cache holds."""


@asynccontextmanager
async def reader_of(vdisks: Vdisks, vdisk: VdiskId, name: str | None) -> AsyncIterator[Reader]:
    """What a snapshot reads, or what there is now, on whichever node owns it; inside, it stays readable.

    Raises:
        NotFound: no such vdisk or snapshot.
        Corrupt, Unavailable: its log cannot be read.
    """
    if name is None and (vdisks.company is None or vdisks.is_mine(vdisk)):
        async with vdisks.using(vdisk) as head:
            yield head
        return
    if name is None:
        assert vdisks.company is not None
        file_id = (await vdisks.company.versions.newest(vdisk)).id
    else:
        file_id = vdisks.family.snapshot(vdisk, name).id
    number = await vdisks.open_version(file_id)
    try:
        reader = await vdisks.reader_of(number)
        assert isinstance(reader, Reader)
        yield reader
    finally:
        vdisks.close(number)


async def warm(vdisks: Vdisks, vdisk: VdiskId, name: str | None, progress: Progress) -> dict[str, int]:
    """Has the cache hold what a vdisk, or its snapshot, reads: sums in bytes.

    ``wanted`` is all of it, ``fetched`` came from the pool, ``missing`` of the wanted is not here at the end.

    Raises:
        NotFound: no such vdisk or snapshot.
        Corrupt, Unavailable: its log cannot be read, or the pool not.
    """
    pool = vdisks.workspace.pool
    async with reader_of(vdisks, vdisk, name) as reader:
        places = await places_of(reader)
        return await fetch_places(vdisks, places, progress, limit_bytes=pool.cache_limit_bytes)


async def places_of(
    reader: Reader, stretches: Iterable[tuple[int, int]] | None = None
) -> dict[tuple[int, int], Ranges]:
    """Where blocks lie, ancestors' too.

    Args:
        reader: who reads them.
        stretches: of blocks, (first, count), none across the end of a vblock; None: all there are.
    """
    found: dict[tuple[int, int], Ranges] = {}
    async for part in _parts_of(reader, stretches):
        await load_rows(reader, {block_no >> 8 for block_no, _ in part}, parents=True)
        for run in itertools.chain.from_iterable(plan_runs(reader, *stretch) for stretch in part):
            if run.groups is not None:
                ranges = found.setdefault((run.groups.vdisk, run.place >> 16), Ranges())
                ranges.add(run.place & POSITION_MASK, (run.place & POSITION_MASK) + run.count)
        await trio.lowlevel.checkpoint()
    return found


async def _parts_of(
    reader: Reader, stretches: Iterable[tuple[int, int]] | None
) -> AsyncIterator[list[tuple[int, int]]]:
    """A few vblocks' worth at a time, as far as the vdisk goes."""
    end = -(-reader.size // BLOCK_BYTES)
    if stretches is not None:
        inside = [(first, min(count, end - first)) for first, count in stretches if first < end]
        for at in range(0, len(inside), _VBLOCKS_AT_ONCE):
            yield inside[at : at + _VBLOCKS_AT_ONCE]
        return
    if isinstance(reader, Head):
        await flush(reader)  # the index has all rows then
    vblock: int | None = 0
    last = -(-end // 256)
    while vblock is not None and vblock < last:
        look = functools.partial(first_mapped, reader, vblock, last)
        vblock = await reader.workspace.wait_for(look)
        if vblock is not None:
            stop = min(vblock + _VBLOCKS_AT_ONCE, last)
            yield [(each << 8, 256) for each in range(vblock, stop)]
            vblock = stop


async def fetch_places(
    vdisks: Vdisks, places: Places, progress: Progress, *, limit_bytes: int
) -> dict[str, int]:
    """As ``warm``, of blocks at these places, as many as ``limit_bytes`` of them at most.

    Raises:
        NotFound, Unavailable: the pool has them not, or does not answer.
    """
    space = vdisks.workspace
    sums = Warmed(wanted=sum(high - low for ranges in places.values() for low, high in ranges))
    parts = [
        (key, at, min(at + PART_BLOCKS, high))
        for key, ranges in sorted(places.items())
        for low, high in ranges
        for at in range(low, high, PART_BLOCKS)
    ]
    before = await space.wait_for(lambda: _lacking(space.pool, parts))
    room = limit_bytes // BLOCK_BYTES
    todo = iter(parts)

    failures: list[VdiskfsError] = []

    async def fetch_some() -> None:
        try:
            await fetch_each()
        except VdiskfsError as exc:  # kept, so that it leaves the nursery as itself
            failures.append(exc)

    async def fetch_each() -> None:
        for (vdisk, group), start, end in todo:
            fits = min(end, start + room - (sums.done - sums.left_out))
            if fits > start:
                with suppress(NotFound):  # collection has moved them since
                    await space.wait_for(functools.partial(space.pool.warm, vdisk, group, start, fits))
            sums.done += end - start
            sums.left_out += end - max(fits, start)
            progress({"done": sums.done * BLOCK_BYTES, "total": sums.wanted * BLOCK_BYTES})

    async with trio.open_nursery() as nursery:
        for _ in range(FETCHES_MAX):
            nursery.start_soon(fetch_some)
    if failures:
        raise failures[0]
    missing = await space.wait_for(lambda: _lacking(space.pool, parts))
    return {
        "wanted_bytes": sums.wanted * BLOCK_BYTES,
        "fetched_bytes": max(0, before - missing) * BLOCK_BYTES,
        "missing_bytes": missing * BLOCK_BYTES,
        "limit_bytes": limit_bytes,
    }


def _lacking(pool: Pool, parts: Iterable[tuple[tuple[int, int], int, int]]) -> int:
    return sum(pool.count_lacking(vdisk, group, start, end) for (vdisk, group), start, end in parts)
