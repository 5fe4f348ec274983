"""Work in the background: for each piece as long a rest as guests are to have of the time."""

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing

from replication import pacing
from replication.pacing import REST_S_MIN, WAITING_SHARE, Pace
from replication.workspace import Workspace
from tests.replication.rig import run


class Threads:
    """A workspace whose pieces take as long, and compute as long, as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.taken_s = self.computed_s = self._thread_s = 0.0
        monkeypatch.setattr(pacing.time, "thread_time", lambda: self._thread_s)

    async def wait_for(self, piece: Callable[[], Any]) -> Any:
        with trio.move_on_after(self.taken_s):
            await trio.sleep_forever()
        return piece()

    def compute(self) -> str:
        """A piece."""
        self._thread_s += self.computed_s
        return "result"


def paced(
    monkeypatch: pytest.MonkeyPatch, body: Callable[[Threads, Callable[[float], Pace]], Awaitable[None]]
) -> None:
    async def scenario() -> None:
        threads = Threads(monkeypatch)
        await body(threads, lambda share: Pace(cast(Workspace, threads), lambda: share))

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


async def took(threads: Threads, pace: Pace, *, taken_s: float = 0.0, computed_s: float = 0.0) -> float:
    """How long a piece of work and the rest behind it took, on the node's clock."""
    threads.taken_s, threads.computed_s = taken_s, computed_s
    begun_s = trio.current_time()
    assert await pace.run(threads.compute) == "result"
    return trio.current_time() - begun_s


def test_a_piece_that_computes_has_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(threads: Threads, make: Callable[[float], Pace]) -> None:
        assert await took(threads, make(0.1), taken_s=1.0, computed_s=1.0) == pytest.approx(10.0)
        assert await took(threads, make(0.25), taken_s=2.0, computed_s=1.0) == pytest.approx(4.0)

    paced(monkeypatch, body)


def test_one_that_waits_for_the_disk_rests_as_long_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(threads: Threads, make: Callable[[float], Pace]) -> None:
        assert await took(threads, make(0.1), taken_s=1.0) == pytest.approx(1.0 / WAITING_SHARE)

    paced(monkeypatch, body)


def test_work_that_is_wanted_at_once_does_not_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(threads: Threads, make: Callable[[float], Pace]) -> None:
        assert await took(threads, make(1.0), taken_s=1.0, computed_s=1.0) == pytest.approx(1.0)

    paced(monkeypatch, body)


def test_short_rests_are_taken_together(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(threads: Threads, make: Callable[[float], Pace]) -> None:
        pace, piece_s = make(0.5), 0.8 * REST_S_MIN
        assert await took(threads, pace, computed_s=piece_s / 2) == 0
        assert await took(threads, pace, computed_s=piece_s / 2) == pytest.approx(2 * piece_s)
        assert await took(threads, pace, computed_s=piece_s / 2) == 0  # nothing is owed twice

    paced(monkeypatch, body)


def test_a_piece_that_fails_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    async def body(threads: Threads, make: Callable[[float], Pace]) -> None:
        def fails() -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await make(0.5).run(fails)

    paced(monkeypatch, body)
