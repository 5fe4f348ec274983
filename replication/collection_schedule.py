"""When which vdisk is collected, without being asked: what is written a lot often, what rests now and then.

A vdisk is due when enough of what it occupies is garbage (metadata/liveness.py). The work waits until guests pause, for
a thread that computes takes the interpreter from the loop that serves them. It does not wait while the pool fills, nor
where a vdisk's garbage has grown beyond what a burst of writing may leave; then writes wait for it, in the end.
"""

import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import trio

from metadata.errors import VdiskfsError
from metadata.ids import VdiskId, number_of
from metadata.liveness import Space, is_due, pressure
from metadata.units import BLOCK_BYTES, GROUP_BLOCKS
from replication.collector import Collector
from replication.head import Head
from replication.vdisks import Vdisks

log = logging.getLogger(__name__)

TICK_S = 0.5
RESTING_TICKS = 300
"""Between two looks at the vdisks that nobody uses."""
FREE_PERCENT_MIN = 10
"""A pool with less is filling: what it holds is collected sooner."""
PROGRESS_BYTES = 4 << 20
"""Freed by one collection, that makes another one worth it if the vdisk is due still."""
SHARE_BESIDE_GUESTS = 0.1
SHARE_ALONE = 0.5
SHARES_URGENT = ((0.4, 1.0), (0.3, 0.4))
"""(Pressure, share): garbage grows faster than it is collected."""
SHARE_FILLING = 0.3
PRESSURE_STARTING = 0.2
"""Makes a collection begin though guests are busy."""
PRESSURE_HOLDING = 0.45
"""Makes writes that need more room wait for collection."""
BUSY_SHARE = 0.1
"""Of the time that the loop computes, from which on guests are busy."""


class LoopUse:
    """How busy guests keep the loop. Called on it."""

    def __init__(self) -> None:
        self._at_s, self._used_s = trio.current_time(), time.thread_time()

    def is_busy(self) -> bool:
        """Whether the loop has computed much since the last look."""
        at_s, used_s = trio.current_time(), time.thread_time()
        is_busy = used_s - self._used_s > BUSY_SHARE * (at_s - self._at_s)
        self._at_s, self._used_s = at_s, used_s
        return is_busy


def _untold(_: Mapping[str, object]) -> None:
    pass


@dataclass(frozen=True, slots=True)
class _Look:
    """What one look at the node and its pool found."""

    filling: bool
    """The pool has little space."""
    busy: bool
    """Guests are."""
    free_bytes: int


