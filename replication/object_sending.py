"""Putting blocks of a group's local file into the pool: as objects of 8 MiB at most, several at once, each only if absent."""

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from xxhash import xxh3_64_intdigest

from metadata.errors import Exists, Fenced, Unavailable, VdiskfsError
from replication.object_store import RetryingStore
from replication.object_tables import ObjectTable, Span

log = logging.getLogger(__name__)

PART_BLOCKS = 2048
"""What is longer goes up as several objects of 8 MiB at once."""


class Senders(Protocol):
    """What all groups share for it."""

    @property
    def store(self) -> RetryingStore: ...
    @property
    def senders(self) -> ThreadPoolExecutor: ...


class SendingGroup(Protocol):
    """A group that this node appended to."""

    is_doubtful: bool
    table: ObjectTable | None
    lock: threading.Lock
    digests: dict[Span, int]

    @property
    def space(self) -> Senders: ...
    def key(self, span: Span) -> str: ...
    def local_bytes(self, span: Span) -> bytes: ...


def short_parts(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same blocks, none of the parts longer than an object shall be."""
    return [(at, min(at + PART_BLOCKS, high)) for low, high in parts for at in range(low, high, PART_BLOCKS)]


def upload(group: SendingGroup, parts: list[tuple[int, int]]) -> None:
    """Puts blocks of the local file into the pool, several objects at once.

    Raises:
        Unavailable: not all, or nobody knows.
        Fenced: something else is there under the name of what was to be stored.
    """
    spans = [Span(low, high - low) for low, high in short_parts(parts)]
    if not spans:
        return
    try:
        if len(spans) == 1:
            _put(group, spans[0])
            return
        futures: list[Future[None]] = [group.space.senders.submit(_put, group, span) for span in spans]
        errors = [future.exception() for future in futures]
        error = next((error for error in errors if error is not None), None)
        if error is not None:
            raise error
    except Exists as exc:
        group.is_doubtful = True
        log.error("another process stored something else under this node's name: %s", exc)
        raise Fenced(f"another process writes under this node's name: {exc}") from exc
    except RuntimeError as exc:
        raise Unavailable("the pool is closed") from exc
    except VdiskfsError:
        group.is_doubtful = True
        raise


def _put(group: SendingGroup, span: Span) -> None:
    data = group.local_bytes(span)
    group.space.store.put_new(group.key(span), data)
    with group.lock:
        assert group.table is not None
        group.table.add([span])
        group.digests[span] = xxh3_64_intdigest(data)
