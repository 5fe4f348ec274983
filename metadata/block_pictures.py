"""A vdisk's block map made small enough to be drawn: cells that say how much is own, parent's, hole, and how scattered.

    cell   = own share << 4 | parent share (1 byte, sixteenths of what is shown, 15 is all) , scatter (1 byte)
    cells  = (how often 1..255 , cell) ...

Scatter is the share of own blocks, in 255ths, that do not lie right behind the block before them: what reading the
cell from end to end would seek.
"""

import itertools
from array import array
from collections.abc import Iterable

from metadata.ids import HOLE, PARENT

SHARE_MAX = 15
SCATTER_MAX = 255
_REPEAT_MAX = 255

Cell = tuple[int, int, int]
"""Own share, parent's share, scatter."""


def cell_of(own: int, inherited: int, blocks: int, *, jumps: int = 0, counted: int = 0) -> Cell:
    """A cell of ``blocks`` blocks.

    Args:
        own: blocks with bytes of the vdisk's own.
        inherited: blocks that are the parent's.
        blocks: all of them, more than 0.
        jumps: own blocks, of those ``counted``, that do not follow the one before.
    """
    shares = [_share(own, blocks), _share(inherited, blocks)]
    if sum(shares) > SHARE_MAX:  # both were rounded up
        shares[shares.index(max(shares))] -= 1
    scatter = -(-SCATTER_MAX * jumps // counted) if counted else 0
    return shares[0], shares[1], min(SCATTER_MAX, scatter)


def _share(part: int, whole: int) -> int:
    """At least 1 for anything at all."""
    return max(1, (SHARE_MAX * part + whole // 2) // whole) if part else 0


def count_row(row: "array[int]") -> tuple[int, int]:
    """How many blocks of a row are own, and how many the parent's."""
    inherited = row.count(PARENT)
    return len(row) - inherited - row.count(HOLE), inherited


def count_jumps(row: "array[int]") -> int:
    """How many of a row's own blocks do not lie right behind the one before; its first does."""
    if row[-1] - row[0] == len(row) - 1 and row == array("Q", range(row[0], row[0] + len(row))):
        return 0
    return sum(now > PARENT and now - before != 1 for before, now in itertools.pairwise(row))


def encode_cells(cells: Iterable[Cell]) -> bytes:
    """Cells as bytes, equal ones in a row told once."""
    encoded = bytearray()
    last: Cell | None = None
    for cell in cells:
        if cell == last and encoded[-3] < _REPEAT_MAX:
            encoded[-3] += 1
            continue
        own, inherited, scatter = last = cell
        encoded += bytes((1, own << 4 | inherited, scatter))
    return bytes(encoded)
