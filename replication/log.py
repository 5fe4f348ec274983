"""The owner's log of one vdisk: data appended now, made a version by a commit record later.

    append*  ->  begin_commit  ->  (thread) Commit.write: record, fdatasync  ->  finish | fail

What is appended and not yet committed is *pending*: extents in the order they were written, and the blocks'
checksums. One record commits all of it, even where it spans groups; recovery then finds either all or nothing.
Space for that record is reserved before the data is accepted, so a full pool refuses a write, never a flush.

A failed write or sync leaves unknown what the disk holds, and the page cache may call it clean. The group is
then abandoned (``broken``): its pending blocks are read back, verified, and appended to a new group before the
next commit. The failed version's number is burnt, so no two commits ever share one.

Everything here runs on the event loop except what says "thread".
"""

from array import array
from dataclasses import dataclass, field

from metadata.errors import NoSpace, VdiskfsError
from metadata.ids import PARENT, POSITION_MASK, Version, epoch_of, group_id, number_of
from metadata.records import (
    CHECKSUM_BYTES,
    EXTENT_BLOCKS_MAX,
    EXTENT_BYTES,
    HEADER_BYTES,
    CommitRecord,
    encode_record,
    record_block_count,
)
from metadata.units import BLOCK_BYTES, GROUP_BLOCKS
from replication.groups import GroupSet, block_checksums
from replication.pool import GroupFile, Pool

STEP_BLOCKS_MIN = 64
STEP_BLOCKS_MAX = 4096
"""Preallocation grows from 256 KiB to 16 MiB a step: small vdisks stay small, streams ask seldom."""
STEP_BLOCKS_WRITTEN = 1024
"""4 MiB of zeros at a time: some 10 ms of a disk's time, once for 500 syncs."""
AHEAD_BLOCKS = 2048
"""A stream has so much room in front of it, 8 MiB, while the group lasts."""
RESERVE_BLOCKS = 4
_SHARED_PER_BLOCK = BLOCK_BYTES // EXTENT_BYTES
_BYTES_PER_BLOCK = EXTENT_BYTES + CHECKSUM_BYTES
"""What a block adds to the record at worst."""


@dataclass(slots=True)
class Pending:
    """Changes that no record holds yet."""

    extents: "array[int]" = field(default_factory=lambda: array("Q"))
    checksums: "array[int]" = field(default_factory=lambda: array("I"))
    files: dict[int, GroupFile] = field(default_factory=dict)
    """Groups that hold unsynced blocks of these."""
    first_sequence: int = 0
    """The journal's oldest entry about these; 0: none."""
    next_block: int = -1
    next_place: int = -1

    def note(self, block_no: int, count: int, place: int) -> None:
        """Adds an extent, or grows the last one if this goes on where it ends."""
        words = self.extents
        if (
            block_no == self.next_block
            and place == self.next_place
            and (words[-2] & 0xFFFF) + count < 0x10000
        ):
            words[-2] += count
        else:
            words.extend((block_no << 16 | count - 1, place))
        self.next_block = block_no + count
        self.next_place = place + count if place > PARENT else -1

    def note_shared(self, block_no: int, count: int, place: int) -> None:
        """Adds any number of blocks that have HOLE or PARENT for a place."""
        while count > 0:
            part = min(count, EXTENT_BLOCKS_MAX)
            self.note(block_no, part, place)
            block_no += part
            count -= part

    def record_bytes(self) -> int:
        """How long a record of these would be."""
        return HEADER_BYTES + 8 * len(self.extents) + CHECKSUM_BYTES * len(self.checksums)

    def data_bytes(self) -> int:
        """Bytes appended and not committed."""
        return len(self.checksums) * BLOCK_BYTES

    def prepend(self, earlier: "Pending") -> None:
        """Takes an earlier lot, whose commit failed, in front of these."""
        self.extents = earlier.extents + self.extents
        self.checksums = earlier.checksums + self.checksums
        self.files |= earlier.files
        self.first_sequence = earlier.first_sequence or self.first_sequence
        self.next_block = -1


