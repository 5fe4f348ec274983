"""Who looks into an index does not hold up, and is not held up by, its being built anew."""

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from metadata.ids import VdiskId
from replication import head_read
from replication.commit import flush
from replication.flattening import flatten
from replication.head_read import read
from replication.mapping import map_range
from replication.reader import Reader
from replication.scrub import scrub
from replication.vdisks import Vdisks
from replication.warming import places_of
from tests.replication.rig import B, Rig, block, create, run, write
from tests.replication.snapshotting import clone

PARENT, CHILD = VdiskId(20), VdiskId(21)
DEADLINE_S = 20


async def reading(vdisks: Vdisks) -> None:
    await read(vdisks.heads[CHILD], 0, 2 * B)


async def mapping(vdisks: Vdisks) -> None:
    await map_range(vdisks, CHILD, 0, 2 * B)


async def scrubbing(vdisks: Vdisks) -> None:
    assert await scrub(vdisks, [CHILD], lambda _: None) == []


async def flattening(vdisks: Vdisks) -> None:
    await flatten(vdisks, CHILD, lambda _: None)


async def finding_places(vdisks: Vdisks) -> None:
    await places_of(vdisks.heads[CHILD])


@pytest.mark.parametrize("work", [reading, mapping, scrubbing, flattening, finding_places])
def test_rows_are_looked_up_without_holding_what_a_rebuild_waits_for(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, work: Callable[[Vdisks], Awaitable[None]]
) -> None:
    look_up, is_begun = head_read._look_up, False

    async def scenario() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, PARENT)
            await write(head, 0, block(1))
            child = await clone(vdisks, PARENT, None, CHILD)
            await write(child, B, block(2))
            await flush(child)
            for one in (head, child):
                one.rows.clear()
            moves = vdisks.workspace.moves

            async def rebuild() -> None:
                async with moves.rebuilding(CHILD):
                    await trio.lowlevel.checkpoint()

            with trio.fail_after(DEADLINE_S):
                async with trio.open_nursery() as nursery:

                    async def slow(head: Reader, lacking: list[int], unresolved: list[int]) -> None:
                        nonlocal is_begun
                        if not is_begun:
                            is_begun = True
                            nursery.start_soon(rebuild)
                            await trio.testing.wait_all_tasks_blocked()
                        else:  # what was found the first time is of the index of before
                            await look_up(head, lacking, unresolved)

                    monkeypatch.setattr(head_read, "_look_up", slow)
                    await work(vdisks)
            assert is_begun
            assert await read(child, 0, 2 * B) == block(1) + block(2)

    run(scenario)
