"""The node-local snapshot index: which version of which vblock lies where. The one home of RocksDB.

One column family, so that what a crash leaves is a prefix of the batches written; integers big-endian:

    "m" vdisk vblock ~generation   a row (metadata/rows.py)
    "g" vdisk segment              256 checksums of 4 bytes; the segment is place >> 8
    "v" vdisk                      VdiskState, msgpack

A *generation* is 1 + the newest kept version (snapshot, clone's parent, pin) when a row is written: commits
overwrite the row in place until somebody keeps a version, and a reader at a kept version finds the newest
generation at or below it with one seek, however many there are. A rollback masks generations (metadata/descent.py).

RocksDB's own log is off. The pool is the truth: a state may lag behind it and is then replayed, and an index
that is lost or damaged is built again. ``_nowait`` looks only where no disk is touched.
"""

import errno
import os
import shutil
import struct
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from enum import Enum

import msgpack
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    IngestExternalFileOptions,
    Options,
    Rdict,
    RdictIter,
    SstFileWriter,
    WriteBatch,
    WriteOptions,
)

from metadata.descent import Rollbacks, Spans, visible_spans
from metadata.errors import Corrupt, IndexDamaged, NoSpace, Unavailable
from metadata.rows import decode_row, own_block_count

_ROW_KEY = struct.Struct(">cQQQ")
_SEGMENT_KEY = struct.Struct(">cQQ")
_GENERATION = struct.Struct(">Q")
_VDISK_KEY = struct.Struct(">cQ")
_U64_MAX = (1 << 64) - 1
_MEMTABLE_BYTES = 8 << 20
_BLOCK_CACHE_BYTES = 24 << 20
_BLOCK_BYTES = 16 << 10  # eight dense rows: the table of blocks, kept in memory, stays small
_OPEN_FILES_MAX = 1024


class Nowait(Enum):
    """What a look-up that may not wait can say besides a value."""

    ABSENT = "absent"
    UNKNOWN = "only a look-up that may wait can tell"


@dataclass(frozen=True, slots=True)
class VdiskState:
    """How far the index has applied a vdisk's log.

    ``record_place`` and ``record_check`` name the commit record of ``version`` (0 before the first);
    ``record_end`` is the position behind it in its group.
    """

    version: int = 0
    record_place: int = 0
    record_check: int = 0
    record_end: int = 0
    size: int = 0
    own_blocks: int = 0
    overlap: int = 0
    time_ns: int = 0
    generation: int = 1
    collected: int = 0
    """The newest collection this knows of: groups may be gone that an index or checkpoint of an older one names."""


_STATE_FIELDS = [one.name for one in fields(VdiskState)]


@dataclass(slots=True)
class IndexBatch:
    """What one commit changes in the index; applied as a whole or not at all."""

    vdisk: int
    generation: int
    rows: Mapping[int, bytes]
    segments: Mapping[int, bytes]
    state: VdiskState
    drop_from_vblock: int | None = None
    """Rows of this generation from here on go first (a truncation of a vdisk that keeps nothing older)."""


def row_key(vdisk: int, vblock: int, generation: int) -> bytes:
    """Newer generations sort first, so a seek from version v meets the newest at or below v."""
    return _ROW_KEY.pack(b"m", vdisk, vblock, _U64_MAX - generation)


def segment_key(vdisk: int, segment: int) -> bytes:
    """``segment`` is place >> 8."""
    return _SEGMENT_KEY.pack(b"g", vdisk, segment)


def vdisk_key(vdisk: int) -> bytes:
    """The key of a vdisk's state."""
    return _VDISK_KEY.pack(b"v", vdisk)


def _options() -> Options:
    table = BlockBasedOptions()
    table.set_bloom_filter(10, False)
    table.set_block_cache(Cache(_BLOCK_CACHE_BYTES))
    table.set_cache_index_and_filter_blocks(False)  # in memory with each open file: "absent" needs no disk
    table.set_block_size(_BLOCK_BYTES)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_write_buffer_size(_MEMTABLE_BYTES)
    options.set_max_write_buffer_number(3)
    options.set_max_open_files(_OPEN_FILES_MAX)
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(2)
    options.set_paranoid_checks(True)
    return options


