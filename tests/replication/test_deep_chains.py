"""A thousand generations of clones, and a thousand snapshots: one pass, no recursion, deleted in any order."""

import random

import pytest

from metadata.ids import VdiskId
from replication.snapshots import Snapshots
from tests.replication.rig import (
    B,
    Rig,
    block,
    blocks,
    close_and_rest,
    content,
    create,
    opened,
    run,
    sound,
    write,
)
from tests.replication.snapshotting import MIB, clone, delete, rollback, snap, view_content

GENERATIONS = 1000
FIRST = 20


async def family_of_clones(rig: Rig) -> bytes:
    """Vdisks FIRST ... FIRST + GENERATIONS, each a clone of the one before; the last one's content."""
    async with rig.node() as vdisks:
        head = await create(vdisks, FIRST, 2 * MIB)
        await write(head, 0, blocks(*range(256)))
        for number in range(1, GENERATIONS + 1):
            child = await clone(vdisks, FIRST + number - 1, None, FIRST + number)
            if number % 10 == 0:
                await write(child, number // 10 % 512 * B, block(1000 + number))
            await close_and_rest(vdisks, FIRST + number - 1)
        return await content(child)


def test_the_last_of_a_thousand_generations_reads_and_goes_with_all_of_them(rig: Rig) -> None:
    async def main() -> None:
        wanted = await family_of_clones(rig)
        async with rig.node() as vdisks:
            last = await opened(vdisks, FIRST + GENERATIONS)
            assert len(last.ancestry.generations) == GENERATIONS
            assert await content(last) == wanted
            order = list(range(FIRST, FIRST + GENERATIONS))
            random.Random(1).shuffle(order)
            for vdisk in order:
                await vdisks.forget(VdiskId(vdisk))
            assert len(list(vdisks.family.nameless())) == GENERATIONS
            last.rows.clear()
            assert await content(last) == wanted
        rig.lose_index()
        async with rig.node() as vdisks:
            last = await opened(vdisks, FIRST + GENERATIONS)
            assert await content(last) == wanted
            await sound(vdisks, FIRST + GENERATIONS)
            await delete(vdisks, FIRST + GENERATIONS)
            assert vdisks.workspace.pool.vdisks() == []
            assert (await vdisks.workspace.catalog.read(b""))[0] == []

    run(main)


def test_one_of_many_generations_becomes_flat_and_lets_the_others_go(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 2 * MIB)
            await write(head, 0, blocks(*range(256)))
            for number in range(21, 60):
                child = await clone(vdisks, number - 1, None, number)
                await write(child, number * B, block(1000 + number))
            wanted = await content(child)
            for number in range(20, 59):
                await delete(vdisks, number)
            await Snapshots(vdisks).flatten(VdiskId(59), lambda _: None)
            assert vdisks.workspace.pool.vdisks() == [59]
            assert await content(child) == wanted
            await sound(vdisks, 59)

    run(main)


@pytest.mark.parametrize("count", [300])
def test_many_snapshots_and_rollbacks_of_one_vdisk_keep_what_they_were(rig: Rig, count: int) -> None:
    async def main() -> None:
        chance = random.Random(2)
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            states: dict[str, bytes] = {}
            for number in range(count):
                await write(head, number % 256 * B, block(number))
                if number % 10 == 9:
                    name = chance.choice(sorted(states))
                    states[f"r{number}"] = await content(head)
                    await rollback(vdisks, 20, name, (f"r{number}", 5000 + number))
                    head = await opened(vdisks, 20)
                    assert await content(head) == states[name]
                await snap(vdisks, 20, f"s{number}", 1000 + number)
                states[f"s{number}"] = await content(head)
            now = await content(head)
        rig.lose_index()
        async with rig.node() as vdisks:
            assert await content(await opened(vdisks, 20)) == now
            for snapshot in Snapshots(vdisks).list(20):
                assert await view_content(vdisks, snapshot.id) == states[snapshot.name]
            await sound(vdisks, 20)
            names = sorted(states)
            chance.shuffle(names)
            for name in names:
                await Snapshots(vdisks).remove(20, name)
            assert vdisks.family.read_versions(20) == ()
            vdisks.heads[20].rows.clear()
            assert await content(vdisks.heads[20]) == now

    run(main)
