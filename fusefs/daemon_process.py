"""One run of the daemon as the keeper sees it: started or taken over, ready, ended."""

import os
import select
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace

from fusefs.handover import Report, ReportReader, Stage
from fusefs.settings import NO_FD, NodeSettings
from metadata.errors import Unavailable

READ_BYTES = 1 << 14
FINISH_SIGNAL = signal.SIGUSR2
"""Asks a daemon to finish for its successor; one of a release that does not know it dies of it, which does too."""
EXIT_FINISHED = 76
"""Of a daemon that has finished for its successor."""
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
"""Of the daemon: its disk threads would each get an arena, and memory that one has freed never serves another."""
_KEEPERS_OWN = (
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
)
"""Said by systemd to the keeper alone."""


class DaemonProcess:
    """A process serving the mount, from its start until ``bury``. The keeper owns it.

    Args:
        pid: the process.
        reports_fd: the reading end of its ready pipe.
        child: None if another keeper started it: then nobody can tell its exit status.
    """

    def __init__(self, pid: int, reports_fd: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self._reader = ReportReader()
        self._reports_fd = reports_fd
        self._child = child
        self._ended_well = False
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    @classmethod
    def start(
        cls,
        command: Sequence[str],
        settings: NodeSettings,
        *,
        keep_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
    ) -> "DaemonProcess":
        """Run a command as the daemon.

        Args:
            command: the settings are appended as one argument.
            settings: all but ``ready_fd``, which is made here; the descriptors in it are inherited.
            keep_fds: further descriptors it inherits.
            environment: on top of this process's own.

        Raises:
            Unavailable: the command cannot be started.
        """
        inherited = {name: value for name, value in os.environ.items() if name not in _KEEPERS_OWN}
        reports_fd, ready_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reports_fd, False)
        told = [
            settings.fuse_fd,
            settings.init_fd,
            settings.lock_fd,
            settings.standby_fd,
            ready_fd,
            *keep_fds,
        ]
        try:
            child = subprocess.Popen(
                [*command, replace(settings, ready_fd=ready_fd).to_json()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={**inherited, **_ENVIRONMENT, **(environment or {})},
                start_new_session=True,  # a Ctrl-C is for the keeper, which unmounts
                pass_fds=[fd for fd in told if fd != NO_FD],
            )
        except OSError as problem:
            os.close(reports_fd)
            raise Unavailable(f"cannot start {command[0]}: {problem.strerror}") from problem
        finally:
            os.close(ready_fd)
        return cls(child.pid, reports_fd, child)

    def register(self, poller: select.poll) -> None:
        """Wake the poller when something is reported or the process ends."""
        poller.register(self._pidfd, select.POLLIN)
        if self._reports_fd != NO_FD:
            poller.register(self._reports_fd, select.POLLIN)

    def reports_nowait(self) -> list[Report]:
        """What it has reported since the last call."""
        reports: list[Report] = []
        while self._reports_fd != NO_FD:
            try:
                arrived = os.read(self._reports_fd, READ_BYTES)
            except BlockingIOError:
                break
            if not arrived:
                self._close_reports()
            reports += self._reader.feed(arrived)
        self._ended_well |= Report(stage=Stage.ENDED) in reports
        return reports

    def has_ended(self) -> bool:
        """Whether only ``bury`` is left to do."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def finish(self) -> None:
        """Ask it to make way for a successor."""
        self._signal(FINISH_SIGNAL)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass  # it has ended, and has not been buried yet

    def bury(self) -> int | None:
        """Wait for its end and give everything back; the exit status, negative for a signal, None if unknown."""
        status: int | None = 0 if self._ended_well else None
        if self._child is not None:
            status = self._child.wait()
        os.close(self._pidfd)
        self._close_reports()
        return status

    def _close_reports(self) -> None:
        if self._reports_fd != NO_FD:
            os.close(self._reports_fd)
            self._reports_fd = NO_FD


def describe_status(status: int | None) -> str:
    """How a process ended, in words."""
    if status is None:
        return "a status unknown to this keeper, which did not start it"
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
