"""From a vdisk's groups alone to its last whole commit, and from there to an index.

    find_tail    the last record that verifies, data included; needs no index
    catch_up     records between what the index has applied and the tail, applied in order

The tail is found by looking at each block of the newest group for a record (its checksum is seeded with its
place and the pool's salt, so guest data cannot pass for one), then in older groups if that has none. Only the
last record's data can be torn: a commit begins after the one before it was durable. So the last record's
blocks are verified, and if one fails, the record it names as its previous is the tail. Records are chained backwards by place
and checksum; a break in the chain means the pool lost bytes that were durable, and is an error, not an end.

Everything here waits for disks: threads only.
"""

import itertools
import os
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from metadata.descent import Rollbacks
from metadata.errors import Corrupt, NotFound, Unavailable, VdiskfsError
from metadata.ids import CUT, HOLE, PARENT, POSITION_MASK
from metadata.index import Index, IndexBatch, VdiskState
from metadata.records import MAGIC, CommitRecord, decode_record, peek_block_count
from metadata.rows import encode_row, uniform_row
from metadata.units import BLOCK_BYTES, SEGMENT_BLOCKS, VBLOCK_BLOCKS
from replication.ancestry import absent_row
from replication.groups import block_checksums
from replication.ownership import NO_FLOOR, Floor
from replication.pool import GroupFile, Pool

_SCAN_BYTES = 1 << 20
_VERIFY_BLOCKS = 256
_ROWS_AT_ONCE = 16384
"""Rows held while records are applied; then they go to the index."""

Progress = Callable[[int, int], None]
"""Called with (records applied, records in all)."""


@dataclass(frozen=True, slots=True)
class Tail:
    """The last whole commit: its record, where it is, and where the next append goes (group, position)."""

    record: CommitRecord
    place: int
    check: int
    end: int


