"""Many nodes write one vdisk: lost answers, repeated calls, hand-overs under load; each block is what was last acknowledged."""

import pathlib
import random
from typing import Any

import pytest
import trio

from replication.cluster import Answer
from replication.remote import Remote
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import B, block, blocks, create, run, sound
from tests.replication.sharing import company_of, counts_of, get, put, writer

BLOCKS = 24


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


def test_a_write_whose_answer_was_lost_counts_once(
    cluster: ClusterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replication.remote.CALL_S", 0.2)

    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20, BLOCKS * B)
            mine, theirs = await writer(a, 20), await writer(b, 20)
            await put(b, theirs, 0, block(1))
            version = a.heads[20].log.version
            cluster.switch.cut.add(("a", "b"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(put, b, theirs, 0, block(2))
                while a.heads[20].log.version == version:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                await put(a, mine, 0, block(3))  # later than what the other has not heard the end of
                cluster.switch.cut.clear()
            assert await get(a, mine, 0, B) == await get(b, theirs, 0, B) == block(3)
            assert company_of(b).transfers.forwarded >= 2
            assert len([call for call in cluster.switch.calls if call[2] == "remote_write"]) > 2

    run(scenario)


@pytest.mark.parametrize("seed", range(12))
def test_whoever_writes_next_and_wherever_reads_see_what_was_last_acknowledged(
    cluster: ClusterRig, seed: int
) -> None:
    chance = random.Random(seed)

    async def scenario() -> None:
        async with cluster.running():
            nodes = [await cluster.start(name) for name in "abc"]
            await create(nodes[0], 20, BLOCKS * B)
            nodes[0].close(next(iter(nodes[0].handles)))
            content = [bytes(B)] * BLOCKS
            opened: list[list[int]] = [[], [], []]
            for step in range(150):
                at = chance.randrange(3)
                node, handles = nodes[at], opened[at]
                if not handles or chance.random() < 0.1:
                    handles.append(await writer(node, 20))
                elif chance.random() < 0.3:
                    node.close(handles.pop(chance.randrange(len(handles))))
                elif chance.random() < 0.6:
                    block_no = chance.randrange(BLOCKS)
                    content[block_no] = block(step)
                    await put(node, chance.choice(handles), block_no * B, block(step))
                else:
                    found = await get(node, chance.choice(handles), 0, BLOCKS * B)
                    assert found == b"".join(content), f"step={step} node={at}"
            for at, node in enumerate(nodes):
                for number in opened[at]:
                    node.close(number)
            last = await writer(nodes[0], 20)
            assert await get(nodes[0], last, 0, BLOCKS * B) == b"".join(content)
            await sound(nodes[0], 20)

    run(scenario)


@pytest.mark.parametrize("seed", range(3))
def test_hand_overs_under_load_lose_nothing_that_was_acknowledged(cluster: ClusterRig, seed: int) -> None:
    async def scenario() -> None:
        async with cluster.running():
            nodes = [await cluster.start(name) for name in "abc"]
            await create(nodes[0], 20, BLOCKS * B)
            nodes[0].close(next(iter(nodes[0].handles)))
            last = [0] * 3

            async def guest(at: int) -> None:
                """Writes a block of its own, over and over, in files that it opens and closes."""
                chance = random.Random(seed * 10 + at)
                for number in range(12):
                    handle = await writer(nodes[at], 20)
                    for count in range(chance.randrange(1, 6)):
                        value = 1 + number * 10 + count
                        await put(nodes[at], handle, at * B, block(value))
                        last[at] = value
                        assert await get(nodes[at], handle, at * B, B) == block(value)
                    nodes[at].close(handle)
                    await trio.testing.wait_all_tasks_blocked(chance.choice((0, 0.002)))

            async with trio.open_nursery() as nursery:
                for at in range(3):
                    nursery.start_soon(guest, at)
            handle = await writer(nodes[1], 20)
            assert await get(nodes[1], handle, 0, 3 * B) == blocks(*last)

    run(scenario)


def test_the_owner_s_death_amid_forwarded_writes_loses_none_that_was_acknowledged(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20, BLOCKS * B)
            await writer(a, 20)
            theirs = await writer(b, 20)
            assert isinstance(b.heads_by_handle[theirs], Remote)
            written: list[int] = []

            async def write_on() -> None:
                for value in range(60):
                    await put(b, theirs, value % BLOCKS * B, block(value))
                    written.append(value)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(write_on)
                while len(written) < 20:
                    await trio.testing.wait_all_tasks_blocked(0.001)
                await cluster.kill("a")
                cluster.switch.expire("a")
            for value in range(60 - BLOCKS, 60):
                assert await get(b, theirs, value % BLOCKS * B, B) == block(value)
            assert counts_of(b).taken_over == 1
            await b.flush_handle(theirs)
            await sound(b, 20)

    run(scenario)


def test_a_node_is_not_waited_for_by_its_own_writes_and_shows_them_at_once(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b, c = [await cluster.start(name) for name in "abc"]
            await create(a, 20, BLOCKS * B)
            mine, theirs = await writer(a, 20), await writer(b, 20)
            await put(a, mine, 0, block(1))
            await a.flush_handle(mine)
            followers = [company_of(node).follower for node in (b, c)]
            for follower in followers:
                await follower.newest(20)
            silence = trio.Event()
            published = cluster.switch.nodes["b"]._handlers["publish"]

            async def late(*call: Any) -> Answer:
                await silence.wait()
                return await published(*call)

            cluster.switch.nodes["b"]._handlers["publish"] = late
            del cluster.switch.nodes["b"]._at_once["publish"]
            for number in range(2, 12):
                await put(b, theirs, number * B, block(number))
                version = a.heads[20].log.version
                assert (await followers[1].newest(20)).version == version
                assert followers[0].newest_nowait(20) is None, "it knows better"
            assert (await followers[0].newest(20)).version == version, "it asked again"
            silence.set()
            await put(a, mine, 0, block(12))
            await a.flush_handle(mine)
            assert (await followers[0].newest(20)).version == a.heads[20].log.version == version + 1

    run(scenario)


def test_of_many_forwarded_writes_their_node_is_told_together(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20, BLOCKS * B)
            mine, theirs = await writer(a, 20), await writer(b, 20)
            follower = company_of(b).follower
            await follower.newest(20)
            before = follower.applied
            for number in range(100):
                await put(b, theirs, number % BLOCKS * B, block(number))
            version = a.heads[20].log.version
            while follower.applied < before + 100:
                await trio.testing.wait_all_tasks_blocked(0.01)
            newest = follower.newest_nowait(20)
            assert newest is not None
            assert newest.version == version
            assert follower.gaps == 0
            calls = [verb for source, _, verb in cluster.switch.calls if source == "a"]
            assert 0 < calls.count("publish") < 50
            assert b.workspace.index.state(20) is not None
            assert await get(a, mine, 0, BLOCKS * B) == await get(b, theirs, 0, BLOCKS * B)

    run(scenario)
