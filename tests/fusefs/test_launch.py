"""What is checked before a keeper starts: each thing that can be wrong is one clear line, and nothing is touched."""

import os
import pathlib
from collections.abc import Sequence
from dataclasses import replace

import pytest

from fusefs import keeper_socket, launch, mount_table, registry
from fusefs.handover import Stage, report_error, report_progress, report_ready, report_stage
from fusefs.mount_table import MountEntry
from fusefs.processes import process_id
from fusefs.registry import MountRecord
from fusefs.settings import KeeperSettings, UpgradeSettings
from metadata.errors import Exists, InvalidRequest, NotFound


@pytest.fixture
def settings(tmp_path: pathlib.Path) -> KeeperSettings:
    for name in ("mnt", "pool", "state", "run"):
        (tmp_path / name).mkdir()
    return KeeperSettings(
        pool=f"{tmp_path}/pool",
        mountpoint=f"{tmp_path}/mnt",
        node="a",
        state=f"{tmp_path}/state",
        runtime=f"{tmp_path}/run",
        options=(),
        daemon=("python3",),
    )


def record_of(settings: KeeperSettings, *, serving: bool = True) -> MountRecord:
    """A daemon that lives (this process), whose keeper does not."""
    me = process_id(os.getpid())
    return MountRecord(
        mountpoint=settings.mountpoint,
        pool=settings.pool,
        node="node",
        state="/its-state",
        control="/its-runtime/control",
        log="/log",
        uid=os.geteuid(),
        keeper_pid=me.pid,
        keeper_started=me.started_ticks - 1,
        pid=me.pid,
        pid_started=me.started_ticks,
        serving=serving,
    )


