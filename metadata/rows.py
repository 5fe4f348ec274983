"""Index rows: where the 256 blocks of one vblock lie, as an array and as bytes.

In memory a row is an ``array('Q')`` of 256 places, so that a lookup is an index, an update an
assignment, and "these blocks lie contiguous" one comparison. On disk it is one of

    0x00  256 places, 8 bytes each, little-endian          anything (RocksDB compresses it)
    0x01  the first place; the others count up by one      written sequentially
    0x02  the place all 256 share                          HOLE or PARENT throughout
"""

import functools
import struct
import sys
from array import array
from collections.abc import Iterator, Sequence

from metadata.errors import Corrupt
from metadata.ids import HOLE, PARENT, POSITION_MASK
from metadata.units import VBLOCK_BLOCKS

assert sys.byteorder == "little", "rows are stored as the machine's own little-endian words"

Row = array  # of typecode 'Q', VBLOCK_BLOCKS long

DENSE, COUNTING, UNIFORM = b"\x00", b"\x01", b"\x02"
_PLACE = struct.Struct("<Q")


def uniform_row(place: int) -> "array[int]":
    """A row whose blocks all have the same place."""
    return array("Q", (place,)) * VBLOCK_BLOCKS


@functools.cache
def _lanes(count: int) -> tuple[int, int]:
    """Ones, and 0, 1, 2 ..., each in a 64-bit lane of one number."""
    ones = int.from_bytes(array("Q", (1,) * count).tobytes(), "little")
    return ones, int.from_bytes(array("Q", range(count)).tobytes(), "little")


def counting(place: int, count: int) -> "array[int]":
    """``place``, ``place`` + 1 and so on: as array("Q", range(...)), in a quarter of the time."""
    ones, steps = _lanes(count)
    places = array("Q")
    places.frombytes((place * ones + steps).to_bytes(8 * count, "little"))
    return places


def encode_row(row: "array[int]") -> bytes:
    """The shortest of the three forms, decided without looking at every block where possible."""
    first, last = row[0], row[-1]
    if first == last:
        if row.count(first) == VBLOCK_BLOCKS:
            return UNIFORM + _PLACE.pack(first)
    elif last - first == VBLOCK_BLOCKS - 1 and row == counting(first, VBLOCK_BLOCKS):
        return COUNTING + _PLACE.pack(first)
    return DENSE + row.tobytes()


def decode_row(data: bytes) -> "array[int]":
    """The row that ``encode_row`` gave these bytes for.

    Raises:
        Corrupt: no such form, or of the wrong length.
    """
    kind, length = data[:1], len(data)
    if kind == DENSE and length == 1 + 8 * VBLOCK_BLOCKS:
        row = array("Q")
        row.frombytes(data[1:])
        return row
    if kind == COUNTING and length == 9:
        (first,) = _PLACE.unpack_from(data, 1)
        if first & POSITION_MASK > POSITION_MASK + 1 - VBLOCK_BLOCKS:
            raise Corrupt(f"index row counts over the end of its group place={first:#x}")
        return counting(first, VBLOCK_BLOCKS)
    if kind == UNIFORM and length == 9:
        return uniform_row(_PLACE.unpack_from(data, 1)[0])
    raise Corrupt(f"index row of an unknown form kind={kind.hex()} length={length}")


def stored_places(data: bytes) -> Sequence[int]:
    """The places of blocks with bytes of their own, HOLE and PARENT perhaps among them, of a row as stored.

    As ``decode_row``, which it leaves out where the form says all.
    """
    kind = data[:1]
    if kind == DENSE or len(data) != 9:
        return decode_row(data)
    (first,) = _PLACE.unpack_from(data, 1)
    if kind == UNIFORM and first <= PARENT:
        return ()
    return range(first, first + VBLOCK_BLOCKS) if kind == COUNTING else decode_row(data)


def runs(row: "array[int]", first: int, count: int) -> Iterator[tuple[int, int, int]]:
    """Stretches of ``row[first:first + count]`` as (first block, count, first place).

    Blocks with bytes in a group form a run while they lie contiguous; HOLE and PARENT while they repeat.
    """
    end = first + count
    while first < end:
        place = row[first]
        step = 0 if place <= PARENT else 1
        index, expected = first + 1, place + step
        while index < end and row[index] == expected:
            index += 1
            expected += step
        yield first, index - first, place
        first = index


def own_block_count(row: "array[int]", first: int = 0, count: int = VBLOCK_BLOCKS) -> int:
    """How many of these blocks have bytes in a group of the vdisk itself."""
    if count == VBLOCK_BLOCKS:
        return VBLOCK_BLOCKS - row.count(HOLE) - row.count(PARENT)
    return sum(place > PARENT for place in row[first : first + count])
