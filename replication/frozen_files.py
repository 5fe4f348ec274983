"""Files that were opened for reading on a head which has gone since: what each of them reads, for the next daemon too.

When a vdisk is handed over, or was taken over, who has it open for reading goes on at its last version here. That is
neither the newest version, which a new open sees, nor anything that the file's number says. So it lies in a file of the
state directory, one record for each open file; the version stays pinned until the last of its readers is closed.

A daemon that has just come does not know which files are open. When it gives a vdisk away of which the kernel knows the
inode, it notes the version for *those of which it has not heard yet*, under the serial number 0, until the kernel forgets.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from metadata.errors import Fenced, Unavailable, VdiskfsError
from metadata.ids import VdiskId
from metadata.snapshots import Snapshot
from replication.family import Family
from replication.follower import Newest
from replication.handles import HANDLE_SHIFT, file_of
from replication.loading import Loading
from replication.record_file import RecordFile
from replication.versions import snapshot_of
from replication.view import View
from replication.workspace import Workspace

_Record = tuple[int, int, int, int, int, int, int]
"""Serial and kind, vdisk, version, size, own blocks, overlap, time."""


class _Kind(IntEnum):
    """What a record says of a file."""

    OPEN = 1
    FENCED = 2
    """Open, and its fsync fails."""
    CLOSED = 3
    LOST = 4
    """Open, and its version can be read no more."""


@dataclass(slots=True, eq=False)
class _Frozen:
    """A version, and who reads it."""

    snapshot: Snapshot
    """What a reader needs to know, in the shape of one with a name; its id is the vdisk's."""
    fenced: VdiskfsError | None = None
    files: set[int] = field(default_factory=set)
    view: View | None = None
    """None: an earlier daemon's, of which nobody has read anything yet."""
    is_lost: bool = False
    """The index was built anew without it."""


