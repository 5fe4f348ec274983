"""The owner's side of forwarded requests: what is done, once; under which epoch; what the page cache here is told."""

import os
import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from metadata.errors import InvalidRequest, NotOwner, Unavailable
from metadata.ids import VdiskId
from metadata.records import call_number
from replication.cluster import Answer
from replication.forwarding import CHANGING, FLUSHING, Forwarding, facts_of, perform
from replication.head import Head
from replication.vdisks import Vdisks
from tests.replication.rig import B, Rig, block, blocks, content, create, run, sound
from tests.replication.switch import Switch

V = VdiskId(20)
DEADLINE_S = 10.0
FIRST, SECOND = call_number(1, 1), call_number(1, 2)


class Owner:
    """Node a, which owns the vdisk; ``ask`` is what its peer b does."""

    def __init__(self, vdisks: Vdisks, head: Head) -> None:
        switch = Switch()
        self.head, self.vdisks, self._peer = head, vdisks, switch.join("b")
        self.forwarding = Forwarding(switch.join("a"), head=vdisks.head, files=vdisks._files)
        self.forwarding.is_serving = True
        self.dropped: list[tuple[int, int, int]] = []
        self.resized: list[int] = []

    def give_it_a_kernel(self) -> None:
        async def drop(vdisk: int, offset: int, length: int) -> None:
            await trio.lowlevel.checkpoint()
            self.dropped.append((vdisk, offset, length))

        async def note(vdisk: int) -> None:
            await trio.lowlevel.checkpoint()
            self.resized.append(vdisk)

        self.forwarding.drop_pages, self.forwarding.note_resized = drop, note

    async def opened(self, flags: int) -> int:
        """As a guest's open here does it."""
        number = await self.vdisks.open(V, flags=flags)
        self.forwarding.note_open(V, flags)
        return number

    async def ask(
        self, deed: str, *, call: int = FIRST, again: bool = False, payload: bytes = b"", **arguments: Any
    ) -> Answer:
        named = {"vdisk": V, "call": call, "since": 0, "again": again, "epoch": self.head.log.epoch}
        return await self._peer.call(
            "a", f"remote_{deed}", {**named, **arguments}, payload, deadline_s=DEADLINE_S
        )


