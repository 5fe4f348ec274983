"""The hot path: what memory can answer at once, what it leaves to the slow way, and what a refusal leaves behind."""

import errno
import random

import pytest

from metadata.errors import InvalidRequest, Unavailable
from metadata.ids import HOLE
from metadata.units import VDISK_BYTES_MAX
from replication import head_write
from replication.head import SYNC_STREAK, Head, SyncPattern
from replication.reader import REQUEST_BYTES_MAX
from tests.replication.faults import FaultyRig
from tests.replication.rig import (
    B,
    Rig,
    block,
    blocks,
    close_and_rest,
    content,
    create,
    opened,
    read,
    run,
    sound,
    write,
)

MIB = 1 << 20


async def warm(head: Head) -> None:
    """Make room, so that the next writes can be taken at once."""
    await write(head, 0, block(0))


class TestReading:
    def test_what_was_just_written_is_read_at_once(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 3 * MIB)
                await write(head, MIB - 5 * B, blocks(*range(10)))
                for offset, size in (
                    (MIB - 5 * B, B),
                    (MIB - B, 2 * B),
                    (MIB - 5 * B + 100, 9 * B),
                    (MIB + 7, 1),
                ):
                    start = offset - (MIB - 5 * B)
                    data = head.read_nowait(offset, size)
                    assert data is not None
                    assert bytes(data) == blocks(*range(10))[start : start + size]
                assert bytes(head.read_nowait(2 * MIB, B) or b"") == bytes(B)
                whole = head.read_nowait(MIB - 512, REQUEST_BYTES_MAX)
                assert whole is not None
                assert len(whole) == REQUEST_BYTES_MAX

        run(main)

    def test_nothing_is_read_behind_the_end(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20)
                assert (head.read_nowait(0, B), await read(head, 0, B)) == (b"", b"")
                await write(head, 0, block(1) + b"end")
                assert await read(head, B, B) == b"end"
                assert await read(head, B + 2, 100) == b"d"
                assert await read(head, B + 3, 100) == b""
                assert await read(head, 1 << 50, 100) == b""

        run(main)

    def test_what_only_the_disk_knows_is_left_to_the_slow_way(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                assert head.read_nowait(0, B) is None  # the group's file is not open yet
                assert await read(head, 0, B) == block(1)
                assert head.read_nowait(0, B) is not None

        run(main)


def put_many(head: Head, *numbered: tuple[int, bytes]) -> bool:
    """Blocks by number, handed over together."""
    offsets = [number * B for number, _ in numbered]
    return head.write_many_nowait(offsets, [memoryview(bytearray(data)) for _, data in numbered])


class TestWritingMany:
    def test_they_are_as_if_written_one_by_one(self, rig: Rig, seed: int) -> None:
        chance = random.Random(seed)

        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                together, alone = await create(vdisks, 20), await create(vdisks, 21)
                for head in (together, alone):
                    await warm(head)
                value = 0
                for _ in range(100):
                    lot = []
                    for _ in range(chance.randrange(1, 17)):
                        value += 1
                        lot.append((chance.randrange(600), block(value)))
                    for number, data in lot:
                        await write(alone, number * B, data)
                    if not put_many(together, *lot):
                        for number, data in lot:
                            await write(together, number * B, data)
                    if chance.random() < 0.1:
                        await vdisks.flush(20)
                    assert (together.size, together.own_blocks) == (alone.size, alone.own_blocks)
                assert await content(together) == await content(alone)
                await sound(vdisks, 20, 21)
            async with rig.node() as vdisks:  # what was not flushed comes back from the journal
                first, second = await opened(vdisks, 20), await opened(vdisks, 21)
                assert await content(first) == await content(second)
                await sound(vdisks, 20, 21)

        run(main)

    def test_the_last_one_of_a_block_counts(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20)
                await warm(head)
                assert put_many(head, (3, block(1)), (3, block(2)), (1, block(3)), (3, block(4)))
                assert head.own_blocks == 3
                assert await read(head, 0, 4 * B) == block(0) + block(3) + bytes(B) + block(4)
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == block(0) + block(3) + bytes(B) + block(4)

        run(main)

    def test_what_needs_more_is_left_to_the_other_ways(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await warm(head)
                assert not put_many(head, (1, block(1)), (2, bytes(B)))  # becomes a hole
                assert not put_many(head, (1, block(1)), (VDISK_BYTES_MAX // B, block(2)))
                count = head.log.limit - head.log.tail + 1
                assert not put_many(head, *((number, block(1)) for number in range(count)))
                assert await content(head) == block(0).ljust(MIB, b"\0")
                await sound(vdisks, 20)

        run(main)

    def test_a_pool_that_fails_takes_none_of_them(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await warm(head)
                faulty.faults.failing["write"] = 1
                with pytest.raises(Unavailable):
                    put_many(head, (1, block(1)), (2, block(2)))
                assert await content(head) == block(0).ljust(MIB, b"\0")
                assert put_many(head, (1, block(3)), (2, block(4)))
                await sound(vdisks, 20)
            async with faulty.node() as vdisks:
                found = await content(await opened(vdisks, 20))
                assert found == (block(0) + blocks(3, 4)).ljust(MIB, b"\0")

        run(main)


class TestWriting:
    def test_zeros_become_holes_and_cost_no_blocks(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, blocks(1, 2, 3, 4))
                tail = head.log.tail
                await write(head, B, bytes(B))
                await write(head, 2 * B, bytes(5 * B))
                await write(head, 50 * B, bytes(3 * B))
                assert (head.log.tail, head.own_blocks) == (tail, 1)
                assert await content(head) == block(1).ljust(MIB, b"\0")
                await write(head, 10 * B, bytes(B) + block(5) + bytes(2 * B) + block(6))
                assert (head.log.tail, head.own_blocks) == (tail + 2, 3)
                assert list(head.rows[0][10:15])[::2] == [HOLE, HOLE, head.log.file.base + tail + 1]
                await sound(vdisks, 20)

        run(main)

    def test_zeros_behind_the_end_make_the_vdisk_grow(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20)
                await write(head, 0, block(1))
                for size in (B, 3 * B, 700):
                    await write(head, head.size, bytes(size))
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == block(1) + bytes(4 * B + 700)
                await sound(vdisks, 20)

        run(main)

    def test_a_write_of_part_of_a_block_keeps_the_rest(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 2 * MIB)
                model = bytearray(2 * MIB)
                chance = random.Random(3)
                for _ in range(300):
                    size = chance.choice((1, 512, 1000, B - 1, B + 1, 3 * B + 77))
                    offset = chance.choice(
                        (chance.randrange(2 * MIB - size), MIB - chance.randrange(1, size + 1))
                    )
                    data = chance.randbytes(size)
                    await write(head, offset, data)
                    model[offset : offset + size] = data
                assert await content(head) == model
                await sound(vdisks, 20)

        run(main)

    @pytest.mark.parametrize("count", [1, 3, 100])
    def test_a_write_that_failed_changed_nothing(self, faulty: FaultyRig, count: int) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, 2 * B)
                await write(head, 0, blocks(1, 2))
                before = (head.size, head.own_blocks, head.log.tail, head.change_no, list(head.rows[0]))
                for offset in (0, B, 100 * B):
                    faulty.faults.failing["write"] = 1
                    with pytest.raises(Unavailable):
                        await write(head, offset, blocks(*range(count)))
                    after = (head.size, head.own_blocks, head.log.tail, head.change_no, list(head.rows[0]))
                    assert after == before
                assert await content(head) == blocks(1, 2)
                await sound(vdisks, 20)

        run(main)

    def test_the_largest_vdisk_takes_its_last_block_and_no_further(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, VDISK_BYTES_MAX)
                await warm(head)
                end = VDISK_BYTES_MAX
                for offset, size in (
                    (end, B),
                    (end - B, 2 * B),
                    (end - 1, 2),
                    (end + 5 * B, 3 * B),
                    (1 << 62, 1),
                ):
                    before = head.log.tail, head.own_blocks, head.change_no
                    with pytest.raises(InvalidRequest) as refused:
                        await write(head, offset, block(1) * (size // B) + b"x" * (size % B))
                    assert refused.value.number == errno.EFBIG
                    assert (head.log.tail, head.own_blocks, head.change_no) == before
                await write(head, end - B, block(7))
                assert await read(head, end - B, B) == block(7)
                await head_write.truncate(head, end - 2 * B)
                await head_write.truncate(head, end)
                assert await read(head, end - B, B) == bytes(B)
                await write(head, end - 2 * B, block(8))
                await close_and_rest(vdisks, 20)
                head = await opened(vdisks, 20)
                assert await read(head, end - 2 * B, 2 * B) == block(8) + bytes(B)
                await sound(vdisks, 20)

        run(main)


class TestSmallCaches:
    def test_rows_wanted_together_do_not_push_each_other_out(self, rig: Rig) -> None:
        """A write over a vblock's end needs two rows, and the second may take the first one's place."""
        rig.rows_max, rig.segments_max = 4, 4

        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 64 * MIB)
                for number in range(64):
                    await write(head, number * MIB, block(number))
                await vdisks.flush(20)
                for number in range(63):
                    for other in (0, 10, 11, 12):
                        await read(head, (number + other) % 64 * MIB, B)
                    edge = (number + 1) * MIB
                    match number % 3:
                        case 0:
                            await write(head, edge - B, blocks(100 + number, 200 + number))
                        case 1:
                            await write(head, edge - 7, b"x" * 14)
                        case _:
                            assert await read(head, edge - B, 2 * B) == bytes(B) + block(number + 1)
                assert await read(head, MIB - B, 2 * B) == blocks(100, 200)
                assert (await read(head, 2 * MIB - 7, B))[:14] == b"x" * 14
                await sound(vdisks, 20)

        run(main)


class TestSyncPattern:
    def test_a_guest_that_syncs_behind_each_write_is_recognised_and_forgotten(self) -> None:
        pattern = SyncPattern()
        for _ in range(SYNC_STREAK):
            assert not pattern.wants_commit()
            pattern.note_sync(1)
        assert pattern.wants_commit()
        pattern.note_sync(1)
        assert pattern.wants_commit()
        assert not pattern.wants_commit()  # two writes without a sync between
        assert not pattern.wants_commit()
        for _ in range(SYNC_STREAK):
            pattern.note_sync(1)
        pattern.note_sync(50)
        assert not pattern.wants_commit()
