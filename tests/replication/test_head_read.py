"""The slow way to read: threads, evictions and seeks; and corruption that costs one block."""

import pathlib

import pytest
import trio

from metadata.errors import Corrupt, Unavailable
from replication import head_write
from replication.head_read import read, seek
from tests.replication.faults import FaultyRig
from tests.replication.rig import (
    B,
    Rig,
    block,
    blocks,
    content,
    create,
    open_descriptors,
    opened,
    run,
    write,
)

MIB = 1 << 20


def test_many_reads_at_once_of_a_cold_vdisk_get_their_bytes_and_lose_no_descriptor(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 8 * MIB)
            for number in range(8):
                await write(head, number * MIB, blocks(*range(number * 256, number * 256 + 256)))
        async with rig.node() as vdisks:
            head = await opened(vdisks, 20)
            before = open_descriptors()

            async def reader(number: int) -> None:
                assert await read(head, number * 33 * B, 5 * B) == blocks(
                    *range(number * 33, number * 33 + 5)
                )

            async with trio.open_nursery() as nursery:
                for number in range(60):
                    nursery.start_soon(reader, number)
            assert open_descriptors() <= before + 1

    run(main)


def test_reads_and_writes_go_on_when_every_use_closes_another_s_file(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replication.pool.OPEN_FILES_MAX", 2)
    monkeypatch.setattr("replication.log.GROUP_BLOCKS", 300)

    async def main() -> None:
        async with rig.node() as vdisks:
            heads = [await create(vdisks, 20 + n, 2 * MIB) for n in range(6)]
            before = open_descriptors()
            for turn in range(4):
                for number, head in enumerate(heads):
                    await write(head, turn * 100 * B, blocks(*range(number, number + 100)))
                    await write(head, turn * 100 * B + 5, b"part")
            for turn in range(4):
                for number, head in enumerate(heads):
                    wanted = bytearray(blocks(*range(number, number + 100)))
                    wanted[5:9] = b"part"
                    assert await read(head, turn * 100 * B, 100 * B) == wanted
            for number in range(6):
                await vdisks.flush(20 + number)
            assert open_descriptors() <= before + 3

    run(main)


def test_a_row_is_read_again_when_a_commit_ended_meanwhile(faulty: FaultyRig) -> None:
    """A read that fetched a row from the index before a commit wrote a newer one must not keep it."""
    faulty.rows_max = 2

    async def main() -> None:
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, 30 * MIB)
            for value in range(30):
                await write(head, value % 3 * MIB, block(value))
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(vdisks.flush, 20)
                    for other in range(8):
                        nursery.start_soon(read, head, (other * 3 + value) % 30 * MIB, B)
                assert await read(head, value % 3 * MIB, B) == block(value)
            assert [(await read(head, n * MIB, B)) for n in range(3)] == [block(27), block(28), block(29)]

    run(main)


def test_a_damaged_block_is_an_error_there_and_everything_else_is_read(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(*range(100)))
            await vdisks.flush(20)
            (group,) = rig.group_files(20)
            data = bytearray(group.read_bytes())
            data[data.index(block(50)) + 4000] ^= 128
            pathlib.Path(group).write_bytes(data)
            for offset, size in ((50 * B, B), (40 * B, 20 * B), (50 * B + 3, 1)):
                with pytest.raises(Corrupt, match="epoch=1 group=0 position=50 "):
                    await read(head, offset, size)
            assert await read(head, 0, 50 * B) == blocks(*range(50))
            assert await read(head, 51 * B, 49 * B) == blocks(*range(51, 100))
            with pytest.raises(Corrupt):
                await head_write.write(head, 50 * B + 10, b"part")
            await write(head, 50 * B, block(1000))
            assert await read(head, 49 * B, 3 * B) == blocks(49, 1000, 51)

    run(main)


@pytest.mark.parametrize("what", ["read", "open"])
def test_a_pool_that_does_not_answer_is_an_error_and_heals(faulty: FaultyRig, what: str) -> None:
    async def main() -> None:
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(1, 2, 3))
        async with faulty.node() as vdisks:
            head = await opened(vdisks, 20)
            faulty.faults.failing[what] = 2
            for _ in range(2):
                with pytest.raises(Unavailable):
                    await read(head, 0, B)
            assert await read(head, 0, 3 * B) == blocks(1, 2, 3)

    run(main)


class TestSeek:
    def test_data_and_holes_are_found_to_the_block(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 3 * MIB + 100)
                await write(head, 5 * B, blocks(1, 2))
                await write(head, MIB - B, blocks(3, 4))
                await write(head, 3 * MIB + 50, b"end")
                for committed in (False, True):
                    if committed:
                        await vdisks.flush(20)
                        vdisks.workspace.row_cache.shrink(0)
                    table = [
                        (0, 5 * B, 0),
                        (5 * B - 1, 5 * B, 5 * B - 1),
                        (5 * B + 7, 5 * B + 7, 7 * B),
                        (7 * B, MIB - B, 7 * B),
                        (MIB, MIB, MIB + B),
                        (2 * MIB, 3 * MIB, 2 * MIB),
                        (3 * MIB + 99, 3 * MIB + 99, 3 * MIB + 100),
                        (3 * MIB + 100, None, None),
                        (1 << 62, None, None),
                    ]
                    for offset, data, hole in table:
                        assert await seek(head, offset, data=True) == data
                        assert await seek(head, offset, data=False) == hole

        run(main)

    def test_the_largest_empty_vdisk_is_searched_at_once(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, 1 << 60)
                assert await seek(head, 0, data=True) is None
                await write(head, 1 << 59, block(1))
                assert await seek(head, 0, data=True) == 1 << 59
                await vdisks.flush(20)
                vdisks.workspace.row_cache.shrink(0)
                assert await seek(head, 4096, data=True) == 1 << 59
                assert await seek(head, (1 << 59) + B, data=True) is None
                assert await seek(head, 0, data=False) == 0

        run(main)

    def test_a_vdisk_of_holes_only_has_no_data(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 2 * MIB)
                await write(head, 0, blocks(*range(300)))
                await vdisks.flush(20)
                await head_write.punch(head, 0, 2 * MIB)
                assert await seek(head, 0, data=True) is None
                await vdisks.flush(20)
                assert await seek(head, 0, data=True) is None
                assert await content(head) == bytes(2 * MIB)

        run(main)
