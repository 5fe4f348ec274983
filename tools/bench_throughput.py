"""Throughput and CPU rows: every contender does the same work on an image in the same state, in turn.

Within a round each contender runs once, and the next round starts with the next one, so drift of the machine
and any advantage of a place in the order spread evenly. The page cache is in the same state for each:

* Nothing is dirty before a sample: each pays for its own write-back alone.
* Before a reading sample its image is read once as a whole, the way the row reads it, so whatever can be cached
  on that way is. Before each sample, because some kernels (DAMON's proactive reclaim on cloud machines) drop
  pages that nobody touched for half a minute, however much memory is free.
* Before a writing sample the contender's files have no pages in the cache. Else who filled an image in place
  with large writes is punished in all that follows: ext4 keeps such a stretch in large folios, and a 4 KiB
  write into one takes 25 to 50 us instead of 5 (seen on Linux 6.18).
"""

import dataclasses
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tools.bench_contenders import Contender, Factory, stop_contender
from tools.bench_fio import Amount, Job, run_job, run_job_on_each
from tools.bench_machine import forget_pages, settle
from tools.bench_processes import cpu_seconds
from tools.bench_report import RowResult
from tools.bench_rows import MIB, RANDOM_WRITE_16, SEQUENTIAL_WRITE, Measure, Plan, Row

IMAGE = "disk"

Progress = Callable[[str], None]
"""Told what happens now, for somebody who watches."""


class Arena:
    """The contenders of one stage, started together, on images of the same content; used with ``with``."""

    def __init__(
        self, folder: Path, factories: dict[str, Factory], *, plan: Plan, progress: Progress
    ) -> None:
        self._folder = folder
        self._factories = factories
        self._plan = plan
        self._progress = progress
        self._contenders: dict[str, Contender] = {}
        self._cleanup = ExitStack()
        self._overwritten = False

    def __enter__(self) -> Self:
        with ExitStack() as cleanup:
            for name, factory in self._factories.items():
                self._progress(f"starting {name}")
                home = self._folder / name
                home.mkdir()
                contender = factory(home)
                cleanup.callback(stop_contender, contender)
                contender.start()
                contender.create_image(IMAGE, self._plan.image_bytes)
                self._contenders[name] = contender
            self._write_all(SEQUENTIAL_WRITE, why="filling")
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._cleanup.close()

    def measure(self, row: Row) -> RowResult:
        """All rounds of one row.

        Raises:
            VdiskfsError: a contender failed; the arena may be in any state then.
        """
        assert row.job is not None
        if row.overwritten and not self._overwritten:
            self._write_all(RANDOM_WRITE_16, why="overwriting")
            self._overwritten = True
        names = list(self._contenders)
        if row.measure is Measure.CPU_US:
            names = [name for name in names if self._daemon_pid(name) is not None]
        result = RowResult(row)
        for round_no in range(self._plan.rounds if names else 0):
            turn = round_no % len(names)
            for name in names[turn:] + names[:turn]:
                self._progress(f"{row.name}: round {round_no + 1} of {self._plan.rounds}, {name}")
                result.samples.setdefault(name, []).append(self._sample(name, row, seed=round_no + 1))
        return result

    def _sample(self, name: str, row: Row, *, seed: int) -> float:
        assert row.job is not None
        if row.measure is Measure.CPU_US:
            return self._sample_cpu(name, row.job, seed=seed)
        amount = Amount(span_bytes=self._plan.image_bytes, seconds=self._plan.seconds)
        self._prepare(name, row.job)
        figures = run_job(row.job, self._path(name), amount=amount, seed=seed)
        self._settle(name, row.job)
        return figures.iops if row.measure is Measure.IOPS else figures.megabytes_per_s

    def _sample_cpu(self, name: str, job: Job, *, seed: int) -> float:
        """Microseconds of the daemon's CPU time an operation, over a fixed count; writes with their flush."""
        pid = self._daemon_pid(name)
        assert pid is not None
        amount = Amount(span_bytes=self._plan.image_bytes, operations=self._plan.cpu_operations)
        if not job.reads:
            job = dataclasses.replace(job, fsync_at_end=True)
        self._prepare(name, job)
        before = cpu_seconds(pid)
        figures = run_job(job, self._path(name), amount=amount, seed=seed)
        spent = cpu_seconds(pid) - before
        self._settle(name, job)
        return spent * 1e6 / figures.operations

    def _write_all(self, job: Job, *, why: str) -> None:
        """Write every block of every image once."""
        self._progress(f"{why} the images")
        paths = [self._path(name) for name in self._contenders]
        for name in self._contenders:
            self._prepare(name, job)
        run_job_on_each(job, paths, amount=Amount(span_bytes=self._plan.image_bytes))
        settle(self._folder, paths)

    def _prepare(self, name: str, job: Job) -> None:
        """Brings the page cache into the state that every sample starts from."""
        if job.reads:
            whole = Job(rw="read", block_bytes=MIB, depth=4 if job.direct else 1, direct=job.direct)
            run_job(whole, self._path(name), amount=Amount(span_bytes=self._plan.image_bytes))
        else:
            forget_pages([self._path(name), *self._contenders[name].backing_files()])

    def _settle(self, name: str, job: Job) -> None:
        if not job.reads:
            settle(self._folder, [self._path(name)])

    def _path(self, name: str) -> Path:
        return self._contenders[name].image_path(IMAGE)

    def _daemon_pid(self, name: str) -> int | None:
        return self._contenders[name].daemon_pid(IMAGE)
