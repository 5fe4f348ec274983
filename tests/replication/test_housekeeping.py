"""What a head that nobody attends to has done for it, and after how many ticks."""

from collections.abc import Awaitable, Callable

import pytest

from metadata.units import VBLOCK_BYTES
from replication import housekeeping
from replication.commit import flush
from replication.head import Head
from replication.housekeeping import PENDING_TICKS_MAX, REST_AFTER_TICKS, Housekeeping
from tests.replication.rig import B, Rig, block, create, run, write

V = 20


class House:
    """The housekeeping of one head; ``in_use`` says whether a file of it is open."""

    def __init__(self, head: Head) -> None:
        self.head, self.in_use, self.rested = head, True, 0
        self._keeping = Housekeeping(put_to_rest=self._rest, has_handles=lambda vdisk: self.in_use)

    async def _rest(self, head: Head) -> None:
        assert head is self.head
        self.rested += 1

    async def ticks(self, count: int) -> None:
        for _ in range(count):
            await self._keeping.tend(self.head)


def in_a_house(rig: Rig, body: Callable[[House], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with rig.node() as vdisks:
            await body(House(await create(vdisks, V, 8 * VBLOCK_BYTES)))

    run(scenario)


def test_a_change_is_committed_after_so_many_ticks_though_nobody_asks(rig: Rig) -> None:
    async def body(house: House) -> None:
        await write(house.head, 0, block(1))
        version = house.head.log.version
        await house.ticks(PENDING_TICKS_MAX)
        assert house.head.is_dirty
        await house.ticks(1)
        assert not house.head.is_dirty
        assert house.head.log.version == version + 1
        await house.ticks(PENDING_TICKS_MAX + 1)
        assert house.head.log.version == version + 1  # there is nothing to commit

    in_a_house(rig, body)


def test_a_change_made_later_has_its_whole_time(rig: Rig) -> None:
    async def body(house: House) -> None:
        for _ in range(2):
            await write(house.head, 0, block(1))
            await house.ticks(PENDING_TICKS_MAX)
            assert house.head.is_dirty
            await house.ticks(1)
            assert not house.head.is_dirty

    in_a_house(rig, body)


def test_much_that_is_unflushed_is_committed_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "PENDING_BYTES_MAX", 4 * B)

    async def body(house: House) -> None:
        await write(house.head, 0, block(1) * 4)
        await house.ticks(1)
        assert house.head.is_dirty
        await write(house.head, 8 * B, block(1))
        await house.ticks(1)
        assert not house.head.is_dirty

    in_a_house(rig, body)


def test_many_dirty_rows_are_committed_at_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(housekeeping, "DIRTY_ROWS_MAX", 4)

    async def body(house: House) -> None:
        await flush(house.head)
        for vblock in range(3):
            await house.ticks(1)
            assert house.head.is_dirty is (vblock > 0)
            await write(house.head, vblock * VBLOCK_BYTES, block(1))
        await house.ticks(1)
        assert not house.head.is_dirty

    in_a_house(rig, body)


def test_a_head_without_a_file_is_put_to_rest_and_one_in_use_is_not(rig: Rig) -> None:
    async def body(house: House) -> None:
        await house.ticks(2 * REST_AFTER_TICKS)
        assert house.rested == 0
        house.in_use = False
        await house.ticks(REST_AFTER_TICKS)
        assert house.rested == 0
        house.in_use = True  # somebody comes, for a moment
        await house.ticks(1)
        house.in_use = False
        await house.ticks(REST_AFTER_TICKS)
        assert house.rested == 0
        await house.ticks(1)
        assert house.rested == 1
        await house.ticks(REST_AFTER_TICKS)
        assert house.rested == 1

    in_a_house(rig, body)