class CollectionSchedule:
    """One to a daemon; ``run`` is its task.

    Args:
        collector: does the work.
        vdisks: whose.
        is_busy: whether guests have been busy since it was last asked.
    """

    def __init__(self, collector: Collector, vdisks: Vdisks, is_busy: Callable[[], bool]) -> None:
        self._collector, self._vdisks, self._is_busy = collector, vdisks, is_busy
        self._last: dict[int, Space] = {}
        """What the last collection left."""
        self._looked: dict[int, tuple[int, tuple[int, ...]]] = {}
        """Version and readers when a vdisk was last found not to be due."""
        self._ticks = 1  # a mount begins with other work
        self._was_filling = False

    async def run(self) -> None:
        """Looks, and collects what is due, for as long as it runs."""
        while True:
            await trio.sleep(TICK_S)
            try:
                await self.tick()
            except VdiskfsError as exc:
                log.warning("collection: %s", exc)

    async def tick(self) -> None:
        """One look, and the collections it asks for."""
        pool = await self._vdisks.statfs()
        filling = pool.f_bavail * 100 < pool.f_blocks * FREE_PERCENT_MIN
        everything = self._ticks % RESTING_TICKS == 0 or (filling and not self._was_filling)
        self._ticks += 1
        if filling != self._was_filling:
            self._looked.clear()
            self._was_filling = filling
            if filling:
                log.warning("the pool is filling: collecting what is garbage free_bytes=%d", free_bytes(pool))
        wanted = await self._collector.known() if everything else set(self._vdisks.heads)
        look = _Look(filling, self._is_busy(), free_bytes(pool))
        for vdisk in sorted(wanted):
            try:
                await self._tend(vdisk, look)
            except VdiskfsError as exc:
                log.warning("collection: %s vdisk=%d", exc, vdisk)
        if everything:
            await self._collector.collect(_untold, vdisks=(), strays=True)
            self._forget_unknown(wanted)

    async def _tend(self, vdisk: int, look: "_Look") -> None:
        stat = self._vdisks.stat_nowait(VdiskId(vdisk))
        readers = self._vdisks.family.read_versions(vdisk)
        if not self._vdisks.is_mine(vdisk) or self._vdisks.is_followed(vdisk):
            return
        if stat is None or self._looked.get(vdisk) == (stat.version, readers):
            return
        live_bytes = 0 if self._vdisks.family.descent(vdisk).nameless else stat.allocated_bytes
        now = Space(await self._occupied_bytes(vdisk), live_bytes, readers)
        if not is_due(now, self._last.get(vdisk), filling=look.filling):
            self._looked[vdisk] = stat.version, readers
            return
        urgency = self._urgency(now, vdisk, look)
        if look.busy and not look.filling and urgency() < PRESSURE_STARTING:
            return
        head = self._vdisks.heads.get(vdisk)
        try:
            share = self._share(urgency, look, head)
            await self._collect(vdisk, readers, share=share, lightly=not look.filling)
        finally:
            if head is not None and head.room_awaits is not None:
                head.room_awaits.set()
                head.room_awaits = None

    async def _collect(
        self, vdisk: int, readers: tuple[int, ...], *, share: Callable[[], float], lightly: bool
    ) -> None:
        done = await self._collector.collect(_untold, vdisks=(vdisk,), share=share, lightly=lightly)
        # One that gave something back may give more at once; else it takes new garbage.
        left_bytes = 0 if done["freed_bytes"] > PROGRESS_BYTES else await self._occupied_bytes(vdisk)
        self._last[vdisk] = Space(left_bytes, done["live_bytes"], readers)
        if done["freed_bytes"] > 0:
            log.info("collected vdisk=%d freed_bytes=%d", vdisk, done["freed_bytes"])

    async def _occupied_bytes(self, vdisk: int) -> int:
        """As the collector has it, without what the log has preallocated."""
        occupied_bytes, head = await self._collector.occupied_bytes(vdisk), self._vdisks.heads.get(vdisk)
        ahead = 0 if head is None or head.log.file is None else head.log.file.allocated_blocks - head.log.tail
        return max(0, occupied_bytes - max(0, ahead) * BLOCK_BYTES)

    def _urgency(self, space: Space, vdisk: int, look: "_Look") -> Callable[[], float]:
        """How much of a vdisk's garbage cannot wait, now and as more is written."""
        written_before, last = self._written_bytes(vdisk), self._last.get(vdisk)
        live_bytes = max(space.live_bytes, last.live_bytes if last is not None and space.readers else 0)
        is_known = last is not None or not space.readers  # else nobody can tell what kept versions need

        def urgency() -> float:
            occupied_bytes = space.occupied_bytes + self._written_bytes(vdisk) - written_before
            return (
                pressure(Space(occupied_bytes, live_bytes), free_bytes=look.free_bytes) if is_known else 0.0
            )

        return urgency

    def _share(self, urgency: Callable[[], float], look: "_Look", head: Head | None) -> Callable[[], float]:
        """Of the time, that a collection may take; lets writes wait for it if even all of it is too little."""

        def share() -> float:
            if not self._vdisks.handles:
                return SHARE_ALONE
            pressing = urgency()
            if pressing > PRESSURE_HOLDING and head is not None and head.room_awaits is None:
                head.room_awaits = trio.Event()
            urgent = max(
                (part for limit, part in SHARES_URGENT if pressing > limit), default=SHARE_BESIDE_GUESTS
            )
            return max(urgent, SHARE_FILLING if look.filling else 0.0)

        return share

    def _written_bytes(self, vdisk: int) -> int:
        """Where a vdisk's log is, in bytes from its epoch's beginning."""
        head = self._vdisks.heads.get(vdisk)
        file = head.log.file if head is not None else None
        if head is None or file is None:
            return 0
        return (number_of(file.group) * GROUP_BLOCKS + head.log.tail) * BLOCK_BYTES

    def _forget_unknown(self, known: set[int]) -> None:
        for vdisk in self._last.keys() - known:
            del self._last[vdisk]
        for vdisk in self._looked.keys() - known:
            del self._looked[vdisk]


def free_bytes(pool: os.statvfs_result) -> int:
    """What is left for whoever writes."""
    return pool.f_bavail * pool.f_frsize
