"""Reading a vdisk at one moment: its head as it is now, or a version as it was.

``read_nowait`` is the hot path of reading: on the event loop, no layers, no waiting. It serves what memory can
answer and says None otherwise; then the channel starts the slow way as a task (replication/head_read.py).
Figures, 4 KiB: 3.5 us, of which the system call is half.
"""

import os
from array import array
from collections.abc import Iterator, Sequence

from xxhash import xxh3_64_intdigest

from metadata.descent import Rollbacks
from metadata.ids import HOLE, PARENT, POSITION_MASK
from metadata.rows import counting, runs
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS, VBLOCK_BYTES
from replication.ancestry import Ancestry
from replication.groups import GroupSet, keep_split
from replication.moves import Moved
from replication.workspace import Workspace

REQUEST_BYTES_MAX = 1 << 20
"""The largest read or write the kernel sends (fusefs/fuse_abi.py asks for 256 pages)."""

_hash, _preadv, _NOWAIT = xxh3_64_intdigest, os.preadv, os.RWF_NOWAIT
_NEWEST = (1 << 64) - 1
ZERO_BLOCK = memoryview(bytes(BLOCK_BYTES))
_ZEROS = bytes(REQUEST_BYTES_MAX + 2 * BLOCK_BYTES)
TOUCHED_BLOCKS, TOUCHED_MAX = 32, 16384
"""The grain of what a working set remembers, 128 KiB; so many at most, 2 GiB: what reads more is no boot."""
HEADROOM = 16
"""Bytes in front of a block that was read, for whoever answers with it to put a header there."""
_answer = memoryview(bytearray(HEADROOM + REQUEST_BYTES_MAX + 2 * BLOCK_BYTES))
scratch = _answer[HEADROOM:]
"""Replies are written before the next request is read, so one buffer serves them all."""
BLOCK = scratch[:BLOCK_BYTES]
BLOCK_ANSWER = _answer[: HEADROOM + BLOCK_BYTES]
"""With room for the header."""
_BLOCK_VECTOR = [BLOCK]
_VBLOCK = keep_split(scratch[:VBLOCK_BYTES])
_VECTORS = [[scratch[at : at + BLOCK_BYTES]] for at in range(0, len(scratch), BLOCK_BYTES)]


