"""Flush: everything acknowledged becomes a durable version, in the order that promise 1 needs.

    _begin (loop)    take what is pending; encode the rows and checksums it changed
    _write (thread)  record behind the data, fdatasync of every group concerned: **durable here**;
                     then rows, checksums and the applied version into the index, one batch
    _end (loop)      version, and whoever waited is told

One commit at a time for each vdisk; flushes that come meanwhile share the next one. A failure is counted in
``head.error_no``, so that every open handle hears of it; what was pending stays pending, and the next commit
first rescues it from the group that failed (replication/log.py). The index failing is no failure of a flush: it
is rebuilt from the log, and the rows stay dirty until it takes them.
"""

import functools
import logging
import time
from dataclasses import dataclass
from typing import cast

import trio

from metadata.errors import Unavailable, VdiskfsError
from metadata.ids import HOLE
from metadata.index import IndexBatch, VdiskState
from metadata.rows import encode_row, uniform_row
from replication.head import DIRTY_ROWS_MAX, SYNC_STREAK, Head
from replication.log import Commit
from replication.ownership import claim
from replication.workspace import Loaded, Workspace

log = logging.getLogger(__name__)

_ROOM_TRIES = 100
"""Somebody else may take the room just made; so often in a row means a bug."""


PENDING_BYTES_MAX = 1 << 30
"""Unflushed bytes of one vdisk after which a write waits for a commit: before the kernel makes us wait."""


@dataclass(slots=True)
class _Prepared:
    commit: Commit
    batch: IndexBatch
    change_no: int
    cut: int | None


async def flush(head: Head) -> None:
    """Returns when every change acknowledged before the call is durable.

    Raises:
        NoSpace, Unavailable, Corrupt: it is not; what was pending is kept and tried again by the next flush.
    """
    target = head.change_no
    while not head.gone and head.committed_no < target:
        errors = head.error_no
        if head.commit_done is None and not begin_nowait(head):
            await _begin_with_room(head)
        if head.commit_done is not None:
            await head.commit_done.wait()
        if head.error_no != errors and head.committed_no < target and head.last_error is not None:
            raise head.last_error


def note_sync(head: Head) -> None:
    """The guest asks for an fsync: remembers whether its fsyncs come one by one behind single writes.

    If so, the channel begins the next commit right behind the next write, before the fsync that will surely ask
    for it, and the log preallocates in a way that makes syncs cheap.
    """
    head.syncs.note_sync(head.change_no - head.synced_no)
    head.synced_no = head.change_no


def begin_nowait(head: Head) -> bool:
    """Begins a commit if that needs no waiting; ``head.commit_done`` and ``sync_waiters`` tell of its end."""
    if head.commit_done is not None or head.gone or not head.is_dirty:
        return False
    if not head.running or head.room_lock.locked() or not head.log.record_fits():
        return False
    head.commit_done = trio.Event()
    _start(head, _begin(head))
    return True


async def _begin_with_room(head: Head) -> None:
    head.commit_done = trio.Event()
    try:
        prepared = await _prepare(head)
    except VdiskfsError as exc:
        _count_failure(head, exc)
        _announce_end(head)
        return
    except BaseException:
        _announce_end(head)
        raise
    _start(head, prepared)


def _start(head: Head, prepared: _Prepared) -> None:
    head.workspace.pool.hold(prepared.commit.files)
    head.workspace.commit_threads.submit(
        functools.partial(_write, head, prepared), functools.partial(_end, head, prepared)
    )


def _end(
    head: Head, prepared: _Prepared, index_error: VdiskfsError | None, failure: Exception | None
) -> None:
    """On the event loop, called by the commit thread."""
    head.workspace.pool.release(prepared.commit.files)
    if failure is None:
        _finish(head, prepared, index_error)
    else:
        if not isinstance(failure, VdiskfsError):
            log.error("unexpected error in a commit", exc_info=failure)
            failure = Unavailable(f"unexpected error in a commit: {failure!r}")
        head.committing_sequence = 0
        head.log.fail_commit(prepared.commit)
        _take_back(head, prepared)
        _count_failure(head, failure)
    _announce_end(head)


def _count_failure(head: Head, exc: VdiskfsError) -> None:
    head.error_no += 1
    head.last_error = exc
    log.warning("a commit failed and will be tried again: %s vdisk=%d", exc, head.vdisk)


def _announce_end(head: Head) -> None:
    done, head.commit_done = head.commit_done, None
    waiters, head.sync_waiters = head.sync_waiters, []
    if done is not None:
        done.set()
    for waiter in waiters:
        waiter()


async def _prepare(head: Head) -> _Prepared:
    async with head.room_lock:
        for _ in range(_ROOM_TRIES):
            await _start_running(head)
            if head.log.broken and head.log.pending.files:
                await _rescue(head)
            if head.log.record_fits():
                break
            await _make_room(head, 0)
        return _begin(head)


