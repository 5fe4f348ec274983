"""Rows about vdiskfs alone: resident memory, index size, and a cold mount of a pool with many vdisks.

Each starts from a new pool and a new daemon, so that nothing of another row is counted.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from metadata.errors import Unavailable
from metadata.units import BLOCK_BYTES
from tools.bench_contenders import Vdiskfs
from tools.bench_fio import Amount, run_job
from tools.bench_machine import allocated_bytes, drop_caches, settle
from tools.bench_processes import resident_bytes, run_command
from tools.bench_report import RowResult
from tools.bench_rows import MIB, OURS, RANDOM_WRITE_16, SEQUENTIAL_WRITE, Plan, Row, Stage

IMAGE = "disk"

NOT_INDEX = ("journal", "lock", "log")
"""What else a state directory holds, by how its name begins: of fixed size, or text."""

MAKERS = 8
"""Threads that make vdisks: enough to share the catalog's and the pool's flushes."""

LIST_S_MAX = 120.0
"""An ``ls -l`` that takes longer counts as hung."""

Progress = Callable[[str], None]


def measure_footprint(row: Row, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> RowResult:
    """One row, on a vdiskfs that is not started yet; the caller stops it.

    Raises:
        VdiskfsError: it failed.
    """
    progress(f"{row.name}: starting {OURS}")
    result = RowResult(row)
    ours.start()
    if row.stage is Stage.MEMORY:
        _measure_memory(result, ours, plan=plan, progress=progress)
    elif row.stage is Stage.MOUNT:
        _measure_mount(result, ours, plan=plan, progress=progress)
    else:
        _measure_index(result, ours, plan=plan, progress=progress)
    return result


def _measure_memory(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    ours.create_image(IMAGE, plan.memory_vdisk_bytes)
    path = ours.image_path(IMAGE)
    amount = Amount(span_bytes=plan.memory_vdisk_bytes, written_bytes=plan.memory_written_bytes)
    progress(f"{result.row.name}: writing")
    with path.open("r+b", buffering=0):  # a guest still has it open
        figures = run_job(RANDOM_WRITE_16, path, amount=amount)
        pid = ours.daemon_pid(IMAGE)
        assert pid is not None
        resident = resident_bytes(pid)
    result.samples[OURS] = [resident["VmRSS"] / MIB]
    result.notes.append(
        f"{_in_units(figures.bytes_done)} written at {figures.iops / 1000:.1f}k IOPS; "
        f"anonymous {resident['RssAnon'] / MIB:.0f} MiB, peak {resident['VmHWM'] / MIB:.0f} MiB"
    )


def _measure_index(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """Write every block of an image once, unmount, and see what lies in the state directory."""
    job = SEQUENTIAL_WRITE if result.row.stage is Stage.INDEX_SEQUENTIAL else RANDOM_WRITE_16
    ours.create_image(IMAGE, plan.image_bytes)
    progress(f"{result.row.name}: writing")
    figures = run_job(job, ours.image_path(IMAGE), amount=Amount(span_bytes=plan.image_bytes))
    ours.unmount()
    index = allocated_bytes(ours.state, leave_out=NOT_INDEX)
    pool = allocated_bytes(ours.pool)
    if not index:
        raise Unavailable("the state directory holds no index after the unmount")
    result.samples[OURS] = [100 * index / figures.bytes_done]
    result.notes.append(
        f"index {_in_units(index)}, data {_in_units(figures.bytes_done)}, pool {_in_units(pool)}"
    )


def _measure_mount(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """From the start of ``vdiskfs mount`` to the end of the first ``ls -l``, nothing cached."""
    progress(f"{result.row.name}: making {plan.mount_vdisks} vdisks")
    make_vdisks(ours.mountpoint, count=plan.mount_vdisks, total_bytes=plan.mount_bytes)
    mounting, listing = [], []
    cold = True
    for round_no in range(plan.rounds):
        ours.unmount()
        settle(ours.pool)
        cold = drop_caches() and cold
        progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
        start = time.monotonic()
        ours.mount()
        mounted = time.monotonic()
        _list_long(ours.mountpoint, count=plan.mount_vdisks)
        mounting.append(mounted - start)
        listing.append(time.monotonic() - mounted)
    result.samples[OURS] = [first + second for first, second in zip(mounting, listing, strict=True)]
    spread = ", ".join(f"{first:.2f} + {second:.2f}" for first, second in zip(mounting, listing, strict=True))
    result.notes.append(
        f"mount + ls -l of {plan.mount_vdisks} vdisks in s: {spread}"
        + ("" if cold else "; not cold: only root may drop the caches")
    )


def make_vdisks(folder: Path, *, count: int, total_bytes: int) -> None:
    """Sparse vdisks of equal size with one written block each, so that each has a log to be read.

    Several at a time, as each waits for the disk.
    """
    size = total_bytes // count // BLOCK_BYTES * BLOCK_BYTES
    block = os.urandom(BLOCK_BYTES)

    def make(number: int) -> None:
        with (folder / f"vdisk-{number:05}").open("xb", buffering=0) as vdisk:
            vdisk.truncate(size)
            vdisk.seek(number % (size // BLOCK_BYTES) * BLOCK_BYTES)
            vdisk.write(block)

    threads = ThreadPoolExecutor(MAKERS)
    try:
        for _ in threads.map(make, range(count)):
            pass
    except OSError as exc:
        raise Unavailable(f"cannot make the vdisks to mount: {exc.strerror}") from None
    finally:
        threads.shutdown(cancel_futures=True)


def _list_long(folder: Path, *, count: int) -> None:
    """
    Raises:
        Unavailable: ``ls -l`` failed, hung, or did not show every vdisk.
    """
    shown = run_command(["ls", "-l", str(folder)], allowed_s=LIST_S_MAX).count("vdisk-")
    if shown != count:
        raise Unavailable(f"ls -l missed vdisks shown={shown} made={count}")


def _in_units(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"
