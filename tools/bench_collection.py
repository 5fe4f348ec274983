"""The row about collection: what a guest loses while garbage is collected and compacted beside it.

The guest writes one vdisk; another one was written over in random places before, so that its groups are full of garbage.
Samples with and without a collection take turns; each collection has new garbage to work on.
"""

import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tools.asking import ask
from tools.bench_contenders import Vdiskfs
from tools.bench_fio import Amount, run_job
from tools.bench_machine import settle
from tools.bench_report import RowResult
from tools.bench_rows import OURS, RANDOM_WRITE_16, SEQUENTIAL_WRITE, Plan, Row
from tools.paths import locate

Progress = Callable[[str], None]

_GUEST, _LITTER = "guest", "litter"


def measure_collection(row: Row, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> RowResult:
    """The row, on a vdiskfs that is not started yet; the caller stops it.

    Raises:
        VdiskfsError: it failed.
    """
    progress(f"{row.name}: starting {OURS}")
    result = RowResult(row)
    ours.start()
    for name in (_GUEST, _LITTER):
        ours.create_image(name, plan.image_bytes)
        run_job(SEQUENTIAL_WRITE, ours.image_path(name), amount=Amount(span_bytes=plan.image_bytes))
    litter, guest = ours.image_path(_LITTER), ours.image_path(_GUEST)
    alone, beside, moved = [], [], 0
    with ThreadPoolExecutor(1) as threads, guest.open("r+b", buffering=0):  # a guest has it open all the time
        for round_no in range(plan.rounds):
            progress(f"{row.name}: round {round_no + 1} of {plan.rounds}")
            half = Amount(span_bytes=plan.image_bytes, written_bytes=plan.image_bytes // 2)
            run_job(RANDOM_WRITE_16, litter, amount=half, seed=round_no + 1)
            settle(ours.mountpoint, [litter, guest])
            alone.append(_write(ours, plan, round_no))
            collecting = threads.submit(_collect, ours)
            beside.append(_write(ours, plan, round_no))
            sums = collecting.result()
            moved += int(sums.get("moved_bytes", 0)) + int(sums.get("freed_bytes", 0))
    medians = statistics.median(alone), statistics.median(beside)
    result.samples[OURS] = [100 * (1 - medians[1] / medians[0])]
    result.notes.append(
        f"{medians[1] / 1000:.1f}k IOPS beside a collection, {medians[0] / 1000:.1f}k without; "
        f"{moved >> 20} MiB moved or freed in {plan.rounds} collections"
    )
    return result


def _write(ours: Vdiskfs, plan: Plan, round_no: int) -> float:
    amount = Amount(span_bytes=plan.image_bytes, seconds=plan.seconds)
    return run_job(RANDOM_WRITE_16, ours.image_path(_GUEST), amount=amount, seed=100 + round_no).iops


def _collect(ours: Vdiskfs) -> dict[str, Any]:
    answer: dict[str, Any] = ask(locate(str(ours.mountpoint)), "gc", {"dry_run": False})
    return answer
