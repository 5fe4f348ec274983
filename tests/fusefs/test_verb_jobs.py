"""Verbs run on another node: asked about until the end, repeated without being run twice, cut off when nobody asks."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from fusefs.control import Progress
from fusefs.verb_jobs import (
    ABANDONED_S,
    BEGIN,
    END,
    JOBS_MAX,
    MORE,
    PIECE_BYTES,
    TRIES,
    RemoteVerbs,
    VerbJobs,
)
from metadata.errors import Busy, InvalidRequest, Unavailable, VdiskfsError
from replication.cluster import Links
from tests.replication.rig import run
from tests.replication.switch import Switch


class Nodes:
    """Node a, which asks, and node b, which runs verbs as the test says."""

    def __init__(self) -> None:
        self.switch = Switch()
        self.links: Links = self.switch.join("a")
        self.may_end = trio.Event()
        self.ran: list[object] = []
        self.cut_off = 0
        verbs = {"echo": self._echo, "wait": self._wait, "fail": self._fail, "break": self._break}
        self.jobs = VerbJobs(self.switch.join("b"), verbs)
        self._numbers = iter(range(10**6))
        self.remote = RemoteVerbs(self.links, lambda: str(next(self._numbers)))

    async def _echo(self, arguments: dict[str, Any], progress: Progress) -> object:
        await trio.lowlevel.checkpoint()
        self.ran.append(arguments)
        return arguments.get("times", 1) * str(arguments.get("text", ""))

    async def _wait(self, arguments: dict[str, Any], progress: Progress) -> object:
        progress({"done": 1})
        self.ran.append(arguments)
        try:
            await self.may_end.wait()
        except trio.Cancelled:
            self.cut_off += 1
            raise
        return "done"

    async def _fail(self, arguments: dict[str, Any], progress: Progress) -> object:
        await trio.lowlevel.checkpoint()
        raise Busy("in use", number=11)

    async def _break(self, arguments: dict[str, Any], progress: Progress) -> object:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError

    async def ask(self, verb: str, **arguments: object) -> Any:
        return await self.remote.run("b", verb, arguments, lambda news: None)


def with_nodes(body: Callable[[Nodes, trio.Nursery], Awaitable[None]]) -> None:
    async def scenario() -> None:
        nodes = Nodes()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nodes.jobs.run)
            await body(nodes, nursery)
            nursery.cancel_scope.cancel()

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_answer_comes_whole_however_large_and_its_job_is_forgotten() -> None:
    async def body(nodes: Nodes, nursery: trio.Nursery) -> None:
        assert await nodes.ask("echo", text="é") == "é"
        for size in (PIECE_BYTES - 2, PIECE_BYTES, 3 * PIECE_BYTES + 1):
            assert await nodes.ask("echo", text="x", times=size) == "x" * size
        assert nodes.jobs._jobs == {}

    with_nodes(body)


def test_progress_is_told_until_the_end() -> None:
    async def body(nodes: Nodes, nursery: trio.Nursery) -> None:
        heard: list[object] = []

        def note(news: object) -> None:
            heard.append(news)
            if len(heard) == 3:
                nodes.may_end.set()

        assert await nodes.remote.run("b", "wait", {}, note) == "done"
        assert heard == [{"done": 1}] * 3

    with_nodes(body)


def test_errors_come_as_they_were_raised_and_others_are_no_secret_s_leak(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def body(nodes: Nodes, nursery: trio.Nursery) -> None:
        with pytest.raises(Busy, match="in use") as caught:
            await nodes.ask("fail")
        assert caught.value.number == 11
        with pytest.raises(VdiskfsError, match="internal error, the log of the node that ran it tells more"):
            await nodes.ask("break")
        with pytest.raises(InvalidRequest, match="does not know this verb"):
            await nodes.ask("unheard")
        with pytest.raises(InvalidRequest, match="name fewer paths"):
            await nodes.ask("echo", text="x" * PIECE_BYTES)
        assert nodes.jobs._jobs == {}

    with_nodes(body)
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == [
        "a control verb of another node failed"
    ]
    caplog.clear()


def test_a_call_that_comes_twice_runs_the_verb_once_and_another_node_s_job_is_another() -> None:
    async def body(nodes: Nodes, nursery: trio.Nursery) -> None:
        call = {"job": "1", "verb": "echo"}
        other = nodes.switch.join("c")
        for _ in range(2):
            named, data = await nodes.links.call("b", BEGIN, call, b"{}", deadline_s=5)
            assert (named["done"], data) == (True, b'""')
        assert len(nodes.ran) == 1
        await other.call("b", BEGIN, call, b"{}", deadline_s=5)
        assert len(nodes.ran) == 2

    with_nodes(body)


def test_nobody_runs_more_than_the_most_at_once() -> None:
    async def body(nodes: Nodes, nursery: trio.Nursery) -> None:
        for number in range(JOBS_MAX):
            await nodes.links.call("b", BEGIN, {"job": str(number), "verb": "wait"}, b"{}", deadline_s=5)
        with pytest.raises(Unavailable, match="too many commands of others"):
            await nodes.links.call("b", BEGIN, {"job": "x", "verb": "wait"}, b"{}", deadline_s=5)
        await nodes.links.call("b", END, {"job": "0"}, b"", deadline_s=5)
        await nodes.links.call("b", BEGIN, {"job": "x", "verb": "wait"}, b"{}", deadline_s=5)
        assert nodes.cut_off == 1

    with_nodes(body)


def test_a_job_that_somebody_asks_about_goes_on_and_an_abandoned_one_is_cut_off() -> None:
    async def body(nodes: Nodes, nursery: trio.Nursery) -> None:
        for job in ("kept", "left"):
            await nodes.links.call("b", BEGIN, {"job": job, "verb": "wait"}, b"{}", deadline_s=5)
        until_s = trio.current_time() + 3 * ABANDONED_S
        while trio.current_time() < until_s:
            named, _ = await nodes.links.call("b", MORE, {"job": "kept", "position": 0}, b"", deadline_s=5)
            assert not named["done"]
        assert nodes.cut_off == 1
        with pytest.raises(Unavailable, match="the node has started anew"):
            await nodes.links.call("b", MORE, {"job": "left", "position": 0}, b"", deadline_s=5)

    with_nodes(body)


def test_whoever_is_asked_to_stop_ends_the_verb_there() -> None:
    async def body(nodes: Nodes, nursery: trio.Nursery) -> None:
        with trio.move_on_after(3):
            await nodes.ask("wait")
        await trio.testing.wait_all_tasks_blocked()
        assert nodes.cut_off == 1
        assert nodes.jobs._jobs == {}

    with_nodes(body)


def test_a_node_that_does_not_answer_is_asked_so_often_and_no_more() -> None:
    async def body(nodes: Nodes, nursery: trio.Nursery) -> None:
        nodes.switch.leave("b")
        with pytest.raises(Unavailable, match="does not answer"):
            await nodes.ask("echo")
        asked = [verb for _, _, verb in nodes.switch.calls]
        assert asked == [BEGIN] * TRIES + [END]

    with_nodes(body)
