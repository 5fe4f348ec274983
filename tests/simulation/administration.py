"""Random verbs: an administrator on each node makes snapshots and clones, reads, rolls back, deletes, collects.

What they must keep to is noted: a snapshot, and a clone as it begins, is the vdisk of one moment of the call; it never
changes; nobody's data suffers from what is deleted or collected.
"""

import errno
import os
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from metadata.catalog import Change, Row, decode_value, encode_value, snap_key, vdisk_key
from metadata.descent import read_descent
from metadata.errors import Conflict, VdiskfsError
from metadata.ids import VdiskId
from replication.collector import Collector
from replication.snapshots import Snapshots, vdisk_record
from replication.vdisks import Vdisks
from tests.simulation.disks import Disk, Kept, Values
from tests.simulation.files import NodeFiles
from tests.simulation.histories import History, Moment
from tests.simulation.simulated_threads import pass_time
from tests.simulation.workload import REFUSALS, content_of
from tests.simulation.world import World

VERBS = ("snapshot", "clone", "clone of snapshot", "look", "remove", "roll back", "delete", "collect")
WEIGHTS = (0, 1, 1, 3)
DISKS_MAX = 5
PAUSES_S = (0.3, 1.0, 4.0)
"""Between two verbs, at most."""
QUIET_S = 3.0
"""So long it is waited for the users of a vdisk to be done."""
TRIES = 5
REFUSED_VERBS = (*REFUSALS, errno.ENOENT, errno.EEXIST, Conflict.number)


class Estate:
    """All vdisks and snapshots of a world, and what was seen to be wrong with them."""

    def __init__(self, world: World, values: Values) -> None:
        self.world, self.values = world, values
        self.disks: list[Disk] = []
        self.kept: list[Kept] = []
        self.failures: list[str] = []
        self.done = 0
        self.refused = 0

    def open_disks(self) -> list[Disk]:
        """Those that clients may use."""
        return [disk for disk in self.disks if disk.is_open]

    def note(self, kept: Kept, content: dict[int, int]) -> None:
        """A snapshot was read."""
        if kept.content is None:
            kept.content = content
            what = f"snapshot {kept.name}"
            kept.history.moments.append(Moment(what, kept.begin, kept.end, content))
        elif content != kept.content:
            self.failures.append(
                f"vdisk {kept.disk.number}: snapshot {kept.name} was {kept.content}, is {content}"
            )

    def violations(self) -> list[str]:
        """What no promise allows."""
        return self.failures + self._left() + [line for disk in self.disks for line in disk.violations()]

    def _left(self) -> list[str]:
        """Of vdisks that are deleted nothing is there, unless a child reads it."""
        found, pool = [], os.path.join(self.world.folder, "pool", "vdisks")
        for disk in self.disks:
            row = self.world.catalog._rows.get(vdisk_key(disk.number))
            if disk.is_gone and row is not None and not read_descent(_decoded(row)).nameless:
                found.append(f"vdisk {disk.number} is deleted, and has a row in the catalog")
            folder = os.path.join(pool, f"{disk.number & 0xFF:02x}", f"{disk.number:016x}")
            if disk.is_gone and row is None and os.path.isdir(folder):
                found.append(f"vdisk {disk.number} is deleted, and has data in the pool")
        return found


def _decoded(row: Row) -> Mapping[str, Any]:
    value = decode_value(row.key, row.value)
    assert isinstance(value, Mapping)
    return value


