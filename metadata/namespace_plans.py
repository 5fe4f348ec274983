"""How names and attributes change: each ``plan_`` decides a whole change of the catalog. Pure.

A plan reads the mirror and compares every row it read that the decision rests on:

* the name rows it puts or deletes, at the revision seen (0: absent), so a name is taken once;
* the inode row of each directory that gains or loses an entry, which it also rewrites (mtime, ctime). So
  what is created in a directory conflicts with the directory's removal, and emptiness needs no compare else;
* ``moves``, when a directory gets another parent: two such moves at once could tie a loop.

Who may do what has been checked by the kernel (``default_permissions``), the sticky bit included. Left to us
are the errors of POSIX about what is there, a set-group-id directory's legacy, and clearing set-id bits.
"""

import errno
import stat
from collections.abc import Mapping
from dataclasses import dataclass, replace

from metadata.catalog import (
    FIRST_FREE_ID,
    MOVES_KEY,
    NEXT_ID_KEY,
    ROOT_ID,
    Change,
    encode_value,
    exchange_key,
    inode_key,
    name_key,
    orphan_key,
    setting_key,
    trash_key,
    vdisk_key,
)
from metadata.errors import Exists, InvalidRequest, NoSpace, NotFound
from metadata.namespace import MODE_BITS, Inode, Kind, Namespace, encode_inode
from metadata.trash import Trashed, encode_trashed
from metadata.units import NAME_BYTES_MAX

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

TARGET_BYTES_MAX = 4095
"""As Linux has it (PATH_MAX, which counts the final zero)."""

XATTR_VALUE_BYTES_MAX = 65536
"""As Linux has it (XATTR_SIZE_MAX)."""

XATTR_FAMILIES = (b"user.", b"trusted.", b"security.")

XATTRS_BYTES_MAX = 65536
"""All names and values of one inode: they are one row, rewritten with each change and held in memory."""

SNAPSHOTS_NAME = b".snapshots"
"""Not to be taken in the root."""

CAPABILITY_XATTR = b"security.capability"


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in a directory, there or not."""

    parent: int
    name: bytes


@dataclass(frozen=True, slots=True)
class Birth:
    """What a new inode gets from its maker. ``mode`` has the umask taken off."""

    inode: int
    mode: int
    uid: int
    gid: int
    now_ns: int


@dataclass(frozen=True, slots=True)
class Deed:
    """Who does it, and when. ``number`` tells a node's requests apart (fusefs/operations.py)."""

    node: str
    now_ns: int
    number: int = 0