class Reader:
    """What reading needs: rows, groups, ancestors, a size. ``Head`` adds writing."""

    def __init__(self, workspace: Workspace, groups: GroupSet, *, ancestry: Ancestry) -> None:
        self.vdisk, self.workspace = groups.vdisk, workspace
        self.groups, self.ancestry, self.index = groups, ancestry, workspace.index
        self._files, self._segments = groups.files, groups.segments
        self._cache = workspace.row_cache
        self.rows: dict[int, array[int]] = {}
        self.pinned: list[set[int]] = []
        """Rows that the cache must not drop."""
        self.size = 0
        self.overlap = 0
        """How many bytes of the parent show through where the vdisk has no row."""
        self.touched: set[int] | None = None
        """Grains that the slow way has read, for who records them (replication/boot_sets.py)."""
        self.rollbacks: Rollbacks = ()
        """The vdisk's: rows they mask do not count."""
        self.commits = 0
        """Counts commits that ended, for whoever looked at the index meanwhile."""
        workspace.moves.readers.add(self)

    def read_nowait(self, offset: int, size: int) -> "memoryview | bytes | None":
        """The bytes at [offset, offset + size) as far as the vdisk goes, if no disk is needed.

        The result is valid until the next call of any head.
        """
        if size == BLOCK_BYTES and not offset & 4095 and offset + size <= self.size:
            row = self.rows.get(offset >> 20)
            if row is None:
                row = self.row_nowait(offset >> 20)
                if row is None:
                    return None
            place = row[offset >> 12 & 255]
            if place == HOLE:
                return ZERO_BLOCK
            if place != PARENT:
                file, segment = self._files.get(place >> 16), self._segments.get(place >> 8)
                if file is None or segment is None:
                    return BLOCK if self.groups.read_run_nowait(BLOCK, place, 1) else None
                position = place & POSITION_MASK
                try:
                    if _preadv(file.fd, _BLOCK_VECTOR, position << 12, _NOWAIT) != BLOCK_BYTES:
                        return None
                except OSError:  # as GroupFile.read_nowait
                    return None
                found = _hash(BLOCK, file.seed + position) & 0xFFFFFFFF
                return BLOCK if found == segment[place & 255] else None  # the slow way tells what is wrong
        end = min(offset + size, self.size)
        if end <= offset:
            return b""
        first, last = offset >> 12, end - 1 >> 12
        if not self._gather_nowait(first, last - first + 1):
            return None
        skip = offset & 4095
        return scratch[skip : skip + end - offset]

    def _gather_nowait(self, block_no: int, count: int) -> bool:
        """Fills the scratch buffer with blocks."""
        at = 0
        read_run = self.groups.read_run_nowait
        while count:
            first = block_no & 255
            part = min(count, VBLOCK_BLOCKS - first)
            row = self.rows.get(block_no >> 8)
            if row is None:
                row = self.row_nowait(block_no >> 8)
                if row is None:
                    return False
            place = row[first]
            if (
                row[first + part - 1] - place == part - 1
                and place > PARENT
                and row[first : first + part] == counting(place, part)
            ):
                view = _VBLOCK if part == VBLOCK_BLOCKS and not at else scratch[at : at + (part << 12)]
                if not read_run(view, place, part):
                    return False
                at += part << 12
            else:
                if not self._gather_scattered(row, block_no, part, at):
                    return False
                at += part << 12
            block_no += part
            count -= part
        return True

    def _gather_scattered(self, row: "array[int]", block_no: int, count: int, at: int) -> bool:
        """As ``_gather_nowait``, of a part of one row whose blocks lie here and there."""
        files, segments, groups = self._files, self._segments, self.groups
        index = block_no & 255
        end, slot = index + count, (at >> 12) - index
        while index < end:
            place = row[index]
            if place > PARENT and (index + 1 == end or row[index + 1] != place + 1):
                vector = _VECTORS[slot + index]
                file, segment = files.get(place >> 16), segments.get(place >> 8)
                if file is None or segment is None:
                    if not groups.read_run_nowait(vector[0], place, 1):
                        return False
                else:
                    position = place & POSITION_MASK
                    try:
                        if _preadv(file.fd, vector, position << 12, _NOWAIT) != BLOCK_BYTES:
                            return False
                    except OSError:  # as GroupFile.read_nowait
                        return False
                    if _hash(vector[0], file.seed + position) & 0xFFFFFFFF != segment[place & 255]:
                        return False
                index += 1
                continue
            _, length, _ = next(runs(row, index, end - index))
            view = scratch[slot + index << 12 : slot + index + length << 12]
            if place > PARENT:
                if not groups.read_run_nowait(view, place, length):
                    return False
            elif place == HOLE:
                view[:] = _ZEROS[: length << 12]
            elif not self.ancestry.read_nowait(view, (block_no & ~255) + index, length):
                return False
            index += length
        return True

    def row_nowait(self, vblock: int) -> "array[int] | None":
        """The head's row of a vblock, from memory or the index's memory; None if only a disk knows."""
        row = self.rows.get(vblock)
        if row is not None:
            return row
        found = self._index_row_nowait(vblock)
        if found is None:
            return None
        self.rows[vblock] = found
        self._cache.admit(self.rows, vblock, self.pinned)
        return found

    def install_row(self, vblock: int, row: "array[int] | None") -> None:
        """Keeps a row that a thread fetched, unless one came meanwhile. No commit ended since the fetch began."""
        if vblock in self.rows:
            return
        self.rows[vblock] = self.ancestry.absent_row(vblock, self.overlap) if row is None else row
        self._cache.admit(self.rows, vblock, self.pinned)

    def note_moved(self, vdisk: int, moved: Moved) -> None:
        """Compaction has moved blocks of a vdisk: this one, or one it may read through. The index has it already."""
        if vdisk == self.vdisk:
            for vblock, places in moved.items():
                row = self.rows.get(vblock)
                if row is not None:
                    row[:] = array("Q", [places.get(place, place) for place in row])
        self.ancestry.note_moved(vdisk, moved)

    def reads(self) -> set[int]:
        """The vdisks of which it reads rows: itself, and its ancestors."""
        return {self.vdisk, *self.ancestry.vdisks()}

    def note_replaced(self, vdisk: int) -> None:
        """The index of a vdisk is another one: of this one, if it is another node's, or of an ancestor."""
        self.ancestry.note_replaced(vdisk)

    def fetch_row(self, vblock: int) -> "array[int] | None":
        """Thread: the row as the index has it; None if it has none."""
        return self.index.row_at(self.vdisk, vblock, _NEWEST, rollbacks=self.rollbacks)

    def places_of(self, vdisk: int) -> Iterator[Sequence[int]]:
        """Every row in memory with places of a vdisk; the caller may await between two."""
        if vdisk == self.vdisk:
            yield from list(self.rows.values())
        yield from self.ancestry.places_of(vdisk)

    def _index_row_nowait(self, vblock: int) -> "array[int] | None":
        """The row from the index's memory; None if a disk must be asked."""
        raise NotImplementedError
