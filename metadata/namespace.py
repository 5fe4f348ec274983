"""The directory tree in memory: a mirror of the catalog's names and inodes. Pure.

It is read once and then kept up with the catalog's events, in order of revision, so it always equals the
catalog at ``revision``; every question about names is answered from here without waiting. Changes are planned
against it (metadata/namespace_plans.py) and compared with the catalog's revisions when carried out.

**Invariant** an inode is in at most one directory (there are no hard links); its ``Place`` says where. A
directory's ``order`` holds its children's ids, sorted: the id is the position in a listing, so positions
stay what they are while entries come and go, and mean the same to another daemon.

Kernels with a write-back cache tell the times of a written vdisk at each ``fsync``. Those are *recent times*:
shown at once, stored with the inode's next change or by and by, since the vdisk's log has a time of its own.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import cast

from metadata.catalog import (
    EXCHANGE_PREFIX,
    INODE_PREFIX,
    MOVES_KEY,
    NAME_PREFIX,
    NEXT_ID_KEY,
    ORPHAN_PREFIX,
    ROOT_ID,
    TRASH_PREFIX,
    Change,
    Event,
    Row,
    check_kind,
    decode_value,
    encode_value,
    id_in_key,
    name_key,
)
from metadata.errors import Corrupt, NotFound
from metadata.trash import Trashed, decode_trashed

MODE_BITS = 0o7777
_NAME_AT = len(name_key(0, b""))


class Kind(StrEnum):
    """What an inode is. Every regular file is a vdisk."""

    FILE = "f"
    DIRECTORY = "d"
    SYMLINK = "l"


@dataclass(frozen=True, slots=True)
class Inode:
    """An inode's attributes. ``mode`` has the permission bits only; ``revision`` is its row's."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mtime_set_ns: int = 0
    """When somebody set ``mtime_ns``; what was written into the vdisk later counts instead."""
    target: bytes = b""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    revision: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Place:
    """Where an inode is: its name, in its directory. ``revision`` is the name row's."""

    parent: int
    name: bytes
    revision: int = field(default=0, compare=False)


def encode_inode(inode: Inode) -> bytes:
    """An ``inode/`` row's value."""
    fields: dict[str, object] = {
        "kind": inode.kind.value,
        "mode": inode.mode,
        "uid": inode.uid,
        "gid": inode.gid,
        "atime": inode.atime_ns,
        "mtime": inode.mtime_ns,
        "ctime": inode.ctime_ns,
    }
    if inode.mtime_set_ns:
        fields["mtime_set"] = inode.mtime_set_ns
    if inode.target:
        fields["target"] = inode.target
    if inode.xattrs:
        fields["xattrs"] = dict(inode.xattrs)
    return encode_value(fields)


_KINDS = {kind.value: kind for kind in Kind}
_NO_XATTRS: dict[bytes, bytes] = {}


