"""Rows about the pauses that guests see: the daemon killed, the daemon upgraded, under a reader and a writer.

A block is written in every 256 KiB or so of a large vdisk first, so that index and log are those of a full one. A pause
is the longest time that one 4 KiB direct read or write took around the event, as a guest would measure it.
"""

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from metadata.units import BLOCK_BYTES
from tools.bench_contenders import Vdiskfs, run_vdiskfs
from tools.bench_fio import Amount, run_job
from tools.bench_processes import kill_process
from tools.bench_report import RowResult
from tools.bench_rows import OURS, PAUSE_WRITTEN_PART, RANDOM_WRITE_16, Plan, Row

IMAGE = "disk"
EVENTS_A_ROUND = 3
AFTERWARDS_S = 2.0
"""Served for so long between two events: a daemon that dies within a second of its start is restarted later."""
_STRIDE = 2654435761
"""Odd, so that a walk in such steps visits every block before it comes back."""

Progress = Callable[[str], None]


def measure_pauses(row: Row, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> RowResult:
    """One row, on a vdiskfs that is not started yet; the caller stops it.

    Raises:
        VdiskfsError: it failed.
    """
    progress(f"{row.name}: starting {OURS}")
    ours.start()
    ours.create_image(IMAGE, plan.pause_bytes)
    path = ours.image_path(IMAGE)
    amount = Amount(span_bytes=plan.pause_bytes, written_bytes=plan.pause_bytes // PAUSE_WRITTEN_PART)
    progress(f"{row.name}: writing")
    run_job(RANDOM_WRITE_16, path, amount=amount)
    result = RowResult(row, samples={OURS: []})
    with _watched(path, span=plan.pause_bytes) as probes:
        for number in range(plan.rounds * EVENTS_A_ROUND):
            progress(f"{row.name}: {number + 1} of {plan.rounds * EVENTS_A_ROUND}")
            for probe in probes:
                probe.longest_s = 0.0
            if row.name == "pause-upgrade":
                run_vdiskfs("upgrade", str(ours.mountpoint))
            else:
                pid = ours.daemon_pid(IMAGE)
                assert pid is not None
                kill_process(pid)
            time.sleep(AFTERWARDS_S)
            result.samples[OURS].append(1000 * max(probe.longest_s for probe in probes))
    result.notes.append(f"longest {max(result.samples[OURS]):.0f} ms")
    return result


class _Probe:
    """A thread that reads or writes one block after the other, and knows how long the slowest took."""

    def __init__(self, path: Path, *, span: int, writes: bool) -> None:
        self.longest_s = 0.0
        self.stopping = False
        self.failure: OSError | None = None
        self._path, self._blocks, self._writes = path, span // BLOCK_BYTES, writes
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        buffer = mmap.mmap(-1, BLOCK_BYTES)
        buffer[:] = os.urandom(BLOCK_BYTES)
        step = os.pwritev if self._writes else os.preadv
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_DIRECT)
            try:
                block_no, last = 0, time.monotonic()
                while not self.stopping:
                    block_no = (block_no + _STRIDE) % self._blocks
                    step(descriptor, [buffer], block_no * BLOCK_BYTES)
                    now = time.monotonic()
                    self.longest_s, last = max(self.longest_s, now - last), now
            finally:
                os.close(descriptor)
        except OSError as problem:
            self.failure = problem


@contextmanager
def _watched(path: Path, *, span: int) -> Iterator[list[_Probe]]:
    """A reader and a writer at work.

    Raises:
        OSError: one of them got an error, which no guest may.
    """
    probes = [_Probe(path, span=span, writes=writes) for writes in (False, True)]
    try:
        yield probes
    finally:
        for probe in probes:
            probe.stopping = True
            probe.thread.join()
    for probe in probes:
        if probe.failure is not None:
            raise probe.failure
