"""What a node has itself, as its dealings with the others need it; and what it says of one vdisk."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from metadata.ids import VdiskId
from replication.family import Family
from replication.handles import Handles
from replication.head import Head
from replication.loading import Loading
from replication.ownership import Resting
from replication.workspace import Workspace


@dataclass(frozen=True, slots=True)
class VdiskStat:
    """What `ls -l` shows. ``mtime_ns`` 0: never written."""

    size: int
    allocated_bytes: int
    mtime_ns: int
    version: int


@dataclass(frozen=True, slots=True)
class Holdings:
    """Parts of ``Vdisks``, which owns it; one to a daemon."""

    workspace: Workspace
    family: Family
    loading: Loading
    heads: dict[int, Head]
    files: Handles
    head: Callable[[VdiskId], Awaitable[Head]]
    """Loads a head that this node may have."""
    put_to_rest: Callable[[Head], Awaitable[None]]
    """Commits all, and lets the catalog's summary speak for the vdisk."""
    resting: dict[int, Resting]
    """Summaries of vdisks that nobody writes."""
    claimed: set[int]
    """Vdisks that have been written."""
    note_gone: Callable[[int], None]
    """A vdisk is deleted."""
    users: Mapping[int, int]
    """How many verbs and the like use a vdisk's head without a handle."""
