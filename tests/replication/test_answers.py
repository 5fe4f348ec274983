"""Calls between nodes that are answered without a task, where they can be."""

import pathlib
from collections.abc import Mapping
from typing import Any

import pytest
import trio

from metadata.errors import NotOwner, Unavailable
from replication.cluster import Answer
from tests.replication.linked_nodes import join, linked
from tests.replication.rig import run


def test_what_can_be_answered_at_once_is_and_else_the_handler_is_asked(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def ask(_node: str, _arguments: Mapping[str, Any], _data: bytes) -> Answer:
        await trio.lowlevel.checkpoint()
        return {"by": "handler"}, b""

    def at_once(node: str, arguments: Mapping[str, Any], data: bytes) -> Answer | None:
        if arguments["how"] == "refused":
            raise NotOwner("not for you", number=11)
        if arguments["how"] == "broken":
            raise ZeroDivisionError
        return ({"by": f"at once for {node}"}, data) if arguments["how"] == "at once" else None

    async def scenario() -> None:
        async with linked(*await join(tmp_path, "one", "two")) as nodes:
            one = nodes.links["one"]
            nodes.links["two"].serve("ask", ask, at_once=at_once)
            for _ in range(3):
                answer = await one.call("two", "ask", {"how": "at once"}, b"data", deadline_s=5)
                assert answer == ({"by": "at once for one"}, b"data")
                assert await one.call("two", "ask", {"how": "slow"}, deadline_s=5) == (
                    {"by": "handler"},
                    b"",
                )
                with pytest.raises(NotOwner, match="not for you"):
                    await one.call("two", "ask", {"how": "refused"}, deadline_s=5)
            with pytest.raises(Unavailable, match=r"unexpectedly.*ZeroDivisionError"):
                await one.call("two", "ask", {"how": "broken"}, deadline_s=5)
            answered = []

            async def again(how: str) -> None:
                answered.append((await one.call("two", "ask", {"how": how}, deadline_s=5))[0]["by"])

            async with trio.open_nursery() as nursery:
                for number in range(40):
                    nursery.start_soon(again, ("at once", "slow")[number % 2])
            assert sorted(answered) == ["at once for one"] * 20 + ["handler"] * 20

    run(scenario)
    assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]
    caplog.clear()
