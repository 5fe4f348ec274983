"""Snapshots as values: what a version's name may be, and the catalog row that keeps it.

    snap/<vdisk>/<name>   {id, version, size, own_blocks, overlap, mtime_ns, created_ns, protected}

The row holds all that the log knows of the vdisk at that version besides its rows, so that a clone, a rollback and
`ls -l` read nothing else.
"""

import unicodedata
from dataclasses import asdict, dataclass

from metadata.catalog import SNAP_PREFIX, check_kind, decode_value, encode_value, id_in_key, snap_key
from metadata.errors import Corrupt, InvalidRequest
from metadata.units import NAME_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A version of a vdisk that has a name.

    ``id`` is the inode number of the snapshot's file; ``overlap``: bytes of the vdisk's parent that showed through.
    """

    vdisk: int
    name: str
    id: int
    version: int
    size: int
    own_blocks: int
    overlap: int
    mtime_ns: int
    created_ns: int
    protected: bool = False

    @property
    def key(self) -> bytes:
        """The catalog's."""
        return snap_key(self.vdisk, self.name)


def check_snapshot_name(name: str) -> None:
    """Raises InvalidRequest, with a line that says why, for a name that no snapshot can have."""
    if not name:
        raise InvalidRequest("a snapshot needs a name")
    if name in (".", ".."):
        raise InvalidRequest(f"a snapshot cannot be called {name!r}: choose another name")
    for character in name:
        if character in "/@":
            raise InvalidRequest(f"a snapshot's name cannot hold {character!r} name={name!r}")
        if unicodedata.category(character) in ("Cc", "Cs"):
            raise InvalidRequest(f"a snapshot's name cannot hold control characters name={name!r}")
    length = len(name.encode())
    if length > NAME_BYTES_MAX:
        raise InvalidRequest(
            f"a snapshot's name has at most {NAME_BYTES_MAX} bytes bytes={length} name={name[:20]!r}..."
        )


def encode_snapshot(snapshot: Snapshot) -> tuple[bytes, bytes]:
    """Its row's key and value."""
    value = asdict(snapshot)
    del value["vdisk"], value["name"]
    return snapshot.key, encode_value(value)


def decode_snapshot(key: bytes, value: bytes) -> Snapshot:
    """What ``encode_snapshot`` was given; fields of a later version are left out.

    Raises:
        Corrupt: no such row.
    """
    fields, vdisk = decode_value(key, value), id_in_key(key, SNAP_PREFIX)
    try:
        name = key[len(SNAP_PREFIX) + 17 :].decode()
        known = {name: fields[name] for name in Snapshot.__slots__ if name not in ("vdisk", "name")}  # type: ignore[index]
        check_kind(int, known.values())
        return Snapshot(vdisk=vdisk, name=name, **known)
    except (TypeError, KeyError, UnicodeDecodeError) as exc:
        raise Corrupt(f"an unreadable snapshot in the catalog key={key!r}") from exc
