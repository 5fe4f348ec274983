"""Rows about history: snapshots, clones, rollbacks, deletions at two sizes, differences, the tree.

64 GiB of data would take most of the time and of the disk; what these verbs do is done to the index. So a vdisk is
*mapped* instead: 1 MiB of it is written, and while nothing is mounted the index gets rows for all the rest. They point to
groups that are not there, which nobody reads. qcow2's counterpart is its preallocated metadata.
"""

import os
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

from xxhash import xxh3_64_intdigest

from metadata.ids import group_id
from metadata.index import Index, IndexBatch
from metadata.rows import decode_row, encode_row
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS, VBLOCK_BYTES
from tools.asking import ask
from tools.bench_contenders import Vdiskfs, run_vdiskfs
from tools.bench_processes import run_command
from tools.bench_report import RowResult
from tools.bench_rows import OURS, QCOW2, Plan, Row, Stage
from tools.paths import locate

Progress = Callable[[str], None]

IMAGE = "disk"
QCOW2_S_MAX = 600.0
_FAKE_EPOCH = 1 << 20
"""Of the groups that mapped rows name: no real one comes so far."""
_GROUP_VBLOCKS = 64
_VBLOCKS_AT_ONCE = 1024
_CHANGED_SHARE = 0.01


def measure_history(
    row: Row, ours: Vdiskfs, *, plan: Plan, folder: Path | None, progress: Progress
) -> RowResult:
    """One row, on a vdiskfs that is not started yet; the caller stops it.

    Args:
        folder: where qcow2 images may be made to compare with; None: they are not wanted.

    Raises:
        VdiskfsError: it failed.
    """
    progress(f"{row.name}: starting {OURS}")
    result = RowResult(row)
    ours.start()
    if row.stage is Stage.TREE:
        _measure_tree(result, ours, plan=plan, progress=progress)
    elif row.stage is Stage.DIFF:
        _measure_diff(result, ours, plan=plan, progress=progress)
    else:
        _measure_verb(result, ours, plan=plan, folder=folder)
    return result


# ---- one verb


def _measure_verb(result: RowResult, ours: Vdiskfs, *, plan: Plan, folder: Path | None) -> None:
    verb, _, size_name = result.row.name.partition("-")
    size = plan.mapped_bytes if size_name == "large" else VBLOCK_BYTES
    path = _mapped_vdisk(ours, size)
    asking = {"snapshot": _snapshot, "clone": _clone, "rollback": _roll_back, "delete": _delete}[verb]
    result.samples[OURS] = [asking(path, number) for number in range(plan.verb_rounds)]
    if folder is not None:
        result.samples[QCOW2] = _qcow2_samples(verb, folder, size=size, rounds=plan.rounds)
        result.notes.append(f"{QCOW2}: qemu-img, its start of about {_start_ms():.0f} ms included")


def _timed(verb: str, path: Path, arguments: dict[str, object]) -> float:
    """Milliseconds, from the request at the control socket to the answer."""
    located = locate(str(path))
    start = time.perf_counter()
    ask(located, verb, arguments)
    return (time.perf_counter() - start) * 1000


def _dirty(path: Path, number: int) -> None:
    """One block that no commit has yet."""
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(BLOCK_BYTES), number % VBLOCK_BLOCKS * BLOCK_BYTES)


def _snapshot(path: Path, number: int) -> float:
    _dirty(path, number)
    return _timed("snap_create", path, {"paths": [path.name], "name": f"s{number}"})


def _clone(path: Path, number: int) -> float:
    _dirty(path, number)
    return _timed("clone", path, {"name": None, "new_path": f"clone{number}"})


def _roll_back(path: Path, number: int) -> float:
    if not number:
        ask(locate(str(path)), "snap_create", {"paths": [path.name], "name": "start"})
    _dirty(path, number)
    return _timed("snap_rollback", path, {"name": "start"})


def _delete(path: Path, number: int) -> float:
    """A snapshot, so that there is something to delete each time."""
    _dirty(path, number)
    ask(locate(str(path)), "snap_create", {"paths": [path.name], "name": f"s{number}"})
    _dirty(path, number + 1)
    return _timed("snap_rm", path, {"name": f"s{number}"})


def _qcow2_samples(verb: str, folder: Path, *, size: int, rounds: int) -> list[float]:
    image = folder / "history.qcow2"
    _command("qemu-img", "create", "-q", "-f", QCOW2, "-o", "preallocation=metadata", str(image), str(size))
    _command("qemu-img", "snapshot", "-c", "start", str(image))
    samples = []
    for number in range(rounds):
        clone = folder / f"clone{number}.qcow2"
        arguments = {
            "snapshot": ("snapshot", "-c", f"s{number}", str(image)),
            "clone": ("create", "-q", "-f", QCOW2, "-b", str(image), "-F", QCOW2, str(clone)),
            "rollback": ("snapshot", "-a", "start", str(image)),
            "delete": ("snapshot", "-d", f"s{number}", str(image)),
        }[verb]
        if verb == "delete":
            _command("qemu-img", "snapshot", "-c", f"s{number}", str(image))
        samples.append(_command("qemu-img", *arguments))
    return samples


