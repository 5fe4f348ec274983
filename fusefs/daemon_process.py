"""One run of the daemon as the keeper sees it: started, ready, ended."""

import os
import select
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace

from fusefs.handover import Report, ReportReader
from fusefs.settings import NO_FD, NodeSettings
from metadata.errors import Unavailable

READ_BYTES = 1 << 14
_ENVIRONMENT = {"MALLOC_ARENA_MAX": "2"}
"""Of the daemon: its disk threads would each get an arena, and memory that one has freed never serves another."""


class DaemonProcess:
    """A child process serving the mount, from its start until ``bury``. The keeper owns it.

    Args:
        command: what to run; the settings are appended as one argument.
        settings: all but ``ready_fd``, which is made here.
        keep_fds: further descriptors it inherits.

    Raises:
        Unavailable: the command cannot be started.
    """

    def __init__(self, command: Sequence[str], settings: NodeSettings, *, keep_fds: Sequence[int]) -> None:
        self._reader = ReportReader()
        self._reports_fd, ready_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._reports_fd, False)
        try:
            self._child = subprocess.Popen(
                [*command, replace(settings, ready_fd=ready_fd).to_json()],
                stdin=subprocess.DEVNULL,
                cwd="/",
                env={**os.environ, **_ENVIRONMENT},
                start_new_session=True,  # a Ctrl-C is for the keeper, which unmounts
                pass_fds=[settings.fuse_fd, settings.init_fd, ready_fd, *keep_fds],
            )
        except OSError as problem:
            os.close(self._reports_fd)
            raise Unavailable(f"cannot start {command[0]}: {problem.strerror}") from problem
        finally:
            os.close(ready_fd)
        self.pid = self._child.pid
        self._pidfd = os.pidfd_open(self.pid)

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
        return reports

    def has_ended(self) -> bool:
        """Whether only ``bury`` is left to do."""
        poller = select.poll()
        poller.register(self._pidfd, select.POLLIN)
        return bool(poller.poll(0))

    def kill(self) -> None:
        """End it at once."""
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def bury(self) -> int:
        """Wait for its end and give everything back; the exit status, negative for a signal."""
        status = self._child.wait()
        os.close(self._pidfd)
        self._close_reports()
        return status

    def _close_reports(self) -> None:
        if self._reports_fd != NO_FD:
            os.close(self._reports_fd)
            self._reports_fd = NO_FD


def describe_status(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return signal.Signals(-status).name
    except ValueError:
        return f"signal {-status}"