@dataclass(frozen=True, slots=True)
class Attributes:
    """What to change of an inode; None: leave."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None
    ctime_ns: int | None = None
    """Kernels with a write-back cache say it; others leave it to us."""
    drop_privileges: bool = False
    """The vdisk was changed by somebody who may not keep its set-id bits."""


class _Draft:
    """A change being put together, on top of what the mirror holds."""

    def __init__(self, namespace: Namespace) -> None:
        self.namespace = namespace
        self._compares: dict[bytes, int] = {}
        self._puts: dict[bytes, bytes] = {}
        self._deletes: list[bytes] = []
        self._inodes: dict[int, Inode] = {}

    def inode(self, inode: int) -> Inode:
        """The inode as this change leaves it so far."""
        return self._inodes.get(inode) or self.namespace.inode(inode)

    def put_new_inode(self, inode: int, value: Inode) -> None:
        self._compares[inode_key(inode)] = 0
        self._puts[inode_key(inode)] = encode_inode(value)

    def put_inode(self, inode: int, value: Inode) -> None:
        self._compares[inode_key(inode)] = value.revision
        self._puts[inode_key(inode)] = encode_inode(value)
        self._inodes[inode] = value

    def put_name(self, entry: Entry, inode: int) -> None:
        self._compare_name(entry)
        self._puts[name_key(entry.parent, entry.name)] = encode_value(inode)

    def delete_name(self, entry: Entry) -> None:
        self._compare_name(entry)
        self._deletes.append(name_key(entry.parent, entry.name))

    def put_number(self, key: bytes, value: int) -> None:
        self._compares[key] = self.namespace.number(key)[1]
        self._puts[key] = encode_value(value)

    def put(self, key: bytes, value: object) -> None:
        """Write a row that must not exist yet."""
        self._compares[key] = 0
        self._puts[key] = encode_value(value)

    def put_trashed(self, inode: int, trashed: Trashed) -> None:
        self._compares[trash_key(inode)] = 0
        self._puts[trash_key(inode)] = encode_trashed(trashed)

    def delete(self, key: bytes, revision: int) -> None:
        """Delete a row that was seen at a revision."""
        self._compares[key] = revision
        self._deletes.append(key)

    def compare(self, key: bytes, revision: int) -> None:
        """Carry the change out only if this row still has this revision."""
        self._compares[key] = revision

    def touch_directory(self, directory: int, now_ns: int) -> None:
        """An entry came or went: the times change, and the row with them."""
        now = replace(self.inode(directory), mtime_ns=now_ns, ctime_ns=now_ns)
        self.put_inode(directory, now)

    def orphan(self, inode: int, deed: Deed) -> None:
        """The inode has lost its name; it lives until nobody has it open."""
        self.put_inode(inode, replace(self.inode(inode), ctime_ns=deed.now_ns))
        self.put(orphan_key(inode), deed.node)

    def change(self) -> Change:
        return Change(tuple(self._compares.items()), tuple(self._puts.items()), tuple(self._deletes))

    def _compare_name(self, entry: Entry) -> None:
        revision = self.namespace.name_revision(entry.parent, entry.name)
        self._compares[name_key(entry.parent, entry.name)] = revision


def plan_root(
    uid: int,
    gid: int,
    *,
    now_ns: int,
    settings: Mapping[str, int] | None = None,
    xattrs: tuple[tuple[bytes, bytes], ...] = (),
) -> Change:
    """The first change of all: an empty root directory with these attributes, and the pool's settings.

    Conflicts, when carried out, if there is one.
    """
    root = Inode(Kind.DIRECTORY, 0o755, uid, gid, now_ns, now_ns, now_ns, xattrs=xattrs)
    return Change(
        compares=((inode_key(ROOT_ID), 0), (NEXT_ID_KEY, 0)),
        puts=(
            (inode_key(ROOT_ID), encode_inode(root)),
            (NEXT_ID_KEY, encode_value(FIRST_FREE_ID)),
            *((setting_key(name), encode_value(value)) for name, value in (settings or {}).items()),
        ),
    )


def plan_take_ids(namespace: Namespace, count: int) -> Change:
    """Take ``count`` ids, from the mirror's ``next_id`` on."""
    draft = _Draft(namespace)
    draft.put_number(NEXT_ID_KEY, namespace.number(NEXT_ID_KEY)[0] + count)
    return draft.change()


def plan_create(namespace: Namespace, entry: Entry, *, birth: Birth) -> Change:
    """A new, empty vdisk.

    Raises:
        Exists: the name is taken.
        NotFound: the directory is gone.
        InvalidRequest: ENOTDIR, ENAMETOOLONG, or a name that cannot be.
    """
    draft = _Draft(namespace)
    _enter(draft, entry, birth=birth, kind=Kind.FILE)
    draft.put(vdisk_key(birth.inode), {"parent": None, "absent": 0, "resting": None, "nameless": False})
    return draft.change()


@dataclass(frozen=True, slots=True)
class Origin:
    """What a clone begins with: its vdisk row, and the rows (with revisions) that this rests on."""

    record: Mapping[str, object]
    compares: tuple[tuple[bytes, int], ...] = ()


def plan_clone(namespace: Namespace, entry: Entry, *, birth: Birth, origin: Origin) -> Change:
    """A new vdisk that begins as another one's version. Raises as ``plan_create``."""
    draft = _Draft(namespace)
    _enter(draft, entry, birth=birth, kind=Kind.FILE)
    draft.put(vdisk_key(birth.inode), dict(origin.record))
    for key, revision in origin.compares:
        draft.compare(key, revision)
    return draft.change()