def decode_inode(key: bytes, value: bytes, revision: int) -> Inode:
    """An ``inode/`` row.

    Raises:
        Corrupt: it is none.
    """
    fields = cast("dict[str, int]", decode_value(key, value))
    try:
        mtime_ns, ctime_ns = fields["mtime"], fields["ctime"]
        mtime_set_ns = fields.get("mtime_set", 0)
        mode, uid, gid, atime_ns = fields["mode"], fields["uid"], fields["gid"], fields["atime"]
        check_kind(int, (mode, uid, gid, atime_ns, mtime_ns, ctime_ns, mtime_set_ns))
        target = cast("bytes", fields.get("target", b""))
        xattrs = cast("dict[bytes, bytes]", fields.get("xattrs", _NO_XATTRS))
        check_kind(bytes, (*xattrs, *xattrs.values(), target))
        return Inode(
            kind=_KINDS[cast("str", fields["kind"])],
            mode=mode,
            uid=uid,
            gid=gid,
            atime_ns=atime_ns,
            mtime_ns=mtime_ns,
            ctime_ns=mtime_ns if ctime_ns == mtime_ns else ctime_ns,  # one object: there are many inodes
            mtime_set_ns=mtime_set_ns,
            target=target,
            xattrs=tuple(xattrs.items()),
            revision=revision,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise Corrupt(f"an unreadable inode in the catalog key={key!r}") from exc


@dataclass(slots=True)
class _Directory:
    """What is in a directory that is not empty."""

    children: dict[bytes, int] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    subdirectories: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class _Fact:
    """A row as the mirror holds it: decoded. ``value`` None: there is no such row."""

    key: bytes
    value: Inode | Trashed | int | str | None
    revision: int


@dataclass(frozen=True, slots=True)
class Undo:
    """What ``Namespace.attempt`` has overwritten."""

    facts: tuple[_Fact, ...]
    recent: dict[int, Inode | None]


class Namespace:
    """The mirror. Lives as long as the mount; written only by its store (fusefs/namespace_store.py)."""

    def __init__(self) -> None:
        self.revision = 0
        self._inodes: dict[int, Inode] = {}
        self._places: dict[int, Place] = {}
        self._directories: dict[int, _Directory] = {}
        self._orphans: dict[int, tuple[str, int]] = {}
        self._trash: dict[int, Trashed] = {}
        self._single: dict[bytes, tuple[int, int]] = {}
        """Value and revision of the rows that hold one number: next_id, moves, exchange/NODE."""
        self._recent: dict[int, Inode] = {}

    # Questions.

    def inode(self, inode: int) -> Inode:
        """An inode's attributes, recent times included.

        Raises:
            NotFound: there is no such inode.
        """
        found = self._recent.get(inode) or self._inodes.get(inode)
        if found is None:
            raise NotFound(f"no such inode inode={inode}")
        return found

    def find(self, parent: int, name: bytes) -> int | None:
        """The inode that ``name`` stands for, if there is one."""
        directory = self._directories.get(parent)
        return directory.children.get(name) if directory else None

    def lookup(self, parent: int, name: bytes) -> int:
        """The inode that ``name`` stands for.

        Raises:
            NotFound: there is no such name.
        """
        found = self.find(parent, name)
        if found is None:
            raise NotFound(f"no such file or directory name={name.decode(errors='replace')}")
        return found

    def place(self, inode: int) -> Place | None:
        """Where an inode is; None for the root and for what has no name any more."""
        return self._places.get(inode)

    def parent(self, inode: int) -> int:
        """The directory an inode is in; the root is its own."""
        place = self._places.get(inode)
        return place.parent if place else ROOT_ID

    def path(self, inode: int) -> bytes | None:
        """The names from the root to an inode, joined by ``/``: empty for the root, None without a name."""
        names: list[bytes] = []
        while inode != ROOT_ID:
            place = self._places.get(inode)
            if place is None:
                return None
            names.append(place.name)
            inode = place.parent
        return b"/".join(reversed(names))

    def resolve(self, path: bytes) -> int:
        """The inode at a path below the root; symbolic links are not followed.

        Raises:
            NotFound: there is none.
        """
        inode = ROOT_ID
        for name in path.split(b"/"):
            if name not in (b"", b"."):
                inode = self.parent(inode) if name == b".." else self.lookup(inode, name)
        return inode

    def is_within(self, inode: int, ancestor: int) -> bool:
        """Whether an inode is ``ancestor`` or somewhere below it."""
        while inode != ancestor:
            if inode == ROOT_ID or inode not in self._places:
                return False
            inode = self._places[inode].parent
        return True

    def children(self, directory: int) -> Iterator[tuple[bytes, int]]:
        """Every name in a directory with its inode, by age. For use without awaits."""
        found = self._directories.get(directory)
        if found is not None:
            for child in found.order:
                yield self._places[child].name, child

    def children_after(self, directory: int, *, position: int, count: int) -> list[tuple[bytes, int]]:
        """Up to ``count`` children whose ids are above ``position``, in order of id."""
        found = self._directories.get(directory)
        if found is None:
            return []
        start = bisect_right(found.order, position)
        return [(self._places[child].name, child) for child in found.order[start : start + count]]

    def is_empty(self, directory: int) -> bool:
        """Whether a directory has no children."""
        return directory not in self._directories

    def link_count(self, inode: int) -> int:
        """How often an inode is linked, as stat(2) counts; 0 for what has no name any more."""
        if inode in self._orphans:
            return 0
        if self.inode(inode).kind is not Kind.DIRECTORY:
            return 1
        found = self._directories.get(inode)
        return 2 + (len(found.subdirectories) if found else 0)

    def inodes(self, kind: Kind) -> list[int]:
        """Every inode of a kind, those without a name included."""
        return [number for number, inode in self._inodes.items() if inode.kind is kind]

    def inode_count(self) -> int:
        """How many inodes there are."""
        return len(self._inodes)

    def is_orphan(self, inode: int) -> bool:
        """Whether an inode has no name any more, but may still be open."""
        return inode in self._orphans

    def orphan_node(self, inode: int) -> str | None:
        """The node where a nameless inode may still be open; None for one that has a name."""
        orphan = self._orphans.get(inode)
        return orphan[0] if orphan else None

    def orphans(self, node: str) -> list[int]:
        """The nameless inodes that a node had open."""
        return [inode for inode, (owner, _) in self._orphans.items() if owner == node]

    def orphans_by_node(self) -> dict[str, list[int]]:
        """All nameless inodes, by the node that has them open."""
        found: dict[str, list[int]] = {}
        for inode, (node, _) in self._orphans.items():
            found.setdefault(node, []).append(inode)
        return found

    def trashed(self, inode: int) -> Trashed | None:
        """Where a vdisk in the trash was; None for one that is not there."""
        return self._trash.get(inode)

    def trash(self) -> dict[int, Trashed]:
        """The vdisks in the trash, by id."""
        return dict(self._trash)

    def names(self) -> Iterator[tuple[int, bytes, int]]:
        """Every directory's entries: the directory, the name, the inode. For use without awaits."""
        for parent, directory in self._directories.items():
            for name, child in directory.children.items():
                yield parent, name, child

    # Revisions, for compares.

    def inode_revision(self, inode: int) -> int:
        """The revision of an inode's row; 0: there is none."""
        found = self._inodes.get(inode)
        return found.revision if found else 0

    def name_revision(self, parent: int, name: bytes) -> int:
        """The revision of a name's row; 0: there is none."""
        child = self.find(parent, name)
        return self._places[child].revision if child is not None else 0

    def orphan_revision(self, inode: int) -> int:
        """The revision of an orphan's row; 0: there is none."""
        return self._orphans[inode][1] if inode in self._orphans else 0

    def number(self, key: bytes) -> tuple[int, int]:
        """Value and revision of ``next_id``, ``moves`` or an ``exchange/`` row; zeros if there is none."""
        return self._single.get(key, (0, 0))

    # Changes.

    def apply(self, events: Iterable[Event], revision: int) -> None:
        """Follow the catalog to ``revision``; ``events`` are all that happened since the mirror's.

        Raises:
            Corrupt: a row cannot be read; nothing was applied.
        """
        self._set([_decode(event.key, event.value, event.revision) for event in events])
        self.revision = revision

    def reload(self, rows: Iterable[Row], revision: int) -> None:
        """Become the catalog at ``revision``, of which these are all rows; recent times are kept.

        Raises:
            Corrupt: a row cannot be read; nothing has changed.
        """
        facts = [_decode(row.key, row.value, row.revision) for row in rows]
        for held in (self._inodes, self._places, self._directories, self._orphans, self._trash, self._single):
            held.clear()
        self._set(facts)
        self._recent = {inode: recent for inode, recent in self._recent.items() if inode in self._inodes}
        self.revision = revision

    def attempt(self, change: Change, revision: int) -> Undo:
        """Make a change that the catalog has not seen, for planning on top of it; ``undo`` takes it back."""
        facts = [_decode(key, value, revision) for key, value in change.puts]
        facts += [_Fact(key, None, revision) for key in change.deletes]
        touched = [id_in_key(fact.key, INODE_PREFIX) for fact in facts if fact.key.startswith(INODE_PREFIX)]
        undo = Undo(
            tuple(self._fact(fact.key) for fact in facts),
            {inode: self._recent.get(inode) for inode in touched},
        )
        self._set(facts)
        return undo

    def undo(self, undo: Undo) -> None:
        """Take ``attempt``s back, the last one first."""
        self._set(undo.facts)
        for inode, recent in undo.recent.items():
            if recent is not None:
                self._recent[inode] = recent
            else:
                self._recent.pop(inode, None)

    def note_times(self, inode: int, *, mtime_ns: int | None, ctime_ns: int, now_ns: int) -> None:
        """Show these times from now on (None: the one there is); ``recent_inodes`` says what is to be stored.

        Raises:
            NotFound: there is no such inode.
        """
        before = self.inode(inode)
        if mtime_ns is None:
            self._recent[inode] = replace(before, ctime_ns=ctime_ns)
        else:
            self._recent[inode] = replace(before, mtime_ns=mtime_ns, ctime_ns=ctime_ns, mtime_set_ns=now_ns)

    def recent_inodes(self) -> list[int]:
        """The inodes with times that are not stored."""
        return list(self._recent)

    def _fact(self, key: bytes) -> _Fact:
        """What the mirror holds of a row."""
        if key.startswith(INODE_PREFIX):
            inode = self._inodes.get(id_in_key(key, INODE_PREFIX))
            return _Fact(key, inode, inode.revision if inode else 0)
        if key.startswith(NAME_PREFIX):
            parent, name = _name_of(key)
            return _Fact(key, self.find(parent, name), self.name_revision(parent, name))
        if key.startswith(ORPHAN_PREFIX):
            node, revision = self._orphans.get(id_in_key(key, ORPHAN_PREFIX), (None, 0))
            return _Fact(key, node, revision)
        if key.startswith(TRASH_PREFIX):
            trashed = self._trash.get(id_in_key(key, TRASH_PREFIX))
            return _Fact(key, trashed, trashed.revision if trashed else 0)
        value, revision = self._single.get(key, (None, 0))
        return _Fact(key, value, revision)

    def _set(self, facts: Iterable[_Fact]) -> None:
        """Make these rows so. An inode is put before its name is, and deleted after."""
        names, gone = [], []
        for fact in facts:
            if fact.key.startswith(NAME_PREFIX):
                names.append(fact)
            elif fact.key.startswith(INODE_PREFIX):
                if fact.value is None:
                    gone.append(fact)
                else:
                    self._set_inode(id_in_key(fact.key, INODE_PREFIX), cast("Inode", fact.value))
            elif fact.key.startswith(ORPHAN_PREFIX):
                self._set_orphan(fact)
            elif fact.key.startswith(TRASH_PREFIX):
                self._set_trashed(fact)
            elif _is_number(fact.key):
                self._set_number(fact)
        for fact in names:
            self._set_name(fact)
        for fact in gone:
            inode = id_in_key(fact.key, INODE_PREFIX)
            self._inodes.pop(inode, None)
            self._recent.pop(inode, None)

    def _set_inode(self, inode: int, value: Inode) -> None:
        self._inodes[inode] = value
        recent = self._recent.get(inode)
        if recent is None:
            return
        if value.mtime_set_ns >= recent.mtime_set_ns:  # they have been stored, or are out of date
            del self._recent[inode]
            return
        self._recent[inode] = replace(
            value,
            mtime_ns=recent.mtime_ns,
            ctime_ns=max(value.ctime_ns, recent.ctime_ns),
            mtime_set_ns=recent.mtime_set_ns,
        )

    def _set_orphan(self, fact: _Fact) -> None:
        inode = id_in_key(fact.key, ORPHAN_PREFIX)
        if fact.value is None:
            self._orphans.pop(inode, None)
        else:
            self._orphans[inode] = cast("str", fact.value), fact.revision

    def _set_trashed(self, fact: _Fact) -> None:
        inode = id_in_key(fact.key, TRASH_PREFIX)
        if fact.value is None:
            self._trash.pop(inode, None)
        else:
            self._trash[inode] = cast("Trashed", fact.value)

    def _set_number(self, fact: _Fact) -> None:
        if fact.value is None:
            self._single.pop(fact.key, None)
        else:
            self._single[fact.key] = cast("int", fact.value), fact.revision

    def _set_name(self, fact: _Fact) -> None:
        """Put or take a name, whatever the order in which a rename's rows come."""
        parent, name = _name_of(fact.key)
        directory = self._directories.get(parent) or _Directory()
        before = directory.children.pop(name, None)
        if fact.value is not None:
            child = cast("int", fact.value)
            directory.children[name] = child
            self._directories[parent] = directory
            self._enter(directory, child, Place(parent, name, fact.revision))
            if before == child:
                return
        if before is not None:
            self._leave(directory, before, Place(parent, name))
        if not directory.children:
            self._directories.pop(parent, None)

    def _enter(self, directory: _Directory, child: int, place: Place) -> None:
        here = self._places.get(child)
        if here is None or here.parent != place.parent:
            if directory.order and directory.order[-1] > child:
                directory.order.insert(bisect_left(directory.order, child), child)
            else:
                directory.order.append(child)
            if child in self._inodes and self._inodes[child].kind is Kind.DIRECTORY:
                directory.subdirectories.add(child)
        self._places[child] = place

    def _leave(self, directory: _Directory, child: int, place: Place) -> None:
        here = self._places.get(child)
        if here == place:
            del self._places[child]
        elif here is not None and here.parent == place.parent:
            return  # renamed within the directory: still listed, once
        at = bisect_left(directory.order, child)
        if at < len(directory.order) and directory.order[at] == child:
            del directory.order[at]
        directory.subdirectories.discard(child)


def _is_number(key: bytes) -> bool:
    return key in (NEXT_ID_KEY, MOVES_KEY) or key.startswith(EXCHANGE_PREFIX)


def _name_of(key: bytes) -> tuple[int, bytes]:
    return id_in_key(key, NAME_PREFIX), key[_NAME_AT:]


def _decode(key: bytes, value: bytes | None, revision: int) -> _Fact:
    """A row of any kind; rows that are none of the mirror's keep no value.

    Raises:
        Corrupt: it is not what its key says.
    """
    if value is None:
        return _Fact(key, None, revision)
    if key.startswith(INODE_PREFIX):
        return _Fact(key, decode_inode(key, value, revision), revision)
    if key.startswith(TRASH_PREFIX):
        return _Fact(key, decode_trashed(key, value, revision), revision)
    if key.startswith(NAME_PREFIX) or _is_number(key):
        number = decode_value(key, value)
        if isinstance(number, int):
            return _Fact(key, number, revision)
    elif key.startswith(ORPHAN_PREFIX):
        node = decode_value(key, value)
        if isinstance(node, str):
            return _Fact(key, node, revision)
    else:
        return _Fact(key, None, revision)
    raise Corrupt(f"an unreadable row in the catalog key={key!r}")
