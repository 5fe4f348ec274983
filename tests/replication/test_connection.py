"""One connection after its hello: how many calls at once, whose answer is whose, and what an end does to each side."""

import logging
import pathlib
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio
import trio.testing

from metadata.errors import Corrupt, InvalidRequest, NotFound, Unavailable
from replication import connection
from replication.cluster import Answer
from replication.connection import AnsweringSide, CallingSide, Reader, reason
from replication.secure_stream import SecureStream
from replication.wire import HELLO_BYTES_MAX, Call, encode_answer, encode_call, encode_error
from tests.replication.rig import run
from tests.replication.secured_pair import secured_pair


class Sides:
    """A calling side that runs, and the other end: bare, or with an answering side that runs on it."""

    def __init__(self, one: SecureStream, two: SecureStream, nursery: trio.Nursery) -> None:
        self.nursery, self.far, self.far_reader = nursery, two, Reader(two)
        self.handlers: dict[str, Any] = {}
        reader = Reader(one)
        reader.take_long_ones()
        self.far_reader.take_long_ones()
        self.calling = CallingSide(one, reader, node="two")
        self.answering = AnsweringSide(
            two, self.far_reader, node="one", handlers=self.handlers, start=nursery.start_soon
        )

    def ask(self, verb: str, **arguments: Any) -> "list[Answer | Exception]":
        """Calls in a task; the answer, or what was raised, comes into the list."""
        got: list[Answer | Exception] = []

        async def call() -> None:
            try:
                got.append(await self.calling.call(verb, arguments, b""))
            except Exception as exc:
                got.append(exc)

        self.nursery.start_soon(call)
        return got


def with_sides(
    folder: pathlib.Path, body: Callable[[Sides], Awaitable[None]], *, answers: bool = False
) -> None:
    async def scenario() -> None:
        async with secured_pair(folder) as (one, two), trio.open_nursery() as nursery:
            sides = Sides(one, two, nursery)
            nursery.start_soon(sides.calling.run)
            if answers:
                nursery.start_soon(sides.answering.run)
            await body(sides)
            nursery.cancel_scope.cancel()

    run(scenario)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


async def calls_for(sides: Sides, count: int) -> list[Call]:
    """What the bare other end hears; so many calls and no more have been sent."""
    heard: list[Call] = []
    while len(heard) < count:
        for message in await sides.far_reader.receive():
            assert isinstance(message, Call)
            heard.append(message)
    with trio.move_on_after(0.01):
        await sides.far_reader.receive()
        raise AssertionError("one more")
    return heard


async def echo(node: str, arguments: Mapping[str, Any], data: bytes) -> Answer:
    return {"from": node, **arguments}, data


def test_answers_in_any_order_reach_their_callers(tmp_path: pathlib.Path) -> None:
    async def body(sides: Sides) -> None:
        first, second, third = sides.ask("a"), sides.ask("b"), sides.ask("c")
        calls = await calls_for(sides, 3)
        numbers = {call.verb: call.number for call in calls}
        assert len(set(numbers.values())) == 3
        sides.far.write_nowait(encode_answer(numbers["c"], {"for": "c"}, b"3"))
        sides.far.write_nowait(encode_error(numbers["a"], NotFound("no such thing")))
        sides.far.write_nowait(encode_answer(numbers["b"], {"for": "b"}, b"2"))
        await settle()
        assert (second, third) == ([({"for": "b"}, b"2")], [({"for": "c"}, b"3")])
        assert isinstance(first[0], NotFound)

    with_sides(tmp_path, body)


