"""A real etcd from Debian's packages: members on loopback, or wherever a test puts them, that can be killed and stopped."""

import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress

READY_S = 60.0
ETCD = shutil.which("etcd") or "/usr/bin/etcd"
ETCDCTL = shutil.which("etcdctl") or "/usr/bin/etcdctl"


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


class EtcdMembers:
    """An etcd cluster of ``count`` members, numbered from 0; used with ``with``."""

    def __init__(
        self,
        folder: pathlib.Path,
        count: int = 1,
        *,
        options: Sequence[str] = (),
        hosts: Sequence[str] = (),
        entrances: Sequence[Sequence[str]] = (),
        scheme: str = "http",
    ) -> None:
        """
        Args:
            folder: data and logs.
            options: for each member.
            hosts: their addresses; loopback unless told.
            entrances: what each member's command is run with, to be on its host.
            scheme: of the client addresses.
        """
        self._folder, self._options, self._scheme = folder, list(options), scheme
        self._hosts = list(hosts) or ["127.0.0.1"] * count
        self._entrances = list(entrances) or [()] * count
        ports = free_ports(2 * count)
        self.client_ports, self._peer_ports = ports[:count], ports[count:]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count

    @property
    def url(self) -> str:
        """The catalog's address."""
        return "etcd://" + ",".join(
            f"{host}:{port}" for host, port in zip(self._hosts, self.client_ports, strict=True)
        )

    def __enter__(self) -> "EtcdMembers":
        try:
            for number in range(len(self._processes)):
                self.start(number)
            self.wait_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number, process in enumerate(self._processes):
            if process is not None:
                with suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
                self.kill(number)

    def start(self, number: int) -> None:
        """Start a member, anew if it was killed."""
        peers = [f"http://{host}:{port}" for host, port in zip(self._hosts, self._peer_ports, strict=True)]
        client = f"{self._scheme}://{self._hosts[number]}:{self.client_ports[number]}"
        command = [
            *self._entrances[number],
            *(ETCD, "--name", f"e{number}", "--data-dir", str(self._folder / f"etcd{number}")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peers[number], "--initial-advertise-peer-urls", peers[number]),
            *("--initial-cluster", ",".join(f"e{n}={peer}" for n, peer in enumerate(peers))),
            *("--initial-cluster-state", "new"),
            *self._options,
        ]
        with open(self._folder / f"etcd{number}.log", "ab") as log:
            self._processes[number] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, number: int) -> None:
        """kill -9; waits until it is gone."""
        process = self._processes[number]
        assert process is not None
        process.kill()
        process.wait()
        self._processes[number] = None

    def pause(self, number: int) -> None:
        """SIGSTOP: it accepts, and says nothing."""
        process = self._processes[number]
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)

    def wake(self, number: int) -> None:
        """SIGCONT."""
        process = self._processes[number]
        assert process is not None
        os.kill(process.pid, signal.SIGCONT)

    def ctl(self, *words: str, number: int = 0, is_checked: bool = True) -> str:
        """What etcdctl says to a member."""
        client = f"{self._scheme}://{self._hosts[number]}:{self.client_ports[number]}"
        done = subprocess.run(
            [*self._entrances[number], ETCDCTL, "--endpoints", client, *words],
            env={**os.environ, "ETCDCTL_API": "3"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not is_checked, done.stderr
        return done.stdout + done.stderr

    def wait_ready(self, *options: str) -> None:
        """Return when all members that run serve."""
        deadline = time.monotonic() + READY_S
        for number, process in enumerate(self._processes):
            while process is not None:
                if "is healthy" in self.ctl(*options, "endpoint", "health", number=number, is_checked=False):
                    break
                assert process.poll() is None, f"etcd ended, see {self._folder}/etcd{number}.log"
                assert time.monotonic() < deadline, f"etcd is not ready, see {self._folder}/etcd{number}.log"

    def leader(self) -> int:
        """The member that leads now."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            for number, process in enumerate(self._processes):
                if process is not None:
                    said = self.ctl("endpoint", "status", number=number, is_checked=False).split(", ")
                    if len(said) > 4 and said[4] == "true":
                        return number
        raise AssertionError("etcd finds no leader")
