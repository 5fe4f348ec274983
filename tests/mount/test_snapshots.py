"""Snapshots, clones and the trash through the kernel and the command line, as an operator uses them."""

import errno
import itertools
import mmap
import os
import pathlib
import random
import shutil
import threading

import pytest

from tests.mounted_pool import MountedPool

MIB = 1 << 20
BLOCK = 4096


def failing(pool: MountedPool, *arguments: object) -> str:
    """The one line of a command that fails."""
    done = pool.run(*arguments, exit_code=1)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)
    assert done.stderr.startswith("vdiskfs: ")
    return done.stderr


def filled(pool: MountedPool, name: str, data: bytes, *, size: int = 8 * MIB) -> pathlib.Path:
    path = pool.create(name, size)
    write(path, data)
    return path


def write(path: pathlib.Path, data: bytes, *, offset: int = 0) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def snapshot_file(pool: MountedPool, path: pathlib.Path, name: str) -> pathlib.Path:
    return pool.mountpoint / ".snapshots" / path.relative_to(pool.mountpoint) / name


def names(pool: MountedPool, path: pathlib.Path) -> list[str]:
    return [snapshot["name"] for snapshot in pool.json("snap", "ls", path)["snapshots"]]


def reads_served(pool: MountedPool) -> int:
    counts = pool.json("status", pool.mountpoint)["requests"]
    return int(counts.get("read", 0)) + int(counts.get("slow", 0))


def test_a_snapshot_keeps_what_is_overwritten_after_it(mounted: MountedPool) -> None:
    old, new = random.Random(1).randbytes(2 * MIB), random.Random(2).randbytes(MIB)
    disk = filled(mounted, "disk", old)
    mounted.run("snap", "create", f"{disk}@one")
    write(disk, new)
    mounted.run("snap", "create", f"{disk}@two")
    write(disk, b"z" * BLOCK)
    for name, data in (("one", old), ("two", new + old[MIB:])):
        assert snapshot_file(mounted, disk, name).read_bytes()[: 2 * MIB] == data
    assert disk.read_bytes()[: 2 * MIB] == b"z" * BLOCK + new[BLOCK:] + old[MIB:]
    assert names(mounted, disk) == ["one", "two"]
    info = mounted.json("info", f"{disk}@one")
    assert (info["kind"], info["size"], info["own_bytes"]) == ("snapshot", 8 * MIB, 2 * MIB)
    mounted.umount()
    mounted.mount()
    assert snapshot_file(mounted, disk, "one").read_bytes()[: 2 * MIB] == old
    mounted.run("snap", "rm", f"{disk}@one")
    assert snapshot_file(mounted, disk, "two").read_bytes()[: 2 * MIB] == new + old[MIB:]


class Counting(threading.Thread):
    """Writes 1, 2, 3 ... directly into the first and then the second of two vdisks, until it is told to end."""

    def __init__(self, paths: list[pathlib.Path]) -> None:
        super().__init__()
        self.paths = paths
        self.ended = threading.Event()
        self.began = threading.Event()
        self.count = 0

    def run(self) -> None:
        files = [os.open(path, os.O_RDWR | os.O_DIRECT) for path in self.paths]
        with mmap.mmap(-1, BLOCK) as block:
            while not self.ended.is_set():
                self.count += 1
                block[:8] = self.count.to_bytes(8, "little")
                for file in files:
                    assert os.pwrite(file, block, 0) == BLOCK
                self.began.set()
        for file in files:
            os.close(file)


def test_a_group_under_running_writers_is_one_moment(mounted: MountedPool) -> None:
    (mounted.mountpoint / "vms").mkdir()
    disks = [mounted.create("vms/a", "1M"), mounted.create("vms/b", "1M")]
    writer = Counting(disks)
    writer.start()
    try:
        assert writer.began.wait(60)
        mounted.run("snap", "create", f"{disks[0]}@g0", f"{disks[1]}@g0")
        for number in range(1, 5):
            mounted.run("snap", "create", "--all", mounted.mountpoint / "vms", f"g{number}")
    finally:
        writer.ended.set()
        writer.join()
    seen = []
    for number in range(5):
        first, second = (
            int.from_bytes(snapshot_file(mounted, disk, f"g{number}").read_bytes()[:8], "little")
            for disk in disks
        )
        assert second <= first <= second + 1, (
            "a write is in the second member that came after the first's moment"
        )
        seen.append(second)
    assert sorted(seen) == seen
    assert 0 < seen[0] < seen[-1] <= writer.count


