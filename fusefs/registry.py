"""Where a mount's facts are kept while it lives: one JSON file a mount, in its user's runtime folder.

    root            /run/vdiskfs, readable by all
    anybody else    $XDG_RUNTIME_DIR/vdiskfs, without one /tmp/vdiskfs-UID; nobody else's

The keeper writes the record and removes it at its end. A record whose keeper is dead is either a tombstone
(it has ``ended`` set and says why), which ``umount`` reads and removes, or the trace of a kill, which goes at
the next mount.
A folder is used only if it belongs to the user it should and no other can write there; what a user's record
says about processes is believed, by root, only as far as they are that user's.
"""

import contextlib
import json
import os
import stat
import zlib
from collections.abc import Collection, Mapping
from dataclasses import MISSING, asdict, dataclass, fields

from fusefs.processes import ProcessId
from metadata.errors import Unavailable

ROOT_FOLDER = "/run/vdiskfs"
RECORD_BYTES_MAX = 1 << 16
"""A record has a few hundred bytes; a larger file is none."""
RECORDS_MAX = 1024
"""Mounts listed from one folder at most."""
SLUG_CHARACTERS_MAX = 24
"""Of a mountpoint's last name: a unix socket's path must fit 107 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MountRecord:
    """The facts of one mount.

    Attributes:
        control: the daemon's control socket.
        log: where keeper and daemon write their messages.
        uid: whose mount it is.
        keeper_pid, keeper_started: the keeper; the pair is its identity.
        pid, pid_started: the daemon, 0 while none runs.
        serving: the daemon has said that it is ready.
        restarts: how many daemons have died under this keeper.
        last_error: why the last one died or does not start.
        upgrades: how many have given way to a successor.
        last_pause_ms: how long guests waited for the newest daemon; None: for none so far.
        ended: the mount is over and nobody has read why.
    """

    mountpoint: str
    pool: str
    node: str
    state: str
    control: str
    log: str
    uid: int
    keeper_pid: int
    keeper_started: int
    pid: int = 0
    pid_started: int = 0
    serving: bool = False
    restarts: int = 0
    last_error: str | None = None
    ended: bool = False
    upgrades: int = 0
    last_pause_ms: int | None = None

    @property
    def keeper(self) -> ProcessId:
        """The keeper's identity."""
        return ProcessId(self.keeper_pid, self.keeper_started)

    @property
    def daemon(self) -> ProcessId:
        """The daemon's identity."""
        return ProcessId(self.pid, self.pid_started)

    def is_alive(self) -> bool:
        """Whether keeper or daemon still run."""
        return self.keeper.is_alive() or self.daemon.is_alive()


def runtime_folder(uid: int, environment: Mapping[str, str]) -> str:
    """Where the mounts of ``uid`` are registered, if the environment is that user's own."""
    if uid == 0:
        return ROOT_FOLDER
    given = environment.get("XDG_RUNTIME_DIR")
    return f"{given}/vdiskfs" if given else f"/tmp/vdiskfs-{uid}"


def candidate_folders(uid: int, environment: Mapping[str, str]) -> list[str]:
    """All the places where ``uid`` may have registered mounts, from a session like this one or another."""
    if uid == 0:
        return [ROOT_FOLDER]
    own = [runtime_folder(uid, environment)] if uid == os.geteuid() else []
    return list(dict.fromkeys([*own, f"/run/user/{uid}/vdiskfs", f"/tmp/vdiskfs-{uid}"]))


def make_folder(folder: str, uid: int) -> None:
    """Make the runtime folder, or see that the one that is there can be trusted.

    Raises:
        Unavailable: it cannot be made, is another user's, or others can write to it.
    """
    mode = 0o755 if uid == 0 else 0o700
    try:
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder, mode)
    except OSError as problem:
        raise Unavailable(f"cannot make the runtime folder {folder}: {problem.strerror}") from problem
    if not is_trusted(folder, uid):
        raise Unavailable(f"the runtime folder {folder} is not safe, remove it: it must be uid={uid}'s alone")


