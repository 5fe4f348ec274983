"""Checkpoints: the index of one vdisk at a version, as a file in the pool.

A node that knows nothing of a vdisk takes the newest one in and replays the log from there, so opening costs
the log's tail, not its history. Written when a vdisk comes to rest and its log has grown enough since the last.
"""

import contextlib
import logging
import os

from metadata.errors import VdiskfsError
from replication.head import Head
from replication.lag import reach_pool

log = logging.getLogger(__name__)

DUE_COMMITS = 2000
"""Commits after the last checkpoint that make another worth its bytes: about a second of replay."""


async def checkpoint_if_due(head: Head) -> None:
    """Writes a checkpoint if many commits came since the last; failing to is no failure."""
    newest = max(
        await head.workspace.wait_for(lambda: head.workspace.pool.checkpoints(head.vdisk)), default=0
    )
    if head.log.version - newest >= DUE_COMMITS and not head.is_dirty:
        await checkpoint(head)


async def checkpoint(head: Head) -> bool:
    """Writes a checkpoint of what the index has applied; says whether that worked."""
    space = head.workspace

    def export() -> None:
        state = space.index.state(head.vdisk)
        if state is None or not state.version:
            return
        path = os.path.join(os.path.dirname(space.index.path), f"{head.vdisk:016x}.export")
        try:
            space.index.export_vdisk(head.vdisk, path)
            space.pool.publish_checkpoint(head.vdisk, state.version, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    try:
        await reach_pool(head)
        async with head.checkpoint_lock:
            await space.wait_for(export)
    except VdiskfsError as exc:
        log.warning("no checkpoint: %s vdisk=%d", exc, head.vdisk)
        return False
    return True
