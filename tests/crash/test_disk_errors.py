"""Disks that fail or fill up under the pool: errors reach the writer, stick, and heal; no flush is undone."""

import errno
import mmap
import os
import pathlib
from collections.abc import Callable, Iterator

import pytest

from tests.crash.disks import FailingDisk, failing_disk, small_disk
from tests.crash.history import BLOCK, block_bytes, block_value
from tests.mounted_pool import MountedPool

MIB = 1 << 20
BLOCKS = 64

pytestmark = pytest.mark.root


@pytest.fixture
def disk(tmp_path: pathlib.Path) -> Iterator[FailingDisk]:
    with failing_disk(tmp_path / "failing", 256 * MIB) as disk:
        yield disk


@pytest.fixture
def pool_on_it(disk: FailingDisk, tmp_path: pathlib.Path) -> Iterator[MountedPool]:
    """A mounted pool on the failing disk; its state directory is on a good one."""
    (tmp_path / "run").mkdir()
    pool = MountedPool(tmp_path / "run")
    pool.pool = disk.mountpoint / "pool"
    pool.expects_errors = True
    try:
        pool.run("format", pool.pool)
        pool.mount()
        yield pool
    finally:
        disk.heal()
        pool.tear_down()


def write_all(descriptor: int, value: int) -> None:
    for block_no in range(BLOCKS):
        os.pwrite(descriptor, block_bytes(0, block_no, value), block_no * BLOCK)


def values(path: pathlib.Path) -> set[int]:
    data = path.read_bytes()
    return {block_value(0, number, data[number * BLOCK :][:BLOCK]) for number in range(BLOCKS)}


def error_of(action: Callable[[], object]) -> int:
    """The errno with which it fails, 0 if it does not."""
    try:
        action()
    except OSError as error:
        return error.errno or -1
    return 0


