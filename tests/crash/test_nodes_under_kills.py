"""Two nodes whose daemons and keepers die at random moments, and guests on both that must not notice.

``make survive ROUNDS=200`` goes on for longer.
"""

import contextlib
import functools
import mmap
import os
import pathlib
import random
import signal
import threading
from collections.abc import Callable, Iterator

from tests.crash.assault import Assault
from tests.crash.test_survival import JOBS, verify_again_and_again
from tests.mounted_nodes import MountedNodes
from tests.mounted_pool import MountedPool

SHORT_ROUNDS = 4
BLOCK = 4096
BLOCKS = 64


@contextlib.contextmanager
def under_attack(nodes: list[MountedPool], *, seed: int, count: int) -> Iterator[threading.Event]:
    """Inside, the daemons of all these nodes die again and again; the event: they have, ``count`` times each."""
    assaults = [Assault(node, seed=seed + number, count=count) for number, node in enumerate(nodes)]
    enough, over = threading.Event(), threading.Event()

    def watch() -> None:
        for assault in assaults:
            while not over.is_set() and not assault.finished.wait(0.1):
                pass
        enough.set()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield enough
    finally:
        over.set()
        watcher.join()
        with contextlib.ExitStack() as stack:
            for assault in assaults:
                stack.callback(assault.stop)
    for node, assault in zip(nodes, assaults, strict=True):
        print(node.node, assault.describe())


