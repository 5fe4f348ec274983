"""Flattening: the parent is needed no more, nothing reads differently, and writers meanwhile win."""

import pytest
import trio

from metadata.errors import Busy, NoSpace
from metadata.ids import VdiskId
from replication import head_read, head_write
from replication.cloning import copy_range
from replication.snapshots import Snapshots
from tests.replication.faults import FaultyRig
from tests.replication.rig import B, Rig, block, blocks, content, create, opened, run, sound, write
from tests.replication.snapshotting import MIB, clone, delete, flatten, snap, view_content


def test_a_flat_clone_is_what_it_was_and_its_parent_goes(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            parent = await create(vdisks, 20, 600 * MIB + 9)
            await write(parent, 0, blocks(*range(300)))
            await write(parent, 500 * MIB, blocks(1, 2))
            await write(parent, 600 * MIB, b"the last")
            await clone(vdisks, 20, None, 21)
            child = await clone(vdisks, 21, None, 22)
            await write(child, B, block(77))
            await head_write.punch(child, 250 * B, 20 * B)
            mtime_ns = child.mtime_ns
            places = (0, MIB, 500 * MIB, 600 * MIB)
            before = [await head_read.read(child, offset, MIB) for offset in places]
            told: list[object] = []
            await Snapshots(vdisks).flatten(VdiskId(22), told.append)
            assert (child.own_blocks, child.mtime_ns) == (300 - 20 + 3, mtime_ns)
            assert told[-1] == {"done": 601, "total": 601, "copied_bytes": (299 - 20 + 3) * B}
            assert [await head_read.read(child, offset, MIB) for offset in places] == before
            await delete(vdisks, 20)
            await delete(vdisks, 21)
            assert vdisks.workspace.pool.vdisks() == [22]
            await sound(vdisks, 22)
        rig.lose_index()
        async with rig.node() as vdisks:
            child = await opened(vdisks, 22)
            assert [await head_read.read(child, offset, MIB) for offset in places] == before
            assert await head_read.seek(child, MIB, data=True) == MIB + 14 * B
            await sound(vdisks, 22)
            await flatten(vdisks, 22)  # nothing to do

    run(main)


def test_writers_meanwhile_win(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            parent = await create(vdisks, 20, 4 * MIB)
            await write(parent, 0, blocks(*range(1024)))
            child = await clone(vdisks, 20, None, 21)
            wanted = bytearray(await content(child))
            finished = False

            async def keep_writing() -> None:
                number = 5000
                while not finished:
                    number += 1
                    at = number * 7919 % 1024
                    await write(child, at * B, block(number))
                    wanted[at * B : (at + 1) * B] = block(number)
                    at = number * 104729 % 1024
                    await head_write.punch(child, at * B, B)
                    wanted[at * B : (at + 1) * B] = bytes(B)
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_writing)
                await flatten(vdisks, 21)
                finished = True
            assert await content(child) == wanted
            assert not child.ancestry.generations
            await delete(vdisks, 20)
            assert vdisks.workspace.pool.vdisks() == [21]
            await sound(vdisks, 21)
        rig.lose_state()
        async with rig.node() as vdisks:
            assert await content(await opened(vdisks, 21)) == wanted
            await sound(vdisks, 21)

    run(main)


def test_older_snapshots_keep_the_parent_until_they_go(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            parent = await create(vdisks, 20, 2 * MIB)
            await write(parent, 0, blocks(*range(300)))
            whole = await content(parent)
            await clone(vdisks, 20, None, 21)
            await snap(vdisks, 21, "never written", 100)
            await clone(vdisks, 21, "never written", 22)
            await flatten(vdisks, 21)
            await snap(vdisks, 21, "flat", 101)
            await clone(vdisks, 21, "flat", 23)
            await delete(vdisks, 20)
            assert vdisks.workspace.pool.vdisks() == [20, 21]
            await Snapshots(vdisks).remove(21, "never written")
            assert vdisks.workspace.pool.vdisks() == [20, 21]
        async with rig.node() as vdisks:
            for vdisk in (21, 22, 23):
                assert await content(await opened(vdisks, vdisk)) == whole
            assert await view_content(vdisks, 101) == whole
            assert len(vdisks.heads[23].ancestry.generations) == 1
            await delete(vdisks, 22)
            assert vdisks.workspace.pool.vdisks() == [21]
            for vdisk in (21, 23):
                vdisks.heads[vdisk].rows.clear()
                assert await content(vdisks.heads[vdisk]) == whole
            await sound(vdisks, 21, 23)

    run(main)


def test_broken_off_it_goes_on_where_it_was(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            parent = await create(vdisks, 20, 6 * MIB)
            for at in range(6):
                await write(parent, at * MIB, blocks(*range(256 * at, 256 * at + 256)))
            whole = await content(parent)
            child = await clone(vdisks, 20, None, 21)
            faulty.faults.blocks_free = 600
            with pytest.raises(NoSpace):
                await flatten(vdisks, 21)
            assert 0 < child.own_blocks < 1536
            assert await content(child) == whole
            await vdisks.flush(VdiskId(21))
        faulty.faults.disarm()
        async with faulty.node() as vdisks:
            done = (
                vdisks.heads[21].own_blocks if 21 in vdisks.heads else (await opened(vdisks, 21)).own_blocks
            )
            told: list[dict[str, int]] = []
            await Snapshots(vdisks).flatten(VdiskId(21), lambda state: told.append(dict(state)))  # type: ignore[arg-type]
            assert told[-1]["copied_bytes"] == (1536 - done) * B
            await delete(vdisks, 20)
            assert vdisks.workspace.pool.vdisks() == [21]
            assert await content(await opened(vdisks, 21)) == whole
            await sound(vdisks, 21)

    run(main)


def test_two_at_once_and_copies_into_it_meanwhile_are_refused_or_made_by_bytes(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            parent = await create(vdisks, 20, MIB)
            await write(parent, 0, blocks(*range(256)))
            child = await create(vdisks, 21)
            await copy_range(vdisks, parent, child, offset=0, to=0, length=MIB)
            await snap(vdisks, 21, "empty rows", 100)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flatten, vdisks, 21)
                while not vdisks.flattening:
                    await trio.lowlevel.checkpoint()
                with pytest.raises(Busy):
                    await flatten(vdisks, 21)
                await copy_range(vdisks, parent, child, offset=0, to=0, length=10 * B)
                assert child.own_blocks >= 10
            assert await content(child) == await content(parent)
            await head_write.truncate(child, 0)
            await copy_range(vdisks, parent, child, offset=0, to=0, length=MIB)
            assert child.own_blocks == 256
            await sound(vdisks, 20, 21)

    run(main)


def test_what_was_a_clone_once_never_shows_another_parent_s_blocks(rig: Rig) -> None:
    """Its rows may still say PARENT and mean holes."""

    async def main() -> None:
        async with rig.node() as vdisks:
            parent, other = await create(vdisks, 20, MIB), await create(vdisks, 21, MIB)
            await write(parent, 0, blocks(*range(10)))
            await write(other, 0, blocks(*range(300, 556)))
            child = await create(vdisks, 22)
            await copy_range(vdisks, parent, child, offset=0, to=0, length=MIB)
            await head_write.punch(child, 0, 10 * B)
            await flatten(vdisks, 22)
            assert (child.own_blocks, vdisks.family.children(20)) == (0, {})
            await copy_range(vdisks, other, child, offset=0, to=0, length=5 * B)
            assert await content(child) == blocks(*range(300, 305)) + bytes(MIB - 5 * B)
            await sound(vdisks, 20, 21, 22)

    run(main)