class LogReader:
    """Reads one vdisk's log; opens each group at most once and closes them at the end."""

    def __init__(self, pool: Pool, vdisk: int) -> None:
        self.pool, self.vdisk = pool, vdisk
        self._files: dict[int, GroupFile] = {}
        self.last_version = 0
        """Set by ``find_tail``: the highest number that any record bears, a torn one's included."""

    def __enter__(self) -> "LogReader":
        return self

    def __exit__(self, *exc: object) -> None:
        for file in self._files.values():
            file.close()

    def file(self, group: int) -> GroupFile:
        """An opened group."""
        file = self._files.get(group)
        if file is None:
            file = self.pool.file(self.vdisk, group)
            file.ensure_open()
            self._files[group] = file
        return file

    def record_at(self, place: int) -> tuple[CommitRecord, int, int]:
        """The record at a place, its checksum and its length in blocks.

        Raises:
            Corrupt, NotFound: there is none.
        """
        file, position = self.file(place >> 16), place & POSITION_MASK
        first = bytearray(BLOCK_BYTES)
        got = file.read(memoryview(first), position)
        blocks = peek_block_count(bytes(first[:got]), file.seed + position)
        if not blocks:
            raise Corrupt(f"no commit record where the log says one is place={place:#x} file={file.path}")
        data = memoryview(bytearray(blocks * BLOCK_BYTES))
        got = file.read(data, position)
        record, check = decode_record(bytes(data[:got]), file.seed + position)
        if record.vdisk != self.vdisk:
            raise Corrupt(f"a commit record of another vdisk place={place:#x} file={file.path}")
        return record, check, blocks

    def records_in(self, group: int, position: int = 0) -> Iterator[tuple[int, CommitRecord, int, int]]:
        """Every record in a group from a position on, in order, as (place, record, checksum, blocks)."""
        file = self.file(group)
        buffer = memoryview(bytearray(_SCAN_BYTES))
        skip_to = 0
        while got := file.read(buffer, position):
            view = buffer[:got]
            for at in range(0, got, BLOCK_BYTES):
                here = position + (at >> 12)
                if here < skip_to or view[at : at + 8] != MAGIC:
                    continue
                try:
                    record, check, blocks = self.record_at(file.base + here)
                except Corrupt:
                    continue  # guest data that looks like one, or a torn one
                yield file.base + here, record, check, blocks
                skip_to = here + blocks
            position += got // BLOCK_BYTES or 1

    def is_whole(self, record: CommitRecord) -> bool:
        """Whether all data of a commit is there and verifies."""
        at = 0
        for _, count, place in record.runs():
            if place <= PARENT:
                continue
            expected = record.checksums[at : at + count]
            at += count
            for start in range(0, count, _VERIFY_BLOCKS):
                part = min(_VERIFY_BLOCKS, count - start)
                if self.checksums(place + start, part) != expected[start : start + part]:
                    return False
        return True

    def checksums(self, place: int, count: int) -> "array[int]":
        """Checksums of blocks as they are in the pool now; fewer if the group ends before."""
        try:
            file = self.file(place >> 16)
        except NotFound:
            return array("I")
        view = memoryview(bytearray(count * BLOCK_BYTES))
        got = file.read(view, place & POSITION_MASK) // BLOCK_BYTES * BLOCK_BYTES
        return block_checksums(view[:got], file.seed + (place & POSITION_MASK))

    def _last_in(self, group: int, known: VdiskState | None) -> tuple[int, CommitRecord, int, int] | None:
        """The last record in a group, as in ``records_in``; only what lies behind one that is known is looked at."""
        before: list[tuple[int, CommitRecord, int, int]] = []
        position = 0
        if known is not None and known.version and known.record_place >> 16 == group:
            with suppress(Corrupt):
                record, check, blocks = self.record_at(known.record_place)
                if check == known.record_check:
                    before = [(known.record_place, record, check, blocks)]
                    position = (known.record_place & POSITION_MASK) + blocks
        return next(iter(deque(itertools.chain(before, self.records_in(group, position)), maxlen=1)), None)

    def find_tail(self, *, durable_version: int = 0, known: VdiskState | None = None) -> Tail | None:
        """The last whole commit, made durable; None if the vdisk has none.

        Args:
            durable_version: commits up to this one are known to have been durable, whatever they read like now:
                a block of theirs that fails is damage, to be reported when read, and no torn commit.
            known: how far the index is: the tail is not before that, so what lies before need not be looked at.

        Raises:
            Corrupt: a record that must be there is not.
        """
        for group in reversed(self.pool.log_groups(self.vdisk)):
            found = self._last_in(group, known)
            if found is None:
                continue
            place, record, check, blocks = found
            self.last_version = record.version
            if record.version > durable_version and not self.is_whole(record):
                if not record.previous_place:
                    return None
                place, check = record.previous_place, record.previous_check
                record, actual, blocks = self.record_at(place)
                if actual != check:
                    raise Corrupt(f"the log's chain is broken vdisk={self.vdisk} place={place:#x}")
            for concerned in {place >> 16, *(p >> 16 for _, _, p in record.runs() if p > PARENT)}:
                with suppress(NotFound):  # its data is damaged, and reading it will say so
                    self.file(concerned).sync()
            return Tail(record, place, check, (place & POSITION_MASK) + blocks)
        return None

    def chain(self, tail: Tail, *, until: VdiskState) -> list[tuple[int, int]]:
        """Places and checksums of the records after ``until`` up to the tail, oldest first.

        Raises:
            Corrupt: the chain does not lead there; ``until`` belongs to another history, or bytes were lost.
        """
        links: list[tuple[int, int]] = []
        place, check, record = tail.place, tail.check, tail.record
        while place != until.record_place:
            links.append((place, check))
            if not record.previous_place:
                break
            place = record.previous_place
            expected = record.previous_check
            if place == until.record_place:
                check = expected
                break
            record, check, _ = self.record_at(place)
            if check != expected:
                raise Corrupt(f"the log's chain is broken vdisk={self.vdisk} place={place:#x}")
        reached = until.record_place == place or (until.version == 0 and not record.previous_place)
        if not reached or (until.version and check != until.record_check):
            raise Corrupt(f"the index is not of this log vdisk={self.vdisk} version={until.version}")
        links.reverse()
        return links