def plan_mkdir(namespace: Namespace, entry: Entry, *, birth: Birth) -> Change:
    """A new, empty directory. Raises as ``plan_create``."""
    draft = _Draft(namespace)
    _enter(draft, entry, birth=birth, kind=Kind.DIRECTORY)
    return draft.change()


def plan_symlink(namespace: Namespace, entry: Entry, *, birth: Birth, target: bytes) -> Change:
    """A new symbolic link. Raises as ``plan_create``."""
    if len(target) > TARGET_BYTES_MAX:
        raise InvalidRequest(
            f"the link's target is too long bytes={len(target)} limit={TARGET_BYTES_MAX}",
            number=errno.ENAMETOOLONG,
        )
    draft = _Draft(namespace)
    _enter(draft, entry, birth=birth, kind=Kind.SYMLINK, target=target)
    return draft.change()


def plan_unlink(namespace: Namespace, entry: Entry, *, deed: Deed) -> Change:
    """Take a file's or symbolic link's name away; it becomes an orphan of ``deed.node``.

    Raises:
        NotFound: there is no such name.
        InvalidRequest: EISDIR.
    """
    victim = namespace.lookup(_directory(namespace, entry.parent), entry.name)
    if namespace.inode(victim).kind is Kind.DIRECTORY:
        raise _wrong(errno.EISDIR, entry)
    return _removal(namespace, entry, victim=victim, deed=deed)


def plan_rmdir(namespace: Namespace, entry: Entry, *, deed: Deed) -> Change:
    """Take an empty directory's name away.

    Raises:
        NotFound: there is no such name.
        InvalidRequest: ENOTDIR, ENOTEMPTY.
    """
    victim = namespace.lookup(_directory(namespace, entry.parent), entry.name)
    if namespace.inode(victim).kind is not Kind.DIRECTORY:
        raise _wrong(errno.ENOTDIR, entry)
    if not namespace.is_empty(victim):
        raise _wrong(errno.ENOTEMPTY, entry)
    return _removal(namespace, entry, victim=victim, deed=deed)


def plan_rename(namespace: Namespace, source: Entry, *, target: Entry, flags: int, deed: Deed) -> Change:
    """Give an inode another name, as renameat2(2): over what has it, exchanging, or neither.

    Raises:
        NotFound: the source, or with RENAME_EXCHANGE the target, does not exist.
        Exists: the target does, with RENAME_NOREPLACE.
        InvalidRequest: EINVAL into itself, EISDIR, ENOTDIR, ENOTEMPTY, and as ``plan_create``.
    """
    if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
        raise InvalidRequest(f"unknown way to rename flags={flags}")
    moved = namespace.lookup(_directory(namespace, source.parent), source.name)
    _check_name(target)
    replaced = namespace.find(_directory(namespace, target.parent), target.name)
    if replaced is not None and flags == RENAME_NOREPLACE:
        raise _taken(target)
    if replaced is None and flags == RENAME_EXCHANGE:
        raise NotFound(f"nothing to exchange with name={_shown(target)}")
    _check_no_loop(namespace, moved, into=target.parent)
    if moved == replaced:
        return Change()
    if flags == RENAME_EXCHANGE:
        assert replaced is not None
        return _exchange(namespace, source, target=target, deed=deed)
    draft = _Draft(namespace)
    if replaced is not None:
        _check_replaceable(namespace, moved, replaced=replaced, target=target)
        draft.orphan(replaced, deed)
    draft.delete_name(source)
    draft.put_name(target, moved)
    _note_move(draft, moved, source=source, target=target, now_ns=deed.now_ns)
    return draft.change()


