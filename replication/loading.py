"""Bringing a vdisk's index to the end of its log, and finding its ancestors: before anything of it is read.

An ancestor needs no head: its rows up to the version that is kept are in the index and never change. So one look
at each ancestor's log is enough for as long as this node owns it, and a thousand generations cost one pass, without
recursion; what comes back from another owner may have got versions there, and is looked at again. Group sets and
generations are shared by all descendants that are in memory.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from weakref import WeakValueDictionary, finalize

import trio

from metadata.ids import HOLE
from replication.ancestry import Ancestry, Generation
from replication.family import Family
from replication.groups import GroupSet
from replication.ownership import VdiskFacts, read_facts
from replication.recovery import Lineage, Recovered, recover
from replication.view import View
from replication.workspace import Workspace

log = logging.getLogger(__name__)

TELL_FROM_RECORDS = 1024
"""A replay of more commits than this says how far it is."""


Rebuilt = Callable[[int, Callable[[int], bool]], None]
"""Given a vdisk, and what says whether the index that was built anew has a version."""


class Loading:
    """One to a daemon; owned by ``Vdisks``.

    Args:
        workspace: what the vdisks share.
        family: the snapshot tree.
        hold: sees to a vdisk that another node owns, and says whether it is one.
        reign: the epoch under which this node owns a vdisk, as far as it knows.
    """

    def __init__(
        self,
        workspace: Workspace,
        family: Family,
        hold: Callable[[int], Awaitable[bool]],
        reign: Callable[[int], int],
    ) -> None:
        self._workspace, self._family, self._hold, self._reign = workspace, family, hold, reign
        self._under_way: dict[int, trio.Event] = {}
        self._ready: dict[int, int] = {}
        """Vdisks whose kept versions are in the index, and the reigns for which that holds."""
        self.rebuilt: list[Rebuilt] = []
        """Told when an index was built anew."""
        self._group_sets: WeakValueDictionary[int, GroupSet] = WeakValueDictionary()
        self._generations: WeakValueDictionary[tuple[int, int], Generation] = WeakValueDictionary()

    @asynccontextmanager
    async def alone_at(self, vdisk: int) -> AsyncIterator[None]:
        """Nobody else loads this vdisk, or applies its log to the index, meanwhile."""
        while vdisk in self._under_way:
            await self._under_way[vdisk].wait()
        done = self._under_way[vdisk] = trio.Event()
        try:
            yield
        finally:
            del self._under_way[vdisk]
            done.set()

    def groups(self, vdisk: int) -> GroupSet:
        """The vdisk's groups, one set for all who read them."""
        found = self._group_sets.get(vdisk)
        if found is None:
            space = self._workspace
            found = GroupSet(vdisk, space.pool, index=space.index, cache=space.segment_cache)
            self._group_sets[vdisk] = found
            finalize(found, space.pool.abandon, found.files).atexit = False
        return found

    def forget(self, vdisk: int) -> None:
        """The vdisk is gone."""
        self._ready.pop(vdisk, None)

    def lineage(self, vdisk: int, facts: VdiskFacts) -> Lineage:
        """What recovery needs to know of a vdisk."""
        resting, descent = facts.resting, self._family.descent(vdisk)
        return Lineage(
            vdisk,
            absent=descent.absent,
            kept=self._family.kept_versions(vdisk),
            oldest_read=min(self._family.pinned_versions(vdisk), default=(1 << 64) - 1),
            durable_version=max(self._family.newest_named(vdisk), resting.version if resting else 0),
            floor=facts.floor,
            rollbacks=descent.rollbacks,
            size=descent.size,
            overlap=descent.overlap,
        )

    async def recovered(self, vdisk: int, facts: VdiskFacts) -> Recovered:
        """The index's state, brought up to the log's end if it is not there. Inside ``alone_at``."""
        lineage, resting, space = self.lineage(vdisk, facts), facts.resting, self._workspace
        reign = self._reign(vdisk)

        def find() -> Recovered:
            space.pool.count_staged(vdisk)
            space.pool.fence(vdisk, facts.epoch)
            if resting is not None:
                known = space.index.state(vdisk)
                current = known is not None and known.collected >= facts.floor.collected
                if known is not None and current and known.record_check == resting.record_check:
                    return Recovered(known, known.version)
            return recover(space.pool, space.index, lineage, progress=tell)

        def tell(done: int, total: int) -> None:
            if total > TELL_FROM_RECORDS:
                log.info("building the index again: %d of %d commits vdisk=%d", done, total, vdisk)

        if not facts.epoch:  # nobody ever wrote it
            recovered = Recovered(lineage.beginning(), 0)
        else:
            recovered = await space.wait_for(find)
            if recovered.is_rebuilt:
                self.note_rebuilt(vdisk, recovered)
        self._ready[vdisk] = reign
        return recovered

    def note_rebuilt(self, vdisk: int, recovered: Recovered, *, kept: Iterable[int] = ()) -> None:
        """What only this node's readers kept may not be in an index that was built anew: it is lost to them."""
        known = set(self._family.kept_versions(vdisk)) - self._family.pinned_versions(vdisk) | set(kept)

        def has(version: int) -> bool:
            return version >= recovered.start or version in known

        for reader in list(self._workspace.moves.readers):
            if isinstance(reader, View) and reader.vdisk == vdisk and not has(reader.version):
                reader.lost = True
        for listener in self.rebuilt:
            listener(vdisk, has)

    def _is_ready(self, vdisk: int) -> bool:
        return self._ready.get(vdisk) == self._reign(vdisk)

    async def prepare(self, vdisk: int) -> None:
        """Sees to it that all kept versions of a vdisk are in the index."""
        if await self._hold(vdisk) or self._is_ready(vdisk):
            return
        facts = await read_facts(self._workspace.catalog, vdisk)
        async with self.alone_at(vdisk):
            if not self._is_ready(vdisk):
                await self.recovered(vdisk, facts)

    async def ancestry(self, vdisk: int, version: int | None = None) -> Ancestry:
        """The generations above a vdisk at a version (None: above its head), their rows in this node's index."""
        descent, generations = self._family.descent(vdisk), []
        parent, overlap = descent.parent_at(version), descent.parent_overlap
        absent = HOLE if parent is None else descent.absent
        while parent is not None:
            await self.prepare(parent[0])
            descent = self._family.descent(parent[0])
            generations.append(self._generation(parent, overlap))
            parent, overlap = descent.parent_at(parent[1]), descent.parent_overlap
        space = self._workspace
        return Ancestry(space.index, space.row_cache, absent=absent, generations=generations)

    def _generation(self, parent: tuple[int, int], overlap: int) -> Generation:
        found = self._generations.get(parent)
        if found is None:
            vdisk, version = parent
            descent = self._family.descent(vdisk)
            found = Generation(
                self.groups(vdisk), version, descent.absent, overlap=overlap, rollbacks=descent.rollbacks
            )
            self._generations[parent] = found
        return found
