"""What the kernel is shown of vdisks that other nodes own: versions, each an inode of its own that never changes.

    lookup            the newest version's inode; its entry is looked up each time, so the next open sees the next version
    open for reading  that version, frozen; the kernel keeps its pages, for they never change
    open for writing  ESTALE, once: the kernel looks the name up again, and gets the head's inode, where writing is served
    listing           a number that stands for "whatever is newest": no node is asked for a listing; looked up before use
    mode, owner, ...  the vdisk's, through whichever of its inodes

A head's inode has the owner's epoch in its generation, so that a kernel which knew it when this node owned the vdisk before
takes the one of now for another file: it would believe its old size.
"""

import errno
import os
from collections.abc import Callable
from typing import NoReturn

from metadata.errors import InvalidRequest, NotOwner
from metadata.snapshots import Snapshot
from replication.company import Company
from replication.versions import END_ID, FIRST_ID

WRITING_S = 5.0
"""So long a name leads to the head's inode after somebody wanted to write. The kernel looks it up at once, twice, and each
time a silent owner may be waited for."""
LISTED_FROM = (FIRST_ID + END_ID) // 2
"""From here on a number is a vdisk's in a listing; versions have those below."""


class PeerInodes:
    """One to a mount that has other nodes beside it.

    Args:
        company: what this node knows of the others.
        kernel_knows: whether the kernel holds an inode.
        clock_s: for how long somebody wants to write.
    """

    def __init__(
        self, company: Company, *, kernel_knows: Callable[[int], bool], clock_s: Callable[[], float]
    ) -> None:
        self._company, self._kernel_knows, self._clock_s = company, kernel_knows, clock_s
        self._wanted: dict[int, float] = {}

    def is_foreign(self, inode: int) -> bool:
        """Whether it is the head of a vdisk that another node owns, as far as this node knows."""
        return not self._company.mirror.is_mine(inode)

    def version(self, inode: int) -> Snapshot | None:
        """The version that an inode is."""
        return self._company.versions.by_id(inode)

    def vdisk_of(self, inode: int) -> int:
        """The vdisk whose version an inode is; any other inode is itself."""
        if not FIRST_ID <= inode < END_ID:
            return inode
        if inode >= LISTED_FROM:
            return inode - LISTED_FROM
        version = self.version(inode)
        return inode if version is None else version.vdisk

    def listed(self, vdisk: int) -> int:
        """The number of a vdisk in a listing."""
        return LISTED_FROM + vdisk

    async def look_up(self, vdisk: int) -> Snapshot | None:
        """The newest version of a foreign vdisk; None: its name leads to the head now.

        Raises:
            Corrupt, Unavailable: nobody knows.
        """
        if self._is_wanted(vdisk):
            return None
        try:
            return await self._company.versions.look_up(vdisk)
        except NotOwner:  # it has become this node's, or a rule of the catalog's says so
            return None

    def refuse_writing(self, inode: int) -> NoReturn:
        """A version cannot be written; the name will lead to the head for a moment.

        Raises:
            InvalidRequest: ESTALE.
        """
        vdisk, now_s = self.vdisk_of(inode), self._clock_s()
        for one in [one for one, until_s in self._wanted.items() if until_s <= now_s]:
            del self._wanted[one]
        self._wanted[vdisk] = now_s + WRITING_S
        raise stale(vdisk)

    async def version_to_open(self, inode: int, flags: int) -> int | None:
        """The version to open: the one that an inode is; None: it is none. ``flags``: of open(2).

        A reader who was led to the head because somebody else wants to write gets the newest: looking the name up again
        would lead it to the head again.

        Raises:
            InvalidRequest: ESTALE; another inode is the right one.
        """
        writing = flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC)
        if self.vdisk_of(inode) != inode:
            if writing or self.version(inode) is None:
                self.refuse_writing(inode)
            return inode
        if writing or not self.is_foreign(inode):
            return None
        if self._is_wanted(inode):
            return (await self._company.versions.newest(inode)).id
        raise stale(inode)

    def _is_wanted(self, vdisk: int) -> bool:
        return self._clock_s() < self._wanted.get(vdisk, 0.0)

    def generation(self, vdisk: int) -> int:
        """Of a head's inode."""
        owner = self._company.mirror.owners.get(vdisk)
        if owner is None:
            return 0
        return owner.epoch - 1 if owner.node == self._company.node else owner.epoch

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel has forgotten so many times that it was told of this inode."""
        self._company.versions.forget(inode, lookups, kernel_knows=self._kernel_knows)


def stale(vdisk: int) -> InvalidRequest:
    """What makes the kernel look a name up again."""
    return InvalidRequest(f"another inode stands for the vdisk now vdisk={vdisk}", number=errno.ESTALE)
