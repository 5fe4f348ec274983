"""``.snapshots``: a read-only tree in the root that mirrors the directories, with snapshots below their vdisks.

    .snapshots/              the root          inode: the directory's own number, with a bit on top
    .snapshots/vms/          a directory
    .snapshots/vms/a.img/    a vdisk           inode: the vdisk's own number, with the same bit
    .snapshots/vms/a.img/x   the snapshot x    inode: the snapshot's id, which is in the catalog

Nothing of it is stored but the snapshots: every answer comes from the mirrors of names and snapshots. A snapshot
never changes, so the kernel may keep its pages from one open to the next. Who may read the vdisk may read its
snapshots. Directories are listed only where snapshots are below; the root does not list ``.snapshots`` itself,
so that a recursive copy or a search of the mount does not visit everything once more.
"""

import stat
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import suppress
from operator import itemgetter

from fusefs.fuse_abi import Attributes
from metadata.catalog import ROOT_ID, SYNTHETIC_IDS_FROM
from metadata.errors import Busy, NotFound, ReadOnly
from metadata.namespace import Inode, Kind, Namespace
from metadata.namespace_plans import SNAPSHOTS_NAME
from metadata.snapshots import Snapshot
from metadata.units import BLOCK_BYTES
from replication.family import Family

SNAPSHOT_VALID_S = 300
"""How long a kernel may believe a snapshot's attributes: only a change of the vdisk's owner changes them."""
DIRECTORY_VALID_S = 1
NAMES_SHOWN_MAX = 10
READ_BITS, SEARCH_BITS = 0o444, 0o111
_DIRECTORY_BYTES = 4096
_SECTORS = BLOCK_BYTES // 512