def test_writes_that_only_the_kernel_has_are_in_the_snapshot(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "1M")
    with disk.open("r+b", buffering=0) as file:
        file.write(b"a" * 10000)
        mounted.run("snap", "create", f"{disk}@one")
        file.write(b"b" * 10000)
        mounted.run("clone", disk, mounted.mountpoint / "clone")
    assert snapshot_file(mounted, disk, "one").read_bytes()[:20000] == b"a" * 10000 + bytes(10000)
    assert (mounted.mountpoint / "clone").read_bytes()[:20000] == b"a" * 10000 + b"b" * 10000


def test_a_snapshot_is_read_once_and_then_from_memory(mounted: MountedPool) -> None:
    disk = filled(mounted, "disk", random.Random(3).randbytes(4 * MIB))
    mounted.run("snap", "create", f"{disk}@one")
    path = snapshot_file(mounted, disk, "one")
    first = path.read_bytes()
    served = [reads_served(mounted)]
    for _ in range(5):
        assert path.read_bytes() == first
        served.append(reads_served(mounted))
    assert any(again == before for before, again in itertools.pairwise(served))  # others may drop caches once


def test_an_open_snapshot_outlives_its_name_and_the_daemon(mounted: MountedPool) -> None:
    data = random.Random(4).randbytes(MIB)
    disk = filled(mounted, "disk", data)
    for name in ("one", "two"):
        mounted.run("snap", "create", f"{disk}@{name}")
    write(disk, b"x" * MIB)
    one, two = (os.open(snapshot_file(mounted, disk, name), os.O_RDONLY) for name in ("one", "two"))
    try:
        mounted.run("snap", "rm", f"{disk}@one")
        assert not snapshot_file(mounted, disk, "one").exists()
        assert os.pread(one, MIB, 0) == data
        assert os.fstat(one).st_size == 8 * MIB
        mounted.kill_daemon()
        assert os.pread(two, MIB, 0) == data
    finally:
        os.close(one)
        os.close(two)


def test_nothing_under_dot_snapshots_can_be_changed(mounted: MountedPool) -> None:
    disk = filled(mounted, "disk", b"x" * BLOCK)
    mounted.run("snap", "create", f"{disk}@one")
    path = snapshot_file(mounted, disk, "one")
    for change in (
        lambda: path.open("r+b"),
        lambda: path.unlink(),
        lambda: path.rename(path.with_name("two")),
        lambda: path.with_name("new").touch(),
        lambda: path.parent.rmdir(),
        lambda: (path.parent / "dir").mkdir(),
        lambda: os.truncate(path, 0),
        lambda: path.chmod(0o777),
        lambda: os.symlink("x", path.with_name("link")),
    ):
        with pytest.raises(OSError) as caught:
            change()
        expected = {errno.EROFS} if os.geteuid() == 0 else {errno.EROFS, errno.EACCES}
        assert caught.value.errno in expected
    assert ".snapshots" not in os.listdir(mounted.mountpoint)
    assert os.listdir(mounted.mountpoint / ".snapshots") == ["disk"]
    assert os.listdir(path.parent) == ["one"]


def test_a_clone_is_written_without_a_trace_in_its_parent(mounted: MountedPool) -> None:
    data = random.Random(5).randbytes(2 * MIB)
    disk = filled(mounted, "disk", data)
    mounted.run("snap", "create", f"{disk}@one")
    first, second = mounted.mountpoint / "first", mounted.mountpoint / "second"
    mounted.run("clone", f"{disk}@one", first)
    mounted.run("clone", first, second)
    write(first, b"1" * MIB)
    write(second, b"2" * BLOCK)
    write(disk, b"0" * MIB, offset=MIB)
    assert first.read_bytes()[: 2 * MIB] == b"1" * MIB + data[MIB:]
    assert second.read_bytes()[: 2 * MIB] == b"2" * BLOCK + data[BLOCK:]
    assert snapshot_file(mounted, disk, "one").read_bytes()[: 2 * MIB] == data
    assert mounted.json("info", f"{disk}@one")["children"] == ["/first"]
    assert mounted.json("info", disk)["snapshots"] == ["one"]
    info = mounted.json("info", second)
    assert (info["allocated_bytes"], info["parent"]["path"]) == (BLOCK, "/first")
    mounted.run("rm", "--snapshots", "--now", disk)
    mounted.run("rm", "--now", first)
    assert second.read_bytes()[: 2 * MIB] == b"2" * BLOCK + data[BLOCK:]
    assert mounted.json("check", mounted.mountpoint)["findings"] == []


def test_a_copy_out_of_dot_snapshots_is_whole(mounted: MountedPool) -> None:
    data = random.Random(6).randbytes(3 * MIB + 100)
    disk = filled(mounted, "disk", data, size=4 * MIB)
    mounted.run("snap", "create", f"{disk}@one")
    write(disk, bytes(4 * MIB))
    copy, image = mounted.mountpoint / "copy", mounted.folder / "image"
    shutil.copyfile(snapshot_file(mounted, disk, "one"), copy)
    mounted.run("export", f"{disk}@one", image)
    assert copy.read_bytes() == image.read_bytes() == data + bytes(MIB - 100)


