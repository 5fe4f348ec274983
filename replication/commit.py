"""Flush: everything acknowledged becomes a durable version, in the order that promise 1 needs.

    _begin (loop)    take what is pending; encode the rows and checksums it changed
    _write (thread)  record behind the data, fdatasync of every group concerned: **durable here**, answered here
                     if the fence lets it pass (replication/fence.py; in doubt the loop asks it, and goes on here);
                     then rows, checksums and the applied version into the index, one batch
    _end (loop)      version; whoever waits for the next commit gets it

One commit at a time for each vdisk; flushes that come meanwhile share the next one. For a guest that syncs behind
each write there are *light* commits, which leave the index alone: the rows stay dirty, and every LIGHT_COMMITS_MAX-th
commit, or ``flush``, lets the index catch up. A crash costs a replay of so many records. A failure is counted in
``head.error_no``, so that every open handle hears of it; what was pending stays pending, and the next commit
first rescues it from the group that failed (replication/log.py). The index failing is no failure of a flush: it
is rebuilt from the log, and the rows stay dirty until it takes them.
"""

import functools
import logging
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import cast

import trio

from metadata.errors import Fenced, NoSpace, NotOwner, Unavailable, VdiskfsError
from metadata.ids import HOLE, Epoch
from metadata.index import IndexBatch, VdiskState
from metadata.rows import encode_row, uniform_row
from replication.flight import Flight
from replication.head import DIRTY_ROWS_MAX, SYNC_STREAK, Head
from replication.ownership import claim, find_owner, take_over
from replication.workspace import Loaded, Workspace

log = logging.getLogger(__name__)

_ROOM_TRIES = 100
"""Somebody else may take the room just made; so often in a row means a bug."""


PENDING_BYTES_MAX = 1 << 30
"""Unflushed bytes of one vdisk after which a write waits for a commit: before the kernel makes us wait."""


LIGHT_COMMITS_MAX = 64

HOLD_S = 1.0
"""A write that needs more room waits so long for a collection, each time: garbage grows faster than it is collected."""


async def flush(head: Head) -> None:
    """Returns when every change acknowledged before the call is durable and published, and the index has it, if it can.

    Raises:
        NoSpace, Unavailable, Corrupt: it is not; what was pending is kept and tried again by the next flush.
    """
    target, failures = head.change_no, head.index_failures
    head.flushing += 1
    try:
        await _commit_to(head, target)
        while not head.gone and head.light_commits and head.index_failures == failures:
            if head.commit_done is None and not begin_nowait(head):
                if _needs_record(head):
                    await _begin_with_room(head)
                else:
                    head.commit_done = trio.Event()
                    _start(head, _begin_index(head))
            if head.commit_done is not None:
                await head.commit_done.wait()
    finally:
        head.flushing -= 1
    if head.audience is not None:
        await head.audience.wait(head.log.version)


async def commit_light(head: Head, *, node: str = "") -> None:
    """As ``flush``, but the index may lag behind: for who commits behind every write.

    Args:
        head: whose changes.
        node: which forwarded them, if one did: it learns of the version by the answer.

    Raises:
        NoSpace, Unavailable, Corrupt, Fenced: as ``flush``.
    """
    audience = head.audience
    with nullcontext() if audience is None or not node else audience.forwarding(node):
        await _commit_to(head, head.change_no, light=True)
    if head.audience is not None:
        await head.audience.wait(head.log.version, besides=node)


async def _commit_to(head: Head, target: int, *, light: bool = False) -> None:
    if isinstance(head.closed, Fenced):
        raise again(head.closed)
    while not head.gone and head.committed_no < target:
        errors = head.error_no
        if head.commit_done is None and not begin_nowait(head, light=light):
            await _begin_with_room(head)
        if head.commit_done is not None:
            await head.commit_done.wait()
        if head.error_no != errors and head.committed_no < target and head.last_error is not None:
            raise again(head.last_error)


