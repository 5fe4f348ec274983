"""Taking a mount over from a daemon whose keeper was killed: what a new keeper needs, sent by the daemon itself.

Over the control socket, as descriptors (SCM_RIGHTS): so it works for the mount's own user wherever processes may
not look into each other, and only for that user and root. The daemon serves on meanwhile.
"""

import os
from dataclasses import dataclass

from fusefs import control_client
from fusefs.daemon_process import DaemonProcess
from fusefs.registry import MountRecord
from metadata.errors import Unavailable

ANSWER_S = 10.0
VERB = "take_over"


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A living daemon, and its mount's descriptors."""

    daemon: DaemonProcess
    fuse_fd: int
    init_fd: int
    lock_fd: int


def take_over(record: MountRecord) -> TakenOver:
    """Ask the daemon for all it has of the mount.

    Raises:
        Unavailable: it does not answer, or has just ended.
    """
    _, descriptors = control_client.call_for_descriptors(record.control, VERB, timeout_s=ANSWER_S)
    if len(descriptors) != 4:
        for descriptor in descriptors:
            os.close(descriptor)
        raise Unavailable(
            f"the daemon does not hand its mount over, is it of another release? pid={record.pid}"
        )
    fuse_fd, init_fd, lock_fd, reports_fd = descriptors
    os.set_blocking(reports_fd, False)
    try:
        daemon = DaemonProcess(record.pid, reports_fd)
    except ProcessLookupError as problem:
        raise Unavailable(f"the daemon has just ended, try again pid={record.pid}") from problem
    # Asked after its descriptor is open: from here on the number cannot mean another process.
    if not record.daemon.is_alive():
        raise Unavailable(f"the daemon has just ended, try again pid={record.pid}")
    return TakenOver(daemon, fuse_fd, init_fd, lock_fd)