class Administrator:
    """One to a life of a node."""

    def __init__(self, estate: Estate, name: str, chance: random.Random) -> None:
        self._estate, self._name, self._chance = estate, name, chance
        self._world, self._values = estate.world, estate.values
        self._vdisks: Vdisks = self._world.vdisks(name)
        self._snapshots = Snapshots(self._vdisks, clock_ns=lambda: int(trio.current_time() * 1e9))
        self._files = NodeFiles(self._world, name)
        self._pause_s = chance.choice(PAUSES_S)
        self._kinds = [verb for verb in VERBS for _ in range(chance.choice(WEIGHTS))] or ["collect"]

    async def work(self, is_over: Callable[[], bool]) -> None:
        """One verb after the other."""
        while not is_over():
            await pass_time(self._chance.random() * self._pause_s)
            disks = self._estate.open_disks()
            if disks and not is_over():
                await self._tried(self._chance.choice(disks))

    async def _tried(self, disk: Disk) -> None:
        await self._world.rig(self._name).resumed.wait()
        try:
            await self._do(disk)
            self._estate.done += 1
        except VdiskfsError as exc:
            if exc.number not in REFUSED_VERBS:
                raise
            self._estate.refused += 1

    async def _do(self, disk: Disk) -> None:
        verb = self._chance.choice(self._kinds)
        kept = [each for each in self._estate.kept if not each.is_removed and not each.disk.is_gone]
        match verb:
            case "look" if kept:
                await self.look(self._chance.choice(kept))
            case "collect":
                await self._collect(disk)
            case _ if not await self._is_owner(disk):
                return
            case "snapshot":
                await self._snapshot(disk)
            case "clone" if len(self._estate.disks) < DISKS_MAX:
                await self._clone(disk, None)
            case "clone of snapshot" | "remove" | "roll back":
                mine = [each for each in kept if each.disk is disk and each.content is not None]
                if mine:
                    await self._do_with(verb, self._chance.choice(mine))
            case "delete" if len(self._estate.open_disks()) > 1:
                await self._alone(disk, self._delete)

    async def _do_with(self, verb: str, kept: Kept) -> None:
        if verb == "remove":
            self._world.note(f"{self._name} removes {kept.name}")
            kept.is_removed = True
            await self._snapshots.remove(kept.disk.number, kept.name)
        elif verb == "roll back":
            await self._alone(kept.disk, lambda disk: self._roll_back(disk, kept))
        elif len(self._estate.disks) < DISKS_MAX:
            await self._clone(kept.disk, kept)

    async def _is_owner(self, disk: Disk) -> bool:
        company = self._vdisks.company
        assert company is not None
        await self._files.find_name(disk.number)
        owner = await company.transfers.acquire(disk.number)
        return owner.node == self._name

    # ---- snapshots

    async def _snapshot(self, disk: Disk) -> None:
        number, begin, history = self._values.next_number(), trio.current_time(), disk.history
        name = f"s{number}"
        await self._snapshots.create([(VdiskId(disk.number), name, number)])
        kept = Kept(disk, name, number, begin, end=trio.current_time(), history=history)
        self._world.note(f"{self._name} has made {name} of {disk.number}")
        self._estate.kept.append(kept)
        await self.look(kept)

    async def look(self, kept: Kept) -> None:
        """Reads a snapshot, which must be what it was."""
        kept.disk.users += 1
        try:
            handle = await self._files.open_version(kept.number)
            try:
                self._estate.note(kept, await content_of(self._files, handle))
            finally:
                await self._files.close(handle)
        finally:
            kept.disk.users -= 1

    async def _roll_back(self, disk: Disk, kept: Kept) -> None:
        number, begin, history = self._values.next_number(), trio.current_time(), disk.history
        name, content = f"r{number}", kept.content
        assert content is not None
        try:
            await self._snapshots.rollback(VdiskId(disk.number), kept.name, keep_as=(name, number))
        except BaseException:
            self._world.untold[disk.number] = self._world.catalog._history.revision
            raise
        finally:
            if (
                snap_key(disk.number, name) in self._world.catalog._rows
            ):  # then it has happened, whoever says what
                self._world.note(f"{self._name} has rolled {disk.number} back to {kept.name}")
                self._estate.kept.append(
                    Kept(disk, name, number, begin, end=trio.current_time(), history=history)
                )
                disk.roll_back(content)

    # ---- vdisks

    async def _clone(self, disk: Disk, kept: Kept | None) -> None:
        number, begin, history = self._values.next_number(), trio.current_time(), disk.history
        async with self._snapshots.origin(VdiskId(disk.number), kept.name if kept else None) as origin:
            put = (vdisk_key(number), encode_value(vdisk_record(origin)))
            compares = (*origin.compares, (put[0], 0))
            change = Change(compares=compares, puts=(put,))
            self._world.born[number] = await self._vdisks.workspace.catalog.transact(change)
            self._snapshots.note_clone(number, origin)
        end = trio.current_time()
        self._world.note(f"{self._name} has cloned {disk.number} to {number}")
        content = await self._learned(number)
        if content is None:
            return  # nobody uses it
        if kept is None:
            history.moments.append(Moment(f"clone {number}", begin, end, content))
        elif content != kept.content:
            self._estate.failures.append(
                f"vdisk {number}: a clone of {kept.name}, {kept.content}, is {content}"
            )
        self._estate.disks.append(Disk(number, History(initial=content)))

    async def _learned(self, number: int) -> dict[int, int] | None:
        """What a new clone holds, which nobody else knows of."""
        for _ in range(TRIES):
            try:
                handle = await self._files.open(number, os.O_RDONLY)
                try:
                    return await content_of(self._files, handle)
                finally:
                    await self._files.close(handle)
            except VdiskfsError:
                await pass_time(1.0)
        return None

    async def _alone(self, disk: Disk, deed: Callable[[Disk], Awaitable[None]]) -> None:
        """Does something to a vdisk that nobody uses; and nobody begins to."""
        disk.is_open = False
        try:
            with trio.move_on_after(QUIET_S):
                while disk.users:
                    await pass_time(0.1)
            if not disk.users and disk.is_known and await self._is_owner(disk):
                await deed(disk)
        finally:
            disk.is_open = disk.is_known and not disk.is_gone

    async def _delete(self, disk: Disk) -> None:
        self._world.note(f"{self._name} deletes {disk.number}")
        disk.is_known = False
        await self._vdisks.forget(VdiskId(disk.number))
        disk.is_gone = True
        self._world.note(f"{self._name} has deleted {disk.number}")

    async def _collect(self, disk: Disk) -> None:
        only = [disk.number] if self._chance.random() < 0.5 else None
        strays = self._chance.random() < 0.5
        sums = await Collector(self._vdisks).collect(lambda _: None, vdisks=only, strays=strays)
        self._world.note(
            f"{self._name} has collected: {sums['deleted_groups']} groups, {sums['pruned_rows']} rows"
        )

    # ---- at the end

    async def remove_strays(self) -> None:
        """What is left of vdisks that are deleted: whoever did that may have died, or not have heard that it is done."""
        await Collector(self._vdisks).collect(lambda _: None, vdisks=(), strays=True)

    async def look_at_all(self) -> None:
        """All is well: what is kept can be read."""
        for kept in self._estate.kept:
            if kept.is_removed or not kept.disk.is_known:
                continue
            try:
                await self.look(kept)
            except VdiskfsError as exc:
                self._estate.failures.append(
                    f"vdisk {kept.disk.number}: snapshot {kept.name} cannot be read on {self._name} "
                    f"though all is well: {exc}"
                )
