"""Fuzz targets for what others say: frames of nodes, publications, difference streams, etcd, the control socket."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import msgpack

from fusefs.control import read_request
from fusefs.handover import TEXT_CHARACTERS_MAX, ReportReader
from metadata import etcd_messages
from metadata.difference_stream import (
    DATA_BYTES_MAX,
    MAGIC,
    FrameKind,
    StreamDecoder,
    StreamEncoder,
    StreamEnd,
    StreamHeader,
    StreamRange,
)
from metadata.errors import Corrupt, InvalidRequest
from metadata.etcd_http import Refused
from metadata.etcd_http import _answer as read_answer
from replication import publication, wire
from tests.fuzzing.source import Source

PENDING_BYTES_MAX = 1 << 20


def fuzz_wire(data: bytes) -> None:
    """Frames in pieces: whole bodies come out, whatever the pieces; what they say encodes back to the same."""
    source = Source(data)
    pieces = [1 + source.below(256) for _ in range(source.below(8))]
    if source.below(2):
        stream = source.rest()
    else:  # bodies with the lengths they have
        bodies = [source.piece() for _ in range(1 + source.below(6))]
        stream = b"".join(len(body).to_bytes(4, "big") + body for body in bodies)
    at_once = _bodies(stream, [len(stream) or 1])
    assert _bodies(stream, pieces) == at_once
    for body in at_once or ():
        try:
            message = wire.decode(body)
        except Corrupt:
            continue
        assert same_message(wire.decode(_encoded(message)[4:]), message)


def _bodies(stream: bytes, sizes: list[int]) -> list[bytes] | None:
    """Those that come out; None if the reader refuses one, which it does wherever the pieces end."""
    reader, bodies, at, number = wire.FrameReader(), list[bytes](), 0, 0
    try:
        while at < len(stream):
            size = sizes[number % len(sizes)] if sizes else 7
            bodies += reader.feed(stream[at : at + size])
            at, number = at + size, number + 1
            assert len(reader._pending) < wire.HELLO_BYTES_MAX + 4
    except Corrupt:
        return None
    return bodies


def _encoded(message: wire.Message) -> bytes:
    match message:
        case wire.Hello():
            return wire.encode_hello(message)
        case wire.Refused(line):
            return wire.encode_refused(line)
        case wire.Call(number, verb, arguments, data):
            return wire.encode_call(number, verb, arguments, data)
        case wire.Answered(number, named, data):
            return wire.encode_answer(number, named, data)
        case wire.Failed(number, error):
            return wire.encode_error(number, error)


def same_message(one: wire.Message, other: wire.Message) -> bool:
    """Whether they say the same; errors have no equality of their own."""
    if isinstance(one, wire.Failed) and isinstance(other, wire.Failed):
        told = [(each.number, type(each.error), str(each.error), each.error.number) for each in (one, other)]
        return told[0] == told[1]
    return repr(one) == repr(other)


def fuzz_publication(data: bytes) -> None:
    """Named values of calls about commits, of any shape; those that are told are told again the same."""
    source = Source(data)
    raw = source.below(2)
    values: Mapping[str, Any]
    if raw:
        try:
            values = msgpack.unpackb(source.rest())
        except (ValueError, msgpack.UnpackException):
            return
        if not isinstance(values, dict):
            return
        payload = b"x" * 64
    else:
        lot = [[source.number() for _ in range(8)] for _ in range(source.below(5))]
        payload = source.rest()
        values = {"told": lot}
    for decode in (publication.standing_in, lambda found: publication.numbers_in(found, "kept")):
        try:
            decode(values)
        except InvalidRequest:
            pass
    try:
        told = publication.told_in(values, payload)
    except InvalidRequest:
        return
    again, joined = publication.told_values(told)
    assert joined == payload
    assert again["told"] == values["told"]


def fuzz_stream(data: bytes) -> None:
    """A difference stream: as it came, or frames that are sealed whatever they hold; pieces change nothing."""
    source = Source(data)
    size = 1 + source.below(300)
    stream = source.rest() if source.below(2) else _sealed_stream(source)
    whole, error = _events(stream, len(stream) or 1)
    assert (whole, error) == _events(stream, size)
    if error or not whole:
        return
    assert isinstance(whole[0], StreamHeader)
    encoder = StreamEncoder()
    again = b"".join(_encode_event(encoder, event) for event in whole)
    assert _events(again, len(again)) == (whole, "")


def _sealed_stream(source: Source) -> bytes:
    stream, digest, counts, frames = bytearray(MAGIC), StreamEncoder(), [0, 0], 0
    digest._digest.update(MAGIC)
    size = source.below(1 << 16)
    facts: Any = {"format": 1, "pool": "p", "vdisk": 1, "version": 2, "name": "n", "size": size, "base": []}
    facts["identities"] = [["p", 1, 2]]
    offset = 0
    while frames == 0 or source:
        kind = FrameKind.HEADER if frames == 0 else FrameKind(1 + source.below(4))
        if kind is FrameKind.HEADER:
            if source.below(4) == 0:
                facts[source.choice(sorted(facts))] = source.choice(
                    (0, -1, "x", b"", None, [[1]], [[]], 1 << 63)
                )
            payload = msgpack.packb(facts)
        elif kind is FrameKind.END:
            told = {"data_bytes": counts[0], "hole_bytes": counts[1], "frames": frames}
            told["digest"] = b"" if source.below(8) == 0 else digest._digest.digest()
            payload = msgpack.packb(told)
        else:
            offset += source.below(64)
            body = source.piece() if kind is FrameKind.DATA else source.below(999).to_bytes(8, "little")
            length = len(body) if kind is FrameKind.DATA else int.from_bytes(body, "little")
            counts[kind is FrameKind.HOLE] += length
            payload = offset.to_bytes(8, "little") + body
            offset += length
        stream += digest._frame(kind, payload)
        frames += 1
        if source.below(32) == 31:
            stream += source.piece()
    return bytes(stream)


def _events(stream: bytes, size: int) -> tuple[list[object], str]:
    decoder, events = StreamDecoder(), list[object]()
    try:
        for at in range(0, len(stream), size):
            events += decoder.feed(stream[at : at + size])
            assert len(decoder._buffer) <= DATA_BYTES_MAX + 32 + size
        decoder.close()
    except Corrupt:
        return [], "corrupt"
    return events, ""


def _encode_event(encoder: StreamEncoder, event: object) -> bytes:
    match event:
        case StreamHeader():
            return encoder.header(event)
        case StreamRange(offset, length, None):
            return encoder.hole(offset, length)
        case StreamRange(offset, _, bytes(held)):
            return encoder.data(offset, held)
        case StreamEnd():
            return encoder.end()
    raise AssertionError(event)


ETCD: tuple[Callable[[dict[str, Any]], object], ...] = (
    lambda found: etcd_messages.rows_in(found, b"/p/"),
    lambda found: etcd_messages.events_in(found, b"/p/"),
    lambda found: etcd_messages.ranges_in(found, 1),
    etcd_messages.revision_in,
    lambda found: etcd_messages.bytes_in(found, "key"),
    lambda found: etcd_messages.number_in(found, "revision"),
)


def fuzz_etcd(data: bytes) -> None:
    """A line of etcd's gateway: any bytes, or JSON of the right names with any values."""
    source = Source(data)
    line = source.rest() if source.below(2) else json.dumps(_etcd_answer(source)).encode()
    for status in (200, 400):
        with suppress(Corrupt, Refused):
            read_answer(status, line)
    try:
        message = etcd_messages.parse_message(line)
    except Corrupt:
        return
    for decode in ETCD:
        try:
            decode(message)
        except Corrupt:
            pass


