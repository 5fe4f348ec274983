"""What happened lately in a catalog, for those who watch it: bounded, in memory, never ahead of the truth."""

from collections import deque
from collections.abc import Sequence

import trio

from metadata.catalog import Event

EVENTS_MAX = 8192
"""A watcher that falls further behind reads the catalog instead: some MiB of rows, not hours of them."""


class RecentEvents:
    """The events above ``floor``, all of them, up to ``revision``. Lives as long as its catalog."""

    def __init__(self, revision: int, *, events_max: int = EVENTS_MAX) -> None:
        self.floor = revision
        self.revision = revision
        self._events: deque[Event] = deque()
        self._events_max = events_max
        self._arrived = trio.Event()

    def publish(self, events: Sequence[Event], revision: int) -> None:
        """Append what happened up to ``revision``, and wake everybody who waits for it."""
        if revision <= self.revision:
            return
        self._events.extend(events)
        self.revision = revision
        while len(self._events) > self._events_max:
            self.floor = self._events.popleft().revision
        while self._events and self._events[0].revision <= self.floor:
            self._events.popleft()
        self._arrived.set()
        self._arrived = trio.Event()

    def restart(self, revision: int) -> None:
        """Forget everything up to ``revision``: something between is unknown here. Wakes the watchers."""
        self._events.clear()
        self.floor = self.revision = revision
        self._arrived.set()
        self._arrived = trio.Event()

    def events_after(self, position: int, prefix: bytes) -> list[Event] | None:
        """The events above ``position`` with ``prefix``, or None if some of them are gone from here."""
        if position < self.floor:
            return None
        newest_first: list[Event] = []
        for event in reversed(self._events):
            if event.revision <= position:
                break
            if event.key.startswith(prefix):
                newest_first.append(event)
        newest_first.reverse()
        return newest_first

    async def wait_for_more(self, position: int) -> None:
        """Return when something above ``position`` has happened."""
        await trio.lowlevel.checkpoint()
        while self.revision <= position:
            await self._arrived.wait()
