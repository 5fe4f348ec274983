"""What is said to etcd and what it says, as the JSON of its gateway: keys, ranges, transactions, events; pure.

Bytes travel as base64, 64-bit numbers as text, and what is zero or empty is left out.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from typing import Any

from metadata.catalog import Event, Row
from metadata.errors import Corrupt, InvalidRequest

Message = dict[str, Any]

_EMPTY: Message = {}

OPERATIONS_MAX = 128
"""etcd's --max-txn-ops, unless told otherwise."""
REQUEST_BYTES_MAX = 1400 << 10
"""Of etcd's 1.5 MiB (--max-request-bytes), what keys and values may take."""
_OPERATION_BYTES = 24
"""What an operation takes besides its key and value, at most."""


def text_of(raw: bytes) -> str:
    """Bytes as the gateway takes them."""
    return b64encode(raw).decode("ascii")


def bytes_in(message: Mapping[str, Any], name: str) -> bytes:
    """
    Raises:
        Corrupt: that is no base64.
    """
    try:
        return b64decode(message.get(name, ""), validate=True)
    except (ValueError, TypeError):
        raise Corrupt(f"etcd says what cannot be read field={name}") from None


def number_in(message: Mapping[str, Any], name: str) -> int:
    """
    Raises:
        Corrupt: that is no number.
    """
    try:
        return int(message.get(name, 0))
    except (ValueError, TypeError, OverflowError):
        raise Corrupt(f"etcd says what cannot be read field={name}") from None


def part_in(message: Mapping[str, Any], name: str) -> Message:
    """
    Raises:
        Corrupt: that is no object.
    """
    part = message.get(name, _EMPTY)
    if not isinstance(part, dict):
        raise Corrupt(f"etcd says what cannot be read field={name}")
    return part


def parts_in(message: Mapping[str, Any], name: str) -> list[Message]:
    """
    Raises:
        Corrupt: that is no list of objects.
    """
    parts = message.get(name, [])
    if not isinstance(parts, list) or not all(isinstance(part, dict) for part in parts):
        raise Corrupt(f"etcd says what cannot be read field={name}")
    return parts


def parse_message(line: bytes | bytearray) -> Message:
    """
    Raises:
        Corrupt: no JSON object.
    """
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise Corrupt("what answers there does not speak etcd's JSON")
    return message


def end_of_prefix(prefix: bytes) -> bytes:
    """The first key behind all that start with ``prefix``, which has a byte other than 0xff."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1])


def range_of(start: bytes, end: bytes = b"", *, limit: int = 0, revision: int = 0) -> Message:
    """Ask for one key, or those from ``start`` to before ``end``."""
    asked: Message = {"key": text_of(start)}
    if end:
        asked["range_end"] = text_of(end)
    if limit:
        asked["limit"] = str(limit)
    if revision:
        asked["revision"] = str(revision)
    return asked


def put_of(key: bytes, value: bytes, *, lease: int = 0) -> Message:
    """An operation: a key put, under a lease."""
    put = {"key": text_of(key), "value": text_of(value)}
    return {"request_put": put | ({"lease": str(lease)} if lease else {})}


def delete_of(key: bytes) -> Message:
    """An operation: a key deleted."""
    return {"request_delete_range": {"key": text_of(key)}}


def compare_revision(key: bytes, revision: int) -> Message:
    """A compare: the key was last written at this revision; 0: it does not exist."""
    return {"target": "MOD", "result": "EQUAL", "key": text_of(key), "mod_revision": str(revision)}


def compare_lease(key: bytes, lease: int) -> Message:
    """A compare: the key lives under this lease."""
    return {"target": "LEASE", "result": "EQUAL", "key": text_of(key), "lease": str(lease)}


def check_size(pieces: Sequence[bytes]) -> None:
    """
    Args:
        pieces: keys and values of one transaction.

    Raises:
        InvalidRequest: etcd takes no transaction of this size.
    """
    total = sum(map(len, pieces)) + _OPERATION_BYTES * len(pieces)
    if total > REQUEST_BYTES_MAX:
        raise InvalidRequest(
            f"too large for one transaction of etcd: do it in smaller steps bytes={total} max={REQUEST_BYTES_MAX}"
        )


def plan_operations(operations: Sequence[Message], *, compare_count: int) -> list[Message]:
    """So many operations as one list that etcd takes: where they are too many, in transactions within the transaction.

    etcd subtracts from ``OPERATIONS_MAX`` what the outer transaction compares or does, whichever is more, and
    leaves the rest to each inner one. All of it is one revision.

    Raises:
        InvalidRequest: they are too many even so.
    """
    if compare_count <= OPERATIONS_MAX and len(operations) <= OPERATIONS_MAX:
        return list(operations)
    for outer in range(1, OPERATIONS_MAX):
        inner = OPERATIONS_MAX - max(compare_count, outer)
        if inner > 0 and outer * inner >= len(operations):
            pieces = [operations[start : start + inner] for start in range(0, len(operations), inner)]
            return [{"request_txn": {"success": list(piece)}} for piece in pieces]
    raise InvalidRequest(
        "too many rows for one transaction of etcd: do it in smaller steps "
        f"writes={len(operations)} compares={compare_count}"
    )


def rows_in(answer: Mapping[str, Any], prefix: bytes) -> list[Row]:
    """The rows of a range's answer, keys without the prefix."""
    return [
        Row(
            bytes_in(found, "key").removeprefix(prefix),
            bytes_in(found, "value"),
            number_in(found, "mod_revision"),
        )
        for found in parts_in(answer, "kvs")
    ]


def events_in(message: Mapping[str, Any], prefix: bytes) -> list[Event]:
    """The events of a watch's message, in order of revision, keys without the prefix."""
    events = []
    for event in parts_in(message, "events"):
        row = part_in(event, "kv")
        value = None if event.get("type") == "DELETE" else bytes_in(row, "value")
        key = bytes_in(row, "key").removeprefix(prefix)
        events.append(Event(key, value, number_in(row, "mod_revision")))
    return events


def ranges_in(answer: Mapping[str, Any], count: int) -> list[Message]:
    """What a transaction answers to ``count`` ranges.

    Raises:
        Corrupt: to others, or to fewer.
    """
    found = [part_in(answered, "response_range") for answered in parts_in(answer, "responses")]
    if len(found) != count:
        raise Corrupt("etcd does not answer what was asked")
    return found


def revision_in(answer: Mapping[str, Any]) -> int:
    """The store's revision that an answer is of."""
    return number_in(part_in(answer, "header"), "revision")
