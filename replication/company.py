"""What the vdisks of one node have to do with those of the others: one object that holds all of it.

A node without others, as many tests build it, has none, and then nothing here costs or waits for anything.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from metadata.errors import VdiskfsError
from metadata.ids import VdiskId
from replication.cluster import Links, Membership
from replication.family import Family
from replication.fence import Fence
from replication.follower import Follower
from replication.handles import Handles
from replication.head import Head
from replication.loading import Loading
from replication.mirror import Mirror
from replication.ownership import Resting
from replication.publisher import Publisher
from replication.versions import Versions
from replication.workspace import Workspace

TICK_S = 1.0


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a node has itself, as its dealings with the others need it; owned by ``Vdisks``."""

    workspace: Workspace
    family: Family
    loading: Loading
    heads: dict[int, Head]
    files: Handles
    head: Callable[[VdiskId], Awaitable[Head]]
    """Loads a head that this node may have."""
    put_to_rest: Callable[[Head], Awaitable[None]]
    resting: dict[int, Resting]
    """Summaries of vdisks that nobody writes."""
    claimed: set[int]
    """Vdisks that have been written."""
    note_gone: Callable[[int], None]
    """A vdisk is deleted."""


class Company:
    """One to a daemon that has links and a session; owned by ``Vdisks``. ``run`` is its task."""

    def __init__(self, holdings: Holdings, links: Links, membership: Membership) -> None:
        self.holdings, self.links, self.membership = holdings, links, membership
        self.node = membership.node
        space = holdings.workspace
        space.fence = self.fence = Fence(
            space.catalog, self.node, is_certain=membership.is_certain, note_deposed=self._note_deposed
        )
        self.mirror = Mirror(
            self.node,
            holdings.family,
            resting=holdings.resting,
            claimed=holdings.claimed,
            note_gone=holdings.note_gone,
        )
        self.publisher = Publisher(
            space,
            links,
            membership,
            mirror=self.mirror,
            family=holdings.family,
            heads=holdings.heads,
            resting=holdings.resting,
            load=holdings.head,
        )
        self.follower = Follower(
            space, links, membership, mirror=self.mirror, family=holdings.family, loading=holdings.loading
        )
        self.versions = Versions(
            os.path.join(os.path.dirname(space.index.path), "versions"),
            space.index,
            holdings.family,
            follower=self.follower,
            clock_s=space.clock_s,
        )

    def has_others(self) -> bool:
        """Whether any other node has a session, as far as this node knows."""
        return len(self.membership.members()) > 1

    def _note_deposed(self, vdisk: int, why: VdiskfsError) -> None:
        pass

    async def run(self) -> None:
        """Does what nobody waits for, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fence.run)
            nursery.start_soon(self.publisher.run)
            nursery.start_soon(self.follower.run)
            while True:
                await trio.sleep(TICK_S)
                self.versions.end_pins()
