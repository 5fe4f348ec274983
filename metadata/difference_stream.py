"""Difference streams: the bytes that carry a vdisk, or what changed in it, from one pool to another.

    stream = "VDISKDIF" , frame of kind header , frames of kind data and hole , frame of kind end
    frame  = kind (1 byte) , payload length (4) , xxh3_64 of the payload seeded with the frame's number (8) , payload

    header   msgpack {format, pool, vdisk, version, name, size, base, identities}
    data     offset (8) , the bytes, at most 1 MiB
    hole     offset (8) , length (8): zeros from here on
    end      msgpack {data_bytes, hole_bytes, frames, digest}

Integers are little-endian, offsets bytes of the vdisk; ranges ascend and do not overlap. The digest is BLAKE2b-256 of
every byte before the end frame, so a frame lost, repeated, reordered or altered is found when it arrives or at the
end, and a stream without its end frame is no stream. Where a data or hole frame is whole, reading can go on later.

An *identity* is what a version of a vdisk is called across pools: (pool, vdisk, version); none ever means other
content than it first did. ``base`` holds all identities of the content that the ranges are to be applied to (none: to
nothing, zeros), ``identities`` those of the result; replicas have their own and their sources'.
"""

import hashlib
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum

import msgpack
from xxhash import xxh3_64_intdigest

from metadata.errors import Corrupt
from metadata.units import VDISK_BYTES_MAX

MAGIC = b"VDISKDIF"
FORMAT = 1
DATA_BYTES_MAX = 1 << 20
"""In one frame: what is verified, and written, in one piece."""
FACTS_BYTES_MAX = 1 << 20
"""Of a header; more means that something else speaks."""

_FRAME = struct.Struct("<BIQ")
_OFFSET = struct.Struct("<Q")
_RANGE = struct.Struct("<QQ")

Identity = tuple[str, int, int]
"""Pool, vdisk, version."""


class FrameKind(IntEnum):
    """What a frame holds."""

    HEADER = 1
    DATA = 2
    HOLE = 3
    END = 4


@dataclass(frozen=True, slots=True)
class StreamHeader:
    """What a stream is about.

    ``base`` is empty in a stream that holds everything; ``name`` is what the snapshot is called.
    """

    size: int
    name: str
    base: tuple[Identity, ...]
    identities: tuple[Identity, ...]


@dataclass(frozen=True, slots=True)
class StreamRange:
    """A range of the vdisk: its bytes, or None for a hole."""

    offset: int
    length: int
    data: bytes | None


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The last frame: everything before it is whole."""

    data_bytes: int
    hole_bytes: int
    frames: int


Event = StreamHeader | StreamRange | StreamEnd


class StreamEncoder:
    """Makes a stream's bytes, piece by piece; ``resume`` goes on with one that was cut."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=32)
        self._frames = 0
        self._data_bytes = self._hole_bytes = 0

    def header(self, header: StreamHeader) -> bytes:
        """The beginning."""
        pool, vdisk, version = header.identities[0]
        facts = {
            "format": FORMAT,
            "pool": pool,
            "vdisk": vdisk,
            "version": version,
            "name": header.name,
            "size": header.size,
            "base": [list(identity) for identity in header.base],
            "identities": [list(identity) for identity in header.identities],
        }
        self._digest.update(MAGIC)
        return MAGIC + self._frame(FrameKind.HEADER, msgpack.packb(facts))

    def data(self, offset: int, data: bytes) -> bytes:
        """A range with its bytes."""
        assert 0 < len(data) <= DATA_BYTES_MAX
        self._data_bytes += len(data)
        return self._frame(FrameKind.DATA, _OFFSET.pack(offset) + data)

    def hole(self, offset: int, length: int) -> bytes:
        """A range of zeros."""
        self._hole_bytes += length
        return self._frame(FrameKind.HOLE, _RANGE.pack(offset, length))

    def end(self) -> bytes:
        """The end."""
        facts = {
            "data_bytes": self._data_bytes,
            "hole_bytes": self._hole_bytes,
            "frames": self._frames,
            "digest": self._digest.digest(),
        }
        return self._frame(FrameKind.END, msgpack.packb(facts))

    def _frame(self, kind: FrameKind, payload: bytes) -> bytes:
        head = _FRAME.pack(kind, len(payload), xxh3_64_intdigest(payload, self._frames))
        self._frames += 1
        self._digest.update(head)
        self._digest.update(payload)
        return head + payload


