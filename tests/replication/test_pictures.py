"""A vdisk's block map as a picture: each cell against its blocks, counted one by one."""

import pytest

from metadata.block_pictures import SHARE_MAX, cell_of
from metadata.ids import VdiskId
from metadata.units import VBLOCK_BYTES
from replication.commit import flush
from replication.pictures import Picture, picture
from tests.replication.rig import B, Rig, blocks, create, run, write
from tests.replication.snapshotting import clone, snap

V = VdiskId(20)


def shares(found: Picture) -> list[tuple[int, int]]:
    """Own and parent's of each cell."""
    told = []
    for at in range(0, len(found.cells), 3):
        times, share, _ = found.cells[at : at + 3]
        told += [(share >> 4, share & 15)] * times
    return told


def scatters(found: Picture) -> list[int]:
    return [found.cells[at + 2] for at in range(0, len(found.cells), 3) for _ in range(found.cells[at])]


@pytest.mark.parametrize("cells_max", [1, 3, 8, 1000])
def test_each_cell_tells_how_much_of_it_is_written(rig: Rig, cells_max: int) -> None:
    written = {0, 1, 2, 30, 255, 256, 300, 301, 302, 700, 701}
    count = 3 * 256 + 17

    async def scenario() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, V, count * B - 100)
            for number in sorted(written):
                await write(head, number * B, blocks(number))
            await flush(head)
            found = await picture(vdisks, V, cells_max=cells_max)
            per_cell = found.cell_bytes // B
            assert per_cell & (per_cell - 1) == 0
            assert len(shares(found)) == -(-count // per_cell) <= cells_max
            for cell, told in enumerate(shares(found)):
                inside = range(cell * per_cell, min(count, (cell + 1) * per_cell))
                assert told == cell_of(len(written & set(inside)), 0, len(inside))[:2]

    run(scenario)


def test_what_shows_through_is_the_parent_s_as_far_as_it_goes(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, V, 2 * VBLOCK_BYTES + 10 * B)
            for vblock in range(2):
                await write(head, vblock * VBLOCK_BYTES, blocks(1) * 256)
            await flush(head)
            await snap(vdisks, V, "one", 1)
            child = await clone(vdisks, V, "one", 21)
            await write(child, 0, blocks(2) * 64)
            await flush(child)
            found = await picture(vdisks, VdiskId(21), cells_max=9)
            assert found.cell_bytes == 64 * B
            full = SHARE_MAX
            assert shares(found) == [(full, 0), *[(0, full)] * 8]
            assert scatters(found)[0] < 255

    run(scenario)


def test_blocks_that_do_not_follow_each_other_scatter(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, V, VBLOCK_BYTES)
            for number in reversed(range(256)):
                await write(head, number * B, blocks(number))
            await flush(head)
            backwards = scatters(await picture(vdisks, V, cells_max=1))
            await write(head, 0, blocks(7) * 256)
            await flush(head)
            assert backwards[0] > 250
            assert scatters(await picture(vdisks, V, cells_max=1))[0] < 10

    run(scenario)


def test_an_empty_vdisk_has_no_cells(rig: Rig) -> None:
    async def scenario() -> None:
        async with rig.node() as vdisks:
            await create(vdisks, V)
            assert (await picture(vdisks, V, cells_max=5)).cells == b""

    run(scenario)
