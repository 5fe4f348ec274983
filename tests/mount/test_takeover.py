"""Owners that die, stop and wake up, hand over, share: what guests on real mounts see of it."""

import mmap
import os
import pathlib
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from replication.cluster import SESSION_S
from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool

BLOCK = 4096


@pytest.fixture
def both(nodes: MountedNodes) -> tuple[MountedPool, MountedPool]:
    return nodes.node("a"), nodes.node("b")


def block(value: int) -> bytes:
    return (value + 1).to_bytes(8, "little") * (BLOCK // 8)


class Disk:
    """A file open for writing past the page cache."""

    def __init__(self, path: pathlib.Path) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
        self._room = mmap.mmap(-1, BLOCK)

    def put(self, at: int, value: int) -> None:
        self._room[:] = block(value)
        assert os.pwritev(self.fd, [self._room], at * BLOCK) == BLOCK

    def get(self, at: int) -> bytes:
        assert os.preadv(self.fd, [self._room], at * BLOCK) == BLOCK
        return self._room[:]

    def sync(self) -> None:
        os.fsync(self.fd)

    def close(self) -> None:
        os.close(self.fd)
        self._room.close()


def owned(node: MountedPool) -> dict[str, int]:
    cluster = node.json("status", node.mountpoint)["cluster"]
    return {one["node"]: one["vdisks_owned"] for one in cluster["nodes"]}


def in_background(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_a_closed_vdisk_is_handed_over_to_whoever_opens_it_for_writing(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = both
    took_s = []
    for number in range(10):
        for node in both:
            began = time.monotonic()
            disk = Disk(node.mountpoint / "disk")
            took_s.append(time.monotonic() - began)
            if number:
                assert disk.get(0)[:8] != bytes(8)
            disk.put(0, number)
            disk.sync()
            assert owned(a) == {"a": int(node is a), "b": int(node is b)}
            disk.close()
    print(f"hand-over at open, ms: {sorted(round(1000 * one, 1) for one in took_s)}")


def test_two_nodes_write_one_vdisk_and_each_reads_the_other_s_writes_at_once(
    both: tuple[MountedPool, MountedPool],
) -> None:
    both[0].create("disk", 8 * BLOCK)  # a kernel that has a file open for writing believes its own size of it
    one, other = (Disk(node.mountpoint / "disk") for node in both)
    for number in range(200):
        writer, reader = (one, other) if number % 2 else (other, one)
        writer.put(number % 5, number)
        assert reader.get(number % 5) == block(number)
    one.close()
    for number in range(20):
        other.put(number % 5, number)
        other.sync()
        assert (both[0].mountpoint / "disk").read_bytes()[(number % 5) * BLOCK :][:BLOCK] == block(number)
    wait_until(lambda: owned(both[0])["b"] == 1, "it was handed over to the one that writes")
    other.close()


def test_a_dead_node_s_vdisk_is_taken_over_with_all_that_was_flushed(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = both
    disk = Disk(a.mountpoint / "disk")
    for number in range(50):
        disk.put(number, number)
        disk.sync()
    a.kill()
    began = time.monotonic()
    taken = Disk(b.mountpoint / "disk")
    assert time.monotonic() - began < SESSION_S + 5
    for number in range(50):
        assert taken.get(number) == block(number)
    taken.put(3, 777)
    taken.sync()
    taken.close()
    with suppress(OSError):  # its mount is dead
        disk.close()
    a.tear_down()
    a.mount()
    assert (a.mountpoint / "disk").read_bytes()[3 * BLOCK :][:BLOCK] == block(777)
    assert owned(a) == {"a": 0, "b": 1}
    assert b.json("check", b.mountpoint)["findings"] == []


def test_an_owner_that_stopped_and_wakes_up_acknowledges_nothing_any_more(
    nodes: MountedNodes, both: tuple[MountedPool, MountedPool]
) -> None:
    a, b = both
    a.expects_errors = True  # it says that it was deposed
    disk = Disk(a.mountpoint / "disk")
    for number in range(8):
        disk.put(number, number)
    disk.sync()
    disk.put(1, 101)  # acknowledged, never flushed: its node is lost
    nodes.pause(a)
    outcomes: list[str] = []

    def write_late() -> None:
        try:
            disk.put(2, 102)
            disk.sync()
            outcomes.append("acknowledged")
        except OSError as problem:
            outcomes.append(os.strerror(problem.errno or 0))

    late = in_background(write_late)
    taken = Disk(b.mountpoint / "disk")
    assert taken.get(2) == block(2)
    assert taken.get(1) in (block(1), block(101))
    kept = taken.get(1)
    taken.put(5, 205)
    taken.sync()
    nodes.wake(a)
    late.join(60)
    assert outcomes == [os.strerror(5)]
    with pytest.raises(OSError):
        disk.sync()
    disk.close()
    for node in both:
        found = (node.mountpoint / "disk").read_bytes()
        assert found[BLOCK : 2 * BLOCK] == kept
        assert found[2 * BLOCK : 3 * BLOCK] == block(2)
        assert found[5 * BLOCK : 6 * BLOCK] == block(205)
    taken.close()
    assert b.json("check", b.mountpoint)["findings"] == []


def test_a_daemon_that_dies_inside_its_session_keeps_its_vdisks_and_what_was_acknowledged(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = both
    disk = Disk(a.mountpoint / "disk")
    for number in range(40):
        disk.put(number % 8, number)
        if number % 10 == 5:
            a.kill_daemon()
    for at in range(8):
        assert disk.get(at) == block(32 + at)
    disk.sync()
    assert (b.mountpoint / "disk").read_bytes()[:BLOCK] == block(32)
    assert owned(b) == {"a": 1, "b": 0}
    disk.close()


def test_all_nodes_die_and_come_back_and_what_was_flushed_is_there(
    nodes: MountedNodes, both: tuple[MountedPool, MountedPool]
) -> None:
    disks = [Disk(node.mountpoint / f"disk-{node.node}") for node in both]
    for number in range(20):
        for disk in disks:
            disk.put(number, number)
            disk.sync()
    for disk in disks:
        disk.close()
    for node in both:
        node.kill()
    for node in both:
        node.tear_down()
        node.mount()
    for node in both:
        for other in both:
            content = (node.mountpoint / f"disk-{other.node}").read_bytes()
            assert content == b"".join(map(block, range(20)))
        node.umount()
    for node in both:
        node.mount()
        assert (node.mountpoint / "disk-a").read_bytes() == b"".join(map(block, range(20)))
