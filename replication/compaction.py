"""Compaction: what still lives in groups that are mostly garbage is moved to new groups, so that these can go.

    copy     blocks are read, verified, and written to a group of compaction: **durable** before anything names it
    repoint  in one batch the rows of all generations, and the checksums of the new places; no commit of the vdisk
             runs meanwhile, so none can put an older row back
    tell     rows in memory follow at once (moves.py): before anything else runs, and before a commit can begin

A block overwritten meanwhile has another place in its row, and stays as it was written. What does not verify stays where
it is, and with it its group. Groups of compaction hold data only: the log does not know them, recovery finds them
through rows. Each move begins a segment of checksums of its own, so that none is ever written twice.
"""

import logging
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from metadata.errors import NotFound, Unavailable, VdiskfsError
from metadata.ids import (
    COMPACTED_FROM,
    PARENT,
    POSITION_BITS,
    POSITION_MASK,
    group_id,
    is_compacted,
    number_of,
)
from metadata.rows import decode_row, encode_row, stored_places
from metadata.units import BLOCK_BYTES, GROUP_BLOCKS, SEGMENT_BLOCKS
from replication.commit import start_running
from replication.groups import block_checksums, read_checksums
from replication.head import Head
from replication.marking import ROWS_AT_ONCE, StoredRows
from replication.ownership import read_facts
from replication.pacing import Pace
from replication.pool import GroupFile

log = logging.getLogger(__name__)

MOVE_BLOCKS = 1024
"""Copied in one piece, 4 MiB, with one sync; it takes whole segments of checksums."""
SEGMENTS_KEPT = 4096
"""Checksums of sources in memory: 10 KiB each as numbers that are compared at once, 40 MiB."""
REPOINT_VBLOCKS = 32
"""Repointed in one batch: commits of the vdisk wait a millisecond."""

Living = list[tuple[int, list[int]]]
"""(vblock, places in order) to move."""


@dataclass(slots=True)
class _Copy:
    """Blocks that lie in a second place, durably."""

    moved: dict[int, dict[int, int]]
    """By vblock: old place to new one."""
    segments: dict[int, bytes]
    """The new places' checksums."""


