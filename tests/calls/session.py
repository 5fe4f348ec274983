"""One folder's life: the same calls on what is tested and on the reference, outcomes compared, a script of it if they differ."""

import os
import stat
from collections.abc import Sequence
from typing import Any, Protocol

from tests.calls.drawing import Call, Chance, Drawing, handles_of, node_in
from tests.calls.plain_calls import digest
from tests.calls.reference import Reference
from tests.calls.script import Step, script

ANY = "*"
BEGIN_BYTES = 100_000
SHOWN_MAX = 2000
SEEKING = ("lseek", "holes", "seek_past_the_end")
"""Of directories, each filesystem has its own positions."""
MAY_REFUSE = ("rollback",)
"""Of a file that is open, it may be refused, and may be done."""


class Subject(Protocol):
    """What is tested: the calls of ``plain_calls.Files`` by name."""

    def call(self, name: str, *arguments: object) -> object: ...


class Difference(AssertionError):
    """Ours is not the reference's outcome: what was done, and which call it was."""

    def __init__(self, said: str, steps: Sequence[Step], nodes: int) -> None:
        name = steps[-1][0]
        text = script(steps, nodes=nodes, title=f" of {name}")
        super().__init__(f"{said}\n---- this script replays it ----\n{text}")
        self.calls = [(name, arguments) for name, arguments, _ in steps]


class Session:
    """Begins and ends with an empty folder."""

    def __init__(
        self, subject: Subject, reference: Reference, chance: Chance, *, opens_folders: bool = True
    ) -> None:
        self.subject, self.reference, self.opens_folders = subject, reference, opens_folders
        self.nodes = len(reference.roots)
        self.drawing = Drawing(chance, reference, self.nodes)
        self.steps: list[Step] = []
        os.mkdir(reference.at("0/"))

    def begin(self) -> None:
        """A file with some data in it, open as a guest and as a tool have it: most of what is drawn then finds something."""
        for flags, number in ((os.O_CREAT | os.O_RDWR, 0), (os.O_RDWR | os.O_DIRECT, 1)):
            self.make(("open", ("0/a", number, flags, 0o644)))
        self.make(("pwrite", (0, 0, BEGIN_BYTES, 1, 0)))

    def draw(self, group: str) -> None:
        """Draw a call of a group (a method of the drawing's), and make it."""
        name, arguments = getattr(self.drawing, group)()
        if name == "remount":
            for number, handle in sorted(self.drawing.handles.items()):
                if handle.node == node_in((name, arguments)):
                    self.make(("close", (number,)))
        if self.makes_sense((name, arguments)):
            self.make((name, arguments))

    def make(self, call: Call) -> object:
        """Make it on both, and compare."""
        name, arguments = call
        if name in MAY_REFUSE and self.reference.is_file_open(str(arguments[0])):
            ours: object = self.subject.call(name, *arguments)
            wanted: object = ours
            if ours == "ok":
                wanted = self.reference.call(name, *arguments)
            self.steps.append((name, arguments, ANY))
        else:
            wanted = self.reference.call(name, *arguments)
            self.steps.append((name, arguments, digest(wanted)))
            ours = self.ask(call, wanted)
        if not self.same(ours, wanted):
            raise self.difference(call, ours, wanted)
        self.drawing.note(call, ours)
        return ours

    def ask(self, call: Call, wanted: object) -> object:
        """What ours answers."""
        return self.subject.call(call[0], *call[1])

    def same(self, ours: object, wanted: object) -> bool:
        """Whether that is the answer."""
        return ours == wanted

    def replay(self, calls: Sequence[Call]) -> None:
        """As many of these calls as make sense here."""
        for call in calls:
            if self.makes_sense(call):
                self.make(call)

    def makes_sense(self, call: Call) -> bool:
        """Whether its handles are open (or not yet), and what it means is there."""
        name, arguments = call
        handles = [number in self.drawing.handles for number in handles_of(call)]
        if name == "remove":
            path = str(arguments[0])  # who has it open is asked of the system, and this process is left out
            return self._is_vdisk(path) and not self.reference.is_file_open(path)
        if name in ("restore", "purge") and arguments[1] not in self.reference.trash_of:
            return False
        if name == "remount" and any(
            handle.node == node_in(call) for handle in self.drawing.handles.values()
        ):
            return False
        if name == "open" and not self.opens_folders and os.path.isdir(self.reference.at(str(arguments[0]))):
            return False
        if not all(is_open != (name == "open") for is_open in handles):
            return False
        if name in SEEKING and stat.S_ISDIR(os.fstat(self.reference.fds[handles_of(call)[0]]).st_mode):
            return False
        return not name.startswith("mmap") or self._is_inside(*arguments[:3])

    def _is_inside(self, number: object, offset: object, length: object) -> bool:
        assert isinstance(number, int) and isinstance(offset, int) and isinstance(length, int)  # noqa: PT018
        return offset + length <= self.reference.size(number)

    def _is_vdisk(self, path: str) -> bool:
        at = self.reference.at(path)
        return os.path.isfile(at) and not os.path.islink(at)

    def difference(self, call: Call, ours: object, wanted: object) -> Difference:
        said = f"{call[0]}{call[1]!r:.200} answers {_shown(ours, wanted)}"
        return Difference(said, self.steps, self.nodes)

    def compare(self, nodes: Sequence[int] | None = None) -> None:
        """All there is, and all snapshots."""
        for node in range(self.nodes) if nodes is None else nodes:
            self.make(("tree", (f"{node}/",)))
            for name in self.reference.vdisks():
                for snapshot in sorted(self.reference.snapshots_of(f"{node}/{name}")):
                    self.make(("read_snapshot", (f"{node}/{name}", snapshot)))

    def finish(self) -> None:
        """Close all, compare all, delete all."""
        for number in sorted(self.drawing.handles):
            self.make(("close", (number,)))
        self.compare()
        self.empty()

    def empty(self) -> None:
        """Delete all, as root may: what has snapshots with them."""
        for number in sorted(self.reference.trash_of):
            self.make(("purge", ("0/", number)))
        for name in sorted(self.reference.names(), key=lambda name: -name.count("/")):
            path = f"0/{name}"
            kind = stat.S_IFMT(os.lstat(self.reference.at(path)).st_mode)
            if kind == stat.S_IFDIR:
                self.make(("rmdir", (path,)))
            elif self.reference.snapshots_of(path):
                self.make(("remove", (path, 0)))
            else:
                self.make(("unlink", (path,)))


def _shown(ours: Any, wanted: Any) -> str:
    """Where they differ."""
    if isinstance(ours, dict) and isinstance(wanted, dict):
        keys = [key for key in {*ours, *wanted} if ours.get(key) != wanted.get(key)]
        return "; ".join(f"{key}: {_shown(ours.get(key), wanted.get(key))}" for key in sorted(keys))[
            :SHOWN_MAX
        ]
    if isinstance(ours, tuple) and isinstance(wanted, tuple) and len(ours) == len(wanted):
        return ", ".join(_shown(a, b) for a, b in zip(ours, wanted, strict=True) if a != b)
    if isinstance(ours, bytes) and isinstance(wanted, bytes):
        pairs = enumerate(zip(ours, wanted, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(wanted)))
        last = max((i for i, (a, b) in enumerate(zip(ours, wanted, strict=False)) if a != b), default=first)
        return f"{digest(ours)}, not {digest(wanted)}; they differ at {first}..{last}"
    return f"{digest(ours)!r:.500}, not {digest(wanted)!r:.500}"
