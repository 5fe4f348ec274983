"""What a disk may hold after a power cut: a recording of file operations, and the states it allows.

The rules are POSIX's, which are weaker than any real file system, so that what holds here holds everywhere:

* ``fsync`` and ``fdatasync`` of a file make durable what was written to that file before the call began, its
  size included; nothing else. ``fsync`` of a directory does the same for the names in it.
* Everything else is *pending*: each pending write may be there or not, whatever became of the others, in
  units of a page, or torn at 512-byte sectors. Sizes may be ahead of the data (zeros then) or behind.
* A name may be lost though the file behind it was synced. A rename is one atomic change.
* What was in flight at the moment of the cut is pending; what was in flight when a sync began, too.

Stale bytes of deleted files are not modelled: file systems zero what they allocate.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

PAGE = 4096
SECTOR = 512
ROOT = 0


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes written into a file; ``grows`` is false for what leaves the size alone."""

    start_ns: int
    end_ns: int
    inode: int
    offset: int
    data: bytes
    grows: bool = True


@dataclass(frozen=True, slots=True)
class Resize:
    """The file's size set; ``only_grows`` for a plain fallocate."""

    start_ns: int
    end_ns: int
    inode: int
    size: int
    only_grows: bool = False


@dataclass(frozen=True, slots=True)
class Bind:
    """Names of directories bound to inodes, or to None; all of them at once."""

    start_ns: int
    end_ns: int
    changes: tuple[tuple[int, str, int | None], ...]


@dataclass(frozen=True, slots=True)
class Sync:
    """A file or directory synced."""

    start_ns: int
    end_ns: int
    inode: int


Operation = Write | Resize | Bind | Sync
Change = Write | Resize | Bind


@dataclass(slots=True)
class Recording:
    """Everything that happened below some directories, from a durable beginning on, in order of its start."""

    contents: dict[int, bytes] = field(default_factory=dict)
    """Files at the beginning."""
    names: dict[tuple[int, str], int] = field(default_factory=dict)
    """Names at the beginning, by directory; the directories recorded are names of ``ROOT``."""
    directories: set[int] = field(default_factory=lambda: {ROOT})
    operations: list[Operation] = field(default_factory=list)
    paths: dict[int, str] = field(default_factory=dict)
    """The path each inode had last, for reports and for planting faults."""

    def without_syncs(self, matches: Callable[[str], bool]) -> "Recording":
        """The recording of a program that forgot to sync the files or directories whose path matches."""
        kept = [
            operation
            for operation in self.operations
            if not (isinstance(operation, Sync) and matches(self.paths[operation.inode]))
        ]
        return Recording(self.contents, self.names, self.directories, kept, self.paths)

    def pending(self, at_ns: int) -> tuple[list[Change], list[Change]]:
        """The changes begun by then, apart: (durable ones, pending ones)."""
        synced: dict[int, int] = {}
        for operation in self.operations:
            if isinstance(operation, Sync) and operation.end_ns <= at_ns:
                synced[operation.inode] = max(operation.start_ns, synced.get(operation.inode, 0))
        durable: list[Change] = []
        pending: list[Change] = []
        for operation in self.operations:
            if isinstance(operation, Sync) or operation.start_ns > at_ns:
                continue
            if isinstance(operation, Bind):
                until_ns = max(synced.get(directory, -1) for directory, _, _ in operation.changes)
            else:
                until_ns = synced.get(operation.inode, -1)
            (durable if operation.end_ns <= until_ns else pending).append(operation)
        return durable, pending


@dataclass(frozen=True, slots=True)
class Tree:
    """One state of the disk: files and directories by path."""

    files: dict[str, bytes]
    directories: set[str]


Keep = Callable[[int, Change, int], bool]
"""(index among the pending changes, the change, its fragment) -> is it on the disk?"""


def build(recording: Recording, at_ns: int, *, keep: Keep, unit: int = PAGE) -> Tree:
    """The disk after a power cut at that time, with what ``keep`` keeps of the pending changes."""
    durable, pending = recording.pending(at_ns)
    disk = _Disk(recording)
    for change in durable:
        disk.apply(change)
    for index, change in enumerate(pending):
        if not isinstance(change, Write):
            if keep(index, change, 0):
                disk.apply(change)
            continue
        for fragment, piece in enumerate(_fragments(change, unit)):
            if keep(index, change, fragment):
                disk.apply(piece)
        if change.grows and keep(index, change, -1):  # the size went ahead of the data
            disk.grow(change.inode, change.offset + len(change.data))
    return disk.tree()


