"""A catalog in memory: for simulation and tests, shared by all nodes of one process, gone with it."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

import trio

from metadata.catalog import Change, Compacted, Event, Row
from metadata.catalog_history import EVENTS_MAX, RecentEvents
from metadata.errors import Conflict, NotFound


@dataclass(slots=True)
class _Lease:
    ttl_s: float
    ends_at: float
    keys: set[bytes] = field(default_factory=set)


class MemoryCatalog:
    """Rows in a dict. Its clock is trio's, so that simulated time moves its leases too."""

    def __init__(self, *, history_max: int = EVENTS_MAX) -> None:
        self._rows: dict[bytes, Row] = {}
        self._history = RecentEvents(0, events_max=history_max)
        self._leases: dict[int, _Lease] = {}
        self._lease_of: dict[bytes, int] = {}
        self._last_lease = 0

    async def read(self, prefix: bytes) -> tuple[list[Row], int]:
        await trio.lowlevel.checkpoint()
        self._expire()
        rows = sorted(
            (row for row in self._rows.values() if row.key.startswith(prefix)), key=lambda row: row.key
        )
        return rows, self._history.revision

    async def transact(self, change: Change, *, lease: int = 0) -> int:
        await trio.lowlevel.checkpoint()
        self._expire()
        for key, revision in change.compares:
            row = self._rows.get(key)
            if (row.revision if row else 0) != revision:
                raise Conflict(f"the catalog has changed key={key!r}")
        if lease and lease not in self._leases:
            raise NotFound(f"the lease has ended lease={lease}")
        return self._write(change, lease)

    async def watch(self, prefix: bytes, *, after: int) -> AsyncGenerator[list[Event], None]:
        position = after
        while True:
            with trio.move_on_at(self._next_expiry()):
                await self._history.wait_for_more(position)
            self._expire()
            events = self._history.events_after(position, prefix)
            if events is None:
                raise Compacted(f"the catalog's history is gone revision={position}")
            position = self._history.revision
            if events:
                yield events

    async def grant_lease(self, ttl_s: float) -> int:
        await trio.lowlevel.checkpoint()
        self._last_lease += 1
        self._leases[self._last_lease] = _Lease(ttl_s, trio.current_time() + ttl_s)
        return self._last_lease

    async def keep_alive(self, lease: int) -> None:
        await trio.lowlevel.checkpoint()
        self._expire()
        if lease not in self._leases:
            raise NotFound(f"the lease has ended lease={lease}")
        self._leases[lease].ends_at = trio.current_time() + self._leases[lease].ttl_s

    async def revoke(self, lease: int) -> None:
        await trio.lowlevel.checkpoint()
        ended = self._leases.pop(lease, None)
        if ended is not None:
            self._write(Change(deletes=tuple(sorted(ended.keys))), 0)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()

    def _write(self, change: Change, lease: int) -> int:
        deleted = [key for key in change.deletes if key in self._rows]
        if not change.puts and not deleted:
            return self._history.revision
        revision = self._history.revision + 1
        for key, value in change.puts:
            self._rows[key] = Row(key, value, revision)
            self._bind(key, lease)
        for key in deleted:
            del self._rows[key]
            self._bind(key, 0)
        events = [Event(key, value, revision) for key, value in change.puts]
        events += [Event(key, None, revision) for key in deleted]
        self._history.publish(events, revision)
        return revision

    def _bind(self, key: bytes, lease: int) -> None:
        """Let the key live under ``lease`` (0: for ever) from now on."""
        before = self._leases.get(self._lease_of.pop(key, 0))
        if before is not None:
            before.keys.discard(key)
        if lease:
            self._lease_of[key] = lease
            self._leases[lease].keys.add(key)

    def _expire(self) -> None:
        now = trio.current_time()
        for lease in [lease for lease, held in self._leases.items() if held.ends_at <= now]:
            ended = self._leases.pop(lease)
            self._write(Change(deletes=tuple(sorted(ended.keys))), 0)

    def _next_expiry(self) -> float:
        return min((held.ends_at for held in self._leases.values()), default=float("inf"))
