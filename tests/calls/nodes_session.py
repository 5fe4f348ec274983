"""Several nodes on one folder. The reference is one folder still: what SEMANTICS leaves free between nodes stands here.

* A file that is open for writing on several nodes is open with O_DIRECT on each, as guests have it, and not mapped nor
  appended to: pages that one kernel has not written back are nobody else's (promise 6).
* What is written elsewhere and not synced need not be seen by an open (promise 2): so it is synced first (``publish``), and
  what is truncated by its name is opened and closed.
* Who reads what another node writes has one version from open to close (promise 3): exactly what the file was when it was
  opened. If this node has written the file itself, or its daemon has died since, it may be the newest version as
  well: then each block must be what that block was at some time since the open. Such a handle is only read from.
* A file that was opened for reading where its vdisk was then may answer EIO once the vdisk has another size elsewhere, and is
  opened for writing here again: its inode is another file's by then.
* Attributes, listings and snapshots of other nodes are seen by and by: ``LATER_S``. Names at once.
* Times beside other nodes are not compared.
"""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.calls.drawing import BLOCK, Call, Chance, Handle, handles_of, node_in
from tests.calls.plain_calls import digest
from tests.calls.reference import Reference
from tests.calls.session import ANY, Session, Subject

LATER_S = 10.0
SPARE = 99
"""A handle for what is opened to be closed."""
LOOKING = {
    "stat",
    "fstat",
    "listdir",
    "readlink",
    "listxattr",
    "getxattr",
    "statvfs",
    "tree",
    "read_snapshot",
    "pread",
}
READING = {"pread", "mmap_read", "close", "fsync", "fdatasync"}
BY_PATH = {"open", "stat", "truncate", "clone", "snapshot", "tree", "rollback", "flatten", "remove"}
MADE_BY_NAME = {
    "mkdir",
    "mknod",
    "symlink",
    "rmdir",
    "unlink",
    "rename",
    "chmod",
    "chown",
    "setxattr",
    "removexattr",
}
UNSURE = {"utimens", "lseek", "write", "read"}
"""Times; and positions at the end of what another node may be writing."""


@dataclass
class View:
    """What a handle for reading may show: each of these contents, block by block."""

    inode: int
    contents: list[bytes]
    frozen: bool
    """Only the first of them."""

    def may_be_lost(self) -> bool:
        """Whether its inode may be another file's."""
        return not self.frozen and len({len(content) for content in self.contents}) > 1


@dataclass
class Writers:
    """Of one file: which nodes have ever had it open for writing."""

    ever: set[int] = field(default_factory=set)


