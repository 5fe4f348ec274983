"""Snapshots: versions that get a name, lose it, or become where a clone begins.

A snapshot is a commit and a row in the catalog, whatever the vdisk's size. From the moment its commit begins the
version is kept (the vdisk's generation moves, so that later commits leave its rows alone) and pinned, until the
catalog names it. What a crash leaves is a version that nobody keeps: nothing.
"""

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace

from metadata.catalog import Change, vdisk_key
from metadata.errors import Busy, Conflict, Exists, NotFound
from metadata.ids import PARENT, VdiskId
from metadata.snapshots import Snapshot, check_snapshot_name, encode_snapshot
from replication.flattening import Progress, flatten
from replication.moments import Moment, pinned_moments, take_moments
from replication.rollback import NameNow, roll_back
from replication.vdisks import Vdisks


@dataclass(frozen=True, slots=True)
class CloneOrigin:
    """What a clone begins as: a vdisk at a version, pinned inside ``Snapshots.origin``.

    ``overlap`` is that vdisk's own at this version; ``compares``: rows of the catalog that this rests on.
    """

    vdisk: int
    version: int
    size: int
    overlap: int
    compares: tuple[tuple[bytes, int], ...] = ()

    @property
    def parent(self) -> tuple[int, int]:
        """As the clone's record names it."""
        return self.vdisk, self.version


def vdisk_record(origin: CloneOrigin) -> dict[str, object]:
    """The ``vdisk/`` row of a new clone (metadata/descent.py)."""
    return {
        "parent": [origin.vdisk, origin.version],
        "absent": PARENT,
        "overlap": origin.size,
        "parent_overlap": origin.overlap,
        "size": origin.size,
        "resting": None,
        "nameless": False,
    }


