"""Rows about pools in object stores: reads from the node's cache and from the store, flushes with durability ``node``, objects.

The store is the one that VDISKFS_BENCH_STORE names (s3://BUCKET/PREFIX, with endpoint and credentials as for a mount); without
it a folder of this disk, behind the same client library, stands in, and each row's note says so: no network, no server.
What is compared with, a directory pool or the library itself, is measured in turn, in the same run.
"""

import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fusefs.state_directory import check_node
from metadata.units import BLOCK_BYTES
from replication.object_store import CALLS_MAX, connect
from replication.pool_objects import ObjectPool
from replication.pools import open_pool, resolve_pool
from tools.bench_contenders import Vdiskfs, run_vdiskfs, stop_contender
from tools.bench_fio import Amount, Job, run_job
from tools.bench_machine import settle
from tools.bench_nodes import IMAGE, Progress, in_turn
from tools.bench_processes import run_command
from tools.bench_report import RowResult
from tools.bench_rows import CLIENT, DIRECTORY, LOCAL_WRITES, MIB, OURS, SEQUENTIAL_WRITE, Plan, Row

STORE_VARIABLE = "VDISKFS_BENCH_STORE"
READ = Job(rw="read", block_bytes=MIB, depth=4)
FLUSHED_SHARE = 4
"""A quarter of an image's size is flushed, a block at a time: each flush adds its record besides."""
FLUSH_IMAGE_BYTES = 256 * MIB
FLUSH_RUNS = 16
"""Of fio, each within its time."""


class OverObjects(Vdiskfs):
    """A node of a pool in an object store."""

    def __init__(self, folder: Path, *, options: tuple[str, ...] = ()) -> None:
        super().__init__(folder, pool=folder / "store", node=check_node("objects"))
        base = os.environ.get(STORE_VARIABLE, "")
        self.is_real = bool(base)
        self.url = (
            f"{base.rstrip('/')}/{folder.parent.name}-{time.time_ns():x}" if base else f"file://{self.pool}"
        )
        self._format_options = (*options, "--catalog", f"sqlite:{folder / 'catalog'}")

    def start(self) -> None:
        """Format a pool and mount it."""
        for directory in (self.mountpoint, self.state):
            directory.mkdir(parents=True)
        run_vdiskfs("format", self.url, *self._format_options)
        self.mount()

    def pool_address(self) -> str:
        return self.url

    def forget(self) -> None:
        """A node that knows nothing takes this one's place."""
        self.unmount()
        shutil.rmtree(self.state)
        self.state.mkdir()
        run_command(["sync", "--file-system", str(self.state)], allowed_s=600)

    def look(self) -> ObjectPool:
        """The pool, from outside."""
        pool = open_pool(resolve_pool(self.url), state=str(self.state))
        assert isinstance(pool, ObjectPool)
        return pool

    def note(self) -> str:
        """Which store the figures are about."""
        return self.url.partition("://")[0] + (
            " server" if self.is_real else ": a folder of this disk, no S3 server"
        )


def measure_object_row(row: Row, folder: Path, *, plan: Plan, progress: Progress) -> RowResult:
    """One row, with nodes of its own, which it stops.

    Raises:
        VdiskfsError: it failed.
    """
    result = RowResult(row)
    options = ("--durability", "node") if row.name == "object-node-flush" else ()
    ours, other = OverObjects(folder / "ours", options=options), Vdiskfs(folder / "other")
    (folder / "other").mkdir()
    try:
        progress(f"{row.name}: starting")
        ours.start()
        if row.name == "object-node-flush":
            _measure_flushes(result, ours, other, plan=plan, progress=progress)
        elif row.name == "object-count":
            _count_objects(result, ours, plan=plan, progress=progress)
        else:
            _measure_reads(result, ours, other, plan=plan, progress=progress)
    finally:
        for node in (ours, other):
            stop_contender(node)
        if ours.is_real:
            _remove(ours)
    result.notes.append(ours.note())
    return result


def _remove(ours: OverObjects) -> None:
    pool = ours.look()
    for vdisk in pool.vdisks():
        pool.remove_vdisk(vdisk)
    pool.close()


def _filled(node: Vdiskfs, size: int) -> Path:
    node.create_image(IMAGE, size)
    path = node.image_path(IMAGE)
    run_job(SEQUENTIAL_WRITE, path, amount=Amount(span_bytes=size))
    settle(node.state, [path])
    return path