def plan_setattr(namespace: Namespace, inode: int, *, wanted: Attributes, now_ns: int) -> Change:
    """Change an inode's attributes, as chmod, chown and utimensat do.

    Raises:
        NotFound: there is no such inode.
    """
    before = namespace.inode(inode)
    mode = before.mode if wanted.mode is None else wanted.mode & MODE_BITS
    xattrs = before.xattrs
    chown = wanted.uid is not None or wanted.gid is not None
    if before.kind is Kind.FILE and (chown or wanted.drop_privileges):
        mode &= ~stat.S_ISUID
        if mode & stat.S_IXGRP:
            mode &= ~stat.S_ISGID
        xattrs = tuple(pair for pair in xattrs if pair[0] != CAPABILITY_XATTR)
    after = replace(
        before,
        mode=mode,
        uid=before.uid if wanted.uid is None else wanted.uid,
        gid=before.gid if wanted.gid is None else wanted.gid,
        atime_ns=before.atime_ns if wanted.atime_ns is None else wanted.atime_ns,
        mtime_ns=before.mtime_ns if wanted.mtime_ns is None else wanted.mtime_ns,
        mtime_set_ns=before.mtime_set_ns if wanted.mtime_ns is None else now_ns,
        ctime_ns=now_ns if wanted.ctime_ns is None else wanted.ctime_ns,
        xattrs=xattrs,
    )
    draft = _Draft(namespace)
    draft.put_inode(inode, after)
    return draft.change()


def plan_store_times(namespace: Namespace, inodes: list[int]) -> Change:
    """Store the recent times of these inodes, as far as they still exist and have any."""
    recent = set(namespace.recent_inodes())
    draft = _Draft(namespace)
    for inode in inodes:
        if inode in recent:
            draft.put_inode(inode, namespace.inode(inode))
    return draft.change()


def plan_setxattr(namespace: Namespace, inode: int, *, name: bytes, value: bytes, now_ns: int) -> Change:
    """Set an extended attribute.

    Raises:
        NotFound: there is no such inode.
        InvalidRequest: EINVAL, E2BIG, ERANGE, EOPNOTSUPP.
        NoSpace: the inode's attributes would be more than a row holds.
    """
    if not name.startswith(
        XATTR_FAMILIES
    ):  # system.*, access lists and such: kept, they would seem to be obeyed
        raise InvalidRequest(f"not kept here xattr={name!r}", number=errno.EOPNOTSUPP)
    if name in XATTR_FAMILIES:
        raise InvalidRequest(f"no name for an attribute xattr={name!r}")
    if not 0 < len(name) <= NAME_BYTES_MAX:
        raise InvalidRequest(f"no name for an attribute bytes={len(name)}", number=errno.ERANGE)
    if len(value) > XATTR_VALUE_BYTES_MAX:
        raise InvalidRequest(
            f"an attribute is too long bytes={len(value)} limit={XATTR_VALUE_BYTES_MAX}", number=errno.E2BIG
        )
    before = namespace.inode(inode)
    xattrs = (*(pair for pair in before.xattrs if pair[0] != name), (name, value))
    if sum(len(key) + len(data) for key, data in xattrs) > XATTRS_BYTES_MAX:
        raise NoSpace(f"too many attributes inode={inode} limit={XATTRS_BYTES_MAX}")
    draft = _Draft(namespace)
    draft.put_inode(inode, replace(before, xattrs=xattrs, ctime_ns=now_ns))
    return draft.change()


def plan_removexattr(namespace: Namespace, inode: int, *, name: bytes, now_ns: int) -> Change:
    """Remove an extended attribute.

    Raises:
        NotFound: ENOENT for the inode, ENODATA for the attribute.
    """
    before = namespace.inode(inode)
    xattrs = tuple(pair for pair in before.xattrs if pair[0] != name)
    if len(xattrs) == len(before.xattrs):
        raise NotFound(f"no such attribute xattr={name!r} inode={inode}", number=errno.ENODATA)
    draft = _Draft(namespace)
    draft.put_inode(inode, replace(before, xattrs=xattrs, ctime_ns=now_ns))
    return draft.change()


def plan_forget(namespace: Namespace, inode: int) -> Change:
    """Drop an orphan for good; nothing, if it is none."""
    revision = namespace.orphan_revision(inode)
    if not revision:
        return Change()
    return Change(compares=((orphan_key(inode), revision),), deletes=(inode_key(inode), orphan_key(inode)))


