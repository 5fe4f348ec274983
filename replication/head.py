"""The head of a vdisk this node owns: what a guest reads and writes now.

Rows (metadata/rows.py) are changed in place the moment a write is acknowledged; the journal keeps the change
for the next daemon, the log's pending list for the next commit. A row that differs from the index is *dirty*
and stays in memory until a commit has put it there.

The hot path of writing, on the event loop, no layers, no waiting: ``write_nowait`` takes what memory and the
preallocated group can take, and says False otherwise; then the channel starts the slow way as a task
(replication/head_write.py). 4 KiB cost 5 us, of which the system call is half. Reading: replication/reader.py.

Atomicity: each block changes hands by one assignment of its place, after its bytes are in the page cache, so
no reader ever sees half a block; and nothing here yields.
"""

import time
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio
from xxhash import xxh3_64_intdigest

from metadata.boot_clock import this_start
from metadata.errors import VdiskfsError
from metadata.ids import CUT, HOLE, PARENT
from metadata.index import Nowait
from metadata.journal_entries import digest_of
from metadata.rows import counting, own_block_count, uniform_row
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS, VBLOCK_BYTES, VDISK_BYTES_MAX
from replication.ancestry import Ancestry
from replication.audience import Audience
from replication.flight import Flight
from replication.groups import GroupSet, block_checksums
from replication.log import OwnerLog
from replication.ownership import Owner
from replication.reader import ZERO_BLOCK, Reader, scratch
from replication.workspace import Workspace

DIRTY_ROWS_MAX = 4096
"""9 MiB; beyond it the slow way commits first. A commit on its way may hold as many again."""
CALLS_MAX = 4096
"""More than can be taken and not committed: each is followed by a commit."""
SYNC_STREAK = 8
"""Syncs in a row behind few changes each that make a pattern."""
SYNC_CHANGES_MAX = 2
_hash = xxh3_64_intdigest
_now_ns = time.time_ns


@dataclass(slots=True)
class SyncPattern:
    """Whether a guest syncs behind every few writes: a database, a journal. Then commits may run ahead."""

    streak: int = 0
    ahead: bool = False
    """A commit was begun for an fsync that has not come yet."""

    def note_sync(self, changes: int) -> None:
        """An fsync came, so many changes after the last one."""
        self.ahead = False
        self.streak = min(self.streak + 1, SYNC_STREAK) if 0 < changes <= SYNC_CHANGES_MAX else 0

    def wants_commit(self) -> bool:
        """After a write: whether to commit ahead. Two writes without an fsync between end the streak."""
        if self.streak < SYNC_STREAK:
            return False
        if self.ahead:
            self.streak, self.ahead = 0, False
            return False
        self.ahead = True
        return True


