"""Which call comes next, and with what: drawn by Hypothesis, which shrinks, or by a plain generator, which is fast."""

import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from tests.calls.reference import Reference

BLOCK, MIB = 4096, 1 << 20
SIZE_MAX = 5 * MIB // 2
IO_MAX = 300_000
HANDLES = 6
LETTERS = "abc"
SNAPSHOTS = ("one", "two", "three")
KEEP_SIZE, PUNCH_HOLE, COLLAPSE, ZERO_RANGE, INSERT = 1, 2, 8, 16, 32
FALLOCATE_MODES = (
    *(PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, 0, KEEP_SIZE),
)
OPEN_FLAGS = (
    *(os.O_CREAT, os.O_CREAT, os.O_EXCL | os.O_CREAT, os.O_TRUNC, os.O_TRUNC | os.O_CREAT, os.O_APPEND),
    *(os.O_NOFOLLOW, os.O_DIRECTORY, os.O_SYNC, os.O_DSYNC, os.O_NOATIME, 0, 0),
)

Call = tuple[str, tuple[object, ...]]
T = TypeVar("T")


class Chance(Protocol):
    """Where the choices come from."""

    def integer(self, least: int, most: int) -> int: ...
    def choice(self, among: Sequence[T]) -> T: ...


class PlainChance:
    """From a plain generator."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, least: int, most: int) -> int:
        return self._random.randint(least, most)

    def choice(self, among: Sequence[T]) -> T:
        return self._random.choice(among)


@dataclass
class Handle:
    """What a file was opened with."""

    node: int
    flags: int

    @property
    def is_direct(self) -> bool:
        return bool(self.flags & os.O_DIRECT)

    @property
    def writes(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_RDONLY

    @property
    def reads(self) -> bool:
        return self.flags & os.O_ACCMODE != os.O_WRONLY


@dataclass
class Drawing:
    """Draws calls that fit what there is.

    Args:
        chance: where choices come from.
        reference: what there is.
        nodes: how many mounts.
    """

    chance: Chance
    reference: Reference
    nodes: int = 1
    handles: dict[int, Handle] = field(default_factory=dict)
    has_foreign_owners: bool = field(default_factory=lambda: os.geteuid() == 0)
    trashed: int = 0

    # Arguments.

    def node(self) -> int:
        return self.chance.integer(0, self.nodes - 1)

    def path(self) -> str:
        """Anything: there or not, nested or not, through links or not."""
        depth = self.chance.choice((1, 1, 2, 3))
        return f"{self.node()}/" + "/".join(self.chance.choice(LETTERS) for _ in range(depth))

    def present(self) -> str:
        """Mostly something that is there."""
        names = self.reference.names()
        if names and self.chance.integer(0, 4):
            return f"{self.node()}/{self.chance.choice(names)}"
        return self.path()

    def vdisk(self) -> str:
        names = self.reference.vdisks()
        return f"{self.node()}/{self.chance.choice(names)}" if names else self.path()

    def offset(self, size: int) -> int:
        kind = self.chance.integer(0, 4)
        around = self.chance.integer(-5000, 5000)
        if kind == 0:
            return self.chance.integer(0, 8) * BLOCK
        if kind == 1:
            return self.chance.integer(0, 6 * BLOCK)
        if kind == 2:
            return MIB * self.chance.integer(1, 2) + around
        return max(0, size + around) if kind == 3 else self.chance.integer(0, SIZE_MAX)

    def length(self) -> int:
        return self.chance.choice((1, 100, 512, BLOCK, BLOCK + 1, 5 * BLOCK, self.chance.integer(0, IO_MAX)))

    def span(self, number: int) -> tuple[int, int, int]:
        """Offset and length that the handle takes, and where the memory may lie."""
        offset, length = self.offset(self.reference.size(number)), self.length()
        into = self.chance.choice((0, 0, 512, 1024, 17))
        if self.handles[number].is_direct:
            unit = self.chance.choice((512, BLOCK))
            offset, length, into = offset - offset % unit, length + -length % unit, into // 512 * 512
        return offset, length, into

    def fill(self) -> int:
        return self.chance.integer(0, 255)

    def handle(self, fits: Callable[[Handle], bool] = lambda handle: True) -> int | None:
        found = [number for number, handle in sorted(self.handles.items()) if fits(handle)]
        return self.chance.choice(found) if found else None

    # Groups of calls.

    def opening(self) -> Call:
        free = [number for number in range(HANDLES) if number not in self.handles]
        if not free or not self.chance.integer(0, 5):
            number = self.handle()
            if number is not None:
                return "close", (number,)
            return "listdir", (f"{self.node()}/",)
        access = self.chance.choice((os.O_RDWR, os.O_RDWR, os.O_RDONLY, os.O_WRONLY))
        extra = self.chance.choice(OPEN_FLAGS)
        direct = self.chance.choice((0, 0, os.O_DIRECT))
        append = os.O_APPEND if self.chance.integer(0, 7) == 7 and not direct else 0
        flags = access | extra | append | (0 if extra & os.O_APPEND else direct)
        path = self.present() if self.chance.integer(0, 2) else self.path()
        return "open", (path, free[0], flags, self.chance.choice((0o644, 0o640, 0o600)))

    def io(self) -> Call:
        number = self.handle()
        if number is None:
            return self.opening()
        offset, length, into = self.span(number)
        kind = self.chance.integer(0, 13)
        if kind <= 3:
            return "pwrite", (number, offset, length, self.fill(), into)
        if kind <= 6:
            return "pread", (number, offset, length, into)
        if kind <= 8:
            return self.mapping(number)
        if kind == 9 and not self.handles[number].is_direct:
            return self.chance.choice((("write", (number, length, self.fill())), ("read", (number, length))))
        if kind == 10:
            return self.chance.choice(
                (("lseek", (number, offset, os.SEEK_SET)), ("lseek", (number, 0, os.SEEK_END)))
            )
        return self.cutting(number) if kind <= 12 else self.copying(number)

    def mapping(self, number: int) -> Call:
        """Inside the file, as a page behind it is SIGBUS."""
        size = self.reference.size(number)
        if size == 0:
            return "fstat", (number,)
        offset = min(self.offset(size), size - 1)
        length = max(1, min(self.length(), size - offset))
        if self.chance.integer(0, 1):
            return "mmap_read", (number, offset, length)
        return "mmap_write", (number, offset, length, self.fill(), bool(self.chance.integer(0, 1)))

    def cutting(self, number: int) -> Call:
        offset, length = self.offset(self.reference.size(number)), self.length()
        kind = self.chance.integer(0, 3)
        if kind == 0:
            return "ftruncate", (number, offset)
        if kind == 1:
            return "truncate", (self.present(), offset)
        mode = self.chance.choice(FALLOCATE_MODES)
        return "fallocate", (number, mode, offset, length)

    def copying(self, target: int) -> Call:
        source = self.handle()
        assert source is not None
        offset = self.offset(self.reference.size(source))
        to = offset if self.chance.integer(0, 1) else self.offset(self.reference.size(target))
        if self.chance.integer(0, 1):
            offset, to = offset // BLOCK * BLOCK, to // BLOCK * BLOCK
        return "copy", (source, offset, target, to, self.length())

    def looking(self) -> Call:
        number = self.handle(lambda handle: handle.reads and not handle.is_direct)
        anyone = self.handle()
        calls: list[Call] = [
            ("stat", (self.present(),)),
            ("listdir", (self.present(),)),
            ("readlink", (self.present(),)),
            ("listxattr", (self.present(),)),
            ("getxattr", (self.present(), self.chance.choice(("user.x", "user.y")))),
            ("statvfs", (f"{self.node()}/",)),
        ]
        if number is not None:
            whence = self.chance.choice((os.SEEK_DATA, os.SEEK_HOLE))
            calls += [
                ("holes", (number,)),
                ("seek_past_the_end", (number, self.chance.integer(0, 9), whence)),
            ]
        if anyone is not None:
            calls += [("fstat", (anyone,))]
        return self.chance.choice(calls)

    def syncing(self) -> Call:
        number = self.handle()
        if number is None:
            return self.opening()
        offset, length, _ = self.span(number)
        calls: list[Call] = [
            ("fsync", (number,)),
            ("fdatasync", (number,)),
            ("sync_file_range", (number, offset, length, self.chance.choice((2, 4, 7)))),
            ("uncache", (number,)),
        ]
        return self.chance.choice(calls)

    def naming(self) -> Call:
        one, other = self.present(), self.path()
        new = f"{one.partition('/')[0]}/{other.partition('/')[2]}"  # both through one mount
        if not self.chance.integer(0, 2):
            one, new = new, one
        calls: list[Call] = [
            ("mkdir", (self.path(), self.chance.choice((0o755, 0o700, 0o2775)))),
            ("mknod", (self.path(), 0o600)),
            ("symlink", (self.path(), other.partition("/")[2])),
            ("rmdir", (self.present(),)),
            ("unlink", (self.present(),)),
            ("rename", (one, new, self.chance.choice((0, 0, 0, 1, 2)))),
            ("rename", (one, new, 0)),
        ]
        return self.chance.choice(calls)

    def attributes(self) -> Call:
        path, xattr = self.present(), self.chance.choice(("user.x", "user.y"))
        number = self.handle()
        times = self.chance.integer(0, 10**18 - 1), self.chance.integer(0, 10**18 - 1)
        owner = (*self.chance.choice(((5, 6), (5, -1), (-1, 6), (0, 0))),)
        mode = self.chance.choice((0o640, 0o4755, 0o2755, 0o777, 0o1777))
        calls: list[Call] = [
            ("chmod", (path, mode)),
            ("utimens", (path, *times)),
            (
                "setxattr",
                (path, xattr, self.chance.choice((0, 1, 300)), self.fill(), self.chance.choice((0, 1, 2))),
            ),
            ("removexattr", (path, xattr)),
        ]
        if number is not None:
            calls += [("fchmod", (number, mode))]
        if self.has_foreign_owners:
            calls += [("chown", (path, *owner))]
        return self.chance.choice(calls)

    def snapshots(self) -> Call:
        path, name, other = self.vdisk(), self.chance.choice(SNAPSHOTS), self.chance.choice(SNAPSHOTS)
        known = sorted(self.reference.snapshots_of(path))
        known_name = self.chance.choice(known) if known and self.chance.integer(0, 4) else name
        node = path.partition("/")[0]
        group = {path, *(f"{node}/{one}" for one in self.reference.vdisks() if self.chance.integer(0, 1))}
        if self.reference.is_file_open(path) and self.chance.integer(0, 5):
            return "snapshot", ([path], name)  # a rollback of an open file waits for its close
        calls: list[Call] = [
            ("snapshot", (sorted(group), name)),
            ("snapshot", ([path], name)),
            ("remove_snapshot", (path, known_name)),
            ("rename_snapshot", (path, known_name, other)),
            ("read_snapshot", (path, known_name)),
            ("rollback", (path, known_name, "" if other in known else other)),
            (
                "clone",
                (path, self.chance.choice(("", known_name)), f"{node}/{self.path().partition('/')[2]}"),
            ),
            ("flatten", (path,)),
            ("collect", (f"{self.node()}/",)),
        ]
        return self.chance.choice(calls)

    def trash(self) -> Call:
        numbers = sorted(self.reference.trash_of)
        if numbers and self.chance.integer(0, 2):
            number = self.chance.choice(numbers)
            name = self.chance.choice(("restore", "restore", "purge"))
            return name, (self.path() if name == "restore" else f"{self.node()}/", number)
        self.trashed += 1
        return "remove", (self.vdisk(), self.trashed if self.chance.integer(0, 2) else 0)

    def event(self) -> Call:
        """A daemon's death, or an unmount."""
        return self.chance.choice(("kill", "kill", "remount")), (f"{self.node()}/",)

    def bytes(self) -> Call:
        """A call that is about an open file, or opens one."""
        groups = [*[self.io] * 14, *[self.opening] * 3, self.looking, self.syncing, self.syncing]
        return self.chance.choice(groups)()

    def names(self) -> Call:
        """A call that is about names."""
        groups = [self.naming, self.naming, self.opening, self.looking, self.attributes]
        return self.chance.choice(groups)()

    def verb(self) -> Call:
        """A verb of the command line."""
        return self.chance.choice([self.snapshots, self.snapshots, self.snapshots, self.trash])()

    def note(self, call: Call, outcome: object) -> None:
        """What was done."""
        name, arguments = call
        if outcome == "ok" and name == "open":
            path, number, flags, _ = arguments
            assert isinstance(path, str) and isinstance(number, int) and isinstance(flags, int)  # noqa: PT018
            self.handles[number] = Handle(int(path.partition("/")[0]), flags)
        elif name == "close":
            number = arguments[0]
            assert isinstance(number, int)
            del self.handles[number]


def handles_of(call: Call) -> list[int]:
    """The handles that a call is about."""
    name, arguments = call
    if name == "copy":
        numbers = [arguments[0], arguments[2]]
    elif name == "open":
        numbers = [arguments[1]]
    else:
        numbers = [arguments[0]] if isinstance(arguments[0], int) else []
    return [number for number in numbers if isinstance(number, int)]


def node_in(call: Call) -> int:
    """Through which mount a call with a path goes."""
    return int(str(call[1][0]).partition("/")[0])
