"""A keeper under systemd, with a socket in systemd's place: what it says, what it leaves to be kept, how it stops."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from fusefs import launch, processes, systemd
from fusefs.systemd import STORED
from tests.fusefs.fake_mount import DEADLINE_S, FakeMount
from tests.mounted_pool import wait_gone

_AS_THE_UNIT = """
import sys
from fusefs import launch
from fusefs.settings import KeeperSettings
launch.become_keeper(KeeperSettings.from_json(sys.argv[1]))
"""
"""What `vdiskfs mount --foreground` does: the unit's ExecStart."""


class Supervisor:
    """systemd's side of NOTIFY_SOCKET, and of the descriptor store."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.address = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address)
        self._socket.settimeout(DEADLINE_S)
        self.said: list[str] = []
        self.store: dict[str, int] = {}

    def wait_said(self, text: str) -> str:
        """Take in messages until one has this text."""
        while True:
            data, descriptors, _, _ = socket.recv_fds(self._socket, 4096, 8)
            message = data.decode()
            self.said.append(message)
            fields = dict(line.split("=", 1) for line in message.splitlines())
            if "FDSTORE" in fields:
                (self.store[fields["FDNAME"]],) = descriptors
            elif "FDSTOREREMOVE" in fields and fields["FDNAME"] in self.store:
                os.close(self.store.pop(fields["FDNAME"]))
            if text in message:
                return message

    def start(self, mount: FakeMount, behaviour: str = "serve") -> subprocess.Popen[bytes]:
        """Start a keeper as the unit does, with what was stored."""
        mount.state.mkdir(exist_ok=True)
        settings = replace(mount.settings(behaviour), take_over=False)
        names = list(self.store)
        stored = " ".join(
            f"{number}<&{self.store[name]}" for number, name in enumerate(names, start=systemd.FIRST_FD)
        )
        passed = (
            f"export LISTEN_PID=$$ LISTEN_FDS={len(names)} LISTEN_FDNAMES={':'.join(names)}; exec {stored};"
        )
        return subprocess.Popen(
            ["bash", "-c", f'{passed if names else ""} exec "$@"', "-", sys.executable]
            + ["-P", "-c", _AS_THE_UNIT, settings.to_json()],
            env={**launch.environment(), "NOTIFY_SOCKET": self.address},
            pass_fds=list(self.store.values()),
            stderr=subprocess.DEVNULL,
        )

    def close(self) -> None:
        """Forget everything."""
        self._socket.close()
        for descriptor in self.store.values():
            os.close(descriptor)


@contextmanager
def supervised(mount: FakeMount, folder: pathlib.Path, behaviour: str = "serve") -> Iterator[Supervisor]:
    """A served mount whose keeper thinks it runs under systemd."""
    supervisor = Supervisor(folder)
    keeper = supervisor.start(mount, behaviour)
    try:
        supervisor.wait_said("READY=1")
        yield supervisor
    finally:
        mount.tear_down()
        keeper.kill()
        keeper.wait()
        supervisor.close()


def test_a_keeper_says_when_it_serves_and_leaves_its_descriptors_to_be_kept(
    fake_mount: FakeMount, tmp_path: pathlib.Path
) -> None:
    with supervised(fake_mount, tmp_path) as supervisor:
        record = fake_mount.record()
        (ready,) = [message for message in supervisor.said if "READY=1" in message]
        assert f"MAINPID={record.keeper_pid}" in ready
        assert f"STATUS=serving {fake_mount.pool} on {fake_mount.mountpoint}, daemon {record.pid}" in ready
        assert set(supervisor.store) == set(STORED)
        assert all("FDPOLL=0" in message for message in supervisor.said if "FDSTORE=1" in message)
        environment = pathlib.Path(f"/proc/{record.pid}/environ").read_bytes()
        assert b"NOTIFY_SOCKET" not in environment
        fake_mount.end()
        supervisor.wait_said(f"FDSTOREREMOVE=1\nFDNAME={STORED[-1]}")
        assert supervisor.store == {}


def test_a_mount_whose_keeper_and_daemon_were_killed_goes_on_with_what_systemd_kept(
    fake_mount: FakeMount, tmp_path: pathlib.Path
) -> None:
    with supervised(fake_mount, tmp_path) as supervisor:
        before = fake_mount.record()
        fake_mount.kill(before.keeper, before.daemon)
        waiting = subprocess.Popen(
            [sys.executable, "-c", f"import os; print(os.statvfs({fake_mount.mountpoint!r}).f_blocks)"],
            stdout=subprocess.PIPE,
        )
        with supervisor.start(fake_mount) as keeper:
            assert waiting.communicate(timeout=DEADLINE_S)[0] == b"1000\n"
            supervisor.wait_said("READY=1")
            assert fake_mount.record().keeper_pid == keeper.pid
            fake_mount.kill(fake_mount.record().daemon)
            assert os.statvfs(fake_mount.mountpoint).f_blocks == 1000
            fake_mount.end()
        assert keeper.returncode == 0


def test_a_mount_whose_keeper_alone_was_killed_is_taken_over_though_systemd_kept_it_too(
    fake_mount: FakeMount, tmp_path: pathlib.Path
) -> None:
    with supervised(fake_mount, tmp_path) as supervisor:
        before = fake_mount.record()
        fake_mount.kill(before.keeper)
        with supervisor.start(fake_mount) as keeper:
            supervisor.wait_said("READY=1")
            assert fake_mount.record().keeper_pid == keeper.pid
            assert fake_mount.record().pid == before.pid
            fake_mount.end()
        assert keeper.returncode == 0


def test_descriptors_meant_for_another_process_are_left_alone() -> None:
    mine = {"LISTEN_FDS": "3", "LISTEN_FDNAMES": ":".join(STORED)}
    assert systemd.stored_descriptors({**mine, "LISTEN_PID": "1"}) == {}
    assert systemd.stored_descriptors({}) == {}
    assert systemd.stored_descriptors({"LISTEN_PID": "x", "LISTEN_FDS": "1"}) == {}


def test_a_supervisor_that_is_gone_costs_nothing(tmp_path: pathlib.Path) -> None:
    notifier = systemd.ServiceNotifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    notifier.ready("serving")
    notifier.forget_stored()
    assert notifier.is_supervised


def test_a_stopped_keeper_breaks_a_mount_in_use_after_its_deadline(
    fake_mount: FakeMount, tmp_path: pathlib.Path
) -> None:
    fake_mount.stop_s = 0.3
    with supervised(fake_mount, tmp_path) as supervisor:
        record = fake_mount.record()
        with subprocess.Popen(
            [sys.executable, "-c", "input()"], cwd=fake_mount.mountpoint, stdin=subprocess.PIPE
        ) as user:
            os.kill(record.keeper_pid, signal.SIGTERM)
            supervisor.wait_said("STOPPING=1")
            wait_gone(record.keeper_pid)
            wait_gone(record.pid)
            assert fake_mount.entry() is None
            user.communicate(b"\n")


def test_a_keeper_that_nobody_supervises_leaves_a_mount_in_use_alone(fake_mount: FakeMount) -> None:
    fake_mount.stop_s = 0.1
    fake_mount.launch()
    record = fake_mount.record()
    with subprocess.Popen(
        [sys.executable, "-c", "print(flush=True); input()"],
        cwd=fake_mount.mountpoint,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as user:
        assert user.stdout is not None
        user.stdout.readline()
        os.kill(record.keeper_pid, signal.SIGTERM)
        fake_mount.wait_logged("cannot unmount")
        assert not processes.wait_gone([record.keeper], until=time.monotonic() + 0.5)
        assert os.statvfs(fake_mount.mountpoint).f_blocks == 1000
        user.communicate(b"\n")
    fake_mount.end()
