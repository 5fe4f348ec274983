"""A kept version of a vdisk, read-only: what an open snapshot file, and a copy of one, reads.

It never changes, so it needs no locks: rows come from the index at that version, are cached like a head's, and are
asked for again when the cache has dropped them.
"""

from array import array

from metadata.errors import Unavailable, VdiskfsError
from metadata.snapshots import Snapshot
from replication.ancestry import Ancestry
from replication.groups import GroupSet
from replication.reader import Reader
from replication.workspace import Workspace


class View(Reader):
    """One snapshot's content; owned by ``Vdisks``, lives from the first open to the last close, its version pinned."""

    error_no = 0
    """No commit of it ever fails."""

    def __init__(
        self, workspace: Workspace, groups: GroupSet, *, ancestry: Ancestry, snapshot: Snapshot
    ) -> None:
        super().__init__(workspace, groups, ancestry=ancestry)
        self.fenced: VdiskfsError | None = None
        """Why an fsync fails: what was written to the vdisk here is lost, because another node has taken it over."""
        self.lost = False
        """The index, built anew, has not got this version."""
        self.snapshot = snapshot
        self.version, self.snapshot_id = snapshot.version, snapshot.id
        self.size, self.overlap = snapshot.size, snapshot.overlap
        self.own_blocks, self.mtime_ns = snapshot.own_blocks, snapshot.mtime_ns

    def note_replaced(self, vdisk: int) -> None:
        """As ``Reader.note_replaced``."""
        super().note_replaced(vdisk)
        if vdisk == self.vdisk:
            self.rows.clear()

    def fetch_row(self, vblock: int) -> "array[int] | None":
        """Thread: the row at this version; None if it has none."""
        if self.lost:
            raise Unavailable(
                f"this version was collected while its owner could not be told that it is read: open the file again "
                f"vdisk={self.vdisk} version={self.version}"
            )
        return self.index.row_at(self.vdisk, vblock, self.version, rollbacks=self.rollbacks)

    def _index_row_nowait(self, vblock: int) -> "array[int] | None":
        return None  # which generation is the newest at this version only a seek can tell