class Snapshots:
    """One to a daemon, beside its ``Vdisks``, in whose ``family`` the snapshots are.

    Args:
        vdisks: whose versions get names.
        clock_ns: when.
    """

    def __init__(self, vdisks: Vdisks, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._vdisks, self._family, self._clock_ns = vdisks, vdisks.family, clock_ns
        self._catalog = vdisks.workspace.catalog

    # ---- asking

    def list(self, vdisk: int) -> Sequence[Snapshot]:
        """A vdisk's snapshots, oldest first."""
        return self._family.snapshots(vdisk)

    def all(self) -> Iterable[Snapshot]:
        """Those of every vdisk."""
        return self._family.all_snapshots()

    def get(self, vdisk: int, name: str) -> Snapshot:
        """The snapshot of this name.

        Raises:
            NotFound: there is none.
        """
        return self._family.snapshot(vdisk, name)

    def by_id(self, snapshot_id: int) -> Snapshot | None:
        """The snapshot whose file has this inode number."""
        return self._family.by_id(snapshot_id)

    def user_count(self, snapshot: Snapshot) -> int:
        """Clones made of it (or of the same version), and open files that read it."""
        clones = self._family.children(snapshot.vdisk).values()
        return sum(version == snapshot.version for version in clones) + self._vdisks.handle_count(snapshot.id)

    # ---- creating

    async def create(self, targets: Sequence[tuple[VdiskId, str, int]]) -> Sequence[Snapshot]:
        """Names what these vdisks hold now, all at one moment, in one transaction; in the order asked.

        Args:
            targets: (vdisk, name, the snapshot's id: an unused inode number).

        Raises:
            InvalidRequest: a name that cannot be.
            Exists: a name that is taken.
            NotFound: no such vdisk.
            NoSpace, Unavailable, Corrupt: it could not be made durable; there is no snapshot.
        """
        for vdisk, name, _ in targets:
            check_snapshot_name(name)
            self._check_free(vdisk, name)
        async with self._moments([vdisk for vdisk, _, _ in targets]) as moments:
            at = {moment.vdisk: moment for moment in moments}
            now_ns = self._clock_ns()
            made = [NameNow(name, number, now_ns=now_ns)(at[vdisk]) for vdisk, name, number in targets]
            async with self._family.lock:
                for moment in moments:
                    await self._check_there(moment.vdisk)
                await self._put(made)
        return made

    @asynccontextmanager
    async def _moments(self, ids: Sequence[VdiskId]) -> AsyncIterator[Sequence[Moment]]:
        """One moment of these vdisks, pinned inside."""
        async with AsyncExitStack() as stack:
            using = [self._vdisks.using(vdisk) for vdisk in sorted(set(ids))]
            heads = [await stack.enter_async_context(head) for head in using]
            moments = await take_moments(heads, self._family)
            with pinned_moments(moments, self._family):
                yield moments

    def _check_free(self, vdisk: int, name: str) -> None:
        if self._family.has_snapshot(vdisk, name):
            raise Exists(f"there is a snapshot of this name already: choose another one name={name!r}")

    async def _check_there(self, vdisk: int) -> None:
        """Inside the family's lock: nobody has deleted it meanwhile."""
        rows, _ = await self._catalog.read(vdisk_key(vdisk))
        if not rows or self._family.descent(vdisk).nameless:
            raise NotFound(f"no such vdisk vdisk={vdisk}")

    async def _put(self, snapshots: Sequence[Snapshot], *, deletes: tuple[bytes, ...] = ()) -> None:
        """Inside the family's lock: new snapshots' rows, and what goes for them."""
        puts = tuple(encode_snapshot(snapshot) for snapshot in snapshots)
        compares = tuple((key, 0) for key, _ in puts)
        for vdisk in {snapshot.vdisk for snapshot in snapshots}:
            compares += await self._vdisks.workspace.as_owner(vdisk)
        try:
            await self._catalog.transact(Change(compares=compares, puts=puts, deletes=deletes))
        except Conflict:
            for snapshot in snapshots:
                self._check_free(snapshot.vdisk, snapshot.name)
                await self._vdisks.workspace.as_owner(snapshot.vdisk)
            raise Exists("there is a snapshot of this name already: choose another one") from None
        for snapshot in snapshots:
            self._family.add_snapshot(snapshot)

    # ---- changing

    async def remove(self, vdisk: int, name: str) -> None:
        """Takes a snapshot's name away; clones and open files keep what they read.

        Raises:
            NotFound: there is none.
            Busy: it is protected.
        """
        async with self._family.lock:
            snapshot = self.get(vdisk, name)
            if snapshot.protected:
                raise Busy(
                    f"the snapshot is protected: 'vdiskfs snap unprotect' it first name={name!r}",
                )
            compares = await self._vdisks.workspace.as_owner(vdisk)
            await self._catalog.transact(Change(compares=compares, deletes=(snapshot.key,)))
            self._family.drop_snapshot(snapshot)
        await self._vdisks.release_unread(vdisk)

    async def rename(self, vdisk: int, name: str, new_name: str) -> Snapshot:
        """Gives a snapshot another name; returns it.

        Raises:
            NotFound: there is none.
            InvalidRequest, Exists: the new name.
        """
        check_snapshot_name(new_name)
        async with self._family.lock:
            snapshot = self.get(vdisk, name)
            if new_name == name:
                return snapshot
            self._check_free(vdisk, new_name)
            renamed = replace(snapshot, name=new_name)
            await self._put([renamed], deletes=(snapshot.key,))
            self._family.drop_snapshot(snapshot)
            self._family.add_snapshot(renamed)
            return renamed

    async def protect(self, vdisk: int, name: str, on: bool) -> Snapshot:
        """Protects a snapshot from removal, or ends that; returns it.

        Raises:
            NotFound: there is none.
        """
        async with self._family.lock:
            changed = replace(self.get(vdisk, name), protected=on)
            compares = await self._vdisks.workspace.as_owner(vdisk)
            await self._catalog.transact(Change(compares=compares, puts=(encode_snapshot(changed),)))
            self._family.add_snapshot(changed)
            return changed

    async def rollback(self, vdisk: VdiskId, name: str, *, keep_as: tuple[str, int]) -> Snapshot:
        """Makes a snapshot's content the vdisk's newest version, at the same cost whatever its size.

        Args:
            vdisk: not open for writing.
            name: of the snapshot.
            keep_as: name and id of a snapshot of what is there now, with which this can be undone.

        Returns:
            That snapshot.

        Raises:
            NotFound: there is no such vdisk or snapshot.
            Busy: the vdisk is open for writing, or being flattened.
            InvalidRequest, Exists: the name for what is there now.
            NoSpace, Unavailable, Corrupt: nothing has happened.
        """
        check_snapshot_name(keep_as[0])
        self._check_free(vdisk, keep_as[0])
        name_now = NameNow(*keep_as, now_ns=self._clock_ns())
        return await roll_back(self._vdisks, self.get(vdisk, name), name_now=name_now)

    async def flatten(self, vdisk: VdiskId, progress: Progress) -> None:
        """Copies what is the parent's into the vdisk, then takes the parent away.

        Snapshots made before keep the parent until they go. Broken off, it goes on where it was when asked again.

        Raises:
            NotFound: no such vdisk.
            Busy: it is being flattened.
            NoSpace, Unavailable, Corrupt: it is not finished.
        """
        await flatten(self._vdisks, vdisk, progress)

    # ---- clones

    @asynccontextmanager
    async def origin(self, vdisk: VdiskId, name: str | None) -> AsyncIterator[CloneOrigin]:
        """What a clone of a snapshot, or of what the vdisk holds now (None), begins as.

        Pinned inside: put the clone's row (``vdisk_record``) into the catalog and call ``note_clone`` there.

        Raises:
            NotFound: no such vdisk or snapshot.
            NoSpace, Unavailable, Corrupt: what the vdisk holds now could not be made durable.
        """
        async with AsyncExitStack() as stack:
            if name is not None:
                snapshot = self.get(vdisk, name)
                stack.enter_context(self._vdisks.pinned(vdisk, snapshot.version))
                compares = await self._vdisks.workspace.as_owner(vdisk)
                yield CloneOrigin(vdisk, snapshot.version, snapshot.size, snapshot.overlap, compares)
            else:
                (moment,) = await stack.enter_async_context(self._moments([vdisk]))
                compares = await self._vdisks.workspace.as_owner(vdisk)
                yield CloneOrigin(vdisk, moment.version, moment.size, moment.overlap, compares)

    def note_clone(self, child: int, origin: CloneOrigin) -> None:
        """The clone's row is in the catalog."""
        self._vdisks.note_record(child, vdisk_record(origin))