def plan_hand_orphan(namespace: Namespace, inode: int, *, source: str, target: str) -> Change:
    """Make an orphan of one node another's; nothing, if it is not that node's any more."""
    if namespace.orphan_node(inode) != source:
        return Change()
    key = orphan_key(inode)
    return Change(compares=((key, namespace.orphan_revision(inode)),), puts=((key, encode_value(target)),))


def plan_trash(namespace: Namespace, entry: Entry, *, deed: Deed, until_ns: int) -> Change:
    """Take a vdisk's name away and keep the vdisk restorable.

    Raises:
        NotFound: there is no such name.
        InvalidRequest: it is no vdisk.
    """
    victim = namespace.lookup(_directory(namespace, entry.parent), entry.name)
    if namespace.inode(victim).kind is not Kind.FILE:
        raise InvalidRequest(f"only vdisks go to the trash name={_shown(entry)}")
    path = namespace.path(victim)
    assert path is not None
    draft = _Draft(namespace)
    draft.delete_name(entry)
    draft.put_inode(victim, replace(draft.inode(victim), ctime_ns=deed.now_ns))
    draft.put_trashed(victim, Trashed(path, entry.parent, entry.name, deed.now_ns, until_ns))
    draft.touch_directory(entry.parent, deed.now_ns)
    return draft.change()


def plan_restore(namespace: Namespace, vdisk: int, *, entry: Entry, deed: Deed) -> Change:
    """Give a vdisk in the trash a name again.

    Raises:
        NotFound: it is not in the trash, or the directory is gone.
        Exists: the name is taken.
        InvalidRequest: as ``plan_create``.
    """
    trashed = _trashed(namespace, vdisk)
    _check_name(entry)
    if namespace.find(_directory(namespace, entry.parent), entry.name) is not None:
        raise _taken(entry)
    draft = _Draft(namespace)
    draft.delete(trash_key(vdisk), trashed.revision)
    draft.put_name(entry, vdisk)
    draft.put_inode(vdisk, replace(draft.inode(vdisk), ctime_ns=deed.now_ns))
    draft.touch_directory(entry.parent, deed.now_ns)
    return draft.change()


def plan_purge(namespace: Namespace, vdisk: int, *, deed: Deed) -> Change:
    """Take a vdisk out of the trash for good; it becomes an orphan of ``deed.node``.

    Raises:
        NotFound: it is not in the trash.
    """
    trashed = _trashed(namespace, vdisk)
    draft = _Draft(namespace)
    draft.delete(trash_key(vdisk), trashed.revision)
    draft.orphan(vdisk, deed)
    return draft.change()


def _trashed(namespace: Namespace, vdisk: int) -> Trashed:
    trashed = namespace.trashed(vdisk)
    if trashed is None:
        raise NotFound(f"not in the trash: see 'vdiskfs trash ls' id={vdisk}")
    return trashed


def _shown(entry: Entry) -> str:
    return entry.name.decode(errors="replace")


def _wrong(number: int, entry: Entry) -> InvalidRequest:
    what = {
        errno.EISDIR: "it is a directory",
        errno.ENOTDIR: "it is no directory",
        errno.ENOTEMPTY: "the directory is not empty",
    }[number]
    return InvalidRequest(f"{what} name={_shown(entry)}", number=number)


def _taken(entry: Entry) -> Exists:
    return Exists(f"the name is taken name={_shown(entry)}")


def check_name_length(name: bytes) -> None:
    """Names are as long as Linux has them.

    Raises:
        InvalidRequest: ENAMETOOLONG.
    """
    if len(name) > NAME_BYTES_MAX:
        raise InvalidRequest(
            f"the name is too long bytes={len(name)} limit={NAME_BYTES_MAX}", number=errno.ENAMETOOLONG
        )


def _check_name(entry: Entry) -> None:
    check_name_length(entry.name)
    if entry.name in (b"", b".", b"..") or b"/" in entry.name or b"\0" in entry.name:
        raise InvalidRequest(f"no such name can be given name={_shown(entry)!r}")
    if entry.parent == ROOT_ID and entry.name == SNAPSHOTS_NAME:
        raise InvalidRequest("the name is reserved name=.snapshots", number=errno.EPERM)


