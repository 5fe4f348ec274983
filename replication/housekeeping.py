"""What a head that nobody attends to needs by and by: its changes committed, its index caught up, its rest."""

from collections.abc import Awaitable, Callable

from metadata.ids import VdiskId
from replication.commit import flush
from replication.head import DIRTY_ROWS_MAX, Head

REST_AFTER_TICKS = 20
"""Ticks without a handle before a head is put to rest."""
PENDING_BYTES_MAX = 512 << 20
"""Unflushed bytes of one vdisk after which the node commits on its own."""
PENDING_TICKS_MAX = 30
"""Ticks a change stays unflushed at most, as with a kernel's own write-back."""


class Housekeeping:
    """One to a daemon; owned by ``Vdisks``, which calls ``tend`` for each head once a tick.

    Args:
        put_to_rest: a head.
        has_handles: whether any file of a vdisk is open.
    """

    def __init__(
        self,
        *,
        put_to_rest: Callable[[Head], Awaitable[None]],
        has_handles: Callable[[VdiskId], bool],
    ) -> None:
        self._put_to_rest, self._has_handles = put_to_rest, has_handles
        self._idle_ticks: dict[int, int] = {}
        self._pending_ticks: dict[int, int] = {}

    async def tend(self, head: Head) -> None:
        """Looks whether anything is due."""
        vdisk = VdiskId(head.vdisk)
        waiting = self._pending_ticks.get(vdisk, 0) + 1 if head.is_dirty else 0
        idle = 0 if self._has_handles(vdisk) else self._idle_ticks.get(vdisk, 0) + 1
        self._pending_ticks[vdisk], self._idle_ticks[vdisk] = waiting, idle
        if (
            waiting > PENDING_TICKS_MAX
            or head.log.pending.data_bytes() > PENDING_BYTES_MAX
            or len(head.dirty) > DIRTY_ROWS_MAX // 2
        ):
            await flush(head)
            self._pending_ticks[vdisk] = 0
        if head.light_commits and not head.is_dirty:
            await flush(head)
        if idle > REST_AFTER_TICKS:
            await self._put_to_rest(head)
            self._pending_ticks.pop(vdisk, None)
            self._idle_ticks.pop(vdisk, None)
