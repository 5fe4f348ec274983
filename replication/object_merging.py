"""Merging: small objects of a group become few, so that a vdisk of many small commits is not a million objects.

Only the node that put them merges them, one group at a time, in a thread of its own. Merged first, deleted then:
between the two, and after a crash there, both hold the same. What is merged is taken from the local file where that
still is what was put (a digest tells), else from the objects themselves.
"""

import logging
import queue
import threading

from xxhash import xxh3_64_intdigest

from metadata.errors import VdiskfsError
from metadata.units import BLOCK_BYTES
from replication.object_groups import ObjectGroup
from replication.object_tables import Span, plan_merge, superseded

log = logging.getLogger(__name__)

STEPS_MAX = 100
"""Merges of one group in a row; then others have their turn."""


class Merger:
    """One to an object pool."""

    def __init__(self) -> None:
        self._asked: queue.SimpleQueue[ObjectGroup | None] = queue.SimpleQueue()
        self._waiting: set[ObjectGroup] = set()
        self._lock, self._merging = threading.Lock(), threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = False
        self.merged_objects = 0

    def ask(self, group: ObjectGroup) -> None:
        """The group may have become worth it. Any thread."""
        with self._lock:
            if group in self._waiting or self._closing:
                return
            self._waiting.add(group)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name="merge")
                self._thread.start()
        self._asked.put(group)

    def close(self) -> None:
        """Ends when what it does now is done."""
        self._closing = True
        self._asked.put(None)
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (group := self._asked.get()) is not None and not self._closing:
            with self._lock:
                self._waiting.discard(group)
            try:
                self.merge(group)
            except VdiskfsError as exc:
                log.warning("objects are not merged now: %s", exc)

    def merge(self, group: ObjectGroup) -> None:
        """Merges what is worth it now.

        Raises:
            VdiskfsError: not all of it; whatever was done holds.
        """
        with self._merging:  # two at once would take objects away from each other
            self._merge(group)

    def _merge(self, group: ObjectGroup) -> None:
        if group.table is None:
            group.refresh()
        for _ in range(STEPS_MAX):
            with group.lock:
                if group.is_gone or group.table is None or self._closing:
                    return
                spans = list(group.table.spans)
                is_sealed = not group.is_open
            old = superseded(spans)
            run = plan_merge(spans, is_sealed=is_sealed)
            if run is None and not old:
                return
            if run is not None:
                merged = Span(run[0].position, run[-1].end - run[0].position)
                if self._join(group, merged, superseded([*spans, merged])):
                    continue
                data = b"".join(_content(group, span, after=at) for span, at in _parts(run))
                group.space.store.put_new(group.key(merged), data)
                with group.lock:
                    group.table.add([merged])
                    group.digests[merged] = xxh3_64_intdigest(data)
                old = superseded([*spans, merged])
            with group.lock:
                group.table.drop(old)
                for span in old:
                    group.digests.pop(span, None)
            with group.syncing:
                if not group.is_gone:
                    group.space.store.delete([group.key(span) for span in old])
            self.merged_objects += len(old)

    def _join(self, group: ObjectGroup, merged: Span, old: list[Span]) -> bool:
        """Where the store can do it without moving a byte."""
        with group.syncing:
            if group.is_gone:
                return True  # all of it went
            if not group.space.store.join(group.key(merged), [group.key(span) for span in old]):
                return False
        with group.lock:
            assert group.table is not None
            group.table.add([merged])
            group.table.drop(old)
            for span in old:
                group.digests.pop(span, None)
        self.merged_objects += len(old)
        return True


def _parts(run: list[Span]) -> list[tuple[Span, int]]:
    """Each object, and where what it adds begins: neighbours may overlap."""
    parts, end = [], run[0].position
    for span in run:
        parts.append((span, end))
        end = max(end, span.end)
    return parts


def _content(group: ObjectGroup, span: Span, *, after: int) -> bytes:
    """What an object holds from a position on."""
    digest, data = group.digests.get(span), b""
    if digest is not None:
        data = group.local_bytes(span)
    if digest is None or xxh3_64_intdigest(data) != digest:
        data = group.space.store.get(group.key(span))
    return data[(after - span.position) * BLOCK_BYTES :]
