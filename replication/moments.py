"""One moment of one or several vdisks: their commits begin together, in one stretch without an await.

So no write that came after one member's moment is in another member. Guests go on writing meanwhile; only their
commits wait for each other, no longer than the slowest one of the members takes.

    hold      no other commit of a member runs or begins
    ready     who has something to commit owns its vdisk and has room for the record
    begin     without an await: each commit begins, each version is kept and pinned
    end       the commits are durable and in the index; one that failed means another try for all
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from metadata.errors import NotFound, Unavailable
from replication.commit import announce_end, begin_held, can_begin_held, prepare_held
from replication.family import Family
from replication.head import Head
from replication.lag import reach_pool

_TRIES = 4
"""Commits that fail in a row: the pool or the index does not take them."""
_READY_TRIES = 100
"""Another member may change while one is made ready; so often in a row means a bug."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A vdisk at a version that is durable, in the index, and pinned until the caller unpins it."""

    vdisk: int
    version: int
    size: int
    own_blocks: int
    overlap: int
    mtime_ns: int


async def take_moments(heads: Sequence[Head], family: Family) -> list[Moment]:
    """Commits all that is acknowledged; what they return is one moment of all of these vdisks.

    Raises:
        NotFound: one of them is deleted.
        NoSpace, Unavailable, Corrupt: it could not be made durable.
    """
    failure: Exception | None = None
    for _ in range(_TRIES):
        moments, failure = await _try(heads, family)
        if failure is None:
            try:
                for head in heads:
                    await reach_pool(head)
            except BaseException:
                unpin_moments(moments, family)
                raise
            return moments
    assert failure is not None
    raise failure


async def _try(heads: Sequence[Head], family: Family) -> tuple[list[Moment], Exception | None]:
    ordered = sorted(
        heads, key=lambda head: head.vdisk
    )  # two groups that share members do not lock each other out
    held: list[Head] = []
    try:
        for head in ordered:
            while head.commit_done is not None:
                await head.commit_done.wait()
            head.commit_done = trio.Event()
            held.append(head)
        await _make_ready(held)
    except BaseException:
        for head in held:
            announce_end(head)
        raise
    # No await from here until every member has begun: this is the moment.
    moments, flights = [], []
    for head in held:
        done, flight = head.commit_done, None
        if head.is_dirty or head.index_lags:
            flight = begin_held(head)
        version = flight.commit.record.version if flight and flight.commit else head.log.version
        moments.append(Moment(head.vdisk, version, head.size, head.own_blocks, head.overlap, head.mtime_ns))
        head.keep(version)
        family.pin(head.vdisk, version)
        if flight is None:
            announce_end(head)
        elif done is not None:
            flights.append((flight, done))
    try:
        for _, done in flights:
            await done.wait()
    except BaseException:
        unpin_moments(moments, family)
        raise
    errors = [flight.failure or flight.index_error for flight, _ in flights]
    failure = next((error for error in errors if error is not None), None)
    if failure is not None:
        unpin_moments(moments, family)
    return moments, failure


async def _make_ready(held: Sequence[Head]) -> None:
    for _ in range(_READY_TRIES):
        if any(head.gone for head in held):
            raise NotFound("the vdisk was deleted meanwhile")
        lacking = [head for head in held if (head.is_dirty or head.index_lags) and not can_begin_held(head)]
        if not lacking:
            return
        for head in lacking:
            await prepare_held(head)
    raise Unavailable("the vdisks found no quiet moment")


def unpin_moments(moments: Sequence[Moment], family: Family) -> None:
    """Their versions are named by the catalog now, or not wanted any more."""
    for moment in moments:
        family.unpin(moment.vdisk, moment.version)


@contextmanager
def pinned_moments(moments: Sequence[Moment], family: Family) -> Iterator[None]:
    """Unpins them at the end."""
    try:
        yield
    finally:
        unpin_moments(moments, family)