class Head(Reader):
    """One vdisk's head; owned by ``Vdisks``, lives from the first open to the rest after the last close."""

    def __init__(self, workspace: Workspace, groups: GroupSet, *, log: OwnerLog, ancestry: Ancestry) -> None:
        super().__init__(workspace, groups, ancestry=ancestry)
        self.log, self.journal = log, workspace.journal
        self.room_lock = trio.Lock()
        """Held while the log gets room, or is mended; and while a change is made that may not interleave."""
        self.commit_done: trio.Event | None = None
        """Set when the commit that runs now has ended."""
        self.dirty: set[int] = set()
        self.committing: set[int] = set()
        self.pinned = [self.dirty, self.committing]
        self.cut_vblock: int | None = None
        """A truncation not yet in the index: its rows from here on count for nothing."""
        self.cutting_vblock: int | None = None
        """The same, being committed."""
        self.generation = 1
        self.collected = 0
        """The newest collection that the index knows of."""
        self.checkpoint_lock = trio.Lock()
        """Held while a checkpoint is written."""
        self.layout_lock = trio.Lock()
        """Held by whoever moves or deletes blocks, and by who compares index, log and pool."""
        self.room_awaits: trio.Event | None = None
        """Set when a collection has ended that writes which need more room wait for, a while."""
        self.own_blocks = 0
        self.mtime_ns = 0
        self.change_no = 0
        """Counts acknowledged changes."""
        self.committed_no = 0
        self.tail_key = -1
        """The checksum segment that appends fill now and the next commit holds; a commit sets it to -1."""
        self._tail_segment = array("I")
        self.flight: Flight | None = None
        """The commit that runs now."""
        self.light_commits = 0
        """Commits since the index was last given anything; its rows are dirty still."""
        self.index_failures = 0
        """How often in a row the index did not take what it was given."""
        self.flushing = 0
        """Callers that want the index to have all."""
        self.sync_waiters: list[Callable[[], None]] = []
        """Called when the commit that runs now has ended, well or not."""
        self.running = False
        """The catalog knows that this head may be ahead of what it says; no change before."""
        self.syncs = SyncPattern()
        self.synced_no = 0
        """``change_no`` at the guest's last fsync."""
        self.committing_sequence = 0
        """The journal's oldest entry that the commit on its way holds; 0: none."""
        self.last_error: VdiskfsError | None = None
        self.gone = False
        """Deleted: there is nothing left to make durable."""
        self.closed: VdiskfsError | None = None
        """Why it takes no change any more: another node owns the vdisk, or is about to. The log has no room then."""
        self.owned = False
        """The owner record names this node; else nobody, and the first change will make it."""
        self.audience: Audience | None = None
        """Nodes that follow it; None: nobody does."""
        self.calls: OrderedDict[int, None] = OrderedDict()
        """Numbers of forwarded calls that were taken last; the log knows all that are committed."""
        self.journal_forfeited = False
        """It could not be committed when the journal needed room: others' entries may overwrite its own."""
        self.error_no = 0
        """Counts failures that each open handle must hear of."""

    # ---- the index

    def _has_rows_nowait(self, first: int, last: int) -> bool:
        """Whether both rows are in memory now; one may just have taken the other's place."""
        both = self.row_nowait(first) is not None and self.row_nowait(last) is not None
        return both and first in self.rows

    def install_row(self, vblock: int, row: "array[int] | None") -> None:
        """Keeps a row that a thread fetched, unless one came meanwhile. No commit ended since the fetch began."""
        if row is not None and any(
            cut is not None and vblock >= cut for cut in (self.cut_vblock, self.cutting_vblock)
        ):
            row = uniform_row(HOLE)
        super().install_row(vblock, row)

    def _index_row_nowait(self, vblock: int) -> "array[int] | None":
        for cut in (self.cut_vblock, self.cutting_vblock):
            if cut is not None and vblock >= cut:
                return uniform_row(HOLE)
        found = self.index.row_nowait(self.vdisk, vblock, self.generation)
        if found is Nowait.UNKNOWN:
            return None
        if found is Nowait.ABSENT:
            if self.generation > 1:  # an older generation may have it: a seek, which may wait
                return None
            return self.ancestry.absent_row(vblock, self.overlap)
        return found

    def places_of(self, vdisk: int) -> Iterator[Sequence[int]]:
        """As ``Reader.places_of``; a deleted vdisk needs none."""
        return iter(()) if self.gone else super().places_of(vdisk)

    # ---- writing

    def write_nowait(self, offset: int, data: memoryview) -> bool:
        """Takes a write if memory and the preallocated group can take it at once.

        Raises:
            NoSpace, Unavailable: nothing of it was taken.
        """
        length = len(data)
        if (offset | length) & 4095 or not length:
            return self._patch_nowait(offset, data)
        count, log, journal = length >> 12, self.log, self.journal
        position, file = log.tail, log.file
        if position + count > log.limit or journal.sequence + 2 * count + 2 > journal.limit:
            return False
        if file is None or file.fd < 0:  # the pool has closed it meanwhile
            return False
        block_no, end = offset >> 12, offset + length
        if end > VDISK_BYTES_MAX:
            return False
        row = self.rows.get(block_no >> 8)
        if row is None:
            row = self.row_nowait(block_no >> 8) if len(self.dirty) < DIRTY_ROWS_MAX else None
            if row is None:
                return False
        if count > 1:
            if not self._has_rows_nowait(block_no >> 8, block_no + count - 1 >> 8):
                return False
            self.write_blocks(block_no, data, count, size=max(self.size, end))
        elif data[0] == 0 and data == ZERO_BLOCK:
            self.write_blocks(block_no, data, 1, size=max(self.size, end))
        else:
            file.write(data, position)
            log.tail = position + 1
            place = file.base + position
            check = _hash(data, file.seed + position) & 0xFFFFFFFF
            if place >> 8 == self.tail_key:
                self._tail_segment[place & 255] = check
            else:
                self.groups.note_checksums(place, array("I", (check,)))
                self.tail_key, self._tail_segment = place >> 8, self.groups.segments[place >> 8]
            first = block_no & 255
            if row[first] <= PARENT:
                self.own_blocks += 1
            row[first] = place
            self.dirty.add(block_no >> 8)
            if end > self.size:
                self.size = end
            pending = log.pending
            if file.group not in pending.files or not pending.first_sequence:
                self._note(block_no, 1, place)
            else:
                pending.note(block_no, 1, place)
                self.change_no += 1
            pending.checksums.append(check)
            journal.append(self.vdisk, log.last_version + 1, block_no, place, self.size, 1, check)
        self.mtime_ns = _now_ns()
        return True

    def write_many_nowait(self, offsets: Sequence[int], blocks: Sequence[memoryview]) -> bool:
        """Takes single aligned blocks, in order, as ``write_nowait`` would one by one; False: none of them.

        One system call appends them all, into large pages: each costs two thirds of what it costs alone.

        Raises:
            NoSpace, Unavailable: none was taken.
        """
        count, log, journal, rows = len(blocks), self.log, self.journal, self.rows
        position, file = log.tail, log.file
        if position + count > log.limit or journal.sequence + 2 * count + 2 > journal.limit:
            return False
        if file is None or file.fd < 0 or len(self.dirty) + count > DIRTY_ROWS_MAX:
            return False
        if max(offsets) >= VDISK_BYTES_MAX:
            return False
        for offset, block in zip(offsets, blocks, strict=True):
            if block[0] == 0 and block == ZERO_BLOCK:
                return False
            if offset >> 20 not in rows and self.row_nowait(offset >> 20) is None:
                return False
        if any(offset >> 20 not in rows for offset in offsets):  # one took another's place in the cache
            return False
        file.write_many(blocks, position)
        log.tail = position + count
        place = file.base + position
        seeds = range(file.seed + position, file.seed + position + count)
        checks = array("I", [found & 0xFFFFFFFF for found in map(_hash, blocks, seeds)])
        self.groups.note_checksums(place, checks)
        for offset, check in zip(offsets, checks, strict=True):
            block_no, row = offset >> 12, rows[offset >> 20]
            if row[block_no & 255] <= PARENT:
                self.own_blocks += 1
            row[block_no & 255] = place
            self.dirty.add(block_no >> 8)
            if offset + BLOCK_BYTES > self.size:
                self.size = offset + BLOCK_BYTES
            self._note(block_no, 1, place)
            log.pending.checksums.append(check)
            journal.append(self.vdisk, log.last_version + 1, block_no, place, self.size, 1, check)
            place += 1
        self.mtime_ns = _now_ns()
        return True

    def _patch_nowait(self, offset: int, data: memoryview) -> bool:
        """A write that covers some block in part: the rest comes from the block as it is."""
        end = offset + len(data)
        first, last = offset >> 12, end - 1 >> 12
        count = last - first + 1
        if not data or not self.log.fits(count) or self.journal.room() < 2 * count + 2:
            return False
        if end > VDISK_BYTES_MAX or len(self.dirty) > DIRTY_ROWS_MAX - 2:
            return False
        if not self._has_rows_nowait(first >> 8, last >> 8):
            return False
        whole = memoryview(bytearray(count * BLOCK_BYTES))
        for block in {first, last}:
            if offset > block * BLOCK_BYTES or end < (block + 1) * BLOCK_BYTES:
                if not self._gather_nowait(block, 1):
                    return False
                at = (block - first) * BLOCK_BYTES
                whole[at : at + BLOCK_BYTES] = scratch[:BLOCK_BYTES]
        at = offset - first * BLOCK_BYTES
        whole[at : at + len(data)] = data
        self.write_blocks(first, whole, count, size=max(self.size, end))
        return True

    def _note(self, block_no: int, count: int, place: int) -> None:
        """Puts appended blocks on the pending list."""
        pending, file = self.log.pending, self.log.file
        pending.note(block_no, count, place)
        if file is not None and place > PARENT:
            pending.files[file.group] = file
        if not pending.first_sequence:
            pending.first_sequence = self.journal.sequence
        self.change_no += 1

    def _journal(self, block_no: int, count: int, place: int, digest: int) -> None:
        self.journal.append(self.vdisk, self.log.last_version + 1, block_no, place, self.size, count, digest)

    def write_blocks(self, block_no: int, data: memoryview, count: int, *, size: int) -> None:
        """Whole blocks of loaded vblocks, room made; all-zero blocks become holes. ``size``: the vdisk's, after."""
        starts = bytes(data[::BLOCK_BYTES])
        old_size, changes = self.size, self.change_no
        self.size = size
        try:
            if 0 not in starts:
                self._append(block_no, data, count)
            else:
                self._put_mixed(block_no, data, starts)
        except VdiskfsError:
            if self.change_no == changes:  # nothing was taken
                self.size = old_size
            raise
        if size > old_size and self.change_no == changes:
            self._note_size()
        self.mtime_ns = _now_ns()

    def _put_mixed(self, block_no: int, data: memoryview, starts: bytes) -> None:
        """Blocks of which some are perhaps all zero; ``starts`` are their first bytes."""
        start, count = 0, len(starts)
        zero = [not byte and data[i << 12 : i + 1 << 12] == ZERO_BLOCK for i, byte in enumerate(starts)]
        for index in range(1, count + 1):
            if index == count or zero[index] != zero[start]:
                if zero[start]:
                    self.put_shared(block_no + start, index - start, HOLE)
                else:
                    self._append(block_no + start, data[start << 12 : index << 12], index - start)
                start = index

    def _append(self, block_no: int, data: memoryview, count: int) -> None:
        log = self.log
        file, position = log.file, log.tail
        assert file is not None
        file.write(data, position)
        log.tail = position + count
        place = file.base + position
        checksums = block_checksums(data, file.seed + position)
        self.groups.note_checksums(place, checksums)
        self.put_own(block_no, count, place)
        self._note(block_no, count, place)
        log.pending.checksums.extend(checksums)
        self._journal(block_no, count, place, digest_of(checksums))

    def put_own(self, block_no: int, count: int, place: int) -> None:
        """Points loaded rows at blocks of an open group."""
        while count:
            first = block_no & 255
            part = min(count, VBLOCK_BLOCKS - first)
            row = self.rows[block_no >> 8]
            old = row[first : first + part]
            self.own_blocks += old.count(HOLE) + old.count(PARENT)
            row[first : first + part] = counting(place, part)
            self.dirty.add(block_no >> 8)
            block_no += part
            place += part
            count -= part

    def put_shared(self, block_no: int, count: int, place: int) -> None:
        """Makes blocks of loaded rows HOLE or PARENT, notes and journals it where that changes anything."""
        while count:
            part = min(count, VBLOCK_BLOCKS - (block_no & 255))
            if self.share_loaded(block_no, part, place):
                self._note(block_no, part, place)
                self._journal(block_no, part, place, 0)
                self.log.count_shared()
            block_no += part
            count -= part

    def share_loaded(self, block_no: int, count: int, place: int) -> bool:
        """Makes blocks of one or more loaded rows HOLE or PARENT; says whether that changed anything."""
        changed = False
        while count:
            first = block_no & 255
            part = min(count, VBLOCK_BLOCKS - first)
            row = self.rows[block_no >> 8]
            old = row[first : first + part]
            if old.count(place) != part:
                self.own_blocks -= part - old.count(HOLE) - old.count(PARENT)
                row[first : first + part] = array("Q", (place,)) * part
                self.dirty.add(block_no >> 8)
                changed = True
            block_no += part
            count -= part
        return changed

    def grow(self, size: int) -> None:
        """A new, larger size."""
        self.size = size
        self.mtime_ns = _now_ns()
        self._note_size()

    def _note_size(self) -> None:
        self.change_no += 1
        if not self.log.pending.first_sequence:
            self.log.pending.first_sequence = self.journal.sequence
        self._journal(0, 0, HOLE, 0)

    def note_call(self, call: int) -> None:
        """A change for which another node asked under this number is taken: the commit that holds it says so too.

        In one stretch with the change; what that needed left room for this.
        """
        block_no, count = call >> 16, (call & 0xFFFF) + 1
        self._note(block_no, count, CUT)
        self.log.count_shared()
        self._journal(block_no, count, CUT, this_start())
        self.remember_call(call)

    def remember_call(self, call: int) -> None:
        """It is taken, and pending or committed."""
        self.calls[call] = None
        if len(self.calls) > CALLS_MAX:
            self.calls.popitem(last=False)

    def shrink(self, size: int, *, unloaded: dict[int, int]) -> None:
        """A new, smaller size: rows beyond its vblock are gone, the caller has cleared the rest of that one.

        Args:
            size: bytes.
            unloaded: own blocks of each vblock beyond as the index has them, for those not in memory.
        """
        cut = -(-size // (BLOCK_BYTES * VBLOCK_BLOCKS))
        self.cut(cut, unloaded=unloaded)
        self.overlap = min(self.overlap, size)
        self.size = size
        if cut < VDISK_BYTES_MAX // VBLOCK_BYTES:
            self._note(cut * VBLOCK_BLOCKS, 1, CUT)
            self.log.count_shared()
            self._journal(cut * VBLOCK_BLOCKS, 1, CUT, 0)
        else:  # in the last vblock there can be: nothing lies behind it
            self._note_size()
        self.mtime_ns = _now_ns()

    def cut(self, cut: int, *, unloaded: dict[int, int]) -> None:
        """Rows from this vblock on are gone."""
        cuts = [c for c in (self.cut_vblock, self.cutting_vblock) if c is not None]
        end = min(cuts, default=1 << 64)
        self.own_blocks -= sum(
            n for vblock, n in unloaded.items() if vblock not in self.rows and vblock < end
        )
        for vblock in [vblock for vblock in self.rows if vblock >= cut]:
            self.own_blocks -= own_block_count(self.rows.pop(vblock))
            self.dirty.discard(vblock)
        self.cut_vblock = cut if self.cut_vblock is None else min(cut, self.cut_vblock)

    @asynccontextmanager
    async def commit_pause(self) -> AsyncIterator[None]:
        """No commit of this vdisk runs inside: flushes wait. For looking at index and log side by side."""
        while self.commit_done is not None:
            await self.commit_done.wait()
        self.commit_done = done = trio.Event()
        try:
            yield
        finally:
            self.commit_done = None
            waiters, self.sync_waiters = self.sync_waiters, []
            done.set()
            for waiter in waiters:
                waiter()

    @property
    def owner(self) -> Owner:
        """As the owner record says, once this head is running."""
        return Owner(self.workspace.node, self.log.epoch)

    def close(self, why: VdiskfsError) -> None:
        """No change from now on; what was accepted before can be committed, unless ``why`` is ``Fenced``."""
        self.closed = why
        self.log.close_room()

    def touch(self) -> None:
        """It was modified now."""
        self.mtime_ns = _now_ns()

    def keep(self, version: int) -> None:
        """A version up to which rows must survive: later commits write a new generation."""
        self.generation = max(self.generation, version + 1)

    def repoint(self, block_no: int, count: int, *, old: int, new: int) -> None:
        """Blocks that still lie at ``old`` (and on) lie at ``new`` now; overwritten ones stay as they are."""
        for at in range(count):
            vblock = block_no + at >> 8
            row = self.rows.get(vblock)
            if row is not None and row[block_no + at & 255] == old + at:
                row[block_no + at & 255] = new + at
                self.dirty.add(vblock)

    def oldest_sequence(self) -> int:
        """The journal's oldest entry that no finished commit of this vdisk holds."""
        sequences = [self.committing_sequence, self.log.pending.first_sequence]
        return min((sequence for sequence in sequences if sequence), default=self.journal.sequence)

    @property
    def index_lags(self) -> bool:
        """Whether something is not in the index yet, though perhaps committed: the index could not be written."""
        return bool(self.dirty or self.committing) or self.cut_vblock is not None

    @property
    def is_dirty(self) -> bool:
        """Whether anything acknowledged is not committed."""
        return self.change_no != self.committed_no
