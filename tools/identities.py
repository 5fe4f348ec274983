"""What snapshots are called across pools: their own identity, and those of the snapshots they were imported from.

An imported snapshot's vdisk carries a note in an extended attribute: which version equals which foreign ones. It goes
with the vdisk; notes of snapshots that are gone are dropped when the next one is written.
"""

import contextlib
import errno
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from metadata.difference_stream import Identity, read_identities
from tools.asking import ask
from tools.paths import Located

_NOTE = "user.vdiskfs.equals"
_NOTE_BYTES_MAX = 48 << 10
"""Extended attributes have a limit of 64 KiB; the oldest notes go first."""


@dataclass(frozen=True, slots=True)
class KnownSnapshot:
    """A snapshot of this pool with all it is called."""

    vdisk_path: str
    name: str
    version: int
    size: int
    identities: tuple[Identity, ...]


def pool_id(located: Located) -> str:
    """The pool's own id."""
    return str(ask(located, "status", {})["pool_id"])


def known_snapshots(located: Located) -> list[KnownSnapshot]:
    """The snapshots of a vdisk, or of all at and below a directory."""
    pool, mountpoint = pool_id(located), located.entry.mountpoint
    notes: dict[str, dict[int, tuple[Identity, ...]]] = {}
    found = []
    for facts in ask(located, "snap_ls", {})["snapshots"]:
        if facts["path"] is None:
            continue  # of a vdisk that has lost its name
        path = mountpoint + str(facts["path"])
        if path not in notes:
            notes[path] = read_notes(path)
        version = int(facts["version"])
        own = (pool, int(facts["vdisk"]), version)
        identities = (own, *notes[path].get(version, ()))
        found.append(KnownSnapshot(path, str(facts["name"]), version, int(facts["size"]), identities))
    return found


def find_base(known: Iterable[KnownSnapshot], base: Sequence[Identity]) -> KnownSnapshot | None:
    """The snapshot that has one of these identities."""
    wanted = set(base)
    return next((snapshot for snapshot in known if wanted.intersection(snapshot.identities)), None)


def read_notes(path: str) -> dict[int, tuple[Identity, ...]]:
    """By version of the vdisk at ``path``: what it equals elsewhere. What cannot be read is no note."""
    try:
        listed = json.loads(os.getxattr(path, _NOTE))
    except OSError as problem:
        if problem.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
            raise
        return {}
    except (ValueError, RecursionError):
        return {}
    notes: dict[int, tuple[Identity, ...]] = {}
    with contextlib.suppress(TypeError, ValueError, AttributeError):
        for version, identities in listed.items():
            notes[int(version)] = read_identities(identities)
    return notes


def write_note(path: str, version: int, identities: Sequence[Identity], *, kept: Iterable[int]) -> None:
    """Note what a version equals; ``kept``: versions whose notes stay."""
    notes: dict[int, Any] = {old: found for old, found in read_notes(path).items() if old in set(kept)}
    notes[version] = identities
    while len(text := json.dumps(notes)) > _NOTE_BYTES_MAX:
        del notes[min(notes)]
    os.setxattr(path, _NOTE, text.encode())
