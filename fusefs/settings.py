"""What a keeper and a daemon are told at their start: one JSON argument each.

The command line fills in ``KeeperSettings`` and starts ``python -m fusefs.keeper JSON``; the keeper mounts,
adds the descriptors and starts ``python -m fusefs.node JSON`` with ``NodeSettings``. Nothing here is read
from a file or the environment, so a daemon started again is told the same as the first.
"""

import json
import re
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import Any, Self, TypeVar

from metadata.errors import InvalidRequest
from metadata.units import CACHE_BYTES_DEFAULT

NO_FD = -1
LISTEN_DEFAULT = "127.0.0.1:0"
"""The nodes of one machine find each other; no other machine gets in."""
_PORT = re.compile("[0-9]{1,5}")
_EVERYWHERE = ("", "0.0.0.0", "::", "*")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Settings:
    """JSON there and back, the same for both; an unknown key is an error.

    A keeper starts daemons of later releases too: what these add to the settings has a default.
    """

    def to_json(self) -> str:
        """One line, which ``from_json`` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The settings in ``text``.

        Raises:
            InvalidRequest: it is not a JSON object with our keys and kinds of values, those that have a default perhaps missing.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise InvalidRequest(f"settings are not JSON: {problem}") from problem
        names = {field.name for field in fields(cls)}
        needed = {field.name for field in fields(cls) if field.default is MISSING}
        if not isinstance(values, dict) or not needed <= set(values) <= names:
            given = sorted(values) if isinstance(values, dict) else values
            raise InvalidRequest(f"settings do not match, started by another release? got={given}")
        for field in fields(cls):
            if field.name in values and not _is_of_kind(values[field.name], field.type):
                raise InvalidRequest(f"settings do not match, {field.name} is of another kind")
        return cls(**{key: _frozen(value) for key, value in values.items()})


def _is_of_kind(value: Any, kind: Any) -> bool:
    if kind in (str, int, bool):
        return type(value) is kind
    if kind is float:
        return type(value) in (int, float)
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSettings(_Settings):
    """What one daemon serves. All paths are absolute: it runs with ``/`` as working directory.

    Attributes:
        pool: the pool's directory, or its address.
        mountpoint: where its vdisks appear; for messages, the daemon never opens it.
        node: this node's name in the catalog.
        state: the state directory (index, journal); locked by the keeper, for this daemon too.
        control: the unix socket to make for the command line.
        uid: whose mount it is: this user and root may use the control socket.
        fuse_fd: /dev/fuse, mounted.
        init_fd: the memory file that keeps the kernel's INIT request (``fusefs.handover``).
        ready_fd: pipe for the one line that says ready or why not (``fusefs.handover``).
        read_only: mounted with ``-o ro``.
        lock_fd: the state directory's lock, for a keeper that takes this daemon over.
        listen: HOST:PORT where other nodes call this one; port 0: any.
        cache_bytes: how much of what a remote pool has may lie in the state directory too.
        standby_fd: pipe on which a byte says that the daemon before has finished; its end, that there is no need.
    """

    pool: str
    mountpoint: str
    node: str
    state: str
    control: str
    uid: int
    fuse_fd: int
    init_fd: int
    ready_fd: int
    read_only: bool = False
    listen: str = LISTEN_DEFAULT
    lock_fd: int = NO_FD
    standby_fd: int = NO_FD
    cache_bytes: int = CACHE_BYTES_DEFAULT


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperSettings(_Settings):
    """What one keeper mounts and keeps alive.

    Attributes:
        runtime: the folder of the mount's registry record and control socket.
        options: the words given with ``-o``.
        daemon: the command to start; its settings are appended as one argument.
        ready_fd: pipe to the waiting ``vdiskfs mount``, or ``NO_FD`` in the foreground.
        take_over: it is mounted, and served by a daemon whose keeper has died.
        listen: HOST:PORT where other nodes call this one; port 0: any.
        cache_bytes: how much of what a remote pool has may lie in the state directory too.
        stop_s: how long after it was asked to end it breaks the connection.
    """

    pool: str
    mountpoint: str
    node: str
    state: str
    runtime: str
    options: tuple[str, ...]
    daemon: tuple[str, ...]
    ready_fd: int = NO_FD
    take_over: bool = False
    stop_s: float = 60.0
    listen: str = LISTEN_DEFAULT
    cache_bytes: int = CACHE_BYTES_DEFAULT


_Mounted = TypeVar("_Mounted", NodeSettings, KeeperSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeSettings(_Settings):
    """What a keeper is asked to put in the daemon's place.

    Attributes:
        daemon: the command to start, now and from now on.
        pythonpath: where its code lies, if it is not installed.
        listen, cache_bytes: of the mount from now on; as they were if nothing is said.
    """

    daemon: tuple[str, ...]
    pythonpath: str = ""
    listen: str = ""
    cache_bytes: int = 0

    def to_json(self) -> str:
        """Without what is not said: keepers of releases that know nothing of it understand the rest."""
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    def changed(self, settings: _Mounted) -> _Mounted:
        """A keeper's or a daemon's settings with what is asked for."""
        return replace(
            settings,
            listen=self.listen or settings.listen,
            cache_bytes=self.cache_bytes or settings.cache_bytes,
        )


def parse_listen(text: str) -> tuple[str, int]:
    """Host and port of ``HOST[:PORT]``, ``[HOST]:PORT`` for IPv6; port 0: any.

    Raises:
        InvalidRequest: it is something else, or an address that others cannot call.
    """
    host, port = text, "0"
    if text.startswith("["):
        host, _, rest = text[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else "x" if rest else "0"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if host in _EVERYWHERE or not _PORT.fullmatch(port) or int(port) > 65535:
        raise InvalidRequest(f"listen on HOST or HOST:PORT, the address that other nodes call, not {text!r}")
    return host, int(port)
