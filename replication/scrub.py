"""Looking for damaged blocks: reads and verifies all that heads and snapshots reach.

Goes on after a finding and returns all of them, JSON-ready: each with the vdisk it is about, the offset and the file
where there is one. Runs beside guests; what a guest overwrites meanwhile is no finding.
"""

import functools
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from metadata.errors import NotFound, VdiskfsError
from metadata.ids import PARENT, POSITION_MASK, VdiskId
from metadata.liveness import Visibility
from metadata.rows import decode_row, runs
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS, VBLOCK_BYTES
from replication.commit import flush
from replication.groups import read_checksums
from replication.head import Head
from replication.head_read import Run, fetch_missing, first_mapped, load_rows, plan_runs
from replication.mapping import group_name
from replication.vdisks import Vdisks

Progress = Callable[[Mapping[str, object]], None]
Finding = dict[str, Any]

_ROWS_AT_ONCE = 256
"""Looked up in one go."""


async def scrub(vdisks: Vdisks, ids: Sequence[VdiskId], progress: Progress) -> list[Finding]:
    """Reads every block that these vdisks and their snapshots reach and verifies it."""
    findings: list[Finding] = []
    ids = [*ids, *_nameless_above(vdisks, ids)]
    sizes = [(vdisks.stat_nowait(vdisk) or await vdisks.stat(vdisk)).allocated_bytes for vdisk in ids]
    done = 0
    for vdisk, size in zip(ids, sizes, strict=True):
        findings += await guarded(vdisk, _scrub_one(vdisks, vdisk))
        done += size
        progress({"done": done, "total": sum(sizes), "findings": len(findings)})
    return findings


async def guarded(vdisk: int, work: Awaitable[list[Finding]]) -> list[Finding]:
    """A vdisk that cannot even be opened is a finding too."""
    try:
        return await work
    except NotFound:
        return []  # deleted meanwhile
    except VdiskfsError as exc:
        return [{"vdisk": vdisk, "problem": str(exc)}]


async def _scrub_one(vdisks: Vdisks, vdisk: VdiskId) -> list[Finding]:
    head = await vdisks.head(vdisk)
    findings: list[Finding] = []
    await flush(head)
    end = -(-head.size // VBLOCK_BYTES)
    vblock: int | None = 0
    while vblock is not None and vblock < end:
        look = functools.partial(first_mapped, head, vblock, end)
        vblock = await vdisks.workspace.wait_for(look)
        if vblock is None:
            break
        # Not inside: it may wait for an index that is built anew, which waits for who holds.
        await load_rows(head, (vblock,), parents=True)
        with vdisks.workspace.moves.hold():
            for run in plan_runs(head, vblock << 8, 256):
                if run.groups is not None:
                    findings += await _scrub_run(head, run)
        vblock += 1
    return findings + await _scrub_versions(vdisks, head)


def _nameless_above(vdisks: Vdisks, ids: Sequence[VdiskId]) -> list[VdiskId]:
    """Deleted ancestors of these: they have no name to be asked for by."""
    found: dict[VdiskId, None] = {}
    for vdisk in ids:
        parent = vdisks.family.descent(vdisk).parent
        while parent is not None and parent[0] not in found:
            descent = vdisks.family.descent(parent[0])
            if descent.nameless and parent[0] not in ids:
                found[VdiskId(parent[0])] = None
            parent = descent.parent
    return list(found)


async def _scrub_versions(vdisks: Vdisks, head: Head) -> list[Finding]:
    """What only snapshots, clones and open files reach, by the rows they see."""
    family, index, vdisk = vdisks.family, vdisks.workspace.index, head.vdisk
    findings: list[Finding] = []
    vblock: int | None = 0
    while vblock is not None and family.read_versions(vdisk):
        with vdisks.workspace.moves.hold():
            look = functools.partial(index.stored_rows, vdisk, vblock, row_count=_ROWS_AT_ONCE)
            rows, vblock = await vdisks.workspace.wait_for(look)
            others = Visibility(family.read_versions(vdisk), head.rollbacks, head=False)
            for at, stored in rows:
                seen = set(others.seen([generation for generation, _ in stored]))
                seen.discard(stored[0][0])  # the newest is the head's, which has been read
                for run in _runs_of(head, at, [decode_row(data) for g, data in stored if g in seen]):
                    findings += await _scrub_run(head, run)
    return findings


def _runs_of(head: Head, vblock: int, rows: "Sequence[array[int]]") -> list[Run]:
    """The blocks these rows of a vblock name, each place once."""
    found: list[Run] = []
    known: set[int] = set()
    for row in rows:
        for start, count, place in runs(row, 0, VBLOCK_BLOCKS):
            if place > PARENT and not known.issuperset(range(place, place + count)):
                known.update(range(place, place + count))
                found.append(Run((vblock << 8) + start, count, head.groups, place))
    return found


async def _scrub_run(head: Head, run: Run) -> list[Finding]:
    groups = run.groups
    assert groups is not None
    try:
        await fetch_missing(head, [groups.missing(run.place, run.count)])
    except VdiskfsError as exc:
        return [{"vdisk": head.vdisk, "offset": run.block_no * BLOCK_BYTES, "problem": str(exc)}]
    expected = groups.checksums_nowait(run.place, run.count)
    file = groups.file(run.place >> 16)
    position = run.place & POSITION_MASK

    def read() -> "array[int]":
        view = memoryview(bytearray(run.count * BLOCK_BYTES))
        file.ensure_open()
        found = read_checksums(file, view, position)
        if found != expected and file.renew(position, run.count):
            found = read_checksums(file, view, position)
        return found

    groups.pool.hold((file,))
    try:
        found = await head.workspace.wait_for(read)
    except VdiskfsError as exc:
        return [{"vdisk": head.vdisk, "offset": run.block_no * BLOCK_BYTES, "problem": str(exc)}]
    finally:
        groups.pool.release((file,))
    return [
        {
            "vdisk": head.vdisk,
            "offset": (run.block_no + at) * BLOCK_BYTES,
            "length": BLOCK_BYTES,
            "group": group_name(run.place >> 16),
            "position": position + at,
            "file": file.path,
            "problem": "a block is missing" if at >= len(found) else "a block fails its checksum",
        }
        for at in range(run.count)
        if expected is None or at >= len(found) or found[at] != expected[at]
    ]
