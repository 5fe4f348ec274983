"""Vdisks that go for good: at once where nobody reads them, else without a name until the last reader is gone.

Who owns a vdisk knows of all its children, and deletes it; a deleted parent that another node owns is left to that node.
"""

import functools
import itertools
from collections.abc import Awaitable, Callable, Sequence

from metadata.catalog import Change, owner_key, vdisk_key
from metadata.ids import PARENT
from replication.family import Family
from replication.ownership import set_nameless, update_record
from replication.workspace import Workspace


class Deletion:
    """One to a daemon; owned by ``Vdisks``.

    Args:
        workspace: what the vdisks share.
        family: the snapshot tree.
        end_head: of a vdisk that is going.
        note_gone: told of each that the catalog knows no more.
        is_mine: whether this node may delete a vdisk; what others own, they delete.
    """

    def __init__(
        self,
        workspace: Workspace,
        family: Family,
        *,
        end_head: Callable[[int], Awaitable[None]],
        note_gone: Callable[[int], None],
        is_mine: Callable[[int], bool],
    ) -> None:
        self._workspace, self._family, self._is_mine = workspace, family, is_mine
        self._end_head, self._note_gone = end_head, note_gone

    async def forget(self, vdisk: int) -> None:
        """The vdisk has no name and no handle: its data goes, and its snapshots, unless others still read it."""
        await self.release_unread(await self._forget(vdisk))

    async def _forget(self, vdisk: int) -> int:
        """Returns the vdisk that may be kept for nobody now; 0: none."""
        family, catalog = self._family, self._workspace.catalog
        async with family.lock:
            if family.children(vdisk) or family.pin_count(vdisk):
                keys = [snapshot.key for snapshot in family.snapshots(vdisk)]
                compares = await self._workspace.as_owner(vdisk)
                descent = await set_nameless(catalog, vdisk, snapshots=keys, compares=compares)
                family.drop_snapshots(vdisk)
                family.set_descent(vdisk, descent)
                return vdisk
            doomed = [vdisk, *itertools.takewhile(self._is_mine, family.doomed_with(vdisk)[1:])]
            survivor, _ = family.descent(doomed[-1]).parent or (0, 0)
            await self._remove(doomed)
        for each in doomed:
            await self._workspace.wait_for(functools.partial(self._drop, each))
        return survivor

    async def _remove(self, doomed: Sequence[int]) -> None:
        """Takes vdisks out of the catalog and out of memory, in one transaction."""
        deletes: list[bytes] = []
        compares: list[tuple[bytes, int]] = []
        for vdisk in doomed:
            compares += await self._workspace.as_owner(vdisk)
        for vdisk in doomed:
            await self._end_head(vdisk)
            deletes += [vdisk_key(vdisk), owner_key(vdisk)]
            deletes += [snapshot.key for snapshot in self._family.snapshots(vdisk)]
        await self._workspace.catalog.transact(Change(compares=tuple(compares), deletes=tuple(deletes)))
        for vdisk in doomed:
            self._note_gone(vdisk)

    async def release_unread(self, vdisk: int) -> None:
        """Versions of this vdisk may have lost their last reader: what was kept for them alone goes."""
        while vdisk and self._is_mine(vdisk):
            if self._family.descent(vdisk).nameless and not self._family.is_needed(vdisk):
                vdisk = await self._forget(vdisk)
            elif self._family.has_unread_parent(vdisk):
                vdisk = await self._leave_parent(vdisk)
            else:
                return

    async def _leave_parent(self, vdisk: int) -> int:
        """Takes a parent away that nothing reads; returns it."""
        async with self._family.lock:
            parent = self._family.descent(vdisk).parent
            if parent is None or not self._family.has_unread_parent(vdisk):
                return 0
            # Rows may say PARENT and mean a hole: by ``absent`` it is known as one that must get no other parent.
            gone: dict[str, object] = {"parent": None, "absent": PARENT, "flattened": [], "parent_overlap": 0}
            besides = Change(compares=await self._workspace.as_owner(vdisk))
            descent = await update_record(self._workspace.catalog, vdisk, gone, besides=besides)
            self._family.set_descent(vdisk, descent)
            return parent[0]

    async def forget_unneeded(self) -> None:
        """Deleted vdisks, and parents of flattened ones, that were kept for others and are needed no more go."""
        for vdisk in list(self._family.kept_for_others()):
            await self.release_unread(vdisk)

    def _drop(self, vdisk: int) -> None:
        self._workspace.index.forget(vdisk)
        self._workspace.pool.remove_vdisk(vdisk)