def _directory(namespace: Namespace, inode: int) -> int:
    """The inode, which must be a directory that has not been removed."""
    if namespace.inode(inode).kind is not Kind.DIRECTORY:
        raise InvalidRequest(f"it is no directory inode={inode}", number=errno.ENOTDIR)
    if namespace.is_orphan(inode):
        raise NotFound(f"the directory has been removed inode={inode}")
    return inode


def _enter(draft: _Draft, entry: Entry, *, birth: Birth, kind: Kind, target: bytes = b"") -> None:
    """Add a new inode under a free name."""
    _check_name(entry)
    parent = draft.namespace.inode(_directory(draft.namespace, entry.parent))
    if draft.namespace.find(entry.parent, entry.name) is not None:
        raise _taken(entry)
    mode, gid, now_ns = birth.mode & MODE_BITS, birth.gid, birth.now_ns
    if parent.mode & stat.S_ISGID:
        gid = parent.gid
        if kind is Kind.DIRECTORY:
            mode |= stat.S_ISGID
    if kind is Kind.SYMLINK:
        mode = 0o777
    draft.put_new_inode(birth.inode, Inode(kind, mode, birth.uid, gid, now_ns, now_ns, now_ns, target=target))
    draft.put_name(entry, birth.inode)
    draft.touch_directory(entry.parent, now_ns)


def _removal(namespace: Namespace, entry: Entry, *, victim: int, deed: Deed) -> Change:
    draft = _Draft(namespace)
    draft.delete_name(entry)
    draft.orphan(victim, deed)
    draft.touch_directory(entry.parent, deed.now_ns)
    return draft.change()


def _check_no_loop(namespace: Namespace, moved: int, *, into: int) -> None:
    if namespace.inode(moved).kind is Kind.DIRECTORY and namespace.is_within(into, moved):
        raise InvalidRequest(f"a directory cannot move below itself inode={moved}")


def _check_replaceable(namespace: Namespace, moved: int, *, replaced: int, target: Entry) -> None:
    moves_directory = namespace.inode(moved).kind is Kind.DIRECTORY
    if namespace.inode(replaced).kind is not Kind.DIRECTORY:
        if moves_directory:
            raise _wrong(errno.ENOTDIR, target)
        return
    if not moves_directory:
        raise _wrong(errno.EISDIR, target)
    if not namespace.is_empty(replaced):
        raise _wrong(errno.ENOTEMPTY, target)


def _exchange(namespace: Namespace, source: Entry, *, target: Entry, deed: Deed) -> Change:
    moved = namespace.lookup(source.parent, source.name)
    other = namespace.lookup(target.parent, target.name)
    _check_no_loop(namespace, other, into=source.parent)
    draft = _Draft(namespace)
    draft.put_name(source, other)
    draft.put_name(target, moved)
    _note_move(draft, moved, source=source, target=target, now_ns=deed.now_ns)
    _note_move(draft, other, source=target, target=source, now_ns=deed.now_ns)
    draft.put_number(exchange_key(deed.node), deed.number)
    return draft.change()


def _note_move(draft: _Draft, moved: int, *, source: Entry, target: Entry, now_ns: int) -> None:
    """Update the times that a move of one inode touches, and guard against loops."""
    inode = draft.inode(moved)
    draft.put_inode(moved, replace(inode, ctime_ns=now_ns))
    draft.touch_directory(source.parent, now_ns)
    draft.touch_directory(target.parent, now_ns)
    if inode.kind is Kind.DIRECTORY and source.parent != target.parent:
        draft.put_number(MOVES_KEY, draft.namespace.number(MOVES_KEY)[0] + 1)


def is_moved(namespace: Namespace, source: Entry, target: Entry) -> bool:
    """Whether a rename that may have been carried out has been."""
    gone = namespace.find(source.parent, source.name) is None
    return gone and namespace.find(target.parent, target.name) is not None
