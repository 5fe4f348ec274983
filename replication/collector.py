"""Collection: space that no kept version reaches comes back. Mark and sweep, vdisk by vdisk, beside running guests.

    mark      rows that nobody sees are pruned, the blocks that the others name counted by group     (marking.py)
    compact   what lives in groups that are mostly garbage is moved                               (compaction.py)
    settle    no index and no checkpoint from the past can come to need what goes now              (log_floor.py)
    sweep     a second look, at every row in the index and in memory, after all reads that had begun before it have
              ended; groups that still nothing names are deleted, their checksums forgotten

What a crash leaves of a deleted vdisk goes too: directories that the catalog does not know.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from metadata.catalog import NEXT_ID_KEY, VDISK_PREFIX, decode_value, id_in_key
from metadata.errors import IndexDamaged, NoSpace, NotOwner, VdiskfsError
from metadata.ids import POSITION_BITS, VdiskId, is_compacted
from metadata.liveness import GroupUse, live_blocks, plan_compaction
from metadata.units import BLOCK_BYTES
from replication.commit import flush
from replication.compaction import Compaction
from replication.head import Head
from replication.log_floor import seal, settle
from replication.marking import mark, mark_stored
from replication.ownership import read_facts
from replication.pacing import Pace
from replication.pool import Pool
from replication.pool_directory import CHECKPOINT_PART
from replication.vdisks import Vdisks

log = logging.getLogger(__name__)

GARBAGE_LEFT = 0.1
"""Of what lives in a vdisk, may stay garbage: moving the rest would cost more than it gives back."""
GARBAGE_LEFT_WRITTEN = 0.2
"""The same while it is written: much of what would be moved is about to be overwritten."""
SEAL_SHARE = 0.2
"""Garbage in the open group, of what lives in the vdisk, that makes it worth beginning another."""
SEAL_BYTES_MIN = 4 << 20
"""And at least so much."""
MARK_SHARE, COMPACT_SHARE = 0.2, 0.7
"""Of the work on a vdisk, for whoever watches its progress."""
MOVE_BYTES_MAX = 1 << 30
"""Moved in one collection of a vdisk, before its empty groups go: so much room it takes at most."""
MOVE_SHARE_LIGHT, MOVE_BYTES_LIGHT = 0.1, 32 << 20
"""The same while it is written, of what lives, but at least so much: the copies take room before the old ones go."""

Progress = Callable[[Mapping[str, object]], None]


def _at_once() -> float:
    return 1.0


@dataclass(slots=True)
class Sums:
    """What a collection found and did; bytes are those on the pool's disk."""

    vdisks: int = 0
    pool_bytes: int = 0
    """Before it."""
    live_bytes: int = 0
    garbage_bytes: int = 0
    """In groups that are closed."""
    compacted_groups: int = 0
    moved_bytes: int = 0
    deleted_groups: int = 0
    freed_bytes: int = 0
    """By deleted groups, less what compaction wrote."""
    pruned_rows: int = 0
    failed: int = 0
    """Vdisks that could not be collected; the log says why."""


@dataclass(frozen=True, slots=True)
class _Survey:
    """The groups of a vdisk."""

    occupied: dict[int, int]
    """Bytes by group."""
    first_open: int
    """The log from here on is not collected."""

    def is_closed(self, group: int) -> bool:
        return is_compacted(group) or group < self.first_open

    def open_garbage_bytes(self, live: Mapping[int, int]) -> int:
        """What is garbage in the group that the log fills now, and cannot go before it fills another."""
        opened = [(group, size) for group, size in self.occupied.items() if not self.is_closed(group)]
        return sum(max(0, size - live.get(group, 0) * BLOCK_BYTES) for group, size in opened)

    def uses(self, live: Mapping[int, int]) -> list[GroupUse]:
        """The closed groups."""
        return [
            GroupUse(group, size, live.get(group, 0))
            for group, size in self.occupied.items()
            if self.is_closed(group)
        ]


