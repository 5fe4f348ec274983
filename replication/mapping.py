"""Where a vdisk's bytes live, for people and tools that ask."""

from dataclasses import replace
from typing import Any

from metadata.ids import COMPACTED_FROM, POSITION_MASK, VdiskId, epoch_of, is_compacted, number_of
from metadata.units import BLOCK_BYTES
from replication.head_read import Run, fetch_missing, load_rows, plan_runs
from replication.reader import Reader
from replication.vdisks import Vdisks
from replication.view import View

_VBLOCKS_AT_ONCE = 64


def group_name(group: int) -> str:
    """A group as people read it: epoch.number, or epoch.c-number for one that compaction wrote."""
    if is_compacted(group):
        return f"{epoch_of(group)}.c{number_of(group) - COMPACTED_FROM}"
    return f"{epoch_of(group)}.{number_of(group)}"


async def describe(vdisks: Vdisks, vdisk: int) -> dict[str, Any]:
    """The facts of one vdisk, JSON-ready. Sizes are bytes."""
    head = await vdisks.head(vdisk)  # type: ignore[arg-type]
    space = vdisks.workspace
    sizes = await space.wait_for(lambda: [space.pool.group_bytes(vdisk, g) for g in space.pool.groups(vdisk)])
    generations = head.ancestry.generations
    return {
        "version": head.log.version,
        "epoch": head.log.epoch,
        "size": head.size,
        "allocated_bytes": head.own_blocks * BLOCK_BYTES,
        "mtime_ns": head.mtime_ns,
        "groups": len(sizes),
        "pool_bytes": sum(sizes),
        "parent": {"vdisk": generations[0].groups.vdisk, "version": generations[0].version}
        if generations
        else None,
        "children": vdisks.child_count(vdisk),
        "snapshots": [snapshot.name for snapshot in vdisks.family.snapshots(vdisk)],
        "open_handles": vdisks.handle_count(vdisk),
        "dirty_bytes": head.log.pending.data_bytes(),
        "directory": space.pool.vdisk_path(vdisk),
        **space.pool.lag_facts(vdisk),
    }


async def map_range(
    vdisks: Vdisks, vdisk: VdiskId, offset: int, length: int, *, snapshot: str | None = None
) -> list[dict[str, Any]]:
    """Stretches of [offset, offset + length) as far as the vdisk, or its snapshot, goes, in order, JSON-ready.

    ``kind`` is data, parent or hole; ``vdisk`` and ``version`` say whose block it is and at which version it is read;
    ``position`` counts blocks in the group; ``checksum`` is the first block's.

    Raises:
        NotFound: no such vdisk or snapshot.
        Corrupt, Unavailable: its log cannot be read.
    """
    if snapshot is None:
        head = await vdisks.head(vdisk)
        return await _map(head, offset, length, version=head.log.version)
    number = await vdisks.open_version(vdisks.family.snapshot(vdisk, snapshot).id)
    try:
        view = await vdisks.reader_of(number)
        assert isinstance(view, View)
        return await _map(view, offset, length, version=view.version)
    finally:
        vdisks.close(number)


async def _map(head: Reader, offset: int, length: int, *, version: int) -> list[dict[str, Any]]:
    end = min(offset + length, head.size)
    if end <= offset:
        return []
    block_no, last = offset // BLOCK_BYTES, (end - 1) // BLOCK_BYTES
    extents: list[dict[str, Any]] = []
    while block_no <= last:
        count = min(last + 1, ((block_no >> 8) + _VBLOCKS_AT_ONCE) << 8) - block_no
        # Not inside: it may wait for an index that is built anew, which waits for who holds.
        await load_rows(head, range(block_no >> 8, (block_no + count - 1 >> 8) + 1), parents=True)
        with head.workspace.moves.hold():
            plan = _joined(plan_runs(head, block_no, count))
            extents += await _extents(head, plan, version)
        block_no += count
    extents[0]["length"] -= offset - extents[0]["offset"]
    extents[0]["offset"] = offset
    extents[-1]["length"] = end - extents[-1]["offset"]
    return extents


def _joined(plan: list[Run]) -> list[Run]:
    """Runs that go on across the border of two rows as one."""
    joined: list[Run] = []
    for run in plan:
        last = joined[-1] if joined else None
        if last is not None and last.groups is run.groups:
            follows = last.place + last.count == run.place and last.place >> 16 == run.place >> 16
            if run.groups is None or (follows and last.inherited == run.inherited):
                joined[-1] = replace(last, count=last.count + run.count)
                continue
        joined.append(run)
    return joined


async def _extents(head: Reader, plan: list[Run], version: int) -> list[dict[str, Any]]:
    await fetch_missing(head, [run.groups.missing(run.place, 1) for run in plan if run.groups])
    versions = {up.groups.vdisk: up.version for up in head.ancestry.generations}
    extents: list[dict[str, Any]] = []
    for run in plan:
        extent: dict[str, Any] = {
            "offset": run.block_no * BLOCK_BYTES,
            "length": run.count * BLOCK_BYTES,
            "kind": "hole",
        }
        if run.groups is not None:
            checksums = run.groups.checksums_nowait(run.place, 1)
            extent |= {
                "kind": "parent" if run.inherited else "data",
                "vdisk": run.groups.vdisk,
                "version": versions[run.groups.vdisk] if run.inherited else version,
                "group": group_name(run.place >> 16),
                "position": run.place & POSITION_MASK,
                "checksum": f"{checksums[0]:08x}" if checksums else None,
                "file": run.groups.pool.group_path(run.groups.vdisk, run.place >> 16),
            }
        extents.append(extent)
    return extents