@dataclass(frozen=True, slots=True)
class Lineage:
    """What the catalog knows of a vdisk that its log does not: needed to build its rows."""

    vdisk: int
    absent: int = HOLE
    """The place of blocks that have no row."""
    kept: tuple[int, ...] = ()
    """Versions that somebody keeps, in order: rows of each must survive later commits."""
    oldest_read: int = (1 << 64) - 1
    """The oldest version that this node's readers alone keep: only checkpoints up to it have its rows."""
    durable_version: int = 0
    """The newest version known to be durable: at which it was put to rest, or that has a name or a child."""
    floor: Floor = NO_FLOOR
    """What collection may have deleted."""
    rollbacks: Rollbacks = ()
    every: bool = False
    """Nobody could be asked what is kept: each version may be, and gets rows of its own."""
    size: int = 0
    overlap: int = 0
    """Size, and bytes of the parent that show through, before the first commit."""

    def beginning(self) -> VdiskState:
        """The vdisk before its first commit."""
        return VdiskState(size=self.size, overlap=self.overlap)

    def generation(self, version: int) -> int:
        """The generation under which a commit of this version writes its rows."""
        if self.every:
            return version
        return 1 + max((kept for kept in self.kept if kept < version), default=0)


class IndexBuilder:
    """Applies records to the index, gathering rows so that each is written once for many records."""

    def __init__(self, index: Index, state: VdiskState, *, lineage: Lineage) -> None:
        self.index, self.state, self.vdisk = index, state, lineage.vdisk
        self._lineage = lineage
        self._rows: dict[int, array[int]] = {}
        self._segments: dict[int, array[int]] = {}
        self.written: dict[int, array[int]] | None = None
        """Checksum segments that were written, for who wants them."""
        self._cut: int | None = None
        self._version, self._overlap = state.version, state.overlap
        """Of the record being applied."""

    def apply(self, record: CommitRecord, place: int, check: int, end: int) -> None:
        """Applies one record; ``flush`` writes it out."""
        generation = max(self.state.generation, self._lineage.generation(record.version))
        if generation != self.state.generation:
            self.flush()
            self.state = replace(self.state, generation=generation)
        self._version, self._overlap = record.version, record.overlap
        at = 0
        for block_no, count, first in record.runs():
            if first == CUT:
                if count == 1:
                    self._apply_cut(block_no)
                continue
            self._point(block_no, count, first)
            if first > PARENT:
                self._note_checksums(first, record.checksums[at : at + count])
                at += count
        self.state = replace(
            self.state,
            version=record.version,
            record_place=place,
            record_check=check,
            size=record.size,
            own_blocks=record.own_blocks,
            overlap=record.overlap,
            time_ns=record.time_ns,
            generation=generation,
            record_end=end,
        )
        if len(self._rows) > _ROWS_AT_ONCE:
            self.flush()

    def _row(self, vblock: int) -> "array[int]":
        row = self._rows.get(vblock)
        if row is None:
            if self._cut is not None and vblock >= self._cut:
                row = uniform_row(HOLE)
            else:
                rollbacks = self._lineage.rollbacks
                row = self.index.row_at(self.vdisk, vblock, self._version, rollbacks=rollbacks)
            if row is None:  # what a truncation in this record hides is a hole by its own extents
                row = absent_row(vblock, absent=self._lineage.absent, overlap=self._overlap)
            self._rows[vblock] = row
        return row

    def _point(self, block_no: int, count: int, place: int) -> None:
        step = 1 if place > PARENT else 0
        while count:
            first = block_no & 255
            part = min(count, VBLOCK_BLOCKS - first)
            new = range(place, place + part) if step else (place,) * part
            self._row(block_no >> 8)[first : first + part] = array("Q", new)
            block_no += part
            place += part * step
            count -= part
            if len(self._rows) > 2 * _ROWS_AT_ONCE:
                self._write(self.state)

    def _apply_cut(self, block_no: int) -> None:
        cut = block_no // VBLOCK_BLOCKS
        for vblock in [vblock for vblock in self._rows if vblock >= cut]:
            del self._rows[vblock]
        self._cut = cut if self._cut is None else min(cut, self._cut)

    def _note_checksums(self, place: int, checksums: "array[int]") -> None:
        at = 0
        while at < len(checksums):
            key, first = place >> 8, place & 255
            part = min(len(checksums) - at, SEGMENT_BLOCKS - first)
            segment = self._segments.get(key)
            if segment is None:
                segment = self.index.segment(self.vdisk, key) or array("I", bytes(4 * SEGMENT_BLOCKS))
                self._segments[key] = segment
            segment[first : first + part] = checksums[at : at + part]
            at += part
            place += part

    def flush(self) -> None:
        """Writes what was applied to the index."""
        self._write(self.state)

    def _write(self, state: VdiskState) -> None:
        rows = {vblock: encode_row(row) for vblock, row in self._rows.items()}
        if self._cut is not None and state.generation > 1:
            hole = encode_row(uniform_row(HOLE))
            hidden = self.index.vblocks(self.vdisk, self._cut, (1 << 64) - 1)
            rows = {**dict.fromkeys(hidden, hole), **rows}
        self.index.apply(
            IndexBatch(
                self.vdisk,
                state.generation,
                rows=rows,
                segments={key: segment.tobytes() for key, segment in self._segments.items()},
                state=state,
                drop_from_vblock=self._cut if state.generation == 1 else None,
            )
        )
        if self.written is not None:
            self.written |= self._segments
        self._rows.clear()
        self._segments.clear()
        self._cut = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """Where the index is now, and the highest number that any record bears: the next commit's is higher."""

    state: VdiskState
    last_version: int
    start: int = 0
    """The version from which records were applied: what was kept of earlier ones, only that has its rows."""
    is_rebuilt: bool = False
    """The index goes on from a checkpoint, or from nothing: what it had before is gone."""


