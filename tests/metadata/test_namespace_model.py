"""The plans and the mirror against a tree of dicts, with a second node that lags behind."""

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from metadata.catalog import ROOT_ID, Change
from metadata.errors import Exists, InvalidRequest, NotFound, VdiskfsError
from metadata.namespace import Kind
from metadata.namespace_plans import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    Entry,
    plan_create,
    plan_forget,
    plan_mkdir,
    plan_rename,
    plan_rmdir,
    plan_trash,
    plan_unlink,
)
from tests.metadata.rows_in_a_dict import Node, Plan, Rows, facts, refused


@dataclass
class Item:
    inode: int
    children: dict[bytes, "Item"] | None = None


NAMES = st.sampled_from([b"a", b"b", b"c"])
PICK = st.integers(min_value=0, max_value=10**6)


class TreeOfDicts(RuleBasedStateMachine):
    """What the plans say, carried out and mirrored, against plain dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Node()
        self.root = Item(ROOT_ID, {})
        self.orphans: set[int] = set()
        self.trashed: set[int] = set()

    @initialize()
    def start(self) -> None:
        self.lagging = self.node.rows.mirror()

    def directories(self) -> list[Item]:
        found, waiting = [], [self.root]
        while waiting:
            item = waiting.pop()
            if item.children is not None:
                found.append(item)
                waiting += item.children.values()
        return found

    def pick(self, pick: int) -> Item:
        directories = self.directories()
        return directories[pick % len(directories)]

    def is_below(self, item: Item, top: Item) -> bool:
        return item is top or any(self.is_below(item, child) for child in (top.children or {}).values())

    def expect(self, call: Callable[[], object], error: int) -> bool:
        if error:
            refused(error, call)
            return False
        call()
        return True

    @rule(pick=PICK, name=NAMES, directory=st.booleans())
    def make(self, pick: int, name: bytes, directory: bool) -> None:
        parent = self.pick(pick)
        assert parent.children is not None
        number = self.node.next_id
        make = self.node.mkdir if directory else self.node.create
        if self.expect(lambda: make(parent.inode, name), errno.EEXIST if name in parent.children else 0):
            parent.children[name] = Item(number, {} if directory else None)

    @rule(pick=PICK, name=NAMES, directory=st.booleans())
    def remove(self, pick: int, name: bytes, directory: bool) -> None:
        parent = self.pick(pick)
        assert parent.children is not None
        item = parent.children.get(name)
        if item is None:
            error = errno.ENOENT
        elif directory:
            error = errno.ENOTDIR if item.children is None else errno.ENOTEMPTY if item.children else 0
        else:
            error = 0 if item.children is None else errno.EISDIR
        remove = self.node.rmdir if directory else self.node.unlink
        if self.expect(lambda: remove(parent.inode, name), error):
            self.orphans.add(parent.children.pop(name).inode)

    @rule(
        pick=PICK, name=NAMES, other_pick=PICK, other_name=NAMES,
        flags=st.sampled_from([0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )  # fmt: skip
    def rename(self, pick: int, name: bytes, other_pick: int, other_name: bytes, flags: int) -> None:
        source, target = self.pick(pick), self.pick(other_pick)
        assert source.children is not None
        assert target.children is not None
        moved, replaced = source.children.get(name), target.children.get(other_name)
        error = self.rename_error(source, moved, target=target, replaced=replaced, flags=flags)
        self.expect(lambda: self.node.rename((source.inode, name), (target.inode, other_name), flags), error)
        if error or moved is replaced:
            return
        assert moved is not None
        del source.children[name]
        target.children[other_name] = moved
        if flags == RENAME_EXCHANGE:
            assert replaced is not None
            source.children[name] = replaced
        elif replaced is not None:
            self.orphans.add(replaced.inode)

    def rename_error(
        self, source: Item, moved: Item | None, *, target: Item, replaced: Item | None, flags: int
    ) -> int:
        if moved is None or (replaced is None and flags == RENAME_EXCHANGE):
            return errno.ENOENT
        if replaced is not None and flags == RENAME_NOREPLACE:
            return errno.EEXIST
        if self.is_below(target, moved):
            return errno.EINVAL
        if replaced is None or replaced is moved:
            return 0
        if flags == RENAME_EXCHANGE:
            return errno.EINVAL if self.is_below(source, replaced) else 0
        if replaced.children is None:
            return 0 if moved.children is None else errno.ENOTDIR
        if moved.children is None:
            return errno.EISDIR
        return errno.ENOTEMPTY if replaced.children else 0

    @rule(pick=PICK, name=NAMES)
    def throw_away(self, pick: int, name: bytes) -> None:
        parent = self.pick(pick)
        assert parent.children is not None
        item = parent.children.get(name)
        error = errno.ENOENT if item is None else errno.EINVAL if item.children is not None else 0
        if self.expect(lambda: self.node.trash(parent.inode, name), error):
            self.trashed.add(parent.children.pop(name).inode)

    @precondition(lambda self: self.trashed)
    @rule(pick=PICK, name=NAMES, which=PICK)
    def restore(self, pick: int, name: bytes, which: int) -> None:
        parent, inode = self.pick(pick), sorted(self.trashed)[which % len(self.trashed)]
        assert parent.children is not None
        error = errno.EEXIST if name in parent.children else 0
        if self.expect(lambda: self.node.restore(inode, parent.inode, name), error):
            parent.children[name] = Item(inode)
            self.trashed.remove(inode)

    @precondition(lambda self: self.trashed)
    @rule(pick=PICK)
    def purge(self, pick: int) -> None:
        inode = sorted(self.trashed)[pick % len(self.trashed)]
        self.node.purge(inode)
        self.trashed.remove(inode)
        self.orphans.add(inode)

    @precondition(lambda self: self.orphans)
    @rule(pick=PICK)
    def forget(self, pick: int) -> None:
        inode = sorted(self.orphans)[pick % len(self.orphans)]
        self.node.do(lambda ns: plan_forget(ns, inode))
        self.orphans.remove(inode)

    @rule(seed=PICK)
    def let_the_other_node_follow(self, seed: int) -> None:
        """Collapsed, as a catalog may: each key's newest state only, and within a revision in any order."""
        newest = {
            event.key: event for event in self.node.rows.history if event.revision > self.lagging.revision
        }
        events = list(newest.values())
        random.Random(seed).shuffle(events)
        events.sort(key=lambda event: event.revision)
        self.lagging.apply(events, self.node.rows.revision)
        assert facts(self.lagging) == facts(self.node.namespace)

    @rule(pick=PICK, name=NAMES, other_pick=PICK, other_name=NAMES, what=st.integers(0, 5))
    def plan_on_what_the_other_node_sees(
        self, pick: int, name: bytes, other_pick: int, other_name: bytes, what: int
    ) -> None:
        """A plan made on an old mirror conflicts, or is as good as one made on the present one."""
        old = self.lagging
        directories = sorted(old.inodes(Kind.DIRECTORY))
        source = Entry(directories[pick % len(directories)], name)
        target = Entry(directories[other_pick % len(directories)], other_name)
        birth, deed = self.node.birth(), self.node.deed()
        plans: list[Plan] = [
            lambda ns: plan_create(ns, source, birth=birth),
            lambda ns: plan_mkdir(ns, source, birth=birth),
            lambda ns: plan_unlink(ns, source, deed=deed),
            lambda ns: plan_rmdir(ns, source, deed=deed),
            lambda ns: plan_rename(ns, source, target=target, flags=0, deed=deed),
            lambda ns: plan_rename(ns, source, target=target, flags=RENAME_EXCHANGE, deed=deed),
        ]
        try:
            stale = plans[what](old)
            Rows(dict(self.node.rows.rows), [], self.node.rows.revision).transact(stale)
        except VdiskfsError:
            return
        if stale != Change():  # nothing to do, as with a rename onto itself, is as good as an error
            assert plans[what](self.node.namespace) == stale

    @rule(pick=PICK, name=NAMES)
    def attempt_and_undo(self, pick: int, name: bytes) -> None:
        namespace = self.node.namespace
        before, undos = facts(namespace), []
        parent, birth = self.pick(pick).inode, self.node.birth()
        for plan in (
            lambda ns: plan_mkdir(ns, Entry(parent, name), birth=birth),
            lambda ns: plan_rename(
                ns, Entry(parent, name), target=Entry(ROOT_ID, b"new"), flags=0, deed=self.node.deed()
            ),
            lambda ns: plan_rmdir(ns, Entry(ROOT_ID, b"new"), deed=self.node.deed()),
            lambda ns: plan_trash(ns, Entry(parent, b"a"), deed=self.node.deed(), until_ns=0),
        ):
            try:
                undos.append(namespace.attempt(plan(namespace), namespace.revision + 1))
            except (NotFound, Exists, InvalidRequest):
                continue
        for undo in reversed(undos):
            namespace.undo(undo)
        assert facts(namespace) == before

    @invariant()
    def the_tree_is_the_model(self) -> None:
        namespace = self.node.namespace
        for item in self.directories():
            assert item.children is not None
            listed = list(namespace.children(item.inode))
            assert dict(listed) == {name: child.inode for name, child in item.children.items()}
            assert [child for _, child in listed] == sorted(child for _, child in listed)
            subdirectories = sum(child.children is not None for child in item.children.values())
            assert namespace.link_count(item.inode) == 2 + subdirectories
            for name, child in item.children.items():
                assert namespace.lookup(item.inode, name) == child.inode
                assert namespace.link_count(child.inode) >= 1
                assert namespace.parent(child.inode) == item.inode
        assert set(namespace.orphans("here")) == self.orphans
        assert set(namespace.trash()) == self.trashed

    @invariant()
    def the_mirror_is_what_its_rows_say(self) -> None:
        assert facts(self.node.namespace) == facts(self.node.rows.mirror())


TestTreeOfDicts = TreeOfDicts.TestCase
