"""Ownership on the move: asked for, handed over, taken over, shared, lost."""

import errno
import os
import pathlib
from contextlib import suppress

import pytest
import trio
import trio.testing

from metadata.errors import Fenced, InvalidRequest, NotOwner, Unavailable
from metadata.ids import VdiskId
from replication.head import Head
from replication.ownership import Owner, find_owner
from replication.remote import Remote
from replication.transfers import KEEP_PINS_S
from replication.view import View
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import (
    B,
    block,
    blocks,
    close_and_rest,
    create,
    expect_errors,
    handles_of,
    opened,
    passes,
    run,
    sound,
    write,
)
from tests.replication.sharing import company_of, counts_of, get, put, writer


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


async def written(cluster: ClusterRig, *values: int) -> None:
    """Vdisk 20 on node a, with these blocks, closed."""
    a = await cluster.start("a")
    await create(a, 20)
    number = await writer(a, 20)
    await put(a, number, 0, blocks(*values))
    await a.flush_handle(number)
    for number in handles_of(a, 20):
        a.close(number)


def test_a_vdisk_without_a_writer_is_handed_over_on_request(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            b = await cluster.start("b")
            number = await writer(b, 20)
            assert isinstance(b.heads_by_handle[number], Head)
            assert await get(b, number, 0, 2 * B) == blocks(1, 2)
            await put(b, number, B, block(3))
            await b.flush_handle(number)
            assert await find_owner(cluster.catalog, 20) == Owner("b", 2)
            a = cluster.node("a")
            assert 20 not in a.heads
            assert (counts_of(a).handed_over, counts_of(b).received) == (1, 1)
            b.close(number)
            back = await writer(a, 20)
            assert await get(a, back, 0, 2 * B) == blocks(1, 3)
            assert await find_owner(cluster.catalog, 20) == Owner("a", 3)
            await sound(a, 20)

    run(scenario)


def test_a_file_that_is_read_goes_on_at_its_version_when_the_head_has_gone(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b = cluster.node("a"), await cluster.start("b")
            reader = await a.open(VdiskId(20), flags=os.O_RDONLY)
            number = await writer(b, 20)
            assert isinstance(a.heads_by_handle[reader], View)
            for value in range(5, 10):
                await put(b, number, 0, block(value))
                await b.flush_handle(number)
            assert await get(a, reader, 0, 2 * B) == blocks(1, 2)
            with pytest.raises(InvalidRequest) as told:
                await a.open(VdiskId(20), flags=os.O_RDONLY)
            assert told.value.number == errno.ESTALE
            a.close(reader)
            assert a.family.pin_count(20) == 0

    run(scenario)


def test_what_readers_elsewhere_keep_does_not_go_from_owner_to_owner_for_ever(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            nodes = [cluster.node("a"), await cluster.start("b")]
            for turn in range(5):
                owner, taker = nodes[turn % 2], nodes[(turn + 1) % 2]
                reader = await owner.open(VdiskId(20), flags=os.O_RDONLY)
                number = await writer(taker, 20)
                assert (
                    len(taker.family.read_versions(20)) <= 2
                )  # what the reader reads, and the one before it
                owner.close(reader)
                await put(taker, number, 0, block(10 + turn))
                await taker.flush_handle(number)
                taker.close(number)
                await sound(taker, 20)
                await passes(0.6 * KEEP_PINS_S)

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_what_the_next_owner_has_not_heard_of_is_kept_by_the_one_after_it_too(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b, c = cluster.node("a"), await cluster.start("b"), await cluster.start("c")
            child = 1  # a clone of this version, say, of which b and c have not heard
            a.family.pin(20, child)
            for taker, value in ((b, 3), (c, 4)):
                number = await writer(taker, 20)
                assert child in taker.family.kept_versions(20)
                await put(taker, number, 0, block(value))
                await taker.flush_handle(number)
                taker.close(number)
            await passes(KEEP_PINS_S + 2)
            assert not b.family.kept_versions(20)
            assert not c.family.kept_versions(20)
            await sound(c, 20)

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_two_writers_share_a_vdisk_and_each_reads_what_the_other_wrote(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b = cluster.node("a"), await cluster.start("b")
            mine = await writer(a, 20)
            theirs = await writer(b, 20)
            remote = b.heads_by_handle[theirs]
            assert isinstance(remote, Remote)
            assert (remote.size, b.is_remote(theirs)) == (2 * B, True)
            for value in range(10, 20):
                await put(b, theirs, 0, block(value))
                assert not a.heads[20].is_dirty
                assert await get(a, mine, 0, B) == block(value)
                await put(a, mine, B, block(value + 100))
                assert await get(b, theirs, 0, 2 * B) == blocks(value, value + 100)
            assert await find_owner(cluster.catalog, 20) == Owner("a", 1)

    run(scenario)


def test_the_last_own_writer_s_close_moves_the_vdisk_to_the_node_that_writes(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b = cluster.node("a"), await cluster.start("b")
            mine = await writer(a, 20)
            theirs = await writer(b, 20)
            await put(a, mine, 0, block(7))  # not flushed
            a.close(mine)
            with trio.fail_after(5):
                while not isinstance(b.heads_by_handle[theirs], Head):
                    await trio.testing.wait_all_tasks_blocked(0.01)
            assert await find_owner(cluster.catalog, 20) == Owner("b", 2)
            calls = len(cluster.switch.calls)
            assert await get(b, theirs, 0, 2 * B) == blocks(7, 2)
            await put(b, theirs, 0, block(8))
            assert [call for call in cluster.switch.calls[calls:] if call[2].startswith("remote")] == []

    run(scenario)


def test_a_dead_owner_is_taken_over_when_its_session_ends_and_nothing_acknowledged_is_lost(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b = cluster.node("a"), await cluster.start("b")
            number = await writer(a, 20)
            await put(a, number, 0, block(3))
            await a.flush_handle(number)
            await put(a, number, B, block(4))  # never flushed
            await cluster.kill("a")
            cluster.switch.expire("a")
            theirs = await writer(b, 20)
            found = await get(b, theirs, 0, 2 * B)
            assert found[:B] == block(3)
            assert found[B:] == block(2)
            assert counts_of(b).taken_over == 1
            assert await find_owner(cluster.catalog, 20) == Owner("b", 2)
            groups = {path.name[:6] for path in cluster.rigs["b"].group_files(20)}
            assert groups == {"000001", "000002"}  # the epoch has begun with a commit of its own
            await put(b, theirs, B, block(5))
            await b.flush_handle(theirs)
            a = await cluster.start("a")  # what its journal has is void
            b.close(theirs)
            assert await get(a, await writer(a, 20), 0, 2 * B) == blocks(3, 5)
            await sound(a, 20)

    run(scenario)


def test_a_daemon_that_starts_anew_within_its_session_keeps_vdisks_and_journal(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a = cluster.node("a")
            await put(a, await writer(a, 20), B, block(4))  # never flushed
            await cluster.kill("a")
            a = await cluster.start("a")
            assert await find_owner(cluster.catalog, 20) == Owner("a", 1)
            assert await get(a, await writer(a, 20), 0, 2 * B) == blocks(1, 4)

    run(scenario)


def test_a_paused_owner_that_wakes_up_has_its_late_commit_refused(
    cluster: ClusterRig, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b = cluster.node("a"), await cluster.start("b")
            number = await writer(a, 20)
            await put(a, number, 0, block(3))
            company_of(a).mirror.listeners.clear()  # stopped: it hears of nothing
            cluster.switch.expire("a")
            theirs = await writer(b, 20)
            assert await get(b, theirs, 0, B) == block(1)
            with pytest.raises(Fenced):
                await a.flush_handle(number)  # durable, in a group of its own epoch, and too late
            cluster.switch.live.add("a")
            with pytest.raises(Fenced):
                await put(a, number, 0, block(9))
            with pytest.raises(Fenced):
                await get(a, number, 0, B)
            await put(b, theirs, B, block(5))
            await b.flush_handle(theirs)
            a.close(number)
            assert counts_of(a).deposed == 1
            b.close(theirs)
            c = await cluster.start("c")  # knows nothing but the pool
            assert await get(c, await writer(c, 20), 0, 2 * B) == blocks(1, 5)
            await sound(c, 20)

    run(scenario)
    expect_errors(caplog, "deposed", "a commit does not count", "another node took the vdisk over")


@pytest.mark.parametrize("flushes", [1, 20])
def test_a_file_read_on_a_deposed_owner_goes_on_at_the_last_version_that_counts(
    cluster: ClusterRig, flushes: int, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b = cluster.node("a"), await cluster.start("b")
            number, reader = await writer(a, 20), await a.open(VdiskId(20), flags=os.O_RDONLY)
            other = await a.open(VdiskId(20), flags=os.O_RDONLY)
            for value in range(flushes):  # light ones at last, which the index has not got
                await put(a, number, B, block(30 + value))
                await a.flush_handle(number)
            await put(a, number, 0, block(9))  # void
            await put(a, number, 2 * B, block(9))
            assert await get(a, reader, 0, B) == block(9)
            cluster.switch.expire("a")
            theirs = await writer(b, 20)
            with pytest.raises(Fenced):
                await a.flush_handle(number)
            cluster.switch.live.add("a")
            last = blocks(1, 29 + flushes)
            assert await get(a, reader, 0, 4 * B) == last
            for value in range(50, 55):
                await put(b, theirs, 0, blocks(value, value))
                await b.flush_handle(theirs)
            assert await get(a, reader, 0, 4 * B) == await get(a, other, 0, 4 * B) == last
            with pytest.raises(Fenced):
                await get(a, number, 0, B)
            for one in (number, reader, other):
                with pytest.raises(Fenced):
                    await a.flush_handle(one)
            b.close(theirs)
            again = await writer(a, 20)
            assert await get(a, again, 0, 4 * B) == blocks(54, 54)
            assert await get(a, reader, 0, 4 * B) == last
            for one in (number, reader, other, again):
                a.close(one)
            assert a.family.pin_count(20) == 0
            await sound(a, 20)

    run(scenario)
    expect_errors(caplog, "deposed", "a commit does not count", "another node took the vdisk over")


def test_two_nodes_that_want_a_vdisk_at_once_agree_on_one_owner(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            nodes = [await cluster.start(name) for name in "bcd"]
            numbers: dict[int, int] = {}

            async def want(at: int) -> None:
                numbers[at] = await writer(nodes[at], 20)

            async with trio.open_nursery() as nursery:
                for at in range(3):
                    nursery.start_soon(want, at)
            for at, node in enumerate(nodes):
                await put(node, numbers[at], 0, block(40 + at))
            for at, node in enumerate(nodes):
                assert await get(node, numbers[at], 0, B) == block(42)
            assert (
                sum(isinstance(node.heads_by_handle[numbers[at]], Head) for at, node in enumerate(nodes)) == 1
            )

    run(scenario)


def test_a_vdisk_nobody_wrote_is_its_first_writer_s(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20)
            idle = await writer(a, 20)
            theirs = await writer(b, 20)
            served = b.heads_by_handle[theirs]
            await put(b, theirs, 0, block(1))
            assert isinstance(served, Remote)
            assert await get(a, idle, 0, B) == block(1)

    run(scenario)


def test_a_head_loaded_to_be_read_before_anybody_owned_it_gives_way(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20)  # open for reading
            head = a.heads[20]
            assert not head.owned
            theirs = await writer(b, 20)
            await put(b, theirs, 0, block(1))
            await b.flush_handle(theirs)
            with pytest.raises(InvalidRequest):
                await a.open(VdiskId(20), flags=os.O_RDONLY)
            with pytest.raises(NotOwner):
                await write(head, 0, block(2))
            assert await get(a, handles_of(a, 20)[0], 0, B) == b""
            mine = await writer(a, 20)
            assert await get(a, mine, 0, B) == block(1)

    run(scenario)


def test_a_hand_over_that_fails_leaves_the_vdisk_where_it_was(
    cluster: ClusterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b = cluster.node("a"), await cluster.start("b")
            transfers, failures = company_of(a).transfers, 3

            async def failing(vdisk: int, owner: Owner, *, to: str) -> int:
                nonlocal failures
                failures -= 1
                if failures:
                    raise NotOwner("not this time")
                return await named(vdisk, owner, to=to)

            named = transfers._name_owner
            monkeypatch.setattr(transfers, "_name_owner", failing)
            async with trio.open_nursery() as nursery:

                async def use() -> None:
                    with suppress(InvalidRequest):  # it has gone
                        while True:
                            assert isinstance(await opened(a, 20), Head)
                            a.close(handles_of(a, 20)[0])
                            await trio.lowlevel.checkpoint()

                nursery.start_soon(use)
                number = await writer(b, 20)
                nursery.cancel_scope.cancel()
            assert await get(b, number, 0, 2 * B) == blocks(1, 2)

    run(scenario)


def test_an_owner_that_cannot_be_reached_keeps_what_it_owns_while_it_has_a_session(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            b = await cluster.start("b")
            cluster.switch.cut.add(("a", "b"))
            with trio.move_on_after(1) as scope:
                await writer(b, 20)
            assert scope.cancelled_caught
            owner = await find_owner(cluster.catalog, 20)
            cluster.switch.cut.clear()
            number = await writer(b, 20)
            assert await get(b, number, 0, 2 * B) == blocks(1, 2)
            assert owner.node in ("a", "b")

    run(scenario)


def test_a_summary_that_could_not_be_written_leaves_none_of_before(
    cluster: ClusterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b = cluster.node("a"), await cluster.start("b")
            await close_and_rest(a, 20)
            number = await writer(a, 20)
            await put(a, number, 0, blocks(3, 4, 5))

            async def silent(*_: object, **__: object) -> None:
                raise Unavailable("the catalog is silent")

            with monkeypatch.context() as patch:
                patch.setattr("replication.vdisks.rest", silent)
                with pytest.raises(Unavailable):
                    await close_and_rest(a, 20)
            await close_and_rest(a, 20)
            assert (await a.stat(VdiskId(20))).size == 3 * B
            newest = await company_of(b).follower.newest(20)
            assert newest.size == 3 * B
            theirs = await writer(b, 20)
            assert await get(b, theirs, 0, 4 * B) == blocks(3, 4, 5)

    run(scenario)


def test_a_subscriber_of_which_the_new_owner_has_not_heard_yet_is_told_of_it(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            b, c = await cluster.start("b"), await cluster.start("c")
            assert (await company_of(c).follower.newest(20)).version == 1
            cluster.switch.unheard.add(("b", "c"))
            await writer(b, 20)
            assert ("b", "c", "moved") in cluster.switch.calls

    run(scenario)


def test_a_vdisk_that_is_opened_while_it_is_about_to_be_handed_over_stays(
    cluster: ClusterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            await written(cluster, 1, 2)
            a, b = cluster.node("a"), await cluster.start("b")
            transfers = company_of(a).transfers
            number, checked = 0, transfers._check_mine

            async def open_meanwhile(vdisk: int) -> Owner:
                nonlocal number
                owner = await checked(vdisk)
                if not number:
                    number = await writer(a, 20)
                return owner

            monkeypatch.setattr(transfers, "_check_mine", open_meanwhile)
            theirs = await writer(b, 20)
            assert isinstance(a.heads_by_handle[number], Head)
            assert isinstance(b.heads_by_handle[theirs], Remote)
            assert await find_owner(cluster.catalog, 20) == Owner("a", 1)

    run(scenario)
