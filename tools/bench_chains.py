"""Rows about depth: random reads behind many snapshots and through many generations of clones, against qcow2 chains.

What is measured at a depth is measured in turn with a vdisk of the same size and content at depth 1, so that a machine whose
speed drifts does not look like depth. Each generation rewrites 1 % of the vdisk, in random places.
"""

import os
import statistics
from collections.abc import Callable
from pathlib import Path

from metadata.units import BLOCK_BYTES
from tools.asking import ask
from tools.bench_contenders import QemuExport, Vdiskfs, stop_contender
from tools.bench_fio import Amount, Job, run_job
from tools.bench_history import scattered
from tools.bench_machine import settle
from tools.bench_processes import run_command
from tools.bench_report import RowResult
from tools.bench_rows import KIB, MIB, OURS, QCOW2, SEQUENTIAL_WRITE, Plan, Row, Stage
from tools.paths import locate

Progress = Callable[[str], None]

_READ = Job(rw="randread", block_bytes=4 * KIB, depth=16)
_WHOLE = Job(rw="read", block_bytes=MIB, depth=4)
_CLUSTER_BYTES = 64 * KIB
_CHANGED_SHARE = 0.01
_CONTROL, _DEEP = "control", "deep"


def measure_chain(
    row: Row, ours: Vdiskfs, *, plan: Plan, folder: Path | None, progress: Progress
) -> RowResult:
    """One row, on a vdiskfs that is not started yet; the caller stops it.

    Args:
        folder: where qcow2 chains may be made to compare with; None: they are not wanted.

    Raises:
        VdiskfsError: it failed.
    """
    progress(f"{row.name}: starting {OURS}")
    result = RowResult(row)
    ours.start()
    deepen = _add_clone if row.stage is Stage.CLONE_CHAIN else _add_snapshot
    control, deep = _filled(ours, _CONTROL, plan), _filled(ours, _DEEP, plan)
    control, deep = deepen(control, 1), deepen(deep, 1)
    depth, slowest = 1, 0.0
    for wanted in plan.chain_depths:
        while depth < wanted:
            depth += 1
            deep = deepen(deep, depth)
            if not depth % 50:
                progress(f"{row.name}: depth {depth} of {plan.chain_depths[-1]}")
        settle(ours.mountpoint, [deep, control])
        figures = _in_turn([control, deep], plan=plan)
        medians = [statistics.median(samples) for samples in figures]
        slowest = max(slowest, 100 * (1 - medians[1] / medians[0]))
        result.notes.append(
            f"depth {wanted}: {medians[1] / 1000:.1f}k IOPS, at depth 1 {medians[0] / 1000:.1f}k"
        )
        result.samples[OURS] = figures[1]
    if row.target is None or row.target.against is None:
        result.samples[OURS] = [slowest]
    elif folder is not None:
        result.samples[QCOW2] = _qcow2_chain(folder, plan=plan, progress=progress)
    return result


def _in_turn(paths: list[Path], *, plan: Plan) -> list[list[float]]:
    """IOPS of each, sampled alternately; read as a whole first, so that it is the second pass that counts."""
    figures: list[list[float]] = [[] for _ in paths]
    for path in paths:
        run_job(_WHOLE, path, amount=Amount(span_bytes=plan.chain_bytes))
    for round_no in range(plan.rounds):
        for path, samples in zip(paths, figures, strict=True):
            amount = Amount(span_bytes=plan.chain_bytes, seconds=plan.seconds)
            samples.append(run_job(_READ, path, amount=amount, seed=round_no + 1).iops)
    return figures


def _filled(ours: Vdiskfs, name: str, plan: Plan) -> Path:
    ours.create_image(name, plan.chain_bytes)
    path = ours.image_path(name)
    run_job(SEQUENTIAL_WRITE, path, amount=Amount(span_bytes=plan.chain_bytes))
    return path


def _add_snapshot(path: Path, depth: int) -> Path:
    located = locate(str(path))
    ask(located, "snap_create", {"paths": [located.inner], "name": f"s{depth}"})
    _rewrite(path, depth, piece=BLOCK_BYTES)
    return path


def _add_clone(path: Path, depth: int) -> Path:
    located = locate(str(path))
    name = f"{located.inner.partition('-')[0]}-{depth}"
    ask(located, "clone", {"name": None, "new_path": name})
    clone = path.with_name(name)
    _rewrite(clone, depth, piece=BLOCK_BYTES)
    return clone


def _rewrite(path: Path, seed: int, *, piece: int) -> None:
    """1 % of it, in random places, durable."""
    with path.open("r+b", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        data = os.urandom(piece)
        for at in scattered(size // piece, share=_CHANGED_SHARE, seed=seed):
            os.pwrite(file.fileno(), data, at * piece)
        os.fsync(file.fileno())


# ---- qcow2


def _qcow2_chain(folder: Path, *, plan: Plan, progress: Progress) -> list[float]:
    """IOPS of the newest image of the deepest chain, in qemu-storage-daemon.

    Overlays are written before they are told of their backing file: opening the whole chain for each would take hours.
    """
    base = folder / "0.qcow2"
    _img("create", "-q", "-f", QCOW2, "-o", "preallocation=metadata", str(base), str(plan.chain_bytes))
    _io(base, [f"write -q -P 90 {offset} {MIB}" for offset in range(0, plan.chain_bytes, MIB)])
    depth = plan.chain_depths[-1]
    for number in range(1, depth + 1):
        overlay = folder / f"{number}.qcow2"
        _img("create", "-q", "-f", QCOW2, str(overlay), str(plan.chain_bytes))
        clusters = scattered(plan.chain_bytes // _CLUSTER_BYTES, share=_CHANGED_SHARE, seed=number)
        _io(overlay, [f"write -q -P 91 {cluster * _CLUSTER_BYTES} {_CLUSTER_BYTES}" for cluster in clusters])
        _img("rebase", "-u", "-f", QCOW2, "-b", f"{number - 1}.qcow2", "-F", QCOW2, str(overlay))
        if not number % 50:
            progress(f"{QCOW2}: depth {number} of {depth}")
    export = QemuExport(folder, QCOW2)
    try:
        export.serve("chain", folder / f"{depth}.qcow2")
        return _in_turn([export.image_path("chain")], plan=plan)[0]
    finally:
        stop_contender(export)


def _img(*arguments: str) -> None:
    run_command(["qemu-img", *arguments])


def _io(image: Path, commands: list[str]) -> None:
    """qemu-io, some hundreds of commands at a time."""
    for first in range(0, len(commands), 200):
        part = [word for command in commands[first : first + 200] for word in ("-c", command)]
        run_command(["qemu-io", "-f", QCOW2, *part, str(image)])
