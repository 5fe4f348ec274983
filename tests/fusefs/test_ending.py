"""Unmounting when the kernel waits for a daemon that answers late, or never."""

import os
import select
import subprocess
import sys

import pytest

from fusefs import ending, mounting, processes
from metadata.errors import Unavailable
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
