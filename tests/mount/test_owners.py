"""Two mounts of one pool: writing anywhere, whoever owns the vdisk, and whatever becomes of the owner."""

import errno
import functools
import mmap
import os
import pathlib
import signal
from contextlib import suppress

import pytest

from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool

B = 4096


@pytest.fixture
def both(nodes: MountedNodes) -> tuple[MountedPool, MountedPool]:
    return nodes.node("a"), nodes.node("b")


def page(value: int) -> mmap.mmap:
    """A block for O_DIRECT."""
    memory = mmap.mmap(-1, B)
    memory.write((value + 1).to_bytes(8, "little") * (B // 8))
    return memory


class Direct:
    """A file open as hypervisors open it."""

    def __init__(self, path: pathlib.Path, flags: int = os.O_RDWR) -> None:
        self.fd = os.open(path, flags | os.O_DIRECT)

    def __enter__(self) -> "Direct":
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)

    def write(self, block_no: int, value: int) -> None:
        assert os.pwrite(self.fd, page(value), block_no * B) == B

    def read(self, block_no: int) -> int:
        memory = mmap.mmap(-1, B)
        assert os.preadv(self.fd, [memory], block_no * B) == B
        return int.from_bytes(memory[:8], "little") - 1


def owner(node: MountedPool, name: str) -> str:
    found: str = node.json("owner", "show", node.mountpoint / name)["node"]
    return found


def test_ownership_goes_to_where_it_is_written(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = both
    a.run("create", a.mountpoint / "disk", "1M")
    with Direct(a.mountpoint / "disk") as file:
        file.write(0, 1)
        os.fsync(file.fd)
    assert owner(a, "disk") == "a"
    with Direct(b.mountpoint / "disk") as file:
        assert file.read(0) == 1
        file.write(1, 2)
        os.fsync(file.fd)
        wait_until(
            lambda: owner(a, "disk") == "b", "a's kernel has told of the close, which it does behind it"
        )
        assert owner(b, "disk") == "b"
    with Direct(a.mountpoint / "disk") as file:
        assert (file.read(0), file.read(1)) == (1, 2)


def test_two_guests_write_one_vdisk_and_see_each_other_at_once(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = both
    a.run("create", a.mountpoint / "disk", "1M")
    with Direct(a.mountpoint / "disk") as mine:
        mine.write(0, 0)
        with Direct(b.mountpoint / "disk") as theirs:
            for value in range(1, 40):
                theirs.write(value % 8, value)
                assert mine.read(value % 8) == value
                mine.write(8 + value % 8, 100 + value)
                assert theirs.read(8 + value % 8) == 100 + value
            os.fsync(theirs.fd)
            os.close(os.dup(theirs.fd))
            assert owner(b, "disk") == "a"
            mine.write(20, 7)
            os.close(os.dup(mine.fd))
            mine_fd, mine.fd = mine.fd, os.open("/dev/null", os.O_RDONLY)
            os.close(mine_fd)
            wait_until(lambda: owner(b, "disk") == "b", "the vdisk follows its only writer")
            assert theirs.read(20) == 7
            theirs.write(20, 8)
            assert theirs.read(20) == 8


def test_a_buffered_file_on_the_owner_sees_what_the_other_node_wrote(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = both
    a.run("create", a.mountpoint / "disk", "1M")
    fd = os.open(a.mountpoint / "disk", os.O_RDWR)
    try:
        with Direct(b.mountpoint / "disk") as theirs:
            for value in range(20):
                os.pwrite(fd, bytes([value + 1]) * B, B)  # dirty in a's page cache
                assert os.pread(theirs.fd, 0, 0) == b""
                assert theirs.read(1) == int.from_bytes(bytes([value + 1]) * 8, "little") - 1
                assert os.pread(fd, B, 0) is not None
                theirs.write(0, value)
                assert os.pread(fd, 8, 0) == (value + 1).to_bytes(8, "little")
    finally:
        os.close(fd)


def test_a_killed_node_is_taken_over_with_all_that_was_synced(
    nodes: MountedNodes, both: tuple[MountedPool, MountedPool]
) -> None:
    a, b = both
    a.run("create", a.mountpoint / "disk", "1M")
    file = Direct(a.mountpoint / "disk")
    try:
        for block_no in range(10):
            file.write(block_no, block_no)
        os.fsync(file.fd)
        for pid in a.processes():
            os.kill(pid, signal.SIGKILL)
        with Direct(b.mountpoint / "disk") as theirs:
            assert [theirs.read(block_no) for block_no in range(10)] == list(range(10))
            theirs.write(3, 33)
            os.fsync(theirs.fd)
            assert owner(b, "disk") == "b"
    finally:
        with suppress(OSError):
            os.close(file.fd)


def test_a_paused_owner_that_wakes_up_gets_errors_and_the_other_s_data_stay(
    nodes: MountedNodes, both: tuple[MountedPool, MountedPool]
) -> None:
    a, b = both
    a.run("create", a.mountpoint / "disk", "1M")
    with Direct(a.mountpoint / "disk") as file:
        file.write(0, 1)
        os.fsync(file.fd)
        file.write(1, 2)  # acknowledged, never synced
        nodes.pause(a)
        with Direct(b.mountpoint / "disk") as theirs:
            assert theirs.read(0) == 1
            theirs.write(0, 10)
            os.fsync(theirs.fd)
            nodes.wake(a)
            with pytest.raises(OSError) as told:
                os.fsync(file.fd)
            assert told.value.errno == errno.EIO
            assert theirs.read(0) == 10
    assert {line.split()[3] for line in a.stray_errors()} <= {"replication.transfers:", "replication.commit:"}
    a.expects_errors = True


def test_a_forced_take_lets_the_old_owner_s_writer_go_on(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = both
    a.run("create", a.mountpoint / "disk", "1M")
    with Direct(a.mountpoint / "disk") as file:
        file.write(0, 1)
        b.run("owner", "take", b.mountpoint / "disk", "--force")
        assert owner(a, "disk") == "b"
        file.write(1, 2)
        os.fsync(file.fd)
        assert (file.read(0), file.read(1)) == (1, 2)
        with Direct(b.mountpoint / "disk") as theirs:
            assert (theirs.read(0), theirs.read(1)) == (1, 2)


def test_whoever_opens_for_writing_finds_the_size_of_now(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    a.write_bytes(bytes(B))
    for number in range(1, 40):
        here, there = (a, b) if number % 2 else (b, a)
        with here.open("r+b", buffering=0) as file:
            file.truncate(0)
            file.truncate(number * 1000)
        with here.open("wb" if number % 3 else "ab", buffering=0) as file:
            file.write(bytes(number * 100))
        size = number * (100 if number % 3 else 1100)
        with there.open("ab", buffering=0) as file:
            assert os.fstat(file.fileno()).st_size == size
            file.write(b"end")
        assert here.read_bytes() == there.read_bytes() == bytes(size) + b"end"


def test_a_reader_from_before_goes_on_beside_a_new_writer(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    a.write_bytes(b"a" * 8 * B)
    with a.open("rb", buffering=0) as reader:
        b.open("r+b").close()
        for number in range(5):
            for writer in (b, a):
                with writer.open("r+b", buffering=0) as file:
                    os.pwrite(file.fileno(), b"%d" % number * B, number * B)
                    assert os.pread(file.fileno(), B, number * B) == b"%d" % number * B
                assert os.pread(reader.fileno(), 16 * B, 0) == b"a" * 8 * B
    written = b"".join(b"%d" % number * B for number in range(5)) + b"a" * 3 * B
    assert a.read_bytes() == b.read_bytes() == written


def test_a_size_that_the_other_node_set_is_that_of_the_next_open(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    a.write_bytes(bytes(2 * B))
    for number in range(1, 20):
        with a.open("r+b"), b.open("r+b") as theirs:
            theirs.truncate(number * 1000)
        assert a.stat().st_size == len(a.read_bytes()) == number * 1000
        with a.open("r+b") as file:
            assert os.fstat(file.fileno()).st_size == number * 1000


def test_a_file_open_for_writing_survives_a_daemon_after_its_vdisk_has_moved(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = both
    a.run("create", a.mountpoint / "disk", "1M")
    with Direct(a.mountpoint / "disk") as file:
        file.write(0, 1)
        b.run("owner", "take", b.mountpoint / "disk", "--force")
        file.write(1, 2)
        a.kill_daemon()
        file.write(2, 3)
        with Direct(a.mountpoint / "disk") as other:
            assert [other.read(block_no) for block_no in range(3)] == [1, 2, 3]
            other.write(3, 4)
        assert [file.read(block_no) for block_no in range(4)] == [1, 2, 3, 4]
        file.write(4, 5)
        os.fsync(file.fd)
    with Direct(b.mountpoint / "disk") as theirs:
        assert [theirs.read(block_no) for block_no in range(5)] == [1, 2, 3, 4, 5]


def test_a_new_daemon_knows_of_which_ownership_the_kernel_s_inode_is(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    a.write_bytes(bytes(2 * B))
    for number in range(3, 7):
        with b.open("r+b", buffering=0) as file:
            both[0].kill_daemon()  # its kernel may not have been told that the vdisk has gone
            os.ftruncate(file.fileno(), number * 1000)
        with a.open("r+b", buffering=0) as file:
            assert os.fstat(file.fileno()).st_size == number * 1000
            both[1].kill_daemon()
            os.ftruncate(file.fileno(), number * 1100)
        with b.open("ab", buffering=0) as file:
            assert os.fstat(file.fileno()).st_size == number * 1100
            file.write(b"end")
        assert a.stat().st_size == b.stat().st_size == number * 1100 + 3


def test_a_size_that_another_node_sets_is_that_of_files_that_are_open(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = (node.mountpoint / "disk" for node in both)
    a.write_bytes(bytes(8 * B))
    with Direct(a) as mine, Direct(b) as theirs, a.open("rb", buffering=0) as reader:
        for blocks in (4, 2, 10, 12, 9):
            size = blocks * B
            os.ftruncate(theirs.fd, size)
            theirs.write(blocks - 1, blocks)
            for fd in (mine.fd, theirs.fd, reader.fileno()):
                wait_until(
                    functools.partial(has_size, fd, size), "an open file has the size that the other set"
                )
            assert a.stat().st_size == b.stat().st_size == size
            assert mine.read(blocks - 1) == blocks
            assert len(os.pread(reader.fileno(), 20 * B, 0)) == size
        for blocks in (5, 14, 3):
            os.ftruncate(mine.fd, blocks * B)
            theirs.read(0)
            wait_until(functools.partial(has_size, theirs.fd, blocks * B), "it asked the owner, and knows")
    assert a.stat().st_size == b.stat().st_size == 3 * B


def has_size(fd: int, size: int) -> bool:
    return os.fstat(fd).st_size == size
