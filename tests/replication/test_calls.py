"""A forwarded change counts once, though its answer is lost and the vdisk has another owner when it is asked for again."""

import itertools
import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from metadata.errors import NotOwner
from metadata.ids import CUT, VdiskId
from metadata.index import VdiskState
from metadata.records import call_number
from replication import head_write
from replication.calls import is_committed, records_back
from replication.head import Head
from replication.ownership import find_owner
from replication.recovery import LogReader
from replication.remote import Remote, piece_end
from tests.replication.cluster_rig import ClusterRig, NodeRig
from tests.replication.rig import B, Rig, block, blocks, create, handles_of, opened, run, sound, write
from tests.replication.sharing import counts_of, get, put, writer

MIB = 1 << 20
Misfortune = Callable[[ClusterRig], Awaitable[None]]


@pytest.fixture
def cluster(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ClusterRig:
    monkeypatch.setattr("replication.remote.CALL_S", 0.2)
    return ClusterRig(tmp_path)


@asynccontextmanager
async def a_lost_answer(cluster: ClusterRig) -> AsyncIterator[int]:
    """Vdisk 20 of node a: b writes 2 into its first block, does not hear of it, and asks again at the end.

    Inside, 3 has been written there since, and flushed; yields b's handle.
    """
    a, b = await cluster.start("a"), await cluster.start("b")
    await create(a, 20, 4 * B)
    mine, theirs = await writer(a, 20), await writer(b, 20)
    await put(b, theirs, 0, block(1))
    version = a.heads[20].log.version
    cluster.switch.cut |= {("a", "b")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(put, b, theirs, 0, block(2))
        while a.heads[20].log.version == version:
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert await get(a, mine, 0, B) == block(2)
        await put(a, mine, 0, block(3))
        await a.flush_handle(mine)
        yield theirs
        cluster.switch.cut.clear()


async def hand_over_to_the_asker(cluster: ClusterRig) -> None:
    a = cluster.node("a")
    for number in handles_of(a, 20):
        a.close(number)
    while counts_of(a).handed_over == 0:
        await trio.testing.wait_all_tasks_blocked(0.01)


async def hand_over_to_a_third(cluster: ClusterRig) -> None:
    c = await cluster.start("c")
    assert c.company is not None
    await writer(c, 20)  # first: whoever has none gives the vdisk to the asker
    await c.company.transfers.acquire(20, force=True)
    assert (await find_owner(cluster.catalog, 20)).node == "c"


async def die_and_be_taken_over(cluster: ClusterRig) -> None:
    await cluster.kill("a")
    cluster.switch.expire("a")
    c = await cluster.start("c")
    number = await writer(c, 20)
    assert await get(c, number, 0, B) == block(3)
    assert counts_of(c).taken_over + counts_of(cluster.node("b")).taken_over == 1  # whoever was quicker


async def die_and_come_again(cluster: ClusterRig) -> None:
    await cluster.kill("a")
    a = await cluster.start("a")
    await writer(a, 20)


async def be_unloaded(cluster: ClusterRig) -> None:
    a = cluster.node("a")
    head = a.heads[20]
    await a.put_to_rest(head)
    head.calls.clear()  # so many others have come since


@pytest.mark.parametrize(
    "misfortune",
    [hand_over_to_the_asker, hand_over_to_a_third, die_and_be_taken_over, die_and_come_again, be_unloaded],
)
def test_a_write_that_is_repeated_does_not_come_behind_a_later_one(
    cluster: ClusterRig, misfortune: Misfortune
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            async with a_lost_answer(cluster) as theirs:
                await misfortune(cluster)
            b = cluster.node("b")
            assert await get(b, theirs, 0, B) == block(3)
            await put(b, theirs, B, block(4))
            assert await get(b, theirs, 0, 2 * B) == blocks(3, 4)
            await b.flush_handle(theirs)

    run(scenario)


def test_a_write_that_its_dead_owner_never_had_is_done_by_the_next(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20, 4 * B)
            await writer(a, 20)
            theirs = await writer(b, 20)
            cluster.switch.cut |= {("b", "a")}
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, b, theirs, 0, block(2))
                await trio.testing.wait_all_tasks_blocked(0.05)
                await cluster.kill("a")
                cluster.switch.expire("a")
                cluster.switch.cut.clear()
            assert await get(b, theirs, 0, B) == block(2)
            await sound(b, 20)

    run(scenario)


def test_the_journal_remembers_calls_that_are_not_committed(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        call, later = call_number(1, 1), call_number(1, 2)
        async with rig.node(kill=True) as vdisks:
            head = await create(vdisks, 20, 4 * B)
            await write(head, 0, block(1))
            head.note_call(call)
        async with rig.node() as vdisks:
            head = await opened(vdisks, 20)
            assert call in head.calls
            assert await is_committed(head, call, since=0)
            assert not await is_committed(head, later, since=0)
            version = head.log.version
            await write(head, B, block(2))
            head.note_call(later)
            await vdisks.flush(VdiskId(20))
            assert await is_committed(head, later, since=version)
            assert not await is_committed(head, call, since=version)
            await sound(vdisks, 20)

    run(scenario)


def test_an_index_built_from_the_log_is_none_the_worse_for_calls(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        rig = Rig(tmp_path)
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 4 * B)
            for value in range(300):
                await write(head, value % 4 * B, block(value))
                head.note_call(call_number(7, value))
            await vdisks.flush(VdiskId(20))
            before = vdisks.workspace.index.state(20)
        rig.lose_state()
        async with rig.node() as vdisks:
            head = await opened(vdisks, 20)
            assert isinstance(before, VdiskState)
            assert (head.size, head.own_blocks) == (4 * B, 4)
            assert await get(vdisks, handles_of(vdisks, 20)[0], 0, 4 * B) == blocks(296, 297, 298, 299)
            await sound(vdisks, 20)

    run(scenario)


def test_a_call_meant_for_an_owner_of_another_epoch_is_refused(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20, 4 * B)
            mine, theirs = await writer(a, 20), await writer(b, 20)
            await put(b, theirs, 0, block(1))
            head = a.heads[20]
            assert isinstance(head, Head)
            asked = {"vdisk": 20, "call": call_number(1, 1), "since": 0, "again": False, "offset": 0}
            for epoch in (head.log.epoch - 1, head.log.epoch + 1):
                with pytest.raises(NotOwner):
                    await cluster.switch.nodes["b"].call(
                        "a", "remote_write", {**asked, "epoch": epoch}, block(2), deadline_s=1.0
                    )
            assert await get(a, mine, 0, B) == block(1)

    run(scenario)


def test_a_call_s_number_is_no_cut() -> None:
    numbers = {call_number(origin, count) for origin in range(50) for count in range(50)}
    assert len(numbers) == 2500
    assert all(number & 1 and number >> 63 for number in numbers)
    assert CUT == 1


def test_a_file_made_remote_knows_what_its_head_knew(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20, 4 * B)
            mine = await writer(a, 20)
            await put(a, mine, 0, block(1))
            await a.flush_handle(mine)
            version = a.heads[20].log.version
            assert b.company is not None
            await b.company.transfers.acquire(20, force=True)
            remote = a.heads_by_handle[mine]
            assert isinstance(remote, Remote)
            assert (remote.size, remote.version) == (4 * B, version)

    run(scenario)


@pytest.mark.parametrize(
    ("offset", "end"),
    [(0, 1), (1, B), (5, 3 * B + 7), (B, 200 * MIB), (B + 1, 200 * MIB - 1), (63 * MIB, 65 * MIB)],
)
def test_a_discard_s_pieces_are_in_one_block_or_whole_blocks_that_are_put_at_once(
    offset: int, end: int
) -> None:
    at = offset
    while at < end:
        stop = piece_end(at, end)
        assert at < stop <= end
        in_one_block = at // B == (stop - 1) // B
        assert in_one_block or (at % B == stop % B == 0 and at // (64 * MIB) == (stop - 1) // (64 * MIB))
        at = stop


def test_a_discard_whose_owner_dies_in_the_middle_is_not_done_again_over_what_was_written_since(
    cluster: ClusterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, dying, parts = head_write._ready_to_share, trio.Event(), list[int]()

    async def held_up(head: Head, block_no: int, count: int) -> None:
        parts.append(block_no)
        if len(parts) == 3:
            dying.set()
            await trio.sleep_forever()
        await ready(head, block_no, count)

    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20, 200 * MIB)
            mine, theirs = await writer(a, 20), await writer(b, 20)
            for at in (0, 70 * MIB, 140 * MIB, 199 * MIB):
                await put(a, mine, at, block(1))
            remote = b.heads_by_handle[theirs]
            assert isinstance(remote, Remote)
            monkeypatch.setattr(head_write, "_ready_to_share", held_up)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(remote.punch, 5, 200 * MIB - 5)
                await dying.wait()
                assert await get(a, mine, 70 * MIB, B) == bytes(B)
                await put(a, mine, 70 * MIB, block(3))
                await a.flush_handle(mine)
                await cluster.kill("a")
                cluster.switch.expire("a")
            assert await get(b, theirs, 0, 2 * B) == block(1)[:5] + bytes(2 * B - 5)
            assert await get(b, theirs, 70 * MIB, B) == block(3)
            assert await get(b, theirs, 140 * MIB, B) == await get(b, theirs, 199 * MIB, B) == bytes(B)
            await sound(b, 20)

    run(scenario)


def test_a_forwarded_write_and_its_number_are_in_one_commit_though_the_journal_is_full(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            cluster.rigs["a"] = NodeRig(cluster, "a")
            cluster.rigs["a"].journal_capacity = 64
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, 20, 4 * B)
            mine, theirs = await writer(a, 20), await writer(b, 20)
            await put(b, theirs, 0, block(1))
            while head.journal.room() > 3:
                await put(a, mine, B, block(2))
            version = head.log.version
            await put(b, theirs, 0, block(3))
            with LogReader(a.workspace.pool, 20) as reader:
                found = records_back(reader, head.log.record_place, head.log.record_check)
                records = list(itertools.takewhile(lambda record: record.version > version, found))
            (holder,) = [record for record in records if record.calls()]
            assert 0 in [block_no for block_no, _, place in holder.runs() if place != CUT]
            await sound(a, 20)

    run(scenario)
