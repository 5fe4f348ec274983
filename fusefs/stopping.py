"""A keeper asked to end: it unmounts, and after a deadline breaks the connection, so that a shutdown never hangs.

Unmounting happens in a process of its own: the kernel may wait for the daemon, which this one may have to start.
What was acknowledged is in the journal when a connection is broken; what the kernel had not written back yet is lost.
"""

import contextlib
import os
import time
from collections.abc import Callable

from fusefs import mount_table, mounting

_BUSY = 1


class Stopping:
    """One keeper's wish to end; begins with ``ask``.

    Args:
        supervised: somebody will kill us anyway: then even a mount in use is broken at the deadline.
        stop_s: the deadline; less than the unit's TimeoutStopSec, after which systemd kills.
        say: for a line in the log.
    """

    def __init__(
        self, mountpoint: str, *, supervised: bool, stop_s: float, say: Callable[[str], None]
    ) -> None:
        self._mountpoint, self._supervised, self._say = mountpoint, supervised, say
        self._stop_s = stop_s
        self._unmounter_pid = 0
        self._deadline: float | None = None

    def ask(self, *, force: bool) -> None:
        """Begin to unmount, unless that goes on already. ``force``: no daemon is there to write back."""
        self._collect()
        if self._unmounter_pid:
            return
        if self._deadline is None:
            self._deadline = time.monotonic() + self._stop_s
        self._unmounter_pid = os.fork()
        if self._unmounter_pid == 0:
            self._unmount_and_exit(force=force)

    def wait_ms(self) -> float | None:
        """Until ``is_due``; None if it will not be."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic()) * 1000

    def is_due(self) -> bool:
        """Whether the connection has to be broken now."""
        if self._deadline is None:
            return False
        self._collect()
        if self._deadline is None or time.monotonic() < self._deadline:
            return False
        self._deadline = None
        return True

    def break_connection(self) -> None:
        """Nobody waits for this mount any more: everybody in it gets an error, and it goes."""
        self._say(
            f"could not be unmounted within {self._stop_s:g} s: its connection is broken now. What was flushed or acknowledged "
            f"is safe, what the kernel had not written back is lost"
        )
        entry = mount_table.mount_at(self._mountpoint, mount_table.read_mounts())
        if entry is None:
            return
        with contextlib.suppress(
            OSError
        ):  # not mounted: /sys/fs/fuse/connections; closing our descriptor does it
            mounting.abort_connection(entry.device_minor)
        if os.geteuid() == 0:
            with contextlib.suppress(OSError):  # EBUSY comes after the breaking
                mounting.unmount(self._mountpoint, force=True)
        with contextlib.suppress(OSError):
            mounting.unmount(self._mountpoint, lazy=True)

    def _collect(self) -> None:
        """Learn how the unmounter fared."""
        if not self._unmounter_pid:
            return
        pid, status = os.waitpid(self._unmounter_pid, os.WNOHANG)
        if pid:
            self._unmounter_pid = 0
            if os.waitstatus_to_exitcode(status) == _BUSY and not self._supervised:
                self._deadline = None  # somebody works in it, and nobody insists

    def _unmount_and_exit(self, *, force: bool) -> None:
        code = 0
        try:
            mounting.unmount(self._mountpoint, force=force)
        except OSError as problem:
            code = _BUSY
            self._say(f"asked to end, but cannot unmount {self._mountpoint}: {problem.strerror}")
        finally:
            os._exit(code)