def note_sync(head: Head) -> None:
    """The guest asks for an fsync: remembers whether its fsyncs come one by one behind single writes.

    If so, the channel begins the next commit right behind the next write, before the fsync that will surely ask
    for it, and the log preallocates in a way that makes syncs cheap.
    """
    head.syncs.note_sync(head.change_no - head.synced_no)
    head.synced_no = head.change_no


def begin_nowait(head: Head, *, light: bool = False) -> bool:
    """Begins a commit if that needs no waiting; ``head.flight`` and ``head.commit_done`` tell of its end.

    Args:
        head: whose changes.
        light: leave the index alone this time, if nobody needs it.
    """
    flight = head.flight
    if flight is not None and flight.finished:
        _end(head, flight)
    if head.commit_done is not None or head.gone or not head.is_dirty:
        return False
    if isinstance(head.closed, Fenced):
        return False
    if not head.running or head.room_lock.locked() or not head.log.record_fits():
        return False
    head.commit_done = trio.Event()
    may_be_light = head.light_commits < LIGHT_COMMITS_MAX and not head.flushing
    _start(head, _begin(head, light=light and may_be_light))
    return True


async def _begin_with_room(head: Head) -> None:
    head.commit_done = trio.Event()
    try:
        flight = await _prepare(head)
    except VdiskfsError as exc:
        _count_failure(head, exc)
        announce_end(head)
        return
    except BaseException:
        announce_end(head)
        raise
    _start(head, flight)


def _start(head: Head, flight: Flight) -> None:
    head.flight = flight
    if flight.commit is not None:
        head.workspace.pool.hold(flight.commit.files)
    _submit(head, flight)


def _submit(head: Head, flight: Flight) -> None:
    head.workspace.commit_threads.submit(
        functools.partial(_write, head, flight), lambda _, error: _end(head, flight)
    )


def _end(head: Head, flight: Flight) -> None:
    """On the event loop, called when the commit thread is done, or earlier by who wants to begin the next commit."""
    if flight.ended or not flight.finished or _is_doubtful(head, flight):
        return
    flight.ended, head.flight = True, None
    if flight.commit is not None:
        head.workspace.pool.release(flight.commit.files)
    failure = flight.failure
    if failure is None:
        _finish(head, flight)
    else:
        if not isinstance(failure, VdiskfsError):
            log.error("unexpected error in a commit", exc_info=failure)
            failure = Unavailable(f"unexpected error in a commit: {failure!r}")
        head.committing_sequence = 0
        if flight.commit is not None:
            head.log.fail_commit(flight.commit)
        _take_back(head, flight)
        _count_failure(head, failure)
    head.sync_waiters += flight.take_failed()
    announce_end(head)


def _is_doubtful(head: Head, flight: Flight) -> bool:
    """Whether the fence has not spoken yet; asks it, once."""
    fence = head.workspace.fence
    if not flight.doubtful or fence is None:
        return False
    if not flight.judging:
        flight.judging = True
        fence.ask(head.vdisk, head.log.epoch, functools.partial(_judged, head, flight))
    return True


def _judged(head: Head, flight: Flight, error: VdiskfsError | None) -> None:
    flight.doubtful = False
    if error is None:
        flight.finished = False
        _submit(head, flight)
        return
    if isinstance(error, Fenced):
        head.close(error)
        head.journal_forfeited = True
    flight.failure = error
    _end(head, flight)


def again(error: VdiskfsError) -> VdiskfsError:
    """An error that several are told of, for one of them to raise."""
    return type(error)(str(error), number=error.number)


def _count_failure(head: Head, exc: VdiskfsError) -> None:
    head.error_no += 1
    head.last_error = exc
    if head.closed is None:
        log.warning("a commit failed and will be tried again: %s vdisk=%d", exc, head.vdisk)
    else:
        log.error("a commit does not count, and nothing will from now on: %s vdisk=%d", exc, head.vdisk)


