"""Under which generation the kernel knows heads' inodes, and which are open for writing, in a file for the next daemon.

It would show the kernel another generation, and files that are open would fail. An inode that the kernel knows and of which
the file says nothing has generation 0, that of a vdisk that was always this node's, and nobody writes it.
"""

from collections.abc import Callable, Iterator

from replication.record_file import RecordFile

_WRITTEN = 1 << 63


class Generations:
    """One to a mount that has other nodes beside it; owned by its ``PeerInodes``.

    Args:
        path: of the file.
        kernel_knows: whether the kernel holds an inode.
    """

    def __init__(self, path: str, kernel_knows: Callable[[int], bool]) -> None:
        self._kernel_knows = kernel_knows
        self._known: dict[int, int] = {}
        self._written: set[int] = set()
        self._inherited: dict[int, int] = {}
        self._has_heritage = False
        self._file = RecordFile(path, "<QQ", what="inodes' generations", current=self._records)

    def begin(self, is_successor: bool) -> set[int]:
        """At a daemon's start; returns inodes of which files may be open for writing since before it."""
        self._has_heritage = is_successor
        found = dict(self._file.read()) if is_successor else {}
        found = {inode: word for inode, word in found.items() if word and self._kernel_knows(inode)}
        self._inherited = {inode: word & ~_WRITTEN for inode, word in found.items()}
        self._written = {inode for inode, word in found.items() if word & _WRITTEN}
        self._file.rewrite()
        return set(self._written)

    def close(self) -> None:
        """At the daemon's end."""
        self._file.close()

    def get(self, inode: int) -> int | None:
        """As the kernel was told last; None: it was not, or has forgotten it."""
        known = self._known.get(inode)
        if known is None and self._has_heritage and self._kernel_knows(inode):
            known = self._known[inode] = self._inherited.get(inode, 0)
        return known

    def note(self, inode: int, generation: int) -> None:
        """The kernel is being told."""
        before = self._word(inode)
        self._known[inode] = generation
        self._note_change(inode, before)

    def note_written(self, inode: int, is_written: bool) -> None:
        """Whether a file of it is open for writing now."""
        if is_written != (inode in self._written):
            before = self._word(inode)
            self._written ^= {inode}
            self._note_change(inode, before)

    def forget(self, inode: int) -> None:
        """The kernel has forgotten the inode."""
        before = self._word(inode)
        self._inherited.pop(inode, None)
        self._known.pop(inode, None)
        self._written.discard(inode)
        self._note_change(inode, before)

    def _word(self, inode: int) -> int:
        generation = self._known.get(inode, self._inherited.get(inode, 0))
        return generation | _WRITTEN * (inode in self._written)

    def _note_change(self, inode: int, before: int) -> None:
        if self._word(inode) != before:
            self._file.add((inode, self._word(inode)))

    def _records(self) -> Iterator[tuple[int, int]]:
        """Inode, and generation (and WRITTEN); the last one about an inode counts."""
        inodes = {*self._inherited, *self._known, *self._written}
        return ((inode, word) for inode in inodes if (word := self._word(inode)))
