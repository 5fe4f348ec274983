"""Work in the background, a piece at a time, in threads: for a share of the time, so that guests keep theirs."""

import time
from collections.abc import Callable
from typing import TypeVar

import trio

from replication.workspace import Workspace

T = TypeVar("T")


REST_S_MIN = 0.002
"""Shorter rests are taken together."""
WAITING_SHARE = 0.5
"""Of the time, that a piece which does not compute but waits for the disk may take."""


class Pace:
    """How busy a piece of work may keep this node.

    Args:
        workspace: whose threads do the work.
        share: of the time that pieces may compute, asked each time; 1.0 for at once.
    """

    def __init__(self, workspace: Workspace, share: Callable[[], float]) -> None:
        self._workspace, self._share = workspace, share
        self._owed_s = 0.0

    async def run(self, piece: Callable[[], T]) -> T:
        """Runs a piece in a thread, then rests as long as the share demands."""
        result = await self.work(piece)
        await self.rest()
        return result

    async def work(self, piece: Callable[[], T]) -> T:
        """Runs a piece in a thread; nothing else happens between its end and the return. ``rest`` soon."""

        def timed() -> tuple[T, float]:
            begun_s = time.thread_time()
            return piece(), time.thread_time() - begun_s

        begun_s = trio.current_time()
        result, computed_s = await self._workspace.wait_for(timed)
        taken_s = trio.current_time() - begun_s
        self._owed_s += max(computed_s / self._share(), taken_s / WAITING_SHARE) - taken_s
        return result

    async def rest(self) -> None:
        """Rests for what was worked since the last time."""
        if self._owed_s > REST_S_MIN:
            owed_s, self._owed_s = self._owed_s, 0.0
            if self._share() < 1.0:
                await trio.sleep(owed_s)
