"""A catalog of rows in a dict, and a node on top of it, for tests of plans without any waiting."""

import errno
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from metadata.catalog import FIRST_FREE_ID, Change, Event
from metadata.errors import Conflict, VdiskfsError
from metadata.namespace import Kind, Namespace
from metadata.namespace_plans import (
    Birth,
    Deed,
    Entry,
    plan_create,
    plan_mkdir,
    plan_purge,
    plan_rename,
    plan_restore,
    plan_rmdir,
    plan_root,
    plan_trash,
    plan_unlink,
)

Plan = Callable[[Namespace], Change]


@dataclass
class Rows:
    """A catalog as pure as the plans: what compares, what is written, and the events of it."""

    rows: dict[bytes, tuple[bytes, int]] = field(default_factory=dict)
    history: list[Event] = field(default_factory=list)
    revision: int = 0

    def transact(self, change: Change) -> list[Event]:
        for key, revision in change.compares:
            if self.rows.get(key, (b"", 0))[1] != revision:
                raise Conflict(f"key={key!r}")
        if not change.puts and not change.deletes:
            return []
        self.revision += 1
        events = [Event(key, value, self.revision) for key, value in change.puts]
        events += [Event(key, None, self.revision) for key in change.deletes if key in self.rows]
        assert not set(change.deletes) & {key for key, _ in change.puts}
        for event in events:
            if event.value is None:
                del self.rows[event.key]
            else:
                self.rows[event.key] = event.value, event.revision
        self.history += events
        return events

    def mirror(self) -> Namespace:
        namespace = Namespace()
        events = [Event(key, value, revision) for key, (value, revision) in self.rows.items()]
        namespace.apply(events, self.revision)
        return namespace


class Node:
    """A mirror and what it mirrors; ``do`` plans, carries out and follows."""

    def __init__(self) -> None:
        self.rows = Rows()
        self.namespace = Namespace()
        self.next_id = FIRST_FREE_ID
        self.now_ns = 1000
        self.rows.transact(plan_root(7, 8, now_ns=self.now_ns))
        self.follow()

    def follow(self) -> None:
        new = [event for event in self.rows.history if event.revision > self.namespace.revision]
        self.namespace.apply(new, self.rows.revision)

    def do(self, plan: Plan) -> None:
        self.now_ns += 1
        self.rows.transact(plan(self.namespace))
        self.follow()

    def birth(self, mode: int = 0o644) -> Birth:
        self.next_id += 1
        return Birth(self.next_id - 1, mode, 1000, 1001, self.now_ns + 1)

    def deed(self) -> Deed:
        return Deed("here", self.now_ns + 1)

    def create(self, parent: int, name: bytes) -> int:
        birth = self.birth()
        self.do(lambda ns: plan_create(ns, Entry(parent, name), birth=birth))
        return birth.inode

    def mkdir(self, parent: int, name: bytes, *, mode: int = 0o755) -> int:
        birth = self.birth(mode)
        self.do(lambda ns: plan_mkdir(ns, Entry(parent, name), birth=birth))
        return birth.inode

    def unlink(self, parent: int, name: bytes) -> None:
        deed = self.deed()
        self.do(lambda ns: plan_unlink(ns, Entry(parent, name), deed=deed))

    def rmdir(self, parent: int, name: bytes) -> None:
        deed = self.deed()
        self.do(lambda ns: plan_rmdir(ns, Entry(parent, name), deed=deed))

    def trash(self, parent: int, name: bytes, *, for_ns: int = 100) -> None:
        deed = self.deed()
        self.do(lambda ns: plan_trash(ns, Entry(parent, name), deed=deed, until_ns=deed.now_ns + for_ns))

    def restore(self, vdisk: int, parent: int, name: bytes) -> None:
        deed = self.deed()
        self.do(lambda ns: plan_restore(ns, vdisk, entry=Entry(parent, name), deed=deed))

    def purge(self, vdisk: int) -> None:
        deed = self.deed()
        self.do(lambda ns: plan_purge(ns, vdisk, deed=deed))

    def rename(self, source: tuple[int, bytes], target: tuple[int, bytes], flags: int = 0) -> None:
        deed = self.deed()
        self.do(lambda ns: plan_rename(ns, Entry(*source), target=Entry(*target), flags=flags, deed=deed))


def facts(namespace: Namespace) -> dict[str, object]:
    """All that a namespace answers, to tell whether two are equal."""
    numbers = [number for kind in Kind for number in namespace.inodes(kind)]
    return {
        "inodes": {number: namespace.inode(number) for number in numbers},
        "places": {number: namespace.place(number) for number in numbers},
        "links": {number: namespace.link_count(number) for number in numbers},
        "children": {number: list(namespace.children(number)) for number in numbers},
        "found": {
            number: {name: namespace.find(number, name) for name, _ in namespace.children(number)}
            for number in numbers
        },
        "revisions": {
            number: {name: namespace.name_revision(number, name) for name, _ in namespace.children(number)}
            for number in numbers
        },
        "empty": {number: namespace.is_empty(number) for number in numbers},
        "orphans": sorted(namespace.orphans("here")),
        "trash": namespace.trash(),
        "trash revisions": {number: trashed.revision for number, trashed in namespace.trash().items()},
    }


def refused(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(VdiskfsError) as caught:
        call()
    assert errno.errorcode[caught.value.number] == errno.errorcode[number]
