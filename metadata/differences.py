"""What changed between two moments of a vdisk, decided from places alone: no byte of data is read.

Two blocks of one vdisk that lie at the same place are the same bytes, as nothing written is ever changed. Blocks
at different places count as changed, even where the bytes happen to be equal.

Rows are compared as they are stored, and where they differ as large numbers of 32 words: 64 GiB of which 1 %
changed here and there is 65,536 pairs, 7 us each.
"""

import operator
import struct
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from metadata.errors import Corrupt
from metadata.ids import HOLE, PARENT
from metadata.rows import COUNTING, DENSE, UNIFORM
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS

DATA_KIND, HOLE_KIND = "data", "hole"

_CHUNK_BLOCKS = 32
_CHUNK_BYTES = 8 * _CHUNK_BLOCKS
_CHUNKS_AT = range(1, 1 + 8 * VBLOCK_BLOCKS, _CHUNK_BYTES)
_PLACE_MASK = (1 << 64) - 1
_LAST_SHIFT = 64 * (_CHUNK_BLOCKS - 1)
_ONES = int.from_bytes((1).to_bytes(8, "little") * VBLOCK_BLOCKS, "little")
_COUNTS = int.from_bytes(b"".join(n.to_bytes(8, "little") for n in range(VBLOCK_BLOCKS)), "little")
_TOO_LARGE = 1 << 64 * VBLOCK_BLOCKS
_CHUNK = struct.Struct(f"<{_CHUNK_BLOCKS}Q")
_place_at = struct.Struct("<Q").unpack_from
_from_bytes = int.from_bytes


class ChangedRange(NamedTuple):
    """A stretch of the newer content that differs from the older; bytes of the vdisk."""

    offset: int
    length: int
    kind: str
    """Of the newer content: data, or hole (zeros)."""


Words = array
"""Changed blocks in order, of typecode Q, two words a run: its first block; the block behind it << 1 | is a hole."""


def add_changed(words: "array[int]", base: int, old: bytes, new: bytes) -> bool:
    """Adds the blocks in which two encoded rows (metadata/rows.py) differ; ``base`` is the number of their first.

    False, and nothing is added, if a block is or was the parent's: what that means takes a look there.

    Raises:
        Corrupt: no such form, or of the wrong length.
    """
    before, last = len(words), words[-1] if words else 0
    old, new = _dense(old), _dense(new)
    for at in _CHUNKS_AT:
        was, now = old[at : at + _CHUNK_BYTES], new[at : at + _CHUNK_BYTES]
        if was == now:
            continue
        differing = _from_bytes(was, "little") ^ _from_bytes(now, "little")
        block = at >> 3
        if differing & _PLACE_MASK and differing >> _LAST_SHIFT:  # likely all of them
            places = _places(old, block), _places(new, block)
            if PARENT in places[0] or PARENT in places[1]:
                break
            add_compared(words, base + block, *places)
            continue
        while differing:
            skipped = (differing & -differing).bit_length() - 1 >> 6
            block += skipped
            place = _place_at(new, 1 + 8 * block)[0]
            if place > PARENT:
                start = base + block << 1
            elif place == HOLE and _place_at(old, 1 + 8 * block)[0] != PARENT:
                start = base + block << 1 | 1
            else:
                break
            if words and words[-1] == start:
                words[-1] = start + 2
            else:
                words.append(base + block)
                words.append(start + 2)
            block += 1
            differing >>= skipped + 1 << 6
        if differing:
            break
    else:
        return True
    del words[before:]
    if before:
        words[-1] = last
    return False


def add_compared(words: "array[int]", base: int, old: Sequence[int], new: Sequence[int]) -> None:
    """The same for places, none of which is the parent's; the first ones are of block ``base``."""
    if HOLE not in new and not any(map(operator.eq, old, new)):
        _add(words, base, base + len(new), False)
        return
    for block, (was, place) in enumerate(zip(old, new, strict=True), base):
        if was != place:
            _add(words, block, block + 1, place == HOLE)


def _add(words: "array[int]", first: int, end: int, is_hole: bool) -> None:
    if words and words[-1] == first << 1 | is_hole:
        words[-1] = end << 1 | is_hole
    else:
        words.extend((first, end << 1 | is_hole))


def ranges_of(words: "array[int]", *, size: int) -> Iterator[ChangedRange]:
    """The ranges that words stand for, cut at the vdisk's size."""
    pairs = iter(words)
    for first, end in zip(pairs, pairs, strict=True):
        offset, stop = first * BLOCK_BYTES, (end >> 1) * BLOCK_BYTES
        if stop > size:
            if offset >= size:
                return
            stop = size
        yield _range(ChangedRange, (offset, stop - offset, HOLE_KIND if end & 1 else DATA_KIND))


_range = tuple.__new__  # as ChangedRange(...), in half the time


def join(words: "array[int]", more: "array[int]") -> None:
    """Adds the words of what follows; its first run may go on with the last one."""
    if words and more and words[-1] == more[0] << 1 | more[1] & 1:
        words[-1] = more[1]
        more = more[2:]
    words.extend(more)


def _dense(row: bytes) -> bytes:
    """The row in the form that has all its places."""
    kind, length = row[:1], len(row)
    if kind == DENSE and length == 1 + 8 * VBLOCK_BLOCKS:
        return row
    if length == 9 and kind in (COUNTING, UNIFORM):
        number = _place_at(row, 1)[0] * _ONES
        if kind == COUNTING:
            number += _COUNTS
        if number < _TOO_LARGE:
            return DENSE + int(number).to_bytes(8 * VBLOCK_BLOCKS, "little")
    raise Corrupt(f"index row of an unknown form kind={kind.hex()} length={length}")


def _places(row: bytes, block: int) -> tuple[int, ...]:
    """32 places of a dense row, from ``block`` on."""
    return _CHUNK.unpack_from(row, 1 + 8 * block)


def first_common(older: list[int], newer: list[int]) -> tuple[int, int] | None:
    """Where two lines of descent (vdisks, nearest first) meet: the index in each; None if they never do."""
    where = {vdisk: at for at, vdisk in reversed(list(enumerate(older)))}
    for at, vdisk in enumerate(newer):
        if vdisk in where:
            return where[vdisk], at
    return None
