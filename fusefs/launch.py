"""Starting a mount: what can be checked before, the keeper's start, the wait until it serves.

Everything that can be wrong is found here, one clear line each, before anything is mounted; what only the
daemon can find out (a damaged catalog, say) comes back over the ready pipe, and the keeper cleans up.
"""

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from fusefs import keeper_socket, mount_table, mounting, processes, registry, state_directory, systemd
from fusefs.handover import Report, ReportReader
from fusefs.registry import MountRecord
from fusefs.settings import KeeperSettings, UpgradeSettings
from metadata.errors import Exists, InvalidRequest, NotFound, Unavailable

DYING_S = 1.0
"""How long a mount's processes may take to vanish after a kill before it counts as alive."""
ASKING_S = 2.0
"""Somebody may hold a mount's descriptor and not answer: systemd, for the next keeper."""
STACK_MAX = 16
"""Dead mounts taken from one mountpoint at most."""
READ_BYTES = 1 << 14


def daemon_command() -> tuple[str, ...]:
    """What a keeper starts as its daemon."""
    return (sys.executable, "-P", "-m", "fusefs.node")


def check_mountpoint(settings: KeeperSettings) -> KeeperSettings:
    """See that the mountpoint can be mounted on, and take away a dead mount of ours.

    Returns the settings, changed if what is mounted there is to be taken over: our pool, served by a daemon that has
    lost its keeper.

    Raises:
        NotFound, InvalidRequest: not a directory that may cover what lies there.
        Exists: something is mounted there.
    """
    mountpoint = settings.mountpoint
    for _ in range(STACK_MAX):
        entry = mount_table.mount_at(mountpoint, mount_table.read_mounts())
        if entry is None:
            break
        if not entry.is_vdiskfs:
            raise Exists(f"{mountpoint} is busy: {entry.filesystem_type} is mounted on it")
        record = find_record(entry)
        if record is not None and is_orphan(record) and record.pool == settings.pool:
            folder = os.path.dirname(record.control)
            return replace(settings, node=record.node, state=record.state, runtime=folder, take_over=True)
        if not is_dead(entry):
            raise Exists(f"{mountpoint} is busy: {entry.source} is mounted on it already")
        mounting.unmount(mountpoint, lazy=True)
    if not os.path.lexists(mountpoint):
        raise NotFound(f"the mountpoint does not exist, make it first: mkdir -p {mountpoint}")
    if not os.path.isdir(mountpoint):
        raise InvalidRequest(f"the mountpoint {mountpoint} is not a directory")
    for path, what in ((settings.pool, "pool"), (settings.state, "state directory")):
        if mount_table.is_under(path, mountpoint):
            raise InvalidRequest(f"the {what} {path} would be hidden by a mount on {mountpoint}")
    if mount_table.is_under(mountpoint, settings.pool):
        raise InvalidRequest(f"the mountpoint {mountpoint} lies inside the pool")
    return settings


def is_orphan(record: MountRecord) -> bool:
    """Whether a daemon serves that has lost its keeper, and belongs to this user."""
    return (
        not record.keeper.is_alive()
        and record.daemon.is_alive()
        and record.serving
        and record.uid == os.geteuid()
    )


def is_dead(entry: mount_table.MountEntry) -> bool:
    """Whether a mount of ours has lost its keeper and its daemon for good, those just dying counted in."""
    record = find_record(entry)
    if record is not None:
        processes.wait_gone((record.keeper, record.daemon), until=time.monotonic() + DYING_S)
    return is_disconnected(entry, record)


def is_disconnected(entry: mount_table.MountEntry, record: MountRecord | None) -> bool:
    """Whether nobody answers the mount's requests, nor will; asks the kernel only if nobody is registered."""
    if record is not None and record.is_alive():
        return False
    return processes.statvfs_error(entry.mountpoint, allowed_s=ASKING_S) in (
        errno.ENOTCONN,
        errno.ECONNABORTED,
    )


def find_record(entry: mount_table.MountEntry) -> MountRecord | None:
    """What is registered about a mount."""
    uid = os.geteuid() if entry.owner_uid is None else entry.owner_uid
    for folder in registry.candidate_folders(uid, os.environ):
        record = registry.read(folder, entry.mountpoint, uid)
        if record is not None:
            return record
    return None


