"""Work in the background, a piece at a time, in threads: for a share of the time, so that guests keep theirs."""

from collections.abc import Callable
from typing import TypeVar

import trio

from replication.workspace import Workspace

T = TypeVar("T")

BACKGROUND_SHARE = 0.1
"""A thread that computes takes the interpreter from the loop that serves guests: a tenth of the time at most."""


class Pace:
    """How busy a piece of work may keep this node.

    Args:
        workspace: whose threads do the work.
        share: of the time that pieces may run; 1.0 for at once.
    """

    def __init__(self, workspace: Workspace, share: float = 1.0) -> None:
        self._workspace = workspace
        self.share = share
        self._rested = trio.current_time()

    async def run(self, piece: Callable[[], T]) -> T:
        """Runs a piece in a thread, then rests as long as the share demands."""
        self._rested = trio.current_time()
        result = await self._workspace.wait_for(piece)
        await self.rest()
        return result

    async def rest(self) -> None:
        """Rests for what was done since the last rest, or the last piece began."""
        if self.share < 1.0:
            await trio.sleep((trio.current_time() - self._rested) * (1 / self.share - 1))
        self._rested = trio.current_time()
