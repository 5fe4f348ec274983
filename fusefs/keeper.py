"""Holds a mount while daemons come and go: ``python -m fusefs.keeper SETTINGS``.

The keeper mounts, holds the /dev/fuse descriptor and the INIT request, starts the daemon and starts it again
when it dies; the kernel meanwhile queues what guests ask for. It imports nothing heavy and does nothing with
requests, so it has hardly a reason to die itself.

    starting --ready--> serving --daemon dies--> pausing --pause over--> starting
    starting --first daemon dies--> failed     (unmounted; the reason goes to ``vdiskfs mount``)
    serving  --an upgrade's successor stands by, the daemon has finished--> starting     (fusefs/upgrading.py)
    any      --mount gone, daemon ended--> ended

A daemon that dies before it is ready, or within a second of it, died *quickly*: the pause before the next one
then grows (not beyond a second if it had been ready), and the mount is kept. Any other death is followed by a new start at once.

A keeper begins with a mount of its own; or takes one over from a daemon that has lost its keeper; or gets the
descriptors of one back that systemd kept when keeper and daemon were both killed.

**Invariant**: the lock on the state directory, the /dev/fuse descriptor and the INIT file are inherited by
each daemon; one whose keeper was killed goes on serving, and no second one can start on its state. A lock of
the keeper's own sees to it that a mount has one keeper.
"""

import contextlib
import ctypes
import faulthandler
import os
import select
import signal
import socket
import sys
import time
from dataclasses import asdict, replace
from enum import Enum

from fusefs import adoption, handover, keeper_socket, mounting, registry, state_directory, systemd
from fusefs.daemon_process import EXIT_FINISHED, DaemonProcess, describe_status
from fusefs.handover import Report, Stage
from fusefs.processes import process_id
from fusefs.registry import MountRecord
from fusefs.settings import NO_FD, KeeperSettings, NodeSettings
from fusefs.stopping import Stopping
from fusefs.systemd import ServiceNotifier
from fusefs.upgrading import Phase, Upgrade
from metadata.errors import Unavailable, VdiskfsError