class Mounted:
    """What the kernel says is mounted; an unmount takes the uppermost away, unless nothing moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, entries: Sequence[MountEntry]) -> None:
        self.entries, self.unmounted, self.stuck = list(entries), 0, False
        monkeypatch.setattr(mount_table, "read_mounts", lambda: list(self.entries))
        monkeypatch.setattr(launch.mounting, "unmount", self._unmount)

    def _unmount(self, mountpoint: str, *, lazy: bool) -> None:
        assert lazy
        self.unmounted += 1
        if not self.stuck:
            self.entries.pop()


def entry(settings: KeeperSettings, *, kind: str = "fuse.vdiskfs") -> MountEntry:
    return MountEntry(settings.mountpoint, kind, "/pool", 99, os.geteuid())


def test_a_free_directory_is_taken_as_it_is(
    settings: KeeperSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mounted(monkeypatch, [])
    assert launch.check_mountpoint(settings) == settings


def test_what_cannot_be_mounted_on_is_said(settings: KeeperSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    Mounted(monkeypatch, [])
    missing = replace(settings, mountpoint=f"{settings.mountpoint}/missing")
    with pytest.raises(NotFound, match="make it first: mkdir -p"):
        launch.check_mountpoint(missing)
    pathlib.Path(missing.mountpoint).touch()
    with pytest.raises(InvalidRequest, match="is not a directory"):
        launch.check_mountpoint(missing)
    above = os.path.dirname(settings.mountpoint)
    with pytest.raises(InvalidRequest, match=r"the pool .* would be hidden"):
        launch.check_mountpoint(replace(settings, mountpoint=above))
    with pytest.raises(InvalidRequest, match=r"the state directory .* would be hidden"):
        launch.check_mountpoint(replace(settings, mountpoint=above, pool="/elsewhere"))
    with pytest.raises(InvalidRequest, match="lies inside the pool"):
        launch.check_mountpoint(replace(settings, mountpoint=settings.state, pool=above, state="/elsewhere"))


def test_what_is_mounted_there_is_left_alone(
    settings: KeeperSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = Mounted(monkeypatch, [entry(settings, kind="tmpfs")])
    with pytest.raises(Exists, match="is busy: tmpfs is mounted on it"):
        launch.check_mountpoint(settings)
    mounted.entries = [entry(settings)]
    monkeypatch.setattr(launch, "find_record", lambda entry: record_of(settings, serving=False))
    monkeypatch.setattr(launch, "DYING_S", 0.0)
    with pytest.raises(Exists, match="is busy: /pool is mounted on it already"):
        launch.check_mountpoint(settings)
    assert mounted.unmounted == 0


def test_dead_mounts_are_taken_away_one_by_one_but_not_for_ever(
    settings: KeeperSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted = Mounted(monkeypatch, [entry(settings)] * 3)
    monkeypatch.setattr(launch, "find_record", lambda entry: None)
    monkeypatch.setattr(launch.processes, "statvfs_error", lambda path, allowed_s: 107)
    assert launch.check_mountpoint(settings) == settings
    assert mounted.unmounted == 3
    mounted.entries, mounted.stuck = [entry(settings)], True
    launch.check_mountpoint(settings)
    assert mounted.unmounted == 3 + launch.STACK_MAX


@pytest.mark.parametrize("error", [0, None, 13])
def test_one_that_nobody_registered_is_dead_only_if_the_kernel_says_so(
    error: int | None, settings: KeeperSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch.processes, "statvfs_error", lambda path, allowed_s: error)
    assert not launch.is_disconnected(entry(settings), None)


def test_a_daemon_that_lost_its_keeper_is_taken_over_with_what_it_has(
    settings: KeeperSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Mounted(monkeypatch, [entry(settings)])
    record = record_of(settings)
    monkeypatch.setattr(launch, "find_record", lambda entry: record)
    found = launch.check_mountpoint(settings)
    assert (found.take_over, found.node, found.state, found.runtime) == (
        True,
        "node",
        "/its-state",
        "/its-runtime",
    )
    assert not launch.is_orphan(replace(record, serving=False))
    assert not launch.is_orphan(replace(record, uid=os.geteuid() + 1))
    assert not launch.is_orphan(replace(record, keeper_started=record.pid_started))
    assert not launch.is_orphan(replace(record, pid_started=record.pid_started - 1))
    monkeypatch.setattr(launch, "DYING_S", 0.0)
    with pytest.raises(Exists, match="is busy"):
        launch.check_mountpoint(replace(settings, pool=settings.state))


@pytest.mark.parametrize("is_kept", [False, True])
def test_a_keeper_in_the_foreground_becomes_this_process(
    is_kept: bool, settings: KeeperSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[str, list[str]]] = []
    Mounted(monkeypatch, [])
    monkeypatch.setattr(launch.mounting, "check_device", lambda: None)
    monkeypatch.setattr(launch.os, "chdir", lambda path: None)
    monkeypatch.setattr(
        launch.os, "execve", lambda path, command, environment: started.append((path, command))
    )
    monkeypatch.setattr(launch.systemd, "stored_descriptors", lambda environment: [3] if is_kept else [])
    for record in (None, record_of(settings), record_of(replace(settings, pool="/another"))):
        monkeypatch.setattr(registry, "read", lambda folder, mountpoint, uid, record=record: record)
        launch.become_keeper(settings)
    told = [KeeperSettings.from_json(command[-1]) for _, command in started]
    assert [one.take_over for one in told] == [False, is_kept, False]
    assert all(command[1:4] == ["-P", "-m", "fusefs.keeper"] for _, command in started)


def test_an_upgrade_asks_the_mount_s_keeper_for_this_release(
    settings: KeeperSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, UpgradeSettings]] = []
    monkeypatch.setattr(
        keeper_socket, "ask_upgrade", lambda path, wanted, *, progress: asked.append((path, wanted))
    )
    launch.upgrade(record_of(settings), progress=print)
    ((path, wanted),) = asked
    assert path == registry.keeper_path("/its-runtime", settings.mountpoint)
    assert wanted.daemon == launch.daemon_command()


def test_the_way_to_the_code_goes_along_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/before")
    monkeypatch.setattr(launch, "__file__", "/code/fusefs/launch.py")
    assert launch.environment()["PYTHONPATH"] == "/code:/before"
    monkeypatch.delenv("PYTHONPATH")
    assert launch.environment()["PYTHONPATH"] == "/code"
    monkeypatch.setattr(launch, "__file__", "/venv/site-packages/fusefs/launch.py")
    assert "PYTHONPATH" not in launch.environment()


def test_the_wait_ends_with_ready_with_a_reason_or_with_the_keeper() -> None:
    for last, reason in ((report_ready, None), (lambda fd: report_error(fd, "why"), "why"), (None, "")):
        receiver, sender = os.pipe()
        report_progress(sender, "replaying")
        report_stage(sender, Stage.STANDING_BY)
        if last is not None:
            last(sender)
        os.close(sender)
        heard: list[str] = []
        assert launch._wait_ready(receiver, heard.append) == reason
        assert heard == ["replaying"]
        os.close(receiver)
