"""Ending a mount: unmount, wait until keeper and daemon are gone, and never hang.

A daemon that still answers at the deadline is left to its work; the connection of one that does not is broken.

The daemon commits and closes everything when the kernel says that the mount is gone, so a mount has ended
well when its processes have and the keeper has left no tombstone.
"""

import contextlib
import errno
import os
import select
import time
from typing import NoReturn

from fusefs import control_client, launch, mount_table, mounting, processes, registry
from fusefs.mount_table import MountEntry
from fusefs.registry import MountRecord
from metadata.errors import NotFound, Unavailable

FORCED_S = 5.0
"""How long the processes of a broken connection get before they are killed."""
OUTCOME_BYTES_MAX = 4096
ANSWER_S = 5.0
"""A daemon that says nothing for so long does not answer."""


def end_mount(mountpoint: str, *, timeout_s: float, force: bool) -> None:
    """Unmount ``mountpoint`` (resolved) and wait until its processes are gone.

    Args:
        timeout_s: for writing back; then it goes on without us, or is given up, and the error says so.
        force: break the connection, detach from those who use it, end the processes.

    Raises:
        NotFound: no mount of ours.
        Unavailable: it is in use, takes too long, or its daemon did not end well.
    """
    until = time.monotonic() + timeout_s
    entry = mount_table.mount_at(mountpoint, mount_table.read_mounts())
    if entry is None or not entry.is_vdiskfs:
        raise NotFound(f"{mountpoint} is not a vdiskfs mount")
    record = launch.find_record(entry)
    if force:
        _break(entry, record)
    lazy = force or launch.is_disconnected(entry, record)
    if not _unmount(entry, until=until, lazy=lazy):
        _give_up(entry, record, waited_s=timeout_s)
    if record is None:
        return
    both = (record.keeper, record.daemon)
    if force and not processes.wait_gone(both, until=time.monotonic() + FORCED_S):
        _kill(record)
    if not processes.wait_gone(both, until=until):
        raise Unavailable(
            f"unmounted, but the daemon (pid {record.pid}) still writes back after {timeout_s:g} s: "
            f"wait for it to end, see {record.log}"
        )
    _read_tombstone(record)


def _break(entry: MountEntry, record: MountRecord | None) -> None:
    """Break the connection by whatever means this user has; the journal keeps what was acknowledged."""
    try:
        mounting.abort_connection(entry.device_minor)
        return
    except OSError:
        pass  # not root, or /sys/fs/fuse/connections is not mounted
    if os.geteuid() == 0:
        with contextlib.suppress(OSError):  # EBUSY comes after the breaking
            mounting.unmount(entry.mountpoint, force=True)
    elif record is not None:
        _kill(record)  # with the last descriptor closed the kernel breaks it itself


def _kill(record: MountRecord) -> None:
    """The keeper first, or it would start another daemon."""
    for process in (record.keeper, record.daemon):
        processes.kill(process)


def _give_up(entry: MountEntry, record: MountRecord | None, *, waited_s: float) -> NoReturn:
    """The unmount waits for the daemon: if that does not answer, nobody is to wait any longer.

    Raises:
        Unavailable: always; what happened, and what to do.
    """
    mountpoint = entry.mountpoint
    if record is not None:
        try:
            control_client.call(record.control, "status", {}, timeout_s=ANSWER_S)
        except Unavailable:
            pass
        else:
            raise Unavailable(
                f"{mountpoint}: what is cached is still being written back after {waited_s:g} s, the unmount goes on: "
                f"see 'vdiskfs status', wait, or 'vdiskfs umount --force {mountpoint}'"
            )
    _break(entry, record)
    with contextlib.suppress(OSError):  # it went with its connection
        mounting.unmount(mountpoint, lazy=True)
    if record is not None:
        _kill(record)
        processes.wait_gone((record.keeper, record.daemon), until=time.monotonic() + FORCED_S)
        registry.remove(os.path.dirname(record.control), record.mountpoint)
    raise Unavailable(
        f"{mountpoint} is unmounted, but its daemon did not answer for {waited_s:g} s and its connection was broken: what "
        f"was flushed or acknowledged is safe, what only the kernel had is lost"
    )


def _unmount(entry: MountEntry, *, until: float, lazy: bool) -> bool:
    """Unmount in a process of its own: the kernel may wait for a daemon that does not answer. False: it does."""
    outcome_fd, child_fd = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        _unmount_and_exit(entry.mountpoint, child_fd, lazy=lazy)
    os.close(child_fd)
    poller = select.poll()
    poller.register(outcome_fd, select.POLLIN)
    arrived = poller.poll(max(0.0, until - time.monotonic()) * 1000)
    outcome = os.read(outcome_fd, OUTCOME_BYTES_MAX) if arrived else b""
    os.close(outcome_fd)
    if not arrived:
        return False
    os.waitpid(pid, 0)
    number, _, reason = os.fsdecode(outcome).partition(" ")
    if number == str(errno.EBUSY):
        raise Unavailable(f"{entry.mountpoint} is busy: {_who_uses(entry.mountpoint)}")
    # Breaking the connection of a mount that nobody uses unmounts it too.
    if number and mount_table.mount_at(entry.mountpoint, mount_table.read_mounts()) is not None:
        raise Unavailable(f"cannot unmount {entry.mountpoint}: {reason}")
    return True


def _unmount_and_exit(mountpoint: str, outcome_fd: int, *, lazy: bool) -> None:
    try:
        mounting.unmount(mountpoint, lazy=lazy)
    except OSError as problem:
        os.write(outcome_fd, os.fsencode(f"{problem.errno} {problem.strerror}")[:OUTCOME_BYTES_MAX])
    finally:
        os._exit(0)


def _who_uses(mountpoint: str) -> str:
    below = [entry.mountpoint for entry in mount_table.read_mounts() if entry.mountpoint != mountpoint]
    mounted = [path for path in below if mount_table.is_under(path, mountpoint)]
    if mounted:
        return f"something is mounted below it on {mounted[0]}"
    found = processes.holders(
        lambda path: mount_table.is_under(path, mountpoint), except_pids=frozenset({os.getpid()})
    )
    return processes.describe_holders(found) or "in use by a process this user may not look into"


def _read_tombstone(record: MountRecord) -> None:
    """Remove what is left in the registry, and say how it ended if not well."""
    folder = os.path.dirname(record.control)
    left = registry.read(folder, record.mountpoint, record.uid)
    if left is None:
        return
    if left.keeper != record.keeper:
        return  # mounted again meanwhile
    registry.remove(folder, record.mountpoint)
    if left.ended:
        raise Unavailable(
            f"unmounted, but {left.last_error}: what was flushed is safe, the next mount recovers the rest"
        )
