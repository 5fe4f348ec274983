"""A pool, its mountpoint and its state directory, driven as a user does: through the command line.

Everything a test starts through it is gone after ``tear_down``, whatever state the mount was left in.
"""

import importlib.util
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

COMMAND_S = 120.0
"""No command takes this long, on the slowest machine; one that does hangs."""

END_S = 30.0
"""How long a process may take to be gone after it was killed (it may be writing)."""


def package_environment() -> dict[str, str]:
    """The environment in which ``python -m tools.cli`` runs the packages under test, installed or not."""
    specification = importlib.util.find_spec("tools")
    assert specification is not None
    assert specification.submodule_search_locations is not None
    folder = pathlib.Path(next(iter(specification.submodule_search_locations))).parent
    return {**os.environ, "PYTHONPATH": str(folder), "PYTHONWARNINGS": "default"}


def wait_gone(pid: int, *, timeout_s: float = END_S) -> None:
    """Return when the process has ended (its parent may still have to collect it)."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(timeout_s * 1000), f"process {pid} is still there after {timeout_s} s"
    finally:
        os.close(descriptor)


def children(pid: int) -> list[int]:
    """The processes that a process has started and that still run."""
    return [int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def mountpoints(folder: pathlib.Path) -> list[tuple[str, int]]:
    """The (path, device minor) of every mount at or below ``folder``, latest first, touching none of them."""
    found = []
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        path = fields[4].encode().decode("unicode_escape")
        if pathlib.Path(path).is_relative_to(folder):
            found.append((path, int(fields[2].split(":")[1])))
    return found[::-1]


def processes(folder: pathlib.Path) -> list[int]:
    """The processes that a path in or below ``folder`` was given to."""
    return sorted(pid for pid, command in _commands() if os.fsencode(folder) in command)


def kill_processes(folder: pathlib.Path) -> None:
    """SIGKILL all of them together, as a lost node does, and return when they are gone."""
    pids = processes(folder)
    for pid in pids:  # all are stopped first, so that none sees another's end
        _signal(pid, signal.SIGSTOP)
    for pid in pids:
        _signal(pid, signal.SIGKILL)
    for pid in pids:
        wait_gone(pid)


class MountedPool:
    """One pool under ``folder``, mounted by a test or not."""

    def __init__(self, folder: pathlib.Path, *, node: str = "here", pool: pathlib.Path | None = None) -> None:
        self.folder = folder
        self.node = node
        self.pool = pool or folder / "pool"
        self.mountpoint = folder / "mnt"
        self.state = folder / "state"
        self.mountpoint.mkdir(parents=True)
        self.url = str(self.pool)
        """The pool's address, if it is not its directory's path."""
        self.prefix: tuple[str, ...] = ()
        """What the command line is run with: a network namespace's entrance."""
        self.options: tuple[str, ...] = ()
        """Of every mount."""
        self.expects_errors = False
        """True where a test provokes ERROR lines in the daemon's log."""

    def run(self, *arguments: object, exit_code: int = 0) -> subprocess.CompletedProcess[str]:
        """Run ``vdiskfs ARGUMENTS`` and insist on its exit code."""
        command = [*self.prefix, sys.executable, "-m", "tools.cli", *map(str, arguments)]
        done = subprocess.run(
            command,
            env=package_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == exit_code, f"{arguments}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def json(self, *arguments: object) -> dict:
        """The answer of a reading verb, out of its versioned envelope."""
        answer = json.loads(self.run(*arguments, "--json").stdout)
        assert answer["format"] == 1
        return answer

    def mount(self, *options: object) -> None:
        """Mount; ready when it returns."""
        where = (self.pool, self.mountpoint, "--state", self.state, "--node", self.node)
        self.run("mount", *where, *self.options, *options)

    def umount(self) -> None:
        """Unmount; everything flushed and no process left when it returns."""
        self.run("umount", self.mountpoint)
        assert self.processes() == []

    def create(self, name: str, size: int | str) -> pathlib.Path:
        """A new vdisk of the mount."""
        path = self.mountpoint / name
        self.run("create", path, size)
        return path

    def processes(self) -> list[int]:
        """Keeper and daemon of this mount: its state directory stands in their arguments."""
        return processes(self.state)

    def daemon_pid(self) -> int:
        """The daemon's process; the next one's if it has just died."""
        deadline = time.monotonic() + END_S
        while True:
            facts = self.json("status", self.mountpoint)
            if facts["service"] == "serving" and facts["pid"] > 0:
                return facts["pid"]
            assert time.monotonic() < deadline, f"no daemon serves the mount: {facts}"

    def kill(self) -> None:
        """SIGKILL keeper and daemon together, as a lost node does, and return when both are gone."""
        kill_processes(self.state)
        assert self.processes() == []

    def kill_daemon(self) -> None:
        """SIGKILL the daemon alone: the keeper starts another."""
        pid = self.daemon_pid()
        _signal(pid, signal.SIGKILL)
        wait_gone(pid)

    def log_lines(self) -> list[str]:
        """What keeper and daemon wrote to their log."""
        return [line for path in sorted(self.state.glob("log*")) for line in path.read_text().splitlines()]

    def stray_errors(self) -> list[str]:
        """The lines of the logs that no test expected."""
        if self.expects_errors:
            return []
        return [line for line in self.log_lines() if " ERROR " in line or "Traceback" in line]

    def tear_down(self) -> None:
        """Leave nothing mounted and nothing running, however the test ended."""
        for _, minor in mountpoints(self.mountpoint):
            abort = pathlib.Path(f"/sys/fs/fuse/connections/{minor}/abort")
            if not self.processes() and abort.exists():
                abort.write_text("1")
        if mountpoints(self.mountpoint) and self.processes():
            command = [sys.executable, "-m", "tools.cli", "umount", str(self.mountpoint)]
            try:
                subprocess.run(command, env=package_environment(), capture_output=True, timeout=END_S)
            except subprocess.TimeoutExpired:
                pass
        self.kill()
        for path, _ in mountpoints(self.mountpoint):
            tool = ["umount", "-l", path] if os.geteuid() == 0 else ["fusermount3", "-u", "-z", path]
            subprocess.run(tool, check=True, capture_output=True, timeout=END_S)


def _commands() -> Iterator[tuple[int, bytes]]:
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                yield int(entry.name), (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                pass


def _signal(pid: int, number: int) -> None:
    assert pid > 1, "0 and below are groups of processes, our own among them"
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