def test_more_calls_than_the_most_wait_until_one_is_answered(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CALLS_MAX", 2)

    async def body(sides: Sides) -> None:
        got = [sides.ask("a") for _ in range(4)]
        await settle()
        arrived = await calls_for(sides, 2)
        sides.far.write_nowait(encode_answer(arrived[0].number, {}, b""))
        (third,) = await calls_for(sides, 1)
        await settle()
        assert sum(map(len, got)) == 1
        for call in (arrived[1], third):
            sides.far.write_nowait(encode_answer(call.number, {}, b""))
        (fourth,) = await calls_for(sides, 1)
        sides.far.write_nowait(encode_answer(fourth.number, {}, b""))
        await settle()
        assert got == [[({}, b"")]] * 4

    with_sides(tmp_path, body)


def test_an_answer_that_nobody_waits_for_is_nobody_s(tmp_path: pathlib.Path) -> None:
    async def body(sides: Sides) -> None:
        sides.far.write_nowait(encode_answer(77, {"late": True}, b""))
        await settle()
        got = sides.ask("a")
        (call,) = await calls_for(sides, 1)
        sides.far.write_nowait(encode_answer(call.number, {"late": False}, b""))
        await settle()
        assert got == [({"late": False}, b"")]
        assert not sides.calling.is_over

    with_sides(tmp_path, body)


@pytest.mark.parametrize("what", ["a call", "garbage", "an end"])
def test_what_is_no_answer_ends_the_connection_and_all_calls_on_it(
    tmp_path: pathlib.Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(sides: Sides) -> None:
        got = [sides.ask("a"), sides.ask("b")]
        await settle()
        if what == "an end":
            sides.far.close()
        else:
            call = encode_call(1, "a", {}, b"")
            sides.far.write_nowait(call if what == "a call" else b"\0\0\0\1\xc1")
        await settle()
        assert [str(answer[0]) for answer in got] == ["the connection to the node broke node=two"] * 2
        assert sides.calling.is_over
        with pytest.raises(Unavailable, match="connection to the node broke"):
            await sides.calling.call("c", {}, b"")

    with caplog.at_level(logging.WARNING):
        with_sides(tmp_path, body)
    gave_up = [message for message in caplog.messages if "gave up a connection" in message]
    assert len(gave_up) == (what != "an end")


def test_those_who_wait_for_their_turn_hear_of_the_end_too(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CALLS_MAX", 1)

    async def body(sides: Sides) -> None:
        got = [sides.ask("a") for _ in range(3)]
        await settle()
        sides.far.close()
        await settle()
        assert [[type(answer) for answer in one] for one in got] == [[Unavailable]] * 3

    with_sides(tmp_path, body)


def test_a_call_that_is_too_long_fails_alone(tmp_path: pathlib.Path) -> None:
    async def body(sides: Sides) -> None:
        sides.handlers["echo"] = (echo, None)
        with pytest.raises(InvalidRequest, match="too much for one message"):
            await sides.calling.call("echo", {}, bytes(4 << 20))
        assert await sides.calling.call("echo", {"n": 1}, b"data") == ({"from": "one", "n": 1}, b"data")

    with_sides(tmp_path, body, answers=True)


def test_no_more_calls_are_carried_out_at_once_than_the_most(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "CALLS_MAX", 2)
    begun: list[int] = []
    may_end = trio.Event()

    async def wait(_node: str, arguments: Mapping[str, Any], _data: bytes) -> Answer:
        begun.append(arguments["n"])
        await may_end.wait()
        return {}, b""

    async def body(sides: Sides) -> None:
        sides.handlers["wait"] = (wait, None)
        for number in range(5):  # by somebody who does not keep to it
            sides.calling._stream.write_nowait(encode_call(number, "wait", {"n": number}, b""))
        await settle()
        assert begun == [0, 1]
        may_end.set()
        await settle()
        assert sorted(begun) == [0, 1, 2, 3, 4]

    with_sides(tmp_path, body, answers=True)


def test_what_has_begun_goes_on_when_the_caller_has_hung_up(tmp_path: pathlib.Path) -> None:
    may_go_on, done = trio.Event(), list[str]()

    async def change(node: str, _arguments: Mapping[str, Any], _data: bytes) -> Answer:
        await may_go_on.wait()
        done.append(node)
        return {}, b""

    async def body(sides: Sides) -> None:
        sides.handlers["change"] = (change, None)
        got = sides.ask("change")
        await settle()
        sides.calling._stream.close()
        await settle()
        assert isinstance(got[0], Unavailable)
        assert sides.far.is_closed
        may_go_on.set()
        await settle()
        assert done == ["one"]

    with_sides(tmp_path, body, answers=True)


def test_an_answer_instead_of_a_call_ends_the_connection(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(sides: Sides) -> None:
        sides.calling._stream.write_nowait(encode_answer(1, {}, b""))
        await settle()
        assert sides.far.is_closed
        assert sides.calling.is_over

    with caplog.at_level(logging.WARNING):
        with_sides(tmp_path, body, answers=True)
    assert "gave up a connection: a message that is no call node=one" in caplog.messages


def test_before_its_hello_nobody_may_say_much_at_once(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        async with secured_pair(tmp_path) as (one, two):
            reader = Reader(two)
            one.write_nowait(encode_call(1, "a", {}, b""))
            (call,) = await reader.receive()
            assert call == Call(1, "a", {}, b"")
            one.write_nowait(encode_call(2, "a", {}, bytes(HELLO_BYTES_MAX)))
            with pytest.raises(Corrupt, match="is announced"):
                await reader.receive()

    run(scenario)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ssl.SSLEOFError(8, "EOF occurred"), "it hung up"),
        (ssl.SSLError(1, "[SSL: ALERT_UNKNOWN_CA]"), "it knows our certificate as another cluster's"),
        (ConnectionRefusedError(111, "Connection refused"), "Connection refused"),
        (BrokenPipeError(), "it hung up"),
        (trio.ClosedResourceError(), "too many say nothing at once"),
        (Corrupt("it speaks in riddles"), "it speaks in riddles"),
    ],
)
def test_why_there_is_no_connection_is_said_in_a_few_words(error: Exception, words: str) -> None:
    assert reason(error) == words
