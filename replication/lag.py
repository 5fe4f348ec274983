"""Waiting for a pool that is behind what was flushed: who names a version to others does so only when the pool has it."""

import functools

from replication.head import Head


async def reach_pool(head: Head) -> None:
    """Returns when the pool has all commits that were durable before the call.

    Raises:
        Fenced: another node has taken the vdisk over.
        Unavailable: it has not got them.
    """
    space = head.workspace
    if space.pool.may_lag(head.vdisk):
        await space.wait_for(functools.partial(space.pool.settle, head.vdisk))
