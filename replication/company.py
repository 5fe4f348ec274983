"""What the vdisks of one node have to do with those of the others: one object that holds all of it.

A node without others, as many tests build it, has none, and then nothing here costs or waits for anything.
"""

import errno
import os
from collections.abc import Callable

import trio

from metadata.errors import InvalidRequest, NotOwner, VdiskfsError
from metadata.ids import VdiskId
from replication.cluster import Links, Membership
from replication.fence import Fence
from replication.follower import Follower
from replication.forwarding import Forwarding
from replication.frozen_files import FrozenFiles
from replication.handles import file_of
from replication.head import Head
from replication.holdings import Holdings
from replication.mirror import Mirror
from replication.publisher import Publisher
from replication.remote import Remote
from replication.transfers import Transfers
from replication.versions import Versions
from replication.view import View

TICK_S = 1.0
OPEN_TRIES = 10
"""Ownership may move between being asked for and being used; so often in a row means a bug."""


class Company:
    """One to a daemon that has links and a session; owned by ``Vdisks``. ``run`` is its task."""

    def __init__(self, holdings: Holdings, links: Links, membership: Membership) -> None:
        self.holdings, self.links, self.membership = holdings, links, membership
        self.node = membership.node
        self._begun = trio.Event()
        self.may_be_open: Callable[[int], bool] = lambda vdisk: False
        """Whether files of the vdisk may be open of which this daemon has not heard yet."""
        self.may_be_written: Callable[[int], bool] = lambda vdisk: True
        """Whether a file of the vdisk that a dead daemon opened may be open for writing."""
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
            is_open=lambda inode: holdings.files.count(inode) > 0,
            clock_s=space.clock_s,
        )
        self.frozen = FrozenFiles(
            os.path.join(os.path.dirname(space.index.path), "frozen"),
            space,
            holdings.family,
            holdings.loading,
        )
        holdings.loading.rebuilt += self.versions.note_rebuilt, self.frozen.note_rebuilt
        self.follower.pinned.append(self.frozen.pinned_vdisks)
        self.transfers = Transfers(
            holdings,
            links,
            membership,
            mirror=self.mirror,
            publisher=self.publisher,
            note_version=self.follower.note_version,
            frozen=self.frozen,
        )
        self.transfers.may_be_open = lambda vdisk: self.may_be_open(vdisk)
        self.writers = self.transfers.writers
        self.forwarding = Forwarding(links, head=holdings.head, files=holdings.files)

    def has_others(self) -> bool:
        """Whether any other node has a session, as far as this node knows."""
        return len(self.membership.members()) > 1

    def _note_deposed(self, vdisk: int, why: VdiskfsError) -> None:
        self.transfers.note_deposed(vdisk, why)

    def open_files(self) -> None:
        """At the start: what an earlier daemon noted for this one."""
        for noted in (self.versions, self.frozen, self.writers):
            noted.open()

    def close_files(self) -> None:
        """At the end."""
        for noted in (self.versions, self.frozen, self.writers):
            noted.close()

    def keep_only(self, kernel_knows: Callable[[int], bool]) -> None:
        """At a daemon's start: what an earlier one noted of inodes that the kernel does not know is over."""
        self.versions.keep_only(kernel_knows)
        self.frozen.keep_only(kernel_knows)

    def begin(self) -> None:
        """The journal is replayed: what others ask is served from now on."""
        self.transfers.is_serving = self.forwarding.is_serving = True
        self._begun.set()

    def end(self) -> None:
        """All is at rest: nothing is served any more."""
        self.transfers.is_serving = self.forwarding.is_serving = False

    async def open(self, vdisk: VdiskId, *, flags: int) -> Head | Remote:
        """What a file of the vdisk, opened by its own inode, reads and writes.

        Args:
            vdisk: which.
            flags: of open(2).

        Raises:
            InvalidRequest: it is another node's, and only to be read: the kernel looks it up again (ESTALE).
            NotFound: no such vdisk.
            Corrupt, Unavailable: its log cannot be read, or its owner not be asked.
        """
        self.forwarding.note_open(vdisk, flags)
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
            return await self.writable(vdisk)
        if self.has_others():
            await self.transfers.leave_strange(vdisk)
        try:
            return await self.holdings.head(vdisk)
        except NotOwner:
            raise InvalidRequest(f"another node owns it now vdisk={vdisk}", number=errno.ESTALE) from None

    async def writable(self, vdisk: VdiskId) -> Head | Remote:
        """This node's head, if it can own the vdisk; else what forwards to the owner.

        Raises:
            NotFound: no such vdisk.
            Corrupt, Unavailable: its log cannot be read, or its owner not be asked.
        """
        asks = self.has_others()
        with self.transfers.opening(vdisk):
            for _ in range(OPEN_TRIES):
                if asks:
                    owner = await self.transfers.acquire(vdisk)
                    if owner.node != self.node:
                        remote = self.transfers.remote(vdisk, owner)
                        await remote.look()
                        return remote
                try:
                    return await self.holdings.head(vdisk)
                except NotOwner:
                    asks = True
        raise NotOwner(f"the vdisk's owner keeps changing vdisk={vdisk}")

    async def resumed(self, number: int) -> Head | View | Remote:
        """What a file serves that a dead daemon had opened, and that reads no older version as far as is known.

        Who only reads asks for nothing: if the vdisk went to another node meanwhile, it goes on at the newest version.

        Raises:
            As ``writable``.
        """
        vdisk = file_of(number)
        if self.may_be_written(vdisk):
            return await self.writable(vdisk)
        frozen = await self.frozen.unheard(number)
        if frozen is not None:
            return frozen
        if self.has_others():
            await self.transfers.leave_strange(vdisk)
        try:
            return await self.holdings.head(vdisk)
        except NotOwner:
            return await self.frozen.freeze(number, await self.follower.newest(vdisk))

    async def truncate(self, vdisk: VdiskId, size: int) -> bool:
        """Sets the size of a vdisk that another node owns; False: this node owns it now."""
        served = await self.writable(vdisk)
        if not isinstance(served, Remote):
            return False
        try:
            await served.truncate(size)
        finally:
            self.transfers.note_closed(vdisk)
        return True

    async def run(self) -> None:
        """Does what nobody waits for, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.fence.run)
            await self._begun.wait()
            nursery.start_soon(self.publisher.run)
            nursery.start_soon(self.follower.run)
            nursery.start_soon(self.transfers.run)
            while True:
                await trio.sleep(TICK_S)
                self.versions.end_pins()
