"""Holds a mount while daemons come and go: ``python -m fusefs.keeper SETTINGS``.

The keeper mounts, holds the /dev/fuse descriptor and the INIT request, starts the daemon and starts it again
when it dies; the kernel meanwhile queues what guests ask for. It imports nothing heavy and does nothing with
requests, so it has hardly a reason to die itself.

    starting --ready--> serving --daemon dies--> pausing --pause over--> starting
    starting --first daemon dies--> failed     (unmounted; the reason goes to ``vdiskfs mount``)
    any      --mount gone, daemon ended--> ended

A daemon that dies before it is ready, or within a second of it, died *quickly*: the pause before the next one
then grows, and the mount is kept. Any other death is followed by a new start at once.

**Invariant**: the lock on the state directory, the /dev/fuse descriptor and the INIT file are inherited by
each daemon; one whose keeper was killed goes on serving, and no second one can start on its state.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time
from dataclasses import replace
from enum import Enum

from fusefs import handover, mounting, registry, state_directory
from fusefs.daemon_process import DaemonProcess, describe_status
from fusefs.handover import Report
from fusefs.processes import process_id
from fusefs.registry import MountRecord
from fusefs.settings import NO_FD, KeeperSettings, NodeSettings
from metadata.errors import VdiskfsError

QUICK_DEATH_S = 1.0
PAUSES_S = (0.0, 0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Before the start that follows n quick deaths in a row; the last one for all later ones."""
OOM_SCORE = -900
PR_SET_IO_FLUSHER = 57
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class State(Enum):
    """Where the keeper is in the diagram above."""

    STARTING = "starting"
    SERVING = "serving"
    PAUSING = "pausing"
    FAILED = "failed"
    ENDED = "ended"


def pause_before_start_s(quick_deaths: int) -> float:
    """How long to wait after ``quick_deaths`` quick deaths in a row."""
    return PAUSES_S[min(quick_deaths, len(PAUSES_S) - 1)]


