"""Disk threads without threads: work runs on the loop after a simulated while, for the same schedule with the same seed."""

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

T = TypeVar("T")
_Done = Callable[[Any, Exception | None], None]


class SimulatedThreads:
    """In the place of ``DiskThreads``; work that a node's death catches before its turn is never done.

    Args:
        nursery: outlives the node.
        delay_s: how long the next piece of work takes, asked each time.
        standing: waits while the node stands still.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        delay_s: Callable[[], float],
        *,
        standing: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self._nursery, self._delay_s, self._standing = nursery, delay_s, standing
        self._is_dead = False
        self._waiting: set[trio.CancelScope] = set()

    def submit(self, work: Callable[[], T], done: Callable[[T, Exception | None], None]) -> None:
        self._nursery.start_soon(self._work, work, done)

    async def run(self, work: Callable[[], T]) -> T:
        finished = trio.Event()
        outcome: list[Any] = [None, None]

        def done(result: Any, error: Exception | None) -> None:
            outcome[:] = result, error
            finished.set()

        self.submit(work, done)
        with trio.CancelScope(shield=not self._is_dead) as scope:
            self._waiting.add(scope)
            try:
                await finished.wait()
            finally:
                self._waiting.discard(scope)
        if outcome[1] is not None:
            raise outcome[1]
        result: T = outcome[0]
        return result

    async def _work(self, work: Callable[[], Any], done: _Done) -> None:
        await pass_time(self._delay_s())
        await self._standing()
        if self._is_dead:
            return
        result, error = None, None
        try:
            result = work()
        except Exception as exc:  # whoever waits gets it
            error = exc
        await pass_time(self._delay_s())
        await self._standing()
        if not self._is_dead:
            done(result, error)

    def die(self) -> None:
        """What has not begun is never done, and nobody hears of the rest."""
        self._is_dead = True
        for scope in self._waiting:
            scope.shield = False

    def close(self) -> None:
        """Nothing to end."""


async def pass_time(seconds: float) -> None:
    """A simulated while."""
    with trio.move_on_after(seconds if seconds > 0 else 0):
        await trio.sleep_forever()
    if seconds <= 0:
        await trio.lowlevel.checkpoint()
