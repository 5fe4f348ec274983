"""The keeper: what becomes of a mount whose daemons die, do not start, or end."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from fusefs import ending, handover, keeper, launch, processes, state_directory
from fusefs.handover import Report
from fusefs.settings import NodeSettings
from metadata.errors import InvalidRequest, Unavailable
from tests.fusefs.fake_mount import DEADLINE_S, FakeMount


def test_a_mount_is_served_when_launch_returns(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    record = fake_mount.record()
    assert os.statvfs(fake_mount.mountpoint).f_blocks == 1000
    assert (record.serving, record.restarts, record.last_error) == (True, 0, None)
    assert record.keeper.is_alive()
    assert record.daemon.is_alive()


def test_everything_is_gone_when_a_mount_has_ended(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    record = fake_mount.record()
    fake_mount.end()
    assert fake_mount.entry() is None
    assert not record.is_alive()
    assert not fake_mount.is_registered()


def test_a_killed_daemon_is_followed_by_another_that_gets_the_same_init(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    before = fake_mount.record()
    fake_mount.kill(before.daemon)
    assert os.statvfs(fake_mount.mountpoint).f_blocks == 1000  # waits for the next daemon
    after = fake_mount.record()
    assert (after.keeper, after.restarts) == (before.keeper, 1)
    assert after.daemon != before.daemon
    assert "SIGKILL" in str(after.last_error)
    fake_mount.end()


def test_a_daemon_that_dies_again_and_again_keeps_its_mount(fake_mount: FakeMount) -> None:
    fake_mount.launch("dies-3")
    fake_mount.kill(fake_mount.record().daemon)
    os.statvfs(fake_mount.mountpoint)
    record = fake_mount.record()
    assert record.restarts == 4
    assert "exit status 4" in str(record.last_error)
    fake_mount.end()


def test_a_mount_whose_daemons_keep_dying_can_be_unmounted(fake_mount: FakeMount) -> None:
    fake_mount.launch("dies-1000")
    record = fake_mount.record()
    fake_mount.kill(record.daemon)
    with contextlib.suppress(Unavailable):  # which says so if one was just dying
        fake_mount.end()
    assert fake_mount.entry() is None
    assert not record.keeper.is_alive()
    assert not fake_mount.is_registered()


def test_a_keeper_that_goes_on_for_long_begins_a_new_log(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    log = fake_mount.state / "log"
    with log.open("r+b") as file:
        file.truncate(state_directory.LOG_BYTES_MAX + 1)
    fake_mount.kill(fake_mount.record().daemon)
    os.statvfs(fake_mount.mountpoint)
    fake_mount.end()
    assert log.stat().st_size < state_directory.LOG_BYTES_MAX < (fake_mount.state / "log.1").stat().st_size


def test_pauses_grow_with_each_quick_death_up_to_a_limit() -> None:
    pauses = [keeper.pause_before_start_s(deaths) for deaths in range(20)]
    assert pauses[:2] == [0.0, 0.0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == keeper.PAUSES_S[-1] == 30.0


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("refuse", "the pool is not to my taste"), ("vanish", "exit status 3, see ")]
)
def test_a_first_daemon_that_fails_leaves_nothing_behind(
    fake_mount: FakeMount, behaviour: str, reason: str
) -> None:
    with pytest.raises(Unavailable, match=reason):
        fake_mount.launch(behaviour)
    assert fake_mount.entry() is None
    assert not fake_mount.is_registered()
    fake_mount.launch()  # the state directory is free again
    fake_mount.end()


def test_a_daemon_that_cannot_be_started_is_named(fake_mount: FakeMount) -> None:
    missing = replace(fake_mount.settings(), daemon=("/nonexistent/daemon",))
    with pytest.raises(Unavailable, match="cannot start /nonexistent/daemon"):
        launch.launch(missing, progress=lambda text: None)
    assert fake_mount.entry() is None


def test_a_daemon_that_outlives_its_keeper_goes_on_serving_and_can_be_unmounted(
    fake_mount: FakeMount,
) -> None:
    fake_mount.launch()
    record = fake_mount.record()
    fake_mount.kill(record.keeper)
    assert os.statvfs(fake_mount.mountpoint).f_blocks == 1000
    fake_mount.end()
    assert not record.is_alive()
    assert not fake_mount.is_registered()


def test_a_mount_whose_processes_were_all_killed_is_mounted_again(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    record = fake_mount.record()
    fake_mount.kill(record.keeper, record.daemon)
    fake_mount.launch()
    assert fake_mount.record().keeper != record.keeper
    assert os.statvfs(fake_mount.mountpoint).f_blocks == 1000
    fake_mount.end()
    assert fake_mount.entry() is None


def test_a_mount_whose_processes_were_all_killed_can_be_unmounted(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    record = fake_mount.record()
    fake_mount.kill(record.keeper, record.daemon)
    fake_mount.end()
    assert fake_mount.entry() is None
    assert not fake_mount.is_registered()


def test_a_daemon_that_fails_at_the_end_is_reported_by_the_unmount(fake_mount: FakeMount) -> None:
    fake_mount.launch("ends-badly")
    with pytest.raises(Unavailable, match="unmounted, but the daemon ended with exit status 5"):
        fake_mount.end()
    assert fake_mount.entry() is None
    assert not fake_mount.is_registered()


def test_a_busy_mount_stays_and_names_its_user(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    user = subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        cwd=fake_mount.mountpoint,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with user:
        assert user.stdout is not None
        user.stdout.readline()
        with pytest.raises(Unavailable, match=f"is busy: .*pid {user.pid}, {fake_mount.mountpoint}"):
            fake_mount.end()
        assert os.statvfs(fake_mount.mountpoint).f_blocks == 1000
        user.communicate(b"\n")
    fake_mount.end()


def test_a_deaf_daemon_s_mount_ends_by_force(fake_mount: FakeMount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "FORCED_S", 0.1)
    fake_mount.launch("deaf")
    record = fake_mount.record()
    fake_mount.end(force=True)
    assert fake_mount.entry() is None
    assert not record.is_alive()


def test_a_daemon_that_does_not_end_in_time_is_said_to_be_still_writing(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    record = fake_mount.record()
    os.kill(record.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable, match=f"pid {record.pid}.*still writes back"):
        fake_mount.end(timeout_s=2)
    os.kill(record.pid, signal.SIGCONT)
    assert processes.wait_gone([record.keeper], until=time.monotonic() + DEADLINE_S)
    assert not fake_mount.is_registered()


def test_a_keeper_asked_to_end_unmounts(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    record = fake_mount.record()
    os.kill(record.keeper_pid, signal.SIGTERM)
    assert processes.wait_gone([record.keeper, record.daemon], until=time.monotonic() + DEADLINE_S)
    assert fake_mount.entry() is None


def test_one_state_directory_serves_one_mount(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    elsewhere = str(fake_mount.pool.with_name("elsewhere"))
    os.mkdir(elsewhere)
    other = replace(fake_mount.settings(), mountpoint=elsewhere)
    with pytest.raises(Unavailable, match=f"in use by the mount on {fake_mount.mountpoint}"):
        launch.launch(other, progress=lambda text: None)
    fake_mount.end()


def test_what_a_mount_would_hide_from_its_own_daemon_is_refused(fake_mount: FakeMount) -> None:
    settings, inside = fake_mount.settings(), fake_mount.mountpoint + "/inside"
    for wrong in (
        replace(settings, pool=inside),
        replace(settings, state=inside),
        replace(settings, mountpoint=str(fake_mount.pool)),
    ):
        with pytest.raises(InvalidRequest):
            launch.launch(wrong, progress=lambda text: None)


def test_progress_before_readiness_reaches_the_caller_whole() -> None:
    reports_fd, ready_fd = os.pipe()
    handover.report_progress(ready_fd, "rebuilding the index\n1 of 2")
    handover.report_ready(ready_fd)
    handover.report_error(ready_fd, "x" * 10_000)
    os.close(ready_fd)
    with open(reports_fd, "rb") as file:
        content = file.read()
    reader = handover.ReportReader()
    pieces = [content[start : start + 7] for start in range(0, len(content), 7)]
    reports = [report for piece in pieces for report in reader.feed(piece)]
    assert reports[:2] == [Report(progress="rebuilding the index 1 of 2"), Report(ready=True)]
    assert reports[2].error == "x" * handover.TEXT_CHARACTERS_MAX


def test_an_unreadable_report_is_an_error_and_no_crash() -> None:
    for line in (b"\xff\n", b"[]\n", b'{"ready": 1}\n', b'{"error": 1}\n', b"\n"):
        (report,) = handover.ReportReader().feed(line)
        assert report.error is not None or line == b'{"ready": 1}\n'


def test_a_report_to_nobody_is_no_error() -> None:
    reports_fd, ready_fd = os.pipe()
    os.close(reports_fd)
    handover.report_ready(ready_fd)
    os.close(ready_fd)


def test_a_half_stored_init_counts_as_none() -> None:
    init_fd = os.memfd_create("init")
    assert handover.load_init(init_fd) is None
    os.pwrite(init_fd, b"request", 4)  # died before the length was written
    assert handover.load_init(init_fd) is None
    handover.store_init(init_fd, b"request")
    assert handover.load_init(init_fd) == b"request"
    os.close(init_fd)


def test_settings_survive_their_journey_and_refuse_strangers() -> None:
    settings = NodeSettings(
        pool="/p",
        mountpoint="/m\udcff",
        node="n",
        state="/s",
        control="/c",
        uid=0,
        fuse_fd=3,
        init_fd=4,
        ready_fd=5,
    )
    assert NodeSettings.from_json(settings.to_json()) == settings
    for text in ("", "[]", "{}", settings.to_json().replace('"uid"', '"gid"')):
        with pytest.raises(InvalidRequest):
            NodeSettings.from_json(text)