def _measure_reads(
    result: RowResult, ours: OverObjects, other: Vdiskfs, *, plan: Plan, progress: Progress
) -> None:
    """Whole images, each by a node that knew nothing of it: the first time, and again."""
    is_first, size = result.row.name == "object-first-read", plan.image_bytes
    amount = Amount(span_bytes=size)
    path = _filled(ours, size)
    if not is_first:
        other.start()
        _filled(other, size)
    for round_no in range(plan.rounds):
        progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
        ours.forget()
        if is_first:
            for name in in_turn(round_no, OURS, CLIENT):
                if name == CLIENT:
                    result.samples.setdefault(name, []).append(_read_by_client(ours))
                else:
                    ours.mount()
                    result.samples.setdefault(name, []).append(
                        run_job(READ, path, amount=amount).megabytes_per_s
                    )
            continue
        ours.mount()
        run_job(READ, path, amount=amount)
        run_job(READ, other.image_path(IMAGE), amount=amount)
        fetched = ours.status()["store_fetched_bytes"]
        for name, image in in_turn(round_no, (OURS, path), (DIRECTORY, other.image_path(IMAGE))):
            result.samples.setdefault(name, []).append(run_job(READ, image, amount=amount).megabytes_per_s)
        again = ours.status()["store_fetched_bytes"] - fetched
        result.notes.append(f"{again} bytes fetched by the second read")


def _read_by_client(ours: OverObjects) -> float:
    """All of the image's objects through the library, 1 MiB a request, as many at once as the node makes; MB/s."""
    store = connect(resolve_pool(ours.url))
    keys = []
    pool = ours.look()
    for vdisk in pool.vdisks():
        for group in pool.groups(vdisk):
            prefix = pool.group(vdisk, group).prefix
            keys += [(prefix + name, size) for name, size in pool.store.list(prefix).objects.items()]
    pool.close()
    wanted = [(key, at, min(MIB, size - at)) for key, size in keys for at in range(0, size, MIB)]
    begun = time.monotonic()
    with ThreadPoolExecutor(CALLS_MAX) as threads:
        done = sum(len(data) for data in threads.map(lambda part: store.get_range(*part), wanted))
    return done / (time.monotonic() - begun) / 1e6


def _measure_flushes(
    result: RowResult, ours: OverObjects, other: Vdiskfs, *, plan: Plan, progress: Progress
) -> None:
    """4 KiB written at random, each with fdatasync, one after the other."""
    size = min(plan.image_bytes, FLUSH_IMAGE_BYTES)
    other.start()
    paths = {OURS: _filled(ours, size), DIRECTORY: _filled(other, size)}
    job, amount = LOCAL_WRITES["qd1"], Amount(span_bytes=size, seconds=plan.seconds)
    lags = []
    for round_no in range(plan.rounds):
        progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
        for name in in_turn(round_no, OURS, DIRECTORY):
            figures = run_job(job, paths[name], amount=amount, seed=round_no + 1)
            result.samples.setdefault(name, []).append(figures.iops)
            if name == OURS:
                lags.append(ours.status()["lag_bytes"] / MIB)
    result.notes.append(f"the store lacked {', '.join(f'{lag:.1f}' for lag in lags)} MiB then")


def _count_objects(result: RowResult, ours: OverObjects, *, plan: Plan, progress: Progress) -> None:
    """Many flushes of 4 KiB, then rest, as an idle guest's vdisk comes to it; objects over what they hold."""
    ours.create_image(IMAGE, FLUSH_IMAGE_BYTES)
    job, path = LOCAL_WRITES["qd1"], ours.image_path(IMAGE)
    part = Amount(
        span_bytes=FLUSH_IMAGE_BYTES,
        operations=plan.image_bytes // FLUSHED_SHARE // BLOCK_BYTES // FLUSH_RUNS,
    )
    runs = []
    for number in range(FLUSH_RUNS):
        progress(f"{result.row.name}: flushing, {number + 1} of {FLUSH_RUNS}")
        runs.append(run_job(job, path, amount=part, seed=number + 1))
    flushes, seconds = sum(run.operations for run in runs), sum(run.seconds for run in runs)
    merged = ours.status()["store_merged_objects"]
    ours.unmount()
    ours.mount()  # what the daemon before has not merged, the next one does when the vdisk is opened
    run_job(Job(rw="randread", block_bytes=BLOCK_BYTES, depth=1), path, amount=Amount(span_bytes=MIB))
    ours.unmount()
    pool = ours.look()
    count = held = 0
    for vdisk in pool.vdisks():
        for group in pool.groups(vdisk):
            count += len(pool.store.list(pool.group(vdisk, group).prefix).objects)
            held += pool.group_bytes(vdisk, group)
    pool.close()
    result.samples[OURS] = [count * (1 << 30) / held]
    result.notes.append(
        f"{flushes} flushes, {flushes / seconds:.0f} a second; {count} objects hold {held / MIB:.0f} MiB; "
        f"{merged} merged while it was written"
    )
