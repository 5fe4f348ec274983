"""Fuzz targets for what lies on disks: commit records, tails of groups, the journal, index rows, checkpoints.

Each function takes any bytes and returns, or raises what must never happen: an exception that is not the decoder's
declared one, or an ``AssertionError`` where wrong bytes were believed. A fuzzer finds no checksum, so most
inputs say what to build, and what to damage after it was sealed.
"""

import functools
import os
import pathlib
import struct
import tempfile
from array import array
from contextlib import suppress
from dataclasses import astuple

from xxhash import xxh3_64_intdigest

from metadata.errors import Corrupt, IndexDamaged, NotFound, VdiskfsError
from metadata.ids import CUT, HOLE, PARENT, group_id
from metadata.index import Index, decode_state
from metadata.journal_entries import BODY, ENTRY_BYTES, decode_entry
from metadata.records import (
    HEADER_BYTES,
    MAGIC,
    CommitRecord,
    decode_record,
    encode_record,
    group_seed,
    peek_block_count,
)
from metadata.rows import decode_row, encode_row, runs, stored_places
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS
from replication import pool_directory
from replication.groups import block_checksums
from replication.journal import Journal
from replication.pool_checkpoints import pack_checkpoint, unpack_checkpoint
from replication.pool_directory import DirectoryPool
from replication.recovery import Lineage, recover
from tests.fuzzing.source import FOLDER_VARIABLE, U64_MAX, Source

SEED = 0x5EED
VDISK = 7
BLOCKS = 512
"""Of the vdisk whose log is recovered."""


@functools.cache
def folder() -> pathlib.Path:
    """One for the process, where whoever started it said."""
    return pathlib.Path(os.environ.get(FOLDER_VARIABLE) or tempfile.mkdtemp())


