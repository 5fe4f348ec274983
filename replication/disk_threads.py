"""Threads for what waits for a disk, handed work and giving it back with as little ado as Python allows.

A guest's fsync, and every read that the page cache does not hold, waits for this hand-over, so it is not trio's
general one: a queue that idle threads sleep on, and a callback on the event loop. A third of the time, of the CPU too.
"""

import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import outcome
import trio

T = TypeVar("T")
_Done = Callable[[Any, Exception | None], None]


class DiskThreads:
    """Started as work comes, ended by ``close``. Used from one event loop.

    Args:
        limit: how many run at once; further work queues.
        name: of the threads, for whoever looks at them.
    """

    def __init__(self, limit: int, *, name: str) -> None:
        self._limit, self._name = limit, name
        self._work: queue.SimpleQueue[tuple[Callable[[], Any], _Done] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._unfinished = 0

    def submit(self, work: Callable[[], T], done: Callable[[T, Exception | None], None]) -> None:
        """Runs ``work`` in a thread, then ``done(result, error)`` on the event loop; one of them is None."""
        self._unfinished += 1
        if self._unfinished > len(self._threads) < self._limit:
            token = trio.lowlevel.current_trio_token()
            thread = threading.Thread(target=self._run, args=(token,), daemon=True, name=self._name)
            thread.start()
            self._threads.append(thread)
        self._work.put((work, done))

    async def run(self, work: Callable[[], T]) -> T:
        """Runs ``work`` in a thread and waits for its result; a cancellation waits for its end."""
        task = trio.lowlevel.current_task()

        def done(result: T, error: Exception | None) -> None:
            trio.lowlevel.reschedule(task, outcome.Value(result) if error is None else outcome.Error(error))

        self.submit(work, done)
        finished: T = await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
        return finished

    def _run(self, token: trio.lowlevel.TrioToken) -> None:
        while (item := self._work.get()) is not None:
            work, done = item
            result, error = None, None
            try:
                result = work()
            except Exception as exc:  # whoever waits gets it
                error = exc
            try:
                token.run_sync_soon(self._finish, done, result, error)
            except trio.RunFinishedError:
                pass  # nobody waits any more; what was submitted is done all the same
            del work, done, result, error, item  # what they hold must not live till the next work comes

    def _finish(self, done: _Done, result: Any, error: Exception | None) -> None:
        self._unfinished -= 1
        done(result, error)

    def close(self) -> None:
        """Ends the threads once they have done what was submitted."""
        for _ in self._threads:
            self._work.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