QUICK_DEATH_S = 1.0
PAUSES_S = (0.0, 0.0, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
"""Before the start that follows n quick deaths in a row; the last one for all later ones."""
SERVED_PAUSE_S_MAX = 1.0
"""Before the start that follows the death of a daemon that was ready: it can serve, and guests wait."""
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
        self._command, self._environment = settings.daemon, dict[str, str]()
        self._daemon: DaemonProcess | None = None
        self._upgrade: Upgrade | None = None
        self._reason: str | None = None
        self._served = self._broken = self._is_stored = False
        self._quick_deaths = 0
        self._ready_at = self._pause_until = 0.0
        self._waiting_since: float | None = None
        """When guests lost the daemon before this one."""
        self._service = ServiceNotifier(os.environ)
        self._stopping = Stopping(
            settings.mountpoint,
            supervised=self._service.is_supervised,
            stop_s=settings.stop_s,
            say=say,
        )
        self._listener: socket.socket | None = None

    def run(self) -> int:
        """Mount or take over, serve until the mount is gone; the exit status.

        Raises:
            VdiskfsError: the state directory is in use, or the kernel refuses the mount.
        """
        settings = self._settings
        stored = systemd.stored_descriptors(os.environ)
        self._wake_fd = _catch_signals()
        registry.make_folder(settings.runtime, self._record.uid)
        self._keeper_lock_fd = state_directory.lock_for_keeper(settings.state, settings.mountpoint)
        if settings.take_over:
            for descriptor in stored.values():
                os.close(descriptor)  # the daemon's own come, and are kept in their place
            self._take_over()
        elif systemd.are_a_mounts(stored) and _is_connected(stored[systemd.STORED[0]]):
            self._fuse_fd, self._init_fd, self._lock_fd = (stored[name] for name in systemd.STORED)
            self._served = self._is_stored = True
            self._waiting_since = time.monotonic()
            say(f"got the mount on {settings.mountpoint} back from systemd, and starts a daemon for it")
            self._inherit_record()
            self._start_daemon()
        else:
            self._lock_fd = state_directory.lock(settings.state, settings.mountpoint)
            self._fuse_fd = mounting.mount(settings.pool, settings.mountpoint, self._options)
            self._init_fd = os.memfd_create("vdiskfs-init")
            say(f"mounted {settings.pool} on {settings.mountpoint}, node {settings.node}")
            self._start_daemon()
        if self._listener is None:
            self._listen()
        while self._state not in (State.ENDED, State.FAILED):
            self._step()
        if self._listener is not None:
            self._listener.close()
        return 0 if self._state is State.ENDED and self._reason is None else 1

    def _listen(self) -> None:
        path = registry.keeper_path(self._settings.runtime, self._settings.mountpoint)
        try:
            self._listener = keeper_socket.listen(path)
        except OSError as problem:
            say(f"cannot be asked for upgrades: {problem.strerror} socket={path}")

    def _take_over(self) -> None:
        """Go on for a keeper that was killed; its daemon has served all the time."""
        settings = self._settings
        before = registry.read(settings.runtime, settings.mountpoint, self._record.uid)
        if before is None:
            raise Unavailable(f"nothing is registered about the mount on {settings.mountpoint}")
        taken = adoption.take_over(before)
        self._daemon, self._served = taken.daemon, True
        self._fuse_fd, self._init_fd, self._lock_fd = taken.fuse_fd, taken.init_fd, taken.lock_fd
        self._state, self._ready_at = State.SERVING, time.monotonic()
        self._inherit_record()
        say(f"took the mount on {settings.mountpoint} over from daemon {before.pid}, whose keeper had died")
        self._note(pid=before.pid, pid_started=before.pid_started, serving=True)
        self._now_serves()
        self._listen()  # whoever started us may ask as soon as we say ready
        self._tell_caller(Report(ready=True))

    def _inherit_record(self) -> None:
        """What the keeper before has counted goes on."""
        before = registry.read(self._settings.runtime, self._settings.mountpoint, self._record.uid)
        if before is not None:
            counts = {name: asdict(before)[name] for name in ("restarts", "upgrades", "last_pause_ms")}
            self._record = replace(self._record, **counts)

    def _step(self) -> None:
        """Wait for what happens next, and deal with it."""
        self._wait()
        if _drain(self._wake_fd):
            self._stop()
        if self._stopping.is_due():
            self._break_connection()
        self._take_request()
        self._step_upgrade()
        if self._daemon is not None:
            # Asked before the reports are read: what it said before its end is then surely among them.
            ended = self._daemon.has_ended()
            for report in self._daemon.reports_nowait():
                self._take_report(report)
            if ended:
                self._bury(self._daemon)
        elif self._is_over():
            self._end()
        elif time.monotonic() >= self._pause_until:
            self._start_daemon()

    def _step_upgrade(self) -> None:
        upgrade = self._upgrade
        if upgrade is None or upgrade.phase is Phase.STARTING:
            return
        refused = upgrade.step(self._daemon, serving=self._state is State.SERVING)
        if refused is not None:
            self._end_upgrade(self._refusal(refused))
        elif upgrade.phase is Phase.FINISHING and self._daemon is None and not self._is_over():
            self._promote(upgrade)

    def _promote(self, upgrade: Upgrade) -> None:
        """The successor's turn has come."""
        self._state, self._reason = State.STARTING, None
        self._daemon = upgrade.promote()
        self._note_daemon(self._daemon)

    def _wait(self) -> None:
        poller = select.poll()
        poller.register(self._wake_fd, select.POLLIN)
        if self._listener is not None:
            poller.register(self._listener, select.POLLIN)
        timeouts_ms = [self._stopping.wait_ms()]
        if self._daemon is not None:
            self._daemon.register(poller)
        else:
            # Mask 0: only POLLERR arrives, which says that the mount is gone. Reading is the daemon's.
            poller.register(self._fuse_fd, 0)
            timeouts_ms.append(max(0.0, self._pause_until - time.monotonic()) * 1000)
        if self._upgrade is not None:
            self._upgrade.register(poller)
            if self._upgrade.phase is not Phase.STARTING:
                timeouts_ms.append(self._upgrade.wait_ms())
        poller.poll(min((timeout for timeout in timeouts_ms if timeout is not None), default=None))

    def _told(self) -> NodeSettings:
        """What a daemon is told."""
        record = self._record
        return NodeSettings(
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
            listen=self._settings.listen,
            lock_fd=self._lock_fd,
            cache_bytes=self._settings.cache_bytes,
        )

    def _start_daemon(self) -> None:
        self._state = State.STARTING
        self._reason = None
        if self._settings.ready_fd != NO_FD:
            state_directory.put_log_aside(self._record.state)
        try:
            self._daemon = DaemonProcess.start(self._command, self._told(), environment=self._environment)
        except VdiskfsError as problem:
            self._reason = str(problem)
            self._died(quickly=True)
            return
        self._note_daemon(self._daemon)

    def _note_daemon(self, daemon: DaemonProcess) -> None:
        identity = process_id(daemon.pid)
        self._note(pid=identity.pid, pid_started=identity.started_ticks, serving=False)

    def _take_report(self, report: Report) -> None:
        if report.error is not None:
            self._reason = report.error
            say(f"the daemon says: {report.error}")
        elif report.progress is not None:
            self._tell_caller(report)
        elif report.stage is Stage.PAUSED and self._upgrade is not None:
            self._upgrade.paused_at = time.monotonic()
        elif report.ready and self._state is State.STARTING:
            self._serves()

    def _serves(self) -> None:
        """The daemon is ready: the mount's first, another after a death, or an upgrade's."""
        self._state, now = State.SERVING, time.monotonic()
        first, self._served = not self._served, True
        self._ready_at = now
        changes: dict[str, object] = {"serving": True}
        upgrade = self._upgrade if self._upgrade and self._upgrade.phase is Phase.STARTING else None
        since = self._waiting_since  # if there was a daemon to upgrade, nobody has waited before it paused
        if since is None and upgrade is not None:
            since = upgrade.paused_at
        if since is not None:
            changes["last_pause_ms"] = round((now - since) * 1000)
        if upgrade is not None:
            changes["upgrades"] = self._record.upgrades + 1
        self._note(**changes)
        self._waiting_since = None
        if upgrade is not None:
            self._settings = upgrade.wanted.changed(self._settings)
            self._command = upgrade.wanted.daemon
            self._environment = {"PYTHONPATH": upgrade.wanted.pythonpath}
            say(f"upgraded, guests waited {self._record.last_pause_ms} ms")
            upgrade.succeed()
            self._upgrade = None
        self._now_serves()
        if first:
            self._tell_caller(Report(ready=True))

    def _now_serves(self) -> None:
        """Let systemd know, and keep what a keeper after us would need."""
        record = self._record
        if not self._is_stored:
            mine = (self._fuse_fd, self._init_fd, self._lock_fd)
            self._service.store(dict(zip(systemd.STORED, mine, strict=True)))
            self._is_stored = True
        self._service.ready(f"serving {record.pool} on {record.mountpoint}, daemon {record.pid}")

    def _take_request(self) -> None:
        """Somebody may want an upgrade."""
        asked = self._listener and keeper_socket.accept(self._listener, uid=self._record.uid)
        if not asked:
            return
        client, wanted = asked
        if self._upgrade is not None or not self._served:
            why = "another upgrade goes on" if self._upgrade is not None else "the mount is not served yet"
            handover.send(client.fileno(), Report(error=f"not upgraded: {why}, see 'vdiskfs status'"))
            client.close()
            return
        try:
            told = self._told()
            self._upgrade = Upgrade(client, wanted, wanted.changed(told))
            say(f"asked for an upgrade, the successor is process {self._upgrade.successor.pid}")
        except VdiskfsError as problem:
            handover.send(client.fileno(), Report(error=self._refusal(problem)))
            client.close()

    def _refusal(self, reason: object) -> str:
        """Why the successor did not get its turn, and who serves."""
        serves = "the running daemon goes on" if self._state is State.SERVING else "and no daemon serves"
        return f"not upgraded, {serves}: {reason}"

    def _end_upgrade(self, reason: str) -> None:
        """It was refused, or failed; whoever can serve does."""
        upgrade, self._upgrade = self._upgrade, None
        if upgrade is None:
            return
        say(reason)
        if upgrade.phase is not Phase.STARTING:
            upgrade.discard()
        upgrade.fail(reason)

    def _bury(self, daemon: DaemonProcess) -> None:
        """The daemon has ended: because the mount has, or for its successor, or it died."""
        status, ended_at = daemon.bury(), time.monotonic()
        self._daemon = None
        upgrade = self._upgrade
        if not self._is_over() and upgrade is not None and upgrade.phase is Phase.FINISHING:
            if status not in (EXIT_FINISHED, None):
                say(f"the daemon did not finish but ended with {describe_status(status)}")
            self._promote(upgrade)
            return
        if self._reason is None and status != 0:
            self._reason = f"the daemon ended with {describe_status(status)}, see {self._record.log}"
        self._note(pid=0, pid_started=0, serving=False)
        if self._is_over():
            self._end()
            return
        self._reason = self._reason or "the daemon ended, though its mount is there"
        if upgrade is not None and upgrade.phase is Phase.STARTING:
            self._end_upgrade(f"not upgraded, a daemon of the release before is started: {self._reason}")
        if self._waiting_since is None:
            self._waiting_since = ended_at if upgrade is None else upgrade.paused_at or ended_at
        quickly = self._state is State.STARTING or ended_at - self._ready_at < QUICK_DEATH_S
        self._died(quickly=quickly)

    def _died(self, *, quickly: bool) -> None:
        """Give up if none was ever ready, else make ready for the next start."""
        if not self._served:
            self._fail(self._reason or "the daemon did not start")
            return
        self._quick_deaths = self._quick_deaths + 1 if quickly else 0
        pause_s = pause_before_start_s(self._quick_deaths)
        if self._state is State.SERVING:
            pause_s = min(pause_s, SERVED_PAUSE_S_MAX)
        self._pause_until = time.monotonic() + pause_s
        self._state = State.PAUSING
        self._note(restarts=self._record.restarts + 1, last_error=self._reason)
        say(f"{self._reason}; starting another in {pause_s} s")
        self._service.status(f"restarting the daemon: {self._reason}")

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
        self._end_upgrade("not upgraded: unmounted meanwhile")
        self._service.forget_stored()
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

    def _is_over(self) -> bool:
        """Whether the mount is gone, or nobody is to serve it any more."""
        return self._broken or not _is_connected(self._fuse_fd)

    def _break_connection(self) -> None:
        """Asked to end long ago: whoever still waits for this mount gets an error."""
        self._broken = True
        self._reason = "it did not answer in time, and its connection was broken"
        self._stopping.break_connection()
        if self._daemon is not None:
            self._daemon.kill()

    def _stop(self) -> None:
        """A signal asks for the end: unmount, unless somebody uses the mount."""
        if not self._served:
            self._reason = "interrupted by a signal"
            if self._daemon is not None:
                self._daemon.kill()
            return
        self._service.stopping(f"unmounting {self._record.mountpoint}")
        self._stopping.ask(force=self._daemon is None)


def _is_connected(fuse_fd: int) -> bool:
    """Whether the kernel still has the mount."""
    poller = select.poll()
    poller.register(fuse_fd, 0)
    return not poller.poll(0)


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
    faulthandler.register(signal.SIGUSR1)  # as the daemon: the signal is not to end it
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
