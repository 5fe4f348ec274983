"""Rows about what other nodes add to a flush: how late it is seen elsewhere, what each subscriber costs.

*Visible* is counted from fsync's call on the owner to the beginning of the first open on the peer that shows what was
written, by one clock. The peer is looked at by a process of its own, which opens, reads a block and closes, again and
again; so up to one such look is counted too. What it is compared with is done in between, in the same seconds: a byte
there and back over a loopback connection between two processes, and the pool's own fdatasync of an appended block.
"""

import mmap
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from metadata.errors import Unavailable
from metadata.units import BLOCK_BYTES
from tools.bench_contenders import Vdiskfs
from tools.bench_nodes import Nodes, Progress, daemon_pid, in_turn, opened
from tools.bench_processes import resident_bytes, wait_until
from tools.bench_report import RowResult
from tools.bench_rows import MIB, OURS, Plan

FLUSH_IMAGE_BYTES = 64 * MIB
BLOCKS = FLUSH_IMAGE_BYTES // BLOCK_BYTES
SUBSCRIBERS = (0, 1, 4, 16)
SEEN_S_MAX = 10.0
_OBSERVER = """
import mmap, os, sys, time
path, shared = sys.argv[1], mmap.mmap(int(sys.argv[2]), 4096)
block = mmap.mmap(-1, 4096)
seen = memoryview(shared).cast("Q")
while not seen[0]:
    begun = time.monotonic_ns()
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    os.preadv(descriptor, [block], 0)
    os.close(descriptor)
    number = int.from_bytes(block[:8], "little")
    if number != seen[1]:
        seen[2], seen[3] = begun, time.monotonic_ns()
        seen[1] = number
    seen[4] += 1
"""
_ECHO = """
import socket, sys
end = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
while byte := end.recv(1):
    end.send(byte)
"""