class StreamDecoder:
    """Takes bytes as they come and says what they are; one to a stream.

    ``whole_bytes`` counts the bytes of all frames said so far: where a stream that was cut can be gone on with, by
    the ``encoder`` that has seen the same frames.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._at = 0
        self.whole_bytes = 0
        self.encoder = StreamEncoder()
        self.header: StreamHeader | None = None
        self.next_offset = 0
        """Behind the last range."""
        self.is_complete = False

    def feed(self, data: bytes) -> Iterator[Event]:
        """The events that are complete with these bytes.

        Raises:
            Corrupt: this is no such stream, or damaged.
        """
        self._buffer += data
        if not self.whole_bytes:
            if not self._buffer.startswith(MAGIC[: len(self._buffer)]):
                raise Corrupt("no difference stream: it does not begin like one")
            if len(self._buffer) < len(MAGIC):
                return
            self._at = self.whole_bytes = len(MAGIC)
            self.encoder._digest.update(MAGIC)
        while (event := self._next()) is not None:
            yield event
        del self._buffer[: self._at]
        self._at = 0

    def close(self) -> None:
        """Nothing more will come.

        Raises:
            Corrupt: the stream has been cut.
        """
        if not self.is_complete:
            raise Corrupt("the difference stream is cut: its end is missing")

    def _next(self) -> Event | None:
        if len(self._buffer) - self._at < _FRAME.size:
            return None
        kind, length, check = _FRAME.unpack_from(self._buffer, self._at)
        if self.is_complete:
            raise Corrupt("the difference stream goes on behind its end")
        limit = DATA_BYTES_MAX + _OFFSET.size if kind == FrameKind.DATA else FACTS_BYTES_MAX
        if length > limit or kind not in FrameKind.__members__.values():
            raise Corrupt(f"the difference stream is damaged position={self.whole_bytes}")
        start = self._at + _FRAME.size
        if len(self._buffer) < start + length:
            return None
        payload = bytes(memoryview(self._buffer)[start : start + length])
        if xxh3_64_intdigest(payload, self.encoder._frames) != check:
            raise Corrupt(
                f"the difference stream is damaged, a frame fails its checksum position={self.whole_bytes}"
            )
        event = self._event(FrameKind(kind), payload)
        self._at = start + length
        self.whole_bytes += _FRAME.size + length
        self.encoder._frame(FrameKind(kind), payload)
        return event

    def _event(self, kind: FrameKind, payload: bytes) -> Event:
        if (kind is FrameKind.HEADER) != (self.header is None):
            raise Corrupt(f"the difference stream has its header not where it belongs kind={kind.name}")
        try:
            if kind is FrameKind.HEADER:
                self.header = _header(msgpack.unpackb(payload))
                return self.header
            if kind is FrameKind.END:
                return self._end(msgpack.unpackb(payload))
            return self._range(kind, payload)
        except (ValueError, TypeError, KeyError, struct.error, msgpack.UnpackException) as exc:
            raise Corrupt(f"the difference stream holds what it cannot position={self.whole_bytes}") from exc

    def _range(self, kind: FrameKind, payload: bytes) -> StreamRange:
        if kind is FrameKind.DATA:
            found = StreamRange(_OFFSET.unpack_from(payload)[0], len(payload) - 8, payload[8:])
            self.encoder._data_bytes += found.length
        else:
            offset, length = _RANGE.unpack(payload)
            found = StreamRange(offset, length, None)
            self.encoder._hole_bytes += found.length
        assert self.header is not None
        if found.offset < self.next_offset or found.length <= 0:
            raise ValueError("ranges overlap")
        self.next_offset = found.offset + found.length
        if self.next_offset > self.header.size:
            raise ValueError("a range lies behind the end")
        return found

    def _end(self, facts: dict[str, object]) -> StreamEnd:
        encoder = self.encoder
        found = (facts["data_bytes"], facts["hole_bytes"], facts["frames"], facts["digest"])
        seen = (encoder._data_bytes, encoder._hole_bytes, encoder._frames, encoder._digest.digest())
        if found != seen:
            raise Corrupt("the difference stream is damaged: what came is not what was sent")
        self.is_complete = True
        return StreamEnd(encoder._data_bytes, encoder._hole_bytes, encoder._frames)


def _header(facts: dict[str, object]) -> StreamHeader:
    if facts["format"] != FORMAT:
        raise Corrupt(
            f"the difference stream has a format that this release does not know: {facts['format']}"
        )
    size, name = facts["size"], facts["name"]
    if not (isinstance(size, int) and isinstance(name, str) and 0 <= size <= VDISK_BYTES_MAX):
        raise TypeError("size")
    identities = read_identities(facts["identities"])
    if not identities:
        raise ValueError("no identity")
    return StreamHeader(size, name, read_identities(facts["base"]), identities)


def read_identities(listed: object) -> tuple[Identity, ...]:
    """Identities as msgpack or JSON brings them.

    Raises:
        TypeError: they are none.
    """
    if not isinstance(listed, Sequence):
        raise TypeError("identities")
    found = []
    for item in listed:
        pool, vdisk, version = item
        if not (isinstance(pool, str) and isinstance(vdisk, int) and isinstance(version, int)):
            raise TypeError("identity")
        found.append((pool, vdisk, version))
    return tuple(found)