def _begin(head: Head) -> _Prepared:
    """From here to the end no await: the record holds exactly the rows' state."""
    groups = head.groups
    rows = {vblock: encode_row(head.rows[vblock]) for vblock in head.dirty}
    segments = {key: groups.segments[key].tobytes() for key in groups.pinned[0]}
    head.committing, head.dirty = head.dirty, set()
    head.pinned[:] = head.dirty, head.committing
    groups.pinned[1], groups.pinned[0] = groups.pinned[0], set()
    head.tail_key = -1
    cut = head.cutting_vblock = head.cut_vblock
    head.cut_vblock = None
    time_ns = head.mtime_ns or time.time_ns()
    commit = head.log.begin_commit(
        size=head.size, time_ns=time_ns, own_blocks=head.own_blocks, overlap=head.overlap
    )
    state = VdiskState(
        version=commit.record.version,
        record_place=commit.place,
        record_check=commit.check,
        record_end=head.log.tail,
        size=head.size,
        own_blocks=head.own_blocks,
        overlap=head.overlap,
        time_ns=time_ns,
        generation=head.generation,
    )
    head.committing_sequence = commit.pending.first_sequence
    batch = IndexBatch(head.vdisk, head.generation, rows=rows, segments=segments, state=state)
    return _Prepared(commit, batch, head.change_no, cut)


def _write(head: Head, prepared: _Prepared) -> VdiskfsError | None:
    """Thread. Raises what the pool raises; returns what the index raises."""
    prepared.commit.write()
    batch = prepared.batch
    try:
        if prepared.cut is not None:
            if head.generation == 1:
                batch.drop_from_vblock = prepared.cut
            else:  # older versions keep their rows: cover them
                hole = encode_row(uniform_row(HOLE))
                hidden = head.index.vblocks(head.vdisk, prepared.cut, (1 << 64) - 1)
                batch.rows = {**dict.fromkeys(hidden, hole), **batch.rows}
        head.index.apply(batch)
    except VdiskfsError as exc:
        return exc
    return None


def _finish(head: Head, prepared: _Prepared, index_error: VdiskfsError | None) -> None:
    head.log.finish_commit(prepared.commit)
    head.committed_no = prepared.change_no
    head.journal_forfeited = False
    head.committing_sequence = 0
    if index_error is not None:
        log.error("the index lags behind: %s vdisk=%d", index_error, head.vdisk)
        _take_back(head, prepared)
        return
    head.commits += 1
    head.committing = set()
    head.pinned[:] = head.dirty, head.committing
    head.groups.pinned[1] = set()
    head.cutting_vblock = None


def _take_back(head: Head, prepared: _Prepared) -> None:
    """What the index did not get stays dirty."""
    head.dirty |= {vblock for vblock in head.committing if vblock in head.rows}  # not those cut off since
    head.committing = set()
    head.pinned[:] = head.dirty, head.committing
    head.groups.pinned[0] |= head.groups.pinned[1]
    head.groups.pinned[1] = set()
    if prepared.cut is not None:
        head.cut_vblock = prepared.cut if head.cut_vblock is None else min(prepared.cut, head.cut_vblock)
    head.cutting_vblock = None


async def ready_to_append(head: Head, block_count: int) -> None:
    """Sees to it that so many blocks fit into the log and the journal when it returns.

    Raises:
        NoSpace: the pool is full; nothing has changed.
    """
    for _ in range(_ROOM_TRIES):
        await relieve_journal(head.workspace, 2 * block_count + 2)
        if head.log.pending.data_bytes() > PENDING_BYTES_MAX:
            await flush(head)
        if head.running and not head.log.broken and head.log.fits(block_count):
            return
        async with head.room_lock:
            await _start_running(head)
            if head.log.broken and head.log.pending.files:
                await _rescue(head)
            if head.log.broken or not head.log.fits(block_count):
                await _make_room(head, block_count)
        if len(head.dirty) > DIRTY_ROWS_MAX // 2:
            begin_nowait(head)  # before writes have to wait for it


async def _start_running(head: Head) -> None:
    if not head.running:
        epoch = await claim(head.workspace.catalog, head.vdisk, node=head.workspace.node)
        head.log.begin_epoch(epoch)
        head.running = True


async def _make_room(head: Head, block_count: int) -> None:
    owner_log, tail = head.log, head.log.tail
    files, pool = owner_log.files_to_grow(), head.workspace.pool
    pool.hold(files)
    try:
        written = head.syncs.streak >= SYNC_STREAK
        room = await head.workspace.wait_for(
            lambda: owner_log.make_room(block_count, tail=tail, written=written)
        )
    finally:
        pool.release(files)
    owner_log.use_room(room)


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
