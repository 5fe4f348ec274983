"""The keeper's socket: asked for an upgrade with one line, it answers with the reports of a ready pipe.

    >  {"daemon": ["python", ...], "pythonpath": ""}
    <  {"progress": "..."} ...  {"ready": true}    or    {"error": "why not, and who serves now"}

The keeper never waits for a client: what has not arrived within a moment is no request.
"""

import contextlib
import os
import socket
import struct
from collections.abc import Callable

from fusefs.handover import Report, ReportReader, send
from fusefs.settings import UpgradeSettings
from metadata.errors import InvalidRequest, Unavailable

REQUEST_BYTES_MAX = 1 << 14
REQUEST_S_MAX = 0.5
BACKLOG = 4
READ_BYTES = 1 << 14
_PEER = struct.Struct("3i")  # pid, uid, gid


def listen(path: str) -> socket.socket:
    """A listening socket that only its user can open from the first moment on.

    Raises:
        OSError: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.fchmod(listener.fileno(), 0o600)  # before bind: Linux gives the file the socket's own mode
        listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def accept(listener: socket.socket, *, uid: int) -> tuple[socket.socket, UpgradeSettings] | None:
    """The next client and what it wants; None if it went, may not ask, or asks nothing sensible."""
    try:
        client, _ = listener.accept()
    except OSError:
        return None
    _, peer_uid, _ = _PEER.unpack(client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
    try:
        if peer_uid not in (0, uid):
            raise InvalidRequest("only root and the user who mounted it may ask")
        client.settimeout(REQUEST_S_MAX)
        line = client.recv(REQUEST_BYTES_MAX)
        client.setblocking(False)
        return client, UpgradeSettings.from_json(line.decode())
    except (InvalidRequest, UnicodeDecodeError) as problem:
        send(client.fileno(), Report(error=f"not a request this keeper knows: {problem}"))
    except OSError:
        pass
    client.close()
    return None


def ask_upgrade(path: str, wanted: UpgradeSettings, *, progress: Callable[[str], None]) -> None:
    """Have the keeper put another daemon in the place of its own; returns when that serves.

    Raises:
        Unavailable: there is no such keeper, or the upgrade was refused; who served goes on.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        try:
            connection.connect(path)
            connection.sendall(wanted.to_json().encode() + b"\n")
        except OSError as problem:
            raise Unavailable(f"the keeper does not answer: {problem.strerror} socket={path}") from problem
        reader = ReportReader()
        while arrived := connection.recv(READ_BYTES):
            for report in reader.feed(arrived):
                match report:
                    case Report(ready=True):
                        return
                    case Report(error=str(reason)):
                        raise Unavailable(reason)
                    case Report(progress=str(text)):
                        progress(text)
    raise Unavailable("the keeper ended before the upgrade was done: see 'vdiskfs status'")
