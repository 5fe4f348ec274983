"""What all vdisks of a node share: the pool, the index, the journal, the catalog, the caches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from metadata.boot_clock import boot_time_s
from metadata.catalog import Catalog
from metadata.index import Index
from replication.caches import FifoCache
from replication.cluster import Links, Membership
from replication.disk_threads import DiskThreads
from replication.fence import Fence
from replication.journal import Journal
from replication.moves import Moves
from replication.pool import Pool

ROWS_MAX = 12288
"""Decoded rows in memory, 2.3 KiB each: 28 MiB, the map of 12 GiB."""
SEGMENTS_MAX = 12288
"""Checksum segments in memory, 1.2 KiB each: 14 MiB, those of 12 GiB."""
THREADS_MAX = 16
"""Pool and index calls that wait for a disk at once."""
COMMITS_MAX = 4
"""Commits that wait for the pool at once; a commit never queues behind reads."""

T = TypeVar("T")


class Loaded(Protocol):
    """What the journal's housekeeping asks of a head."""

    @property
    def is_dirty(self) -> bool:
        """Whether anything acknowledged is not committed."""

    @property
    def journal_forfeited(self) -> bool:
        """Its entries may be overwritten."""

    def oldest_sequence(self) -> int:
        """The journal's oldest entry that no finished commit of this vdisk holds."""


@dataclass(slots=True)
class Workspace:
    """Built once by the daemon; everything in it lives as long as the daemon."""

    pool: Pool
    index: Index
    journal: Journal
    catalog: Catalog
    node: str
    links: Links | None = None
    membership: Membership | None = None
    """The way to the other nodes, and who they are; both, or none where this node is alone for good."""
    clock_s: Callable[[], float] = boot_time_s
    """What leases and subscriptions are measured by: it goes on while the machine sleeps, and never jumps."""
    fence: Fence | None = None
    """Whether a commit counts; none where this node is alone for good."""
    row_cache: FifoCache = field(default_factory=lambda: FifoCache(ROWS_MAX))
    segment_cache: FifoCache = field(default_factory=lambda: FifoCache(SEGMENTS_MAX))
    heads: Mapping[int, Loaded] = field(default_factory=dict)
    """Loaded heads by vdisk; ``Vdisks`` sets and owns it."""
    moves: Moves = field(default_factory=Moves)
    threads: DiskThreads = field(default_factory=lambda: DiskThreads(THREADS_MAX, name="disk"))

    commit_threads: DiskThreads = field(default_factory=lambda: DiskThreads(COMMITS_MAX, name="commit"))

    def has_others(self) -> bool:
        """Whether any other node has a session, as far as this node knows."""
        return self.membership is not None and len(self.membership.members()) > 1

    async def as_owner(self, vdisk: int) -> tuple[tuple[bytes, int], ...]:
        """As ``Fence.compares``; nothing where this node is alone for good."""
        return () if self.fence is None else await self.fence.compares(vdisk)

    async def wait_for(self, function: Callable[[], T]) -> T:
        """Runs what waits for a disk in a thread; a cancellation waits for its end."""
        return await self.threads.run(function)

    def close_threads(self) -> None:
        """Ends the threads; nothing is submitted any more."""
        self.commit_threads.close()
        self.threads.close()