@dataclass(slots=True)
class Commit:
    """One commit on its way: what a thread writes, and what the log becomes if that succeeds."""

    record: CommitRecord
    data: bytes
    check: int
    file: GroupFile
    position: int
    pending: Pending

    @property
    def place(self) -> int:
        """The record's."""
        return self.file.base + self.position

    @property
    def files(self) -> set[GroupFile]:
        """Those a thread uses for it."""
        return {*self.pending.files.values(), self.file}

    def write(self) -> None:
        """Thread: record behind the data, then everything durable.

        Raises:
            NoSpace, Unavailable: nothing may be believed of what these groups hold since the last commit.
        """
        self.file.ensure_open()
        self.file.write(self.data, self.position)
        for file in self.pending.files.values():
            if file is not self.file:
                file.ensure_open()
                file.sync()
        self.file.sync()


@dataclass(frozen=True, slots=True)
class Room:
    """Preallocated space in a group: appends go to ``tail`` and may reach ``limit``."""

    file: GroupFile
    tail: int
    limit: int


@dataclass(frozen=True, slots=True)
class Rescued:
    """What a rescue made: the groups it filled, and the pending extents with their new places."""

    room: Room
    files: list[GroupFile]
    extents: "list[tuple[int, int, int, array[int]]]"
    """(block number, count, place, checksums)"""


