"""The catalog's interface and its keys: the cluster's small transactional truth, shaped like etcd's.

Names, inodes, vdisks, owners and sessions; never the hot facts of a running vdisk, which are in its log.
Each transaction that writes gets the next *revision*, and each row carries that of its last write.

    key (ids as 16 hex digits)     value (msgpack)
    next_id                        the lowest id nobody has taken; a node takes them in batches
    moves                          rewritten by each move of a directory to another parent
    inode/ID                       kind, mode, uid, gid, atime, mtime, ctime, ... (metadata/namespace.py)
    name/PARENT/NAME               the id that NAME (raw bytes) in the directory PARENT stands for
    orphan/ID                      the node where the nameless inode is still open
    exchange/NODE                  number of the node's last exchanging rename, so that it is not done twice
    vdisk/ID                       parent, absent, resting, nameless, ... (metadata/descent.py, replication/ownership.py)
    owner/ID                       node, epoch
    session/NODE                   the node's address, under its lease
    snap/ID/NAME                   a version of the vdisk ID that has a name (metadata/snapshots.py)
    trash/ID                       where a deleted vdisk was, and until when it stays (metadata/trash.py)
    setting/NAME                   what the pool was told when it was made: trash_s; whose it is: cluster

**Invariant** an inode has at most one ``name/`` row, since there are no hard links; one without any has an
``orphan/`` or a ``trash/`` row. Ids are never used again.
"""

from collections.abc import AsyncGenerator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgpack

from metadata.errors import Conflict, Corrupt

ROOT_ID = 1
FIRST_FREE_ID = 16
"""Ids below are the root's, or positions of ``.`` and ``..`` in a listing."""

SYNTHETIC_IDS_FROM = 1 << 40
"""From here on an id names no row: room for what is shown without being stored (``.snapshots``), and for the
other half of a handle's number."""

NEXT_ID_KEY = b"next_id"
MOVES_KEY = b"moves"
INODE_PREFIX = b"inode/"
NAME_PREFIX = b"name/"
ORPHAN_PREFIX = b"orphan/"
EXCHANGE_PREFIX = b"exchange/"
VDISK_PREFIX = b"vdisk/"
OWNER_PREFIX = b"owner/"
SESSION_PREFIX = b"session/"
SNAP_PREFIX = b"snap/"
TRASH_PREFIX = b"trash/"
SETTING_PREFIX = b"setting/"


def inode_key(inode: int) -> bytes:
    """Where an inode's attributes are."""
    return b"inode/%016x" % inode


def name_key(parent: int, name: bytes) -> bytes:
    """Where a directory's entry is."""
    return b"name/%016x/%b" % (parent, name)


def split_name_key(key: bytes) -> tuple[int, bytes]:
    """The directory and the name of an entry.

    Raises:
        Corrupt: no id is in it.
    """
    return id_in_key(key, NAME_PREFIX), key[len(NAME_PREFIX) + 17 :]


def orphan_key(inode: int) -> bytes:
    """Where it is noted that an inode without a name is still open."""
    return b"orphan/%016x" % inode


def exchange_key(node: str) -> bytes:
    """Where a node notes its last exchanging rename."""
    return EXCHANGE_PREFIX + node.encode()


def vdisk_key(vdisk: int) -> bytes:
    """Where a vdisk's parent and summary are."""
    return b"vdisk/%016x" % vdisk


def owner_key(vdisk: int) -> bytes:
    """Where a vdisk's owner is."""
    return b"owner/%016x" % vdisk


def trash_key(vdisk: int) -> bytes:
    """Where it is noted that a deleted vdisk can be restored."""
    return b"trash/%016x" % vdisk


def setting_key(name: str) -> bytes:
    """Where a setting of the pool is."""
    return SETTING_PREFIX + name.encode()


def snap_key(vdisk: int, name: str) -> bytes:
    """Where a vdisk's snapshot is."""
    return b"snap/%016x/%b" % (vdisk, name.encode())