def _fragments(change: Write, unit: int) -> Iterator[Write]:
    at = 0
    while at < len(change.data):
        end = min(len(change.data), at + unit - (change.offset + at) % unit)
        place = change.offset + at
        yield Write(change.start_ns, change.end_ns, change.inode, place, change.data[at:end], change.grows)
        at = end


class _Disk:
    """Contents and names while changes are applied."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._contents: dict[int, bytearray] = {}
        self._names = dict(recording.names)

    def content(self, inode: int) -> bytearray:
        if inode not in self._contents:
            self._contents[inode] = bytearray(self._recording.contents.get(inode, b""))
        return self._contents[inode]

    def grow(self, inode: int, size: int) -> None:
        content = self.content(inode)
        content += bytes(max(0, size - len(content)))

    def apply(self, change: Change) -> None:
        if isinstance(change, Bind):
            for directory, name, inode in change.changes:
                if inode is None:
                    self._names.pop((directory, name), None)
                else:
                    self._names[directory, name] = inode
        elif isinstance(change, Resize):
            if not change.only_grows:
                del self.content(change.inode)[change.size :]
            self.grow(change.inode, change.size)
        else:
            end = change.offset + len(change.data)
            if change.grows:
                self.grow(change.inode, end)
            content = self.content(change.inode)
            end = min(end, len(content))
            if end > change.offset:
                content[change.offset : end] = change.data[: end - change.offset]

    def tree(self) -> Tree:
        below: dict[int, list[tuple[str, int]]] = {}
        for (directory, name), inode in self._names.items():
            below.setdefault(directory, []).append((name, inode))
        found = Tree({}, set())
        waiting = [("", ROOT)]
        while waiting:
            prefix, directory = waiting.pop()
            for name, inode in below.get(directory, []):
                path = f"{prefix}{name}"
                if inode in self._recording.directories:
                    found.directories.add(path)
                    waiting.append((f"{path}/", inode))
                else:
                    found.files[path] = bytes(self.content(inode))
        return found


def random_state(recording: Recording, at_ns: int, chance: random.Random) -> tuple[str, Tree]:
    """One of the states that a power cut at that time may leave, and what was done to make it."""
    count = len(recording.pending(at_ns)[1])
    name, unit = chance.choice(sorted(POLICIES)), chance.choice((SECTOR, PAGE))
    keep = POLICIES[name](count, chance)
    return f"{name} unit={unit} pending={count}", build(recording, at_ns, keep=keep, unit=unit)


def _keep_all(count: int, chance: random.Random) -> Keep:
    return lambda index, change, fragment: True


def _keep_none(count: int, chance: random.Random) -> Keep:
    return lambda index, change, fragment: False


def _keep_prefix(count: int, chance: random.Random) -> Keep:
    """In order up to a point, and the change at that point torn."""
    end = chance.randrange(count + 1)
    return lambda index, change, fragment: index < end or (index == end and chance.random() < 0.5)


def _keep_suffix(count: int, chance: random.Random) -> Keep:
    """The newest first: the disk took them in reverse."""
    start = chance.randrange(count + 1)
    return lambda index, change, fragment: index >= start


def _lose_one(count: int, chance: random.Random) -> Keep:
    lost = chance.randrange(count + 1)
    return lambda index, change, fragment: index != lost or (fragment >= 0 and chance.random() < 0.3)


def _keep_one(count: int, chance: random.Random) -> Keep:
    kept = chance.randrange(count + 1)
    return lambda index, change, fragment: index == kept


def _keep_some(count: int, chance: random.Random) -> Keep:
    share = chance.random()
    return lambda index, change, fragment: chance.random() < share


def _lose_files(count: int, chance: random.Random) -> Keep:
    """Some files lose everything pending, others nothing."""
    share, salt = chance.random(), chance.random()
    return lambda index, change, fragment: (
        isinstance(change, Bind) or random.Random(f"{change.inode} {salt}").random() < share
    )


def _lose_data(count: int, chance: random.Random) -> Keep:
    """Names and sizes went ahead, every byte is missing."""
    return lambda index, change, fragment: not isinstance(change, Write) or fragment < 0


def _lose_names(count: int, chance: random.Random) -> Keep:
    return lambda index, change, fragment: not isinstance(change, Bind)


POLICIES: dict[str, Callable[[int, random.Random], Keep]] = {
    "keep all": _keep_all,
    "keep none": _keep_none,
    "keep a prefix": _keep_prefix,
    "keep a suffix": _keep_suffix,
    "keep some": _keep_some,
    "keep one": _keep_one,
    "lose one": _lose_one,
    "lose some files": _lose_files,
    "lose data": _lose_data,
    "lose names": _lose_names,
}
