"""Rows about several nodes: each a mount with processes of its own, all on this machine and on one pool.

So their links are the loopback's, and they share its cores: what one spends another lacks. Everything that is compared
is measured in turn, round by round, in one run.
"""

import dataclasses
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from tools.bench_contenders import Vdiskfs, stop_contender
from tools.bench_fio import Amount, Job, run_job
from tools.bench_machine import settle
from tools.bench_processes import cpu_seconds
from tools.bench_report import RowResult
from tools.bench_rows import (
    FORWARDED,
    FORWARDED_READ_16,
    FORWARDED_WRITES,
    LOCAL,
    LOCAL_WRITES,
    MIB,
    OURS,
    OWNER,
    RANDOM_READ_16,
    SEQUENTIAL_WRITE,
    Plan,
)

IMAGE = "disk"
UNSHARED = "unshared"
IMAGE_BYTES_MAX = 256 * MIB

Progress = Callable[[str], None]
T = TypeVar("T")


class Nodes:
    """The owner of an image that is wholly written, and the other nodes; used with ``with``.

    Args:
        owner: not started yet; whoever made it stops it.
        image_bytes: how large; 0: no image.
    """

    def __init__(self, owner: Vdiskfs, *, image_bytes: int) -> None:
        self.owner = owner
        self._image_bytes = image_bytes
        self._cleanup = ExitStack()
        self._count = 0

    def __enter__(self) -> "Nodes":
        self.owner.start()
        if self._image_bytes:
            self.owner.create_image(IMAGE, self._image_bytes)
            run_job(SEQUENTIAL_WRITE, self.image(self.owner), amount=Amount(span_bytes=self._image_bytes))
            settle(self.owner.pool, [self.image(self.owner)])
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def peer(self) -> Vdiskfs:
        """One more node, mounted."""
        self._count += 1
        name = f"peer-{self._count}"
        peer = Vdiskfs(self.owner.pool.parent / name, pool=self.owner.pool, node=name)
        self._cleanup.callback(stop_contender, peer)
        peer.join()
        return peer

    @staticmethod
    def image(node: Vdiskfs) -> Path:
        return node.image_path(IMAGE)


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    """A descriptor of the file."""
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def daemon_pid(node: Vdiskfs) -> int:
    """The node's daemon, which serves all its images."""
    pid = node.daemon_pid(IMAGE)
    assert pid is not None
    return pid


def _daemon_cpu_s(node: Vdiskfs) -> float:
    return cpu_seconds(daemon_pid(node))