def fuzz_record(data: bytes) -> None:
    """A commit record: as it came; sealed, whatever its fields say; one that was encoded, with one bit turned."""
    source = Source(data)
    kind = source.below(3)
    if kind == 0:
        check_record(_whole(source.rest()))
    elif kind == 1:
        check_record(_sealed(_whole(source.rest())))
    else:
        sound, _ = encode_record(_any_record(source), SEED)
        assert check_record(sound)
        position = source.below(65536) % (_record_end(sound) * 8)
        turned = bytearray(sound)
        turned[position // 8] ^= 1 << position % 8
        assert not check_record(bytes(turned)), "a damaged record was believed"


def check_record(data: bytes) -> bool:
    """Whether there is a record, as recovery looks at it; what is read must encode to the same bytes."""
    blocks = peek_block_count(data[:BLOCK_BYTES], SEED)
    try:
        record, check = decode_record(data[: blocks * BLOCK_BYTES] if blocks else data, SEED)
    except Corrupt:
        return False
    record.runs()
    record.calls()
    if not blocks:
        return False
    again, check_again = encode_record(record, SEED)
    assert check_again == check
    assert again[: _record_end(again)] == data[: _record_end(again)]
    return True


def _whole(data: bytes) -> bytes:
    return data.ljust(-(-len(data) // BLOCK_BYTES) * BLOCK_BYTES, b"\0")


def _record_end(record: bytes) -> int:
    extents, checksums = struct.unpack_from("<II", record, 20)
    return int(HEADER_BYTES + 16 * extents + 4 * checksums)


def _sealed(data: bytes) -> bytes:
    """These bytes with the magic and checksums of a record."""
    if len(data) < HEADER_BYTES:
        return data
    header = data[16:28] + data[32:HEADER_BYTES]
    body = data[16:28] + xxh3_64_intdigest(header, SEED).to_bytes(8, "little")[:4] + data[32:]
    check = xxh3_64_intdigest(body[: _record_end(data) - 16], SEED)
    return MAGIC + check.to_bytes(8, "little") + body


def _any_record(source: Source) -> CommitRecord:
    fields = [source.number() for _ in range(9)]
    extents, checksums = array("Q"), array("I")
    for _ in range(source.below(40)):
        word, place = source.number(), source.choice((HOLE, CUT, PARENT, 3, source.number()))
        if place > PARENT:
            word &= ~0xFFC0
            checksums.extend(source.below(65536) for _ in range((word & 0xFFFF) + 1))
        extents.extend((word, place))
    return CommitRecord(*fields, extents, checksums)


class _Log:
    """A vdisk's log in one group, commit by commit; what each version holds is known."""

    def __init__(self, salt: int) -> None:
        self.group = group_id(1, 0)
        self.seed = group_seed(salt, VDISK, self.group)
        self.data = bytearray()
        self.versions: list[dict[int, bytes]] = [{}]
        self.last_commit_at = 0
        self._last = (0, 0)

    def commit(self, source: Source) -> None:
        """One more, of a few extents."""
        content, extents, checksums = dict(self.versions[-1]), array("Q"), array("I")
        self.last_commit_at = len(self.data)
        for _ in range(source.below(4)):
            first, count = source.below(BLOCKS), 1 + source.below(5)
            kind = source.below(6)
            if kind == 0:
                extents.extend((first << 16 | count - 1, HOLE))
                for number in range(first, first + count):
                    content.pop(number, None)
            elif kind == 1:
                first -= first % VBLOCK_BLOCKS  # where a truncation's cuts are
                extents.extend((first << 16, CUT))
                content = {number: block for number, block in content.items() if number < first}
            else:
                place = (self.group << 16) + len(self.data) // BLOCK_BYTES
                blocks = [bytes([source.below(256), number & 255]) * 2048 for number in range(count)]
                extents.extend((first << 16 | count - 1, place))
                checksums.extend(block_checksums(memoryview(b"".join(blocks)), self.seed + (place & 0xFFFF)))
                content.update(zip(range(first, first + count), blocks, strict=True))
                self.data += b"".join(blocks)
        version, place = len(self.versions), (self.group << 16) + len(self.data) // BLOCK_BYTES
        numbers = (VDISK, version, version - 1, *self._last, BLOCKS * BLOCK_BYTES, 1, len(content), 0)
        record = CommitRecord(*numbers, extents, checksums)
        encoded, check = encode_record(record, self.seed + (place & 0xFFFF))
        self.data += encoded
        self.versions.append(content)
        self._last = (place, check)


@functools.cache
def _pool_and_index() -> tuple[DirectoryPool, Index]:
    return pool_directory.format_pool(str(folder() / "pool")), Index(str(folder() / "index"))


def close() -> None:
    """Gives back what was made once for all inputs."""
    if _pool_and_index.cache_info().currsize:
        for each in _pool_and_index():
            each.close()
        _pool_and_index.cache_clear()


def fuzz_tail(data: bytes) -> None:
    """A group with some commits, damaged, cut, or with anything behind: recovery says what was there, or an error."""
    pool, index = _pool_and_index()
    source, log = Source(data), _Log(pool.salt)
    for _ in range(source.below(6)):
        log.commit(source)
    sound = len(log.data)
    damaged_at = _damage(source, log)
    path = pathlib.Path(pool.group_path(VDISK, log.group))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(log.data)
    index.forget(VDISK)
    count = len(log.versions) - 1
    try:
        state = recover(pool, index, Lineage(VDISK)).state
    except (Corrupt, NotFound):
        assert damaged_at < log.last_commit_at, "what only the last commit's tearing can do is no error"
        return
    assert state.version <= count
    if damaged_at >= sound:
        assert state.version == count, "a commit that was durable is lost"
    elif damaged_at >= log.last_commit_at:
        assert state.version >= count - 1, "a commit that was durable is lost"
    _compare(index, log, state.version)


def _damage(source: Source, log: _Log) -> int:
    """Damages the log; returns the first byte of the log concerned."""
    first = len(log.data)
    for _ in range(source.below(4)):
        at = source.below(65536) % (len(log.data) + BLOCK_BYTES)
        kind = source.below(4)
        if kind == 0:
            del log.data[at:]
        elif kind == 1:
            log.data[at : at + 512] = bytes(512)
        elif kind == 2:  # a piece of the log where it does not belong
            origin = source.below(64) * BLOCK_BYTES
            piece = bytes(log.data[origin : origin + BLOCK_BYTES])
            at -= at % BLOCK_BYTES
            at = len(log.data) if at > len(log.data) else at
            if log.data[at : at + len(piece)] == piece:
                continue
            log.data[at : at + len(piece)] = piece
        else:
            piece = source.piece()
            if not piece or log.data[at : at + len(piece)] == piece:
                continue
            log.data.extend(bytes(max(0, at - len(log.data))))
            log.data[at : at + len(piece)] = piece
        first = min(first, at)
    return first


def _compare(index: Index, log: _Log, version: int) -> None:
    """Each block of the recovered version has its content, or fails its checksum."""
    expected = log.versions[version]
    rows = dict(index.rows_at(VDISK, U64_MAX))
    for number in range(BLOCKS + 8):
        row = rows.get(number // VBLOCK_BLOCKS)
        place = HOLE if row is None else row[number % VBLOCK_BLOCKS]
        if place == HOLE:
            assert number not in expected, f"block {number} has become a hole"
            continue
        position = place & 0xFFFF
        found = bytes(log.data[position * BLOCK_BYTES :][:BLOCK_BYTES])
        segment = index.segment(VDISK, place >> 8)
        assert segment is not None
        if (
            block_checksums(memoryview(found), log.seed + position)[:1]
            == segment[place & 255 : (place & 255) + 1]
        ):
            assert found == expected.get(number), f"block {number} has wrong bytes"


def fuzz_journal(data: bytes) -> None:
    """A journal file of any content: what is whole comes back, and what is appended then, after the next start."""
    source, salt, capacity = Source(data), 77, 63
    content = bytearray((capacity + 1) * ENTRY_BYTES)
    for _ in range(source.below(80)):
        kind, slot = source.below(4), source.below(64)
        if kind == 0:
            at = source.below(len(content))
            piece = source.piece()
            content[at : at + len(piece)] = piece[: len(content) - at]
        elif kind == 1:
            content[slot * ENTRY_BYTES : (slot + 1) * ENTRY_BYTES] = bytes([source.below(256)]) * ENTRY_BYTES
        elif kind == 2:
            struct.pack_into("<Q", content, capacity * ENTRY_BYTES, source.number())
        else:  # an entry as this journal writes it, where it belongs
            sequence = 1 + source.below(4 * capacity)
            body = BODY.pack(sequence, VDISK, source.below(9), source.below(99), 2 * PARENT, 4096, 1, 0)
            entry = body + xxh3_64_intdigest(body, salt).to_bytes(8, "little")
            start = sequence % capacity * ENTRY_BYTES
            content[start : start + ENTRY_BYTES] = entry
    path = folder() / "journal"
    path.write_bytes(content)
    journal = Journal(str(path), salt, capacity=capacity)
    try:
        found = journal.replay()
        entries = [entry for listed in found.values() for entry in listed]
        for entry in entries:
            start = entry.sequence % capacity * ENTRY_BYTES
            assert decode_entry(bytes(content[start : start + ENTRY_BYTES]), salt) == entry
        next_one = journal.sequence
        assert all(entry.sequence < next_one for entry in entries)
        for block_no in range(3):
            if journal.room() > 0:
                journal.append(VDISK, 5, block_no, HOLE, 4096, 1, 0)
        appended = set(range(next_one, journal.sequence))
        again = {entry.sequence for listed in journal.replay().values() for entry in listed}
        assert appended <= again, "an entry is not found again"
    finally:
        journal.close()


def fuzz_rows(data: bytes) -> None:
    """An index row, and a vdisk's state in the index."""
    source = Source(data)
    form, rest = source.below(5), source.rest()
    if form == 3:
        with suppress(IndexDamaged):
            assert all(type(value) is int for value in astuple(decode_state(rest, VDISK)))
        return
    if form == 4:  # 256 places of a few kinds
        values = [Source(rest[at : at + 2]).below(65536) for at in range(0, 2 * VBLOCK_BLOCKS, 2)]
        raw = b"\x00" + array("Q", values).tobytes()
    else:
        raw = bytes([form]) + rest if form < 3 else rest
    try:
        row = decode_row(raw)
    except Corrupt:
        return
    assert len(row) == VBLOCK_BLOCKS
    again = encode_row(row)
    assert decode_row(again) == row
    assert len(again) <= len(raw)
    for stored in (raw, again):
        assert [place for place in stored_places(stored) if place > PARENT] == [p for p in row if p > PARENT]
    pieces = list(runs(row, 0, VBLOCK_BLOCKS))
    assert sum(count for _, count, _ in pieces) == VBLOCK_BLOCKS
    for first, count, place in pieces:
        step = place > PARENT
        assert list(row[first : first + count]) == [place + number * step for number in range(count)]


def fuzz_checkpoint(data: bytes) -> None:
    """A checkpoint file, damaged or not one at all."""
    source = Source(data)
    is_sound, original = source.below(4) == 0, source.piece()
    paths = [folder() / name for name in ("sst", "checkpoint", "taken")]
    paths[0].write_bytes(original)
    with paths[0].open("rb") as sst, paths[1].open("wb") as packed:
        pack_checkpoint(sst, packed, seed=SEED)
    sound = paths[1].read_bytes()
    if not is_sound:
        damaged = bytearray(sound)
        at, piece = source.below(512), source.piece()
        damaged[at : at + len(piece)] = piece
        paths[1].write_bytes(damaged[: len(damaged) - source.below(20)])
    with paths[1].open("rb") as packed, paths[2].open("wb") as taken:
        try:
            unpack_checkpoint(packed, taken, seed=SEED, name="a checkpoint")
        except Corrupt:
            assert not is_sound
            return
    assert paths[2].read_bytes() == original


def fuzz_pool_marker(data: bytes) -> None:
    """A pool directory's marker file of any content."""
    pool = folder() / "marked"
    pool.mkdir(exist_ok=True)
    (pool / "vdiskfs.pool").write_bytes(data)
    with suppress(VdiskfsError):
        pool_directory.open_pool(str(pool)).close()
    os.unlink(pool / "vdiskfs.pool")
