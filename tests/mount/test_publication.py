"""Two mounts of one pool: what one node flushes the other reads, at each open the newest, while open always the same."""

import mmap
import os
import pathlib
import re
import subprocess

import pytest

from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool

BLOCK = 4096


@pytest.fixture
def both(nodes: MountedNodes) -> tuple[MountedPool, MountedPool]:
    return nodes.node("a"), nodes.node("b")


def block(value: int) -> bytes:
    return (value + 1).to_bytes(8, "little") * (BLOCK // 8)


def put(path: pathlib.Path, at: int, value: int) -> None:
    """Written and flushed."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(fd, block(value), at * BLOCK)
        os.fsync(fd)
    finally:
        os.close(fd)


def test_what_was_flushed_is_read_at_the_next_open_on_the_other_node(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    for number in range(100):
        put(a, number % 7, number)
        content = b.read_bytes()
        assert content[(number % 7) * BLOCK :][:BLOCK] == block(number)
        assert len(content) == min(7, number + 1) * BLOCK == b.stat().st_size
    assert both[1].json("status", both[1].mountpoint)["requests_to_owners"] == 0


def test_an_open_file_stays_as_it_was(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    put(a, 0, 1)
    with b.open("rb") as old, b.open("rb") as mapped:
        pages = mmap.mmap(mapped.fileno(), 0, access=mmap.ACCESS_READ)
        for number in range(2, 30):
            put(a, number % 3, number)
            assert b.read_bytes()[(number % 3) * BLOCK :][:BLOCK] == block(number)
            fd = os.open(f"/proc/self/fd/{old.fileno()}", os.O_RDONLY)
            try:
                assert os.pread(fd, 2 * BLOCK, 0) == os.pread(old.fileno(), 2 * BLOCK, 0) == block(1)
                assert os.fstat(fd).st_size == BLOCK
            finally:
                os.close(fd)
            assert pages[:] == block(1)
            b.parent.joinpath("other").exists()
            os.listdir(b.parent)
            list(os.scandir(b.parent))
        pages.close()
        direct = os.open(f"/proc/self/fd/{old.fileno()}", os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, BLOCK) as room:
                assert os.preadv(direct, [room], 0) == BLOCK
                assert room[:] == block(1)
        finally:
            os.close(direct)


def test_a_version_shows_the_file_and_can_be_given_attributes(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    put(a, 5, 1)
    shown, there = b.stat(), a.stat()
    for name in ("st_mode", "st_uid", "st_gid", "st_size", "st_blocks", "st_nlink"):
        assert getattr(shown, name) == getattr(there, name), name
    assert abs(shown.st_mtime - there.st_mtime) < 1  # the owner's kernel has its own idea of when
    b.chmod(0o640)
    os.setxattr(b, "user.note", b"x")
    assert os.getxattr(b, "user.note") == b"x"
    assert b.stat().st_mode & 0o777 == 0o640
    wait_until(lambda: a.stat().st_mode & 0o777 == 0o640 and os.listxattr(a) == ["user.note"], "a shows it")
    listed = subprocess.run(["ls", "-l", b.parent], capture_output=True, text=True, check=True).stdout
    assert re.search(rf" {6 * BLOCK} .* disk$", listed, re.MULTILINE), listed
    assert [entry.name for entry in os.scandir(b.parent)] == ["disk"]


def test_the_daemon_of_the_reader_may_die(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    put(a, 0, 1)
    fd = os.open(b, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, BLOCK) as room:
            for number in range(2, 5):
                both[1].kill_daemon()
                put(a, 0, number)
                assert os.preadv(fd, [room], 0) == BLOCK
                assert room[:] == block(1)
                assert b.read_bytes() == block(number)
    finally:
        os.close(fd)


def test_with_the_owner_gone_reading_goes_on(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    put(a, 0, 1)
    fd = os.open(b, os.O_RDONLY | os.O_DIRECT)
    try:
        put(a, 0, 2)
        both[0].kill()
        with mmap.mmap(-1, BLOCK) as room:
            assert os.preadv(fd, [room], 0) == BLOCK
            assert room[:] == block(1)
        assert b.read_bytes() == block(2)
    finally:
        os.close(fd)


def test_snapshots_of_the_other_node_are_read(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint for node in both)
    put(a / "disk", 0, 1)
    both[0].run("snap", "create", f"{a / 'disk'}@one")
    put(a / "disk", 0, 2)
    wait_until(lambda: (b / ".snapshots/disk/one").exists(), "b shows the snapshot")
    assert (b / ".snapshots/disk/one").read_bytes() == block(1)
    assert (b / "disk").read_bytes() == block(2)


def test_reading_goes_on_while_others_want_to_write(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    put(a, 0, 1)
    writer = os.open(a, os.O_RDWR)  # so a stays the owner
    try:
        for number in range(30):
            os.close(os.open(b, os.O_RDWR))
            assert b.read_bytes() == block(number + 1)
            os.pwrite(writer, block(number + 2), 0)
            os.fsync(writer)
    finally:
        os.close(writer)