def test_rm_refuses_what_has_snapshots_and_the_trash_brings_it_back(mounted: MountedPool) -> None:
    data = random.Random(7).randbytes(MIB)
    disk = filled(mounted, "disk", data)
    mounted.run("snap", "create", f"{disk}@one")
    assert "say --snapshots to delete it with one" in failing(mounted, "rm", disk)
    with pytest.raises(OSError) as caught:
        disk.unlink()
    assert caught.value.errno == errno.EBUSY
    other = mounted.create("other", "1M")
    with pytest.raises(OSError) as caught:
        other.rename(disk)
    assert caught.value.errno == errno.EBUSY
    mounted.run("snap", "protect", f"{disk}@one")
    assert "unprotect" in failing(mounted, "snap", "rm", f"{disk}@one")
    assert "unprotect" in failing(mounted, "rm", "--snapshots", disk)
    mounted.run("snap", "unprotect", f"{disk}@one")
    mounted.run("rm", "--snapshots", disk)
    assert not disk.exists()
    (entry,) = mounted.json("trash", "ls", mounted.mountpoint)["entries"]
    assert (entry["path"], entry["snapshots"]) == ("/disk", 1)
    mounted.umount()
    mounted.mount()
    mounted.run("trash", "restore", disk)
    assert disk.read_bytes()[:MIB] == data
    assert names(mounted, disk) == ["one"]


def stored_bytes(pool: MountedPool) -> int:
    return sum(path.stat().st_size for path in (pool.pool / "vdisks").rglob("*") if path.is_file())


def test_purging_gives_the_space_back(mounted: MountedPool) -> None:
    disk = filled(mounted, "disk", random.Random(8).randbytes(4 * MIB))
    mounted.run("rm", disk)
    assert stored_bytes(mounted) >= 4 * MIB
    mounted.run("trash", "purge", "--all", mounted.mountpoint)
    assert stored_bytes(mounted) == 0
    assert mounted.json("trash", "ls", mounted.mountpoint)["entries"] == []
    disk = filled(mounted, "disk", b"x" * MIB)
    mounted.run("rm", "--now", disk)
    assert stored_bytes(mounted) == 0


def test_a_deleted_vdisk_that_is_open_is_read_to_the_end(mounted: MountedPool) -> None:
    data = random.Random(9).randbytes(MIB)
    disk = filled(mounted, "disk", data)
    with disk.open("rb", buffering=0) as file:
        mounted.run("rm", "--force", disk)
        assert os.pread(file.fileno(), MIB, 0) == data
        mounted.run("trash", "purge", disk)
        assert os.pread(file.fileno(), MIB, 0) == data
        assert os.fstat(file.fileno()).st_nlink == 0
    mounted.create("disk", "1M")
    assert disk.read_bytes() == bytes(MIB)


def test_bad_names_are_refused_in_one_line_and_leave_nothing(mounted: MountedPool) -> None:
    disk = filled(mounted, "disk", b"x")
    mounted.run("snap", "create", f"{disk}@one")
    for name, said in (
        ("one", "already"), ("a/b", "PATH@SNAP"), ("a\nb", "control"), ("", "PATH@SNAP"), ("..", "another name"),
        ("x" * 256, "at most 255 bytes"),
    ):  # fmt: skip
        assert said in failing(mounted, "snap", "create", f"{disk}@{name}")
    assert "PATH@SNAP" in failing(mounted, "snap", "create", disk)
    assert "no snapshot of this name" in failing(mounted, "clone", f"{disk}@two", mounted.mountpoint / "c")
    assert "exists" in failing(mounted, "clone", disk, disk)
    assert "is a snapshot" in failing(mounted, "rm", f"{disk}@one")
    assert "is a snapshot" in failing(mounted, "rm", snapshot_file(mounted, disk, "one"))
    assert "see 'vdiskfs snap ls'" in failing(mounted, "ls", mounted.mountpoint / ".snapshots" / "disk")
    with_at = mounted.create("disk@one", "1M")  # a file of the whole name wins
    assert "names no snapshot" in failing(mounted, "snap", "rm", with_at)
    with_at.unlink()
    assert names(mounted, disk) == ["one"]
    assert [path.name for path in mounted.mountpoint.iterdir()] == ["disk"]


