"""What nodes say to each other: frames, the hello, calls, answers and errors, as bytes and back.

    frame     4 bytes, big endian: how long the rest is; the rest: msgpack
    hello     [0, protocol, cluster, node, identity]        each side's first message, in every protocol the same
    refused   [1, line]                                     instead of a hello: why there is none
    call      [2, number, verb, arguments, data]
    answer    [3, number, named, data]
    error     [4, number, class, message, errno]

Who dials calls, and the other side answers; numbers are the caller's, and answers come in any order. Numbers only
grow, so an answer that comes after its caller has given up is nobody's. What does not read as one of these is
``Corrupt``, and ends the connection: after it nothing that follows has a known beginning.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgpack

from metadata import errors
from metadata.errors import Corrupt, InvalidRequest, Unavailable, VdiskfsError
from replication.cluster import CALL_DATA_BYTES_MAX

PROTOCOL = 1
NAMED_BYTES_MAX = 256 << 10
"""The verb and the named values of one message."""
FRAME_BYTES_MAX = CALL_DATA_BYTES_MAX + NAMED_BYTES_MAX
HELLO_BYTES_MAX = 4096
"""Before its hello nobody may say more than this at once."""
ERROR_CHARACTERS_MAX = 4096
_LENGTH_BYTES = 4
_HELLO, _REFUSED, _CALL, _ANSWER, _ERROR = range(5)
_CALL_KINDS = (int, int, str, dict, bytes)
_ANSWER_KINDS = (int, int, dict, bytes)


@dataclass(frozen=True, slots=True)
class Hello:
    """Who speaks; proven by the certificate, which has the same cluster and node in it."""

    cluster: str
    node: str
    identity: str
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a hello is not answered by one."""

    line: str


@dataclass(frozen=True, slots=True)
class Call:
    """One thing that is asked."""

    number: int
    verb: str
    arguments: dict[str, Any]
    data: bytes


@dataclass(frozen=True, slots=True)
class Answered:
    """What a call gives back."""

    number: int
    named: dict[str, Any]
    data: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """What a call raised."""

    number: int
    error: VdiskfsError


Message = Hello | Refused | Call | Answered | Failed


def encode_hello(hello: Hello) -> bytes:
    """A hello's frame."""
    return _frame([_HELLO, hello.protocol, hello.cluster, hello.node, hello.identity])


def encode_refused(line: str) -> bytes:
    """The frame of a refusal."""
    return _frame([_REFUSED, line[:ERROR_CHARACTERS_MAX]])


def encode_call(number: int, verb: str, arguments: Mapping[str, Any], data: bytes) -> bytes:
    """A call's frame.

    Raises:
        InvalidRequest: it is too long to be sent.
    """
    return _frame([_CALL, number, verb, dict(arguments), data])


def encode_answer(number: int, named: Mapping[str, Any], data: bytes) -> bytes:
    """An answer's frame.

    Raises:
        InvalidRequest: it is too long to be sent.
    """
    return _frame([_ANSWER, number, dict(named), data])


def encode_error(number: int, error: VdiskfsError) -> bytes:
    """The frame of an error; it crosses by its class's name."""
    message = str(error)[:ERROR_CHARACTERS_MAX]
    return _frame([_ERROR, number, type(error).__name__, message, error.number])


def _frame(values: list[Any]) -> bytes:
    body: bytes = msgpack.packb(values)
    if len(body) > FRAME_BYTES_MAX:
        raise InvalidRequest(
            f"too much for one message between nodes bytes={len(body)} max={FRAME_BYTES_MAX}"
        )
    return len(body).to_bytes(_LENGTH_BYTES, "big") + body


def decode(body: bytes | bytearray | memoryview) -> Message:
    """The message in a frame's body.

    Raises:
        Corrupt: there is none.
    """
    try:
        message = msgpack.unpackb(body)
    except (ValueError, TypeError, msgpack.UnpackException) as exc:
        raise Corrupt("an unreadable message from a node") from exc
    if not isinstance(message, list) or not message:
        raise Corrupt("an unreadable message from a node")
    kinds = tuple(map(type, message))
    if (
        kinds == _CALL_KINDS and message[0] == _CALL
    ):  # these two by the thousand; a match statement takes 4 us more
        return Call(*message[1:])
    if kinds == _ANSWER_KINDS and message[0] == _ANSWER:
        return Answered(*message[1:])
    match message:
        case [4, int(number), str(name), str(text), int(error_no)]:
            return Failed(number, _error(name, text, error_no))
        case [0, int(protocol), str(cluster), str(node), str(identity)]:
            return Hello(cluster, node, identity, protocol)
        case [0, int(protocol), *_]:
            return Hello("", "", "", protocol)
        case [1, str(line)]:
            return Refused(line)
    raise Corrupt("an unreadable message from a node")


def _error(name: str, text: str, error_no: int) -> VdiskfsError:
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, VdiskfsError) and 0 < error_no < 4096:
        return kind(text, number=None if error_no == kind.number else error_no)
    return Unavailable(f"another node failed: {name}: {text}")


class FrameReader:
    """The receiving end of one connection: pieces of bytes in, whole bodies out."""

    def __init__(self, *, bytes_max: int = HELLO_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        """The longest body that is taken."""
        self._pending = bytearray()

    def feed(self, arrived: bytes) -> list[bytes]:
        """The bodies that ``arrived`` completes.

        Raises:
            Corrupt: a longer one than allowed is announced; nothing of it is kept.
        """
        pending = self._pending
        pending += arrived
        bodies, start = list[bytes](), 0
        while len(pending) - start >= _LENGTH_BYTES:
            begin = start + _LENGTH_BYTES
            length = int.from_bytes(pending[start:begin], "big")
            if length > self.bytes_max:
                raise Corrupt(f"a message of {length} bytes is announced, at most {self.bytes_max} are taken")
            if len(pending) - begin < length:
                break
            start = begin + length
            bodies.append(bytes(memoryview(pending)[begin:start]))
        del pending[:start]
        return bodies
