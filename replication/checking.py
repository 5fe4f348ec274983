"""Comparing a vdisk's index with one built anew from its log, and the pool with the catalog: ``vdiskfs check``.

Not only the head counts: each version that a snapshot, a clone or an open file reads must be the same in both.
Findings are JSON-ready; the check runs beside guests, whose commits to the vdisk at hand wait meanwhile.
"""

from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

from metadata.descent import Spans, visible_spans
from metadata.ids import HOLE, PARENT, POSITION_MASK, VdiskId, is_compacted
from metadata.index import Index
from metadata.rows import decode_row, uniform_row
from metadata.units import BLOCK_BYTES
from replication.commit import flush
from replication.mapping import group_name
from replication.ownership import read_facts
from replication.pool import Pool
from replication.recovery import Lineage, LogReader, recover
from replication.scrub import guarded
from replication.vdisks import Vdisks

Progress = Callable[[Mapping[str, object]], None]
Finding = dict[str, Any]

_NEWEST = (1 << 64) - 1
_ROWS_AT_ONCE = 4096


async def check(vdisks: Vdisks, ids: Sequence[VdiskId], progress: Progress) -> list[Finding]:
    """Compares each vdisk's index with one built anew from its log, and the pool with the catalog.

    Invariants I3, I4, I6, I10 of ARCHITECTURE.md: what the index says is what the log says, at every version that is
    kept, no two commits share a version, no row points outside its groups.
    """
    findings: list[Finding] = []
    for number, vdisk in enumerate(ids):
        findings += await guarded(vdisk, _check_one(vdisks, vdisk))
        progress({"done": number + 1, "total": len(ids), "findings": len(findings)})
    return findings


async def _check_one(vdisks: Vdisks, vdisk: VdiskId) -> list[Finding]:
    space = vdisks.workspace
    head = await vdisks.head(vdisk)
    await flush(head)
    if not head.log.version:
        return []
    facts = await read_facts(space.catalog, vdisk)

    def compare() -> list[str]:
        path = f"{space.index.path}.check-{vdisk:x}"
        Index.destroy(path)
        scratch = Index(path)
        try:
            return _compare(space.pool, lineage, versions, pinned, indexes=(space.index, scratch))
        finally:
            scratch.close()
            Index.destroy(path)

    async with head.layout_lock, head.commit_pause():
        lineage = replace(vdisks.loading.lineage(vdisk, facts), durable_version=head.log.version)
        descent = vdisks.family.descent(vdisk)
        indexed = vdisks.family.indexed_versions(vdisk)
        versions = [
            _Seen(version, visible_spans(version, lineage.rollbacks), descent.parent_at(asked) is not None)
            for version, asked in [(_NEWEST, None), *((v, v) for v in sorted(indexed))]
        ]
        pinned = vdisks.family.pinned_versions(vdisk)
        problems = await space.wait_for(compare)
    return [{"vdisk": vdisk, "problem": problem} for problem in problems]


@dataclass(frozen=True, slots=True)
class _Seen:
    """What a version sees; without a parent PARENT means a hole (replication/flattening.py)."""

    version: int
    spans: Spans
    has_parent: bool

    @property
    def name(self) -> str:
        """For people."""
        return "head" if self.version == _NEWEST else str(self.version)

    def row(self, stored: Sequence[tuple[int, bytes]]) -> bytes | None:
        """Of a vblock's rows, newest first, the one that counts."""
        for above, up_to in self.spans:
            for generation, data in stored:
                if above < generation <= up_to:
                    return data
        return None


def _compare(
    pool: Pool, lineage: Lineage, versions: Sequence[_Seen], pinned: Set[int], *, indexes: tuple[Index, Index]
) -> list[str]:
    """Thread: problems found in one vdisk while no commit of it runs.

    Of versions that only readers here keep (``pinned``), a log that begins with a checkpoint knows those since then.
    """
    (mine, scratch), vdisk = indexes, lineage.vdisk
    known, problems = mine.state(vdisk), []
    recovered = recover(pool, scratch, lineage, checkpoints=False)
    rebuilt = recovered.state
    versions = [seen for seen in versions if seen.version >= recovered.start or seen.version not in pinned]
    if known is None or known.record_check != rebuilt.record_check:
        return [f"the index is not at the log's end index={known} log={rebuilt}"]
    own, groups = 0, set(pool.groups(vdisk))
    for vblock, stored, anew in _pairs(mine, scratch, vdisk):
        told: set[tuple[bytes | None, bytes | None]] = set()
        for seen in versions:
            pair = seen.row(stored), seen.row(anew)
            row, wanted = (_decoded(data, seen.has_parent) for data in pair)
            if seen.version == _NEWEST:
                own += sum(place > PARENT for place in wanted)
            if pair in told:
                continue
            told.add(pair)
            if row != wanted and not _is_moved(pool, vdisk, wanted, to=row):
                what = (
                    "the index has a row that the log has not"
                    if pair[1] is None
                    else "index and log disagree"
                )
                problems.append(f"{what} (I10) vblock={vblock} version={seen.name}")
            outside = {place >> 16 for place in row if place > PARENT} - groups
            problems += [
                f"a row points to a missing group (I3) {vblock=} group={group_name(g)}" for g in outside
            ]
    if own != rebuilt.own_blocks:
        problems.append(f"the count of own blocks is off counted={own} recorded={rebuilt.own_blocks}")
    with LogReader(pool, vdisk) as reader:
        log_groups = pool.log_groups(vdisk)
        numbers = [record.version for group in log_groups for _, record, _, _ in reader.records_in(group)]
    if len(set(numbers)) != len(numbers):
        problems.append("two commit records share a version (I4)")
    return problems


def _decoded(data: bytes | None, has_parent: bool) -> "array[int]":
    row = uniform_row(HOLE) if data is None else decode_row(data)
    if not has_parent and PARENT in row:
        return array("Q", [HOLE if place == PARENT else place for place in row])
    return row


_Stored = list[tuple[int, bytes]]


def _pairs(mine: Index, scratch: Index, vdisk: int) -> Iterator[tuple[int, _Stored, _Stored]]:
    """Thread: each vblock with its rows in both, in order."""
    left, right = _stored(mine, vdisk), _stored(scratch, vdisk)
    one, other = next(left, None), next(right, None)
    while one is not None or other is not None:
        vblock = min(pair[0] for pair in (one, other) if pair is not None)
        rows: list[_Stored] = [[], []]
        if one is not None and one[0] == vblock:
            rows[0], one = one[1], next(left, None)
        if other is not None and other[0] == vblock:
            rows[1], other = other[1], next(right, None)
        yield vblock, rows[0], rows[1]


def _stored(index: Index, vdisk: int) -> Iterator[tuple[int, _Stored]]:
    vblock: int | None = 0
    while vblock is not None:
        rows, vblock = index.stored_rows(vdisk, vblock, row_count=_ROWS_AT_ONCE)
        yield from rows


def _is_moved(pool: Pool, vdisk: int, row: "array[int]", *, to: "array[int]") -> bool:
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
