"""The versions of vdisks that files read here: one view for all who have the same one open, its version pinned."""

from collections.abc import Awaitable, Callable

from metadata.snapshots import Snapshot
from replication.family import Family
from replication.loading import Loading
from replication.versions import FIRST_ID
from replication.view import View
from replication.workspace import Workspace


class OpenViews:
    """One to a daemon; owned by ``Vdisks``.

    Args:
        workspace: what the vdisks share.
        family: where versions are pinned.
        loading: finds their ancestors.
        prepare: sees to it that the versions of a vdisk can be read.
    """

    def __init__(
        self,
        workspace: Workspace,
        family: Family,
        loading: Loading,
        *,
        prepare: Callable[[int], Awaitable[None]],
    ) -> None:
        self._workspace, self._family, self._loading, self._prepare = workspace, family, loading, prepare
        self._by_id: dict[int, View] = {}

    def get(self, file_id: int) -> View | None:
        """The view of a snapshot or version, given by its file's inode number, if any file of it is open."""
        return self._by_id.get(file_id)

    async def open(self, snapshot: Snapshot) -> View:
        """The view of one of which a handle is expected.

        Raises:
            Corrupt, Unavailable: the vdisk's log cannot be read.
        """
        vdisk, version = snapshot.vdisk, snapshot.version
        self._family.pin(vdisk, version)
        try:
            await self._prepare(vdisk)
            ancestry = await self._loading.ancestry(vdisk, version)
        except BaseException:
            self._family.unpin(vdisk, version)
            raise
        if snapshot.id in self._by_id:  # somebody else was quicker
            self._family.unpin(vdisk, version)
        else:
            groups = self._loading.groups(vdisk)
            view = View(self._workspace, groups, ancestry=ancestry, snapshot=snapshot)
            view.rollbacks = self._family.descent(vdisk).rollbacks
            self._by_id[snapshot.id] = view
        return self._by_id[snapshot.id]

    def leave(self, file_id: int | None) -> None:
        """A file has no handle left; if it is a view's, nobody reads that version."""
        view = self._by_id.pop(file_id, None) if file_id is not None else None
        if view is not None:
            self._family.unpin(view.vdisk, view.version)
            view.rows.clear()

    def has_version_of(self, vdisk: int) -> bool:
        """Whether a version without a name is read: one of when another node owned the vdisk."""
        return any(view.vdisk == vdisk and view.snapshot_id >= FIRST_ID for view in self._by_id.values())