class Compaction:
    """Empties some groups of a vdisk, whose ``layout_lock`` is held.

    Args:
        head: whose.
        groups: to empty; closed ones.
        pace: of the work.
    """

    def __init__(self, head: Head, groups: set[int], pace: Pace) -> None:
        self._head, self._groups, self._pace = head, groups, pace
        self._space, self._vdisk = head.workspace, head.vdisk
        self._sources: dict[int, GroupFile] = {}
        self._segments: dict[int, list[int]] = {}
        """Checksums of places that blocks come from."""
        self._target: GroupFile | None = None
        self._tail = 0
        self._number = 0
        self.moved_blocks = 0
        self.left_blocks = 0
        """Did not verify."""

    async def run(self, progress: Callable[[int], None]) -> None:
        """Moves what lives in the groups; tells how many blocks it has been through.

        Raises:
            NoSpace, Unavailable: some of it may have been moved; nothing is lost.
        """
        async with self._head.room_lock:
            await start_running(self._head)
        self._number = await self._first_number()
        try:
            await self._run(progress)
        finally:
            for file in self._sources.values():
                file.close()
            self._close_target()
        if self.left_blocks:
            log.error(
                "blocks that cannot be read stay where they are vdisk=%d blocks=%d",
                self._vdisk,
                self.left_blocks,
            )

    def _close_target(self) -> None:
        """What was not copied whole is no use; nothing names it."""
        file, self._target = self._target, None
        if file is None:
            return
        with suppress(VdiskfsError):  # else it is garbage for the next collection
            if self._tail:
                file.trim(self._tail)
            else:
                self._space.pool.remove_group(self._vdisk, file.group)
        file.close()

    async def _first_number(self) -> int:
        floor = (await read_facts(self._space.catalog, self._vdisk)).floor
        groups = await self._space.wait_for(lambda: self._space.pool.groups(self._vdisk))
        taken = [number_of(group) - COMPACTED_FROM + 1 for group in groups if is_compacted(group)]
        return max(taken + [floor.compacted])

    async def _run(self, progress: Callable[[int], None]) -> None:
        index = self._space.index
        living: Living = []
        following: int | None = 0
        while following is not None:
            rows, following = await self._pace.run(
                partial(index.stored_rows, self._vdisk, following, row_count=ROWS_AT_ONCE)
            )
            living += await self._pace.run(partial(self._find, rows))
            while living and (following is None or _block_count(living) >= MOVE_BLOCKS):
                piece, living = _split(living)
                await self._move(piece)
                progress(self.moved_blocks + self.left_blocks)

    def _find(self, rows: StoredRows) -> Living:
        """Thread: what these rows name of the groups."""
        groups, living = self._groups, []
        for vblock, stored in rows:
            places = {
                place
                for _, data in stored
                for place in stored_places(data)
                if place > PARENT and place >> POSITION_BITS in groups
            }
            if places:
                living.append((vblock, sorted(places)))
        return living

    async def _move(self, piece: Living) -> None:
        copy = await self._pace.run(lambda: self._copy(piece))
        vblocks = sorted(copy.moved)
        for at in range(0, len(vblocks), REPOINT_VBLOCKS):
            part = {vblock: copy.moved[vblock] for vblock in vblocks[at : at + REPOINT_VBLOCKS]}
            await self._repoint(part, copy.segments)
            await self._pace.rest()
        self.moved_blocks += sum(map(len, copy.moved.values()))

    # ---- copying, in a thread

    def _copy(self, piece: Living) -> _Copy:
        """Thread: the blocks again, in the group of compaction that is filled now."""
        data, wanted = self._read(piece)
        if not wanted:
            return _Copy({}, {})
        file, position = self._room(len(wanted))
        file.write(data, position)
        file.sync()
        self._tail = position + len(wanted)
        checksums = block_checksums(memoryview(data), file.seed + position)
        moved: dict[int, dict[int, int]] = {}
        for at, (vblock, place) in enumerate(wanted):
            moved.setdefault(vblock, {})[place] = file.base + position + at
        segments = {}
        for at in range(0, len(wanted), SEGMENT_BLOCKS):
            part = checksums[at : at + SEGMENT_BLOCKS]
            part.extend(array("I", bytes(4 * (SEGMENT_BLOCKS - len(part)))))
            segments[file.base + position + at >> 8] = part.tobytes()
        return _Copy(moved, segments)

    def _read(self, piece: Living) -> tuple[bytearray, list[tuple[int, int]]]:
        """Thread: the blocks that verify, and (vblock, place) of each."""
        data, found = bytearray(_block_count(piece) * BLOCK_BYTES), []
        whole, end = memoryview(data), 0
        for vblock, places in piece:
            for first, count in _stretches(places):
                bad = self._fill(whole[end : end + count * BLOCK_BYTES], first)
                found += [(vblock, first + at) for at in range(count) if at not in bad]
                for at in sorted(bad, reverse=True):  # close the gaps: others follow
                    gap, stop = end + at * BLOCK_BYTES, end + count * BLOCK_BYTES
                    whole[gap : stop - BLOCK_BYTES] = bytes(whole[gap + BLOCK_BYTES : stop])
                    count -= 1
                self.left_blocks += len(bad)
                end += count * BLOCK_BYTES
        whole.release()
        del data[end:]
        return data, found

    def _fill(self, view: memoryview, place: int) -> set[int]:
        """Thread: fills the view with consecutive blocks; returns which of them are not what was written."""
        count, position = len(view) // BLOCK_BYTES, place & POSITION_MASK
        wanted: list[int] = []
        while len(wanted) < count:
            at = place + len(wanted)
            wanted += self._segment(at >> 8)[at & 255 : (at & 255) + count - len(wanted)]
        try:
            file = self._source(place >> POSITION_BITS)
            found = read_checksums(file, view, position)
            if found.tolist() != wanted and file.renew(position, count):
                found = read_checksums(file, view, position)
        except (NotFound, Unavailable):
            return set(range(count))
        if found.tolist() == wanted:
            return set()
        return {at for at in range(count) if at >= len(found) or found[at] != wanted[at]}

    def _segment(self, key: int) -> list[int]:
        """Thread: the checksums of a segment; -1 where none are known."""
        segment = self._segments.get(key)
        if segment is None:
            known = self._space.index.segment(self._vdisk, key)
            segment = [-1] * SEGMENT_BLOCKS if known is None else known.tolist()
            if len(self._segments) >= SEGMENTS_KEPT:
                self._segments.clear()
            self._segments[key] = segment
        return segment

    def _source(self, group: int) -> GroupFile:
        file = self._sources.get(group)
        if file is None:
            file = self._sources[group] = self._space.pool.file(self._vdisk, group)
        file.ensure_open()
        return file

    def _room(self, count: int) -> tuple[GroupFile, int]:
        """Thread: where so many blocks go: behind the last ones, in a segment of their own."""
        position = -(-self._tail // SEGMENT_BLOCKS) * SEGMENT_BLOCKS
        if self._target is None or (position and position + count > GROUP_BLOCKS):
            if self._head.gone:
                raise Unavailable(f"the vdisk is deleted vdisk={self._vdisk}")
            self._close_target()
            group = group_id(self._head.log.epoch, COMPACTED_FROM + self._number)
            self._target = self._space.pool.create_group(self._vdisk, group)
            self._tail = position = 0
            self._number += 1
        return self._target, position

    # ---- repointing

    async def _repoint(self, moved: dict[int, dict[int, int]], segments: dict[int, bytes]) -> None:
        head, index = self._head, self._space.index

        def repoint() -> None:
            puts: dict[tuple[int, int], bytes] = {}
            for vblock, places in moved.items():
                rows, _ = index.stored_rows(self._vdisk, vblock, row_count=1)
                for found, stored in rows:
                    if found == vblock:
                        puts |= _repointed(vblock, stored, places)
            index.change_rows(self._vdisk, puts=puts, segments=segments)

        async with head.commit_pause():
            if head.gone:
                raise Unavailable(f"the vdisk is deleted vdisk={self._vdisk}")
            await self._pace.work(repoint)
            # No await from the index's change to here: whoever runs next finds memory and index agreed.
            self._space.moves.note(self._vdisk, moved)


def _repointed(
    vblock: int, stored: list[tuple[int, bytes]], places: dict[int, int]
) -> dict[tuple[int, int], bytes]:
    """A vblock's rows that name any of these places, with the new ones."""
    changed = {}
    for generation, data in stored:
        old = decode_row(data)
        new = array("Q", [places.get(place, place) for place in old])
        if new != old:
            changed[vblock, generation] = encode_row(new)
    return changed


def _block_count(living: Living) -> int:
    return sum(len(places) for _, places in living)


def _split(living: Living) -> tuple[Living, Living]:
    """The first MOVE_BLOCKS blocks, and the rest."""
    room = MOVE_BLOCKS
    for at, (vblock, places) in enumerate(living):
        if len(places) > room:
            taken = [*living[:at], (vblock, places[:room])] if room else living[:at]
            return taken, [(vblock, places[room:]), *living[at + 1 :]]
        room -= len(places)
    return living, []


def _stretches(places: Sequence[int]) -> list[tuple[int, int]]:
    """Places in order as (first, count) of those that follow each other in one group."""
    found: list[tuple[int, int]] = []
    for place in places:
        if found and place == sum(found[-1]) and place >> POSITION_BITS == found[-1][0] >> POSITION_BITS:
            found[-1] = found[-1][0], found[-1][1] + 1
        else:
            found.append((place, 1))
    return found