def announce_end(head: Head) -> None:
    """No commit runs any more: whoever waits for that is told."""
    done, head.commit_done = head.commit_done, None
    waiters, head.sync_waiters = head.sync_waiters, []
    if done is not None:
        done.set()
    for waiter in waiters:
        waiter()


async def _prepare(head: Head) -> Flight:
    await prepare_held(head)
    return _begin(head)


async def prepare_held(head: Head) -> None:
    """While the caller holds ``head.commit_done``: makes ready what ``begin_held`` needs, at least once.

    Raises:
        NoSpace, Unavailable, Corrupt: it cannot be.
    """
    async with head.room_lock:
        for _ in range(_ROOM_TRIES):
            await start_running(head)
            if head.log.broken and head.log.pending.files:
                await _rescue(head)
            if head.log.record_fits():
                return
            await _make_room(head, 0)


def can_begin_held(head: Head) -> bool:
    """Whether ``begin_held`` may be called now."""
    if not _needs_record(head):
        return True
    if isinstance(head.closed, Fenced):
        return False
    return head.running and not head.room_lock.locked() and head.log.record_fits()


def _needs_record(head: Head) -> bool:
    """Whether what is to be written must be a new version.

    Else the index alone catches up, under the version there is: not if that is kept already, for then its rows
    would come under a generation that nobody sees from it.
    """
    return head.is_dirty or head.generation > head.log.version


def begin_held(head: Head) -> Flight:
    """Begins a commit, or lets the index catch up; ``head.commit_done``, which the caller holds, tells of the end."""
    flight = _begin(head) if _needs_record(head) else _begin_index(head)
    _start(head, flight)
    return flight


def _begin(head: Head, *, light: bool = False) -> Flight:
    """From here to the end no await: the record holds exactly the rows' state."""
    time_ns = head.mtime_ns or time.time_ns()
    light = light and head.cut_vblock is None
    lot = None if light else _take_index_lot(head)
    commit = head.log.begin_commit(
        size=head.size, time_ns=time_ns, own_blocks=head.own_blocks, overlap=head.overlap
    )
    head.committing_sequence = commit.pending.first_sequence
    if lot is None:
        head.light_commits += 1
        return Flight(commit, None, head.change_no)
    place, check = commit.place, commit.check
    state = _state(head, version=commit.record.version, record=(place, check), time_ns=time_ns)
    return Flight(commit, _batch(head, lot, state), head.change_no, lot.cut)


def _begin_index(head: Head) -> Flight:
    """As ``_begin``, of a head that has nothing uncommitted: only the index lags."""
    lot, record = _take_index_lot(head), (head.log.record_place, head.log.record_check)
    state = _state(head, version=head.log.version, record=record, time_ns=head.mtime_ns)
    return Flight(None, _batch(head, lot, state), head.change_no, lot.cut)


@dataclass(slots=True)
class _IndexLot:
    """What the index lacks."""

    rows: dict[int, bytes]
    segments: dict[int, bytes]
    cut: int | None


def _take_index_lot(head: Head) -> _IndexLot:
    groups = head.groups
    rows = {vblock: encode_row(head.rows[vblock]) for vblock in head.dirty}
    segments = {key: groups.segments[key].tobytes() for key in groups.pinned[0]}
    head.committing, head.dirty = head.dirty, set()
    head.pinned[:] = head.dirty, head.committing
    groups.pinned[1], groups.pinned[0] = groups.pinned[0], set()
    head.tail_key = -1
    head.light_commits = 0
    cut = head.cutting_vblock = head.cut_vblock
    head.cut_vblock = None
    return _IndexLot(rows, segments, cut)


def _state(head: Head, *, version: int, record: tuple[int, int], time_ns: int) -> VdiskState:
    return VdiskState(
        version=version,
        record_place=record[0],
        record_check=record[1],
        record_end=head.log.end,
        size=head.size,
        own_blocks=head.own_blocks,
        overlap=head.overlap,
        time_ns=time_ns,
        generation=head.generation,
        collected=head.collected,
    )