def side_by_side(jobs: list[Callable[[], None]]) -> list[BaseException]:
    """Run all at once and return what went wrong."""
    failures: list[BaseException] = []

    def run(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as problem:
            failures.append(problem)

    threads = [threading.Thread(target=run, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def read_directly(path: pathlib.Path, length: int) -> bytes:
    """What a file opened anew holds, past the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, length) as room:
            return bytes(room[: os.preadv(fd, [room], 0)])
    finally:
        os.close(fd)


def test_guests_of_an_owner_and_of_its_peer_do_not_notice_that_both_daemons_die(
    nodes: MountedNodes, seed: int, rounds: int | None
) -> None:
    owner, peer = nodes.node("a"), nodes.node("b")
    for name in ("local", "shared"):
        for kind in JOBS:
            owner.create(f"{name}-{kind}", "16M")
    golden = random.Random(seed).randbytes(1 << 20)
    owner.create("golden", "1M").write_bytes(golden)
    with contextlib.ExitStack() as kept_open:
        keeps_it = [  # so that the peer's guests forward what they write
            os.open(owner.mountpoint / f"shared-{kind}", os.O_RDWR) for kind in JOBS
        ]
        for descriptor in keeps_it:
            kept_open.callback(os.close, descriptor)
        with under_attack([owner, peer], seed=seed, count=rounds or SHORT_ROUNDS) as enough:

            def read_golden() -> None:
                while not enough.is_set():
                    assert read_directly(peer.mountpoint / "golden", 1 << 20) == golden

            def verify(node: MountedPool, name: str, kind: str) -> None:
                path = node.mountpoint / f"{name}-{kind}"
                print(path.name, verify_again_and_again(path, JOBS[kind], enough), "rounds of fio")

            failures = side_by_side(
                [
                    read_golden,
                    *(functools.partial(verify, owner, "local", kind) for kind in JOBS),
                    *(functools.partial(verify, peer, "shared", kind) for kind in JOBS),
                ]
            )
        for kind, descriptor in zip(JOBS, keeps_it, strict=True):
            os.pwrite(descriptor, golden[:BLOCK], 0)
            os.fsync(descriptor)
            assert read_directly(peer.mountpoint / f"shared-{kind}", BLOCK) == golden[:BLOCK]
    assert failures == []
    for node in (owner, peer):
        node.run("check", node.mountpoint)


def open_to_write(path: pathlib.Path) -> int:
    """Open a file past the page cache."""
    return os.open(path, os.O_RDWR | os.O_DIRECT)


class Visitor:
    """Writes a vdisk through whichever node, a visit at a time, and knows what must be there after each."""

    def __init__(self, nodes: list[MountedPool], name: str, chance: random.Random) -> None:
        self.nodes, self.name, self.chance = nodes, name, chance
        self.content = [0] * BLOCKS
        self.visits = 0

    def visit(self) -> None:
        """Open it for writing somewhere, write some blocks, sync, close."""
        fd = open_to_write(self.chance.choice(self.nodes).mountpoint / self.name)
        try:
            with mmap.mmap(-1, BLOCK) as room:
                for block_no in self.chance.sample(range(BLOCKS), self.chance.randrange(1, 6)):
                    self.content[block_no] = value = self.chance.randrange(1, 1 << 62)
                    room[:] = value.to_bytes(8, "little") * (BLOCK // 8)
                    assert os.pwritev(fd, [room], block_no * BLOCK) == BLOCK
            if self.chance.random() < 0.8:
                os.fsync(fd)
        finally:
            os.close(fd)  # flushes what was not synced: the next visit may be anywhere
        self.visits += 1

    def look(self, node: MountedPool) -> None:
        """A reader there finds what was written everywhere."""
        found = read_directly(node.mountpoint / self.name, BLOCKS * BLOCK)
        values = [int.from_bytes(found[at : at + 8], "little") for at in range(0, len(found), BLOCK)]
        assert values == self.content


def test_a_vdisk_moves_between_nodes_whose_daemons_die(
    nodes: MountedNodes, seed: int, rounds: int | None
) -> None:
    both, chance = [nodes.node("a"), nodes.node("b")], random.Random(seed)
    both[0].create("wanderer", f"{BLOCKS * BLOCK}")
    visitor = Visitor(both, "wanderer", chance)
    with under_attack(both, seed=seed, count=rounds or SHORT_ROUNDS) as enough:
        while not enough.is_set():
            visitor.visit()
            visitor.look(chance.choice(both))
    print(visitor.visits, "visits")
    for node in both:
        visitor.look(node)
        node.run("check", node.mountpoint)


def test_what_was_written_just_after_a_hand_over_outlives_the_daemon(nodes: MountedNodes, seed: int) -> None:
    both, chance = [nodes.node("a"), nodes.node("b")], random.Random(seed)
    both[0].create("wanderer", f"{BLOCKS * BLOCK}")
    for turn in range(4):
        giver, taker = both[turn % 2], both[(turn + 1) % 2]
        for node in (giver, taker):
            pid = node.daemon_pid()
            fd = open_to_write(node.mountpoint / "wanderer")
            data = {block_no: chance.randbytes(BLOCK) for block_no in chance.sample(range(BLOCKS), 3)}
            with mmap.mmap(-1, BLOCK) as room:
                for block_no, block in data.items():
                    room[:] = block
                    assert os.pwritev(fd, [room], block_no * BLOCK) == BLOCK
                if node is taker:
                    os.kill(pid, signal.SIGKILL)
                for block_no, block in data.items():
                    assert os.preadv(fd, [room], block_no * BLOCK) == BLOCK
                    assert room[:] == block, (turn, block_no)
            os.close(fd)


def test_a_file_that_is_read_stays_what_it_was_when_its_vdisk_moves_and_its_daemon_dies(
    nodes: MountedNodes, seed: int
) -> None:
    here, there = nodes.node("a"), nodes.node("b")
    before, after = random.Random(seed).randbytes(BLOCK), random.Random(seed + 1).randbytes(BLOCK)
    path = here.create("moved", f"{BLOCK}")
    path.write_bytes(before)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        for _ in range(2):
            (there.mountpoint / "moved").write_bytes(after)
            os.kill(here.daemon_pid(), signal.SIGKILL)
            with mmap.mmap(-1, BLOCK) as room:
                assert os.preadv(fd, [room], 0) == BLOCK
                assert room[:] == before
            assert read_directly(path, BLOCK) == after
        there.run("check", there.mountpoint)
        assert there.json("owner", "show", there.mountpoint / "moved")["node"] == "b"
    finally:
        os.close(fd)