def is_trusted(folder: str, uid: int) -> bool:
    """Whether ``folder`` is a folder (no link) of ``uid`` that nobody else can write to."""
    try:
        status = os.lstat(folder)
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == uid and not status.st_mode & 0o022


def slug(mountpoint: str) -> str:
    """A short file name for a mount: readable, and different for different mountpoints."""
    tail = os.path.basename(mountpoint) or "root"
    safe = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in tail)
    return f"{safe[:SLUG_CHARACTERS_MAX]}-{zlib.crc32(os.fsencode(mountpoint)):08x}"


def control_path(folder: str, mountpoint: str) -> str:
    """The control socket of the mount at ``mountpoint``."""
    return f"{folder}/{slug(mountpoint)}.sock"


def keeper_path(folder: str, mountpoint: str) -> str:
    """The socket on which the keeper of the mount at ``mountpoint`` is asked for an upgrade."""
    return f"{folder}/{slug(mountpoint)}.keeper"


def _record_path(folder: str, mountpoint: str) -> str:
    return f"{folder}/{slug(mountpoint)}.json"


def write(folder: str, record: MountRecord) -> None:
    """Put a record in place, whole; replaces the mount's earlier one.

    Raises:
        OSError: the folder is gone or full.
    """
    path = _record_path(folder, record.mountpoint)
    with open(f"{path}.new", "w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(asdict(record), file)
    os.replace(f"{path}.new", path)


def remove(folder: str, mountpoint: str) -> None:
    """Forget a mount: its record and its sockets."""
    for path in (
        _record_path(folder, mountpoint),
        control_path(folder, mountpoint),
        keeper_path(folder, mountpoint),
    ):
        with contextlib.suppress(OSError):
            os.unlink(path)


def read(folder: str, mountpoint: str, uid: int) -> MountRecord | None:
    """The record of the mount of ``uid`` at ``mountpoint``; None if there is none to trust."""
    return _load(_record_path(folder, mountpoint), uid) if is_trusted(folder, uid) else None


def read_all(folder: str, uid: int) -> list[MountRecord]:
    """All records of ``uid`` in a folder, by mountpoint."""
    if not is_trusted(folder, uid):
        return []
    names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))[:RECORDS_MAX]
    found = (_load(f"{folder}/{name}", uid) for name in names)
    return sorted((record for record in found if record), key=lambda record: record.mountpoint)


def sweep(folder: str, uid: int, mounted: Collection[str]) -> None:
    """Remove the traces of kills: records of mounts that are not ``mounted`` and have no process."""
    for record in read_all(folder, uid):
        if record.mountpoint not in mounted and not record.ended and not record.is_alive():
            remove(folder, record.mountpoint)


def _load(path: str, uid: int) -> MountRecord | None:
    """A record, unless the file is missing, damaged, another user's or speaks of another user's processes."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            if os.fstat(file.fileno()).st_uid != uid:
                return None
            values = json.loads(file.read(RECORD_BYTES_MAX))
        # A keeper of an earlier release writes fewer; what came later has a default.
        known = {
            field.name: values[field.name]
            for field in fields(MountRecord)
            if field.name in values or field.default is MISSING
        }
        record = MountRecord(**known)
        if not _is_sound(record, uid):
            return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return record


def _is_sound(record: MountRecord, uid: int) -> bool:
    numbers = (record.uid, record.keeper_pid, record.keeper_started, record.pid, record.pid_started)
    texts = (record.mountpoint, record.pool, record.node, record.state, record.control, record.log)
    if not all(type(number) is int for number in numbers) or not all(type(text) is str for text in texts):
        return False
    alive = [process for process in (record.keeper, record.daemon) if process.is_alive()]
    return record.uid == uid and all(process.is_owned_by(uid) for process in alive)
