"""How long etcd keeps its history: nodes compact it, because nobody else may, and a full etcd takes no writes.

    compacted      value: the revision up to which history goes at the next compaction

Every ``COMPACT_S`` one of the nodes, whoever is first, compacts up to the revision noted the time before, and notes the
present one. So a watch that was cut off for ``COMPACT_S`` goes on where it was. etcd has one history for all its users;
those with a compaction of their own lose nothing by it.
"""

import logging
from collections.abc import Callable

import trio

from metadata.errors import InvalidRequest, VdiskfsError
from metadata.etcd_calls import EtcdCalls, RevisionGone
from metadata.etcd_messages import (
    bytes_in,
    compare_revision,
    number_in,
    parts_in,
    put_of,
    range_of,
    revision_in,
)

COMPACT_S = 300.0
PATIENCE_S = 2.0
"""Who keeps a lease alive waits for this; it is done another time."""

log = logging.getLogger(__name__)


class History:
    """One process's share in it."""

    def __init__(self, calls: EtcdCalls, key: bytes, *, clock_s: Callable[[], float]) -> None:
        self._calls, self._key, self._clock_s = calls, key, clock_s
        self._next_s = clock_s() + COMPACT_S
        self._noted = -1
        """When this process looked last, the note was of this revision of etcd's."""

    async def compact_now_and_then(self) -> None:
        """Called every few seconds; does something every ``COMPACT_S``."""
        if self._clock_s() < self._next_s:
            return
        self._next_s = self._clock_s() + COMPACT_S
        with trio.move_on_after(PATIENCE_S):
            try:
                await self.compact()
            except VdiskfsError as exc:
                log.warning("the catalog's history is not compacted now: %s", exc)

    async def compact(self) -> None:
        """Compact, unless another process has done so since this one looked last."""
        found = await self._calls.call("kv/range", range_of(self._key))
        rows = parts_in(found, "kvs")
        noted_at = number_in(rows[0], "mod_revision") if rows else 0
        text = bytes_in(rows[0], "value") if rows else b""
        before, self._noted = self._noted, noted_at
        if noted_at and noted_at != before and before >= 0:
            return  # another process's turn, a moment ago
        note = put_of(self._key, b"%d" % revision_in(found))
        answer = await self._calls.call(
            "kv/txn", {"compare": [compare_revision(self._key, noted_at)], "success": [note]}
        )
        if not answer.get("succeeded"):
            return
        self._noted = revision_in(answer)
        if text.isdigit():
            try:
                await self._calls.call("kv/compaction", {"revision": text.decode()})
            except (RevisionGone, InvalidRequest):  # somebody has compacted further
                pass
