"""A vdisk's block map as a picture: its newest rows, and what shows through where it has none, counted into cells."""

import functools
from dataclasses import dataclass

from metadata.block_pictures import Cell, cell_of, count_jumps, count_row, encode_cells
from metadata.descent import Rollbacks
from metadata.ids import PARENT, VdiskId
from metadata.index import Index
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS
from replication.vdisks import Vdisks

_NEWEST = (1 << 64) - 1
_VBLOCKS_AT_ONCE = 4096
_ROWS_SAMPLED = 4
"""Rows of a cell in which jumps are counted; the rest would say the same."""


@dataclass(frozen=True, slots=True)
class Picture:
    """Cells as metadata/block_pictures.py has them, each of so many bytes of the vdisk."""

    cell_bytes: int
    cells: bytes


async def picture(vdisks: Vdisks, vdisk: VdiskId, *, cells_max: int) -> Picture:
    """The block map of what a vdisk holds, as of its last commits.

    Raises:
        NotFound: no such vdisk.
        Corrupt, Unavailable: its log cannot be read.
    """
    async with vdisks.using(vdisk) as head:
        counts = _Counts(head.size, cells_max=cells_max)
        shown = head.overlap if head.ancestry.absent == PARENT else 0
        end = -(-head.size // (BLOCK_BYTES * VBLOCK_BLOCKS))
        for first in range(0, end, _VBLOCKS_AT_ONCE):
            stop = min(end, first + _VBLOCKS_AT_ONCE)
            count = functools.partial(
                counts.count, vdisks.workspace.index, vdisk, range(first, stop), rollbacks=head.rollbacks
            )
            await vdisks.workspace.wait_for(count)
        counts.inherit(shown)
        return Picture(counts.cell_blocks * BLOCK_BYTES, encode_cells(counts.cells()))


class _Counts:
    """Blocks counted by cell; a cell has a power of two of them."""

    def __init__(self, size: int, *, cells_max: int) -> None:
        self._blocks = -(-size // BLOCK_BYTES)
        per_cell = -(-self._blocks // cells_max)
        self.cell_blocks = 1 << max(0, per_cell - 1).bit_length()
        count = -(-self._blocks // self.cell_blocks)
        self._own, self._inherited = [0] * count, [0] * count
        self._without_row = [self.cell_blocks] * count
        self._jumps, self._counted, self._sampled = [0] * count, [0] * count, [0] * count

    def count(self, index: Index, vdisk: int, vblocks: range, *, rollbacks: Rollbacks) -> None:
        """Thread: counts the rows of these vblocks."""
        rows = index.rows_at(
            vdisk, _NEWEST, first_vblock=vblocks.start, end_vblock=vblocks.stop, rollbacks=rollbacks
        )
        step = min(self.cell_blocks, VBLOCK_BLOCKS)
        for vblock, row in rows:
            for first in range(0, VBLOCK_BLOCKS, step):
                cell = (vblock * VBLOCK_BLOCKS + first) // self.cell_blocks
                if cell >= len(self._own):
                    break
                part = row if step == VBLOCK_BLOCKS else row[first : first + step]
                own, inherited = count_row(part)
                self._own[cell] += own
                self._inherited[cell] += inherited
                self._without_row[cell] -= step
                if own and self._sampled[cell] < _ROWS_SAMPLED:
                    self._sampled[cell] += 1
                    self._jumps[cell] += count_jumps(part)
                    self._counted[cell] += own

    def inherit(self, shown: int) -> None:
        """Blocks without a row are the parent's, as far as ``shown`` bytes."""
        for cell, blocks in enumerate(self._without_row[: -(-shown // (self.cell_blocks * BLOCK_BYTES))]):
            visible = -(-shown // BLOCK_BYTES) - cell * self.cell_blocks
            self._inherited[cell] += min(blocks, visible)

    def cells(self) -> list[Cell]:
        """What was counted."""
        last = len(self._own) - 1
        return [
            cell_of(
                own,
                self._inherited[at],
                self.cell_blocks if at < last else self._blocks - last * self.cell_blocks,
                jumps=self._jumps[at],
                counted=self._counted[at],
            )
            for at, own in enumerate(self._own)
        ]