def _command(*arguments: str) -> float:
    start = time.perf_counter()
    run_command(arguments, allowed_s=QCOW2_S_MAX)
    return (time.perf_counter() - start) * 1000


def _start_ms() -> float:
    return min(_command("qemu-img", "--version") for _ in range(3))


# ---- differences and the tree


def _measure_diff(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    progress(f"{result.row.name}: mapping {plan.mapped_bytes >> 30} GiB")
    path = _mapped_vdisk(ours, plan.mapped_bytes, changed=_CHANGED_SHARE)
    seconds, ranges = [], 0
    for round_no in range(plan.rounds):
        progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
        start = time.monotonic()
        shown = run_vdiskfs("diff", f"{path}@one", f"{path}@two", "--json")
        seconds.append(time.monotonic() - start)
        ranges = shown.count('"offset"')
    result.samples[OURS] = seconds
    verb = min(
        _timed("diff", path, {"base_path": path.name, "base": "one", "name": "two"})
        for _ in range(plan.rounds)
    )
    result.notes.append(
        f"{ranges} ranges; the command as a whole, of which the daemon's answer is {verb:.0f} ms"
    )


def _measure_tree(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    vdisks = max(1, plan.tree_nodes // 5)
    progress(f"{result.row.name}: making {vdisks} vdisks with 4 snapshots each")
    for number in range(vdisks):
        with (ours.mountpoint / f"vdisk-{number:05}").open("xb") as vdisk:
            vdisk.truncate(VBLOCK_BYTES)
    located = locate(str(ours.mountpoint))
    for name in ("one", "two", "three", "four"):
        ask(located, "snap_create", {"directory": "", "name": name})
    seconds, nodes = [], 0
    for _ in range(plan.rounds):
        start = time.monotonic()
        nodes = run_vdiskfs("tree", str(ours.mountpoint), "--json").count('"id"')
        seconds.append(time.monotonic() - start)
    result.samples[OURS] = seconds
    result.notes.append(f"{nodes} nodes, the command as a whole")


# ---- mapped vdisks


def _mapped_vdisk(ours: Vdiskfs, size: int, *, changed: float = 0.0) -> Path:
    """A vdisk whose every block has a place. With ``changed``, snapshots one and two between which so much differs."""
    ours.create_image(IMAGE, size)
    path = ours.image_path(IMAGE)
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(VBLOCK_BYTES), 0)
        os.fsync(file.fileno())
    located = locate(str(path))
    vdisk = int(ask(located, "info", {})["vdisk"])
    if changed:
        for name in ("one", "two"):
            ask(located, "snap_create", {"paths": [located.inner], "name": name})
            _dirty(path, 0)
    versions = [int(found["version"]) for found in ask(located, "snap_ls", {})["snapshots"]]
    ours.unmount()
    index = Index(str(ours.state / "index"))
    try:
        _map_all(index, vdisk, vblocks=size // VBLOCK_BYTES, generation=1)
        if changed:
            _change(index, vdisk, generation=versions[1], share=changed)
    finally:
        index.close()
    ours.mount()
    return path


def _map_all(index: Index, vdisk: int, *, vblocks: int, generation: int) -> None:
    state = index.state(vdisk)
    assert state is not None
    for first in range(1, vblocks, _VBLOCKS_AT_ONCE):
        rows = {
            vblock: encode_row(_mapped_row(vblock))
            for vblock in range(first, min(vblocks, first + _VBLOCKS_AT_ONCE))
        }
        index.apply(IndexBatch(vdisk, generation, rows, {}, state))


def _mapped_row(vblock: int) -> "array[int]":
    """As a guest wrote it once in large pieces: in a row."""
    group = group_id(_FAKE_EPOCH, vblock // _GROUP_VBLOCKS)
    first = group << 16 | vblock % _GROUP_VBLOCKS * VBLOCK_BLOCKS
    return array("Q", range(first, first + VBLOCK_BLOCKS))


def _change(index: Index, vdisk: int, *, generation: int, share: float) -> None:
    """Blocks here and there get a new place in a later generation."""
    state = index.state(vdisk)
    assert state is not None
    mapped = dict(_rows(index, vdisk))
    rows: dict[int, bytes] = {}
    last = max(mapped)
    chosen = sorted(set(scattered((last + 1) * VBLOCK_BLOCKS, share=share, seed=1)))
    for number, block_no in enumerate(chosen):
        vblock = block_no // VBLOCK_BLOCKS
        if vblock in mapped:
            group = group_id(_FAKE_EPOCH + 1, number >> 14)
            mapped[vblock][block_no % VBLOCK_BLOCKS] = group << 16 | number & 0x3FFF
            rows[vblock] = encode_row(mapped[vblock])
    index.apply(IndexBatch(vdisk, generation, rows, {}, state))


def scattered(count: int, *, share: float, seed: int) -> list[int]:
    """Numbers below ``count``, so large a share of them, here and there: the same ones for the same seed."""
    return [
        xxh3_64_intdigest(number.to_bytes(8, "little"), seed) % count
        for number in range(max(1, int(count * share)))
    ]


def _rows(index: Index, vdisk: int) -> Any:
    for vblock, older, newer in index.row_pairs(vdisk, (0, 1), first_vblock=1):
        assert older is None
        assert newer is not None
        yield vblock, decode_row(newer)
