"""Processes of other programs, by way of /proc: is one still there, who uses a mount, how to end one.

A process number alone is not an identity, for the kernel gives it out again; with the start time it is.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

HOLDERS_MAX = 8
"""A message names this many users of a mount at most."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, never mistaken for a later one of the same number."""

    pid: int
    started_ticks: int
    """Field ``starttime`` of proc(5), in clock ticks since boot."""

    def is_alive(self) -> bool:
        """Whether it still runs (a zombie does not)."""
        return self.pid > 0 and _started_ticks(self.pid) == self.started_ticks

    def is_owned_by(self, uid: int) -> bool:
        """Whether it runs as ``uid``: somebody else's word about a process is not to be trusted."""
        try:
            return os.stat(f"/proc/{self.pid}").st_uid == uid
        except OSError:
            return False


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that uses a mount, and what it uses."""

    pid: int
    name: str
    path: str


def process_id(pid: int) -> ProcessId:
    """The identity of a process that runs now (start 0, never alive, if there is none)."""
    return ProcessId(pid, _started_ticks(pid) or 0)


def _started_ticks(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name in parentheses and may itself hold spaces.
            state, *rest = file.read().rpartition(b")")[2].split()
    except (OSError, ValueError):
        return None
    return None if state in (b"Z", b"X") else int(rest[18])


def wait_gone(processes: Iterable[ProcessId], *, until: float) -> bool:
    """Wait until all have ended, or until the monotonic time ``until``; whether they have."""
    for process in processes:
        if not process.is_alive():
            continue
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            continue
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            # Asked after the descriptor is open: from here on the number cannot mean another process.
            if process.is_alive():
                poller.poll(max(0.0, until - time.monotonic()) * 1000)
        finally:
            os.close(pidfd)
        if process.is_alive():
            return False
    return True


def kill(process: ProcessId) -> None:
    """End a process at once, if it is still the one meant."""
    if not process.is_alive():
        return
    with contextlib.suppress(OSError):
        pidfd = os.pidfd_open(process.pid)
        try:
            if process.is_alive():
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        finally:
            os.close(pidfd)


def statvfs_error(path: str, *, allowed_s: float) -> int | None:
    """The errno with which statvfs fails at ``path`` (0: it does not), asked in another process; None: no answer in time.

    Unlike stat it is never answered from the kernel's cache.
    """
    pid = os.fork()
    if pid == 0:
        try:
            os.statvfs(path)
        except OSError as problem:
            os._exit(min(problem.errno or 255, 255))
        finally:
            os._exit(0)
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        answered = bool(poller.poll(allowed_s * 1000))
        if not answered:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    finally:
        os.close(pidfd)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status) if answered else None


def holders(uses: Callable[[str], bool], *, except_pids: frozenset[int] = frozenset()) -> list[Holder]:
    """The processes with a file, working directory, program or mapping for which ``uses(path)`` holds.

    Only of processes that this user may look into. Links are read, never followed, so no mount is touched.
    """
    found: list[Holder] = []
    for entry in os.listdir("/proc"):
        if len(found) == HOLDERS_MAX:
            break
        if entry.isdecimal() and int(entry) not in except_pids:
            path = next((path for path in _paths_used(entry) if uses(path)), None)
            if path is not None:
                found.append(Holder(int(entry), _name(entry), path))
    return found


def _paths_used(pid: str) -> Iterable[str]:
    with contextlib.suppress(OSError):
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                yield os.readlink(f"/proc/{pid}/fd/{descriptor}")
    for link in ("cwd", "root", "exe"):
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/{pid}/{link}")
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as file:
        for line in file:
            _, slash, name = line.partition(b"/")
            if slash:
                yield os.fsdecode(slash + name.rstrip(b"\n"))


def _name(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return os.fsdecode(file.read().strip())
    except OSError:
        return "?"


def describe_holders(found: Iterable[Holder]) -> str:
    """One line's worth: ``qemu-system-x86 (pid 4711, /mnt/a.img)``."""
    return ", ".join(f"{holder.name} (pid {holder.pid}, {holder.path})" for holder in found)