class Collector:
    """One to a daemon. Its callers may be many: one at a time works on a vdisk."""

    def __init__(self, vdisks: Vdisks) -> None:
        self._vdisks = vdisks
        self._space = vdisks.workspace

    async def collect(
        self,
        progress: Progress,
        *,
        dry_run: bool = False,
        vdisks: Sequence[int] | None = None,
        strays: bool = False,
        share: Callable[[], float] = _at_once,
        lightly: bool = False,
    ) -> dict[str, int]:
        """Collects these vdisks, or all; returns the sums.

        Args:
            progress: told of vdisks and bytes.
            dry_run: only count what would be done.
            vdisks: ids; None: all, and what is left of deleted ones.
            strays: also what is left of deleted ones.
            share: of the time that the work may take, asked again and again.
            lightly: move only what is well worth it, and a little at a time.
        """

        pace, sums = Pace(self._space, share), Sums()
        wanted, left = (list(vdisks), []) if vdisks is not None and not strays else await self._wanted(vdisks)
        sizes = {vdisk: await self.occupied_bytes(vdisk) for vdisk in (*wanted, *left)}
        done, total = 0, sum(sizes.values())
        for number, vdisk in enumerate((*wanted, *left)):

            def tell(
                share: float = 0.0, *, done: int = done, number: int = number, size: int = sizes[vdisk]
            ) -> None:
                done += int(share * size)
                progress({"done": done, "total": total, "vdisks": number, "of": len(sizes)})

            tell()
            sums.vdisks += 1
            sums.pool_bytes += sizes[vdisk]
            if vdisk in left:
                await self._remove_stray(vdisk, sums, size=sizes[vdisk], dry_run=dry_run)
            else:
                await self._guarded(vdisk, _Work(sums, pace, tell, dry_run, lightly))
            done += sizes[vdisk]
        progress({"done": done, "total": total, "vdisks": len(sizes), "of": len(sizes)})
        return asdict(sums)

    async def _wanted(self, vdisks: Sequence[int] | None) -> tuple[list[int], list[int]]:
        """The vdisks to collect, and those of which something is left though they are deleted."""
        found = await self._space.wait_for(self._space.pool.vdisks)
        known, ids_end = await self._known()  # after the look at the pool: what it lacks was deleted before
        wanted = [vdisk for vdisk in (found if vdisks is None else vdisks) if vdisk in known]
        return wanted, [vdisk for vdisk in found if vdisk not in known and vdisk < ids_end]

    async def known(self) -> set[int]:
        """The catalog's vdisks, also those without a name."""
        return (await self._known())[0]

    async def _known(self) -> tuple[set[int], int]:
        """The catalog's vdisks; and the first id it has not given out: a later one is of a newer catalog than this."""
        numbers, _ = await self._space.catalog.read(NEXT_ID_KEY)
        end = decode_value(NEXT_ID_KEY, numbers[0].value) if numbers else 0
        rows, _ = await self._space.catalog.read(VDISK_PREFIX)
        return {id_in_key(row.key, VDISK_PREFIX) for row in rows}, end if isinstance(end, int) else 0

    async def occupied_bytes(self, vdisk: int) -> int:
        """What a vdisk's groups occupy on the pool's disk."""
        return sum((await self._space.wait_for(lambda: _occupied(self._space.pool, vdisk))).values())

    async def _remove_stray(self, vdisk: int, sums: Sums, *, size: int, dry_run: bool) -> None:
        sums.garbage_bytes += size
        if dry_run or vdisk in self._vdisks.heads:
            return
        log.info("removing what is left of a deleted vdisk vdisk=%d bytes=%d", vdisk, size)
        await self._space.wait_for(lambda: self._space.index.forget(vdisk))
        await self._space.wait_for(lambda: self._space.pool.remove_vdisk(vdisk))
        sums.freed_bytes += size

    async def _own_bytes(self, vdisk: int) -> int:
        return (await self._vdisks.stat(VdiskId(vdisk))).allocated_bytes

    async def _guarded(self, vdisk: int, work: "_Work") -> None:
        """One vdisk that cannot be collected does not stop the others."""
        if not self._vdisks.is_mine(vdisk) or self._vdisks.is_followed(vdisk):
            return
        try:
            sizes = await self._space.wait_for(lambda: _occupied(self._space.pool, vdisk))
            if len(sizes) < 2 and sum(sizes.values()) <= SEAL_BYTES_MIN:
                work.sums.live_bytes += await self._own_bytes(vdisk)
                return  # the open group of the log, and nothing to seal it for
            async with self._vdisks.using(VdiskId(vdisk)) as head, head.layout_lock:
                await _Collection(self._vdisks, head, work).run()
        except IndexDamaged as exc:
            self._vdisks.start_over(exc)
        except VdiskfsError as exc:
            if vdisk in await self.known():  # else it was deleted meanwhile
                work.sums.failed += 1
                log.warning("a vdisk is not collected: %s vdisk=%d", exc, vdisk)