def forget_pages(pool: pathlib.Path) -> None:
    """Have the next read of any extent group go to the disk."""
    for path in pool.rglob("*.group"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def remount(pool: MountedPool, disk: FailingDisk) -> None:
    """Lose every process and every cached page; only what the disk holds comes back."""
    pool.kill()
    pool.tear_down()
    disk.umount()
    disk.mount()
    pool.mount()


def test_a_failed_sync_is_reported_to_every_handle_and_does_not_turn_into_a_success(
    disk: FailingDisk, pool_on_it: MountedPool
) -> None:
    path = pool_on_it.create("disk", "1M")
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    write_all(first, 1)
    os.fsync(first)

    disk.fail("pwrite")
    write_all(first, 2)
    assert error_of(lambda: os.fsync(first)) == errno.EIO
    assert error_of(lambda: os.fsync(second)) == errno.EIO
    assert error_of(lambda: os.fsync(first)) == errno.EIO
    disk.heal()

    # The file system may have given itself up meanwhile. Then nothing works before it is mounted again.
    recovered = error_of(lambda: os.fsync(first)) == 0
    error_of(lambda: os.close(first))
    error_of(lambda: os.close(second))
    remount(pool_on_it, disk)
    assert values(path) <= ({2} if recovered else {1, 2})
    pool_on_it.run("check", pool_on_it.mountpoint)


def test_a_handle_that_slept_through_the_failure_hears_of_it(
    disk: FailingDisk, pool_on_it: MountedPool
) -> None:
    """Whether or not the data were saved later: a write-back that failed is told to each handle once."""
    path = pool_on_it.create("disk", "1M")
    first, second = os.open(path, os.O_RDWR), os.open(path, os.O_RDWR)
    disk.fail("pwrite")
    write_all(first, 1)
    assert error_of(lambda: os.fsync(first)) == errno.EIO
    disk.heal()
    assert error_of(lambda: os.fsync(second)) == errno.EIO
    assert error_of(lambda: os.fsync(second)) == 0
    os.close(first)
    os.close(second)
    remount(pool_on_it, disk)
    assert values(path) == {1}


def test_a_read_error_is_eio_there_and_nowhere_else_and_heals(
    disk: FailingDisk, pool_on_it: MountedPool
) -> None:
    path = pool_on_it.create("disk", "1M")
    descriptor = os.open(path, os.O_RDWR)
    write_all(descriptor, 1)
    os.fsync(descriptor)
    os.close(descriptor)
    remount(pool_on_it, disk)

    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    forget_pages(pool_on_it.pool)
    disk.fail("pread")
    buffer = mmap.mmap(-1, BLOCK)
    assert error_of(lambda: os.preadv(descriptor, [buffer], 0)) == errno.EIO
    disk.heal()
    assert os.preadv(descriptor, [buffer], 0) == BLOCK
    os.close(descriptor)
    assert values(path) == {1}


@pytest.fixture
def full_pool(tmp_path: pathlib.Path) -> Iterator[MountedPool]:
    """A mounted pool on an ext4 of 96 MiB."""
    (tmp_path / "run").mkdir()
    with small_disk(tmp_path / "small", 96 * MIB) as mountpoint:
        pool = MountedPool(tmp_path / "run")
        pool.pool = mountpoint / "pool"
        try:
            pool.run("format", pool.pool)
            pool.mount()
            yield pool
        finally:
            pool.tear_down()
    assert pool.stray_errors() == []


def fill(path: pathlib.Path, start: int = 0) -> int:
    """Write blocks directly until the pool is full; returns the first that was not taken."""
    descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        with mmap.mmap(-1, BLOCK) as buffer:
            for block_no in range(start, 1 << 20):
                buffer[:] = block_bytes(0, block_no, block_no + 1)
                problem = error_of(lambda at=block_no * BLOCK: os.pwritev(descriptor, [buffer], at))
                if problem:
                    assert problem == errno.ENOSPC
                    os.fsync(descriptor)  # what was taken has its place already
                    return block_no
    finally:
        os.close(descriptor)
    raise AssertionError("the pool never filled up")


def test_a_full_pool_refuses_writes_loses_nothing_and_goes_on_when_there_is_space(
    full_pool: MountedPool,
) -> None:
    ballast = full_pool.mountpoint / "ballast"
    ballast.write_bytes(os.urandom(24 * MIB))
    disk = full_pool.create("disk", "1G")
    taken = fill(disk)
    assert taken > 20 * MIB // BLOCK
    full_pool.run("check", full_pool.mountpoint)
    full_pool.umount()
    full_pool.mount()
    with disk.open("rb") as file:
        for block_no in range(taken):
            assert block_value(0, block_no, file.read(BLOCK)) == block_no + 1
        assert file.read(BLOCK) == bytes(BLOCK)

    ballast.unlink()
    more = fill(disk, taken)
    assert more > taken + 16 * MIB // BLOCK
    with disk.open("rb") as file:
        for block_no in range(more):
            assert block_value(0, block_no, file.read(BLOCK)) == block_no + 1
    full_pool.run("check", full_pool.mountpoint)


def test_a_pool_full_of_snapshots_gives_their_space_back_when_they_are_deleted(
    full_pool: MountedPool,
) -> None:
    disk = full_pool.create("disk", 8 * MIB)
    contents: list[bytes] = []

    def rewrite() -> None:
        contents.append(os.urandom(8 * MIB))
        descriptor = os.open(disk, os.O_WRONLY)
        try:
            os.pwrite(descriptor, contents[-1], 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    while error_of(rewrite) != errno.ENOSPC:
        full_pool.run("snap", "create", f"{disk}@{len(contents)}")
    assert len(contents) > 5
    kept = [f"{disk}@{number}" for number in range(1, len(contents))]
    full_pool.run("snap", "create", f"{disk}@full", f"{disk}@1000")
    assert (full_pool.mountpoint / ".snapshots/disk/1").read_bytes() == contents[0]
    full_pool.run("snap", "rm", *kept, f"{disk}@full", f"{disk}@1000")
    full_pool.run("gc", full_pool.mountpoint)
    for _ in range(3):
        rewrite()
    assert disk.read_bytes() == contents[-1]
    full_pool.run("check", full_pool.mountpoint)


def test_a_full_state_directory_stops_nobody_who_is_mounted(tmp_path: pathlib.Path) -> None:
    """The index lags behind then; the pool is the truth. A new mount says what it lacks."""
    (tmp_path / "run").mkdir()
    with small_disk(tmp_path / "small", 64 * MIB) as mountpoint:
        pool = MountedPool(tmp_path / "run")
        pool.state = mountpoint / "state"
        pool.expects_errors = True
        try:
            pool.run("format", pool.pool)
            pool.mount()
            disk = pool.create("disk", "1M")
            ballast = mountpoint / "ballast"
            with ballast.open("wb", buffering=0) as file:
                assert error_of(lambda: [file.write(bytes(BLOCK)) for _ in range(1 << 20)]) == errno.ENOSPC
            descriptor = os.open(disk, os.O_RDWR)
            for value in (1, 2):
                write_all(descriptor, value)
                os.fsync(descriptor)
            os.close(descriptor)
            assert values(disk) == {2}
            pool.umount()
            refused = pool.run("mount", pool.pool, pool.mountpoint, "--state", pool.state, exit_code=1)
            assert "space" in refused.stderr
            ballast.unlink()
            pool.mount()
            assert values(disk) == {2}
            pool.run("check", pool.mountpoint)
        finally:
            pool.tear_down()


def test_buffered_writes_to_a_full_pool_fail_at_the_latest_in_fsync(full_pool: MountedPool) -> None:
    disk = full_pool.create("disk", "1G")

    def write_buffered() -> None:
        with disk.open("r+b", buffering=0) as file:
            for _ in range(160):
                file.write(os.urandom(MIB))
            os.fsync(file.fileno())

    assert error_of(write_buffered) == errno.ENOSPC
    full_pool.run("check", full_pool.mountpoint)