class OwnerLog:
    """The log of a vdisk this node owns; one to a head."""

    def __init__(self, groups: GroupSet, *, epoch: int) -> None:
        self.groups, self.epoch = groups, epoch
        self.pool: Pool = groups.pool
        self.file: GroupFile | None = None
        self.tail = 0
        """Position of the next append."""
        self.limit = 0
        """Appends may fill the group up to here; 0 while the log takes none."""
        self.broken = False
        self.pending = Pending()
        self.version = Version(0)
        self.last_version = Version(0)
        """The highest number ever tried, failed ones included."""
        self.record_place = 0
        self.record_check = 0
        self.step = STEP_BLOCKS_MIN
        self._shared = 0
        """Counts extents without blocks."""
        self._resume_at = (0, 0)
        """Group and position where a recovered log goes on; group 0: it begins a new one."""

    def begin_epoch(self, epoch: int) -> None:
        """Writes under this epoch from now on; groups of an older one get no more."""
        if epoch != self.epoch:
            self.epoch = epoch
            self.file, self.tail, self.limit = None, 0, 0

    def resume(
        self, *, version: int, last_version: int, record_place: int, record_check: int, end: int
    ) -> None:
        """Goes on behind a recovered commit, whose record ends at position ``end`` of its group."""
        self._resume_at = (record_place >> 16, end)
        self.version, self.last_version = Version(version), Version(last_version)
        self.record_place, self.record_check = record_place, record_check

    def resume_behind(self, place: int, count: int) -> None:
        """Goes on no earlier than behind these blocks (which the journal knows and no commit holds)."""
        self._resume_at = max(self._resume_at, (place >> 16, (place & POSITION_MASK) + count))

    def fits(self, block_count: int) -> bool:
        """Whether so many blocks can be appended at once."""
        open_file = self.file is not None and self.file.fd >= 0  # else the pool has closed it meanwhile
        return open_file and self.tail + block_count <= self.limit

    def wants_room_ahead(self) -> bool:
        """Whether the open group will soon be full though it may grow."""
        return not self.broken and self.fits(1) and self.limit < min(self.tail + AHEAD_BLOCKS, GROUP_BLOCKS)

    def files_to_grow(self) -> list[GroupFile]:
        """Those that ``make_room`` may use in its thread, besides new ones."""
        group = self._resume_at[0]
        if self.file is not None:
            return [self.file]
        return [self.groups.file(group)] if group else []

    def make_room(
        self, block_count: int, *, tail: int, written: bool = False, for_data: bool = True
    ) -> "Room":
        """Thread: grows the open group, or creates the next, until ``block_count`` blocks and a record fit.

        Changes nothing here: the loop may append meanwhile what still fits, then calls ``use_room``.

        Args:
            block_count: to fit.
            tail: where the open group ends now.
            written: fill what is preallocated with zeros, for a guest that syncs behind each write.
            for_data: not of holes: these, and a record alone, may take what is kept free for collection.

        Raises:
            NoSpace: not even these blocks and their record fit.
        """
        for_data = for_data and block_count > 0
        file = None if self.broken else self.file
        if self.file is None:
            file, tail = self._reopen_group()
        if file is None or tail + block_count > GROUP_BLOCKS:
            return self._next_room(block_count, written=written, for_data=for_data)
        file.ensure_open()
        return self._grow(file, tail, block_count=block_count, written=written, for_data=for_data)

    def next_room(self) -> "Room":
        """Thread: room in a new group, though the open one may have some: that one gets no more."""
        self.step = STEP_BLOCKS_MIN
        return self._next_room(1)

    def give_back(self, room: "Room") -> None:
        """Thread: room that was made is not used."""
        if room.file is not self.file:
            room.file.close()
            self.pool.remove_group(room.file.vdisk, room.file.group)

    def _next_room(self, block_count: int, *, written: bool = False, for_data: bool = False) -> "Room":
        file = self._create_next_group()
        try:
            return self._grow(file, 0, block_count=block_count, written=written, for_data=for_data)
        except VdiskfsError:
            file.close()
            self.pool.remove_group(file.vdisk, file.group)
            raise

    def _grow(
        self, file: GroupFile, tail: int, *, block_count: int, written: bool = False, for_data: bool = False
    ) -> "Room":
        step = min(self.step, STEP_BLOCKS_WRITTEN) if written else self.step
        while True:
            want = max(min(tail + step, GROUP_BLOCKS), tail + block_count)
            record_bytes = self.pending.record_bytes() + _BYTES_PER_BLOCK * (want - tail)
            end = want + -(-record_bytes // BLOCK_BYTES) + RESERVE_BLOCKS
            try:
                if (for_data or step > block_count) and end > file.allocated_blocks:
                    self.pool.check_spare((end - file.allocated_blocks) * BLOCK_BYTES)
                file.preallocate(end, written=written)
                return Room(file, tail, want)
            except NoSpace:
                if step <= block_count:
                    raise
                step = block_count

    def _reopen_group(self) -> tuple[GroupFile | None, int]:
        """The group a recovered log ended in, cut behind its last good block; a new epoch begins a new one.

        So does a log that has later groups: a torn commit in one would pass for a newer one than those to come.
        """
        group, tail = self._resume_at
        last = max(self.pool.log_groups(self.groups.vdisk), default=0)
        if group != last or epoch_of(group) != self.epoch or tail >= GROUP_BLOCKS:
            return None, 0
        if not self.pool.may_go_on(self.groups.vdisk, group, tail):
            return None, 0
        file = self.groups.file(group)
        file.ensure_open()
        file.trim(tail)
        segment = self.groups.index.segment(self.groups.vdisk, file.base + tail >> 8)
        if segment is not None:
            self.groups.segments.setdefault(file.base + tail >> 8, segment)
        self.groups.pinned[2] = {file.base + tail >> 8}
        return file, tail

    def use_room(self, room: "Room") -> None:
        """Appends may use this room from now on."""
        if room.file is not self.file:
            self.file, self.tail, self.broken = room.file, room.tail, False
            self.groups.files[room.file.group] = room.file
        self.pool.note_open(room.file)
        self.limit = room.limit
        self.step = min(self.step * 4, STEP_BLOCKS_MAX)

    def _create_next_group(self) -> GroupFile:
        taken = self.pool.log_groups(self.groups.vdisk)
        mine = [number_of(group) for group in taken if epoch_of(group) == self.epoch]
        return self.pool.create_group(self.groups.vdisk, group_id(self.epoch, max(mine, default=-1) + 1))

    def record_fits(self) -> bool:
        """Whether a record of what is pending fits into what is preallocated."""
        if self.file is None or self.broken:
            return False
        blocks = -(-self.pending.record_bytes() // BLOCK_BYTES)
        return self.tail + blocks <= self.file.allocated_blocks

    def begin_commit(self, *, size: int, time_ns: int, own_blocks: int, overlap: int) -> Commit:
        """Takes what is pending and makes it a commit; later appends belong to the next one."""
        pending, file, position = self.pending, self.file, self.tail
        assert file is not None
        assert not self.broken
        self.last_version = Version(self.last_version + 1)
        record = CommitRecord(
            vdisk=self.groups.vdisk,
            version=self.last_version,
            previous_version=self.version,
            previous_place=self.record_place,
            previous_check=self.record_check,
            size=size,
            time_ns=time_ns,
            own_blocks=own_blocks,
            overlap=overlap,
            extents=pending.extents,
            checksums=pending.checksums,
        )
        data, check = encode_record(record, file.seed + position)
        self.tail += record_block_count(len(pending.extents) // 2, len(pending.checksums))
        self.pending = Pending()
        return Commit(record, data, check, file, position, pending)

    def finish_commit(self, commit: Commit) -> None:
        """The commit is durable."""
        self.version = commit.record.version
        self.record_place, self.record_check = commit.place, commit.check

    def fail_commit(self, commit: Commit) -> None:
        """The commit may or may not be durable: what it held is pending again, its groups are abandoned."""
        self.pending.prepend(commit.pending)
        self.broken = True
        self.limit = 0

    def rescue(self) -> "Rescued":
        """Thread: reads back what is pending in unsynced groups and appends it to new groups.

        Nothing else is appended meanwhile: the log is broken. Changes nothing here; then ``use_rescued``.

        Raises:
            Corrupt, Unavailable: something cannot be read back as it was written.
        """
        room = self._next_room(1)
        files: list[GroupFile] = [room.file]
        try:
            return self._rescue_into(room, files)
        except VdiskfsError:
            for file in files:  # the next try begins with new ones
                file.close()
                self.pool.remove_group(file.vdisk, file.group)
            raise

    def _rescue_into(self, room: "Room", files: list[GroupFile]) -> "Rescued":
        renewed, at = [], 0
        words = self.pending.extents
        for index in range(0, len(words), 2):
            block_no, count, place = words[index] >> 16, (words[index] & 0xFFFF) + 1, words[index + 1]
            checksums = self.pending.checksums[at : at + count] if place > PARENT else array("I")
            at += len(checksums)
            if place > PARENT and place >> 16 in self.pending.files:
                data = memoryview(bytearray(count * BLOCK_BYTES))
                self.groups.files[place >> 16].ensure_open()
                self.groups.read_run(data, place, checksums)
                room = self._room_for(room, count)
                if room.file is not files[-1]:
                    files.append(room.file)
                room.file.write(data, room.tail)
                place = room.file.base + room.tail
                checksums = block_checksums(data, room.file.seed + room.tail)
                room = Room(room.file, room.tail + count, room.limit)
            renewed.append((block_no, count, place, checksums))
        return Rescued(room, files, renewed)

    def _room_for(self, room: "Room", count: int) -> "Room":
        if room.tail + count > GROUP_BLOCKS:
            return self._next_room(count)
        if room.tail + count > room.limit:
            return self._grow(room.file, room.tail, block_count=count)
        return room

    def use_rescued(self, rescued: "Rescued") -> None:
        """The pending list becomes the rescued one."""
        sequence = self.pending.first_sequence
        self.pending = pending = Pending(first_sequence=sequence)
        for file in rescued.files:
            self.groups.files[file.group] = pending.files[file.group] = file
            self.pool.note_open(file)
        for block_no, count, place, checksums in rescued.extents:
            if place > PARENT:
                pending.note(block_no, count, place)
                pending.checksums.extend(checksums)
                self.groups.note_checksums(place, checksums)
            else:
                pending.note_shared(block_no, count, place)
        self.use_room(rescued.room)

    @property
    def end(self) -> int:
        """Position behind the last commit's record, where nothing is pending."""
        return self._resume_at[1] if self.file is None else self.tail

    def count_shared(self) -> None:
        """An extent without blocks has joined: the record it makes longer takes room from blocks to come."""
        self._shared += 1
        if not self._shared % _SHARED_PER_BLOCK:
            self.limit -= 1

    def close_room(self) -> None:
        """No append from now on until room is made again."""
        self.limit = 0

    def trim(self) -> None:
        """Thread: gives back what is preallocated; the vdisk rests. The room is closed."""
        assert not self.limit
        if self.file is not None and not self.broken:
            try:
                self.file.ensure_open()
                self.file.trim(self.tail)
            except VdiskfsError:  # the space comes back at the next recovery
                return
