"""Mounts with a keeper that is real and a daemon that is not; everything is cleaned up."""

import contextlib
import os
import pathlib
import socket
import sys
import time
from dataclasses import replace

from fusefs import adoption, control_client, ending, keeper_socket, launch, mount_table, processes, registry
from fusefs.mount_table import MountEntry
from fusefs.registry import MountRecord
from fusefs.settings import KeeperSettings, NodeSettings, UpgradeSettings

DAEMON = pathlib.Path(__file__).with_name("fake_daemon.py")
DEADLINE_S = 30.0


class FakeMount:
    """One mountpoint below a folder, not mounted until ``launch``."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.mountpoint = str(folder / "mnt")
        self.pool, self.state = folder / "pool", folder / "state"
        for path in (folder / "mnt", self.pool):
            path.mkdir()
        self.stop_s = DEADLINE_S
        """The keeper's patience once it is asked to end."""
        self.runtime = registry.runtime_folder(os.geteuid(), os.environ)

    def settings(self, behaviour: str = "serve", *, options: tuple[str, ...] = ()) -> KeeperSettings:
        """What a keeper is told."""
        return KeeperSettings(
            pool=str(self.pool),
            mountpoint=self.mountpoint,
            node="node",
            state=str(self.state),
            runtime=self.runtime,
            options=options,
            daemon=(sys.executable, "-P", str(DAEMON), behaviour),
            stop_s=self.stop_s,
        )

    def launch(self, behaviour: str = "serve", *, options: tuple[str, ...] = ()) -> None:
        """Mount."""
        launch.launch(self.settings(behaviour, options=options), progress=lambda text: None)

    def upgrade(self, behaviour: str = "serve", *, listen: str = "", cache_bytes: int = 0) -> None:
        """Put another daemon in the place of the one that serves."""
        path = registry.keeper_path(self.runtime, self.mountpoint)
        wanted = replace(self._wanted(behaviour), listen=listen, cache_bytes=cache_bytes)
        keeper_socket.ask_upgrade(path, wanted, progress=lambda text: None)

    def ask_for_upgrade(self, behaviour: str) -> socket.socket:
        """The same, and not wait; the reports can be read."""
        connection = self.keeper_socket()
        connection.sendall(self._wanted(behaviour).to_json().encode() + b"\n")
        return connection

    def keeper_socket(self) -> socket.socket:
        """A connection to the keeper."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(DEADLINE_S)
        connection.connect(registry.keeper_path(self.runtime, self.mountpoint))
        return connection

    def _wanted(self, behaviour: str) -> UpgradeSettings:
        pythonpath = launch.environment().get("PYTHONPATH", "")
        return UpgradeSettings(daemon=self.settings(behaviour).daemon, pythonpath=pythonpath)

    def end(self, *, force: bool = False, timeout_s: float = DEADLINE_S) -> None:
        """Unmount."""
        ending.end_mount(self.mountpoint, timeout_s=timeout_s, force=force)

    def entry(self) -> MountEntry | None:
        """What the kernel knows."""
        return mount_table.mount_at(self.mountpoint, mount_table.read_mounts())

    def record(self) -> MountRecord:
        """What is registered."""
        record = registry.read(self.runtime, self.mountpoint, os.geteuid())
        assert record is not None
        return record

    def told(self) -> NodeSettings:
        """What the daemon that runs was told."""
        words = pathlib.Path(f"/proc/{self.record().pid}/cmdline").read_bytes().split(b"\0")
        return NodeSettings.from_json(words[-2].decode())

    def is_registered(self) -> bool:
        """Whether there is a record."""
        return registry.read(self.runtime, self.mountpoint, os.geteuid()) is not None

    def log(self) -> str:
        """What keeper and daemons have said."""
        return (self.state / "log").read_text()

    def copies_of_descriptors(self) -> list[int]:
        """The mount's /dev/fuse, held by this process too; the caller's to close."""
        answer, descriptors = control_client.call_for_descriptors(
            self.record().control, adoption.VERB, timeout_s=DEADLINE_S
        )
        assert answer == {}
        for descriptor in descriptors[1:]:
            os.close(descriptor)
        return descriptors[:1]

    def wait_logged(self, text: str) -> None:
        """Return when keeper or daemon have said this."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in self.log():
            assert time.monotonic() < deadline, self.log()
            os.sched_yield()

    def kill(self, *who: processes.ProcessId) -> None:
        """Kill processes, in this order, and wait until they are gone."""
        for process in who:
            processes.kill(process)
        assert processes.wait_gone(who, until=time.monotonic() + DEADLINE_S)

    def tear_down(self) -> None:
        """Leave nothing behind, whatever happened."""
        while self.entry() is not None:
            with contextlib.suppress(Exception):
                self.end(force=True)
        registry.remove(self.runtime, self.mountpoint)