class NodesSession(Session):
    """As a session on one node, with what is left free between several."""

    def __init__(self, subject: Subject, reference: Reference, chance: Chance) -> None:
        super().__init__(subject, reference, chance)
        self.writers: dict[int, Writers] = {}
        self.views: dict[int, View] = {}

    # Who has what open.

    def _inode(self, number: int) -> int:
        return os.fstat(self.reference.fds[number]).st_ino

    def _writing(self, inode: int) -> dict[int, Handle]:
        handles = self.drawing.handles
        return {
            number: handle
            for number, handle in handles.items()
            if handle.writes and self._inode(number) == inode
        }

    def _elsewhere(self, inode: int, node: int) -> dict[int, Handle]:
        return {number: handle for number, handle in self._writing(inode).items() if handle.node != node}

    def makes_sense(self, call: Call) -> bool:
        name, arguments = call
        if not super().makes_sense(call) or name in UNSURE:
            return False
        if name == "open":
            return self._may_open(call)
        if name == "truncate":
            others = self._elsewhere(self.reference.inode(str(arguments[0])), node_in(call))
            return all(is_shareable(handle.flags) for handle in others.values())
        numbers = handles_of(call)
        if any(number in self.views and name not in READING for number in numbers):
            return False
        shared = any(self._is_shared(number) for number in numbers)
        return not (shared and name.startswith("mmap"))

    def _is_shared(self, number: int) -> bool:
        nodes = {handle.node for handle in self._writing(self._inode(number)).values()}
        return bool(nodes - {self.drawing.handles[number].node})

    def _may_open(self, call: Call) -> bool:
        path, _, flags, _ = call[1]
        assert isinstance(flags, int)
        if os.path.isdir(self.reference.at(str(path))):
            return False
        others = self._elsewhere(self.reference.inode(str(path)), node_in(call))
        if not others or not changes(flags):
            return True
        return is_shareable(flags) and all(is_shareable(handle.flags) for handle in others.values())

    # Making a call.

    def make(self, call: Call) -> object:
        name, arguments = call
        if name in BY_PATH:
            self.publish(call)
        if name in ("pread", "mmap_read") and arguments[0] in self.views:
            return self._make_view(call)
        if name == "mmap_write":
            call = name, (*arguments[:4], True)
        before = self._inode_before(call)
        outcome = super().make(call)
        if name == "open" and outcome == "ok":
            self._note_open(call)
        elif name == "close":
            self.views.pop(int(str(arguments[0])), None)
        elif name == "truncate" and outcome == "ok":
            self.writers.setdefault(before, Writers()).ever.add(node_in(call))
            super().make(("open", (arguments[0], SPARE, os.O_RDWR | os.O_DIRECT, 0)))
            super().make(("close", (SPARE,)))
        elif name == "kill":
            for number, view in self.views.items():
                view.frozen &= self.drawing.handles[number].node != node_in(call)
        if before:
            self._note_change(before)
        if name in MADE_BY_NAME and outcome == "ok":
            self._settle(call)
        return outcome

    def _inode_before(self, call: Call) -> int:
        if call[0] == "truncate":
            return self.reference.inode(str(call[1][0]))
        numbers = [number for number in handles_of(call) if number in self.reference.fds]
        return self._inode(numbers[-1]) if numbers else 0

    def publish(self, call: Call) -> None:
        """What is written on other nodes than the call's is synced."""
        paths = call[1][0]
        everywhere = call[0] == "tree"
        for path in paths if isinstance(paths, list) else [str(paths)]:
            inode, node = self.reference.inode(path), int(path.partition("/")[0])
            for number, handle in sorted(self.drawing.handles.items()):
                mine = self._inode(number) == inode or everywhere
                if handle.writes and mine and (handle.node != node or everywhere):
                    super().make(("fsync", (number,)))

    def _note_open(self, call: Call) -> None:
        _, number, flags, _ = call[1]
        assert isinstance(number, int) and isinstance(flags, int)  # noqa: PT018
        inode, node = self._inode(number), node_in(call)
        writers = self.writers.setdefault(inode, Writers())
        if changes(flags):
            writers.ever.add(node)
        if not self.drawing.handles[number].writes and writers.ever - {node}:
            content = self._content(number)
            self.views[number] = View(inode, [content], frozen=node not in writers.ever)
            if changes(flags):
                self._note_change(inode)
        elif not self.drawing.handles[number].writes:
            self.views[number] = View(inode, [self._content(number)], frozen=False)

    def _content(self, number: int) -> bytes:
        path = f"/proc/self/fd/{self.reference.fds[number]}"
        with open(path, "rb") as file:
            return file.read()

    def _note_change(self, inode: int) -> None:
        for number, view in self.views.items():
            if view.inode == inode:
                now = self._content(number)
                if now != view.contents[-1]:
                    view.contents.append(now)

    def _make_view(self, call: Call) -> object:
        """A read of what another node writes."""
        name, arguments = call
        number, offset, length = (int(str(one)) for one in arguments[:3])
        view = self.views[number]
        contents = view.contents[:1] if view.frozen else view.contents
        if name == "mmap_read" and offset + length > min(len(content) for content in contents):
            return None
        wanted = [content[offset : offset + length] for content in contents]
        self.steps.append((name, arguments, digest(wanted[0]) if len(set(wanted)) == 1 else ANY))
        ours = self.subject.call(name, *arguments)
        if ours == "EIO" and view.may_be_lost():
            self.steps[-1] = name, arguments, ANY
            return ours
        if ours in wanted or (isinstance(ours, bytes) and is_mixed(ours, offset, wanted)):
            return ours
        raise self.difference(call, ours, wanted[0])

    def ask(self, call: Call, wanted: object) -> object:
        name, arguments = call
        deadline = time.monotonic() + LATER_S
        while True:
            ours = self.subject.call(name, *arguments)
            if ours == "EIO" and any(self._may_be_lost(number) for number in handles_of(call)):
                self.steps[-1] = name, arguments, ANY
                return wanted
            is_idle = name in LOOKING or ours == "refused" or (name == "open" and ours == "ESTALE")
            if self.same(ours, wanted) or not is_idle or time.monotonic() > deadline:
                return ours

    def _may_be_lost(self, number: int) -> bool:
        return number in self.views and self.views[number].may_be_lost()

    def same(self, ours: object, wanted: object) -> bool:
        return without_times(ours) == without_times(wanted)

    def _settle(self, call: Call) -> None:
        """The other nodes have heard of it, too: what is asked of them next may rest on it."""
        for path in [str(one) for one in call[1][: 2 if call[0] == "rename" else 1]]:
            for node in range(self.nodes):
                if node != node_in(call) and os.path.lexists(self.reference.at(path)):
                    self.make(("stat", (f"{node}/{path.partition('/')[2]}",)))
                    if not os.path.islink(self.reference.at(path)):
                        self.make(("listxattr", (f"{node}/{path.partition('/')[2]}",)))


def changes(flags: int) -> bool:
    """Whether such an open may write."""
    return flags & os.O_ACCMODE != os.O_RDONLY or bool(flags & os.O_TRUNC)


def is_shareable(flags: int) -> bool:
    """Whether a file may be open so on several nodes."""
    return bool(flags & os.O_DIRECT) and not flags & os.O_APPEND


def is_mixed(ours: bytes, offset: int, wanted: Sequence[bytes]) -> bool:
    """Whether each block is what it was in one of these."""
    if len(ours) not in {len(one) for one in wanted}:
        return False
    at = 0
    while at < len(ours):
        end = min(len(ours), at + BLOCK - (offset + at) % BLOCK)
        pieces = {one[at:end].ljust(end - at, b"\0") for one in wanted}
        if ours[at:end] not in pieces:
            return False
        at = end
    return True


def without_times(outcome: object) -> object:
    """An answer of ``stat`` or ``tree`` as far as it is compared."""
    if isinstance(outcome, dict):
        return {path: (without_times(facts), *rest) for path, (facts, *rest) in outcome.items()}
    return outcome[:5] if isinstance(outcome, tuple) else outcome
