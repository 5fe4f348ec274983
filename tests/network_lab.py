"""Hosts as network namespaces on one bridge: for nodes that really talk TCP, and can be cut off from each other.

Mounts stay visible to the test, because commands enter a host's network and nothing else.
"""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
SETTLE_S = 30.0
_FILTER = "add table inet f; add chain inet f in { type filter hook input priority 0; }"
_CAPTURE = """
import socket, sys
heard = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
with open(sys.argv[1], "wb", buffering=0) as file:
    file.write(b"begin")
    while True:
        file.write(heard.recv(1 << 16))
"""


def _run(*command: str) -> None:
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


class NetworkLab:
    """``count`` hosts, numbered from 1; used with ``with``, by root."""

    def __init__(self, count: int) -> None:
        self._count, self._stem = count, f"vd{os.getpid()}"
        self._switch = f"{self._stem}-switch"

    def __enter__(self) -> "NetworkLab":
        try:
            _run("ip", "netns", "add", self._switch)
            self._inside(self._switch, "ip", "link", "set", "lo", "up")
            self._inside(self._switch, "ip", "link", "add", "br0", "type", "bridge")
            self._inside(self._switch, "ip", "link", "set", "br0", "up")
            for host in range(1, self._count + 1):
                self._add(host)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in (self._switch, *map(self._name, range(1, self._count + 1))):
            subprocess.run(["ip", "netns", "del", name], env=ENVIRONMENT, capture_output=True)

    def _add(self, host: int) -> None:
        name, plug, port = self._name(host), f"v{host}", f"p{host}"
        _run("ip", "netns", "add", name)
        self._inside(self._switch, *f"ip link add {plug} netns {name} type veth peer name {port}".split())
        self._inside(self._switch, "ip", "link", "set", port, "master", "br0", "up")
        self._inside(name, "ip", "addr", "add", f"{self.address(host)}/24", "dev", plug)
        self._inside(name, "ip", "link", "set", plug, "up")
        self._inside(name, "ip", "link", "set", "lo", "up")
        self._inside(name, "nft", _FILTER)

    def _name(self, host: int) -> str:
        return f"{self._stem}-{host}"

    def _inside(self, name: str, *command: str) -> None:
        _run("nsenter", f"--net=/var/run/netns/{name}", *command)

    def address(self, host: int) -> str:
        return f"10.98.0.{host}"

    def entrance(self, host: int) -> tuple[str, ...]:
        """What a command is run with to be on this host."""
        return "nsenter", f"--net=/var/run/netns/{self._name(host)}"

    def drop(self, source: int, target: int) -> None:
        """Nothing from ``source`` arrives at ``target`` any more."""
        rule = f"add rule inet f in ip saddr {self.address(source)} drop"
        self._inside(self._name(target), "nft", rule)

    def cut(self, one: int, other: int) -> None:
        """Neither hears the other."""
        self.drop(one, other)
        self.drop(other, one)

    def heal(self) -> None:
        """All hear each other again."""
        for host in range(1, self._count + 1):
            self._inside(self._name(host), "nft", "flush chain inet f in")

    @contextmanager
    def captured(self, path: pathlib.Path) -> Iterator[None]:
        """Inside, every packet on the bridge goes to a file."""
        command = [
            "nsenter",
            f"--net=/var/run/netns/{self._switch}",
            sys.executable,
            "-c",
            _CAPTURE,
            str(path),
        ]
        listener = subprocess.Popen(command, env=ENVIRONMENT)
        try:
            deadline = time.monotonic() + SETTLE_S
            while not (path.exists() and path.stat().st_size):
                assert listener.poll() is None, "cannot capture"
                assert time.monotonic() < deadline, "captures nothing"
            yield
        finally:
            listener.send_signal(signal.SIGKILL)
            listener.wait()
