"""A journal entry: 64 bytes that let an acknowledged write outlive the daemon.

    0  8 sequence     8  8 vdisk      16 8 version it will be part of     24 8 first block number
    32 8 first place  40 8 size of the vdisk after it                     48 4 block count
    52 4 digest       56 8 xxh3-64 of the 56 bytes before, seeded with the pool's salt

The digest is the block's checksum, or for several blocks xxh3 over their checksums: replay reads the data
and believes an entry only if they match, so an entry that survived a power cut without its data is void.
A block count of 0 says only that the size is now this. A HOLE for a place is a discard.
A CUT with a count above 1 is a forwarded call (metadata/records.py), its digest the machine's start.
"""

import struct
from array import array
from dataclasses import dataclass

from xxhash import xxh3_64_intdigest

ENTRY_BYTES = 64
BODY = struct.Struct("<6QII")
CHECK = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """One acknowledged change of a vdisk's head."""

    sequence: int
    vdisk: int
    version: int
    block_no: int
    place: int
    size: int
    block_count: int
    digest: int


def digest_of(checksums: "array[int]") -> int:
    """What an entry keeps of its blocks' checksums, 32 bits."""
    if len(checksums) == 1:
        return checksums[0]
    return xxh3_64_intdigest(checksums.tobytes()) & 0xFFFFFFFF


def encode_entry(entry: JournalEntry, salt: int) -> bytes:
    """The entry's 64 bytes."""
    body = BODY.pack(
        entry.sequence, entry.vdisk, entry.version, entry.block_no, entry.place, entry.size,
        entry.block_count, entry.digest,
    )  # fmt: skip
    return body + CHECK.pack(xxh3_64_intdigest(body, salt))


def decode_entry(data: bytes, salt: int) -> JournalEntry | None:
    """The entry in these 64 bytes, or None if they are no whole entry."""
    if len(data) != ENTRY_BYTES or CHECK.unpack_from(data, 56)[0] != xxh3_64_intdigest(data[:56], salt):
        return None
    return JournalEntry(*BODY.unpack_from(data))
