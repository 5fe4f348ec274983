"""Leases on etcd that no leader can cut short, not even one that has been asleep.

etcd keeps a lease's time in its leader's memory. A leader that was cut off or stopped may still answer a keep-alive
that its successor never hears of; one that wakes up may have leases revoked which the successor prolonged meanwhile
(etcd#15247: 3.4 before 3.4.31, 3.5 before 3.5.13). So keeping alive means: a *new* lease of etcd's, and the rows moved to it,
both agreed on by most members. No earlier leader knows the new one, and each later leader gives it its whole time.
**Invariant** rows under a lease stay until ``ttl_s`` after the last successful ``keep_alive`` was asked for, at least.

What a caller holds is the number of the first of these leases. Those left behind hold no rows and end by themselves.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from metadata.errors import NotFound, Unavailable, VdiskfsError
from metadata.etcd_attempts import Attempts, grant
from metadata.etcd_calls import EtcdCalls
from metadata.etcd_messages import (
    Message,
    bytes_in,
    compare_lease,
    number_in,
    part_in,
    parts_in,
    range_of,
    text_of,
)

REMEMBERED = 8
"""Leases of etcd's under which rows may be if an answer was lost; each is older by one keep-alive."""
TRIES_MAX = 4


@dataclass(slots=True)
class _Held:
    ttl_s: int
    current: int
    keys: dict[bytes, int] = field(default_factory=dict)
    """And under which of etcd's leases each is."""
    granted: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


class EtcdLeases:
    """The leases of one process; keys are etcd's, whole."""

    def __init__(self, calls: EtcdCalls, attempts: Attempts) -> None:
        self._calls, self._attempts = calls, attempts
        self._held: dict[int, _Held] = {}

    async def grant(self, ttl_s: float) -> int:
        """A new lease; etcd counts whole seconds, never fewer than asked for."""
        number = await grant(self._calls, math.ceil(ttl_s))
        self._held[number] = _Held(math.ceil(ttl_s), number)
        self._held[number].granted.append(number)
        return number

    def current(self, number: int) -> int:
        """Which of etcd's leases stands for this one now.

        Raises:
            NotFound: it has ended.
        """
        held = self._held.get(number)
        if held is None:
            raise _ended(number)
        return held.current

    def note_written(self, keys: Sequence[bytes], number: int, *, under: int = 0) -> None:
        """These keys live under this lease from now on, ``under`` one of etcd's; 0: under none of ours."""
        for held in self._held.values():
            for key in keys:
                held.keys.pop(key, None)
        if number in self._held:
            self._held[number].keys.update(dict.fromkeys(keys, under))

    async def keep_alive(self, number: int) -> None:
        """
        Raises:
            NotFound: it has ended.
            Unavailable: the catalog does not say.
        """
        held = self._held.get(number)
        if held is None:
            raise _ended(number)
        for _ in range(TRIES_MAX):
            if not held.keys:
                await self._renew(number, held)
                return
            if await self._move(number, held):
                return
        raise Unavailable(f"the lease's rows keep changing lease={number}")

    async def revoke(self, number: int) -> None:
        """Ends a lease; whatever rows it has go now."""
        held = self._held.pop(number, None)
        for lease in held.granted if held else (number,):
            try:
                await self._calls.call("lease/revoke", {"ID": str(lease)})
            except NotFound:
                pass

    async def _renew(self, number: int, held: _Held) -> None:
        """A lease without rows: whether it is there is all that counts."""
        answer = await self._calls.call("lease/keepalive", {"ID": str(held.current)})
        if not number_in(part_in(answer, "result"), "TTL"):
            self._held.pop(number, None)
            raise _ended(number)

    async def _move(self, number: int, held: _Held) -> bool:
        """The rows under a new lease of etcd's; False: they were not where they were thought to be, now it is known."""
        keys = sorted(held.keys)
        new = await grant(self._calls, held.ttl_s)
        held.granted.append(new)
        try:
            outcome = await self._attempts.transact(
                [compare_lease(key, held.keys[key]) for key in keys],
                [{"request_put": _moved(key, new)} for key in keys],
                otherwise=[range_of(key) for key in keys],
            )
        except NotFound:  # the new one: this process was stopped meanwhile
            return False
        if outcome.is_done:
            held.current = new
            held.keys.update(dict.fromkeys(keys, new))
            return True
        is_gone = True
        for key, found in zip(keys, outcome.found, strict=True):
            under = [number_in(row, "lease") for row in parts_in(found, "kvs") if bytes_in(row, "key") == key]
            is_gone &= not under
            if under and under[0] in held.granted:
                held.keys[key] = under[0]
            else:
                held.keys.pop(key, None)
        if is_gone and not held.keys:
            self._held.pop(number, None)
            raise _ended(number)
        return False


def _moved(key: bytes, lease: int) -> Message:
    return {"key": text_of(key), "ignore_value": True, "lease": str(lease)}


def _ended(number: int) -> VdiskfsError:
    return NotFound(f"the lease has ended lease={number}")