def measure_visibility(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """From an fsync on the owner to the first open on a subscribed peer that shows it."""
    quantile = 0.5 if result.row.name.endswith("p50") else 0.99
    samples: dict[str, list[float]] = {
        "visible": [],
        "fsync": [],
        "looked": [],
        "round trip": [],
        "fdatasync": [],
    }
    with Nodes(ours, image_bytes=FLUSH_IMAGE_BYTES) as nodes:
        peer = nodes.peer()
        for round_no in range(plan.rounds):
            progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
            found = _visibility_round(nodes, peer, plan.flushes)
            figures = {name: _at(values, quantile) for name, values in found.items()}
            result.samples.setdefault(OURS, []).append(
                figures["visible"] / (figures["round trip"] + figures["fdatasync"])
            )
            for name, figure in figures.items():
                samples[name].append(figure)
    medians = ", ".join(f"{name} {statistics.median(values):.0f}" for name, values in samples.items())
    result.notes.append(f"us: {medians} (looked: to the end of that look)")


def _visibility_round(nodes: Nodes, peer: Vdiskfs, count: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {
        "visible": [],
        "fsync": [],
        "looked": [],
        "round trip": [],
        "fdatasync": [],
    }
    with (
        opened(nodes.image(nodes.owner), os.O_RDWR | os.O_DIRECT) as descriptor,
        _observed(nodes.image(peer)) as seen,
        _round_trip() as go_round,
        _pool_sync(nodes.owner.pool) as sync,
    ):
        block = mmap.mmap(-1, BLOCK_BYTES)
        first = time.monotonic_ns()  # numbers that no round before had
        for number in range(first, first + count):
            found["round trip"].append(go_round())
            found["fdatasync"].append(sync())
            block[:8] = number.to_bytes(8, "little")
            os.pwritev(descriptor, [block], 0)
            begun = time.monotonic_ns()
            os.fsync(descriptor)
            found["fsync"].append((time.monotonic_ns() - begun) / 1000)
            if not wait_until(lambda: seen[1] == number, allowed_s=SEEN_S_MAX):  # noqa: B023
                raise Unavailable(f"the peer does not see what was flushed path={nodes.image(peer)}")
            found["visible"].append((seen[2] - begun) / 1000)
            found["looked"].append((seen[3] - begun) / 1000)
    return found


def measure_flushes(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """4 KiB and fsync on the owner, of images that so many nodes follow, all of which are there all the time."""
    times: dict[int, list[float]] = {count: [] for count in SUBSCRIBERS}
    with Nodes(ours, image_bytes=0) as nodes, ExitStack() as files:
        peers = []
        for number in range(SUBSCRIBERS[-1]):
            progress(f"{result.row.name}: mounting node {number + 2} of {SUBSCRIBERS[-1] + 1}")
            peers.append(nodes.peer())
        for count in SUBSCRIBERS:
            ours.create_image(f"followed-{count}", FLUSH_IMAGE_BYTES)
            for peer in peers[:count]:
                files.enter_context(opened(peer.image_path(f"followed-{count}"), os.O_RDONLY))
        for round_no in range(plan.rounds):
            progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
            for count in in_turn(round_no, *SUBSCRIBERS):
                times[count].append(_flush_us(ours.image_path(f"followed-{count}"), plan))
            result.samples.setdefault(OURS, []).append(times[SUBSCRIBERS[-1]][-1] / times[1][-1])
        resident = [resident_bytes(daemon_pid(peer))["RssAnon"] / MIB for peer in peers]
    shown = ", ".join(f"{count} subscribers {statistics.median(each):.0f}" for count, each in times.items())
    result.notes.append(f"us: {shown}; a node's daemon has {statistics.median(resident):.0f} MiB of its own")


def measure_unfollowed(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """4 KiB and fsync, in turn with another node mounted, which does not look at the image, and with none."""
    alone, beside = [], []
    with Nodes(ours, image_bytes=FLUSH_IMAGE_BYTES) as nodes:
        peer, path = nodes.peer(), nodes.image(ours)
        for round_no in range(plan.rounds):
            progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
            beside.append(_flush_us(path, plan))
            peer.unmount()
            alone.append(_flush_us(path, plan))
            peer.mount()
            result.samples.setdefault(OURS, []).append(beside[-1] / alone[-1])
    result.notes.append(
        f"us: beside another {statistics.median(beside):.0f}, alone {statistics.median(alone):.0f}"
    )


def _flush_us(path: Path, plan: Plan) -> float:
    """The median time of an fsync behind a write."""
    block, times = mmap.mmap(-1, BLOCK_BYTES), []
    with opened(path, os.O_RDWR | os.O_DIRECT) as descriptor:
        for number in range(plan.flushes):
            block[:8] = number.to_bytes(8, "little")
            os.pwritev(descriptor, [block], number % BLOCKS * BLOCK_BYTES)
            begun = time.monotonic_ns()
            os.fsync(descriptor)
            times.append((time.monotonic_ns() - begun) / 1000)
    return statistics.median(times)


def _at(values: list[float], quantile: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * quantile))]


@contextmanager
def _observed(path: Path) -> Iterator[memoryview]:
    """What a process sees that opens the file again and again: [end now, number, look's
    beginning, its end, looks], times in ns."""
    shared_fd = os.memfd_create("observed")
    os.ftruncate(shared_fd, BLOCK_BYTES)
    with mmap.mmap(shared_fd, BLOCK_BYTES) as shared, memoryview(shared) as raw, raw.cast("Q") as seen:
        command = [sys.executable, "-c", _OBSERVER, str(path), str(shared_fd)]
        observer = subprocess.Popen(command, pass_fds=[shared_fd], start_new_session=True)
        try:
            if not wait_until(lambda: bool(seen[4]), allowed_s=SEEN_S_MAX):
                raise Unavailable(f"cannot look at the peer path={path}")
            yield seen
        finally:
            seen[0] = 1
            observer.wait()
            os.close(shared_fd)


@contextmanager
def _round_trip() -> Iterator[Callable[[], float]]:
    """A function that sends a byte to another process and gets it back, and tells how many us that took."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        command = [sys.executable, "-c", _ECHO, str(server.getsockname()[1])]
        echo = subprocess.Popen(command, start_new_session=True)
        try:
            end, _ = server.accept()
            with end:
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

                def go_round() -> float:
                    begun = time.monotonic_ns()
                    end.send(b"x")
                    end.recv(1)
                    return (time.monotonic_ns() - begun) / 1000

                yield go_round
        finally:
            echo.wait()


@contextmanager
def _pool_sync(pool: Path) -> Iterator[Callable[[], float]]:
    """A function that appends a block to a file beside the pool, as a log does, and tells how many us the fdatasync took."""
    path = pool.parent / "synced"
    with path.open("w+b", buffering=0) as file:
        file.write(bytes(16 * MIB))
        os.fsync(file.fileno())
        file.seek(0)
        block = os.urandom(2 * BLOCK_BYTES)

        def sync() -> float:
            file.write(block)
            begun = time.monotonic_ns()
            os.fdatasync(file.fileno())
            return (time.monotonic_ns() - begun) / 1000

        yield sync
    path.unlink()
