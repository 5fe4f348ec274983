"""The vdisks this node has at hand: heads loaded when first used, put to rest when nobody uses them.

    at rest   the catalog's summary says all; nothing in memory                              (10,000 of them)
    loaded    a Head: recovered from index and log, perhaps replayed from the journal
    running   loaded, and the catalog knows that it may be ahead of the summary (ownership.claim)

A handle is one open of the mount: its number carries the vdisk, so that a handle a dead daemon gave out means
the same to its successor, and it remembers which failures its fsync has told of (promise 12).
"""

import logging
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import NoReturn, Self

import trio

from metadata.catalog import OWNER_PREFIX, VDISK_PREFIX, Change, decode_value, id_in_key, owner_key, vdisk_key
from metadata.errors import IndexDamaged, NotFound, VdiskfsError
from metadata.ids import HOLE, VdiskId
from metadata.index import VdiskState
from metadata.journal_entries import JournalEntry
from metadata.units import BLOCK_BYTES
from replication.ancestry import Ancestry, Generation
from replication.checkpoint import checkpoint_if_due
from replication.commit import flush, note_journal_need, note_sync
from replication.groups import GroupSet
from replication.head import DIRTY_ROWS_MAX, Head
from replication.head_write import truncate
from replication.log import OwnerLog
from replication.ownership import Resting, VdiskFacts, read_facts, read_resting, rest, set_nameless
from replication.recovery import Lineage, Recovered, recover
from replication.replay import replay
from replication.workspace import Workspace

log = logging.getLogger(__name__)

HANDLE_SHIFT = 40
"""A handle's number is serial << 40 | vdisk: a trillion vdisks, 16 million opens between repeats."""
_SERIALS = 1 << 23
TICK_S = 1.0
REST_AFTER_TICKS = 20
"""Ticks without a handle before a head is put to rest."""
PENDING_BYTES_MAX = 512 << 20
"""Unflushed bytes of one vdisk after which the node commits on its own."""
PENDING_TICKS_MAX = 30
"""Ticks a change stays unflushed at most, as with a kernel's own write-back."""
RESTING_AT_ONCE = 8
TELL_FROM_RECORDS = 1024
"""A replay of more commits than this says how far it is."""

_UNTOUCHED = VdiskFacts(
    parent=None,
    absent=HOLE,
    overlap=0,
    resting=None,
    nameless=False,
    node="",
    epoch=0,
    revision=0,
    owner_revision=0,
)
"""Of a vdisk that was made and never changed."""

StartOver = Callable[[VdiskfsError], NoReturn]


def _raise(exc: VdiskfsError) -> NoReturn:
    raise exc


@dataclass(frozen=True, slots=True)
class VdiskStat:
    """What `ls -l` shows. ``mtime_ns`` 0: never written."""

    size: int
    allocated_bytes: int
    mtime_ns: int
    version: int


