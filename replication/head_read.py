"""The slow way to read: fetch what memory lacks, in threads, then read and verify there too.

``load_rows`` and ``plan_runs`` also serve whoever asks where data lies: lseek, map, copying.
"""

import functools
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

import trio

from metadata.errors import Corrupt
from metadata.ids import HOLE, PARENT, POSITION_MASK
from metadata.rows import runs
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS
from replication.groups import GroupSet, Missing
from replication.pool import GroupFile
from replication.reader import REQUEST_BYTES_MAX, TOUCHED_BLOCKS, TOUCHED_MAX, Reader, scratch

_LOAD_TRIES = 50
"""A row just fetched is found in the index's memory; being evicted that often in a row means a bug."""
_VBLOCKS_AT_ONCE = 65536
"""Listed in one go when data is sought."""


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive blocks of a vdisk that lie together: ``groups`` is None for a hole."""

    block_no: int
    count: int
    groups: GroupSet | None
    place: int
    inherited: bool = False
    """The vdisk's own row says PARENT."""


async def load_rows(head: Reader, vblocks: Iterable[int], *, parents: bool = False) -> None:
    """Sees to it that these rows are in memory when it returns (and no await comes between).

    Args:
        head: whose rows.
        vblocks: few enough to fit the row cache.
        parents: also find what their PARENT blocks resolve to.
    """
    wanted, moves = list(vblocks), head.workspace.moves
    for _ in range(_LOAD_TRIES):
        lacking = [vblock for vblock in wanted if head.row_nowait(vblock) is None]
        if not lacking and not all(vblock in head.rows for vblock in wanted):
            continue  # one took another's place in the cache
        unresolved = [v for v in wanted if parents and v in head.rows and _lacks_parents(head, v)]
        if not lacking and not unresolved:
            return
        await moves.wait_whole({head.vdisk, *head.ancestry.vdisks()} if moves.is_rebuilding else ())
        with moves.hold():  # an index that is to be built anew waits for who looks into it
            await _look_up(head, lacking, unresolved)
    raise Corrupt(f"the index does not keep the rows it is asked for vdisk={head.vdisk}")


async def _look_up(head: Reader, lacking: list[int], unresolved: list[int]) -> None:
    moves = head.workspace.moves
    if lacking:
        commits, serial = head.commits, moves.serial
        found = await head.workspace.wait_for(functools.partial(_fetch_rows, head, lacking))
        if head.commits == commits:
            for vblock, row in found:
                if not moves.touched(serial, {head.vdisk}, vblock):
                    head.install_row(vblock, row)
    if unresolved:
        ancestry, serial = head.ancestry, moves.serial
        resolved = await head.workspace.wait_for(functools.partial(ancestry.find_all, unresolved))
        for vblock, answer in resolved.items():
            if not moves.touched(serial, ancestry.vdisks(), vblock):
                ancestry.install(vblock, answer)


def _lacks_parents(head: Reader, vblock: int) -> bool:
    row = head.rows[vblock]
    return PARENT in row and head.ancestry.parts(vblock << 8, 1) is None


def _fetch_rows(head: Reader, vblocks: list[int]) -> "list[tuple[int, array[int] | None]]":
    return [(vblock, head.fetch_row(vblock)) for vblock in vblocks]


def plan_runs(head: Reader, block_no: int, count: int) -> list[Run]:
    """Where these blocks lie now. Their rows, and their parents', are loaded."""
    plan: list[Run] = []
    while count:
        first = block_no & 255
        part = min(count, VBLOCK_BLOCKS - first)
        for start, length, place in runs(head.rows[block_no >> 8], first, part):
            at = (block_no & ~255) + start
            if place > PARENT:
                plan.append(Run(at, length, head.groups, place))
            elif place == HOLE:
                plan.append(Run(at, length, None, HOLE))
            else:
                for groups, where, n in head.ancestry.parts(at, length) or ():
                    plan.append(Run(at, n, groups, where, inherited=True))
                    at += n
        block_no += part
        count -= part
    return plan


