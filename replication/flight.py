"""A commit on its way: between the event loop that began it and the thread that makes it durable.

The thread answers whoever waits for this commit the moment it is durable, before anything else; the loop hears of
the end later, or takes notice of it itself when it is about to begin the next commit.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from metadata.errors import VdiskfsError
from metadata.index import IndexBatch
from replication.log import Commit

Answer = tuple[Callable[[], None], Callable[[], None]]
"""What to do when the commit is durable, from any thread; and when it failed, on the event loop."""


@dataclass(slots=True)
class Flight:
    """One commit, or one lot of rows for the index, or both; one to a head at a time."""

    commit: Commit | None
    """None: everything is durable already, the index only catches up."""
    batch: IndexBatch | None
    """None: a light commit; the index catches up later."""
    change_no: int
    """The head's last change that this commit holds."""
    cut: int | None = None
    durable: bool = False
    """And within the fence."""
    doubtful: bool = False
    """It is on the disk, but perhaps another node owns the vdisk: the fence is asked before it counts."""
    judging: bool = False
    finished: bool = False
    """The thread has done what it can."""
    ended: bool = False
    """The event loop has taken notice."""
    index_error: VdiskfsError | None = None
    failure: Exception | None = None
    _answers: deque[Answer] = field(default_factory=deque)

    def answer(self, when_durable: Callable[[], None], *, when_failed: Callable[[], None]) -> None:
        """On the event loop: one of the two is called, once."""
        self._answers.append((when_durable, when_failed))
        if self.durable:
            self._answer_all()

    def note_durable(self) -> None:
        """Thread: nothing of this commit can be lost any more."""
        self.durable = True
        self._answer_all()

    def _answer_all(self) -> None:
        while True:
            try:
                when_durable, _ = self._answers.popleft()
            except IndexError:  # the other thread has answered the last one
                return
            when_durable()

    def take_failed(self) -> list[Callable[[], None]]:
        """On the event loop, after the end: whom a failure concerns."""
        failed = [when_failed for _, when_failed in self._answers]
        self._answers.clear()
        return failed
