"""Comparing two versions of vdisks that are being used: made durable, pinned and indexed, then compared in a thread."""

import functools
from array import array
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from metadata.differences import ChangedRange, join, ranges_of
from metadata.ids import VdiskId
from metadata.units import VBLOCK_BYTES
from replication.differences import Ancestor, Differences, Side
from replication.snapshots import Snapshots
from replication.vdisks import Vdisks

_VBLOCKS_AT_ONCE = 4096
"""Compared by a thread in one go: some 40 ms in which it shares the interpreter with guests."""


@dataclass(frozen=True, slots=True)
class Named:
    """A snapshot of a vdisk, or what is there now (``name`` None)."""

    vdisk: VdiskId
    name: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Changed blocks from some offset on, in order, as words (metadata/differences.py).

    ``next_offset`` is where the next part begins; None at the end. ``older_version`` None: compared with nothing.
    """

    words: "array[int]"
    next_offset: int | None
    size: int
    version: int
    older_size: int
    older_version: int | None

    @property
    def ranges(self) -> list[ChangedRange]:
        """The same as ranges."""
        return list(ranges_of(self.words, size=self.size))


async def compare(
    vdisks: Vdisks, older: Named | None, newer: Named, *, offset: int = 0, count: int = 100_000
) -> Comparison:
    """What is different in ``newer``: ``count`` ranges or a few more, from the 1 MiB that holds ``offset`` on.

    Args:
        vdisks: where they are.
        older: None stands for nothing: all data of ``newer`` is different.
        newer: what is described.
        offset: where to begin.
        count: when to stop.

    Raises:
        NotFound: no such snapshot.
        InvalidRequest: the two have no ancestor in common.
        NoSpace, Unavailable, Corrupt: what is there now could not be made durable, or a log not be read.
    """
    async with AsyncExitStack() as stack:
        before = None if older is None else await stack.enter_async_context(side_of(vdisks, older))
        now = await stack.enter_async_context(side_of(vdisks, newer))
        differences = Differences(vdisks.workspace.index, before, now)
        first, end = offset // VBLOCK_BYTES, -(-now.size // VBLOCK_BYTES)
        words = array("Q")
        while first < end and len(words) < 2 * count:
            stop = min(end, first + _VBLOCKS_AT_ONCE)
            part = functools.partial(differences.words, first, stop)
            join(words, await vdisks.workspace.wait_for(part))
            first = stop
        return Comparison(
            words,
            first * VBLOCK_BYTES if first < end else None,
            now.size,
            now.line[0].version,
            before.size if before else 0,
            before.line[0].version if before else None,
        )


@asynccontextmanager
async def side_of(vdisks: Vdisks, named: Named) -> AsyncIterator[Side]:
    """A side of a comparison; inside, its version is kept.

    Raises:
        NotFound: no such snapshot.
        NoSpace, Unavailable, Corrupt: what is there now could not be made durable, or a log not be read.
    """
    async with Snapshots(vdisks).origin(named.vdisk, named.name) as origin:
        await vdisks.prepare(named.vdisk)
        ancestry = await vdisks.loading.ancestry(named.vdisk, origin.version)
        rollbacks = vdisks.family.descent(named.vdisk).rollbacks
        own = Ancestor(named.vdisk, origin.version, ancestry.absent, origin.overlap, rollbacks)
        above = [
            Ancestor(up.groups.vdisk, up.version, up.absent, up.overlap, up.rollbacks)
            for up in ancestry.generations
        ]
        yield Side(origin.size, (own, *above))
