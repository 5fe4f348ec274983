"""What the kernel is shown of vdisks that other nodes own: versions, each an inode of its own that never changes.

    lookup            the newest version's inode; its entry is looked up each time, so the next open sees the next version
    open for reading  that version, frozen; the kernel keeps its pages, for they never change
    open for writing  the vdisk is acquired, then ESTALE, once: the kernel looks the name up again, and gets the head's
                      inode, where writing is served, with the size that it has now
    listing           a number that stands for "whatever is newest": no node is asked for a listing; looked up before use
    mode, owner, ...  the vdisk's, through whichever of its inodes

A head's inode has the owner's epoch in its generation, so that a kernel which knew it when this node owned the vdisk before
takes the one of now for another file: it would believe its old size. For the same reason a name leads to the head only
as often as somebody was told ESTALE, and an inode of an earlier generation is not opened for writing.
"""

import errno
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import NoReturn, Protocol, TypeVar

from fusefs.generations import Generations
from metadata.errors import InvalidRequest, NotOwner
from metadata.ids import VdiskId
from metadata.snapshots import Snapshot
from replication.company import Company
from replication.versions import END_ID, FIRST_ID

LISTED_FROM = (FIRST_ID + END_ID) // 2
"""From here on a number is a vdisk's in a listing; versions have those below."""


class HasGeneration(Protocol):
    """An entry, as the kernel is told of it."""

    generation: int


_Entry = TypeVar("_Entry", bound=HasGeneration)


