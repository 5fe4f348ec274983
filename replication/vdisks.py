"""The vdisks this node has at hand: heads loaded when first used, put to rest when nobody uses them.

    at rest   the catalog's summary says all; nothing in memory                              (10,000 of them)
    loaded    a Head: recovered from index and log, perhaps replayed from the journal
    running   loaded, and the catalog knows that it may be ahead of the summary (ownership.claim)

A handle is one open of the mount: its number carries the vdisk, so that a handle a dead daemon gave out means
the same to its successor, and it remembers which failures its fsync has told of (promise 12).
"""

import errno
import functools
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from typing import NoReturn, Self

import trio

from metadata.catalog import OWNER_PREFIX, VDISK_PREFIX, decode_value, id_in_key
from metadata.descent import read_descent
from metadata.errors import IndexDamaged, InvalidRequest, NotFound, NotOwner, VdiskfsError
from metadata.ids import VdiskId
from metadata.journal_entries import JournalEntry
from metadata.units import BLOCK_BYTES
from replication.checkpoint import checkpoint_if_due
from replication.commit import again, commit_light, flush, note_journal_need, note_sync
from replication.company import Company
from replication.deletion import Deletion
from replication.epochs import begin, is_begun, of_this_epoch
from replication.family import Family
from replication.handles import HANDLE_SHIFT, Handles, file_of
from replication.head import SYNC_STREAK, Head
from replication.head_making import make_head
from replication.head_write import truncate
from replication.holdings import Holdings, VdiskStat
from replication.housekeeping import Housekeeping
from replication.lag import reach_pool
from replication.loading import Loading
from replication.open_views import OpenViews
from replication.ownership import (
    Resting,
    VdiskFacts,
    read_facts,
    read_resting,
    rest,
)
from replication.remote import Remote
from replication.replay import replay
from replication.view import View
from replication.workspace import Workspace

log = logging.getLogger(__name__)

__all__ = ["HANDLE_SHIFT", "StartOver", "VdiskStat", "Vdisks"]

TICK_S = 1.0
RESTING_AT_ONCE = 8

StartOver = Callable[[VdiskfsError], NoReturn]


def _raise(exc: VdiskfsError) -> NoReturn:
    raise exc