@dataclass(frozen=True, slots=True)
class _Work:
    """How one vdisk is collected."""

    sums: Sums
    pace: Pace
    tell: Callable[[float], None]
    """Which part of it is done."""
    dry_run: bool
    lightly: bool

    def garbage_bytes_max(self, live_bytes: int) -> int:
        """So much may stay."""
        return int(live_bytes * (GARBAGE_LEFT_WRITTEN if self.lightly else GARBAGE_LEFT))

    def plan(self, uses: list[GroupUse], live_bytes: int, *, room_bytes: int) -> list[int]:
        """The groups to compact, of which what lives fits into so much."""
        light = max(MOVE_BYTES_LIGHT, int(MOVE_SHARE_LIGHT * live_bytes))
        return plan_compaction(
            uses,
            garbage_bytes_max=self.garbage_bytes_max(live_bytes),
            move_bytes_max=light if self.lightly else MOVE_BYTES_MAX,
            room_bytes=room_bytes,
        )


class _Collection:
    """The collection of one vdisk, whose ``layout_lock`` is held."""

    def __init__(self, vdisks: Vdisks, head: Head, work: _Work) -> None:
        self._vdisks, self._head, self._work = vdisks, head, work
        self._pace, self._sums = work.pace, work.sums
        self._space, self._vdisk = vdisks.workspace, head.vdisk
        self._named: Counter[int] = Counter()
        """Blocks by group that the last look at the rows found."""

    async def run(self) -> None:
        """Mark, and unless only that is wanted, compact and sweep."""
        dry_run = self._work.dry_run
        await flush(self._head)
        survey, live = await self._look(prune=not dry_run)
        if not dry_run and survey.open_garbage_bytes(self._named) > max(SEAL_BYTES_MIN, SEAL_SHARE * live):
            await seal(self._head)
            survey, live = await self._look(prune=True)
        self._work.tell(MARK_SHARE)
        uses = survey.uses(self._named)
        self._sums.live_bytes += live
        self._sums.garbage_bytes += sum(use.garbage_bytes for use in uses)
        if dry_run:
            return
        known = {use.group for use in uses}
        while await self._round(survey, uses, live) and not self._work.lightly:
            survey, live = await self._look(prune=True)
            uses = [
                use for use in survey.uses(self._named) if use.group in known
            ]  # not what guests add meanwhile
        await self._forget_segments()

    async def _round(self, survey: _Survey, uses: list[GroupUse], live_bytes: int) -> bool:
        """Moves as much as may be moved at once, and deletes; says whether another round is worth it."""
        freed_before = self._sums.freed_bytes
        dead = [use.group for use in uses if not use.live_blocks]
        chosen = await self._compact(uses, live_bytes=live_bytes)
        if dead or chosen:
            await self._sweep([*dead, *chosen], survey)
        left = [use for use in uses if use.live_blocks and use.group not in chosen]
        limit = self._work.garbage_bytes_max(live_bytes)
        return self._sums.freed_bytes > freed_before and sum(use.garbage_bytes for use in left) > limit

    async def _look(self, *, prune: bool) -> tuple[_Survey, int]:
        """The groups, and how many bytes live; ``_named`` says where."""
        survey = await self._survey()
        found = await mark(self._vdisks, self._vdisk, self._pace, prune=prune)
        self._named = found.live
        self._sums.pruned_rows += found.pruned
        return survey, live_blocks(found.live) * BLOCK_BYTES

    async def _compact(self, uses: list[GroupUse], *, live_bytes: int) -> list[int]:
        """Moves what is worth it; returns the groups that then may be empty."""
        disk = await self._vdisks.statfs()
        room_bytes = (disk.f_bavail - disk.f_blocks // CHECKPOINT_PART) * disk.f_frsize
        chosen = self._work.plan(uses, live_bytes, room_bytes=room_bytes)
        if not chosen:
            return []
        compaction = Compaction(self._head, set(chosen), self._pace)
        blocks = sum(use.live_blocks for use in uses if use.group in chosen)

        def tell(moved: int) -> None:
            self._work.tell(MARK_SHARE + COMPACT_SHARE * min(1.0, moved / blocks))

        try:
            await compaction.run(tell)
            self._sums.compacted_groups += len(chosen)
        except NoSpace as exc:  # what is empty by now goes, and makes room for the next time
            log.warning("compaction ends early: %s vdisk=%d", exc, self._vdisk)
        finally:
            self._sums.moved_bytes += compaction.moved_blocks * BLOCK_BYTES
            self._sums.freed_bytes -= compaction.moved_blocks * BLOCK_BYTES
        return chosen

    async def _survey(self) -> _Survey:
        def look() -> _Survey:
            state = self._space.index.state(self._vdisk)
            first_open = state.record_place >> POSITION_BITS if state is not None else 0
            return _Survey(_occupied(self._space.pool, self._vdisk), first_open)

        found, log_file = await self._space.wait_for(look), self._head.log.file
        if log_file is not None and log_file.group in found.occupied:  # what is preallocated is no garbage
            written = self._head.log.tail * BLOCK_BYTES
            found.occupied[log_file.group] = min(found.occupied[log_file.group], written)
        return found

    async def _sweep(self, dead: list[int], survey: _Survey) -> None:
        settled = await settle(self._head)
        await self._space.moves.wait_past()
        self._named = (await mark_stored(self._vdisks, self._vdisk, self._pace)).live
        doomed = {group for group in dead if settled.may_delete(group) and not self._named[group]}
        doomed -= await self._space.moves.still_named(self._vdisk, doomed)
        facts = await read_facts(self._space.catalog, self._vdisk)
        if facts.node != self._space.node or facts.floor != settled.floor:
            raise NotOwner(f"somebody else collects this vdisk vdisk={self._vdisk} node={facts.node}")
        for group in sorted(doomed):
            await self._delete(group, survey.occupied[group])

    async def _delete(self, group: int, occupied_bytes: int) -> None:
        pool, vdisk = self._space.pool, self._vdisk
        if self._head.gone or self._vdisks.is_followed(vdisk) or not pool.forget_group(vdisk, group):
            return
        await self._space.wait_for(lambda: pool.remove_group(vdisk, group))
        self._head.groups.files.pop(group, None)
        self._sums.deleted_groups += 1
        self._sums.freed_bytes += occupied_bytes

    async def _forget_segments(self) -> None:
        """Checksums of groups that are gone; not of one that is missing though rows name it."""
        index, pool, vdisk = self._space.index, self._space.pool, self._vdisk

        def forget() -> None:
            known = index.segment_groups(vdisk)
            there = set(
                pool.groups(vdisk)
            )  # after the look at the index: a group is there before its checksums
            for group in known:
                if group not in there and not self._named[group]:
                    index.drop_segments(vdisk, group)

        await self._pace.run(forget)


def _occupied(pool: Pool, vdisk: int) -> dict[int, int]:
    """Thread: bytes on the pool's disk by group."""
    return {group: pool.group_bytes(vdisk, group) for group in pool.groups(vdisk)}