def session_key(node: str) -> bytes:
    """Where a node announces itself."""
    return SESSION_PREFIX + node.encode()


def id_in_key(key: bytes, prefix: bytes) -> int:
    """The id that follows ``prefix`` in a key.

    Raises:
        Corrupt: no id follows.
    """
    try:
        return int(key[len(prefix) : len(prefix) + 16], 16)
    except ValueError:
        raise Corrupt(f"a catalog key without an id key={key!r}") from None


def encode_value(value: object) -> bytes:
    """A row's value as bytes."""
    packed: bytes = msgpack.packb(value)
    return packed


def decode_value(key: bytes, value: bytes) -> object:
    """What ``encode_value`` was given.

    Raises:
        Corrupt: the bytes are no msgpack.
    """
    try:
        decoded: object = msgpack.unpackb(value)
    except (ValueError, msgpack.UnpackException) as exc:
        raise Corrupt(f"an unreadable row in the catalog key={key!r}") from exc
    return decoded


def check_kind(kind: type, values: Iterable[object]) -> None:
    """For decoders of rows: msgpack brings values of any kind.

    Raises:
        TypeError: one of them is of another.
    """
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"not of kind {kind.__name__}: {value!r}")


@dataclass(frozen=True, slots=True)
class Row:
    """A key that exists, with the revision of its last write."""

    key: bytes
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Change:
    """A transaction: if every compare holds, do every put and delete, at one revision.

    A compare is (key, revision of its row); revision 0 stands for "there is no such row". No key is both
    put and deleted.
    """

    compares: tuple[tuple[bytes, int], ...] = ()
    puts: tuple[tuple[bytes, bytes], ...] = ()
    deletes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Event:
    """A row was put, or deleted (``value`` None), at a revision."""

    key: bytes
    value: bytes | None
    revision: int


def merge_changes(changes: Sequence[Change]) -> Change:
    """Several changes, each planned on top of those before it, as one that does all or nothing.

    Compares with rows that an earlier one writes hold by the planning, and are left out.
    """
    compares: dict[bytes, int] = {}
    puts: dict[bytes, bytes] = {}
    deletes: set[bytes] = set()
    for change in changes:
        for key, revision in change.compares:
            if key not in puts and key not in deletes:
                compares.setdefault(key, revision)
        for key, value in change.puts:
            puts[key] = value
            deletes.discard(key)
        for key in change.deletes:
            puts.pop(key, None)
            deletes.add(key)
    return Change(tuple(compares.items()), tuple(puts.items()), tuple(sorted(deletes)))


class Compacted(Conflict):
    """The history a watch asked for is gone: read the prefix, then watch from the revision read."""


class Catalog(Protocol):
    """What every kind of catalog offers. Any task may call; calls are not ordered among each other."""

    async def read(self, prefix: bytes) -> tuple[list[Row], int]:
        """The rows whose keys start with ``prefix``, sorted by key, and the catalog's revision then."""

    async def transact(self, change: Change, *, lease: int = 0) -> int:
        """Carry ``change`` out; the puts live no longer than ``lease``, if one is given.

        Returns the revision at which it is done; a change without writes, or with deletes that find nothing,
        has none of its own and returns the catalog's. Durable when it returns.

        Raises:
            Conflict: a compare does not hold; nothing was done.
        """

    def watch(self, prefix: bytes, *, after: int) -> AsyncGenerator[list[Event], None]:
        """What happens to keys with ``prefix`` at revisions above ``after``, for ever, in order of revision.

        A list holds whole revisions. Of several writes to one key the earlier ones may be left out.

        Raises:
            Compacted: too long ago.
        """

    async def grant_lease(self, ttl_s: float) -> int:
        """A new lease; rows put under it vanish ``ttl_s`` after the last ``keep_alive``."""

    async def keep_alive(self, lease: int) -> None:
        """Start the lease's time again.

        Raises:
            NotFound: it has ended.
        """

    async def revoke(self, lease: int) -> None:
        """End a lease, and the rows put under it, now."""

    async def aclose(self) -> None:
        """Give back what it holds."""