def recover(
    pool: Pool,
    index: Index,
    lineage: Lineage,
    *,
    checkpoints: bool = True,
    progress: Progress | None = None,
) -> Recovered:
    """Brings the index up to the log's last whole commit, from scratch if what it has does not fit.

    Raises:
        Corrupt: the log is damaged before its last commit, or ends before a commit known to be durable.
    """
    recovered = go_on(pool, index, lineage, checkpoints=checkpoints, progress=progress, may_rebuild=True)
    assert recovered is not None
    return recovered


def go_on(
    pool: Pool,
    index: Index,
    lineage: Lineage,
    *,
    may_rebuild: bool,
    checkpoints: bool = True,
    progress: Progress | None = None,
) -> Recovered | None:
    """As ``recover``; None, with nothing changed, if it would have to build the index anew and may not."""
    state = index.state(lineage.vdisk)
    known = 0 if state is None or pool.was_refused(lineage.vdisk) else state.version
    durable = max(lineage.durable_version, lineage.floor.version, known)
    with LogReader(pool, lineage.vdisk) as reader:
        tail = reader.find_tail(durable_version=durable, known=state)
        found = tail.record.version if tail else 0
        if found < durable:
            raise Corrupt(
                f"the pool lost commits that were durable: restore its group files (if it was restored from a "
                f"backup, delete this node's state directory) vdisk={lineage.vdisk} found={found} known={durable} "
                f"directory={pool.vdisk_path(lineage.vdisk)}"
            )
        if tail is None:
            if not may_rebuild and state is not None:
                return None
            index.forget(lineage.vdisk)
            return Recovered(lineage.beginning(), reader.last_version, is_rebuilt=True)
        return _apply_to(
            reader,
            index,
            tail,
            lineage=lineage,
            may_rebuild=may_rebuild,
            checkpoints=checkpoints,
            progress=progress,
        )


def catch_up(
    pool: Pool, index: Index, lineage: Lineage, *, record: tuple[int, int], may_rebuild: bool
) -> Recovered | None:
    """Brings the index to the commit whose record its owner names by place and checksum; None as in ``go_on``.

    Raises:
        Corrupt, NotFound: the record is not there, or does not lead back to where the index is.
    """
    place, check = record
    with LogReader(pool, lineage.vdisk) as reader:
        named, actual, blocks = reader.record_at(place)
        if actual != check:
            raise Corrupt(f"another commit record than the owner's vdisk={lineage.vdisk} place={place:#x}")
        tail = Tail(named, place, check, (place & POSITION_MASK) + blocks)
        return _apply_to(reader, index, tail, lineage=lineage, may_rebuild=may_rebuild)


Placed = tuple[CommitRecord, int, int, int]
"""A commit, its record's place and checksum, and the position behind it."""


