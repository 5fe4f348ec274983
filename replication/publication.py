"""What an owner and its subscribers tell each other of a vdisk's commits, as named values of a call.

subscribe    peer to owner: what the peer's index has      answer: a Standing
publish      owner to peer: a Publication and its record; the answer is the acknowledgement
renew        peer to owner: vdisks                         answer: those it has no subscription for ("lost")
unsubscribe  peer to owner: vdisks
moved        new owner to all: vdisk and epoch; trust in what was published under an older epoch ends
"""

from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass
from typing import Any

import msgpack
from xxhash import xxh3_64_intdigest

from metadata.descent import Descent
from metadata.errors import InvalidRequest

SUBSCRIBE, RENEW, UNSUBSCRIBE, PUBLISH, MOVED = "subscribe", "renew", "unsubscribe", "publish", "moved"
STARTED = "started"
NUMBERS_MAX = 65536
"""Vdisks in one renewal, or versions that are kept."""
_NOTHING = Descent()


@dataclass(frozen=True, slots=True)
class Publication:
    """A commit. Its record's bytes go along, or, when too long for a call, are read from the pool."""

    vdisk: int
    epoch: int
    version: int
    place: int
    check: int
    """The record's."""
    generation: int
    """Under which its rows are written: one more than the newest version that its owner keeps for somebody."""
    descent: int
    """Digest of where the vdisk's content comes from besides its rows: a rollback comes before the commit that rests on it."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a vdisk is, when somebody subscribes."""

    epoch: int
    version: int
    """The newest commit; 0: none."""
    place: int
    check: int
    collected: int
    """The newest collection: an index that does not know of it may name groups that are gone."""
    descent: int
    is_active: bool
    """Commits from here on are published; False: only after the subscriber has come closer and asks again."""
    kept: tuple[int, ...]
    """The versions that somebody keeps."""


def digest(descent: Descent) -> int:
    """A number that tells one descent from another; 0 for most vdisks."""
    if descent == _NOTHING:
        return 0
    return xxh3_64_intdigest(msgpack.packb(astuple(descent)))


def values_of(told: Publication | Standing) -> dict[str, Any]:
    """As named values."""
    return asdict(told)


def number_in(values: Mapping[str, Any], name: str) -> int:
    """A number that must be there.

    Raises:
        InvalidRequest: it is not.
    """
    found = values.get(name)
    if not isinstance(found, int) or found < 0:
        raise InvalidRequest(f"a message of another node lacks a number name={name}")
    return found


def numbers_in(values: Mapping[str, Any], name: str) -> list[int]:
    """A list of numbers that must be there, vdisks or versions.

    Raises:
        InvalidRequest: it is not.
    """
    found = values.get(name)
    if (
        not isinstance(found, list)
        or len(found) > NUMBERS_MAX
        or not all(isinstance(each, int) for each in found)
    ):
        raise InvalidRequest(f"a message of another node lacks numbers name={name}")
    return found


def publication_in(values: Mapping[str, Any]) -> Publication:
    """What a ``publish`` call tells.

    Raises:
        InvalidRequest: nothing that can be understood.
    """
    numbers = {name: number_in(values, name) for name in Publication.__slots__}
    return Publication(**numbers)


def standing_in(values: Mapping[str, Any]) -> Standing:
    """What the answer to ``subscribe`` tells.

    Raises:
        InvalidRequest: nothing that can be understood.
    """
    return Standing(
        epoch=number_in(values, "epoch"),
        version=number_in(values, "version"),
        place=number_in(values, "place"),
        check=number_in(values, "check"),
        collected=number_in(values, "collected"),
        descent=number_in(values, "descent"),
        is_active=bool(values.get("is_active")),
        kept=tuple(numbers_in(values, "kept")),
    )
