"""What all vdisks of a node share: the pool, the index, the journal, the catalog, the caches."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import trio

from metadata.catalog import Catalog
from metadata.index import Index
from replication.caches import FifoCache
from replication.commit_threads import CommitThreads
from replication.journal import Journal
from replication.pool_directory import DirectoryPool

ROWS_MAX = 16384
"""Decoded rows in memory, 2.2 KiB each: 36 MiB, the map of 16 GiB."""
SEGMENTS_MAX = 16384
"""Checksum segments in memory, 1.1 KiB each: 18 MiB, those of 16 GiB."""
THREADS_MAX = 24
"""Pool and index calls that wait for a disk at once."""

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

    pool: DirectoryPool
    index: Index
    journal: Journal
    catalog: Catalog
    node: str
    row_cache: FifoCache = field(default_factory=lambda: FifoCache(ROWS_MAX))
    segment_cache: FifoCache = field(default_factory=lambda: FifoCache(SEGMENTS_MAX))
    heads: Mapping[int, Loaded] = field(default_factory=dict)
    """Loaded heads by vdisk; ``Vdisks`` sets and owns it."""
    threads: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(THREADS_MAX))

    commit_threads: CommitThreads = field(default_factory=CommitThreads)

    async def wait_for(self, function: Callable[[], T]) -> T:
        """Runs what waits for a disk in a thread; a cancellation waits for its end."""
        return await trio.to_thread.run_sync(function, limiter=self.threads)
