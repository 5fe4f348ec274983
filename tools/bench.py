"""``vdiskfs bench``: vdiskfs against a raw file and QEMU's FUSE exports, side by side.

Rows are measured stage by stage (``tools.bench_rows``), printed as they are done with the verdict on their
targets, and written as JSON at the end. Everything happens in a folder of its own under the scratch folder,
which is gone when this returns: after Ctrl-C and SIGTERM too, with every process and mount that was in it. A
row that fails says why, and the rest of its stage starts afresh.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from metadata.errors import InvalidRequest, Unavailable, VdiskfsError
from tools.bench_chains import measure_chain
from tools.bench_collection import measure_collection
from tools.bench_contenders import CONTENDERS, PROGRAMS, Factory, Vdiskfs, mounts_below, stop_contender
from tools.bench_footprint import measure_footprint
from tools.bench_history import measure_history
from tools.bench_interrupts import signals_interrupt, uninterrupted
from tools.bench_machine import check_fuse, check_programs, check_scratch, describe_machine
from tools.bench_node_rows import measure_node_row
from tools.bench_objects import measure_object_row
from tools.bench_pauses import measure_pauses
from tools.bench_report import (
    RowResult,
    Verdict,
    format_header,
    format_machine,
    format_row,
    format_summary,
    plan_json,
)
from tools.bench_rows import (
    CHAIN_STAGES,
    FULL,
    HISTORY_STAGES,
    OURS,
    QCOW2,
    QUICK,
    ROWS,
    Plan,
    Row,
    Stage,
    plan_scratch_bytes,
    plan_stages,
    select_rows,
)
from tools.bench_throughput import Arena

DONE, FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130
ROUNDS_MAX = 15
SECONDS_MAX = 600.0
DEFAULT_SCRATCH = "/var/tmp"
"""Not /tmp, which is often memory."""


@dataclasses.dataclass(frozen=True, slots=True)
class Request:
    """What was asked for on the command line."""

    rows: tuple[Row, ...]
    contenders: tuple[str, ...]
    plan: Plan
    scratch: Path
    json_file: Path | None


def main(argv: Sequence[str], *, contenders: Mapping[str, Factory] = CONTENDERS) -> int:
    """Run the benchmark; returns the exit status.

    Args:
        argv: what follows ``vdiskfs bench``.
        contenders: who can be measured, in the order of the columns.
    """
    try:
        request = parse_request(argv, tuple(contenders))
    except InvalidRequest as exc:
        return _complain(exc, WRONG_USAGE)
    try:
        with signals_interrupt():
            return run_benchmark(request, contenders)
    except KeyboardInterrupt:
        print("vdiskfs: interrupted; nothing is left behind", file=sys.stderr)
        return INTERRUPTED
    except (VdiskfsError, OSError) as exc:
        return _complain(exc, FAILED)


def parse_request(argv: Sequence[str], contenders: tuple[str, ...]) -> Request:
    """The command line, checked; argparse itself leaves with status 2 for what it cannot read.

    Raises:
        InvalidRequest: it names unknown rows or contenders, or absurd amounts.
    """
    options = _argument_parser(contenders).parse_args(argv)
    plan = QUICK if options.quick else FULL
    if options.rounds is not None:
        if not 1 <= options.rounds <= ROUNDS_MAX:
            raise InvalidRequest(f"--rounds must be 1 to {ROUNDS_MAX}")
        plan = dataclasses.replace(plan, rounds=options.rounds)
    if options.seconds is not None:
        if not 0.05 <= options.seconds <= SECONDS_MAX:
            raise InvalidRequest(f"--seconds must be 0.05 to {SECONDS_MAX:.0f}")
        plan = dataclasses.replace(plan, seconds=options.seconds)
    chosen = tuple(options.contenders.split(",")) if options.contenders else contenders
    for name in chosen:
        if name not in contenders:
            raise InvalidRequest(f"no contender is called {name!r}; contenders: {' '.join(contenders)}")
    rows = select_rows(options.rows)
    if options.quick:
        # Too little is done to judge anybody by.
        wanted = rows if options.rows else tuple(row for row in rows if row.is_quick)
        rows = tuple(dataclasses.replace(row, target=None) for row in wanted)
    return Request(
        rows=rows,
        contenders=tuple(name for name in contenders if name in chosen),
        plan=plan,
        scratch=options.scratch.resolve(),
        json_file=options.json,
    )


def run_benchmark(request: Request, contenders: Mapping[str, Factory]) -> int:
    """Measure and print everything asked for; returns the exit status.

    Raises:
        VdiskfsError: this machine or folder will not do; nothing was measured.
    """
    programs = ["fio", *(program for name in request.contenders for program in PROGRAMS.get(name, ()))]
    check_programs(dict.fromkeys(programs))
    check_fuse()
    _check_writable(request.json_file)
    needed = plan_scratch_bytes(request.rows, request.plan, contender_count=len(request.contenders))
    results: list[RowResult] = []
    with _scratch_folder(request.scratch) as scratch:
        check_scratch(scratch, needed_bytes=needed)
        machine = describe_machine(scratch)
        chosen = {name: contenders[name] for name in request.contenders}
        print(format_machine(machine), "", format_header(request.contenders), sep="\n", flush=True)

        def report(result: RowResult) -> None:
            results.append(result)
            _show_progress("")
            print(format_row(result, request.contenders), flush=True)

        try:
            for rows in plan_stages(request.rows, request.plan):
                _measure_stage(rows, chosen, plan=request.plan, scratch=scratch, report=report)
        finally:
            _show_progress("")
            if request.json_file is not None:
                facts = plan_json(results, machine=machine, plan=request.plan)
                request.json_file.write_text(json.dumps(facts, indent=2) + "\n")
    print("", format_summary(results), sep="\n")
    return FAILED if any(result.verdict() is Verdict.FAILED for result in results) else DONE


def _measure_stage(
    rows: list[Row],
    contenders: dict[str, Factory],
    *,
    plan: Plan,
    scratch: Path,
    report: Callable[[RowResult], None],
) -> None:
    """A stage's rows, reported one by one. After one that failed, the rest starts on a clean slate."""
    remaining = list(rows)
    while remaining:
        folder = scratch / "stage"
        folder.mkdir()
        try:
            if remaining[0].job is None:
                report(_measure_alone(remaining[0], contenders, plan=plan, folder=folder))
                remaining.pop(0)
            else:
                with Arena(folder, contenders, plan=plan, progress=_show_progress) as arena:
                    while remaining:
                        report(arena.measure(remaining[0]))
                        remaining.pop(0)
        except VdiskfsError as exc:
            if not remaining:
                raise
            report(RowResult(remaining.pop(0), failure=str(exc)))
        finally:
            _remove_tree(folder)


