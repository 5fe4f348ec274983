"""Transactions that etcd carries out once, or not at all, however often they are sent.

A transaction whose answer never came may have been done, or lie somewhere and be done later. So each one also
compares, and writes, a *marker* of its own:

    attempt/CLIENT-SLOT    the number of the last transaction that went through this slot

    compare  marker's revision as last known, and what the caller compares
    then     what the caller writes, marker = this transaction's number
    else     read the marker

Of all copies of a transaction one at most finds the marker as it was. The answer of any copy tells the whole truth:
done; or the marker bears this number: an earlier copy did it, at the marker's revision; or the marker is as it was:
the caller's compares do not hold; or the slot's transaction before this, given up without an answer, was done
after all: then nothing of this one was, and it is sent again. A slot has one transaction at a time.

Markers go with their lease when a process is gone. One that is older than ``SLOT_S`` is replaced, long before.
"""

import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from metadata.errors import Exists, Unavailable, VdiskfsError
from metadata.etcd_calls import EtcdCalls
from metadata.etcd_messages import (
    Message,
    bytes_in,
    compare_revision,
    number_in,
    parts_in,
    plan_operations,
    put_of,
    range_of,
    ranges_in,
    revision_in,
    text_of,
)

SLOTS_MAX = 16
"""Transactions of one process under way at once; more wait."""
MARKER_S = 3600
SLOT_S = 1200.0
TRIES_MAX = 8
"""Each after the first means that something given up before was done after all."""
CLEAN_UP_S = 1.0


@dataclass(slots=True)
class _Slot:
    marker: bytes
    lease: int
    born_s: float
    revision: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a transaction."""

    is_done: bool
    revision: int
    """At which it was done."""
    found: Sequence[Message] = ()
    """If it was not: the answers to what the caller wanted to know then."""


class Attempts:
    """One process's transactions."""

    def __init__(self, calls: EtcdCalls, prefix: bytes, *, clock_s: Callable[[], float]) -> None:
        self._calls, self._prefix, self._clock_s = calls, prefix, clock_s
        self._client = secrets.token_hex(8)
        self._free: list[_Slot] = []
        self._limiter = trio.CapacityLimiter(SLOTS_MAX)
        self._count = 0

    async def transact(
        self, compares: Sequence[Message], operations: Sequence[Message], *, otherwise: Sequence[Message] = ()
    ) -> Outcome:
        """Do all operations if all compares hold, once.

        Args:
            compares: what must hold.
            operations: what is then done.
            otherwise: what is asked if it does not hold.

        Raises:
            Unavailable: it is not known whether it was, or will be, done.
            InvalidRequest, NoSpace, NotFound: it was not.
        """
        self._count += 1
        number = f"{self._client}-{self._count}".encode()
        async with self._slot() as slot:
            for _ in range(TRIES_MAX):
                message = _message(slot, number, compares, operations=operations, otherwise=otherwise)
                answer = await self._calls.call("kv/txn", message)
                if answer.get("succeeded"):
                    slot.revision = revision_in(answer)
                    return Outcome(True, slot.revision)
                marker, *found = ranges_in(answer, 1 + len(otherwise))
                markers = parts_in(marker, "kvs")
                if not markers:
                    slot.born_s = float("-inf")
                    raise Unavailable("the catalog does not say whether a change was made")
                before, slot.revision = slot.revision, number_in(markers[0], "mod_revision")
                if bytes_in(markers[0], "value") == number:
                    return Outcome(True, slot.revision)
                if slot.revision == before:
                    return Outcome(False, 0, found)
        raise Unavailable("the catalog does not come to rest")

    async def aclose(self) -> None:
        """Take the markers away; what was given up can then never be done."""
        with trio.move_on_after(CLEAN_UP_S, shield=True):
            while self._free:
                await self._drop(self._free.pop())

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[_Slot]:
        async with self._limiter:
            slot = self._free.pop() if self._free else None
            if slot is not None and self._clock_s() - slot.born_s > SLOT_S:
                slot = None  # its lease ends by and by
            if slot is None:
                slot = await self._make_slot()
            try:
                yield slot
            finally:
                self._free.append(slot)

    async def _make_slot(self) -> _Slot:
        self._count += 1
        marker = self._prefix + f"{self._client}-{self._count}".encode()
        born_s = self._clock_s()
        lease = await grant(self._calls, MARKER_S)
        answer = await self._calls.call("kv/put", put_of(marker, b"", lease=lease)["request_put"])
        return _Slot(marker, lease, born_s, revision_in(answer))

    async def _drop(self, slot: _Slot) -> None:
        try:
            await self._calls.call("lease/revoke", {"ID": str(slot.lease)}, deadline_s=CLEAN_UP_S)
        except VdiskfsError:  # it ends by itself
            pass


async def grant(calls: EtcdCalls, ttl_s: int) -> int:
    """A new lease of etcd's. Its number is ours, so that it can be asked for twice."""
    lease = secrets.randbits(62) | 1
    try:
        await calls.call("lease/grant", {"ID": str(lease), "TTL": str(ttl_s)})
    except Exists:  # made by an attempt that was not answered
        pass
    return lease


def _message(
    slot: _Slot,
    number: bytes,
    compares: Sequence[Message],
    *,
    operations: Sequence[Message],
    otherwise: Sequence[Message],
) -> Message:
    marker = {"key": text_of(slot.marker), "value": text_of(number), "ignore_lease": True}
    compared = [compare_revision(slot.marker, slot.revision), *compares]
    return {
        "compare": compared,
        "success": plan_operations([*operations, {"request_put": marker}], compare_count=len(compared)),
        "failure": [{"request_range": asked} for asked in (range_of(slot.marker), *otherwise)],
    }