def launch(settings: KeeperSettings, *, progress: Callable[[str], None]) -> None:
    """Check, start the keeper detached, and return when the mount is served.

    Raises:
        VdiskfsError: what is wrong; nothing is left behind.
    """
    mounting.parse_options(settings.options, uid=os.geteuid())
    mounting.check_device()
    settings = check_mountpoint(settings)
    mounted = {entry.mountpoint for entry in mount_table.read_mounts()}
    registry.sweep(settings.runtime, os.geteuid(), mounted)
    state_directory.make_folder(settings.state)
    reports_fd, ready_fd = os.pipe2(os.O_CLOEXEC)
    try:
        log_fd = state_directory.open_log(settings.state)
        try:
            keeper = subprocess.Popen(
                _keeper_command(replace(settings, ready_fd=ready_fd)),
                stdin=subprocess.DEVNULL,
                stdout=log_fd,
                stderr=log_fd,
                cwd="/",
                env=environment(),
                start_new_session=True,
                pass_fds=[ready_fd],
            )
        finally:
            os.close(log_fd)
            os.close(ready_fd)
        try:
            reason = _wait_ready(reports_fd, progress)
        except KeyboardInterrupt:
            keeper.terminate()
            reason = _wait_ready(reports_fd, progress)
    finally:
        os.close(reports_fd)
    if reason is not None:
        keeper.wait()
        raise Unavailable(reason or f"the keeper ended without a word, see {settings.state}/log")
    keeper.returncode = 0  # it lives on, and is not ours to wait for


def become_keeper(settings: KeeperSettings) -> None:
    """Check, and turn this process into the keeper, in the foreground; does not return.

    Raises:
        VdiskfsError: what is wrong.
    """
    mounting.parse_options(settings.options, uid=os.geteuid())
    mounting.check_device()
    if not systemd.stored_descriptors(os.environ):  # else there is a mount, and nobody to ask about it
        settings = check_mountpoint(settings)
    else:
        settings = _with_living_daemon(settings)
    state_directory.make_folder(settings.state)
    command = _keeper_command(settings)
    os.chdir("/")
    os.execve(command[0], command, environment())


def _with_living_daemon(settings: KeeperSettings) -> KeeperSettings:
    """As ``check_mountpoint``, where systemd holds the mount for us: nothing is touched, only the registry read."""
    record = registry.read(settings.runtime, settings.mountpoint, os.geteuid())
    if record is not None and is_orphan(record) and record.pool == settings.pool:
        return replace(settings, node=record.node, state=record.state, take_over=True)
    return settings


def upgrade(
    record: MountRecord, *, listen: str = "", cache_bytes: int = 0, progress: Callable[[str], None]
) -> None:
    """Have the mount's keeper put this very release's daemon in the place of the one that serves.

    Args:
        listen, cache_bytes: as for a mount, from now on; unless told, as they were.

    Raises:
        Unavailable: it was refused; who served goes on.
    """
    path = registry.keeper_path(os.path.dirname(record.control), record.mountpoint)
    wanted = UpgradeSettings(
        daemon=daemon_command(),
        pythonpath=environment().get("PYTHONPATH", ""),
        listen=listen,
        cache_bytes=cache_bytes,
    )
    keeper_socket.ask_upgrade(path, wanted, progress=progress)


def _keeper_command(settings: KeeperSettings) -> list[str]:
    return [sys.executable, "-P", "-m", "fusefs.keeper", settings.to_json()]


def environment() -> dict[str, str]:
    """Ours, with the way to this code where it is not installed."""
    code = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = dict(os.environ)
    if os.path.basename(code) not in ("site-packages", "dist-packages"):
        before = found.get("PYTHONPATH")
        found["PYTHONPATH"] = f"{code}:{before}" if before else code
    return found


def _wait_ready(reports_fd: int, progress: Callable[[str], None]) -> str | None:
    """None when the mount is served, else why not; empty if the keeper died without a word."""
    reader = ReportReader()
    while True:
        arrived = os.read(reports_fd, READ_BYTES)
        for report in reader.feed(arrived):
            match report:
                case Report(ready=True):
                    return None
                case Report(error=str(reason)):
                    return reason
                case Report(progress=str(text)):
                    progress(text)
        if not arrived:
            return ""
