"""The inodes under which this node shows versions of vdisks that other nodes own.

A name of such a vdisk leads to the inode of (vdisk, newest version), which never changes: a new version is another inode,
as if each publication had replaced the file. Their numbers are this node's own, from FIRST_ID on, and lie in a file of the
state directory, so that the next daemon knows what the kernel kept from this one.

**Pins.** A version that was looked up stays readable for LOOKUP_PIN_S, one that is open until it is closed. What was
pinned when a daemon died stays so until the kernel says that it has forgotten it. A version whose pin has ended can be
opened again only if nothing newer was applied meanwhile; else the kernel is told that its inode is stale, and looks again.
"""

import errno
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum

from metadata.errors import InvalidRequest
from metadata.index import Index
from metadata.snapshots import Snapshot
from replication.family import Family
from replication.follower import Follower, Newest
from replication.record_file import RecordFile

FIRST_ID, END_ID = 1 << 39, 1 << 40
LOOKUP_PIN_S = 10.0
"""An open that follows a lookup comes within microseconds; a path walk stopped in between may take longer."""
_Record = tuple[int, int, int, int, int, int, int, int]
"""Inode and kind, vdisk, version, its record's checksum, size, own blocks, overlap, time."""


class _Kind(IntEnum):
    """What a record of the file says."""

    PINNED = 1
    """Made, or pinned again."""
    UNPINNED = 2
    FORGOTTEN = 3
    READ = 4
    """Files of the vdisk's own inode may read it."""


@dataclass(slots=True, eq=False)
class _Version:
    """An inode."""

    snapshot: Snapshot
    """What a reader needs to know, in the shape of one with a name."""
    check: int
    pinned_until_s: float = 0.0
    is_pinned: bool = False
    is_read: bool = False
    """Files of the vdisk's own inode may read it: of those the kernel tells when it forgets that one."""
    is_lost: bool = False
    """The index was built anew without it."""
    lookups: int = 0
    """How often the kernel was told of it, less what it has forgotten."""
    is_inherited: bool = False
    """The kernel may have been told of it by an earlier daemon too."""


