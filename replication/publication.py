"""What an owner and its subscribers tell each other of a vdisk's commits, as named values of a call.

subscribe    peer to owner: what the peer's index has      answer: a Standing
publish      owner to peer: Publications of one vdisk, in order, and their records; the answer acknowledges all of them
renew        peer to owner: vdisks and their terms         answer: those it has no such subscription for ("lost")
unsubscribe  peer to owner: vdisks
moved        new owner to all: vdisk and epoch; trust in what was published under an older epoch ends

What a peer subscribes to and unsubscribes bears a growing serial: a call that comes late, after its sender has given it
up and subscribed anew, must not end the newer subscription, in which the peer trusts.
"""

from collections.abc import Mapping, Sequence
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
    """A commit. Its record's bytes go along, or, when too long for a call, are read from the pool (no bytes, then)."""

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


Told = tuple[Publication, bytes]
"""With its record."""


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
    term: int = 0
    """Of the subscription, to be renewed with."""


def digest(descent: Descent) -> int:
    """A number that tells one descent from another; 0 for most vdisks."""
    if descent == _NOTHING:
        return 0
    return xxh3_64_intdigest(msgpack.packb(astuple(descent)))


def values_of(told: Standing) -> dict[str, Any]:
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


def told_values(lot: Sequence[Told]) -> tuple[dict[str, Any], bytes]:
    """A ``publish`` call."""
    told = [[*astuple(publication), len(data)] for publication, data in lot]
    return {"told": told}, lot[0][1] if len(lot) == 1 else b"".join(data for _, data in lot)


def told_in(values: Mapping[str, Any], data: bytes) -> list[Told]:
    """What a ``publish`` call tells: at least one commit, all of one vdisk.

    Raises:
        InvalidRequest: nothing that can be understood.
    """
    found, told, at = values.get("told"), list[Told](), 0
    if not isinstance(found, list) or not 0 < len(found) <= NUMBERS_MAX:
        raise InvalidRequest("a message of another node tells nothing")
    for numbers in found:
        if (
            not isinstance(numbers, list)
            or len(numbers) != len(Publication.__slots__) + 1
            or not all(type(number) is int and number >= 0 for number in numbers)
        ):
            raise InvalidRequest("a message of another node lacks numbers name=told")
        end = at + numbers[-1]
        told.append((Publication(*numbers[:-1]), data[at:end]))
        at = end
    if at != len(data) or any(one.vdisk != told[0][0].vdisk for one, _ in told):
        raise InvalidRequest("a message of another node does not fit its bytes name=told")
    return told


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
        term=number_in(values, "term"),
    )
