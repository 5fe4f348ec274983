"""A daemon makes way for its successor: nothing is given up, guests wait as short a time as can be.

    asked -> commit and write the index back, still serving -> paused: what is in hand -> commit -> close -> end

Nothing is put to rest and no open file is closed: the successor understands the handles that this one gave out.
What an error leaves undone here is in the journal and in the log, as after a kill.
"""

import logging
import os
from typing import NoReturn

import trio

from fusefs.channel import Channel
from fusefs.daemon_process import EXIT_FINISHED, FINISH_SIGNAL
from fusefs.handover import Stage, report_stage
from metadata.errors import VdiskfsError
from replication.commit import flush
from replication.head import Head
from replication.vdisks import Vdisks

log = logging.getLogger(__name__)

LAST_COMMITS_S = 0.1
"""For the commits while guests wait; a disk that takes longer costs a replay of the journal instead."""


async def finish_when_asked(ready_fd: int, vdisks: Vdisks, channel: Channel) -> None:
    """The task that waits for the keeper's signal and prepares the end while requests are served."""
    with trio.open_signal_receiver(FINISH_SIGNAL) as signals:
        async for _ in signals:
            log.info("asked to make way for a successor")
            for _ in range(2):  # the second time only what was written meanwhile
                await _commit_all(vdisks)
                await _write_index_back(vdisks)
            report_stage(ready_fd, Stage.PAUSED)
            channel.finish()
            return


async def make_way(vdisks: Vdisks) -> NoReturn:
    """Commits what arrived last, closes the index and ends the process."""
    space = vdisks.workspace
    with trio.CancelScope(shield=True):
        with trio.move_on_after(LAST_COMMITS_S):
            await _commit_all(vdisks)
        try:
            await space.wait_for(space.index.close)
        except VdiskfsError as exc:
            log.warning("%s", exc)
    log.info("made way for the successor")
    logging.shutdown()
    os._exit(EXIT_FINISHED)


async def _commit_all(vdisks: Vdisks) -> None:
    async with trio.open_nursery() as nursery:
        for head in list(vdisks.heads.values()):
            if head.is_dirty or head.light_commits:
                nursery.start_soon(_commit, head)


async def _commit(head: Head) -> None:
    try:
        await flush(head)
    except VdiskfsError as exc:
        log.warning("could not be committed, its journal is kept: %s vdisk=%d", exc, head.vdisk)


async def _write_index_back(vdisks: Vdisks) -> None:
    try:
        await vdisks.workspace.wait_for(vdisks.workspace.index.flush)
    except VdiskfsError as exc:
        log.warning("%s", exc)
