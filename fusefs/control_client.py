"""Asking a daemon over its control socket, without an event loop (``fusefs.control`` has the protocol)."""

import contextlib
import errno
import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from metadata import errors
from metadata.errors import Unavailable, VdiskfsError

RETRY_S = 3.0
"""A daemon that is just being started again has no socket for a moment."""
RETRY_PERIOD_S = 0.05
ANSWER_BYTES_MAX = 256 << 20
"""A single answer is a few megabytes at most; more means that something else speaks."""

DESCRIPTORS_MAX = 16
DESCRIPTORS_ANSWER_BYTES = 4096


def call(
    path: str,
    verb: str,
    arguments: Mapping[str, object],
    *,
    progress: Callable[[dict[str, Any]], None] | None = None,
    timeout_s: float | None = None,
) -> Any:
    """The result of one verb.

    Args:
        path: the control socket.
        progress: called with what the daemon reports meanwhile.
        timeout_s: for each of its signs of life; None waits for ever.

    Raises:
        VdiskfsError: what the daemon raised.
        Unavailable: it cannot be reached, or ended meanwhile.
    """
    with _connect(path) as connection:
        connection.settimeout(timeout_s)
        try:
            with contextlib.suppress(BrokenPipeError):  # refused at the door: the reason is there to read
                connection.sendall(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as answers:
                for line in iter(lambda: answers.readline(ANSWER_BYTES_MAX), b""):
                    message = json.loads(line)
                    if "result" in message:
                        return message["result"]
                    if "error" in message:
                        raise _error(message)
                    if progress is not None:
                        progress(message["progress"])
        except TimeoutError as problem:
            raise Unavailable(f"the daemon does not answer within {timeout_s:g} s socket={path}") from problem
        except (OSError, ValueError, KeyError, TypeError) as problem:
            raise Unavailable(f"the daemon's answer broke off: {problem} socket={path}") from problem
    raise Unavailable(f"the daemon ended before it answered, try again socket={path}")


def call_for_descriptors(path: str, verb: str, *, timeout_s: float) -> tuple[Any, list[int]]:
    """As ``call``, of a verb that answers with descriptors besides: the caller's to close.

    Raises:
        VdiskfsError, Unavailable: as ``call``.
    """
    with _connect(path) as connection:
        connection.settimeout(timeout_s)
        answer, descriptors = b"", list[int]()
        try:
            connection.sendall(json.dumps({"verb": verb}).encode() + b"\n")
            while not answer.endswith(b"\n"):
                arrived, sent, _, _ = socket.recv_fds(connection, DESCRIPTORS_ANSWER_BYTES, DESCRIPTORS_MAX)
                for descriptor in sent:
                    os.set_inheritable(descriptor, False)
                descriptors += sent
                if not arrived:
                    break
                answer += arrived
            message = json.loads(answer)
        except (OSError, ValueError) as problem:
            raise Unavailable(f"the daemon does not answer: {problem} socket={path}") from problem
    if "error" in message:
        raise _error(message)
    return message["result"], descriptors


def _connect(path: str) -> socket.socket:
    until = time.monotonic() + RETRY_S
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(path)
            return connection
        except (FileNotFoundError, ConnectionRefusedError) as problem:
            connection.close()
            if time.monotonic() >= until:
                raise Unavailable(
                    f"the daemon does not answer, see 'vdiskfs status' socket={path}"
                ) from problem
        except PermissionError as problem:
            connection.close()
            raise Unavailable(
                f"only the user who mounted it, or root, may ask this: uid={os.geteuid()}", number=errno.EPERM
            ) from problem
        except OSError as problem:
            connection.close()
            raise Unavailable(f"cannot reach the daemon: {problem.strerror} socket={path}") from problem
        time.sleep(RETRY_PERIOD_S)


def _error(message: Mapping[str, Any]) -> VdiskfsError:
    """The daemon's error as it was raised there."""
    kind = getattr(errors, str(message.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, VdiskfsError)):
        kind = VdiskfsError
    number = message.get("errno")
    return kind(str(message["error"]), number=number if isinstance(number, int) else None)
