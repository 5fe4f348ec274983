"""A damaged pool or state directory: nothing wrong is ever served, everything sound still is, the report is exact.

Promise 8, and the bad input that a pool may be.
"""

import mmap
import os
import pathlib
import re
import shutil

import pytest

from tests.crash.history import BLOCK, block_bytes, block_value
from tests.mounted_pool import MountedPool

BLOCKS = 512
FLIPPED = 100


def write_disk(pool: MountedPool, value: int = 1) -> pathlib.Path:
    """A vdisk of 2 MiB, every block of which says which it is; flushed."""
    path = pool.mountpoint / "disk"
    with path.open("w+b", buffering=0) as file:
        for block_no in range(BLOCKS):
            file.write(block_bytes(0, block_no, value))
        os.fsync(file.fileno())
    return path


def readable(path: pathlib.Path) -> set[int]:
    """The blocks that can be read, each of which must hold what was written; the rest gives EIO."""
    found: set[int] = set()
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        assert error.strerror == "Input/output error"  # noqa: PT017
        return found
    try:
        with mmap.mmap(-1, BLOCK) as buffer:
            for block_no in range(BLOCKS):
                try:
                    assert os.preadv(descriptor, [buffer], block_no * BLOCK) == BLOCK
                except OSError as error:
                    assert error.strerror == "Input/output error"  # noqa: PT017
                    continue
                assert block_value(0, block_no, buffer[:]) == 1
                found.add(block_no)
    finally:
        os.close(descriptor)
    return found


def group_of(pool: MountedPool) -> pathlib.Path:
    """The file that holds the vdisk."""
    return max(pool.pool.rglob("*.group"), key=lambda path: path.stat().st_size)


def position_of(group: pathlib.Path, block_no: int) -> int:
    """Where in the group's file a block lies, in bytes."""
    return group.read_bytes().index(block_bytes(0, block_no, 1))


def test_a_flipped_byte_is_an_error_there_and_nowhere_else(mounted: MountedPool) -> None:
    disk = write_disk(mounted)
    mounted.umount()
    group = group_of(mounted)
    place = position_of(group, FLIPPED)
    with group.open("r+b") as file:
        file.seek(place + 1234)
        byte = file.read(1)[0]
        file.seek(place + 1234)
        file.write(bytes([byte ^ 0x10]))
    mounted.mount()
    mounted.expects_errors = True
    assert readable(disk) == set(range(BLOCKS)) - {FLIPPED}

    report = mounted.run("scrub", mounted.mountpoint, exit_code=1).stdout
    assert "disk" in report
    assert re.search(rf"offset={FLIPPED * BLOCK}\b", report)
    assert str(group) in report


def test_two_blocks_that_changed_places_are_both_found(mounted: MountedPool) -> None:
    """A misplaced write: each block is intact, only not where it belongs."""
    disk = write_disk(mounted)
    mounted.umount()
    group = group_of(mounted)
    first, second = position_of(group, 3), position_of(group, 4)
    with group.open("r+b") as file:
        file.seek(first)
        file.write(block_bytes(0, 4, 1))
        file.seek(second)
        file.write(block_bytes(0, 3, 1))
    mounted.mount()
    mounted.expects_errors = True
    assert readable(disk) == set(range(BLOCKS)) - {3, 4}


@pytest.mark.parametrize("state_is_kept", [True, False])
def test_a_truncated_group_loses_what_was_cut_off_and_says_so(
    mounted: MountedPool, state_is_kept: bool
) -> None:
    """Without an index, too: the catalog knows which version the vdisk was put to rest at."""
    disk = write_disk(mounted)
    mounted.umount()
    group = group_of(mounted)
    cut = position_of(group, FLIPPED)
    left = {block_no for block_no in range(BLOCKS) if position_of(group, block_no) < cut}
    os.truncate(group, cut)
    if not state_is_kept:
        shutil.rmtree(mounted.state)
    mounted.mount()
    mounted.expects_errors = True
    assert readable(disk) == (left if state_is_kept else set())
    report = mounted.run("scrub", mounted.mountpoint, exit_code=1).stdout
    assert report.startswith("/disk: ")
    assert str(group if state_is_kept else group.parent) in report


@pytest.mark.parametrize("length", [1, 511, BLOCK, 10 * BLOCK + 7])
def test_garbage_behind_a_group_s_end_changes_nothing(mounted: MountedPool, length: int) -> None:
    disk = write_disk(mounted)
    mounted.umount()
    with group_of(mounted).open("ab") as file:
        file.write(os.urandom(length))
    mounted.mount()
    assert readable(disk) == set(range(BLOCKS))
    write_disk(mounted)
    mounted.umount()
    mounted.mount()
    assert readable(disk) == set(range(BLOCKS))
    mounted.run("check", mounted.mountpoint)


@pytest.mark.parametrize("share", [0, 0.5])
def test_a_journal_cut_in_half_costs_nothing_that_was_flushed(mounted: MountedPool, share: float) -> None:
    disk = write_disk(mounted)
    with disk.open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
    mounted.kill()
    journal = mounted.state / "journal"
    os.truncate(journal, int(journal.stat().st_size * share))
    mounted.mount()
    assert readable(disk) == set(range(BLOCKS))
    mounted.run("check", mounted.mountpoint)


def test_a_damaged_index_is_made_anew(mounted: MountedPool) -> None:
    disk = write_disk(mounted)
    mounted.umount()
    for path in (mounted.state / "index").iterdir():
        if path.is_file():
            with path.open("r+b") as file:
                file.write(os.urandom(min(512, path.stat().st_size)))
    mounted.mount()
    mounted.expects_errors = True
    assert readable(disk) == set(range(BLOCKS))
    mounted.run("check", mounted.mountpoint)


def test_a_state_directory_of_long_ago_is_caught_up(mounted: MountedPool, tmp_path: pathlib.Path) -> None:
    """The index of an older version, as a restored backup would have it."""
    write_disk(mounted, value=7)
    mounted.umount()
    mounted.state.rename(tmp_path / "old")
    mounted.mount()
    disk = write_disk(mounted)
    mounted.umount()
    mounted.state.rename(tmp_path / "new")
    (tmp_path / "old").rename(mounted.state)
    mounted.mount()
    assert readable(disk) == set(range(BLOCKS))
    mounted.run("check", mounted.mountpoint)
