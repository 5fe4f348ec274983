"""What the catalog keeps of a deleted vdisk for as long as it can be restored. Pure.

A vdisk in the trash has its inode, its data and its snapshots, but no name: its ``trash/`` row says where it
was, and until when it stays. Restoring or purging it deletes the row.
"""

from dataclasses import dataclass, field
from typing import cast

from metadata.catalog import check_kind, decode_value, encode_value
from metadata.errors import Corrupt


@dataclass(frozen=True, slots=True)
class Trashed:
    """A vdisk in the trash.

    Attributes:
        path: what it was called, from the root, for people.
        parent, name: the directory it was in, and its name there.
        until_ns: when it may be purged.
    """

    path: bytes
    parent: int
    name: bytes
    deleted_ns: int
    until_ns: int
    revision: int = field(default=0, compare=False)


def encode_trashed(trashed: Trashed) -> bytes:
    """A ``trash/`` row's value."""
    return encode_value(
        {
            "path": trashed.path,
            "parent": trashed.parent,
            "name": trashed.name,
            "deleted_ns": trashed.deleted_ns,
            "until_ns": trashed.until_ns,
        }
    )


def decode_trashed(key: bytes, value: bytes, revision: int) -> Trashed:
    """A ``trash/`` row.

    Raises:
        Corrupt: it is none.
    """
    fields = cast("dict[str, int]", decode_value(key, value))
    try:
        check_kind(bytes, (fields["path"], fields["name"]))
        check_kind(int, (fields["parent"], fields["deleted_ns"], fields["until_ns"]))
        return Trashed(
            path=cast("bytes", fields["path"]),
            parent=fields["parent"],
            name=cast("bytes", fields["name"]),
            deleted_ns=fields["deleted_ns"],
            until_ns=fields["until_ns"],
            revision=revision,
        )
    except (KeyError, TypeError) as exc:
        raise Corrupt(f"an unreadable row in the catalog key={key!r}") from exc