async def read(head: Reader, offset: int, size: int) -> bytes:
    """The verified bytes at [offset, offset + size), as far as the vdisk goes.

    Raises:
        Corrupt: a block fails its checksum.
        Unavailable: the pool does not answer.
    """
    end = min(offset + size, head.size)
    if end <= offset:
        return b""
    first, last = offset >> 12, end - 1 >> 12
    if head.touched is not None and len(head.touched) <= TOUCHED_MAX:
        head.touched.update(range(first // TOUCHED_BLOCKS, last // TOUCHED_BLOCKS + 1))
    lying = _lying_runs(head, first, last - first + 1) if size <= REQUEST_BYTES_MAX else None
    if lying is not None:  # nothing lacks but the page cache: fill it, and go the fast way
        with head.workspace.moves.hold():
            await _fill_page_cache(head, _uncached(lying))
        data = head.read_nowait(offset, size)
        if data is not None:
            return bytes(data)
    await load_rows(head, range(first >> 8, (last >> 8) + 1), parents=True)
    # Held from here, not before: ``load_rows`` may wait for an index that is built anew, which waits for who holds.
    with head.workspace.moves.hold():  # no await since the rows were loaded: one moment's places
        plan = plan_runs(head, first, last - first + 1)
        data = await read_plan(head, plan, (last - first + 1) * BLOCK_BYTES)
    skip = offset & 4095
    return bytes(data[skip : skip + end - offset])


def _lying_runs(head: Reader, block_no: int, count: int) -> list[tuple[GroupFile, int, int]] | None:
    """Where these blocks lie as (open file, position, count); None if more than the page cache lacks them."""
    lying: list[tuple[GroupFile, int, int]] = []
    while count:
        first = block_no & 255
        part = min(count, VBLOCK_BLOCKS - first)
        row = head.rows.get(block_no >> 8)
        if row is None:
            return None
        for start, length, place in runs(row, first, part):
            owners: list[tuple[GroupSet | None, int, int]] | None = [(head.groups, place, length)]
            if place == PARENT:
                owners = head.ancestry.parts((block_no & ~255) + start, length)
            for groups, where, blocks in owners or ():
                if groups is not None and where > PARENT:
                    file = groups.files.get(where >> 16)
                    if file is None or file.fd < 0:
                        return None
                    lying.append((file, where & POSITION_MASK, blocks))
            if owners is None:
                return None
        block_no += part
        count -= part
    return lying


def _uncached(lying: list[tuple[GroupFile, int, int]]) -> list[tuple[GroupFile, int, int]]:
    """Those of several runs that the page cache does not have whole: often few, and a thread's call costs more."""
    if len(lying) == 1:
        return lying
    return [run for run in lying if not run[0].read_nowait(scratch[: run[2] * BLOCK_BYTES], run[1])]


async def _fill_page_cache(head: Reader, lying: list[tuple[GroupFile, int, int]]) -> None:
    for file, _, _ in lying:
        file.busy += 1
    try:
        await head.workspace.wait_for(functools.partial(_read_away, lying))
    finally:
        for file, _, _ in lying:
            file.busy -= 1


def _read_away(lying: list[tuple[GroupFile, int, int]]) -> None:
    """Thread: reads for the page cache's sake only; blocks that are wrong will show when they are used."""
    if len(lying) > 1:
        for file, position, blocks in lying:
            file.read_ahead(position, blocks)
    buffer = memoryview(bytearray(max((blocks for _, _, blocks in lying), default=0) * BLOCK_BYTES))
    for file, position, blocks in lying:
        file.read_cached(buffer[: blocks * BLOCK_BYTES], position)


async def read_plan(head: Reader, plan: list[Run], length: int) -> memoryview:
    """The bytes of consecutive runs."""
    buffer = memoryview(bytearray(length))
    await fetch_missing(head, [run.groups.missing(run.place, run.count) for run in plan if run.groups])
    jobs: list[tuple[GroupSet, memoryview, int, array[int]]] = []
    at = 0
    for run in plan:
        view = buffer[at : at + run.count * BLOCK_BYTES]
        at += len(view)
        if run.groups is not None:
            expected = run.groups.checksums_nowait(run.place, run.count)
            if expected is None:  # another run's took their place in the cache
                await fetch_missing(head, [run.groups.missing(run.place, run.count)])
                expected = run.groups.checksums_nowait(run.place, run.count)
            if expected is None:
                raise Corrupt(f"the index lacks checksums vdisk={run.groups.vdisk} place={run.place:#x}")
            jobs.append((run.groups, view, run.place, expected))
    files, pool = {groups.files[place >> 16] for groups, _, place, _ in jobs}, head.workspace.pool
    pool.hold(files)
    try:
        await head.workspace.wait_for(lambda: _read_jobs(jobs))
    finally:
        pool.release(files)
    return buffer


def _read_jobs(jobs: "list[tuple[GroupSet, memoryview, int, array[int]]]") -> None:
    for groups, view, place, _ in jobs:
        file = groups.files[place >> 16]
        file.ensure_open()
        if len(jobs) > 1:
            file.read_ahead(place & POSITION_MASK, len(view) // BLOCK_BYTES)
    for groups, view, place, expected in jobs:
        groups.read_run(view, place, expected)


async def fetch_missing(head: Reader, lacking: list[Missing]) -> None:
    """Opens files and loads checksums that a plan needs."""
    lacking = [missing for missing in lacking if missing]
    if not lacking:
        return
    for missing in lacking:
        missing.begin()
    try:
        await head.workspace.wait_for(lambda: _fetch_all(lacking))
        for missing in lacking:
            missing.install()
    finally:
        for missing in lacking:
            missing.end()


def _fetch_all(lacking: list[Missing]) -> None:
    for missing in lacking:
        missing.fetch()


async def seek(head: Reader, offset: int, *, data: bool) -> int | None:
    """The next offset at or behind this one that has data (or a hole), None if there is none.

    The end of the vdisk counts as a hole. Blocks that a clone has from its parent are data.
    """
    if offset >= head.size:
        return None
    block_no, end = offset >> 12, -(-head.size // BLOCK_BYTES)
    end_vblock = -(-end // VBLOCK_BLOCKS)
    mapped: list[int] = []
    horizon = 0
    while block_no < end:
        vblock = block_no >> 8
        if data and vblock not in head.rows:
            if vblock >= horizon:  # skip what has no row at all, a stretch at a time
                mapped, horizon = await _mapped_vblocks(head, vblock, end_vblock)
            following = next((v for v in mapped if v >= vblock), horizon)
            if following > vblock:
                nearest = min((v for v in head.rows if vblock < v < following), default=following)
                block_no = nearest << 8
                continue
        await load_rows(head, (vblock,), parents=True)
        for run in plan_runs(head, block_no, min(end, (vblock + 1) << 8) - block_no):
            if (run.groups is not None) == data:
                return max(offset, run.block_no * BLOCK_BYTES)
        block_no = (vblock + 1) << 8
        if not block_no & 0xFFFF:
            await trio.lowlevel.checkpoint()
    return None if data else head.size


async def _mapped_vblocks(head: Reader, first: int, end: int) -> tuple[list[int], int]:
    """Vblocks of [first, end) that have a row, or may show a parent's: all of those below the second number."""
    near = [v for v in head.rows if first <= v < end]  # before the index: it gets what they lose
    ancestry = head.ancestry

    def look() -> tuple[list[int], int]:
        start = first_mapped(head, first, end)  # a leap over what has no row at all
        start = min((*near, end if start is None else start))
        horizon = min(end, start + _VBLOCKS_AT_ONCE)
        rows = head.index.vblocks(head.vdisk, start, horizon)
        inherited = ancestry.vblocks(start, horizon) if ancestry.absent == PARENT else ()
        return sorted({*rows, *inherited, *(v for v in near if v < horizon)}), horizon

    return await head.workspace.wait_for(look)


def first_mapped(head: Reader, first: int, end: int) -> int | None:
    """Thread: the first vblock in [first, end) that has a row in the index, or may show a parent's."""
    own = head.index.first_vblock(head.vdisk, first, end)
    if head.ancestry.absent == HOLE:
        return own
    inherited = head.ancestry.first_vblock(first, end)
    return min((vblock for vblock in (own, inherited) if vblock is not None), default=None)
