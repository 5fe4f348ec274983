"""What POSIX promises about files, through the kernel: holes, mappings, names, attributes, odd sizes."""

import ctypes
import errno
import mmap
import os
import pathlib
import subprocess

import pytest

from tests.mounted_pool import COMMAND_S, MountedPool

BLOCK = 4096
MIB = 1 << 20
GIB = 1 << 30

PUNCH_HOLE, ZERO_RANGE, KEEP_SIZE = 2, 16, 1
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
AT_FDCWD = -100

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


def fallocate(path: pathlib.Path, mode: int, offset: int, length: int) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        if libc.fallocate(descriptor, mode, offset, length):
            raise OSError(ctypes.get_errno(), "fallocate")
    finally:
        os.close(descriptor)


def rename(old: pathlib.Path, new: pathlib.Path, flags: int) -> None:
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def allocated(path: pathlib.Path) -> int:
    return path.stat().st_blocks * 512


def data_ranges(path: pathlib.Path) -> list[tuple[int, int]]:
    """The (start, end) of everything that is no hole, by SEEK_DATA and SEEK_HOLE."""
    ranges = []
    with path.open("rb") as file:
        end, size = 0, os.fstat(file.fileno()).st_size
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            ranges.append((start, end))
    return ranges


def test_a_punched_hole_reads_as_zeros_and_takes_no_space(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    data = os.urandom(4 * MIB)
    disk.write_bytes(data)
    assert allocated(disk) == 4 * MIB
    fallocate(disk, PUNCH_HOLE | KEEP_SIZE, MIB, MIB)
    assert disk.read_bytes() == data[:MIB] + bytes(MIB) + data[2 * MIB :]
    assert allocated(disk) == 3 * MIB
    assert data_ranges(disk) == [(0, MIB), (2 * MIB, 4 * MIB)]


def test_a_hole_that_ends_inside_blocks_clears_exactly_its_bytes(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    data = os.urandom(8 * BLOCK)
    disk.write_bytes(data)
    fallocate(disk, PUNCH_HOLE | KEEP_SIZE, BLOCK + 100, 2 * BLOCK)
    fallocate(disk, ZERO_RANGE, 5 * BLOCK + 7, 11)
    expected = bytearray(data)
    expected[BLOCK + 100 : 3 * BLOCK + 100] = bytes(2 * BLOCK)
    expected[5 * BLOCK + 7 : 5 * BLOCK + 18] = bytes(11)
    assert disk.read_bytes() == expected


def test_plain_fallocate_grows_the_size_and_reserves_nothing(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    disk.write_bytes(b"begins")
    fallocate(disk, 0, 0, 64 * MIB)
    assert disk.stat().st_size == 64 * MIB
    assert allocated(disk) == BLOCK
    fallocate(disk, KEEP_SIZE, 0, 128 * MIB)
    assert disk.stat().st_size == 64 * MIB
    assert disk.read_bytes()[:10] == b"begins\0\0\0\0"


def test_a_file_cut_and_grown_again_reads_zeros_there(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    data = os.urandom(3 * BLOCK)
    disk.write_bytes(data)
    os.truncate(disk, BLOCK + 1000)
    os.truncate(disk, 3 * BLOCK)
    expected = data[: BLOCK + 1000] + bytes(2 * BLOCK - 1000)
    assert disk.read_bytes() == expected
    mounted.umount()
    mounted.mount()
    assert disk.read_bytes() == expected


def test_sizes_need_not_be_whole_blocks(mounted: MountedPool) -> None:
    contents = {size: os.urandom(size) for size in (0, 1, 511, 513, BLOCK - 1, BLOCK + 1, MIB + 3)}
    for size, content in contents.items():
        (mounted.mountpoint / str(size)).write_bytes(content)
    mounted.umount()
    mounted.mount()
    for size, content in contents.items():
        assert (mounted.mountpoint / str(size)).read_bytes() == content


def test_zeros_that_are_written_become_holes(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    disk.write_bytes(os.urandom(MIB) + bytes(MIB) + os.urandom(MIB))
    with disk.open("rb") as file:
        os.fsync(file.fileno())
    assert allocated(disk) == 2 * MIB
    assert data_ranges(disk) == [(0, MIB), (2 * MIB, 3 * MIB)]


def test_data_that_only_the_page_cache_holds_are_no_hole(mounted: MountedPool) -> None:
    """A hypervisor that writes through the page cache copies its disk by what lseek says."""
    disk = mounted.create("disk", "16M")
    with disk.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), os.urandom(MIB), 5 * MIB)
        start = os.lseek(file.fileno(), 0, os.SEEK_DATA)
        assert start <= 5 * MIB
        assert os.lseek(file.fileno(), 5 * MIB, os.SEEK_HOLE) >= 6 * MIB


def test_a_shared_mapping_and_the_file_show_the_same_bytes(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "1M")
    with disk.open("r+b") as file, mmap.mmap(file.fileno(), MIB) as mapping:
        mapping[5000:5005] = b"vdisk"
        mapping.flush()
        assert os.pread(file.fileno(), 5, 5000) == b"vdisk"
        os.pwrite(file.fileno(), b"other", 9000)
        assert mapping[9000:9005] == b"other"
    mounted.umount()
    mounted.mount()
    assert disk.read_bytes()[5000:5005] == b"vdisk"


def test_direct_and_buffered_io_see_each_other(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "1M")
    buffer = mmap.mmap(-1, BLOCK)
    direct = os.open(disk, os.O_RDWR | os.O_DIRECT)
    buffered = os.open(disk, os.O_RDWR)
    try:
        buffer[:] = b"d" * BLOCK
        assert os.pread(buffered, BLOCK, 8 * BLOCK) == bytes(BLOCK)
        assert os.pwritev(direct, [buffer], 8 * BLOCK) == BLOCK
        assert os.pread(buffered, BLOCK, 8 * BLOCK) == b"d" * BLOCK
        os.pwrite(buffered, b"b" * BLOCK, 8 * BLOCK)
        assert os.preadv(direct, [buffer], 8 * BLOCK) == BLOCK
        assert buffer[:] == b"b" * BLOCK
        with pytest.raises(OSError, match="Invalid argument"):
            os.preadv(direct, [memoryview(buffer)[:100]], 0)
    finally:
        os.close(direct)
        os.close(buffered)


def pool_bytes(mounted: MountedPool) -> int:
    """What the pool occupies on its disk."""
    return sum(path.stat().st_blocks * 512 for path in mounted.pool.rglob("*") if path.is_file())


def test_cp_of_a_written_vdisk_shares_every_block(mounted: MountedPool) -> None:
    disk, copy = mounted.mountpoint / "disk", mounted.mountpoint / "copy"
    data = os.urandom(96 * MIB)
    disk.write_bytes(data)
    before = pool_bytes(mounted)
    subprocess.run(["cp", disk, copy], check=True, timeout=COMMAND_S)
    assert pool_bytes(mounted) - before < 4 * MIB
    assert copy.read_bytes() == data
    with copy.open("r+b", buffering=0) as file:
        file.write(b"only here")
        os.fsync(file.fileno())
    assert disk.read_bytes() == data
    mounted.umount()
    mounted.mount()
    assert copy.read_bytes() == b"only here" + data[9:]
    disk.unlink()
    assert copy.read_bytes() == b"only here" + data[9:]
    mounted.run("check", mounted.mountpoint)


def test_ten_gibibytes_are_shared_within_a_call(mounted: MountedPool) -> None:
    """What cp asks for, at a size that could not be moved byte by byte."""
    disk, copy = mounted.create("disk", "10G"), mounted.create("copy", 0)
    with disk.open("r+b") as source, copy.open("r+b") as target:
        for number in range(40):
            os.pwrite(source.fileno(), os.urandom(BLOCK), number * 256 * MIB)
        os.fsync(source.fileno())
        before, done = pool_bytes(mounted), 0
        while done < 10 * GIB:
            copied = os.copy_file_range(source.fileno(), target.fileno(), 10 * GIB, done, done)
            assert copied > 0
            done += copied
        assert pool_bytes(mounted) - before < 4 * MIB
        for number in range(40):
            expected = os.pread(source.fileno(), 2 * BLOCK, number * 256 * MIB)
            assert os.pread(target.fileno(), 2 * BLOCK, number * 256 * MIB) == expected


def test_a_range_copied_within_a_file_is_a_copy(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    data = os.urandom(64 * BLOCK)
    disk.write_bytes(data)
    with disk.open("r+b") as file:
        copied = os.copy_file_range(file.fileno(), file.fileno(), 10 * BLOCK, 3 * BLOCK, 40 * BLOCK + 123)
        assert copied > 0
        place = 40 * BLOCK + 123
        assert os.pread(file.fileno(), copied, place) == data[3 * BLOCK : 3 * BLOCK + copied]
        assert os.pread(file.fileno(), place, 0) == data[:place]


def test_an_unlinked_file_lives_until_its_last_close(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    disk.write_bytes(b"x" * MIB)
    with disk.open("r+b") as file:
        disk.unlink()
        assert os.listdir(mounted.mountpoint) == []
        os.pwrite(file.fileno(), b"still here", BLOCK)
        os.fsync(file.fileno())
        assert os.pread(file.fileno(), 10, BLOCK) == b"still here"
        assert os.fstat(file.fileno()).st_nlink == 0
    mounted.umount()
    mounted.mount()
    assert os.listdir(mounted.mountpoint) == []
    mounted.run("check", mounted.mountpoint)


def test_rename_replaces_refuses_or_exchanges_as_it_is_told(mounted: MountedPool) -> None:
    here, there = mounted.mountpoint / "here", mounted.mountpoint / "folder" / "there"
    there.parent.mkdir()
    here.write_bytes(b"one")
    there.write_bytes(b"two")
    with pytest.raises(FileExistsError):
        rename(here, there, RENAME_NOREPLACE)
    rename(here, there, RENAME_EXCHANGE)
    assert (here.read_bytes(), there.read_bytes()) == (b"two", b"one")
    os.rename(here, there)
    assert there.read_bytes() == b"two"
    assert not here.exists()
    with pytest.raises(OSError, match="Directory not empty"):
        there.parent.rmdir()
    with pytest.raises(OSError, match="Invalid argument"):
        os.rename(there.parent, there.parent / "below")


def test_attributes_names_and_links_survive_a_remount(mounted: MountedPool) -> None:
    disk, link = mounted.mountpoint / "nested" / "deep" / "disk", mounted.mountpoint / "link"
    disk.parent.mkdir(parents=True)
    disk.write_bytes(b"content")
    disk.chmod(0o640)
    os.setxattr(disk, "user.owner", b"somebody")
    os.setxattr(disk, "user.gone", b"x")
    os.removexattr(disk, "user.gone")
    os.utime(disk, ns=(10**18 + 1, 10**18 + 2))
    link.symlink_to("nested/deep/disk")
    before = disk.stat()
    mounted.umount()
    mounted.mount()
    after = link.stat()
    assert (after.st_mode, after.st_uid, after.st_size, after.st_ino) == (
        before.st_mode,
        before.st_uid,
        before.st_size,
        before.st_ino,
    )
    assert (after.st_atime_ns, after.st_mtime_ns) == (10**18 + 1, 10**18 + 2)
    assert os.listxattr(disk) == ["user.owner"]
    assert os.getxattr(disk, "user.owner") == b"somebody"
    assert os.readlink(link) == "nested/deep/disk"
    with pytest.raises(OSError, match="No data available"):
        os.getxattr(disk, "user.unknown")


def test_what_is_no_vdisk_is_refused_with_the_right_error(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "1M")
    with pytest.raises(PermissionError):
        os.link(disk, mounted.mountpoint / "second name")
    with pytest.raises(OSError, match="File name too long"):
        (mounted.mountpoint / ("n" * 256)).touch()
    with pytest.raises(FileExistsError):
        disk.touch(exist_ok=False)
    with pytest.raises(OSError, match=r"File too large|Invalid argument"):
        os.truncate(disk, 1 << 62)
    (mounted.mountpoint / ("n" * 255)).touch()


def test_a_folder_of_many_vdisks_is_listed_whole(mounted: MountedPool) -> None:
    names = {f"vdisk {number}" for number in range(600)}
    for name in names:
        os.close(os.open(mounted.mountpoint / name, os.O_CREAT | os.O_WRONLY))
    assert set(os.listdir(mounted.mountpoint)) == names
    with os.scandir(mounted.mountpoint) as entries:  # deleting while listing skips nobody who stays
        for entry in entries:
            os.unlink(entry.path)
    assert os.listdir(mounted.mountpoint) == []


def test_statfs_tells_the_pool_s_space(mounted: MountedPool) -> None:
    ours, pool = os.statvfs(mounted.mountpoint), os.statvfs(mounted.pool)
    assert ours.f_namemax == 255
    assert ours.f_blocks * ours.f_frsize == pool.f_blocks * pool.f_frsize


def test_extended_attributes_of_any_length_come_back_whole(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    disk.touch()
    for length in (0, 1, 127, 128, 129, 5000):
        value = bytes(range(1, 256)).ljust(5000, b"x")[:length]
        os.setxattr(disk, "user.value", value)
        assert os.getxattr(disk, "user.value") == value
    with pytest.raises(OSError, match="No data") as caught:
        os.getxattr(disk, "user.other")
    assert caught.value.errno == errno.ENODATA
    room = ctypes.create_string_buffer(5000)
    assert libc.getxattr(os.fsencode(disk), b"user.value", room, 0) == 5000
    assert libc.getxattr(os.fsencode(disk), b"user.value", room, 4999) == -1
    assert ctypes.get_errno() == errno.ERANGE
