"""The slow way to change a head: writes that meet each other, punches, sizes, and limits that make it wait."""

import random
from contextlib import suppress

import pytest
import trio
import trio.testing

from metadata.errors import InvalidRequest, NoSpace, Unavailable
from metadata.units import VDISK_BYTES_MAX
from replication import head_write
from replication.head import Head
from replication.vdisks import Vdisks
from tests.replication.faults import FaultyRig
from tests.replication.rig import (
    B,
    Rig,
    block,
    blocks,
    close_and_rest,
    content,
    create,
    expect_errors,
    opened,
    read,
    run,
    sound,
    write,
)
from tests.replication.snapshotting import MIB, snap, view_content


def test_writes_of_parts_of_one_block_at_the_same_time_all_stay(rig: Rig) -> None:
    """Each reads the block, patches and appends; one that was overtaken must begin anew."""

    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(*range(4)))
            await close_and_rest(vdisks, 20)
            head = await opened(vdisks, 20)  # cold: every old block comes from a thread
            model = bytearray(blocks(*range(4)))
            async with trio.open_nursery() as nursery:
                for number in range(160):
                    offset = number * 100
                    data = number.to_bytes(2, "big") * 50
                    model[offset : offset + 100] = data
                    nursery.start_soon(head_write.write, head, offset, data)
            assert await read(head, 0, 4 * B) == model[: 4 * B]
            await sound(vdisks, 20)

    run(main)


def test_a_write_that_is_cancelled_has_changed_nothing_or_everything(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(1, 2))
            await close_and_rest(vdisks, 20)
            head = await opened(vdisks, 20)
            async with trio.open_nursery() as nursery, faulty.faults.held("read"):
                nursery.start_soon(head_write.write, head, 100, b"x" * B)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            old = blocks(1, 2).ljust(MIB, b"\0")
            assert await content(head) in (old, old[:100] + b"x" * B + old[100 + B :])
            await sound(vdisks, 20)

    run(main)


class TestPunch:
    @pytest.mark.parametrize("size", [10 * B, 9 * B + 100, 8 * B + 1])
    def test_every_offset_and_length_reads_as_zeros_and_gives_whole_blocks_back(
        self, rig: Rig, size: int
    ) -> None:
        edges = [
            e
            for e in (0, 1, 100, B - 1, B, B + 1, 2 * B, 2 * B + 50, 8 * B, size - 1, size, size + B)
            if e >= 0
        ]

        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20)
                whole = blocks(*range(10))[:size]
                for start in edges:
                    for end in edges:
                        await write(head, 0, whole)
                        await head_write.punch(head, start, end - start)
                        wanted = bytearray(whole)
                        if start < end:
                            part = len(wanted[start:end])
                            wanted[start : start + part] = bytes(part)
                        assert await content(head) == wanted, (start, end)
                        zeros = sum(not any(wanted[i : i + B]) for i in range(0, size, B))
                        assert head.own_blocks == -(-size // B) - zeros, (start, end)
                await sound(vdisks, 20)

        run(main)

    def test_a_punch_of_the_largest_vdisk_touches_what_is_mapped_only(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, VDISK_BYTES_MAX)
                places = (0, 5 * MIB, 1 << 40, (1 << 59) + 3 * B, VDISK_BYTES_MAX - B)
                for number, offset in enumerate(places):
                    await write(head, offset, block(number))
                    if number == 2:
                        await vdisks.flush(20)
                        vdisks.workspace.row_cache.shrink(0)
                await head_write.punch(head, 5 * MIB, VDISK_BYTES_MAX)
                assert [await read(head, offset, B) for offset in places] == [block(0)] + [bytes(B)] * 4
                assert head.own_blocks == 1
                await sound(vdisks, 20)

        run(main)

    def test_a_punch_behind_the_end_is_nothing(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 5000)
                changes = head.change_no
                await head_write.punch(head, 5000, B)
                await head_write.punch(head, 1 << 59, 1 << 59)
                assert (head.size, head.change_no) == (5000, changes)

        run(main)

    def test_a_punch_beside_a_commit_misses_no_row_that_goes_to_the_index(self, faulty: FaultyRig) -> None:
        faulty.rows_max = 3

        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, 12 * MIB)
                for number in range(12):
                    await write(head, number * MIB, block(number))
                async with trio.open_nursery() as nursery, faulty.faults.held("apply") as hold:
                    nursery.start_soon(vdisks.flush, 20)
                    await hold.wait_reached()
                    nursery.start_soon(head_write.punch, head, 2 * MIB, 10 * MIB)
                    await trio.testing.wait_all_tasks_blocked()
                assert await content(head) == (block(0).ljust(MIB, b"\0") + block(1)).ljust(12 * MIB, b"\0")
                assert head.own_blocks == 2
                await sound(vdisks, 20)

        run(main)