def _batch(head: Head, lot: _IndexLot, state: VdiskState) -> IndexBatch:
    return IndexBatch(head.vdisk, head.generation, rows=lot.rows, segments=lot.segments, state=state)


def _write(head: Head, flight: Flight) -> None:
    """Thread. What goes wrong is noted in the flight."""
    try:
        if flight.commit is not None and not flight.judging:
            flight.commit.write()
            fence = head.workspace.fence
            if fence is not None and not fence.is_certain():
                flight.doubtful = flight.finished = True
                return
        flight.note_durable()
        if flight.batch is not None:
            _apply(head, flight.batch, cut=flight.cut)
    except Exception as exc:
        if flight.durable and isinstance(exc, VdiskfsError):
            flight.index_error = exc
        else:
            flight.failure = exc
    flight.finished = True


def _apply(head: Head, batch: IndexBatch, *, cut: int | None) -> None:
    if cut is not None:
        if batch.generation == 1:
            batch.drop_from_vblock = cut
        else:  # older versions keep their rows: cover them
            hole = encode_row(uniform_row(HOLE))
            hidden = head.index.vblocks(head.vdisk, cut, (1 << 64) - 1)
            batch.rows = {**dict.fromkeys(hidden, hole), **batch.rows}
    head.index.apply(batch)


def _finish(head: Head, flight: Flight) -> None:
    if flight.commit is not None:
        head.log.finish_commit(flight.commit)
        head.committed_no = flight.change_no
        head.journal_forfeited = False
        head.committing_sequence = 0
        if head.audience is not None:
            head.audience.publish(flight.commit, head.log.epoch, generation=head.generation)
    if flight.index_error is not None:
        if not head.index_failures:
            log.error("the index lags behind: %s vdisk=%d", flight.index_error, head.vdisk)
        head.index_failures += 1
        head.light_commits += 1  # as if it had been left alone: the next flush, or tick, tries again
        _take_back(head, flight)
    elif flight.batch is not None:
        head.commits += 1
        head.index_failures = 0
        head.committing = set()
        head.pinned[:] = head.dirty, head.committing
        head.groups.pinned[1] = set()
        head.cutting_vblock = None


def _take_back(head: Head, flight: Flight) -> None:
    """What the index did not get stays dirty."""
    if flight.batch is None:
        return
    head.dirty |= {vblock for vblock in head.committing if vblock in head.rows}  # not those cut off since
    head.committing = set()
    head.pinned[:] = head.dirty, head.committing
    head.groups.pinned[0] |= head.groups.pinned[1]
    head.groups.pinned[1] = set()
    if flight.cut is not None:
        head.cut_vblock = flight.cut if head.cut_vblock is None else min(flight.cut, head.cut_vblock)
    head.cutting_vblock = None


async def ready_to_append(head: Head, block_count: int, *, for_data: bool = True) -> None:
    """Sees to it that so many blocks fit into the log and the journal when it returns.

    Args:
        head: whose.
        block_count: how many.
        for_data: they are; holes and a new size may take what a full pool keeps free.

    Raises:
        NoSpace: the pool is full; nothing has changed.
    """
    for _ in range(_ROOM_TRIES):
        await relieve_journal(head.workspace, 2 * block_count + 2)
        if head.log.pending.data_bytes() > PENDING_BYTES_MAX:
            await flush(head)
        if head.closed is not None:
            raise again(head.closed)
        if head.running and not head.log.broken and head.log.fits(block_count):
            return
        if for_data and head.room_awaits is not None:
            with trio.move_on_after(HOLD_S):
                await head.room_awaits.wait()
        async with head.room_lock:
            await start_running(head)
            if head.log.broken and head.log.pending.files:
                await _rescue(head)
            if head.log.broken or not head.log.fits(block_count):
                await _make_room(head, block_count, for_data=for_data)
        if len(head.dirty) > DIRTY_ROWS_MAX // 2:
            begin_nowait(head)  # before writes have to wait for it


