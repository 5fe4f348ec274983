"""What this node flushed to its own disk of vdisks that others have taken over before the pool had it: void, kept aside."""

import functools
import logging
from collections.abc import Callable

import trio

from replication.workspace import Workspace

log = logging.getLogger(__name__)


class VoidTails:
    """One to a daemon that has others; owned by its ``Transfers``."""

    def __init__(self, workspace: Workspace) -> None:
        self._space = workspace
        self._refusing: dict[int, trio.Event] = {}

    async def refuse_left_behind(self, is_owned: Callable[[int], bool]) -> None:
        """At the start: what an earlier daemon left, of vdisks that are not this node's any more."""
        space = self._space
        for vdisk in space.pool.left_behind():
            if not is_owned(vdisk):
                await space.wait_for(functools.partial(space.pool.refuse, vdisk))
                await space.wait_for(functools.partial(space.index.forget, vdisk))

    def refuse(self, vdisk: int) -> None:
        """Another node has taken the vdisk over."""
        space = self._space
        if not space.pool.may_lag(vdisk) or vdisk in self._refusing:
            return
        done = self._refusing[vdisk] = trio.Event()

        def note(_: None, error: Exception | None) -> None:
            del self._refusing[vdisk]
            done.set()
            if error is not None:
                log.error("what is void could not be kept aside: %s vdisk=%d", error, vdisk)

        space.threads.submit(functools.partial(space.pool.refuse, vdisk), note)

    async def wait(self, vdisk: int) -> None:
        """Returns when what is void of the vdisk is out of the way: before its log is read."""
        while vdisk in self._refusing:
            await self._refusing[vdisk].wait()
