"""Which measurement is whose row, of those about several nodes."""

from collections.abc import Callable

from tools.bench_contenders import Vdiskfs
from tools.bench_flushes import measure_flushes, measure_unfollowed, measure_visibility
from tools.bench_nodes import Progress, measure_forwarded_reads, measure_forwarded_writes, measure_peer_reads
from tools.bench_ownership import measure_hand_over, measure_start, measure_takeover
from tools.bench_report import RowResult
from tools.bench_rows import Plan, Row

MEASURES: dict[str, Callable[..., None]] = {
    "peer-randread": measure_peer_reads,
    "local-reads": measure_forwarded_reads,
    "forwarded-write-qd1": measure_forwarded_writes,
    "forwarded-write-qd16": measure_forwarded_writes,
    "fsync-visible-p50": measure_visibility,
    "fsync-visible-p99": measure_visibility,
    "flush-subscribers": measure_flushes,
    "flush-unfollowed": measure_unfollowed,
    "hand-over": measure_hand_over,
    "takeover": measure_takeover,
    "node-mount": measure_start,
    "node-memory": measure_start,
}


def measure_node_row(row: Row, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> RowResult:
    """One row, on a vdiskfs that is not started yet; the caller stops it.

    Raises:
        VdiskfsError: it failed.
    """
    progress(f"{row.name}: starting")
    result = RowResult(row)
    MEASURES[row.name](result, ours, plan=plan, progress=progress)
    return result