def apply_published(
    index: Index, lineage: Lineage, state: VdiskState, commits: Iterable[Placed]
) -> "tuple[VdiskState, dict[int, array[int]]]":
    """Applies the commits that follow ``state``.

    Returns:
        The state then, and the checksum segments that have changed.
    """
    builder = IndexBuilder(index, state, lineage=lineage)
    written = builder.written = {}
    for record, place, check, end in commits:
        builder.apply(record, place, check, end)
    builder.flush()
    return builder.state, written


def _apply_to(
    reader: LogReader,
    index: Index,
    tail: Tail,
    *,
    lineage: Lineage,
    may_rebuild: bool,
    checkpoints: bool = True,
    progress: Progress | None = None,
) -> Recovered | None:
    own = _own_starting_point(reader, index, tail, lineage=lineage)
    if own is None and not may_rebuild:
        return None
    checkpoints = checkpoints or bool(lineage.floor.collected)
    start, links = own or _starting_point(reader, index, tail, lineage=lineage, checkpoints=checkpoints)
    builder = IndexBuilder(index, start, lineage=lineage)
    for number, (place, check) in enumerate(links):
        record, _, blocks = reader.record_at(place)
        builder.apply(record, place, check, (place & POSITION_MASK) + blocks)
        if progress is not None and not number & 1023:
            progress(number, len(links))
    if links:
        builder.flush()
    last = max(reader.last_version, tail.record.version)
    return Recovered(builder.state, last, start.version, is_rebuilt=own is None)


def _own_starting_point(
    reader: LogReader, index: Index, tail: Tail, *, lineage: Lineage
) -> tuple[VdiskState, list[tuple[int, int]]] | None:
    """The index's own state, unless it does not know of the last collection, or has another history than the log."""
    state = index.state(reader.vdisk)
    if state is not None and state.collected >= lineage.floor.collected:
        with suppress(Corrupt, NotFound):  # of another history, or older than the log: start from the pool
            return state, reader.chain(tail, until=state)
    return None


def _starting_point(
    reader: LogReader, index: Index, tail: Tail, *, lineage: Lineage, checkpoints: bool
) -> tuple[VdiskState, list[tuple[int, int]]]:
    """The newest state to go on from where the index's own does not do: a checkpoint's, or nothing.

    None that does not know of the last collection: what it names, and the records behind it, may be gone. The owner may
    be at work meanwhile: a checkpoint that was there is replaced by a newer one, which may be newer than this tail.

    Raises:
        Unavailable: it is; the index has it now, and from a tail looked up again it goes on.
        Corrupt: there is none to go on from.
    """
    vdisk, floor, tried, is_ahead = reader.vdisk, lineage.floor, set[int](), False
    newest = (1 << 64) - 1 if floor.collected else lineage.oldest_read
    while checkpoints and (
        left := [each for each in reader.pool.checkpoints(vdisk) if each <= newest and each not in tried]
    ):
        tried.add(left[-1])
        state = None
        with suppress(VdiskfsError):  # a checkpoint only saves time, or another one may do
            state = _take_in(reader.pool, index, vdisk, version=left[-1])
            if state is not None and state.collected >= floor.collected:
                return state, reader.chain(tail, until=state)
        is_ahead |= state is not None and state.version > tail.record.version
    if floor.collected and is_ahead:
        raise Unavailable(f"the vdisk has moved on while its log was read vdisk={vdisk}")
    if floor.collected:
        raise Corrupt(
            f"the vdisk's checkpoint is missing or damaged, and older commits have been collected: restore it "
            f"vdisk={vdisk} version={floor.version} directory={reader.pool.vdisk_path(vdisk)}"
        )
    links = reader.chain(tail, until=VdiskState())
    index.forget(vdisk)
    return lineage.beginning(), links


def _take_in(pool: Pool, index: Index, vdisk: int, *, version: int) -> VdiskState | None:
    """A checkpoint instead of what the index has of the vdisk."""
    path = f"{index.path}.{vdisk:x}.checkpoint"
    try:
        pool.fetch_checkpoint(vdisk, version, path)
        index.forget(vdisk)
        index.ingest(path)
        return index.state(vdisk)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(path)
