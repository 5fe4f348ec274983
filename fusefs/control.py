"""The daemon's control socket: what the command line asks a running mount.

A unix stream socket in the mount's runtime folder, mode 0600; the kernel says who connects, and only root and
the mount's user are heard. One request a connection, everything in JSON lines:

    >  {"verb": "scrub", "path": "a.img"}
    <  {"progress": {"done": 4096, "total": 65536}}        none or more, dropped if the client is slow
    <  {"result": ...}    or    {"error": "one line", "kind": "Corrupt", "errno": 5}

A client that hangs up cancels its verb. Encoding a large result is a thread's work: the loop serves guests.
"""

import contextlib
import errno
import json
import logging
import os
import socket
import struct
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from metadata.errors import InvalidRequest, Unavailable, VdiskfsError

Progress = Callable[[Mapping[str, object]], None]
Verb = Callable[[dict[str, Any], Progress], Awaitable[object]]

REQUEST_BYTES_MAX = 4 << 20
"""A verb and as many paths as a command line holds."""
REQUEST_S_MAX = 10.0
"""A client that connects and says nothing holds a place no longer than this."""
CONNECTIONS_MAX = 32
"""More wait in the kernel's queue."""
BACKLOG = 64
PROGRESS_PENDING_MAX = 4
"""Progress is only of interest while it is news."""
ENCODE_THREADS_MAX = 1


@dataclass(frozen=True, slots=True)
class Descriptors:
    """A verb's result that goes with open files."""

    result: object
    kept: Sequence[int]
    """Descriptors that stay open here too."""
    given: Sequence[int] = ()
    """Those that are closed here once they are sent, or could not be."""


_PEER = struct.Struct("3i")  # pid, uid, gid
_log = logging.getLogger(__name__)


class ControlServer:
    """Serves the verbs on one socket for as long as ``run`` runs; one to a daemon.

    Args:
        path: where to make the socket; one left by a dead daemon is replaced.
        uid: the mount's user.
    """

    def __init__(self, verbs: Mapping[str, Verb], *, path: str, uid: int) -> None:
        self._verbs = dict(verbs)
        self._path = path
        self._uid = uid
        self._connection_count = 0
        self._encoders = trio.CapacityLimiter(ENCODE_THREADS_MAX)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started when clients can connect.

        Raises:
            Unavailable: the socket cannot be made.
        """
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(_listen(self._path)))
        try:
            task_status.started()
            await trio.serve_listeners(self._serve, [listener])
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    async def _serve(self, stream: trio.SocketStream) -> None:
        """One connection: one request, its progress, its end."""
        self._connection_count += 1
        try:
            self._check_peer(stream)
            with trio.fail_after(REQUEST_S_MAX):
                verb, arguments = await self._read_request(stream)
            result = await _run_while_connected(verb, arguments, stream)
            if isinstance(result, Descriptors):
                await _send_descriptors(stream, result)
            else:
                await self._send(stream, {"result": result})
        except VdiskfsError as problem:
            await _send_error(stream, str(problem), kind=type(problem).__name__, number=problem.number)
        except trio.TooSlowError:
            await _send_error(stream, "no request arrived", kind="InvalidRequest", number=errno.EINVAL)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone
        except Exception:
            _log.exception("a control verb failed")
            await _send_error(
                stream, "internal error, the daemon's log tells more", kind="VdiskfsError", number=errno.EIO
            )
        finally:
            self._connection_count -= 1
            await stream.aclose()

    def _check_peer(self, stream: trio.SocketStream) -> None:
        credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        _, uid, _ = _PEER.unpack(credentials)
        if uid not in (0, self._uid):
            raise InvalidRequest("only root and the user who mounted it may ask", number=errno.EPERM)
        if self._connection_count > CONNECTIONS_MAX:
            raise Unavailable("too many commands at once, try again", number=errno.EBUSY)

    async def _read_request(self, stream: trio.SocketStream) -> tuple[Verb, dict[str, Any]]:
        line = bytearray()
        while b"\n" not in line:
            arrived = await stream.receive_some()
            if not arrived or len(line) > REQUEST_BYTES_MAX:
                raise InvalidRequest("not one line with a request")
            line += arrived
        return read_request(line, self._verbs)

    async def _send(self, stream: trio.SocketStream, answer: Mapping[str, object]) -> None:
        encoded = await trio.to_thread.run_sync(_encode, answer, limiter=self._encoders)
        await stream.send_all(encoded)


def read_request(line: bytes | bytearray, verbs: Mapping[str, Verb]) -> tuple[Verb, dict[str, Any]]:
    """The verb that a line asks for, with its arguments.

    Raises:
        InvalidRequest: it asks for none of these.
    """
    try:
        request = json.loads(line)
        verb = verbs[request.pop("verb")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as problem:
        raise InvalidRequest("not a request this daemon knows: is it of another release?") from problem
    return verb, request


async def _run_while_connected(verb: Verb, arguments: dict[str, Any], stream: trio.SocketStream) -> object:
    """The verb's result; passes its progress on, and cancels it if the client hangs up.

    Raises:
        trio.BrokenResourceError: the client hung up.
        Exception: whatever the verb raises.
    """
    news, pending = trio.open_memory_channel[Mapping[str, object]](PROGRESS_PENDING_MAX)
    passed_on = trio.Event()

    def report(progress: Mapping[str, object]) -> None:
        with contextlib.suppress(trio.WouldBlock):
            news.send_nowait(progress)

    async def pass_on(until: trio.CancelScope) -> None:
        try:
            async for progress in pending:
                await stream.send_all(_encode({"progress": progress}))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            until.cancel()
        passed_on.set()

    results: list[object] = []
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch_hang_up, stream, nursery.cancel_scope)
        nursery.start_soon(pass_on, nursery.cancel_scope)
        try:
            results.append(await verb(arguments, report))
        except Exception as problem:  # kept, so that it leaves the nursery as itself and not in a group
            failure = problem
        news.close()
        await passed_on.wait()
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not results:
        raise trio.BrokenResourceError("the client hung up")
    return results[0]


async def _send_descriptors(stream: trio.SocketStream, answer: Descriptors) -> None:
    rights = array("i", [*answer.kept, *answer.given])
    try:
        await stream.socket.sendmsg(
            [_encode({"result": answer.result})], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
        )
    except OSError as problem:
        raise trio.BrokenResourceError from problem
    finally:
        for descriptor in answer.given:
            os.close(descriptor)


async def _watch_hang_up(stream: trio.SocketStream, until: trio.CancelScope) -> None:
    with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        while await stream.receive_some():
            pass
    until.cancel()


async def _send_error(stream: trio.SocketStream, reason: str, *, kind: str, number: int) -> None:
    answer = _encode({"error": " ".join(reason.split()), "kind": kind, "errno": number})
    with (
        contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError),
        trio.move_on_after(REQUEST_S_MAX),
    ):
        await stream.send_all(answer)


def _encode(answer: Mapping[str, object]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _listen(path: str) -> socket.socket:
    """A listening socket that only its user can open from the first moment on.

    Raises:
        Unavailable: it cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.fchmod(listener.fileno(), 0o600)  # before bind: Linux gives the file the socket's own mode
        listener.bind(path)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError as problem:
        listener.close()
        raise Unavailable(f"cannot make the control socket: {problem.strerror} path={path}") from problem
    return listener