class Vdisks:
    """One to a daemon. ``async with`` recovers what a dead daemon left, and puts all to rest at its end.

    Args:
        workspace: what the vdisks share.
        start_over: ends the daemon when its index turns out to be damaged; the next one builds it again.
    """

    def __init__(self, workspace: Workspace, *, start_over: StartOver = _raise) -> None:
        self.workspace, self.start_over = workspace, start_over
        self.heads: dict[int, Head] = {}
        """Loaded heads."""
        workspace.heads = self.heads
        self.family = Family()
        """The snapshot tree."""
        self.loading = Loading(workspace, self.family, self._hold_if_foreign, self._reign)
        self.deletion = Deletion(
            workspace, self.family, end_head=self.end_head, note_gone=self.note_gone, is_mine=self.is_mine
        )
        self._files = Handles()
        self.handles, self.heads_by_handle = self._files.by_number, self._files.served
        self.flattening: set[int] = set()
        """Vdisks into which their parents' blocks are being copied."""
        self.knows_all_handles = True
        """False behind a daemon that died: of files that are open we hear when something is done with them."""
        self.note_opened: Callable[[Head], None] | None = None
        """Told of each open of a head."""
        self._views = OpenViews(workspace, self.family, self.loading, prepare=self.prepare)
        self._resting: dict[int, Resting] = {}
        self._claimed: set[int] = set()
        self._housekeeping = Housekeeping(put_to_rest=self.put_to_rest, has_handles=self.has_handles)
        self._users: Counter[int] = Counter()
        """Requests that use a head without a handle: it is not dropped meanwhile."""
        self._journaled: dict[int, list[JournalEntry]] = {}
        self.company = self._join_company()
        """What there is to do with other nodes; None where there are none for good."""

    def _join_company(self) -> Company | None:
        space, family, loading = self.workspace, self.family, self.loading
        if space.links is None or space.membership is None:
            return None
        holdings = Holdings(
            space,
            family,
            loading,
            self.heads,
            self._files,
            head=self.head,
            put_to_rest=functools.partial(self.put_to_rest, checkpoint=False),  # somebody waits
            resting=self._resting,
            claimed=self._claimed,
            note_gone=self.note_gone,
            users=self._users,
        )
        return Company(holdings, space.links, space.membership)

    async def __aenter__(self) -> Self:
        rows, _ = await self.workspace.catalog.read(VDISK_PREFIX)
        owners, _ = await self.workspace.catalog.read(OWNER_PREFIX)
        self._claimed |= {id_in_key(row.key, OWNER_PREFIX) for row in owners}
        if self.company is not None:
            self.company.mirror.load_owners(owners)
            self.company.open_files()
        for row in rows:
            resting = read_resting(decode_value(row.key, row.value))
            if resting is not None:
                self._resting[id_in_key(row.key, VDISK_PREFIX)] = resting
        await self.family.load(self.workspace.catalog)
        if self.company is not None:
            self.company.transfers.begin()
            await self.company.transfers.void.refuse_left_behind(self.company.mirror.is_owned_here)
        known = {id_in_key(row.key, VDISK_PREFIX) for row in rows}
        self._journaled = await self.workspace.wait_for(self.workspace.journal.replay)
        for vdisk in [vdisk for vdisk in self._journaled if vdisk in known]:
            try:
                await self.head(VdiskId(vdisk))
            except NotOwner as exc:
                log.warning("writes that were not flushed are void: %s", exc)
                del self._journaled[vdisk]
            except VdiskfsError as exc:
                log.error("unflushed writes are lost, the vdisk cannot be read: %s vdisk=%d", exc, vdisk)
        note_journal_need(self.workspace)
        await self.deletion.forget_unneeded()
        if self.company is not None:
            await self.company.publisher.announce_start()
            self.company.begin()
        return self

    async def __aexit__(self, *exc: object) -> None:
        with trio.CancelScope(shield=True):
            await self.rest_all()
        if self.company is not None:
            self.company.end()
        if self.company is not None:
            self.company.close_files()
        self.workspace.close_threads()

    # ---- handles

    async def open(self, vdisk: VdiskId, *, flags: int = 0) -> int:
        """Loads the head and returns a new handle's number. ``flags``: of open(2).

        Raises:
            NotFound: no such vdisk.
            InvalidRequest: another node owns it, and it is only to be read: look it up again (ESTALE).
            Corrupt, Unavailable: its log cannot be read, or its owner not be asked.
        """
        self._files.expect(vdisk)
        try:
            company = self.company
            served = await (self.head(vdisk) if company is None else company.open(vdisk, flags=flags))
        except BaseException:
            self._give_up(vdisk)
            raise
        if self.note_opened is not None and isinstance(served, Head):
            self.note_opened(served)
        return self._files.add(served, file_id=vdisk, flags=flags)

    def _give_up(self, file_id: int) -> None:
        if self._files.give_up(file_id):
            self._views.leave(file_id)
            self._note_closed(file_id)

    def is_remote(self, number: int) -> bool:
        """Whether what a handle reads and writes is another node's: the kernel must not cache it."""
        return isinstance(self.heads_by_handle.get(number), Remote)

    async def open_version(self, snapshot_id: int) -> int:
        """A new handle that reads a snapshot, given by its file's inode number.

        Raises:
            NotFound: no such snapshot.
            Corrupt, Unavailable: the vdisk's log cannot be read.
        """
        self._files.expect(snapshot_id)
        try:
            view = await self._view(snapshot_id)
        except BaseException:
            self._give_up(snapshot_id)
            raise
        return self._files.add(view, file_id=VdiskId(snapshot_id), flags=os.O_RDONLY)

    async def _view(self, snapshot_id: int) -> View:
        """The open view of a snapshot whose handle is expected; its version is pinned as long as it has one."""
        found, snapshot = self._views.get(snapshot_id), self.family.by_id(snapshot_id)
        if found is not None:
            return found
        if snapshot is None and self.company is not None:
            snapshot = self.company.versions.opened(snapshot_id)
        if snapshot is None:
            raise NotFound(f"there is no such snapshot id={snapshot_id}")
        return await self._views.open(snapshot)

    def may_be_parent(self, vdisk: int) -> bool:
        """Whether a child can be made here: the owner must know of every version that somebody reads."""
        return self.company is None or self.company.mirror.is_owned_here(vdisk)

    def is_mine(self, vdisk: int) -> bool:
        """Whether this node may have the vdisk's head: it owns it, or nobody ever wrote it, as far as it knows."""
        return self.company is None or self.company.mirror.is_mine(vdisk)

    async def _hold_if_foreign(self, vdisk: int) -> bool:
        if self.company is None or self.is_mine(vdisk):
            return False
        await self.company.follower.hold(vdisk)
        return True

    def _reign(self, vdisk: int) -> int:
        return 1 if self.company is None else self.company.mirror.reign(vdisk)

    def is_followed(self, vdisk: int) -> bool:
        """Whether other nodes may read what the vdisk's rows name or named: nothing of it may be moved or deleted."""
        return self.company is not None and self.company.publisher.has_subscribers(vdisk)

    def has_buffered_writer(self, vdisk: VdiskId) -> bool:
        """Whether the kernel may hold data of this vdisk that no request has brought yet."""
        return not self.knows_all_handles or self._files.has_writer(vdisk, buffered=True)

    def has_writer(self, vdisk: VdiskId) -> bool:
        """Whether a file of this vdisk is open for writing."""
        return self._files.has_writer(vdisk)

    def close(self, number: int) -> None:
        """Gives a handle back."""
        self._views.leave(self._files.close(number))
        if self.company is not None:
            self.company.frozen.note_closed(number)
        self._note_closed(file_of(number))

    def _note_closed(self, file_id: int) -> None:
        if self.company is not None:
            self.company.transfers.note_closed(file_id)

    async def reader_of(self, number: int) -> Head | View | Remote:
        """What a handle reads, also one that a dead daemon gave out.

        Raises:
            NotFound: a dead daemon's of a snapshot that was removed since.
        """
        served, file_id = self.heads_by_handle.get(number), file_of(number)
        if served is None and self.company is not None:
            await self.company.transfers.deposed.wait(number, file_id)
            served = self.heads_by_handle.get(number)
        if served is None:
            self._files.expect(file_id)
            try:
                served = await self._resumed(number)
            except BaseException:
                self._give_up(file_id)
                raise
            company = self.company
            writer = not isinstance(served, View) and (company is None or company.may_be_written(file_id))
            self._files.adopt(number, served, writer=writer)
        return served

    async def _resumed(self, number: int) -> Head | View | Remote:
        """What a file serves that a dead daemon had opened, perhaps for writing."""
        file_id, company = file_of(number), self.company
        is_snapshot = self._views.get(file_id) is not None or self.family.by_id(file_id) is not None
        if is_snapshot or (company is not None and company.versions.owns(file_id)):
            return await self._view(file_id)
        await read_facts(self.workspace.catalog, file_id)  # a snapshot that was removed is no vdisk
        if company is None:
            return await self.head(file_id)
        return await company.frozen.view(number) or await company.resumed(number)

    async def follow_owner(self, vdisk: VdiskId) -> None:
        """A head that takes no more changes: returns when its files are served by what took its place."""
        if self.company is not None:
            await self.company.transfers.wait_moved(vdisk)

    async def head_of(self, number: int) -> Head | Remote:
        """The head behind a handle, as ``reader_of``.

        Raises:
            InvalidRequest: it reads a snapshot, which nobody can change (EBADF).
        """
        served = await self.reader_of(number)
        if not isinstance(served, View):
            return served
        if self.company is None or served.snapshot_id != served.vdisk:
            raise InvalidRequest(f"a snapshot cannot be changed id={served.snapshot_id}", number=errno.EBADF)
        # It was taken for a reader's: that it writes, a daemon whose disk was full could not note for this one.
        found = await self.company.writable(VdiskId(served.vdisk))
        self.company.frozen.note_closed(number)
        self._files.serve_writer(number, found)
        return found

    def has_handles(self, vdisk: VdiskId) -> bool:
        """Whether any file of this vdisk is open, also a version of it that another node made."""
        return self.handle_count(vdisk) > 0 or self._views.has_version_of(vdisk)

    def handle_count(self, file_id: int) -> int:
        """How many times the file of this vdisk, or of this snapshot, is open."""
        return self._files.count(file_id)

    async def flush_handle(self, number: int) -> None:
        """fsync: everything acknowledged is durable, and every failure since the handle's last is told.

        Raises:
            NoSpace, Unavailable, Corrupt: something was not made durable.
        """
        head = await self.reader_of(number)
        if isinstance(head, View):
            if head.fenced is not None:
                raise again(head.fenced)
            return
        if isinstance(head, Remote):
            await head.flush()
            return
        handle = self.handles[number]
        try:
            note_sync(head)
            await (commit_light if head.syncs.streak >= SYNC_STREAK else flush)(head)
        finally:
            told, handle.errors_told = handle.errors_told, head.error_no
        if told != head.error_no and head.last_error is not None:
            raise head.last_error

    # ---- loading and resting

    async def head(self, vdisk: VdiskId) -> Head:
        """The loaded head.

        Raises:
            NotFound: no such vdisk.
            Corrupt, Unavailable: its log cannot be read.
        """
        head = self.heads.get(vdisk)
        if head is not None and head.closed is None:
            return head
        async with self.loading.alone_at(vdisk):
            try:
                return self.heads.get(vdisk) or await self._load(vdisk)
            except IndexDamaged as exc:
                self.start_over(exc)

    async def prepare(self, vdisk: int) -> None:
        """Sees to it that all kept versions of a vdisk are in the index, whether it is loaded or not.

        Raises:
            Corrupt, Unavailable: its log cannot be read.
        """
        try:
            await self.loading.prepare(vdisk)
        except IndexDamaged as exc:
            self.start_over(exc)

    async def _load(self, vdisk: VdiskId) -> Head:
        facts, family = VdiskFacts(), self.family
        if self.company is not None or vdisk in self._claimed or family.descent(vdisk) != facts.descent:
            facts = await read_facts(self.workspace.catalog, vdisk)
        if self.company is not None:
            await self.company.transfers.prepare_load(vdisk, facts)
        recovered = await self.loading.recovered(vdisk, facts)
        state = recovered.state
        head = await make_head(self.workspace, self.loading, family, recovered, vdisk=vdisk, facts=facts)
        begun = self.company is None or is_begun(facts, state.record_place)
        if self.company is not None:
            self.company.publisher.attach(head)
        entries = of_this_epoch(self._journaled.get(vdisk, []), facts)
        replayed = await replay(head, state, entries) if entries else 0
        if self.company is not None:
            self.company.transfers.check_loaded(vdisk, facts)
        self._journaled.pop(vdisk, None)
        self.heads[vdisk] = head
        if replayed or not begun:
            try:
                await (flush(head) if begun else begin(head))
            except VdiskfsError as exc:
                log.warning("what was found is not durable yet: %s vdisk=%d", exc, vdisk)
        return head

    def pinned(self, vdisk: int, version: int) -> AbstractContextManager[None]:
        """Inside, the version counts as kept.

        Whoever keeps a version pins it in the same stretch without an await as ``Head.keep``, until the catalog's
        mirror names it: collection deletes what no kept version sees.
        """
        return self.family.pinned(vdisk, version)

    def kept_versions(self, vdisk: int) -> tuple[int, ...]:
        """Borders between a vdisk's generations; see ``Family``, which also has ``read_versions``."""
        return self.family.kept_versions(vdisk)

    async def put_to_rest(self, head: Head, *, checkpoint: bool = True) -> None:
        """Flushes a head, gives its preallocated space back, and lets the catalog's summary speak for it.

        Args:
            head: which.
            checkpoint: if one is due; it takes the time of reading the whole index.

        Raises:
            NoSpace, Unavailable, Corrupt: the flush failed; the head stays.
        """
        vdisk = head.vdisk
        await flush(head)
        if head.running:
            if checkpoint:
                await checkpoint_if_due(head)
            async with head.room_lock:
                head.log.close_room()  # a change after this needs room first, and waits for the lock
                if head.is_dirty:
                    return  # written meanwhile
                await self.workspace.wait_for(head.log.trim)
                await reach_pool(head)
                resting = Resting(
                    version=head.log.version,
                    record_place=head.log.record_place,
                    record_check=head.log.record_check,
                    record_end=head.log.end,
                    size=head.size,
                    own_blocks=head.own_blocks,
                    mtime_ns=head.mtime_ns,
                )
                head.running = False
                self._resting.pop(vdisk, None)  # whether there is a new one only the catalog may know
                await rest(self.workspace.catalog, vdisk, resting, owner=head.owner)
                self._resting[vdisk] = resting
                self._claimed.add(vdisk)
        unused = not self.has_handles(VdiskId(vdisk)) and not self._users[vdisk]
        unused = unused and not head.is_dirty and not head.running
        if unused and self.heads.get(vdisk) is head and not head.room_lock.statistics().tasks_waiting:
            del self.heads[vdisk]
            head.rows.clear()
            head.groups.segments.clear()
            self.workspace.pool.forget_open(vdisk)

    async def rest_all(self) -> list[VdiskfsError]:
        """Puts every loaded vdisk to rest; returns what failed, logged."""
        failures: list[VdiskfsError] = []
        limit = trio.CapacityLimiter(RESTING_AT_ONCE)

        async def one(head: Head) -> None:
            async with limit:
                try:
                    await self.put_to_rest(head)
                except VdiskfsError as exc:
                    log.error("could not be put to rest, its journal is kept: %s vdisk=%d", exc, head.vdisk)
                    failures.append(exc)

        async with trio.open_nursery() as nursery:
            for head in list(self.heads.values()):
                nursery.start_soon(one, head)
        note_journal_need(self.workspace)
        return failures

    async def run(self) -> None:
        """The housekeeping task: commits what waits too long, rests what nobody uses."""
        while True:
            await trio.sleep(TICK_S)
            for head in list(self.heads.values()):
                try:
                    await self._housekeeping.tend(head)
                except VdiskfsError as exc:
                    log.warning("housekeeping: %s vdisk=%d", exc, head.vdisk)
            note_journal_need(self.workspace)
            try:
                await self.deletion.forget_unneeded()
            except VdiskfsError as exc:
                log.warning("housekeeping: %s", exc)

    # ---- what the operations ask

    def stat_nowait(self, vdisk: VdiskId) -> VdiskStat | None:
        """Size, space, time and version, if memory knows them."""
        head = self.heads.get(vdisk)
        if head is not None:
            return VdiskStat(head.size, head.own_blocks * BLOCK_BYTES, head.mtime_ns, head.log.version)
        remote = self.company.transfers.remotes.get(vdisk) if self.company is not None else None
        if remote is not None:
            return VdiskStat(remote.size, remote.own_blocks * BLOCK_BYTES, remote.mtime_ns, remote.version)
        resting = self._resting.get(vdisk)
        if resting is not None:
            return VdiskStat(
                resting.size, resting.own_blocks * BLOCK_BYTES, resting.mtime_ns, resting.version
            )
        return None if vdisk in self._claimed else VdiskStat(self.family.descent(vdisk).size, 0, 0, 0)

    async def stat(self, vdisk: VdiskId) -> VdiskStat:
        """As ``stat_nowait``, loading the head if it must; of another node's vdisk, its newest version."""
        stat = self.stat_nowait(vdisk)
        if stat is None and not self.is_mine(vdisk):
            return await self._stat_of_other(vdisk)
        if stat is None:
            try:
                await self.head(vdisk)
            except NotOwner:
                return await self._stat_of_other(vdisk)
            stat = self.stat_nowait(vdisk)
            assert stat is not None
        return stat

    async def _stat_of_other(self, vdisk: VdiskId) -> VdiskStat:
        assert self.company is not None
        newest = await self.company.follower.newest(vdisk)
        return VdiskStat(newest.size, newest.own_blocks * BLOCK_BYTES, newest.mtime_ns, newest.version)

    @asynccontextmanager
    async def using(self, vdisk: VdiskId) -> AsyncIterator[Head]:
        """Loads the head; inside, it is not dropped.

        Raises:
            NotFound: no such vdisk.
            Corrupt, Unavailable: its log cannot be read.
        """
        self._users[vdisk] += 1
        try:
            yield await self.head(vdisk)
        finally:
            self._users[vdisk] -= 1

    async def truncate(self, vdisk: VdiskId, size: int) -> None:
        """Sets the size; see ``head_write.truncate``. Who has no file to sync syncs so: other nodes see it at once."""
        if self.company is not None and not self.is_mine(vdisk) and await self.company.truncate(vdisk, size):
            return
        async with self.using(vdisk) as head:
            await truncate(head, size)
            if self.company is not None and self.company.has_others() and not self.has_writer(vdisk):
                await flush(head)

    async def flush(self, vdisk: VdiskId) -> None:
        """Commits; durable when it returns."""
        head = self.heads.get(vdisk)
        if head is not None:
            await flush(head)

    async def statfs(self) -> os.statvfs_result:
        """The pool's space."""
        return await self.workspace.wait_for(self.workspace.pool.statistics)

    def note_record(self, vdisk: int, record: Mapping[str, object]) -> None:
        """A vdisk's row in the catalog says so now: a clone was made."""
        self.family.set_descent(vdisk, read_descent(record))

    def child_count(self, vdisk: int) -> int:
        """Vdisks that have this one for a parent."""
        return len(self.family.children(vdisk))

    async def forget(self, vdisk: VdiskId) -> None:
        """The vdisk has no name and no handle: its data goes, and its snapshots, unless others still read it."""
        await self.deletion.forget(vdisk)

    async def release_unread(self, vdisk: int) -> None:
        """Versions of this vdisk may have lost their last reader: what was kept for them alone goes."""
        await self.deletion.release_unread(vdisk)

    async def end_head(self, vdisk: int) -> None:
        """The vdisk is going: its head, if it is loaded, serves and commits no more."""
        head = self.heads.pop(vdisk, None)
        if head is None:
            return
        head.gone = True
        while head.commit_done is not None:
            await head.commit_done.wait()
        head.rows.clear()

    def note_gone(self, vdisk: int) -> None:
        """The catalog knows the vdisk no more."""
        self.family.forget(vdisk)
        self.loading.forget(vdisk)
        self._resting.pop(vdisk, None)
        self._claimed.discard(vdisk)
        self.workspace.pool.forget_open(vdisk)
