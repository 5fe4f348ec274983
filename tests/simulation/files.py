"""One simulated node's files, used as its kernel would: by the handlers that serve the channel, without a kernel."""

import errno
import os

import trio

from fusefs.data_requests import DataRequests
from metadata.errors import InvalidRequest, NotOwner, Unavailable
from metadata.ids import VdiskId
from replication.head import Head
from replication.vdisks import Vdisks
from replication.view import View
from tests.simulation.simulated_threads import pass_time
from tests.simulation.world import World

LOOK_UP_S = 5.0
LOOKUPS_MAX = 10
"""A kernel gives up sooner; but its user opens again."""


class _NoKernel:
    """Nothing is cached above the daemon."""

    async def write_back(self, inode: int, offset: int) -> None:
        raise AssertionError("nobody writes through a cache here")


async def _clear_suid(vdisk: VdiskId) -> None:
    raise AssertionError("no file has such bits here")


class NodeFiles:
    """What clients on a node see of it; for one life of the node."""

    def __init__(self, world: World, name: str) -> None:
        self.name, self._world = name, world
        self._vdisks: Vdisks = world.vdisks(name)
        self._requests = DataRequests(self._vdisks, clear_suid=_clear_suid, notifications=_NoKernel())  # type: ignore[arg-type]

    async def open(self, vdisk: int, flags: int) -> int:
        """A new handle."""
        await self._world.rig(self.name).resumed.wait()
        await self.find_name(vdisk)
        number = VdiskId(vdisk)
        for _ in range(LOOKUPS_MAX):
            try:
                if flags & os.O_RDWR or self._vdisks.is_mine(vdisk):
                    return await self._vdisks.open(number, flags=flags)
                assert self._vdisks.company is not None
                shown = await self._vdisks.company.versions.look_up(vdisk)
                return await self._vdisks.open_version(shown.id)
            except NotOwner:
                continue
            except InvalidRequest as exc:
                if exc.number != errno.ESTALE:
                    raise
        raise Unavailable(f"the name leads to one stale inode after the other vdisk={vdisk}")

    async def find_name(self, vdisk: int) -> None:
        """A name that a node does not know it looks up in the catalog of now."""
        rig, born = self._world.rig(self.name), self._world.born.get(vdisk, 0)
        untold = self._world.untold.get(vdisk, 0)
        with trio.move_on_after(LOOK_UP_S):
            while rig.revision < born and self._vdisks.family.descent(vdisk).parent is None:
                await pass_time(0.05)
            while rig.revision < untold:
                await pass_time(0.05)
            return
        raise Unavailable(f"the catalog does not say what the name stands for vdisk={vdisk}")

    async def open_version(self, snapshot: int) -> int:
        """A handle of a snapshot's file."""
        await self._world.rig(self.name).resumed.wait()
        return await self._vdisks.open_version(snapshot)

    def is_frozen(self, handle: int) -> bool:
        """Whether a handle is a view of one version."""
        return isinstance(self._vdisks.heads_by_handle.get(handle), View)

    def is_still(self, handle: int) -> bool:
        """Whether what a handle reads stays as it is: a view, or the head of a vdisk that nobody here has written."""
        served = self._vdisks.heads_by_handle.get(handle)
        return isinstance(served, View) or (isinstance(served, Head) and not served.owned)

    def reign(self, vdisk: int) -> tuple[int, int]:
        """Under whom a write is done, in truth; another one may do it again."""
        return self._world.reign(vdisk)

    def lease(self) -> int:
        """The node's session's, while it is certain; else 0. Who had one and the same before and after a read was the
        owner all the time, if it was at all: nobody can have taken over."""
        session = self._world.rig(self.name).session
        return session._lease if session.is_certain() else 0

    def last_lease(self) -> int:
        """The same, certain or not: one that ended meanwhile is not the one that is certain later."""
        return self._world.rig(self.name).session._lease

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        await self._world.rig(self.name).resumed.wait()
        return await self._requests.read(handle, offset, size)

    async def write(self, handle: int, offset: int, data: bytes) -> None:
        await self._world.rig(self.name).resumed.wait()
        await self._requests.write(handle, offset, data, kill_suid=False)

    async def sync(self, handle: int) -> None:
        await self._requests.fsync(handle)

    async def close(self, handle: int) -> None:
        """As the kernel does: FLUSH, whose error the user sees, then RELEASE."""
        try:
            if not self.is_frozen(handle):
                await self._vdisks.flush(VdiskId(handle & (1 << 40) - 1))
        finally:
            self._vdisks.close(handle)
