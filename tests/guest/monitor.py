"""QEMU's machine protocol: one command, its answer."""

import json
import pathlib
import socket
import time
from collections.abc import Mapping
from typing import Any

MONITOR_S = 60.0


class Monitor:
    """The monitor of one QEMU, on a unix socket that it listens on; used with ``with``."""

    def __init__(self, path: pathlib.Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(MONITOR_S)
        deadline = time.monotonic() + MONITOR_S
        while True:
            try:
                self._socket.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline, "qemu does not listen"
        self._lines = self._socket.makefile("r")
        self._lines.readline()  # the greeting
        self.run("qmp_capabilities")

    def __enter__(self) -> "Monitor":
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self._socket.close()

    def run(self, command: str, **arguments: object) -> Any:
        """What the command answers; events that come in between are of no interest."""
        self._socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        while True:
            told: Mapping[str, Any] = json.loads(self._lines.readline())
            assert "error" not in told, told
            if "return" in told:
                return told["return"]

    def wait_migrated(self) -> None:
        """Return when this QEMU has given its guest away."""
        deadline = time.monotonic() + MONITOR_S
        while (status := self.run("query-migrate").get("status")) != "completed":
            assert status not in ("failed", "cancelled"), status
            assert time.monotonic() < deadline, f"not migrated within {MONITOR_S} s: {status}"
