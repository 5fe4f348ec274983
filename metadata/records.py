"""The commit record: what one version changed, as bytes behind its data in an extent group.

Bytes, little-endian, padded with zeros to whole blocks:

    0    8   magic "VDFSREC1"
    8    8   xxh3-64 of all that follows (padding excluded), seeded with the record's place
    16   4   blocks the record takes, padding included
    20   4   extents
    24   4   checksums (one for each block of each extent that has bytes)
    28   4   low half of xxh3-64 of bytes 16 to 27 and 32 to 103, seeded likewise
    32   8   vdisk           40  8  version          48  8  previous version
    56   8   previous record's place (0: none)      64  8  previous record's checksum
    72   8   size of the vdisk, bytes               80  8  time of the commit, ns since 1970
    88   8   blocks with bytes of their own         96  8  overlap: bytes of the parent still visible
    104  16  an extent: (block number << 16 | count - 1), first place
    ...  4   a block's checksum

An extent whose place is CUT says with a count of 1 that all from its block on are holes, with a larger one that this
commit holds what another node had asked for under the number in its first word (``call_number``), so that
who asks again after the owner has died, or changed, does not have it done twice. The number's highest bit is set: a
release that knows no calls takes it for a cut behind all there is.

The epoch is in the record's place. The checksum's seed holds the pool's secret salt, the vdisk, the
group and the position, so neither guest data nor a record copied elsewhere passes for a record. Records
are chained by place and checksum: recovery finds the last one and walks back. The header has a checksum of its
own, so that guest data cannot make recovery read megabytes for each block that merely begins like a record.
"""

import struct
from array import array
from dataclasses import dataclass, field

from xxhash import xxh3_64_intdigest

from metadata.errors import Corrupt
from metadata.ids import CUT, PARENT, Version
from metadata.units import BLOCK_BYTES

MAGIC = b"VDFSREC1"
_HEADER = struct.Struct("<8sQIIII9Q")
HEADER_BYTES = _HEADER.size
EXTENT_BYTES = 16
CHECKSUM_BYTES = 4
EXTENT_BLOCKS_MAX = 1 << 16
RECORD_BLOCKS_MAX = 1 << 14
"""64 MiB: longer ones are not written."""

SEED_MASK = (1 << 62) - 1


def group_seed(salt: int, vdisk: int, group: int) -> int:
    """The seed of a group; a block's seed is this plus its position, with room to add without overflow."""
    return xxh3_64_intdigest(struct.pack("<QQQ", salt, vdisk, group)) & SEED_MASK


@dataclass(slots=True)
class CommitRecord:
    """One commit. ``extents`` holds pairs of words, in the order they were written: later ones win."""

    vdisk: int
    version: Version
    previous_version: Version
    previous_place: int
    previous_check: int
    size: int
    time_ns: int
    own_blocks: int
    overlap: int
    extents: "array[int]" = field(default_factory=lambda: array("Q"))
    checksums: "array[int]" = field(default_factory=lambda: array("I"))

    def runs(self) -> list[tuple[int, int, int]]:
        """The extents as (block number, count, first place)."""
        words = self.extents
        return [(words[i] >> 16, (words[i] & 0xFFFF) + 1, words[i + 1]) for i in range(0, len(words), 2)]

    def calls(self) -> set[int]:
        """Numbers of forwarded calls that this commit holds."""
        words = self.extents
        return {words[i] for i in range(0, len(words), 2) if words[i + 1] == CUT and words[i] & 0xFFFF}


def call_number(origin: int, count: int) -> int:
    """The number of the ``count``-th call of this origin, in the shape that a record holds."""
    return xxh3_64_intdigest(struct.pack("<QQ", origin, count)) | 1 << 63 | 1


def record_block_count(extent_count: int, checksum_count: int) -> int:
    """Blocks that a record of so many extents and checksums takes."""
    length = HEADER_BYTES + EXTENT_BYTES * extent_count + CHECKSUM_BYTES * checksum_count
    return -(-length // BLOCK_BYTES)


def encode_record(record: CommitRecord, seed: int) -> tuple[bytes, int]:
    """The record's bytes, whole blocks, and its checksum. ``seed`` is its place's."""
    extent_count, checksum_count = len(record.extents) // 2, len(record.checksums)
    blocks = record_block_count(extent_count, checksum_count)
    header = _HEADER.pack(
        MAGIC,
        0,
        blocks,
        extent_count,
        checksum_count,
        0,
        record.vdisk,
        record.version,
        record.previous_version,
        record.previous_place,
        record.previous_check,
        record.size,
        record.time_ns,
        record.own_blocks,
        record.overlap,
    )
    body = header[16:28] + _header_check(header, seed) + header[32:]
    body += record.extents.tobytes() + record.checksums.tobytes()
    check = xxh3_64_intdigest(body, seed)
    return (MAGIC + check.to_bytes(8, "little") + body).ljust(blocks * BLOCK_BYTES, b"\0"), check


def _header_check(header: bytes, seed: int) -> bytes:
    return xxh3_64_intdigest(header[16:28] + header[32:HEADER_BYTES], seed).to_bytes(8, "little")[:4]


def peek_block_count(block: bytes, seed: int) -> int:
    """Blocks of the record that starts in this block; 0 if none does. Only its header is verified."""
    if len(block) < HEADER_BYTES or block[:8] != MAGIC or block[28:32] != _header_check(block, seed):
        return 0
    blocks = int(struct.unpack_from("<I", block, 16)[0])
    return blocks if 0 < blocks <= RECORD_BLOCKS_MAX else 0


def decode_record(data: bytes, seed: int) -> tuple[CommitRecord, int]:
    """The record in these whole blocks, and its checksum.

    Raises:
        Corrupt: not a record of this place, or damaged.
    """
    if len(data) < HEADER_BYTES or data[:8] != MAGIC:
        raise Corrupt("no commit record here")
    fields = _HEADER.unpack_from(data)
    check, blocks, extent_count, checksum_count = fields[1:5]
    extents_end = HEADER_BYTES + EXTENT_BYTES * extent_count
    end = extents_end + CHECKSUM_BYTES * checksum_count
    if end > len(data) or blocks != record_block_count(extent_count, checksum_count):
        raise Corrupt(f"commit record with impossible lengths blocks={blocks} bytes={len(data)}")
    if xxh3_64_intdigest(data[16:end], seed) != check:
        raise Corrupt("commit record fails its checksum")
    vdisk, version, previous_version, place, previous_check, size, time_ns, own, overlap = fields[6:]
    extents, checksums = array("Q"), array("I")
    extents.frombytes(data[HEADER_BYTES:extents_end])
    checksums.frombytes(data[extents_end:end])
    record = CommitRecord(
        vdisk, version, previous_version, place, previous_check, size, time_ns, own, overlap,
        extents, checksums,
    )  # fmt: skip
    if sum(count for _, count, first in record.runs() if first > PARENT) != checksum_count:
        raise Corrupt("commit record whose checksums do not match its extents")
    return record, check