def measure_peer_reads(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """The same reads on a peer and on the owner, which has the image open for writing, too."""
    plan = dataclasses.replace(plan, image_bytes=min(plan.image_bytes, IMAGE_BYTES_MAX))
    amount = Amount(span_bytes=plan.image_bytes, seconds=plan.seconds)
    spent_s = asked = operations = 0.0
    with Nodes(ours, image_bytes=plan.image_bytes) as nodes:
        peer = nodes.peer()
        with opened(nodes.image(ours), os.O_RDWR | os.O_DIRECT):
            for round_no in range(plan.rounds):
                progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
                for name, node in in_turn(round_no, (OURS, peer), (OWNER, ours)):
                    _read_whole(nodes.image(node), plan)
                    before_s, before = _daemon_cpu_s(ours), _requests_to_owners(peer)
                    figures = run_job(RANDOM_READ_16, nodes.image(node), amount=amount, seed=round_no + 1)
                    result.samples.setdefault(name, []).append(figures.iops)
                    if node is peer:
                        spent_s += _daemon_cpu_s(ours) - before_s
                        asked += _requests_to_owners(peer) - before
                        operations += figures.operations
    result.notes.append(
        f"for {operations:.0f} reads of the peer the owner got {asked:.0f} requests, and its daemon spent "
        f"{spent_s:.2f} s of CPU: on its session, and on being asked for this"
    )


def measure_forwarded_reads(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """A peer's reads of its own version, against those it has to ask the owner for.

    There is no switch for that: a file that is open for writing where the owner has a writer too reads what the owner has.
    """
    plan = dataclasses.replace(plan, image_bytes=min(plan.image_bytes, IMAGE_BYTES_MAX))
    amount = Amount(span_bytes=plan.image_bytes, seconds=plan.seconds)
    asked = dict.fromkeys((OURS, FORWARDED), 0)
    with Nodes(ours, image_bytes=plan.image_bytes) as nodes:
        peer = nodes.peer()
        with opened(nodes.image(ours), os.O_RDWR | os.O_DIRECT):
            for round_no in range(plan.rounds):
                progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
                for name, job in in_turn(round_no, (OURS, RANDOM_READ_16), (FORWARDED, FORWARDED_READ_16)):
                    _read_whole(nodes.image(peer), plan)
                    before = _requests_to_owners(peer)
                    figures = run_job(job, nodes.image(peer), amount=amount, seed=round_no + 1)
                    result.samples.setdefault(name, []).append(figures.iops)
                    asked[name] += _requests_to_owners(peer) - before
    result.notes.append(
        f"{result.median(FORWARDED):.0f} IOPS forwarded; requests to the owner: {asked[OURS]} for local reads, "
        f"{asked[FORWARDED]} for forwarded ones"
    )


def measure_forwarded_writes(result: RowResult, ours: Vdiskfs, *, plan: Plan, progress: Progress) -> None:
    """A peer's writes, which the owner makes durable, against the owner's own write + fdatasync of an image like it.

    An image of its own, which no other node follows: else each of the owner's own flushes would wait for the peer.
    """
    depth = result.row.name.rpartition("-")[2]
    plan = dataclasses.replace(plan, image_bytes=min(plan.image_bytes, IMAGE_BYTES_MAX))
    amount = Amount(span_bytes=plan.image_bytes, seconds=plan.seconds)
    spent_us: dict[str, list[float]] = {"local": [], "owner": [], "peer": []}
    with Nodes(ours, image_bytes=plan.image_bytes) as nodes:
        ours.create_image(UNSHARED, plan.image_bytes)
        run_job(SEQUENTIAL_WRITE, ours.image_path(UNSHARED), amount=Amount(span_bytes=plan.image_bytes))
        peer = nodes.peer()
        sides = (
            (OURS, nodes.image(peer), FORWARDED_WRITES[depth]),
            (LOCAL, ours.image_path(UNSHARED), LOCAL_WRITES[depth]),
        )
        with opened(nodes.image(ours), os.O_RDWR | os.O_DIRECT):
            for round_no in range(plan.rounds):
                progress(f"{result.row.name}: round {round_no + 1} of {plan.rounds}")
                for name, path, job in in_turn(round_no, *sides):
                    before_s = _daemon_cpu_s(ours), _daemon_cpu_s(peer)
                    figures = run_job(job, path, amount=amount, seed=round_no + 1)
                    result.samples.setdefault(name, []).append(figures.iops)
                    by_owner = 1e6 * (_daemon_cpu_s(ours) - before_s[0]) / figures.operations
                    spent_us[OWNER if name == OURS else LOCAL].append(by_owner)
                    if name == OURS:
                        by_peer = 1e6 * (_daemon_cpu_s(peer) - before_s[1]) / figures.operations
                        spent_us["peer"].append(by_peer)
    medians = {name: statistics.median(values) for name, values in spent_us.items()}
    result.notes.append(
        f"{result.median(LOCAL):.0f} IOPS local; the daemons' CPU for one: {medians['owner']:.0f} us at the owner and "
        f"{medians['peer']:.0f} us at the peer, {medians['local']:.0f} us for a local one"
    )


def in_turn(round_no: int, *sides: T) -> tuple[T, ...]:
    """Each round begins with the next one."""
    first = round_no % len(sides)
    return sides[first:] + sides[:first]


def _read_whole(path: Path, plan: Plan) -> None:
    """Before each reading sample, as ``tools.bench_throughput`` does: what can be cached is, whoever read before."""
    run_job(Job(rw="read", block_bytes=MIB, depth=4), path, amount=Amount(span_bytes=plan.image_bytes))


def _requests_to_owners(node: Vdiskfs) -> int:
    return int(node.status()["requests_to_owners"])
