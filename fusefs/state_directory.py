"""The node's own folder on this machine: where it is, who may use it now, and its log file.

    STATE/lock      held with flock by the keeper and, by inheritance, its daemons; says who and where
    STATE/keeper.lock   held by the keeper alone
    STATE/log       what keeper and daemon have to say; STATE/log.1 is the one before
    STATE/...       index, journal, cache: the daemon's

A node's name decides its default folder, so the default name must be the same at each mount of the same pool
in the same place (the journal of the last run is waiting there), and different for anything else. It is the
host's name, the mountpoint's last name, and a hash of the pool's id and the whole mountpoint:
``host-vdisks-5f3a9c01``.
"""

import contextlib
import fcntl
import os
import re
import zlib
from collections.abc import Mapping

from metadata.errors import InvalidRequest, Unavailable

ROOT_FOLDER = "/var/lib/vdiskfs"
NODE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""A node's name is a folder's name and part of catalog keys."""
LOG_BYTES_MAX = 8 << 20
"""A longer log is put aside as log.1 at the next start of a daemon."""
WHO_BYTES_MAX = 4096
_STDOUT, _STDERR = 1, 2


def check_node(node: str) -> str:
    """``node``, if it can be a node's name.

    Raises:
        InvalidRequest: it cannot.
    """
    if not NODE_PATTERN.fullmatch(node):
        raise InvalidRequest(f"node name {node!r}: 1 to 64 letters, digits, '.', '_', '-', the first no sign")
    return node


def default_node(*, host: str, mountpoint: str, pool_id: str) -> str:
    """The name of the node that mounts the pool with ``pool_id`` on ``mountpoint`` of ``host``."""
    machine = _plain(host.partition(".")[0])[:24] or "host"
    place = _plain(os.path.basename(mountpoint))[:24] or "root"
    return f"{machine}-{place}-{zlib.crc32(os.fsencode(f'{pool_id}:{mountpoint}')):08x}"


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def default_folder(node: str, *, uid: int, environment: Mapping[str, str]) -> str:
    """Where ``node`` keeps its state unless told otherwise."""
    if uid == 0:
        return f"{ROOT_FOLDER}/{node}"
    given = environment.get("XDG_STATE_HOME", "")
    base = given if given.startswith("/") else os.path.expanduser("~/.local/state")
    return f"{base}/vdiskfs/{node}"


def make_folder(state: str) -> None:
    """Make the state directory, for its user alone.

    Raises:
        Unavailable: it cannot be made or written to.
    """
    try:
        os.makedirs(state, mode=0o700, exist_ok=True)
    except OSError as problem:
        raise Unavailable(f"cannot make the state directory {state}: {problem.strerror}") from problem
    if not os.access(state, os.W_OK | os.X_OK):
        raise Unavailable(f"cannot write to the state directory {state}: choose another with --state")


def lock(state: str, mountpoint: str) -> int:
    """Take the state directory for this process and those that inherit the descriptor returned.

    Raises:
        Unavailable: another mount uses it, or it cannot be written.
    """
    return _lock(state, "lock", mountpoint)


def lock_for_keeper(state: str, mountpoint: str) -> int:
    """Claim to be the one keeper, as long as this process lives; its daemons do not inherit that.

    Raises:
        Unavailable: there is a keeper, or it cannot be written.
    """
    return _lock(state, "keeper.lock", mountpoint)


def _lock(state: str, name: str, mountpoint: str) -> int:
    try:
        lock_fd = os.open(f"{state}/{name}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise Unavailable(f"cannot lock the state directory {state}: {problem.strerror}") from problem
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        who = os.fsdecode(os.pread(lock_fd, WHO_BYTES_MAX, 0)).strip() or "another process"
        os.close(lock_fd)
        raise Unavailable(f"the state directory {state} is in use by {who}") from problem
    try:
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, os.fsencode(f"the mount on {mountpoint}, keeper pid={os.getpid()}\n"), 0)
    except OSError as problem:
        os.close(lock_fd)
        raise Unavailable(f"cannot write to the state directory {state}: {problem.strerror}") from problem
    return lock_fd


def log_path(state: str) -> str:
    """The log file of a state directory."""
    return f"{state}/log"


def put_log_aside(state: str) -> None:
    """Begin a new log if this process's is too long; for those that go on after the mount."""
    if os.fstat(_STDERR).st_size > LOG_BYTES_MAX:
        with contextlib.suppress(Unavailable):  # then the long one goes on
            log_fd = open_log(state)
            for standard_fd in (_STDOUT, _STDERR):
                os.dup2(log_fd, standard_fd)
            os.close(log_fd)


def open_log(state: str) -> int:
    """The log, open for appending and not too long; the caller closes it.

    Raises:
        Unavailable: it cannot be written.
    """
    path = log_path(state)
    try:
        log_fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if os.fstat(log_fd).st_size > LOG_BYTES_MAX:
            os.replace(path, f"{path}.1")
            os.close(log_fd)
            log_fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise Unavailable(f"cannot write the log {path}: {problem.strerror}") from problem
    return log_fd
