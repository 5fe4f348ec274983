"""Single-block writes that wait side by side: which may, for whom, and that each is read to a place of its own."""

import mmap
import pathlib
from collections.abc import Awaitable, Callable

import pytest

from fusefs import fuse_abi as abi
from fusefs.request_slots import BUFFER_BYTES, REQUEST_BYTES_MAX, SLOTS, Slots
from replication.head import Head
from replication.vdisks import Vdisks
from tests.replication.rig import B, Rig, block, create, run


def with_slots(folder: pathlib.Path, body: Callable[[Slots, Head, Vdisks], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with Rig(folder).node() as vdisks:
            head = await create(vdisks, 20, 64 * B)
            await body(Slots(mmap.mmap(-1, BUFFER_BYTES)), head, vdisks)

    run(scenario)


def read_to(slots: Slots, data: bytes) -> None:
    """As the kernel puts a write of one block where the next request is read to."""
    (vector,) = slots.vectors[slots.waiting]
    vector[abi.WRITE_DATA_AT : abi.WRITE_DATA_AT + len(data)] = data


def test_writes_wait_each_in_its_slot_and_are_given_together(tmp_path: pathlib.Path) -> None:
    async def body(slots: Slots, head: Head, vdisks: Vdisks) -> None:
        for number in range(SLOTS):
            assert len(slots.vectors[slots.waiting][0]) == REQUEST_BYTES_MAX
            read_to(slots, block(number))
            assert slots.take(head, 2 * number, fh=5, offset=number * B, flags=0)
            assert slots.waiting == number + 1
        given, writes = slots.give()
        assert given is head
        assert [(unique, fh, offset) for unique, fh, offset, _ in writes] == [
            (2 * number, 5, number * B) for number in range(SLOTS)
        ]
        assert [bytes(data) for *_, data in writes] == [block(number) for number in range(SLOTS)]
        assert slots.waiting == 0
        read_to(slots, block(99))
        assert slots.take(head, 100, fh=5, offset=0, flags=0)
        ((unique, _, _, data),) = slots.give()[1]
        assert (unique, bytes(data)) == (100, block(99))

    with_slots(tmp_path, body)


@pytest.mark.parametrize(("offset", "flags"), [(1, 0), (B - 512, 0), (0, abi.WRITE_KILL_SUIDGID)])
def test_what_is_no_plain_write_of_a_block_does_not_wait(
    tmp_path: pathlib.Path, offset: int, flags: int
) -> None:
    async def body(slots: Slots, head: Head, vdisks: Vdisks) -> None:
        assert not slots.take(head, 2, fh=5, offset=offset, flags=flags)
        assert slots.take(head, 2, fh=5, offset=0, flags=0)
        assert not slots.take(head, 4, fh=5, offset=offset, flags=flags)
        assert slots.waiting == 1

    with_slots(tmp_path, body)


def test_a_lot_is_of_one_head_of_this_node_that_nobody_syncs(tmp_path: pathlib.Path) -> None:
    async def body(slots: Slots, head: Head, vdisks: Vdisks) -> None:
        other = await create(vdisks, 21, B)
        assert not slots.take(None, 2, fh=5, offset=0, flags=0)
        other.syncs.streak = 1
        assert not slots.take(other, 2, fh=5, offset=0, flags=0)
        other.syncs.streak = 0
        assert slots.take(head, 2, fh=5, offset=0, flags=0)
        assert not slots.take(other, 4, fh=6, offset=0, flags=0)
        head.syncs.streak = 1  # a lot that has begun goes on
        assert slots.take(head, 6, fh=5, offset=B, flags=0)
        head.syncs.streak = 0
        assert [unique for unique, *_ in slots.give()[1]] == [2, 6]
        assert slots.take(other, 8, fh=6, offset=0, flags=0)
        assert slots.give()[0] is other

    with_slots(tmp_path, body)