async def grow_ahead(head: Head) -> None:
    """Makes the room that a stream of writes will need next, so that none of them waits for it."""
    if head.room_awaits is not None:
        return
    async with head.room_lock:
        if head.running and head.log.wants_room_ahead():
            with suppress(NoSpace, Unavailable):  # the write that does not fit will tell
                await _make_room(head, 1)


async def start_running(head: Head) -> None:
    """Before the first change of anything: this node is the owner, and the catalog's summary void.

    Raises:
        NotOwner: another node is.
        Fenced: another node is, though this one was.
    """
    if head.closed is not None and (not head.running or isinstance(head.closed, Fenced)):
        raise again(head.closed)
    if not head.running:
        head.log.begin_epoch(await _claim(head))
        head.running = head.owned = True


async def _claim(head: Head) -> Epoch:
    space = head.workspace
    try:
        return await claim(space.catalog, head.vdisk, node=space.node)
    except NotOwner:
        if space.fence is not None:
            raise
        owner = await find_owner(space.catalog, head.vdisk)  # of before: this node is alone with the pool
        await take_over(space.catalog, head.vdisk, owner=owner, node=space.node)
        return await claim(space.catalog, head.vdisk, node=space.node)


async def _make_room(head: Head, block_count: int, *, for_data: bool = True) -> None:
    owner_log, tail, broken = head.log, head.log.tail, head.log.broken
    files, pool = owner_log.files_to_grow(), head.workspace.pool
    pool.hold(files)
    try:
        written = head.syncs.streak >= SYNC_STREAK
        room = await head.workspace.wait_for(
            lambda: owner_log.make_room(block_count, tail=tail, written=written, for_data=for_data)
        )
    finally:
        pool.release(files)
    if owner_log.broken and not broken:  # a commit failed meanwhile: what is pending has to be rescued first
        await head.workspace.wait_for(lambda: owner_log.give_back(room))
        return
    owner_log.use_room(room)
    if head.closed is not None:  # for the record of what was accepted before, and no more
        owner_log.close_room()


async def _rescue(head: Head) -> None:
    owner_log = head.log
    log.warning("moving unflushed data out of a group that failed vdisk=%d", head.vdisk)
    before = list(owner_log.pending.extents[1::2])
    files, pool = list(owner_log.pending.files.values()), head.workspace.pool
    pool.hold(files)
    try:
        rescued = await head.workspace.wait_for(owner_log.rescue)
    finally:
        pool.release(files)
    for (block_no, count, place, _), old in zip(rescued.extents, before, strict=True):
        if place != old:
            head.repoint(block_no, count, old=old, new=place)
    owner_log.use_rescued(rescued)
    if head.closed is not None:
        owner_log.close_room()


async def relieve_journal(workspace: Workspace, entries: int) -> None:
    """Commits vdisks, those with the oldest entries first, until the journal has room."""
    while workspace.journal.room() < entries:
        changing = _journal_users(workspace)
        oldest = min(changing, key=lambda head: head.oldest_sequence(), default=None)
        if oldest is not None and workspace.journal.sequence - oldest.oldest_sequence() > entries:
            await _relieve_of(cast(Head, oldest))
        note_journal_need(workspace)
        await trio.lowlevel.checkpoint()


def _journal_users(workspace: Workspace) -> list[Loaded]:
    heads = workspace.heads.values()
    return [head for head in heads if head.is_dirty and not head.journal_forfeited]


async def _relieve_of(head: Head) -> None:
    try:
        await flush(head)
    except VdiskfsError:  # counted and logged; one failing vdisk must not stop the others
        head.journal_forfeited = True


def note_journal_need(workspace: Workspace) -> None:
    """Tells the journal which entries are still needed."""
    sequences = [head.oldest_sequence() for head in _journal_users(workspace)]
    workspace.journal.keep_from(min(sequences, default=workspace.journal.sequence))