def test_a_rollback_is_seen_at_once_and_can_be_undone(mounted: MountedPool) -> None:
    old, new = random.Random(10).randbytes(2 * MIB), random.Random(11).randbytes(3 * MIB)
    disk = filled(mounted, "disk", old)
    mounted.run("snap", "create", f"{disk}@one")
    write(disk, new)
    os.truncate(disk, 5 * MIB)
    with disk.open("rb") as file:
        assert file.read() == new + bytes(2 * MIB)
        assert "close it first" in failing(mounted, "snap", "rollback", f"{disk}@one")
    said = mounted.run("snap", "rollback", f"{disk}@one").stdout
    kept = said.split("@")[-1].strip()
    assert disk.read_bytes() == old + bytes(6 * MIB)
    assert disk.stat().st_size == mounted.json("info", disk)["size"] == 8 * MIB
    assert names(mounted, disk) == ["one", kept]
    assert kept.startswith("before-rollback-")
    write(disk, b"x" * BLOCK, offset=MIB)
    mounted.run("snap", "rollback", f"{disk}@{kept}")
    assert disk.read_bytes() == new + bytes(2 * MIB)
    mounted.run("snap", "rollback", f"{disk}@one")
    assert disk.read_bytes() == old + bytes(6 * MIB)
    mounted.kill_daemon()
    assert disk.read_bytes() == old + bytes(6 * MIB)
    assert mounted.json("check", mounted.mountpoint)["findings"] == []


def test_a_reader_sees_a_rollback_that_leaves_the_size_alone(mounted: MountedPool) -> None:
    disk = filled(mounted, "disk", b"a" * MIB)
    mounted.run("snap", "create", f"{disk}@one")
    write(disk, b"b" * MIB)
    with disk.open("rb", buffering=0) as file:
        assert file.read(10) == b"b" * 10
        mounted.run("snap", "rollback", f"{disk}@one")
        assert os.pread(file.fileno(), 10, 0) == b"a" * 10
    with disk.open("r+b") as file:
        assert "open for writing" in failing(mounted, "snap", "rollback", f"{disk}@one")
        mounted.kill_daemon()  # the next one has not heard of this file yet
        assert "close it first" in failing(mounted, "snap", "rollback", f"{disk}@one")
    mounted.run("snap", "rollback", f"{disk}@one")


def test_after_a_restart_a_snapshot_still_has_what_the_kernel_had_not_written(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "1M")
    with disk.open("r+b", buffering=0) as file:
        file.write(b"a" * BLOCK)
        os.fsync(file.fileno())
        mounted.kill_daemon()
        mounted.daemon_pid()
        file.write(b"b" * BLOCK)
        mounted.run("snap", "create", f"{disk}@one")
    assert snapshot_file(mounted, disk, "one").read_bytes()[: 2 * BLOCK] == b"a" * BLOCK + b"b" * BLOCK


def test_a_flattened_clone_needs_its_parent_no_more(mounted: MountedPool) -> None:
    data = random.Random(12).randbytes(3 * MIB)
    disk = filled(mounted, "disk", data)
    clone = mounted.mountpoint / "clone"
    mounted.run("clone", disk, clone)
    write(clone, b"x" * BLOCK)
    mounted.run("flatten", clone)
    info = mounted.json("info", clone)
    assert (info["parent"], info["allocated_bytes"]) == (None, 3 * MIB)
    mounted.run("rm", "--now", disk)
    assert clone.read_bytes() == b"x" * BLOCK + data[BLOCK:] + bytes(5 * MIB)
    assert mounted.json("check", mounted.mountpoint)["findings"] == []
    mounted.run("flatten", clone)


def test_a_read_only_mount_refuses_what_would_change_the_pool(mounted: MountedPool) -> None:
    disk = filled(mounted, "disk", b"x" * BLOCK)
    gone = filled(mounted, "gone", b"y" * BLOCK)
    mounted.run("snap", "create", f"{disk}@one")
    mounted.run("rm", gone)
    mounted.umount()
    mounted.mount("-o", "ro")
    for words in (
        ("snap", "create", f"{disk}@two"), ("snap", "rm", f"{disk}@one"), ("snap", "rollback", f"{disk}@one"),
        ("snap", "rename", f"{disk}@one", "two"), ("snap", "protect", f"{disk}@one"), ("flatten", disk),
        ("clone", disk, mounted.mountpoint / "clone"), ("rm", "--snapshots", disk), ("trash", "restore", gone),
        ("trash", "purge", gone),
    ):  # fmt: skip
        assert "the mount is read-only" in failing(mounted, *words)
    assert names(mounted, disk) == ["one"]
    assert snapshot_file(mounted, disk, "one").read_bytes()[:BLOCK] == b"x" * BLOCK
    assert len(mounted.json("trash", "ls", mounted.mountpoint)["entries"]) == 1