class Versions:
    """One to a node that has others; owned by its ``Company``.

    Args:
        path: of the file.
        index: this node's.
        family: where versions are pinned.
        follower: knows what is newest.
        is_open: whether a file of an inode is.
        clock_s: the node's.
    """

    def __init__(
        self,
        path: str,
        index: Index,
        family: Family,
        *,
        follower: Follower,
        is_open: Callable[[int], bool],
        clock_s: Callable[[], float],
    ) -> None:
        self._is_open = is_open
        self._index, self._family, self._follower = index, family, follower
        self._clock_s = clock_s
        self._by_id: dict[int, _Version] = {}
        self._ids: dict[tuple[int, int, int], int] = {}
        self._next_id = FIRST_ID
        self._file = RecordFile(path, "<8Q", what="version inodes", current=self._records, is_needed=True)
        follower.pinned.append(self._pinned_vdisks)

    # ---- the file

    def open(self) -> None:
        """Reads what an earlier daemon left; all of it is pinned until the kernel forgets it."""
        for word, vdisk, version_no, check, *facts in self._file.read():
            kind, number = word & 0xFF, word >> 8
            if kind == _Kind.PINNED:
                size, own_blocks, overlap, mtime_ns = facts
                newest = Newest(vdisk, version_no, check, size, own_blocks, overlap, mtime_ns)
                is_read = number in self._by_id and self._by_id[number].is_read
                self._by_id[number] = _Version(snapshot_of(newest, number), check, is_read=is_read)
                self._next_id = max(self._next_id, number + 1)
            elif kind == _Kind.UNPINNED and number in self._by_id:
                self._by_id[number].pinned_until_s = -math.inf
            elif kind == _Kind.READ and number in self._by_id:
                self._by_id[number].is_read = True
            elif kind == _Kind.FORGOTTEN:
                self._by_id.pop(number, None)
        for number, version in self._by_id.items():
            snapshot = version.snapshot
            self._ids[snapshot.vdisk, snapshot.version, version.check] = number
            version.is_inherited = True
            if version.pinned_until_s >= 0:
                self._pin(version, math.inf)
        self._file.rewrite()

    def close(self) -> None:
        """At the daemon's end."""
        self._file.close()

    def _note(self, kind: _Kind, version: _Version) -> None:
        self._file.add(_record(kind, version))

    def _records(self) -> Iterator[_Record]:
        for version in self._by_id.values():
            yield _record(_Kind.PINNED, version)
            if version.is_read:
                yield _record(_Kind.READ, version)
            if not version.is_pinned:
                yield _record(_Kind.UNPINNED, version)

    # ---- looking up, opening, forgetting

    def owns(self, inode: int) -> bool:
        """Whether a number is of the range that belongs here."""
        return FIRST_ID <= inode < END_ID

    def by_id(self, inode: int) -> Snapshot | None:
        """The version that an inode is, whether it can still be read or not."""
        version = self._by_id.get(inode)
        return None if version is None else version.snapshot

    async def look_up(self, vdisk: int) -> Snapshot:
        """The newest version of a vdisk that another node owns, pinned for a while; the kernel is told of it.

        Raises:
            As ``Follower.newest``.
        """
        version = self._shown(await self._follower.newest(vdisk))
        version.lookups += 1
        return version.snapshot

    async def newest(self, vdisk: int) -> Snapshot:
        """As ``look_up``, but the kernel is told of another inode, through which this version is read."""
        version = self._shown(await self._follower.newest(vdisk))
        if not version.is_read:
            version.is_read = True
            self._note(_Kind.READ, version)
        return version.snapshot

    def _shown(self, newest: Newest) -> _Version:
        """No await since ``newest`` was newest: its rows are there."""
        key = newest.vdisk, newest.version, newest.check
        version = self._by_id.get(self._ids.get(key, 0))
        if version is None or version.is_lost:
            version = _Version(snapshot_of(newest, self._next_id), newest.check)
            self._by_id[self._next_id] = version
            self._ids[key] = self._next_id
            self._next_id += 1
        self._pin(version, self._clock_s() + LOOKUP_PIN_S)
        return version

    def opened(self, inode: int) -> Snapshot | None:
        """The version that an inode is, pinned for a while; None if it is none.

        Raises:
            InvalidRequest: it can be read no more: the name must be looked up again (ESTALE).
        """
        if not self.owns(inode):
            return None
        version = self._by_id.get(inode)
        if version is None:
            raise InvalidRequest(f"there is no such version inode={inode}", number=errno.ESTALE)
        if not version.is_pinned:
            state = self._index.state(version.snapshot.vdisk)
            if version.is_lost or state is None or state.record_check != version.check:
                raise InvalidRequest(
                    f"this version is gone vdisk={version.snapshot.vdisk} version={version.snapshot.version}",
                    number=errno.ESTALE,
                )
        self._pin(version, self._clock_s() + LOOKUP_PIN_S)
        return version.snapshot

    def forget(self, inode: int, lookups: int, *, kernel_knows: Callable[[int], bool]) -> None:
        """The kernel has forgotten so many times that it was told of this inode; it goes with the last.

        Of one that an earlier daemon had told it of, only the kernel knows how often that was.
        """
        version = self._by_id.get(inode)
        if version is None:
            return
        version.lookups -= lookups
        if version.lookups <= 0 and not self._may_be_known(inode, version, kernel_knows):
            self._drop(inode, version)

    def _may_be_known(self, inode: int, version: _Version, kernel_knows: Callable[[int], bool]) -> bool:
        if version.is_read and (self._is_open(inode) or kernel_knows(version.snapshot.vdisk)):
            return True
        return version.is_inherited and kernel_knows(inode)

    def forget_read(self, vdisk: int, *, kernel_knows: Callable[[int], bool]) -> None:
        """The kernel has forgotten the vdisk's own inode, through which versions were read."""
        for inode, version in list(self._by_id.items()):
            if version.is_read and version.snapshot.vdisk == vdisk:
                version.is_read = False
                if version.lookups <= 0 and not self._may_be_known(inode, version, kernel_knows):
                    self._drop(inode, version)

    def _drop(self, inode: int, version: _Version) -> None:
        del self._by_id[inode]
        one = version.snapshot
        self._unpin(version)
        if self._ids.get((one.vdisk, one.version, version.check)) == inode:
            del self._ids[one.vdisk, one.version, version.check]
        self._note(_Kind.FORGOTTEN, version)

    def keep_only(self, kernel_knows: Callable[[int], bool]) -> None:
        """At a daemon's start: what the kernel does not know, it will not forget again."""
        for inode, version in list(self._by_id.items()):
            if not (kernel_knows(inode) or (version.is_read and kernel_knows(version.snapshot.vdisk))):
                self._drop(inode, version)

    def end_pins(self) -> None:
        """Now and then: pins of what was looked up and is not open end; the next daemon need not keep it either."""
        now_s = self._clock_s()
        for version in list(self._by_id.values()):
            if (
                version.is_pinned
                and version.pinned_until_s < now_s
                and not self._is_open(version.snapshot.id)
            ):
                if version.lookups <= 0 and not version.is_inherited:
                    self._drop(version.snapshot.id, version)
                else:
                    self._unpin(version)
                    self._note(_Kind.UNPINNED, version)

    def _pin(self, version: _Version, until_s: float) -> None:
        version.pinned_until_s = max(until_s, version.pinned_until_s)
        if not version.is_pinned:
            version.is_pinned = True
            self._family.pin(version.snapshot.vdisk, version.snapshot.version)
            self._note(_Kind.PINNED, version)

    def _unpin(self, version: _Version) -> None:
        if version.is_pinned:
            version.is_pinned = False
            version.pinned_until_s = 0.0
            self._family.unpin(version.snapshot.vdisk, version.snapshot.version)

    def _pinned_vdisks(self) -> set[int]:
        return {version.snapshot.vdisk for version in self._by_id.values() if version.is_pinned}

    def note_rebuilt(self, vdisk: int, has: Callable[[int], bool]) -> None:
        """The vdisk's index was built anew, and has only some versions: the next daemon must not pin the others either."""
        for version in self._by_id.values():
            if version.snapshot.vdisk == vdisk and not has(version.snapshot.version):
                version.is_lost = True
                if version.is_pinned:
                    self._unpin(version)
                    self._note(_Kind.UNPINNED, version)


def snapshot_of(newest: Newest, number: int) -> Snapshot:
    """A version in the shape of one with a name, its file's inode number this one."""
    return Snapshot(
        vdisk=newest.vdisk,
        name="",
        id=number,
        version=newest.version,
        size=newest.size,
        own_blocks=newest.own_blocks,
        overlap=newest.overlap,
        mtime_ns=newest.mtime_ns,
        created_ns=newest.mtime_ns,
    )


def _record(kind: _Kind, version: _Version) -> _Record:
    one = version.snapshot
    return (
        one.id << 8 | kind,
        one.vdisk,
        one.version,
        version.check,
        one.size,
        one.own_blocks,
        one.overlap,
        one.mtime_ns,
    )