@dataclass(slots=True)
class Handle:
    """One open of a vdisk's file."""

    vdisk: VdiskId
    errors_told: int
    buffered_writer: bool = True
    """It may write through the kernel's cache; so may one that a dead daemon gave out."""


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
        self.heads_by_handle: dict[int, Head] = {}
        """For the channel's hot path."""
        self.handles: dict[int, Handle] = {}
        self._resting: dict[int, Resting] = {}
        self._claimed: set[int] = set()
        self._parents: dict[int, tuple[int, int]] = {}
        self._pins: Counter[tuple[int, int]] = Counter()
        self._loading: dict[int, trio.Event] = {}
        self._idle_ticks: dict[int, int] = {}
        self._pending_ticks: dict[int, int] = {}
        self._handle_counts: defaultdict[int, int] = defaultdict(int)
        self._users: Counter[int] = Counter()
        """Requests that use a head without a handle: it is not dropped meanwhile."""
        self._serial = secrets.randbelow(_SERIALS)
        self._journaled: dict[int, list[JournalEntry]] = {}

    async def __aenter__(self) -> Self:
        rows, _ = await self.workspace.catalog.read(VDISK_PREFIX)
        owners, _ = await self.workspace.catalog.read(OWNER_PREFIX)
        self._claimed = {id_in_key(row.key, OWNER_PREFIX) for row in owners}
        for row in rows:
            vdisk, value = id_in_key(row.key, VDISK_PREFIX), decode_value(row.key, row.value)
            resting = read_resting(value)
            if resting is not None:
                self._resting[vdisk] = resting
            if isinstance(value, dict) and value.get("parent"):
                self._parents[vdisk] = tuple(value["parent"])
        known = {id_in_key(row.key, VDISK_PREFIX) for row in rows}
        self._journaled = await self.workspace.wait_for(self.workspace.journal.replay)
        for vdisk in [vdisk for vdisk in self._journaled if vdisk in known]:
            try:
                await self.head(VdiskId(vdisk))
            except VdiskfsError as exc:
                log.error("unflushed writes are lost, the vdisk cannot be read: %s vdisk=%d", exc, vdisk)
        note_journal_need(self.workspace)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with trio.CancelScope(shield=True):
            await self.rest_all()
        self.workspace.close_threads()

    # ---- handles

    async def open(self, vdisk: VdiskId, *, flags: int = 0) -> int:
        """Loads the head and returns a new handle's number. ``flags``: of open(2).

        Raises:
            NotFound: no such vdisk.
            Corrupt, Unavailable: its log cannot be read.
        """
        self._handle_counts[vdisk] += 1  # before the first await: it must not be put to rest meanwhile
        try:
            head = await self.head(vdisk)
        except BaseException:
            self._handle_counts[vdisk] -= 1
            raise
        self._serial += 1
        number = (self._serial & (2 * _SERIALS - 1)) << HANDLE_SHIFT | vdisk
        buffered_writer = bool(flags & (os.O_WRONLY | os.O_RDWR)) and not flags & os.O_DIRECT
        self.handles[number] = Handle(vdisk, head.error_no, buffered_writer)
        self.heads_by_handle[number] = head
        return number

    def has_buffered_writer(self, vdisk: VdiskId) -> bool:
        """Whether the kernel may hold data of this vdisk that no request has brought yet."""
        return any(handle.vdisk == vdisk and handle.buffered_writer for handle in self.handles.values())

    def close(self, number: int) -> None:
        """Gives a handle back."""
        handle = self.handles.pop(number, None)
        self.heads_by_handle.pop(number, None)
        if handle is not None:
            self._handle_counts[handle.vdisk] -= 1
            if not self._handle_counts[handle.vdisk]:
                del self._handle_counts[handle.vdisk]

    async def head_of(self, number: int) -> Head:
        """The head behind a handle, also one that a dead daemon gave out."""
        head = self.heads_by_handle.get(number)
        if head is None:
            vdisk = VdiskId(number & (1 << HANDLE_SHIFT) - 1)
            self._handle_counts[vdisk] += 1
            try:
                head = await self.head(vdisk)
            except BaseException:
                self._handle_counts[vdisk] -= 1
                raise
            if number in self.handles:  # another request was quicker
                self._handle_counts[vdisk] -= 1
            self.handles.setdefault(number, Handle(vdisk, head.error_no))
            self.heads_by_handle[number] = head
        return head

    def has_handles(self, vdisk: VdiskId) -> bool:
        """Whether any file of this vdisk is open."""
        return self.handle_count(vdisk) > 0

    def handle_count(self, vdisk: int) -> int:
        """How many files of this vdisk are open."""
        return self._handle_counts.get(vdisk, 0)

    async def flush_handle(self, number: int) -> None:
        """fsync: everything acknowledged is durable, and every failure since the handle's last is told.

        Raises:
            NoSpace, Unavailable, Corrupt: something was not made durable.
        """
        head = await self.head_of(number)
        handle = self.handles[number]
        try:
            note_sync(head)
            await flush(head)
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
        if head is not None:
            return head
        async with self._alone_at(vdisk):
            try:
                return self.heads.get(vdisk) or await self._load(vdisk)
            except IndexDamaged as exc:
                self.start_over(exc)

    @asynccontextmanager
    async def _alone_at(self, vdisk: int) -> AsyncIterator[None]:
        """Nobody else loads this vdisk, or applies its log to the index, meanwhile."""
        while vdisk in self._loading:
            await self._loading[vdisk].wait()
        done = self._loading[vdisk] = trio.Event()
        try:
            yield
        finally:
            del self._loading[vdisk]
            done.set()

    async def _load(self, vdisk: VdiskId) -> Head:
        facts = _UNTOUCHED
        if vdisk in self._claimed or vdisk in self._parents:
            facts = await read_facts(self.workspace.catalog, vdisk)
        recovered = await self._recovered(vdisk, facts)
        state = recovered.state
        groups = self._groups(vdisk)
        owner_log = OwnerLog(groups, epoch=max(1, facts.epoch))
        owner_log.resume(
            version=state.version,
            last_version=recovered.last_version,
            record_place=state.record_place,
            record_check=state.record_check,
            end=state.record_end,
        )
        head = Head(self.workspace, groups, log=owner_log, ancestry=await self.ancestry(facts))
        head.size, head.own_blocks, head.overlap = state.size, state.own_blocks, state.overlap
        head.mtime_ns, head.collected = state.time_ns, state.collected
        # Never an older one than rows have been written under, though nobody may keep a version any more.
        head.generation = max(state.generation, self.lineage(vdisk, facts).generation(1 << 62))
        entries = self._journaled.get(vdisk)
        replayed = await replay(head, state, entries) if entries else 0
        self._journaled.pop(vdisk, None)
        if replayed:
            self.heads[vdisk] = head
            try:
                await flush(head)
            except VdiskfsError as exc:
                log.warning("replayed writes are not durable yet: %s vdisk=%d", exc, vdisk)
        self.heads[vdisk] = head
        return head

    def _groups(self, vdisk: int) -> GroupSet:
        head = self.heads.get(vdisk)
        if head is not None:
            return head.groups
        space = self.workspace
        return GroupSet(vdisk, space.pool, index=space.index, cache=space.segment_cache)

    def lineage(self, vdisk: int, facts: VdiskFacts) -> Lineage:
        """What recovery needs to know of a vdisk."""
        resting_version = facts.resting.version if facts.resting else 0
        kept = self.kept_versions(vdisk)
        return Lineage(
            vdisk, absent=facts.absent, kept=kept, resting_version=resting_version, floor=facts.floor
        )

    def kept_versions(self, vdisk: int) -> tuple[int, ...]:
        """Versions of a vdisk that others read, in order."""
        children = {version for parent, version in self._parents.values() if parent == vdisk}
        return tuple(sorted(children | {version for pinned, version in self._pins if pinned == vdisk}))

    @contextmanager
    def pinned(self, vdisk: int, version: int) -> Iterator[None]:
        """Inside, the version counts as kept.

        Whoever keeps a version pins it in the same stretch without an await as ``Head.keep``, until the catalog's
        mirror names it: collection deletes what no kept version sees.
        """
        self._pins[vdisk, version] += 1
        try:
            yield
        finally:
            self._pins[vdisk, version] -= 1
            if not self._pins[vdisk, version]:
                del self._pins[vdisk, version]

    async def _recovered(self, vdisk: int, facts: VdiskFacts) -> Recovered:
        """The index's state, brought up to the log's end if it is not there."""
        if not facts.epoch:
            return Recovered(VdiskState(), 0)  # nobody ever wrote it
        space, lineage = self.workspace, self.lineage(vdisk, facts)
        resting = facts.resting

        def find() -> Recovered:
            if resting is not None:
                known = space.index.state(vdisk)
                current = known is not None and known.collected >= facts.floor.collected
                if known is not None and current and known.record_check == resting.record_check:
                    return Recovered(known, known.version)
            return recover(space.pool, space.index, lineage, progress=tell)

        def tell(done: int, total: int) -> None:
            if total > TELL_FROM_RECORDS:
                log.info("building the index again: %d of %d commits vdisk=%d", done, total, vdisk)

        return await space.wait_for(find)

    async def ancestry(self, facts: VdiskFacts) -> Ancestry:
        """The generations above a vdisk, their rows in this node's index."""
        generations: list[Generation] = []
        parent = facts.parent
        while parent is not None:
            vdisk, version = parent
            parent_facts = await read_facts(self.workspace.catalog, vdisk)
            async with self._alone_at(vdisk):
                if vdisk not in self.heads:
                    await self._recovered(vdisk, parent_facts)
            generations.append(
                Generation(self._groups(vdisk), version, parent_facts.absent, parent_facts.overlap)
            )
            parent = parent_facts.parent
        space = self.workspace
        return Ancestry(space.index, space.row_cache, absent=facts.absent, generations=generations)

    async def put_to_rest(self, head: Head) -> None:
        """Flushes a head, gives its preallocated space back, and lets the catalog's summary speak for it.

        Raises:
            NoSpace, Unavailable, Corrupt: the flush failed; the head stays.
        """
        vdisk = head.vdisk
        await flush(head)
        if head.running:
            await checkpoint_if_due(head)
            async with head.room_lock:
                head.log.close_room()  # a change after this needs room first, and waits for the lock
                if head.is_dirty:
                    return  # written meanwhile
                await self.workspace.wait_for(head.log.trim)
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
                await rest(self.workspace.catalog, vdisk, resting)
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
                    await self._tend(head)
                except VdiskfsError as exc:
                    log.warning("housekeeping: %s vdisk=%d", exc, head.vdisk)
            note_journal_need(self.workspace)

    async def _tend(self, head: Head) -> None:
        vdisk = VdiskId(head.vdisk)
        waiting = self._pending_ticks.get(vdisk, 0) + 1 if head.is_dirty else 0
        idle = 0 if self.has_handles(vdisk) else self._idle_ticks.get(vdisk, 0) + 1
        self._pending_ticks[vdisk], self._idle_ticks[vdisk] = waiting, idle
        if (
            waiting > PENDING_TICKS_MAX
            or head.log.pending.data_bytes() > PENDING_BYTES_MAX
            or len(head.dirty) > DIRTY_ROWS_MAX // 2
        ):
            await flush(head)
            self._pending_ticks[vdisk] = 0
        if head.light_commits and not head.is_dirty:
            await flush(head)
        if idle > REST_AFTER_TICKS:
            await self.put_to_rest(head)
            self._pending_ticks.pop(vdisk, None)
            self._idle_ticks.pop(vdisk, None)

    # ---- what the operations ask

    def stat_nowait(self, vdisk: VdiskId) -> VdiskStat | None:
        """Size, space, time and version, if memory knows them."""
        head = self.heads.get(vdisk)
        if head is not None:
            return VdiskStat(head.size, head.own_blocks * BLOCK_BYTES, head.mtime_ns, head.log.version)
        resting = self._resting.get(vdisk)
        if resting is not None:
            return VdiskStat(
                resting.size, resting.own_blocks * BLOCK_BYTES, resting.mtime_ns, resting.version
            )
        return None if vdisk in self._claimed else VdiskStat(0, 0, 0, 0)

    async def stat(self, vdisk: VdiskId) -> VdiskStat:
        """As ``stat_nowait``, loading the head if it must."""
        stat = self.stat_nowait(vdisk)
        if stat is None:
            await self.head(vdisk)
            stat = self.stat_nowait(vdisk)
            assert stat is not None
        return stat

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
        """Sets the size; see ``head_write.truncate``."""
        async with self.using(vdisk) as head:
            await truncate(head, size)

    async def flush(self, vdisk: VdiskId) -> None:
        """Commits; durable when it returns."""
        head = self.heads.get(vdisk)
        if head is not None:
            await flush(head)

    async def statfs(self) -> os.statvfs_result:
        """The pool's space."""
        return await self.workspace.wait_for(self.workspace.pool.statistics)

    def note_parent(self, vdisk: int, parent: tuple[int, int]) -> None:
        """A vdisk became a child of (vdisk, version)."""
        self._parents[vdisk] = parent

    def child_count(self, vdisk: int) -> int:
        """Vdisks that have this one for a parent."""
        return sum(parent == vdisk for parent, _ in self._parents.values())

    async def forget(self, vdisk: VdiskId) -> None:
        """The vdisk has no name and no handle: its data goes, unless children still read it."""
        if self.child_count(vdisk):
            await set_nameless(self.workspace.catalog, vdisk)
            return
        head = self.heads.pop(vdisk, None)
        if head is not None:
            head.gone = True
        while head is not None and head.commit_done is not None:
            await head.commit_done.wait()
        parent = self._parents.get(vdisk)
        await self.workspace.catalog.transact(Change(deletes=(vdisk_key(vdisk), owner_key(vdisk))))
        self._parents.pop(vdisk, None)
        self._resting.pop(vdisk, None)
        self._claimed.discard(vdisk)
        self.workspace.pool.forget_open(vdisk)
        if head is not None:
            head.rows.clear()
        await self.workspace.wait_for(lambda: self._drop(vdisk))
        if parent is not None:
            try:
                nameless = (await read_facts(self.workspace.catalog, parent[0])).nameless
            except NotFound:
                return
            if nameless and not self.child_count(parent[0]):
                await self.forget(VdiskId(parent[0]))

    def _drop(self, vdisk: int) -> None:
        self.workspace.index.forget(vdisk)
        self.workspace.pool.remove_vdisk(vdisk)
