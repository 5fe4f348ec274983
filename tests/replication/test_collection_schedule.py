"""Collection without being asked: what is due is collected, what is not is hardly looked at."""

import os
import random
from typing import Any

import pytest
import trio

from metadata import liveness
from metadata.catalog import NEXT_ID_KEY, Change, encode_value
from metadata.errors import Unavailable
from replication import collection_schedule, collector, log
from replication.collection_schedule import CollectionSchedule
from replication.collector import Collector
from replication.commit import flush
from replication.pacing import Pace
from replication.vdisks import Vdisks
from tests.replication.rig import B, Rig, block, blocks, close_and_rest, content, create, opened, run, write

MIB = 1 << 20
BLOCKS = 200


@pytest.fixture(autouse=True)
def small_vdisks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "GROUP_BLOCKS", 64)
    monkeypatch.setattr(log, "STEP_BLOCKS_MIN", 16)
    monkeypatch.setattr(liveness, "GARBAGE_BYTES_MIN", 64 << 10)
    monkeypatch.setattr(liveness, "FILLING_BYTES_MIN", 32 << 10)
    monkeypatch.setattr(collector, "SEAL_BYTES_MIN", 64 << 10)


def scheduled(vdisks: Vdisks, *, busy: bool = False) -> CollectionSchedule:
    return CollectionSchedule(Collector(vdisks), vdisks, lambda: busy)


def occupied(rig: Rig, vdisk: int) -> int:
    return sum(path.stat().st_blocks * 512 for path in rig.group_files(vdisk))


def test_a_vdisk_written_over_and_over_stays_small_without_being_asked(rig: Rig) -> None:
    async def main() -> None:
        chance = random.Random(1)
        async with rig.node() as vdisks:
            head, schedule, wanted = await create(vdisks, 20, MIB), scheduled(vdisks), bytearray(MIB)
            await write(head, 0, blocks(*range(BLOCKS)))
            wanted[: BLOCKS * B] = blocks(*range(BLOCKS))
            for step in range(10 * BLOCKS):
                block_no = chance.randrange(BLOCKS)
                await write(head, block_no * B, block(step))
                wanted[block_no * B : (block_no + 1) * B] = block(step)
                if step % 20 == 19:
                    await flush(head)
                    await schedule.tick()
                    assert occupied(rig, 20) < 1.5 * BLOCKS * B + 128 * B
            assert await content(head) == wanted

    run(main)


def test_a_vdisk_that_has_not_changed_is_not_looked_at_again(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head, schedule, looks = await create(vdisks, 20, MIB), scheduled(vdisks), []
            look = schedule._collector.occupied_bytes

            async def noting(vdisk: int) -> int:
                looks.append(vdisk)
                return await look(vdisk)

            schedule._collector.occupied_bytes = noting  # type: ignore[method-assign]
            await write(head, 0, blocks(*range(BLOCKS)))
            await flush(head)
            for _ in range(5):
                await schedule.tick()
            assert looks == [20]
            await write(head, 0, block(1))
            await flush(head)
            await schedule.tick()
            assert looks == [20, 20]

    run(main)


def test_what_rests_and_what_is_left_of_deleted_vdisks_is_looked_at_now_and_then(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collection_schedule, "RESTING_TICKS", 3)

    async def main() -> None:
        async with rig.node() as vdisks:
            for vdisk in (20, 21):
                head = await create(vdisks, vdisk, MIB)
                for _ in range(3):
                    await write(head, 0, blocks(*range(BLOCKS)))
                    await flush(head)
                await close_and_rest(vdisks, vdisk)
            rows, _ = await vdisks.workspace.catalog.read(b"vdisk/%016x" % 21)
            gone = Change(puts=((NEXT_ID_KEY, encode_value(100)),), deletes=(rows[0].key,))
            await vdisks.workspace.catalog.transact(gone)
        async with rig.node() as vdisks:
            schedule, before = scheduled(vdisks), occupied(rig, 20)
            for _ in range(2):
                await schedule.tick()
            assert (occupied(rig, 20), vdisks.workspace.pool.vdisks()) == (before, [20, 21])
            await schedule.tick()
            assert occupied(rig, 20) < before
            assert vdisks.workspace.pool.vdisks() == [20]
            head = await opened(vdisks, 20)
            assert (await content(head))[: BLOCKS * B] == blocks(*range(BLOCKS))

    run(main)


def test_a_pool_that_is_filling_is_collected_sooner(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head, schedule = await create(vdisks, 20, MIB), scheduled(vdisks)
            await write(head, 0, blocks(*range(BLOCKS)))
            await write(head, 0, blocks(*range(20)))
            await flush(head)
            before = rig.group_files(20)
            await schedule.tick()
            assert rig.group_files(20) == before
            real = await vdisks.statfs()

            async def full() -> Any:
                return os.statvfs_result((*real[:4], real.f_blocks // 20, *real[5:]))

            vdisks.statfs = full  # type: ignore[method-assign]
            await schedule.tick()
            assert rig.group_files(20) != before
            assert "the pool is filling" in caplog.text

    run(main)


def test_a_vdisk_that_cannot_be_collected_does_not_end_the_schedule(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            schedule, tended = scheduled(vdisks), []

            async def fail(vdisk: int, look: object) -> None:
                tended.append(vdisk)
                raise Unavailable("its groups cannot be listed")

            schedule._tend = fail  # type: ignore[method-assign]
            for vdisk in (20, 21):
                await create(vdisks, vdisk, MIB)
            await schedule.tick()
            assert tended == [20, 21]

    run(main)


def test_a_paced_piece_is_followed_by_its_rest(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            slow, fast = Pace(vdisks.workspace, lambda: 0.1), Pace(vdisks.workspace, lambda: 1.0)
            assert await fast.run(lambda: sum(range(200_000))) == sum(range(200_000))
            before = trio.current_time()
            await slow.work(lambda: sum(range(2_000_000)))
            worked = trio.current_time()
            await slow.rest()
            assert trio.current_time() - worked > worked - before

    run(main)


def test_garbage_waits_for_busy_guests_until_it_is_more_than_a_burst_may_leave(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(liveness, "BURST_BYTES", 4 * MIB)

    async def main() -> None:
        async with rig.node() as vdisks:
            head, busy = await create(vdisks, 20, MIB), scheduled(vdisks, busy=True)
            for _ in range(4):
                await write(head, 0, blocks(*range(BLOCKS)))
            await flush(head)
            before = rig.group_files(20)
            await busy.tick()
            assert rig.group_files(20) == before
            while occupied(rig, 20) < 1.5 * BLOCKS * B + 4 * MIB:
                await write(head, 0, blocks(*range(BLOCKS)))
            await flush(head)
            await busy.tick()
            assert occupied(rig, 20) < BLOCKS * B + 4 * MIB

    run(main)


def test_writes_wait_for_a_collection_that_cannot_keep_up(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness, "BURST_BYTES", 0)

    async def main() -> None:
        async with rig.node() as vdisks:
            head, schedule = await create(vdisks, 20, MIB), scheduled(vdisks, busy=True)
            vdisks.handles[1] = head  # somebody has it open
            await write(head, 0, blocks(*range(BLOCKS)))
            waited = []

            async def overwrite() -> None:
                while not waited:
                    if head.room_awaits is not None:
                        waited.append(head.room_awaits)
                    await write(head, 0, blocks(*range(BLOCKS)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(overwrite)
                while not waited:
                    await schedule.tick()
            assert waited[0].is_set()
            assert head.room_awaits is None

    run(main)
