"""Unmounting when the kernel waits for a daemon that answers late, or never."""

import os
import select
import subprocess
import sys
from dataclasses import replace

import pytest

from fusefs import ending, mounting, processes
from fusefs.mount_table import MountEntry
from fusefs.registry import MountRecord
from metadata.errors import NotFound, Unavailable
from tests.fusefs.fake_mount import FakeMount

unmount = mounting.unmount
HANGS_MS = 5000


def wait_for_the_daemon(mountpoint: str, *, lazy: bool = False, force: bool = False) -> None:
    """An unmount that cannot write back; a lazy or forced one need not."""
    if not lazy and not force:
        select.poll().poll(HANGS_MS)
        os._exit(0)
    unmount(mountpoint, lazy=lazy, force=force)


def test_a_daemon_that_does_not_answer_is_given_up(
    fake_mount: FakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mounting, "unmount", wait_for_the_daemon)
    monkeypatch.setattr(ending, "ANSWER_S", 0.1)
    fake_mount.launch("deaf")
    record = fake_mount.record()
    with pytest.raises(Unavailable, match=r"unmounted, but its daemon did not answer for 0.1 s"):
        fake_mount.end(timeout_s=0.1)
    assert fake_mount.entry() is None
    assert not record.is_alive()
    assert not fake_mount.is_registered()


def test_a_daemon_that_answers_is_left_to_its_writing(
    fake_mount: FakeMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_mount.launch()
    with monkeypatch.context() as patched:
        patched.setattr(mounting, "unmount", wait_for_the_daemon)
        with pytest.raises(Unavailable, match="still being written back"):
            fake_mount.end(timeout_s=0.1)
    assert os.statvfs(fake_mount.mountpoint).f_blocks == 1000
    fake_mount.end()


def test_asking_a_mount_that_nobody_serves_takes_no_longer_than_allowed(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    record = fake_mount.record()
    # Somebody else holds the descriptor, as systemd does.
    (holder,) = fake_mount.copies_of_descriptors()
    fake_mount.kill(record.keeper, record.daemon)
    assert processes.statvfs_error(fake_mount.mountpoint, allowed_s=0.1) is None
    os.close(holder)
    assert processes.statvfs_error(fake_mount.mountpoint, allowed_s=30) != 0


def test_a_command_s_own_children_end_with_it() -> None:
    """What asks in another process leaves none behind."""
    probe = "from fusefs import processes; print(processes.statvfs_error('/nonexistent', allowed_s=30))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert done.stdout == "2\n", done.stderr


def entry_at(path: str) -> MountEntry:
    return MountEntry(path, "fuse.vdiskfs", "/pool", 99, os.geteuid())


def record_at(path: str, *, pid: int = 0) -> MountRecord:
    """Of processes that are gone already, unless told."""
    return MountRecord(
        mountpoint=path,
        pool="/pool",
        node="a",
        state="/state",
        control="/runtime/control",
        log="/log",
        uid=os.geteuid(),
        keeper_pid=0,
        keeper_started=1,
        pid=pid,
        pid_started=1,
    )


@pytest.mark.parametrize("filesystem", [None, "tmpfs"])
def test_what_is_no_mount_of_ours_is_left_alone(
    filesystem: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = [] if filesystem is None else [MountEntry("/mnt", filesystem, "x", 1, None)]
    monkeypatch.setattr(ending.mount_table, "read_mounts", lambda: there)
    with pytest.raises(NotFound, match="/mnt is not a vdiskfs mount"):
        ending.end_mount("/mnt", timeout_s=1, force=True)


@pytest.mark.parametrize("is_root", [True, False])
def test_a_connection_is_broken_by_whatever_means_there_are(
    is_root: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def refuse(minor: int) -> None:
        raise PermissionError

    monkeypatch.setattr(ending.mounting, "abort_connection", refuse)
    monkeypatch.setattr(ending.mounting, "unmount", lambda path, force: done.append("unmounted by force"))
    monkeypatch.setattr(ending.processes, "kill", lambda process: done.append("killed"))
    monkeypatch.setattr(os, "geteuid", lambda: 0 if is_root else 1000)
    ending._break(entry_at("/mnt"), record_at("/mnt"))
    assert done == (["unmounted by force"] if is_root else ["killed"] * 2)
    done.clear()
    ending._break(entry_at("/mnt"), None)
    assert done == (["unmounted by force"] if is_root else [])


def test_a_mount_below_is_named_as_what_keeps_it_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        ending.mount_table,
        "read_mounts",
        lambda: [entry_at("/mnt"), entry_at("/mnt/below"), entry_at("/mntx")],
    )
    assert ending._who_uses("/mnt") == "something is mounted below it on /mnt/below"


@pytest.mark.parametrize(
    ("last_error", "is_another", "words"),
    [(None, False, None), ("it died of signal 9", False, "it died of signal 9"), ("it died", True, None)],
)
def test_what_a_keeper_left_behind_is_read_once_unless_it_is_another_mount_s(
    last_error: str | None, is_another: bool, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    removed: list[str] = []
    record = record_at("/mnt")
    left = replace(
        record, ended=True, last_error=last_error, keeper_pid=7 if is_another else record.keeper_pid
    )
    if last_error is None:
        left = replace(left, ended=False)
    monkeypatch.setattr(ending.registry, "read", lambda folder, mountpoint, uid: left)
    monkeypatch.setattr(ending.registry, "remove", lambda folder, mountpoint: removed.append(mountpoint))
    if words is None:
        ending._read_tombstone(record)
    else:
        with pytest.raises(Unavailable, match=rf"unmounted, but {words}: what was flushed is safe"):
            ending._read_tombstone(record)
    assert removed == ([] if is_another else ["/mnt"])
