"""What the command line asks that changes a whole vdisk's base: the daemon's side of snap rollback and flatten.

After a rollback the kernel is told to forget what it knows of the file.
"""

import datetime
from collections.abc import Callable
from typing import Any, Protocol

import trio

from fusefs.control import Progress, Verb
from fusefs.namespace_store import NamespaceStore
from fusefs.notifications import Notifications
from fusefs.resolution import PathResolver, path_in, text_in
from fusefs.snapshot_verbs import snapshot_facts
from metadata.errors import Busy
from metadata.ids import VdiskId
from metadata.snapshots import Snapshot
from replication.family import Family
from replication.vdisks import VdiskStat

SUFFIXES_MAX = 1000
CLOSE_LOOKS, CLOSE_PERIOD_S = 20, 0.02


class RevertedSnapshots(Protocol):
    """What is asked of the snapshots (``replication.snapshots``, and a double in the tests)."""

    async def rollback(self, vdisk: VdiskId, name: str, *, keep_as: tuple[str, int]) -> Snapshot: ...
    async def flatten(self, vdisk: VdiskId, progress: Progress) -> None: ...


class RevertedVdisks(Protocol):
    """What is asked of the vdisks beside that."""

    knows_all_handles: bool

    def stat_nowait(self, vdisk: VdiskId) -> VdiskStat | None: ...
    async def stat(self, vdisk: VdiskId) -> VdiskStat: ...
    def has_handles(self, vdisk: VdiskId) -> bool: ...


class RollbackVerbs:
    """The verbs of one node; lives as long as its control server."""

    def __init__(
        self,
        store: NamespaceStore,
        vdisks: RevertedVdisks,
        snapshots: RevertedSnapshots,
        *,
        family: Family,
        paths: PathResolver,
        notifications: Notifications,
        clock_ns: Callable[[], int],
    ) -> None:
        self._store, self._vdisks, self._snapshots, self._family = store, vdisks, snapshots, family
        self._paths, self._notifications, self._clock_ns = paths, notifications, clock_ns

    def verbs(self) -> dict[str, Verb]:
        """The verbs, for a control server."""
        return {"snap_rollback": self._rollback, "flatten": self._flatten}

    async def _rollback(self, arguments: dict[str, Any], _: Progress) -> object:
        vdisk, name = self._paths.vdisk(path_in(arguments)), text_in(arguments, "name")
        snapshot = self._family.snapshot(vdisk, name)
        is_open = await self._is_open(vdisk)
        stat = self._vdisks.stat_nowait(vdisk) or await self._vdisks.stat(vdisk)
        if is_open and stat.size != snapshot.size:
            raise Busy(  # a kernel with a write-back cache believes its own size of an open file
                "the vdisk is open, and its size would change: close it first, "
                f"or clone the snapshot {self._paths.path_of(vdisk)}@{name}"
            )
        if is_open and not self._vdisks.knows_all_handles:
            raise Busy(
                "the vdisk is open, and as the daemon was restarted since, nobody knows whether for writing: "
                f"close it first, or clone the snapshot {self._paths.path_of(vdisk)}@{name}"
            )
        keep_as = (self._free_name(vdisk), await self._store.new_inode())
        kept = await self._snapshots.rollback(vdisk, name, keep_as=keep_as)
        await self._notifications.write_back(vdisk, 0)
        await self._forget_entry(vdisk)
        return {
            "path": self._paths.path_of(vdisk),
            "name": name,
            "kept": snapshot_facts(kept, path=self._paths.path_of(vdisk)),
        }

    async def _is_open(self, vdisk: VdiskId) -> bool:
        """Whether anybody has the file open: without a name the kernel keeps only what is.

        It tells of a close a moment after close(2) has returned; we wait no longer than that.
        """
        for _ in range(CLOSE_LOOKS):
            await self._forget_entry(vdisk)
            if not self._vdisks.has_handles(vdisk) and not self._notifications.knows_inode(vdisk):
                return False
            await trio.sleep(CLOSE_PERIOD_S)
        return True

    async def _forget_entry(self, vdisk: VdiskId) -> None:
        place = self._store.namespace.place(vdisk)
        if place is not None:
            await self._notifications.forget_entry(place.parent, place.name)

    def _free_name(self, vdisk: VdiskId) -> str:
        """What the content before a rollback is kept as."""
        now = datetime.datetime.fromtimestamp(self._clock_ns() / 1e9, datetime.UTC)
        wanted = f"before-rollback-{now:%Y%m%d-%H%M%S}"
        taken = {snapshot.name for snapshot in self._family.snapshots(vdisk)}
        names = [wanted, *(f"{wanted}-{number}" for number in range(2, SUFFIXES_MAX))]
        return next((name for name in names if name not in taken), wanted)

    async def _flatten(self, arguments: dict[str, Any], progress: Progress) -> object:
        vdisk = self._paths.vdisk(path_in(arguments))
        await self._snapshots.flatten(vdisk, progress)
        return {"path": self._paths.path_of(vdisk)}