_NAMES = (
    "kvs",
    "key",
    "value",
    "mod_revision",
    "events",
    "kv",
    "type",
    "responses",
    "response_range",
    "header",
)


def _etcd_answer(source: Source, depth: int = 0) -> Any:
    kind = source.below(8 if depth < 5 else 4)
    if kind < 4:
        return (source.below(256), "QUJD", None, source.piece().decode("latin-1"))[kind]
    if kind < 6:
        return [_etcd_answer(source, depth + 1) for _ in range(source.below(3))]
    return {source.choice(_NAMES): _etcd_answer(source, depth + 1) for _ in range(1 + source.below(4))}


def fuzz_control(data: bytes) -> None:
    """What a client of the control socket sends as its line, and what a daemon says on the ready pipe."""
    try:
        verb, arguments = read_request(data, {"status": 1})  # type: ignore[dict-item]
        assert verb == 1
        assert isinstance(arguments, dict)
    except InvalidRequest:
        pass
    size = 1 + (data[0] if data else 0)
    reader, pieces = ReportReader(), [data[at : at + size] for at in range(0, len(data), size)]
    reports = [report for piece in pieces for report in reader.feed(piece)]
    for report in reports:
        assert len(report.error or report.progress or "") <= max(TEXT_CHARACTERS_MAX, len(data))