def say(message: str) -> None:
    """A line for the log, unless its disk is full."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} keeper: {message}\n"
    with contextlib.suppress(OSError):
        os.write(sys.stderr.fileno(), line.encode(errors="replace"))


class Keeper:
    """One mount, from mount(2) until it is gone and its last daemon has ended."""

    def __init__(self, settings: KeeperSettings) -> None:
        self._settings = settings
        uid = os.geteuid()
        self._options = mounting.parse_options(settings.options, uid=uid)
        me = process_id(os.getpid())
        self._record = MountRecord(
            mountpoint=settings.mountpoint,
            pool=settings.pool,
            node=settings.node,
            state=settings.state,
            control=registry.control_path(settings.runtime, settings.mountpoint),
            log=state_directory.log_path(settings.state),
            uid=uid,
            keeper_pid=me.pid,
            keeper_started=me.started_ticks,
        )
        self._state = State.STARTING
        self._daemon: DaemonProcess | None = None
        self._reason: str | None = None
        self._served = False
        self._quick_deaths = 0
        self._ready_at = self._pause_until = 0.0
        self._unmounter_pid = 0

    def run(self) -> int:
        """Mount, serve until the mount is gone; the exit status.

        Raises:
            VdiskfsError: the state directory is in use, or the kernel refuses the mount.
        """
        settings = self._settings
        self._wake_fd = _catch_signals()
        registry.make_folder(settings.runtime, self._record.uid)
        self._lock_fd = state_directory.lock(settings.state, settings.mountpoint)
        self._fuse_fd = mounting.mount(settings.pool, settings.mountpoint, self._options)
        self._init_fd = os.memfd_create("vdiskfs-init")
        say(f"mounted {settings.pool} on {settings.mountpoint}, node {settings.node}")
        self._start_daemon()
        while self._state not in (State.ENDED, State.FAILED):
            self._step()
        return 0 if self._state is State.ENDED and self._reason is None else 1

    def _step(self) -> None:
        """Wait for what happens next, and deal with it."""
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        timeout_ms: float | None = None
        if self._daemon is not None:
            self._daemon.register(poller)
        else:
            # Mask 0: only POLLERR arrives, which says that the mount is gone. Reading is the daemon's.
            poller.register(self._fuse_fd, 0)
            timeout_ms = max(0.0, self._pause_until - time.monotonic()) * 1000
        poller.poll(timeout_ms)
        if _drain(self._wake_fd):
            self._stop()
        if self._daemon is not None:
            # Asked before the reports are read: what it said before its end is then surely among them.
            ended = self._daemon.has_ended()
            for report in self._daemon.reports_nowait():
                self._take_report(report)
            if ended:
                self._bury(self._daemon)
        elif not self._is_connected():
            self._end()
        elif time.monotonic() >= self._pause_until:
            self._start_daemon()

    def _is_connected(self) -> bool:
        """Whether the kernel still has the mount."""
        poller = select.poll()
        poller.register(self._fuse_fd, 0)
        return not poller.poll(0)

    def _start_daemon(self) -> None:
        record = self._record
        told = NodeSettings(
            pool=record.pool,
            mountpoint=record.mountpoint,
            node=record.node,
            state=record.state,
            control=record.control,
            uid=record.uid,
            fuse_fd=self._fuse_fd,
            init_fd=self._init_fd,
            ready_fd=NO_FD,
            read_only=self._options.read_only,
        )
        self._state = State.STARTING
        self._reason = None
        if self._settings.ready_fd != NO_FD:
            state_directory.put_log_aside(record.state)
        try:
            self._daemon = DaemonProcess(self._settings.daemon, told, keep_fds=[self._lock_fd])
        except VdiskfsError as problem:
            self._reason = str(problem)
            self._died(quickly=True)
            return
        identity = process_id(self._daemon.pid)
        self._note(pid=identity.pid, pid_started=identity.started_ticks, serving=False)

    def _take_report(self, report: Report) -> None:
        if report.error is not None:
            self._reason = report.error
            say(f"the daemon says: {report.error}")
        elif report.progress is not None:
            self._tell_caller(report)
        elif self._state is State.STARTING:
            self._state = State.SERVING
            self._served = True
            self._ready_at = time.monotonic()
            self._note(serving=True)
            self._tell_caller(report)

    def _bury(self, daemon: DaemonProcess) -> None:
        """The daemon has ended: because the mount has, or it died."""
        status = daemon.bury()
        self._daemon = None
        if self._reason is None and status != 0:
            self._reason = f"the daemon ended with {describe_status(status)}, see {self._record.log}"
        self._note(pid=0, pid_started=0, serving=False)
        if not self._is_connected():
            self._end()
            return
        self._reason = self._reason or "the daemon ended, though its mount is there"
        quickly = self._state is State.STARTING or time.monotonic() - self._ready_at < QUICK_DEATH_S
        self._died(quickly=quickly)

    def _died(self, *, quickly: bool) -> None:
        """Give up if none was ever ready, else make ready for the next start."""
        if not self._served:
            self._fail(self._reason or "the daemon did not start")
            return
        self._quick_deaths = self._quick_deaths + 1 if quickly else 0
        pause_s = pause_before_start_s(self._quick_deaths)
        self._pause_until = time.monotonic() + pause_s
        self._state = State.PAUSING
        self._note(restarts=self._record.restarts + 1, last_error=self._reason)
        say(f"{self._reason}; starting another in {pause_s} s")

    def _fail(self, reason: str) -> None:
        """Leave nothing behind."""
        self._state = State.FAILED
        say(f"giving up: {reason}")
        os.close(self._fuse_fd)  # the last one: breaks the connection, so nobody waits for the unmount
        try:
            mounting.unmount(self._record.mountpoint, lazy=True)
        except OSError as problem:
            say(f"cannot unmount: {problem.strerror}")
        registry.remove(self._settings.runtime, self._record.mountpoint)
        self._tell_caller(Report(error=reason))

    def _end(self) -> None:
        """The mount is gone; leave a tombstone if its daemon did not end well."""
        self._state = State.ENDED
        say(f"unmounted{'' if self._reason is None else ': ' + self._reason}")
        if not self._served:
            self._tell_caller(Report(error="unmounted before it was ready"))
        if self._reason is None or not self._served:
            registry.remove(self._settings.runtime, self._record.mountpoint)
        else:
            self._note(ended=True, last_error=self._reason)

    def _note(self, **changes: object) -> None:
        """Bring the registry up to date; a mount whose record cannot be written goes on."""
        self._record = replace(self._record, **changes)  # type: ignore[arg-type]
        try:
            registry.write(self._settings.runtime, self._record)
        except OSError as problem:
            say(f"cannot write the mount's record: {problem.strerror}")

    def _tell_caller(self, report: Report) -> None:
        if self._settings.ready_fd != NO_FD:
            handover.send(self._settings.ready_fd, report)
        elif report.ready:
            say("ready")
        elif report.error is not None:
            print(f"vdiskfs: {report.error}", file=sys.stderr, flush=True)

    def _stop(self) -> None:
        """A signal asks for the end: unmount, unless somebody uses the mount."""
        if not self._served:
            self._reason = "interrupted by a signal"
            if self._daemon is not None:
                self._daemon.kill()
            return
        if self._unmounter_pid and os.waitpid(self._unmounter_pid, os.WNOHANG) == (0, 0):
            return
        # In a process of its own: unmounting waits for the daemon, and this one may have to start it.
        self._unmounter_pid = os.fork()
        if self._unmounter_pid == 0:
            _unmount_and_exit(self._record.mountpoint, force=self._daemon is None)


def _unmount_and_exit(mountpoint: str, *, force: bool) -> None:
    try:
        mounting.unmount(mountpoint, force=force)
    except OSError as problem:
        say(f"asked to end, but cannot unmount {mountpoint}: {problem.strerror}")
    finally:
        os._exit(0)


def _catch_signals() -> int:
    """The descriptor that becomes readable when a stop signal arrives."""
    wake_fd, signal_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(signal_fd, warn_on_full_buffer=False)
    for number in STOP_SIGNALS:
        signal.signal(number, lambda _number, _frame: None)
    return wake_fd


def _drain(wake_fd: int) -> bool:
    try:
        return bool(os.read(wake_fd, 512))
    except BlockingIOError:
        return False


def protect_process() -> None:
    """Ask the kernel to spare this process and its children, as far as it lets this user.

    The daemon writes back what a reclaiming kernel waits for: it must neither be the OOM killer's choice nor
    wait, itself, for memory that only it can free (prctl(2), PR_SET_IO_FLUSHER).
    """
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(str(OOM_SCORE))
    except OSError:
        pass  # an ordinary user may not
    ctypes.CDLL(None).prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0)


def main(arguments: list[str]) -> int:
    """Run as ``python -m fusefs.keeper SETTINGS``."""
    settings = KeeperSettings.from_json(arguments[0])
    try:
        protect_process()
        return Keeper(settings).run()
    except VdiskfsError as problem:
        if settings.ready_fd == NO_FD:
            print(f"vdiskfs: {problem}", file=sys.stderr)
        else:
            handover.report_error(settings.ready_fd, str(problem))
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