def _measure_alone(row: Row, contenders: dict[str, Factory], *, plan: Plan, folder: Path) -> RowResult:
    """A row about vdiskfs alone; left empty if it is not among the contenders."""
    if row.stage is Stage.OBJECTS:
        return measure_object_row(row, folder, plan=plan, progress=_show_progress)
    ours = contenders[OURS](folder) if OURS in contenders else None
    if not isinstance(ours, Vdiskfs):
        return RowResult(row)
    with ExitStack() as cleanup:
        cleanup.callback(stop_contender, ours)
        if row.stage is Stage.COLLECTION:
            return measure_collection(row, ours, plan=plan, progress=_show_progress)
        if row.stage is Stage.PAUSES:
            return measure_pauses(row, ours, plan=plan, progress=_show_progress)
        if row.stage is Stage.NODES:
            return measure_node_row(row, ours, plan=plan, progress=_show_progress)
        if row.stage not in HISTORY_STAGES | CHAIN_STAGES:
            return measure_footprint(row, ours, plan=plan, progress=_show_progress)
        compared = None
        if QCOW2 in contenders:
            compared = folder / QCOW2
            compared.mkdir()
        measure = measure_chain if row.stage in CHAIN_STAGES else measure_history
        return measure(row, ours, plan=plan, folder=compared, progress=_show_progress)


def _check_writable(json_file: Path | None) -> None:
    """Better now than after all the work.

    Raises:
        InvalidRequest: the file cannot be written.
    """
    if json_file is not None:
        try:
            json_file.open("a").close()
        except OSError as exc:
            raise InvalidRequest(f"cannot write {json_file}: {exc.strerror}") from None


@contextlib.contextmanager
def _scratch_folder(parent: Path) -> Iterator[Path]:
    """A new folder of our own, removed at the end.

    Raises:
        InvalidRequest: none can be made there.
    """
    try:
        folder = Path(tempfile.mkdtemp(prefix="vdiskfs-bench-", dir=parent))
    except OSError as exc:
        raise InvalidRequest(f"cannot use the scratch folder {parent}: {exc.strerror}") from None
    try:
        yield folder
    finally:
        _remove_tree(folder)


def _remove_tree(folder: Path) -> None:
    """Remove a folder and all in it, unless something is still mounted there.

    Raises:
        Unavailable: it is.
    """
    with uninterrupted():
        mounted = mounts_below(folder)
        if mounted:
            raise Unavailable(f"{mounted[0]} is still mounted; unmount it and remove {folder}")
        shutil.rmtree(folder, ignore_errors=True)


def _show_progress(text: str) -> None:
    """One line that overwrites itself, for a person at a terminal."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def _complain(exc: Exception, status: int) -> int:
    print(f"vdiskfs: {exc}", file=sys.stderr)
    return status


def _argument_parser(contenders: tuple[str, ...]) -> argparse.ArgumentParser:
    names = " ".join(row.name for row in ROWS)
    parser = argparse.ArgumentParser(
        prog="vdiskfs bench",
        description="Measure vdiskfs against a raw file and QEMU's FUSE exports on this machine.",
        epilog=f"rows: {names}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every sample to FILE")
    parser.add_argument(
        "--rows", metavar="NAME,...", help="only these rows; shell patterns such as 'randread*'"
    )
    parser.add_argument("--contenders", metavar="NAME,...", help=f"only these of: {' '.join(contenders)}")
    parser.add_argument("--rounds", type=int, help=f"samples of each figure (default {FULL.rounds})")
    parser.add_argument(
        "--seconds", type=float, help=f"length of a throughput sample (default {FULL.seconds})"
    )
    parser.add_argument(
        "--scratch",
        type=Path,
        metavar="DIR",
        default=Path(os.environ.get("TMPDIR", DEFAULT_SCRATCH)),
        help=f"a folder on the disk to measure on (default {DEFAULT_SCRATCH})",
    )
    parser.add_argument(
        "--quick", action="store_true", help="everything once and tiny: shows that it runs, not how fast"
    )
    return parser
