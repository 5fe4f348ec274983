"""Work handed to threads and back: results, errors, order, limits, and an end that loses nothing."""

import functools
import threading
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from replication.disk_threads import DiskThreads


@pytest.fixture
def threads() -> Iterator[DiskThreads]:
    made = DiskThreads(2, name="test")
    yield made
    made.close()


def test_run_returns_what_the_work_returns_and_raises_what_it_raises(threads: DiskThreads) -> None:
    async def main() -> None:
        assert await threads.run(lambda: 7) == 7
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)
        assert await threads.run(threading.get_ident) != threading.get_ident()

    trio.run(main)


def test_no_more_threads_run_than_the_limit_and_all_work_gets_its_turn(threads: DiskThreads) -> None:
    gate, running, most = threading.Event(), 0, 0
    lock, two_run = threading.Lock(), trio.Event()

    def work(token: trio.lowlevel.TrioToken) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if running == 2:
            token.run_sync_soon(two_run.set)
        gate.wait()
        with lock:
            running -= 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            token = trio.lowlevel.current_trio_token()
            for _ in range(9):
                nursery.start_soon(threads.run, functools.partial(work, token))
            with trio.fail_after(60):
                await two_run.wait()
            gate.set()

    trio.run(main)
    assert most == 2
    assert running == 0


def test_a_callback_runs_on_the_event_loop_with_result_or_error(threads: DiskThreads) -> None:
    async def main() -> None:
        told: list[tuple[object, object, bool]] = []
        done = trio.Event()

        def note(result: object, error: Exception | None) -> None:
            told.append((result, type(error), threading.current_thread() is threading.main_thread()))
            if len(told) == 2:
                done.set()

        threads.submit(lambda: "fine", note)
        await threads.run(lambda: None)
        threads.submit(lambda: [][1], note)
        await done.wait()
        assert told == [("fine", type(None), True), (None, IndexError, True)]

    trio.run(main)


def test_a_cancelled_caller_waits_for_the_works_end(threads: DiskThreads) -> None:
    gate = threading.Event()
    ended: list[bool] = []

    def work() -> None:
        gate.wait()
        ended.append(True)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(threads.run, work)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            assert not ended
            gate.set()
        assert ended == [True]

    trio.run(main)


def test_close_lets_submitted_work_end_first() -> None:
    threads, ended = DiskThreads(1, name="test"), []

    async def main() -> None:
        for number in range(5):
            threads.submit(lambda number=number: ended.append(number), lambda result, error: None)

    trio.run(main)
    threads.close()
    assert ended == [0, 1, 2, 3, 4]