class TestTruncate:
    def test_what_comes_back_after_a_smaller_size_is_zeros(self, rig: Rig) -> None:
        chance = random.Random(4)

        async def main() -> None:
            async with rig.node() as vdisks:
                head, model = await create(vdisks, 20), bytearray()
                for _ in range(150):
                    if chance.random() < 0.5:
                        offset = chance.randrange(4 * MIB)
                        data = chance.randbytes(chance.randrange(1, 5 * B))
                        await write(head, offset, data)
                        model += bytes(max(0, offset + len(data) - len(model)))
                        model[offset : offset + len(data)] = data
                    else:
                        size = chance.choice((0, 1, B, MIB, MIB + B, 3 * MIB - 1, chance.randrange(5 * MIB)))
                        await head_write.truncate(head, size)
                        del model[size:]
                        model += bytes(size - len(model))
                    if chance.random() < 0.1:
                        await vdisks.flush(20)
                    if chance.random() < 0.1:
                        vdisks.workspace.row_cache.shrink(0)
                    assert head.size == len(model)
                assert await content(head) == model
                await sound(vdisks, 20)

        run(main)

    @pytest.mark.parametrize("size", [1, B - 1, B + 5, 3 * B - 1])
    def test_the_rest_of_the_last_block_does_not_come_back(self, rig: Rig, size: int) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20)
                await write(head, 0, blocks(1, 2, 3, 4))
                await head_write.truncate(head, size)
                await head_write.truncate(head, 4 * B)
                assert await content(head) == blocks(1, 2, 3, 4)[:size].ljust(4 * B, b"\0")

        run(main)

    def test_what_was_cut_off_while_a_snapshot_keeps_it_does_not_come_back(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 3 * MIB)
                for vblock in range(3):
                    await write(head, vblock * MIB, blocks(1, 2, 3))
                before = await content(head)
                await snap(vdisks, 20, "before", 100)
                await head_write.truncate(head, B)
                await vdisks.flush(20)
                await head_write.truncate(head, 3 * MIB)
                await vdisks.flush(20)
                vdisks.workspace.row_cache.shrink(0)
                assert await content(head) == block(1).ljust(3 * MIB, b"\0")
                assert await view_content(vdisks, 100) == before
                await sound(vdisks, 20)

        run(main)

    @pytest.mark.parametrize("size", [VDISK_BYTES_MAX + 1, 1 << 62, (1 << 63) - 1])
    def test_no_vdisk_is_larger_than_it_can_be(self, rig: Rig, size: int) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                with pytest.raises(InvalidRequest):
                    await head_write.truncate(head, size)
                assert head.size == MIB

        run(main)

    @pytest.mark.parametrize("what", ["sync", "apply"])
    @pytest.mark.parametrize("fails", [False, True])
    def test_a_truncation_that_meets_a_commit_counts_right_whether_or_not_the_commit_works(
        self, faulty: FaultyRig, caplog: pytest.LogCaptureFixture, what: str, fails: bool
    ) -> None:
        faulty.rows_max = 3

        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, 8 * MIB)
                for number in range(8):
                    await write(head, number * MIB, block(number))
                faulty.faults.failing[what] = fails
                async with trio.open_nursery() as nursery, faulty.faults.held(what) as hold:
                    nursery.start_soon(flush_or_fail, vdisks)
                    await hold.wait_reached()
                    nursery.start_soon(head_write.truncate, head, 2 * MIB + 5)
                    await trio.testing.wait_all_tasks_blocked()
                await vdisks.flush(20)
                assert (head.own_blocks, head.size) == (3, 2 * MIB + 5)
                await head_write.truncate(head, 5 * MIB)
                wanted = [block(0), block(1), block(2)[:5].ljust(B, b"\0"), bytes(B), bytes(B)]
                assert [await read(head, number * MIB, B) for number in range(5)] == wanted
                await vdisks.flush(20)
                await sound(vdisks, 20)

        run(main)
        expect_errors(caplog, "the index lags behind")

    def test_resizes_that_meet_each_other_leave_one_of_the_sizes(self, rig: Rig) -> None:
        sizes = [0, 100, B, MIB, 3 * MIB + 7, 5 * MIB]

        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 4 * MIB)
                for number in range(4):
                    await write(head, number * MIB, block(number))
                async with trio.open_nursery() as nursery:
                    for size in sizes:
                        nursery.start_soon(head_write.truncate, head, size)
                        nursery.start_soon(vdisks.flush, 20)
                assert head.size in sizes
                await sound(vdisks, 20)

        run(main)


