"""Rows about ownership: an idle vdisk handed over, one taken over from a node that died, a node's start beside many."""

import os
import time

from metadata.boot_clock import boot_time_ns
from metadata.catalog import session_key
from metadata.catalog_sqlite import lease_end_ns
from metadata.units import BLOCK_BYTES
from replication.pool_catalog import CATALOG_NAME
from tools.bench_contenders import Vdiskfs
from tools.bench_footprint import make_vdisks
from tools.bench_machine import drop_caches, settle
from tools.bench_nodes import Nodes, Progress, daemon_pid, opened
from tools.bench_processes import resident_bytes
from tools.bench_report import RowResult
from tools.bench_rows import MIB, OURS, Measure, Plan

MOVED_IMAGE_BYTES = 64 * MIB
MOVES_A_ROUND = 10


def measure_hand_over(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """Opened for writing on one node after the other; nobody has it open meanwhile."""
    with Nodes(ours, image_bytes=MOVED_IMAGE_BYTES) as nodes:
        sides = (nodes.peer(), ours)
        times = result.samples[OURS] = []
        for number in range(plan.rounds * MOVES_A_ROUND):
            progress(f"{result.row.name}: {number + 1} of {plan.rounds * MOVES_A_ROUND}")
            path = nodes.image(sides[number % 2])
            begun = time.monotonic()
            with opened(path, os.O_RDWR) as descriptor:
                times.append(1000 * (time.monotonic() - begun))
                os.pwrite(descriptor, bytes(BLOCK_BYTES), number * BLOCK_BYTES)
    result.notes.append(f"longest {max(times):.0f} ms")


def measure_takeover(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """Owners killed with their machines, as it were; another node waits to open for writing. From the lease's end."""
    times = result.samples[OURS] = []
    with Nodes(ours, image_bytes=MOVED_IMAGE_BYTES) as nodes:
        heir = nodes.peer()
        for round_no in range(plan.rounds):
            progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
            lost = nodes.peer()
            with nodes.image(lost).open("r+b", buffering=0) as file:
                file.write(os.urandom(BLOCK_BYTES))
            name = lost.status()["node"]
            lost.kill()
            ends_ns = lease_end_ns(ours.pool / CATALOG_NAME, session_key(name))
            with opened(nodes.image(heir), os.O_RDWR):
                times.append((boot_time_ns() - ends_ns) / 1e6)
    result.notes.append(f"in ms: {', '.join(f'{each:.0f}' for each in times)}")


def measure_start(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """A node mounts a pool with many vdisks beside their owner, with a state directory of its own, and uses none."""
    seconds, resident = [], []
    with Nodes(ours, image_bytes=0) as nodes:
        progress(f"{result.row.name}: making {plan.mount_vdisks} vdisks")
        make_vdisks(ours.mountpoint, count=plan.mount_vdisks, total_bytes=plan.mount_bytes)
        peer = nodes.peer()
        for round_no in range(plan.rounds):
            peer.unmount()
            settle(ours.pool)
            drop_caches()
            progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
            begun = time.monotonic()
            peer.mount()
            seconds.append(time.monotonic() - begun)
            resident.append(resident_bytes(daemon_pid(peer))["VmRSS"] / MIB)
    is_time = result.row.measure is Measure.SECONDS
    result.samples[OURS] = seconds if is_time else resident
    pairs = zip(seconds, resident, strict=True)
    result.notes.append(", ".join(f"{each:.2f} s and {mib:.0f} MiB" for each, mib in pairs))
