"""Bounds for what is decoded and kept in memory: rows and checksum segments of all vdisks together.

The cached values live in plain dictionaries beside their users, because a hit must cost one look-up; here is
only the order in which they came, and the limit. First in, first out: a hit leaves no trace, and for disks
bigger than the cache a better order is not worth a microsecond on every read. What is pinned (changed, not
yet in the index) stays. Only the event loop calls this: a thread must never take a row away under a write.
"""

from collections import deque
from collections.abc import Container, Iterable
from typing import Any


class FifoCache:
    """The order and bound of the entries of many dictionaries; one for rows, one for segments."""

    def __init__(self, limit: int) -> None:
        """``limit`` counts entries."""
        self.limit = limit
        self._order: deque[tuple[dict[int, Any], int, Iterable[Container[int]]]] = deque()

    def admit(self, entries: dict[int, Any], key: int, pinned: Iterable[Container[int]]) -> None:
        """Notes that ``entries[key]`` was just set; takes the oldest away if there are too many.

        Args:
            entries: the dictionary.
            key: its new key.
            pinned: an entry whose key is in one of these may not go now. A list that its owner mutates.
        """
        order = self._order
        order.append((entries, key, pinned))
        for _ in range(min(8, len(order) - 1)):  # pinned ones go to the end of the queue; the new one stays
            if len(order) <= self.limit:
                return
            oldest = order.popleft()
            if any(oldest[1] in group for group in oldest[2]):
                order.append(oldest)
            else:
                oldest[0].pop(oldest[1], None)

    def __len__(self) -> int:
        return len(self._order)

    def shrink(self, limit: int) -> None:
        """Takes away all but the newest ``limit`` entries, pinned ones excepted."""
        kept: deque[tuple[dict[int, Any], int, Iterable[Container[int]]]] = deque()
        while len(self._order) > limit:
            oldest = self._order.popleft()
            if any(oldest[1] in group for group in oldest[2]):
                kept.append(oldest)
            else:
                oldest[0].pop(oldest[1], None)
        self._order.extendleft(reversed(kept))
