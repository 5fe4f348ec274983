"""Sizes of open files that another node has changed, told to this node's kernel.

A kernel with a write-back cache believes its own size of a file that it knows, whatever it is told. Only the answer to a
truncation of its own it takes over: so the notifier asks for one that sets nothing (``Notifications.learn_size``). A file
that somebody writes through the cache is left alone: what it has grown by may not have reached us yet.
"""

import trio

from fusefs.notifications import Notifications
from fusefs.resolution import PathResolver
from metadata.ids import VdiskId
from replication.vdisks import Vdisks

VDISKS_MAX = 1024
"""Waiting to be told of; one more is not, and its kernel keeps its own size."""


class KernelSizes:
    """One to a mount; ``run`` is its task.

    Args:
        vdisks: which files are open.
        notifications: the way to the kernel.
        paths: where they are.
        mountpoint: below this.
    """

    def __init__(
        self, vdisks: Vdisks, notifications: Notifications, paths: PathResolver, *, mountpoint: str
    ) -> None:
        self._vdisks, self._notifications, self._paths = vdisks, notifications, paths
        self._mountpoint = mountpoint
        self._waiting: dict[int, None] = {}
        self._woken = trio.Event()

    async def tell(self, vdisk: int) -> None:
        """Returns when the kernel has it, or keeps its own."""
        path, number = self._paths.path_of(vdisk), VdiskId(vdisk)
        if path is None or not self._vdisks.has_handles(number) or self._vdisks.has_buffered_writer(number):
            return
        await self._notifications.learn_size(self._mountpoint, path)

    def note(self, vdisk: int) -> None:
        """The same, later."""
        if len(self._waiting) < VDISKS_MAX:
            self._waiting[vdisk] = None
            self._woken.set()

    async def run(self) -> None:
        """Tells what was noted, until it is cancelled."""
        while True:
            await self._woken.wait()
            self._woken = trio.Event()
            for vdisk in list(self._waiting):
                del self._waiting[vdisk]
                await self.tell(vdisk)