class SnapshotTree:
    """One to a mount; lives as long as its handlers."""

    def __init__(self, namespace: Namespace, family: Family) -> None:
        self._namespace, self._family = namespace, family
        self._opened: dict[int, Snapshot] = {}
        """Snapshots the kernel may still have open, though they may have been removed."""

    def owns(self, inode: int) -> bool:
        """Whether an inode belongs to this tree."""
        return inode >= SYNTHETIC_IDS_FROM or self.snapshot(inode) is not None

    def snapshot(self, inode: int) -> Snapshot | None:
        """The snapshot that an inode is; None for anything else."""
        return self._family.by_id(inode) or self._opened.get(inode)

    def check_writable(self, inode: int) -> None:
        """Refuse a change of what belongs to this tree.

        Raises:
            ReadOnly: it does.
        """
        if self.owns(inode):
            raise ReadOnly("snapshots do not change: use 'vdiskfs snap', or clone one to write to it")

    def check_removable(self, inode: int) -> None:
        """Refuse to delete what has snapshots.

        Raises:
            Busy: it has.
        """
        snapshots = self._family.snapshots(inode)
        if snapshots:
            raise Busy(
                f"the vdisk has snapshots, 'vdiskfs rm --snapshots' takes them along: {listed(snapshots)}",
            )

    def note_open(self, inode: int) -> None:
        """A snapshot is being opened: its attributes are known until ``forget``."""
        snapshot = self._family.by_id(inode)
        if snapshot is not None:
            self._opened[inode] = snapshot

    def forget(self, inode: int) -> None:
        """The kernel knows this inode no more."""
        self._opened.pop(inode, None)

    def find(self, parent: int, name: bytes) -> int | None:
        """The inode of a name in this tree; None if ``parent`` is none of its directories.

        Raises:
            NotFound: the directory has no such name.
        """
        if parent == ROOT_ID and name == SNAPSHOTS_NAME:
            return SYNTHETIC_IDS_FROM | ROOT_ID
        if parent < SYNTHETIC_IDS_FROM:
            return None
        origin = parent - SYNTHETIC_IDS_FROM
        if self._namespace.inode(origin).kind is Kind.FILE:
            with suppress(UnicodeDecodeError):
                return self._family.snapshot(origin, name.decode()).id
        else:
            child = self._namespace.lookup(origin, name)
            if self._has_snapshots(child):
                return SYNTHETIC_IDS_FROM | child
        raise NotFound(f"no snapshots here name={name.decode(errors='replace')}")

    def parent(self, inode: int) -> int | None:
        """The directory an inode of this tree is in; None for other inodes."""
        if inode == SYNTHETIC_IDS_FROM | ROOT_ID:
            return ROOT_ID
        if inode > SYNTHETIC_IDS_FROM:
            return SYNTHETIC_IDS_FROM | self._namespace.parent(inode - SYNTHETIC_IDS_FROM)
        snapshot = self.snapshot(inode)
        return None if snapshot is None else SYNTHETIC_IDS_FROM | snapshot.vdisk

    def children_after(self, directory: int, *, position: int, count: int) -> list[tuple[bytes, int]]:
        """Up to ``count`` names with inodes above ``position``, in their order."""
        origin = directory - SYNTHETIC_IDS_FROM
        found: Iterable[tuple[bytes, int]]
        if self._namespace.inode(origin).kind is Kind.FILE:
            found = ((one.name.encode(), one.id) for one in self._family.snapshots(origin))
        else:
            branches = self._branches()
            children = self._namespace.children(origin)
            found = ((name, SYNTHETIC_IDS_FROM | child) for name, child in children if child in branches)
        ordered = sorted(found, key=itemgetter(1))
        start = bisect_right(ordered, position, key=itemgetter(1))
        return ordered[start : start + count]

    def is_directory(self, inode: int) -> bool:
        """Whether it is a directory of this tree."""
        return inode >= SYNTHETIC_IDS_FROM

    def attributes(self, inode: int) -> Attributes | None:
        """What ``stat`` shows; None for inodes that are not of this tree.

        Raises:
            NotFound: the directory or the vdisk behind it is gone.
        """
        if inode >= SYNTHETIC_IDS_FROM:
            return _directory(inode, self._namespace.inode(inode - SYNTHETIC_IDS_FROM))
        snapshot = self.snapshot(inode)
        if snapshot is None:
            return None
        vdisk = self._namespace.inode(snapshot.vdisk)
        return Attributes(
            valid_s=SNAPSHOT_VALID_S,
            inode=inode,
            size=snapshot.size,
            blocks=snapshot.own_blocks * _SECTORS,
            atime_ns=snapshot.created_ns,
            mtime_ns=snapshot.mtime_ns or snapshot.created_ns,
            ctime_ns=snapshot.created_ns,
            mode=stat.S_IFREG | vdisk.mode & READ_BITS,
            links=1,
            uid=vdisk.uid,
            gid=vdisk.gid,
            block_bytes=BLOCK_BYTES,
        )

    def _has_snapshots(self, inode: int) -> bool:
        """Whether a vdisk has any, or a vdisk below a directory."""
        if self._namespace.inode(inode).kind is not Kind.DIRECTORY:
            return bool(self._family.snapshots(inode))
        within = self._namespace.is_within
        return any(within(snapshot.vdisk, inode) for snapshot in self._family.all_snapshots())

    def _branches(self) -> set[int]:
        """The vdisks that have snapshots, and every directory above them."""
        found: set[int] = set()
        for snapshot in self._family.all_snapshots():
            inode = snapshot.vdisk
            while inode not in found and (inode == ROOT_ID or self._namespace.place(inode) is not None):
                found.add(inode)
                inode = self._namespace.parent(inode)
        return found


def listed(snapshots: Sequence[Snapshot]) -> str:
    """Their names, the first few of many."""
    shown = ", ".join(one.name for one in snapshots[:NAMES_SHOWN_MAX])
    more = len(snapshots) - NAMES_SHOWN_MAX
    return f"{shown} and {more} more" if more > 0 else shown


def _directory(inode: int, origin: Inode) -> Attributes:
    mode = origin.mode & 0o777
    if origin.kind is Kind.FILE:  # who may read it may look among its snapshots
        mode = mode & READ_BITS | mode >> 2 & SEARCH_BITS
    return Attributes(
        valid_s=DIRECTORY_VALID_S,
        inode=inode,
        size=_DIRECTORY_BYTES,
        blocks=0,
        atime_ns=origin.ctime_ns,
        mtime_ns=origin.ctime_ns,
        ctime_ns=origin.ctime_ns,
        mode=stat.S_IFDIR | mode,
        links=2,
        uid=origin.uid,
        gid=origin.gid,
        block_bytes=BLOCK_BYTES,
    )