def with_owner(folder: pathlib.Path, body: Callable[[Owner], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with Rig(folder).node() as vdisks:
            head = await create(vdisks, V, 4 * B)
            vdisks.close(next(iter(vdisks.handles)))
            await body(Owner(vdisks, head))
            await sound(vdisks, V)

    run(scenario)


def test_each_deed_is_done_and_answered_with_where_the_vdisk_is(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        head = owner.head
        facts, answer = await owner.ask("write", offset=B, payload=blocks(1, 2))
        assert (answer, facts) == (b"", facts_of(head))
        assert (await owner.ask("read", offset=B, size=2 * B))[1] == blocks(1, 2)
        await owner.ask("punch", call=SECOND, offset=B, size=B)
        assert (await owner.ask("read", offset=0, size=4 * B))[1] == bytes(2 * B) + block(2) + bytes(B)
        assert (await owner.ask("seek", offset=0, data=True))[1] == (2 * B).to_bytes(8, "little")
        facts, _ = await owner.ask("grow", call=call_number(2, 1), size=9 * B)
        assert facts["size"] == head.size == 9 * B
        facts, _ = await owner.ask("truncate", call=call_number(2, 2), size=2 * B)
        assert facts["size"] == 2 * B
        assert (await owner.ask("seek", offset=0, data=True))[1] == b""
        assert (await owner.ask("look"))[0] == facts
        assert owner.forwarding.served == 9

    with_owner(tmp_path, body)


@pytest.mark.parametrize("deed", sorted(CHANGING))
def test_what_changes_is_committed_before_it_is_answered(tmp_path: pathlib.Path, deed: str) -> None:
    async def body(owner: Owner) -> None:
        await owner.ask("write", offset=0, payload=block(1))
        version = owner.head.log.version
        facts, _ = await owner.ask(deed, call=SECOND, offset=0, size=B, payload=block(2) * (deed == "write"))
        assert facts["version"] == owner.head.log.version > version
        assert not owner.head.is_dirty

    with_owner(tmp_path, body)


def test_a_flush_commits_what_guests_here_have_written(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        assert owner.head.write_nowait(0, memoryview(block(7)))
        assert owner.head.is_dirty
        await owner.ask("look")
        assert owner.head.is_dirty
        await owner.ask("flush")
        assert not owner.head.is_dirty
        assert "flush" in FLUSHING

    with_owner(tmp_path, body)


def test_a_change_that_comes_again_is_done_once(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        await owner.ask("write", offset=0, payload=block(1))
        await owner.ask("write", call=SECOND, offset=0, payload=block(2))
        await owner.ask("write", again=True, offset=0, payload=block(1))  # still in the head
        assert await content(owner.head) == block(2) + bytes(3 * B)
        owner.head.calls.clear()
        await owner.ask("write", again=True, offset=0, payload=block(1))  # in the log
        assert await content(owner.head) == block(2) + bytes(3 * B)
        await owner.ask("write", call=call_number(3, 1), again=True, offset=0, payload=block(3))  # nowhere
        assert await content(owner.head) == block(3) + bytes(3 * B)

    with_owner(tmp_path, body)


def test_one_that_comes_again_while_it_is_done_waits_for_itself(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        owner.give_it_a_kernel()
        drop, may_go_on = owner.forwarding.drop_pages, trio.Event()
        assert drop is not None

        async def slow(vdisk: int, offset: int, length: int) -> None:
            await may_go_on.wait()
            await drop(vdisk, offset, length)

        owner.forwarding.drop_pages = slow
        await owner.opened(os.O_RDWR)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: owner.ask("write", offset=0, payload=block(1)))
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.start_soon(lambda: owner.ask("write", again=True, offset=0, payload=block(1)))
            nursery.start_soon(lambda: owner.ask("write", call=SECOND, offset=B, payload=block(2)))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert owner.dropped == []
            may_go_on.set()
        assert await content(owner.head) == blocks(1, 2) + bytes(2 * B)
        versions = owner.head.log.version
        await owner.ask("write", again=True, offset=0, payload=block(1))
        assert await content(owner.head) == blocks(1, 2) + bytes(2 * B)
        assert owner.head.log.version <= versions + 1

    with_owner(tmp_path, body)


def test_nothing_is_done_under_another_epoch_or_for_a_node_that_does_not_own_it(
    tmp_path: pathlib.Path,
) -> None:
    async def body(owner: Owner) -> None:
        for epoch in (owner.head.log.epoch + 1, owner.head.log.epoch - 1):
            with pytest.raises(NotOwner, match=f"not under this epoch.*asked={epoch}"):
                await owner.ask("write", epoch=epoch, offset=0, payload=block(1))
        owner.head.owned = False
        with pytest.raises(NotOwner, match="not under this epoch"):
            await owner.ask("read", offset=0, size=B)
        owner.head.owned = True
        assert await content(owner.head) == bytes(4 * B)

    with_owner(tmp_path, body)


def test_a_node_that_is_starting_does_nothing(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        owner.forwarding.is_serving = False
        with pytest.raises(Unavailable, match="just starting, or ending"):
            await owner.ask("write", offset=0, payload=block(1))
        assert owner.forwarding.served == 0
        assert await content(owner.head) == bytes(4 * B)

    with_owner(tmp_path, body)


def test_one_that_failed_can_be_asked_again(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        with pytest.raises(InvalidRequest):
            await owner.ask("truncate", size=1 << 62)
        await owner.ask("truncate", again=True, size=B)
        assert owner.head.size == B

    with_owner(tmp_path, body)


class TestPageCache:
    def test_what_a_guest_here_caches_is_dropped_around_a_change(self, tmp_path: pathlib.Path) -> None:
        async def body(owner: Owner) -> None:
            owner.give_it_a_kernel()
            await owner.opened(os.O_RDONLY)
            await owner.ask("write", offset=B, payload=block(1))
            assert owner.dropped == [(V, B, B)] * 2
            await owner.ask("punch", call=SECOND, offset=2 * B, size=B)
            assert owner.dropped[2:] == [(V, 2 * B, B)] * 2

        with_owner(tmp_path, body)

    def test_before_a_read_only_a_buffered_writer_s_pages_are_written_back(
        self, tmp_path: pathlib.Path
    ) -> None:
        async def body(owner: Owner) -> None:
            owner.give_it_a_kernel()
            await owner.opened(os.O_RDONLY)
            await owner.ask("read", offset=B, size=B)
            assert owner.dropped == []
            await owner.opened(os.O_RDWR)
            await owner.ask("read", offset=B, size=B)
            await owner.ask("seek", offset=B, data=True)
            assert owner.dropped == [(V, B, B), (V, B, 0)]

        with_owner(tmp_path, body)

    def test_where_nobody_caches_all_is_dropped_once(self, tmp_path: pathlib.Path) -> None:
        async def body(owner: Owner) -> None:
            owner.give_it_a_kernel()
            await owner.opened(os.O_RDWR | os.O_DIRECT)
            for number in range(3):
                await owner.ask("write", call=call_number(5, number), offset=B, payload=block(1))
            assert owner.dropped == [(V, 0, 0)]
            owner.vdisks.close(await owner.opened(os.O_RDONLY))  # its pages stay when it is closed
            await owner.ask("write", call=call_number(6, 1), offset=B, payload=block(2))
            assert owner.dropped == [(V, 0, 0)] * 2

        with_owner(tmp_path, body)

    def test_the_kernel_hears_of_a_size_that_another_node_has_set(self, tmp_path: pathlib.Path) -> None:
        async def body(owner: Owner) -> None:
            owner.give_it_a_kernel()
            await owner.ask("write", offset=0, payload=block(1))
            assert owner.resized == []
            await owner.ask("write", call=SECOND, offset=4 * B, payload=block(1))
            await owner.ask("truncate", call=call_number(2, 1), size=B)
            await owner.ask("truncate", call=call_number(2, 2), size=B)
            assert owner.resized == [V, V]

        with_owner(tmp_path, body)


def test_a_write_that_finds_little_room_in_the_journal_waits_for_it(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        async with Rig(tmp_path, journal_capacity=16).node() as vdisks:
            head = await create(vdisks, V, 64 * B)
            for number in range(40):
                call = {"call": call_number(9, number), "again": False, "since": 0}
                await perform(head, "write", {**call, "offset": number * B}, block(number))
            assert await content(head) == blocks(*range(40)) + bytes(24 * B)
            await sound(vdisks, V)

    run(scenario)