async def flush_or_fail(vdisks: Vdisks) -> None:
    """A flush that the test lets fail."""
    with suppress(Unavailable):
        await vdisks.flush(20)


class TestLimits:
    def test_only_so_many_rows_are_dirty_at_once(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        for module in ("commit", "head", "head_write", "housekeeping"):
            monkeypatch.setattr(f"replication.{module}.DIRTY_ROWS_MAX", 10)

        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 100 * MIB)
                for number in range(100):
                    await write(head, number * MIB, block(number))
                    assert len(head.dirty) <= 10
                    if number % 9 == 0:
                        await head_write.punch(head, number * MIB, B)
                        await write(head, number * MIB + 7, b"seven")
                        assert len(head.dirty) <= 10
                assert head.log.version >= 9
                await sound(vdisks, 20)

        run(main)

    def test_a_tiny_journal_makes_writers_commit_and_loses_nothing(self, rig: Rig) -> None:
        rig.journal_capacity = 1100
        chance = random.Random(6)

        async def main() -> None:
            models = {20: bytearray(3 * MIB), 21: bytearray(3 * MIB)}
            async with rig.node(kill=True) as vdisks:
                heads = {vdisk: await create(vdisks, vdisk, 3 * MIB) for vdisk in models}
                journal = vdisks.workspace.journal
                for number in range(3000):
                    vdisk, offset = chance.choice((20, 20, 20, 21)), chance.randrange(768) * B
                    await write(heads[vdisk], offset, block(number))
                    models[vdisk][offset : offset + B] = block(number)
                    assert 0 <= journal.room() <= 1100
                assert min(head.log.version for head in heads.values()) >= 1
            async with rig.node() as vdisks:
                for vdisk, model in models.items():
                    assert await content(await opened(vdisks, vdisk)) == model
                await sound(vdisks, 20, 21)

        run(main)

    def test_an_idle_vdisk_s_old_entries_do_not_hold_up_another_s_writes(self, rig: Rig) -> None:
        rig.journal_capacity = 1100

        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                idle, busy = await create(vdisks, 20, MIB), await create(vdisks, 21, MIB)
                await write(idle, 0, block(7))
                for number in range(2000):
                    await write(busy, number % 256 * B, block(number))
                assert not idle.is_dirty
            async with rig.node() as vdisks:
                assert await read(await opened(vdisks, 20), 0, B) == block(7)
                await sound(vdisks, 20, 21)

        run(main)

    def test_a_full_pool_is_told_to_the_writer_and_heals(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, 16 * MIB)
                faulty.faults.blocks_free = 500
                with pytest.raises(NoSpace):
                    await self.fill(head)
                assert head.own_blocks > 100
                for way in (self.grow, self.write_part, self.truncate_inside):
                    before = head.size, head.own_blocks
                    try:
                        await way(head)
                    except NoSpace:
                        assert (head.size, head.own_blocks) == before
                await vdisks.flush(20)
                assert await read(head, 0, 100 * B) == blocks(*range(100))
                faulty.faults.disarm()
                await write(head, 15 * MIB, block(1))
                await vdisks.flush(20)
                await sound(vdisks, 20)

        run(main)

    async def fill(self, head: Head) -> None:
        for number in range(4096):
            await write(head, number * B, block(number))

    async def grow(self, head: Head) -> None:
        await head_write.truncate(head, head.size + 5)

    async def write_part(self, head: Head) -> None:
        await write(head, 100, b"part")

    async def truncate_inside(self, head: Head) -> None:
        await head_write.truncate(head, head.size - 3)