class Index:
    """An open index directory; one to a node, held by its daemon from start to end."""

    def __init__(self, path: str) -> None:
        """Opens or creates it.

        Raises:
            IndexDamaged: it cannot be read; delete it (``Index.destroy``) and start afresh.
            NoSpace: its disk is full; nothing is wrong with it.
        """
        self.path = path
        try:
            self._db = Rdict(path, _options())
        except Exception as exc:
            if os.strerror(errno.ENOSPC) in str(exc):
                raise NoSpace(f"no space for the snapshot index: make room on its disk path={path}") from exc
            raise IndexDamaged(f"the snapshot index cannot be opened: {exc} path={path}") from exc
        unlogged = WriteOptions()
        unlogged.disable_wal = True  # type: ignore[method-assign, assignment]
        self._db.set_write_options(unlogged)

    @staticmethod
    def destroy(path: str) -> None:
        """Removes an index directory, whatever is in it."""
        shutil.rmtree(path, ignore_errors=True)

    def _get(self, key: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(key)
        except Exception as exc:
            raise IndexDamaged(f"the snapshot index is damaged: {exc}") from exc
        return value

    def _get_nowait(self, key: bytes) -> bytes | Nowait:
        try:
            found, value = self._db.key_may_exist(key, fetch=True)  # type: ignore[misc]
        except Exception as exc:
            raise IndexDamaged(f"the snapshot index is damaged: {exc}") from exc
        if not found:
            return Nowait.ABSENT
        return value or Nowait.UNKNOWN  # an empty value: RocksDB found the key's place, but not in memory

    def row(self, vdisk: int, vblock: int, generation: int) -> "array[int] | None":
        """The row of exactly this generation."""
        data = self._get(row_key(vdisk, vblock, generation))
        return None if data is None else _decode_row(data)

    def row_nowait(self, vdisk: int, vblock: int, generation: int) -> "array[int] | Nowait":
        """As ``row``, without touching a disk."""
        data = self._get_nowait(row_key(vdisk, vblock, generation))
        return data if isinstance(data, Nowait) else _decode_row(data)

    def row_at(
        self, vdisk: int, vblock: int, version: int, *, rollbacks: Rollbacks = ()
    ) -> "array[int] | None":
        """The newest row that a reader at a version sees: one seek, and one more for each rollback stepped over."""
        cursor = self._db.iter()
        found = _seek_row(cursor, row_key(vdisk, vblock, 0)[:17], visible_spans(version, rollbacks))
        return None if found is None else _decode_row(found)

    def rows_at(
        self,
        vdisk: int,
        version: int,
        *,
        first_vblock: int = 0,
        end_vblock: int = _U64_MAX,
        rollbacks: Rollbacks = (),
    ) -> Iterator[tuple[int, "array[int]"]]:
        """All (vblock, row) that a reader at a version sees, in order, in a view of this moment."""
        spans = visible_spans(version, rollbacks)
        cursor = self._db.iter()
        cursor.seek(row_key(vdisk, first_vblock, _U64_MAX))
        while _is_valid(cursor):
            key = bytes(cursor.key())
            kind, owner, vblock, _ = _parse_row_key(key)
            if kind != b"m" or owner != vdisk or vblock >= end_vblock:
                return
            found = _seek_row(cursor, key[:17], spans)
            if found is not None:
                yield vblock, _decode_row(found)
            cursor.seek(row_key(vdisk, vblock + 1, _U64_MAX))

    def row_pairs(
        self,
        vdisk: int,
        versions: tuple[int, int],
        *,
        first_vblock: int = 0,
        end_vblock: int = _U64_MAX,
        rollbacks: Rollbacks = (),
    ) -> Iterator[tuple[int, bytes | None, bytes | None]]:
        """The vblocks whose rows are not the same at two versions: (vblock, row at the one, at the other), as stored.

        Where no rollback is in the way it steps from row to row and seeks only over further generations: 4 us a vblock.
        """
        one, other = (visible_spans(version, rollbacks) for version in versions)
        cursor = self._db.iter()
        cursor.seek(row_key(vdisk, first_vblock, _U64_MAX))
        if len(one) > 1 or len(other) > 1:
            return _pairs_by_spans(cursor, vdisk, end_vblock, spans=(one, other))
        pairs = _pairs_in_steps(cursor, vdisk, end_vblock, versions=(min(versions), max(versions)))
        if versions[0] <= versions[1]:
            return pairs
        return ((vblock, newer, older) for vblock, older, newer in pairs)

    def vblocks(self, vdisk: int, first: int, end: int) -> list[int]:
        """Numbers of the vblocks in [first, end) that have a row of any generation."""
        found = []
        cursor = self._db.iter()
        cursor.seek(row_key(vdisk, first, _U64_MAX))
        while _is_valid(cursor):
            kind, owner, vblock, _ = _parse_row_key(bytes(cursor.key()))
            if kind != b"m" or owner != vdisk or vblock >= end:
                break
            found.append(vblock)
            cursor.seek(row_key(vdisk, vblock + 1, _U64_MAX))
        return found

    def first_vblock(self, vdisk: int, first: int, end: int) -> int | None:
        """The first vblock in [first, end) that has a row of any generation."""
        cursor = self._db.iter()
        cursor.seek(row_key(vdisk, first, _U64_MAX))
        if not _is_valid(cursor):
            return None
        kind, owner, vblock, _ = _parse_row_key(bytes(cursor.key()))
        return vblock if kind == b"m" and owner == vdisk and vblock < end else None

    def own_block_counts(self, vdisk: int, first: int, *, rollbacks: Rollbacks = ()) -> dict[int, int]:
        """Blocks with bytes of the vdisk's own in the newest row of each vblock from ``first`` on."""
        newest = self.rows_at(vdisk, _U64_MAX, first_vblock=first, rollbacks=rollbacks)
        return {vblock: own_block_count(row) for vblock, row in newest}

    def segment(self, vdisk: int, segment: int) -> "array[int] | None":
        """The 256 checksums of a segment."""
        return _decode_segment(self._get(segment_key(vdisk, segment)))

    def segment_nowait(self, vdisk: int, segment: int) -> "array[int] | Nowait":
        """As ``segment``, without touching a disk."""
        data = self._get_nowait(segment_key(vdisk, segment))
        if isinstance(data, Nowait):
            return data
        checksums = _decode_segment(data)
        return Nowait.ABSENT if checksums is None else checksums

    def state(self, vdisk: int) -> VdiskState | None:
        """How far this vdisk is applied; None if the index knows nothing of it."""
        data = self._get(vdisk_key(vdisk))
        return None if data is None else decode_state(data, vdisk)

    def apply(self, batch: IndexBatch) -> None:
        """Makes one commit visible, atomically."""
        writes = WriteBatch(raw_mode=True)
        vdisk, generation = batch.vdisk, batch.generation
        if batch.drop_from_vblock is not None:
            writes.delete_range(row_key(vdisk, batch.drop_from_vblock, _U64_MAX), row_key(vdisk, _U64_MAX, 0))
        for vblock, row in batch.rows.items():
            writes.put(row_key(vdisk, vblock, generation), row)
        for segment, checksums in batch.segments.items():
            writes.put(segment_key(vdisk, segment), checksums)
        writes.put(vdisk_key(vdisk), _encode_state(batch.state))
        self._write(writes)

    def stored_rows(
        self, vdisk: int, first_vblock: int, *, row_count: int
    ) -> tuple[list[tuple[int, list[tuple[int, bytes]]]], int | None]:
        """The rows of whole vblocks from one on: about so many, as (vblock, [(generation, bytes)]), newest first.

        Returns:
            Them, and the vblock to go on from; None at the end.
        """
        found: list[tuple[int, list[tuple[int, bytes]]]] = []
        count = 0
        cursor = self._db.iter()
        cursor.seek(row_key(vdisk, first_vblock, _U64_MAX))
        while _is_valid(cursor):
            kind, owner, vblock, inverted = _parse_row_key(bytes(cursor.key()))
            if kind != b"m" or owner != vdisk:
                break
            if not found or found[-1][0] != vblock:
                if count >= row_count:
                    return found, vblock
                found.append((vblock, []))
            found[-1][1].append((_U64_MAX - inverted, bytes(cursor.value())))
            count += 1
            cursor.next()
        return found, None

    def change_rows(
        self,
        vdisk: int,
        *,
        puts: Mapping[tuple[int, int], bytes] | None = None,
        deletes: Iterable[tuple[int, int]] = (),
        segments: Mapping[int, bytes] | None = None,
        state: VdiskState | None = None,
    ) -> None:
        """Changes rows by (vblock, generation), with segments and state, all or nothing."""
        writes = WriteBatch(raw_mode=True)
        for segment, checksums in (segments or {}).items():
            writes.put(segment_key(vdisk, segment), checksums)
        for (vblock, generation), row in (puts or {}).items():
            writes.put(row_key(vdisk, vblock, generation), row)
        for vblock, generation in deletes:
            writes.delete(row_key(vdisk, vblock, generation))
        if state is not None:
            writes.put(vdisk_key(vdisk), _encode_state(state))
        self._write(writes)

    def segment_groups(self, vdisk: int) -> list[int]:
        """The groups that have checksums here, in order: one seek each."""
        found: list[int] = []
        cursor = self._db.iter()
        cursor.seek(segment_key(vdisk, 0))
        while _is_valid(cursor) and bytes(cursor.key()).startswith(segment_key(vdisk, 0)[:9]):
            _, _, segment = _SEGMENT_KEY.unpack(bytes(cursor.key()))
            found.append(segment >> 8)
            cursor.seek(segment_key(vdisk, ((segment >> 8) + 1) << 8))
        return found

    def drop_segments(self, vdisk: int, group: int) -> None:
        """Forgets the checksums of a group."""
        writes = WriteBatch(raw_mode=True)
        cursor = self._db.iter()
        cursor.seek(segment_key(vdisk, group << 8))
        end = segment_key(vdisk, (group + 1) << 8)
        while _is_valid(cursor) and bytes(cursor.key()) < end:
            writes.delete(bytes(cursor.key()))
            cursor.next()
        self._write(writes)

    def forget(self, vdisk: int) -> None:
        """Drops all that is known of a vdisk."""
        writes = WriteBatch(raw_mode=True)
        writes.delete_range(row_key(vdisk, 0, _U64_MAX), row_key(vdisk, _U64_MAX, 0) + b"\0")
        writes.delete_range(segment_key(vdisk, 0), segment_key(vdisk, _U64_MAX) + b"\0")
        writes.delete(vdisk_key(vdisk))
        self._write(writes)

    def _write(self, writes: WriteBatch) -> None:
        try:
            self._db.write(writes)
        except Exception as exc:
            raise Unavailable(f"the snapshot index cannot be written: {exc} path={self.path}") from exc

    def export_vdisk(self, vdisk: int, path: str) -> int:
        """Writes all that is known of a vdisk to an SST file, in a view of this moment; returns its rows.

        Raises:
            Unavailable: the file cannot be written.
        """
        try:
            return self._export(vdisk, path)
        except IndexDamaged:
            raise
        except Exception as exc:
            raise Unavailable(f"a checkpoint cannot be written: {exc} path={path}") from exc

    def _export(self, vdisk: int, path: str) -> int:
        cursor = self._db.iter()
        writer = SstFileWriter(_options())
        writer.open(path)
        count = 0
        for prefix in (segment_key(vdisk, 0)[:9], row_key(vdisk, 0, 0)[:9], vdisk_key(vdisk)):
            cursor.seek(prefix)
            while _is_valid(cursor) and bytes(cursor.key()).startswith(prefix):
                writer[bytes(cursor.key())] = cursor.value()
                count += 1
                cursor.next()
        writer.finish()
        return count

    def ingest(self, path: str) -> None:
        """Takes in a file that ``export_vdisk`` wrote; the file is copied, not moved.

        Raises:
            Corrupt: it is no such file, or damaged.
        """
        options = IngestExternalFileOptions()
        options.set_move_files(False)
        try:
            self._db.ingest_external_file([path], options)
        except Exception as exc:
            raise Corrupt(f"checkpoint cannot be taken in: {exc} path={path}") from exc

    def flush(self) -> None:
        """Everything applied so far survives a crash without a replay. Waits for the disk."""
        try:
            self._db.flush()
        except Exception as exc:
            raise Unavailable(f"the snapshot index cannot be written: {exc} path={self.path}") from exc

    def live_bytes(self) -> int:
        """Bytes of the index's live files and memtables."""
        names = ("rocksdb.live-sst-files-size", "rocksdb.size-all-mem-tables")
        return sum(self._db.property_int_value(name) or 0 for name in names)

    def close(self) -> None:
        """Flushes and closes.

        Raises:
            Unavailable: what was in memory only is lost, and will be replayed from the pool.
        """
        try:
            self._db.close()
        except Exception as exc:
            raise Unavailable(f"the snapshot index cannot be closed: {exc} path={self.path}") from exc


def _is_valid(cursor: RdictIter) -> bool:
    """Whether the cursor is on a row; a cursor also ends where it cannot read on, which is no end."""
    if cursor.valid():
        return True
    try:
        cursor.status()
    except Exception as exc:
        raise IndexDamaged(f"the snapshot index is damaged: {exc}") from exc
    return False


def _seek_row(cursor: RdictIter, prefix: bytes, spans: Spans) -> bytes | None:
    """The newest row of these generations of the vblock whose keys begin so."""
    generation = _U64_MAX + 1  # not yet looked
    for above, up_to in spans:
        if generation > up_to:
            cursor.seek(prefix + _GENERATION.pack(_U64_MAX - up_to))
            if not _is_valid(cursor):
                return None
            key = bytes(cursor.key())
            if len(key) != _ROW_KEY.size or key[:17] != prefix:
                return None
            generation = _U64_MAX - _GENERATION.unpack_from(key, 17)[0]
        if generation > above:
            value: bytes = cursor.value()
            return value
    return None


def _pairs_in_steps(
    cursor: RdictIter, vdisk: int, end_vblock: int, *, versions: tuple[int, int]
) -> Iterator[tuple[int, bytes | None, bytes | None]]:
    """Rows that differ at two versions, the older one first, of which each sees all generations up to its own."""
    oldest, newest = (_GENERATION.pack(_U64_MAX - version) for version in versions)
    prefix = row_key(vdisk, 0, 0)[:9]
    step, key_here, value_here = cursor.next, cursor.key, cursor.value
    key = key_here()
    while key is not None:
        stem, generation = key[:17], key[17:]
        if key[:9] != prefix or len(generation) != 8:
            return
        vblock = int.from_bytes(stem[9:], "big")
        if vblock >= end_vblock:
            return
        if generation < newest:
            cursor.seek(stem + newest)
            key = key_here()
            continue
        if generation < oldest:
            newer, older = value_here(), None
            step()
            key = key_here()
            if key is not None and key[:17] == stem and key[17:] < oldest:
                cursor.seek(stem + oldest)
                key = key_here()
            if key is not None and key[:17] == stem:
                older = value_here()
            yield vblock, older, newer
            if older is None:
                continue
        step()
        key = key_here()
        if key is not None and key[:17] == stem:
            cursor.seek(stem + b"\xff" * 9)
            key = key_here()
    _is_valid(cursor)  # it has ended: at the end, or where it cannot read on


def _pairs_by_spans(
    cursor: RdictIter, vdisk: int, end_vblock: int, *, spans: tuple[Spans, Spans]
) -> Iterator[tuple[int, bytes | None, bytes | None]]:
    """The same for versions that rollbacks hide rows from."""
    while _is_valid(cursor):
        key = bytes(cursor.key())
        kind, owner, vblock, _ = _parse_row_key(key)
        if kind != b"m" or owner != vdisk or vblock >= end_vblock:
            return
        one, other = (_seek_row(cursor, key[:17], seen) for seen in spans)
        if one != other:
            yield vblock, one, other
        cursor.seek(row_key(vdisk, vblock + 1, _U64_MAX))


def _parse_row_key(key: bytes) -> tuple[bytes, int, int, int]:
    if len(key) != _ROW_KEY.size:
        return b"", 0, 0, 0
    kind, vdisk, vblock, inverted = _ROW_KEY.unpack(key)
    return kind, vdisk, vblock, inverted


def _encode_state(state: VdiskState) -> bytes:
    packed: bytes = msgpack.packb({name: getattr(state, name) for name in _STATE_FIELDS})
    return packed


def decode_state(data: bytes, vdisk: int) -> VdiskState:
    """A vdisk's state as the index has it.

    Raises:
        IndexDamaged: it is none.
    """
    try:
        values = dict(msgpack.unpackb(data))
        if not all(type(value) is int for value in values.values()):
            raise TypeError(values)
        return VdiskState(**values)
    except (TypeError, ValueError, msgpack.UnpackException) as exc:
        raise IndexDamaged(f"the snapshot index holds a damaged state vdisk={vdisk}") from exc


def _decode_row(data: bytes) -> "array[int]":
    try:
        return decode_row(data)
    except Corrupt as exc:
        raise IndexDamaged(str(exc)) from exc


def _decode_segment(data: bytes | None) -> "array[int] | None":
    if data is None:
        return None
    if len(data) != 1024:
        raise IndexDamaged(f"the snapshot index holds a damaged checksum row length={len(data)}")
    checksums = array("I")
    checksums.frombytes(data)
    return checksums
