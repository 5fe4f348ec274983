"""fio: a job described by what it does, its command line, and the figures out of its JSON.

Every job leaves the page cache alone (``invalidate=0``): what is cached is the benchmark's business, the
same for each contender. fio must neither create nor lay out the file, runs as a thread (killing the one
process ends it all), and takes its random numbers from a seed that the contenders of a round share.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metadata.errors import Unavailable
from tools.bench_processes import run_command

START_S_MAX = 120.0
"""A job may outlive its own limit by this (start, closing fsync of an image) before it counts as hung."""

BYTES_PER_S_MIN = 20e6
"""A contender slower than this counts as hung too."""


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """What to do to a file. O_DIRECT jobs use libaio; buffered ones psync, as libaio would wait anyway."""

    rw: str
    block_bytes: int
    depth: int
    direct: bool = True
    fdatasync_each: bool = False
    fsync_at_end: bool = False
    opens_for_writing: bool = False
    """A reading job, as one that might write."""

    @property
    def reads(self) -> bool:
        """Whether the job leaves the file as it is."""
        return self.rw in ("read", "randread")


@dataclasses.dataclass(frozen=True, slots=True)
class Amount:
    """When a job ends: at the first of these limits that it reaches.

    ``span_bytes`` is the stretch of the file it works on. A writing job ends when it has written every block
    of it once, a reading one goes round as long as its ``seconds`` last. With ``written_bytes`` set, blocks
    are picked without keeping count of which were written already.
    """

    span_bytes: int
    seconds: float | None = None
    operations: int | None = None
    written_bytes: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Figures:
    """What one run of fio did."""

    operations: int
    bytes_done: int
    seconds: float

    @property
    def iops(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds

    @property
    def megabytes_per_s(self) -> float:
        """Millions of bytes a second."""
        return self.bytes_done / self.seconds / 1e6


def plan_arguments(job: Job, paths: Sequence[Path], *, amount: Amount, seed: int) -> list[str]:
    """fio's command line: the same job for each file, one after another."""
    arguments = [
        "fio",
        "--output-format=json",
        "--name=global",
        "--thread=1",
        "--stonewall",
        "--clocksource=clock_gettime",
        "--gtod_reduce=1",
        "--allow_file_create=0",
        "--fallocate=none",
        "--invalidate=0",
        f"--randseed={seed}",
        f"--rw={'randrw' if job.opens_for_writing else job.rw}",
        f"--bs={job.block_bytes}",
        f"--iodepth={job.depth}",
        f"--direct={int(job.direct)}",
        f"--ioengine={'libaio' if job.direct else 'psync'}",
        f"--size={amount.span_bytes}",
    ]
    if amount.seconds is not None:
        arguments.append(f"--runtime={round(amount.seconds * 1000)}ms")
        if job.reads:
            arguments.append("--time_based=1")
    if amount.operations is not None:
        arguments.append(f"--number_ios={amount.operations}")
    if amount.written_bytes is not None:
        arguments += [f"--io_size={amount.written_bytes}", "--norandommap=1"]
    if job.opens_for_writing:
        arguments.append("--rwmixread=100")
    if job.fdatasync_each:
        arguments.append("--fdatasync=1")
    if job.fsync_at_end:
        arguments.append("--end_fsync=1")
    for path in paths:
        # A colon would separate file names.
        arguments += ["--name=bench", "--filename=" + str(path).replace(":", "\\:")]
    return arguments


def parse_output(text: str) -> list[Figures]:
    """The figures of each job in fio's JSON; fio may print remarks before it.

    Raises:
        Unavailable: fio says that a job failed, did nothing, or cannot be understood.
    """
    try:
        return [_parse_job(job) for job in json.loads(text[text.index("{") :])["jobs"]]
    except (ValueError, LookupError, TypeError) as exc:
        raise Unavailable(f"fio's output is not the JSON expected: {type(exc).__name__} {exc}") from None


def _parse_job(job: dict[str, Any]) -> Figures:
    directions = [job[direction] for direction in ("read", "write")]
    operations = sum(int(direction["total_ios"]) for direction in directions)
    if int(job["error"]):
        raise Unavailable(f"fio reports a failed job errno={job['error']}")
    if not operations:
        raise Unavailable("fio did nothing in the time it had")
    # A job of less than a millisecond says 0.
    milliseconds = max(1, *(int(direction["runtime"]) for direction in directions))
    bytes_done = sum(int(direction["io_bytes"]) for direction in directions)
    return Figures(operations=operations, bytes_done=bytes_done, seconds=milliseconds / 1000)


def run_job(job: Job, path: Path, *, amount: Amount, seed: int = 1) -> Figures:
    """Run fio on an existing file.

    Raises:
        Unavailable: it failed or hung.
    """
    return run_job_on_each(job, [path], amount=amount, seed=seed)[0]


def run_job_on_each(job: Job, paths: Sequence[Path], *, amount: Amount, seed: int = 1) -> list[Figures]:
    """Run fio on existing files, one after another.

    Raises:
        Unavailable: it failed or hung.
    """
    bytes_max = amount.written_bytes or amount.span_bytes
    allowed_s = START_S_MAX + len(paths) * ((amount.seconds or 0) + bytes_max / BYTES_PER_S_MIN)
    arguments = plan_arguments(job, paths, amount=amount, seed=seed)
    figures = parse_output(run_command(arguments, allowed_s=allowed_s))
    if len(figures) != len(paths):
        raise Unavailable(f"fio reports on other files than asked jobs={len(figures)} files={len(paths)}")
    return figures