class PeerInodes:
    """One to a mount that has other nodes beside it.

    Args:
        company: what this node knows of the others.
        kernel_knows: whether the kernel holds an inode.
        catch_up: brings what this node knows to where the catalog is.
    """

    def __init__(
        self,
        company: Company,
        *,
        kernel_knows: Callable[[int], bool],
        catch_up: Callable[[], Awaitable[object]],
    ) -> None:
        self._company, self._kernel_knows, self._catch_up = company, kernel_knows, catch_up
        self._writers = company.writers
        folder = os.path.dirname(company.holdings.workspace.index.path)
        self._generations = Generations(os.path.join(folder, "generations"), kernel_knows)
        """Of heads' inodes, as the kernel was told last."""
        self._open_before: set[int] = set()
        """Heads' inodes of which files are open for writing, as far as is known, since before this daemon."""
        self._lookups: Counter[int] = Counter()
        """How often it was told; a word of its that it has forgotten one may be overtaken by the next."""
        self._replaced: set[int] = set()
        """Heads' inodes that the kernel has made anew since an earlier daemon told it of them: it will forget the old one,
        too, by the same number."""
        self._mixed: set[int] = set()
        """Heads' inodes of which the kernel may have pages of an older version."""
        company.may_be_written, company.may_be_open = self._may_be_written, self._may_be_open
        self._is_successor = False

    def begin(self, is_successor: bool) -> None:
        """At a daemon's start."""
        self._open_before = self._generations.begin(is_successor)
        self._is_successor = is_successor

    def _may_be_open(self, vdisk: int) -> bool:
        return self._is_successor and self._kernel_knows(vdisk)

    def _may_be_written(self, vdisk: int) -> bool:
        return vdisk in self._open_before

    async def settle(self, forget_name: Callable[[int], Awaitable[None]]) -> None:
        """Finds out of which of these files are still open: a name that the kernel drops leaves the inode only if it is open.

        Args:
            forget_name: lets the kernel drop the name of a vdisk.
        """
        for vdisk in list(self._open_before):
            await forget_name(vdisk)
            if not self._kernel_knows(vdisk):
                self._open_before.discard(vdisk)

    def note_files(self, vdisk: int) -> None:
        """A file of it was opened or closed."""
        if vdisk not in self._open_before:
            self._generations.note_written(vdisk, self._company.holdings.files.has_writer(vdisk))

    def close(self) -> None:
        """At the daemon's end."""
        self._generations.close()

    def is_foreign(self, inode: int) -> bool:
        """Whether it is the head of a vdisk that another node owns, as far as this node knows."""
        return not self._company.mirror.is_mine(inode)

    async def is_foreign_now(self, inode: int) -> bool:
        """The same; of a vdisk that nobody wrote, as far as this node knows, what the catalog says now.

        Its size would be believed: another node may have begun to write it a moment ago.

        Raises:
            Unavailable: the catalog does not say.
        """
        if inode not in self._company.mirror.owners:
            await self._catch_up()
        return self.is_foreign(inode)

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
        if self._writers.is_expected(vdisk):
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
        vdisk = self.vdisk_of(inode)
        self._writers.expect(vdisk)
        raise stale(vdisk)

    async def check_writing(self, inode: int) -> None:
        """Somebody wants to write this inode.

        A version, and what the head was before, become the head: before that is shown the vdisk becomes this node's, or
        its owner says how it is, since the kernel will believe the size that it is told.

        Raises:
            InvalidRequest: ESTALE; another inode is the right one.
            NotFound, Corrupt, Unavailable: nobody knows.
        """
        vdisk = self.vdisk_of(inode)
        if vdisk != inode or self._company.has_others():
            await self._company.writable(VdiskId(vdisk))
            if vdisk != inode or self._is_outdated(inode):
                self.refuse_writing(inode)
        self._writers.note_come(inode)  # the name leads to versions for the next

    async def version_to_open(self, inode: int, flags: int) -> int | None:
        """The version to open: the one that an inode is; None: it is none. ``flags``: of open(2).

        A reader who was led to the head because somebody else wants to write gets the newest: looking the name up again
        would lead it to the head again.

        Raises:
            InvalidRequest: ESTALE; another inode is the right one.
        """
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            await self.check_writing(inode)
            return None
        if self.vdisk_of(inode) != inode:
            if self.version(inode) is None:
                raise stale(inode)
            return inode
        if not self.is_foreign(inode):
            return None
        if self._writers.is_expected(inode):
            return (await self._company.versions.newest(inode)).id
        raise stale(inode)

    def _is_outdated(self, vdisk: int) -> bool:
        """Whether the kernel has not looked the head's inode up since it became another file."""
        known = self._generations.get(vdisk)
        if known is None:  # of one that an earlier daemon showed, or that was just made
            return self.is_foreign(vdisk)
        return known != self.generation(vdisk)

    def shown(self, inode: int, entry: _Entry) -> _Entry:
        """The entry with which the kernel is told of a head's inode."""
        if not FIRST_ID <= inode < END_ID:
            is_first = self._is_successor and not self._lookups[inode]
            if is_first and self._generations.get(inode) not in (None, entry.generation):
                self._replaced.add(inode)
            self._generations.note(inode, entry.generation)
            self._lookups[inode] += 1
        return entry

    def cached(self, inode: int, is_remote: bool) -> tuple[bool, bool]:
        """How the kernel treats a file just opened: whether it caches nothing, and whether what it has may stay.

        Beside a file that was opened when the vdisk was here before, and goes on reading what it was then, it does
        neither: both have one inode, and so one cache.
        """
        self.note_files(inode)
        if self._company.frozen.sizes(inode):
            self._mixed.add(inode)
            return True, False
        keep = inode not in self._mixed
        self._mixed.discard(inode)
        return is_remote, keep

    def _is_held(self, vdisk: int) -> bool:
        """Whether files are open of the inode that the kernel has, which would fail if it were another one's now.

        Whoever writes goes on, wherever the owner is; whoever reads what it was, unless another size must be shown.
        """
        holdings, transfers = self._company.holdings, self._company.transfers
        if holdings.files.has_writer(vdisk) or vdisk in self._open_before:
            return True
        served = holdings.heads.get(VdiskId(vdisk)) or transfers.remotes.get(vdisk)
        return served is not None and self._company.frozen.sizes(vdisk) == {served.size}

    def generation(self, vdisk: int) -> int:
        """Of a head's inode."""
        known = self._generations.get(vdisk)
        if known is not None and self._is_held(vdisk):
            return known
        owner = self._company.mirror.owners.get(vdisk)
        if owner is None:
            return 0
        return owner.epoch - 1 if owner.node == self._company.node else owner.epoch

    def forget(self, inode: int, lookups: int) -> None:
        """The kernel has forgotten so many times that it was told of this inode."""
        if inode in self._replaced:  # how often it was told of the old one an earlier daemon knew
            self._replaced.discard(inode)
            return
        self._lookups[inode] -= lookups
        if self._lookups[inode] <= 0 and not (self._is_successor and self._kernel_knows(inode)):
            del self._lookups[inode]
            self._generations.forget(inode)
            self._company.frozen.forget(inode)
            self._company.versions.forget_read(inode, kernel_knows=self._kernel_knows)
            self._open_before.discard(inode)
            self._mixed.discard(inode)
        self._company.versions.forget(inode, lookups, kernel_knows=self._kernel_knows)


def stale(vdisk: int) -> InvalidRequest:
    """What makes the kernel look a name up again."""
    return InvalidRequest(f"another inode stands for the vdisk now vdisk={vdisk}", number=errno.ESTALE)