class FrozenFiles:
    """One to a daemon that has others; owned by its ``Company``.

    Args:
        path: of the file.
        workspace: what the vdisks share.
        family: where versions are pinned.
        loading: finds their ancestors.
    """

    def __init__(self, path: str, workspace: Workspace, family: Family, loading: Loading) -> None:
        self._workspace, self._family, self._loading = workspace, family, loading
        self._by_file: dict[int, _Frozen] = {}
        self._file = RecordFile(path, "<7Q", what="files that read older versions", current=self._records)

    # ---- the file

    def open(self) -> None:
        """Reads what an earlier daemon left, and pins it."""
        found: dict[tuple[int, int, int], _Frozen] = {}
        for word, vdisk, *facts in self._file.read():
            kind, number = word & 0xFF, word >> 8 << HANDLE_SHIFT | vdisk
            version, size, own_blocks, overlap, mtime_ns = facts
            snapshot = snapshot_of(Newest(vdisk, version, 0, size, own_blocks, overlap, mtime_ns), vdisk)
            if kind == _Kind.CLOSED:
                self._forget(number)
                continue
            one = found.setdefault((snapshot.vdisk, snapshot.version, kind), _Frozen(snapshot))
            one.is_lost = kind == _Kind.LOST
            if kind == _Kind.FENCED:
                one.fenced = Fenced(f"another node took the vdisk over vdisk={snapshot.vdisk}")
            self._note(number, one)
        self._file.rewrite()

    def close(self) -> None:
        """At the daemon's end."""
        self._file.close()

    def keep_only(self, kernel_knows: Callable[[int], bool]) -> None:
        """At a daemon's start: of a vdisk's inode that the kernel does not know, no file is open."""
        for number in [number for number in self._by_file if not kernel_knows(file_of(number))]:
            self.note_closed(number)

    def _records(self) -> Iterator[_Record]:
        return (_record(number, one) for number, one in self._by_file.items())

    # ---- who reads what

    def note(self, view: View, files: Iterable[int]) -> None:
        """These read it from now on; its version is pinned, which ends here with the last of them."""
        one = _Frozen(view.snapshot, fenced=view.fenced, view=view)
        for number in files:
            self._note(number, one)
        self._family.unpin(view.vdisk, view.version)  # the caller's
        self._file.add(*(_record(number, one) for number in one.files))

    def note_unheard(self, view: View) -> None:
        """So do files of the vdisk that an earlier daemon opened and of which this one has not heard."""
        if view.vdisk not in self._by_file:  # later versions are of files that were opened since
            one = _Frozen(view.snapshot)
            self._note(view.vdisk, one)
            self._file.add(_record(view.vdisk, one))

    async def unheard(self, number: int) -> View | None:
        """What such a file reads.

        Raises:
            As ``view``.
        """
        one = self._by_file.get(file_of(number))
        if one is None:
            return None
        self._note(number, one)
        self._file.add(_record(number, one))
        return await self.view(number)

    def forget(self, vdisk: int) -> None:
        """The kernel has forgotten the vdisk's inode."""
        for number in [number for number in self._by_file if file_of(number) == vdisk]:
            self.note_closed(number)

    def _note(self, number: int, one: _Frozen) -> None:
        self._forget(number)
        if not one.files and not one.is_lost:
            self._family.pin(one.snapshot.vdisk, one.snapshot.version)
        one.files.add(number)
        self._by_file[number] = one

    async def freeze(self, number: int, newest: Newest) -> View:
        """One whose version is not known goes on at this one, the newest, for good.

        Raises:
            As ``view``.
        """
        snapshot = snapshot_of(newest, newest.vdisk)
        # No await since it was the newest: its rows are there.
        one = _Frozen(snapshot)
        self._note(number, one)
        self._file.add(_record(number, one))
        found = await self.view(number)
        assert found is not None
        return found

    def note_closed(self, number: int) -> None:
        """The file is closed."""
        one = self._by_file.get(number)
        if one is not None:
            self._forget(number)
            self._file.add(_record(number, one, _Kind.CLOSED))

    def _forget(self, number: int) -> None:
        one = self._by_file.pop(number, None)
        if one is not None:
            one.files.discard(number)
            if not one.files and not one.is_lost:
                self._family.unpin(one.snapshot.vdisk, one.snapshot.version)

    def note_rebuilt(self, vdisk: int, has: Callable[[int], bool]) -> None:
        """The vdisk's index was built anew, and has only some versions."""
        for number, one in list(self._by_file.items()):
            if one.snapshot.vdisk == vdisk and not has(one.snapshot.version):
                if not one.is_lost:
                    one.is_lost = True
                    self._family.unpin(vdisk, one.snapshot.version)
                self._file.add(_record(number, one))

    def pinned_vdisks(self) -> set[int]:
        """Vdisks of which files read an older version."""
        return {one.snapshot.vdisk for one in self._by_file.values()}

    def sizes(self, vdisk: int) -> set[int]:
        """Of the vdisk, as these files see it."""
        return {one.snapshot.size for one in self._by_file.values() if one.snapshot.vdisk == vdisk}

    async def view(self, number: int) -> View | None:
        """What such a file reads; None: it is none.

        Raises:
            Corrupt, Unavailable: it cannot be read, or not any more.
        """
        one = self._by_file.get(number)
        if one is None or one.view is not None:
            return None if one is None else one.view
        vdisk, version = VdiskId(one.snapshot.vdisk), one.snapshot.version
        with self._family.pinned(vdisk, version):
            await self._loading.prepare(vdisk)
            ancestry = await self._loading.ancestry(vdisk, version)
        if one.is_lost:
            raise Unavailable(f"this version is gone: open the file again vdisk={vdisk} version={version}")
        if one.view is None:  # nobody was quicker
            groups = self._loading.groups(vdisk)
            one.view = View(self._workspace, groups, ancestry=ancestry, snapshot=one.snapshot)
            one.view.rollbacks, one.view.fenced = self._family.descent(vdisk).rollbacks, one.fenced
        return one.view


def _record(number: int, one: _Frozen, kind: _Kind | None = None) -> _Record:
    read, known = one.snapshot, _Kind.OPEN if one.fenced is None else _Kind.FENCED
    if one.is_lost:
        known = _Kind.LOST
    return (
        number >> HANDLE_SHIFT << 8 | (kind or known),
        read.vdisk,
        read.version,
        read.size,
        read.own_blocks,
        read.overlap,
        read.mtime_ns,
    )
