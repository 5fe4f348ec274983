"""Looking for damage: ``scrub`` reads and verifies every block, ``check`` compares index, log and pool.

Both go on after a finding and return all of them, JSON-ready: each with the vdisk it is about, and the offset
and file where there is one. They run beside guests; what a guest overwrites meanwhile is no finding.
"""

import functools
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from metadata.errors import NotFound, VdiskfsError
from metadata.ids import HOLE, PARENT, POSITION_MASK, VdiskId, is_compacted
from metadata.index import Index
from metadata.units import BLOCK_BYTES, VBLOCK_BYTES
from replication.commit import flush
from replication.groups import block_checksums
from replication.head import Head
from replication.head_read import Run, fetch_missing, first_mapped, load_rows, plan_runs
from replication.mapping import group_name
from replication.ownership import read_facts
from replication.pool_directory import DirectoryPool
from replication.recovery import Lineage, LogReader, recover
from replication.vdisks import Vdisks

Progress = Callable[[Mapping[str, object]], None]
Finding = dict[str, Any]

_NEWEST = (1 << 64) - 1


async def scrub(vdisks: Vdisks, ids: Sequence[VdiskId], progress: Progress) -> list[Finding]:
    """Reads every block that these vdisks reach and verifies it."""
    findings: list[Finding] = []
    sizes = [(vdisks.stat_nowait(vdisk) or await vdisks.stat(vdisk)).allocated_bytes for vdisk in ids]
    done = 0
    for vdisk, size in zip(ids, sizes, strict=True):
        findings += await _guarded(vdisk, _scrub_one(vdisks, vdisk))
        done += size
        progress({"done": done, "total": sum(sizes), "findings": len(findings)})
    return findings


async def _guarded(vdisk: int, work: Awaitable[list[Finding]]) -> list[Finding]:
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
        with vdisks.workspace.moves.hold():
            await load_rows(head, (vblock,), parents=True)
            for run in plan_runs(head, vblock << 8, 256):
                if run.groups is not None:
                    findings += await _scrub_run(head, run)
        vblock += 1
    return findings


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
        got = file.read(view, position) // BLOCK_BYTES * BLOCK_BYTES
        return block_checksums(view[:got], file.seed + position)

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


async def check(vdisks: Vdisks, ids: Sequence[VdiskId], progress: Progress) -> list[Finding]:
    """Compares each vdisk's index with one built anew from its log, and the pool with the catalog.

    Invariants I3, I4, I10 of ARCHITECTURE.md: what the index says is what the log says, no two commits
    share a version, no row points outside its groups.
    """
    findings: list[Finding] = []
    for number, vdisk in enumerate(ids):
        findings += await _guarded(vdisk, _check_one(vdisks, vdisk))
        progress({"done": number + 1, "total": len(ids), "findings": len(findings)})
    return findings


async def _check_one(vdisks: Vdisks, vdisk: VdiskId) -> list[Finding]:
    space = vdisks.workspace
    head = await vdisks.head(vdisk)
    await flush(head)
    if not head.log.version:
        return []
    facts = await read_facts(space.catalog, vdisk)
    lineage = replace(vdisks.loading.lineage(vdisk, facts), durable_version=head.log.version)

    def compare() -> list[str]:
        path = f"{space.index.path}.check-{vdisk:x}"
        Index.destroy(path)
        scratch = Index(path)
        try:
            return _compare(vdisks, lineage, scratch)
        finally:
            scratch.close()
            Index.destroy(path)

    async with head.layout_lock, head.commit_pause():
        problems = await space.wait_for(compare)
    return [{"vdisk": vdisk, "problem": problem} for problem in problems]


def _compare(vdisks: Vdisks, lineage: Lineage, scratch: Index) -> list[str]:
    """Thread: problems found in one vdisk while no commit of it runs."""
    space, vdisk = vdisks.workspace, lineage.vdisk
    known, problems = space.index.state(vdisk), []
    rebuilt = recover(space.pool, scratch, lineage, checkpoints=False).state
    if known is None or known.record_check != rebuilt.record_check:
        return [f"the index is not at the log's end index={known} log={rebuilt}"]
    groups = set(space.pool.groups(vdisk))
    orphaned = vdisks.family.descent(vdisk).parent_at(None) is None
    own = 0
    mine = {vblock: row for vblock, row in _rows(space.index, lineage, orphaned=orphaned) if any(row)}
    for vblock, row in _rows(scratch, lineage, orphaned=orphaned):
        found = mine.pop(vblock, None) if any(row) else row
        if found != row and not (found and _is_moved(space.pool, vdisk, row, to=found)):
            problems.append(f"index and log disagree (I10) vblock={vblock}")
        own += sum(place > PARENT for place in row)
        outside = {place >> 16 for place in row if place > PARENT} - groups
        problems += [f"a row points to a missing group (I3) {vblock=} group={group_name(g)}" for g in outside]
    problems += [f"the index has a row that the log has not (I10) vblock={vblock}" for vblock in mine]
    if own != rebuilt.own_blocks:
        problems.append(f"the count of own blocks is off counted={own} recorded={rebuilt.own_blocks}")
    with LogReader(space.pool, vdisk) as reader:
        log_groups = space.pool.log_groups(vdisk)
        versions = [record.version for group in log_groups for _, record, _, _ in reader.records_in(group)]
    if len(set(versions)) != len(versions):
        problems.append("two commit records share a version (I4)")
    return problems


def _rows(index: Index, lineage: Lineage, *, orphaned: bool) -> Iterator[tuple[int, "array[int]"]]:
    """Thread: what the head sees; in a vdisk without a parent PARENT means a hole (replication/flattening.py)."""
    for vblock, row in index.rows_at(lineage.vdisk, _NEWEST, rollbacks=lineage.rollbacks):
        if orphaned and PARENT in row:
            row = array("Q", [HOLE if place == PARENT else place for place in row])
        yield vblock, row


def _is_moved(pool: DirectoryPool, vdisk: int, row: "array[int]", *, to: "array[int]") -> bool:
    """Thread: whether two rows differ only where compaction has moved a block since the last checkpoint."""
    with LogReader(pool, vdisk) as reader:
        for old, new in zip(row, to, strict=True):
            if old == new:
                continue
            if old <= PARENT or not is_compacted(new >> 16):
                return False
            before, after = memoryview(bytearray(BLOCK_BYTES)), memoryview(bytearray(BLOCK_BYTES))
            for place, view in ((old, before), (new, after)):
                if reader.file(place >> 16).read(view, place & POSITION_MASK) != BLOCK_BYTES:
                    return False
            if before != after:
                return False
    return True
