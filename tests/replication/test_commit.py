"""Flush: the order that makes it durable, who shares a commit, and failures that every handle hears of."""

from collections.abc import Callable
from functools import partial

import pytest
import trio
import trio.testing

from metadata.errors import NoSpace, Unavailable
from metadata.units import GROUP_BLOCKS
from replication import head_write, log
from replication.commit import LIGHT_COMMITS_MAX, begin_nowait, flush, grow_ahead
from replication.head import Head
from replication.log import AHEAD_BLOCKS
from tests.replication.faults import FaultyRig
from tests.replication.rig import (
    B,
    block,
    blocks,
    close_and_rest,
    content,
    create,
    expect_errors,
    handles_of,
    opened,
    read,
    run,
    sound,
    write,
)

MIB = 1 << 20


def test_data_and_record_are_durable_before_the_index_knows_them(faulty: FaultyRig) -> None:
    async def main() -> None:
        order: list[str] = []
        meet: Callable[[str, str], None] = faulty.faults.meet

        def noting(what: str, path: str) -> None:
            if what in ("write", "sync", "apply"):
                order.append(what)
            meet(what, path)

        faulty.faults.meet = noting
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, block(1))
            assert order == ["write"]
            await vdisks.flush(20)
            assert order == ["write", "write", "sync", "apply"]
            await vdisks.flush(20)
            assert len(order) == 4  # nothing changed: nothing to do

    run(main)


def test_of_a_commit_that_spans_two_groups_both_are_durable(
    faulty: FaultyRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "GROUP_BLOCKS", 16)
    monkeypatch.setattr(log, "STEP_BLOCKS_MIN", 16)

    async def main() -> None:
        synced: set[str] = set()
        meet: Callable[[str, str], None] = faulty.faults.meet

        def noting(what: str, path: str) -> None:
            if what == "sync":
                synced.add(path)
            meet(what, path)

        faulty.faults.meet = noting
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            for number in range(24):
                await write(head, number * B, block(number))
            assert synced == set()
            await flush(head)
            files = {str(path) for path in faulty.group_files(20)}
            assert len(files) == 2
            assert synced == files

    run(main)


def test_flushes_that_come_during_a_commit_share_the_next_one(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, block(1))
            async with trio.open_nursery() as nursery, faulty.faults.held("sync") as hold:
                nursery.start_soon(flush, head)
                await hold.wait_reached()
                for number in range(2, 30):
                    await write(head, number * B, block(number))
                    nursery.start_soon(flush, head)
                await trio.testing.wait_all_tasks_blocked()
            assert head.log.version == 2
            assert faulty.faults.calls["sync"] == 2
            await sound(vdisks, 20)

    run(main)


def test_a_flush_returns_only_when_what_came_before_it_is_durable(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            returned = []

            async def flush_and_tell(number: int) -> None:
                await flush(head)
                returned.append((number, head.log.version))

            await write(head, 0, block(1))
            async with trio.open_nursery() as nursery, faulty.faults.held("sync") as hold:
                nursery.start_soon(flush_and_tell, 1)
                await hold.wait_reached()
                await write(head, B, block(2))
                nursery.start_soon(flush_and_tell, 2)
                await trio.testing.wait_all_tasks_blocked()
                assert returned == []
            assert sorted(returned) == [(1, returned[0][1]), (2, 2)]

    run(main)


def test_a_change_during_a_commit_is_part_of_the_next(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(1, 2, 3))
            async with trio.open_nursery() as nursery, faulty.faults.held("sync") as hold:
                nursery.start_soon(flush, head)
                await hold.wait_reached()
                await write(head, 0, block(9))
                await head_write.punch(head, B, B)
                assert head.is_dirty
            assert head.is_dirty
            await flush(head)
            assert not head.is_dirty
        faulty.lose_state()
        async with faulty.node() as vdisks:
            head = await opened(vdisks, 20)
            assert (await content(head))[: 3 * B] == block(9) + bytes(B) + block(3)
            await sound(vdisks, 20)

    run(main)


async def fail_to_flush(head: Head) -> None:
    with pytest.raises(Unavailable):
        await flush(head)


class TestFailures:
    def test_each_open_handle_hears_of_a_failure_once_and_then_of_success(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await opened(vdisks, 20)
                first, second = handles_of(vdisks, 20)
                await write(head, 0, block(1))
                faulty.faults.failing["sync"] = 1
                with pytest.raises(Unavailable):
                    await vdisks.flush_handle(first)
                await vdisks.flush_handle(first)  # tried again from another group, and it worked
                with pytest.raises(Unavailable):
                    await vdisks.flush_handle(second)
                await vdisks.flush_handle(second)
                await opened(vdisks, 20)
                (third,) = set(handles_of(vdisks, 20)) - {first, second}
                await vdisks.flush_handle(third)  # opened after it
                assert await read(head, 0, B) == block(1)

        run(main)

    def test_no_flush_claims_success_while_the_pool_fails(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                (handle,) = handles_of(vdisks, 20)
                await write(head, 0, block(1))
                faulty.faults.failing["sync"] = 100
                for _ in range(10):
                    with pytest.raises(Unavailable):
                        await vdisks.flush_handle(handle)
                faulty.faults.disarm()
                await vdisks.flush_handle(handle)
                await sound(vdisks, 20)
            faulty.lose_state()
            async with faulty.node() as vdisks:
                assert await read(await opened(vdisks, 20), 0, B) == block(1)

        run(main)

    def test_a_failure_in_the_background_is_told_by_the_next_fsync(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                (handle,) = handles_of(vdisks, 20)
                await write(head, 0, block(1))
                faulty.faults.failing["sync"] = 1
                assert begin_nowait(head)
                assert not begin_nowait(head)  # one at a time
                assert head.commit_done is not None
                await head.commit_done.wait()
                await flush(head)
                with pytest.raises(Unavailable):
                    await vdisks.flush_handle(handle)
                await vdisks.flush_handle(handle)

        run(main)

    def test_all_who_waited_for_the_commit_that_failed_hear_of_it(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head, heard = await create(vdisks, 20, MIB), []

                async def waiter(number: int) -> None:
                    try:
                        await flush(head)
                    except Unavailable:
                        heard.append(number)

                await write(head, 0, block(1))
                faulty.faults.failing["sync"] = 1
                async with trio.open_nursery() as nursery, faulty.faults.held("sync"):
                    for number in range(5):
                        nursery.start_soon(waiter, number)
                    await trio.testing.wait_all_tasks_blocked()
                assert sorted(heard) == list(range(5))

        run(main)

    def test_what_a_failed_commit_held_is_kept_beside_what_was_written_meanwhile(
        self, faulty: FaultyRig
    ) -> None:
        async def main() -> None:
            async with faulty.node(kill=True) as vdisks:
                head = await create(vdisks, 20, 4 * MIB)
                await write(head, 0, blocks(*range(10)))
                faulty.faults.failing["sync"] = 1
                async with trio.open_nursery() as nursery, faulty.faults.held("sync") as hold:
                    nursery.start_soon(fail_to_flush, head)
                    await hold.wait_reached()
                    await write(head, 5 * B, blocks(*range(100, 110)))
                    await head_write.punch(head, 2 * B, 2 * B)
                await flush(head)
                wanted = blocks(0, 1) + bytes(2 * B) + block(4) + blocks(*range(100, 110))
                assert (await content(head))[: 15 * B] == wanted
            faulty.lose_state()
            async with faulty.node() as vdisks:
                assert (await content(await opened(vdisks, 20)))[: 15 * B] == wanted
                await sound(vdisks, 20)

        run(main)

    def test_no_space_for_a_commit_is_told_and_heals(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                faulty.faults.numbers["sync"] = 28
                faulty.faults.failing["sync"] = 1
                await write(head, 0, block(1))
                with pytest.raises(NoSpace):
                    await flush(head)
                await flush(head)
                await sound(vdisks, 20)

        run(main)

    def test_a_cancelled_flush_loses_nothing(self, faulty: FaultyRig) -> None:
        """The mount goes away while guests' fsyncs run: their tasks are cancelled, the commit goes on."""

        async def write_and_flush(head: Head) -> None:
            await write(head, 0, block(1))
            await flush(head)

        async def main(vdisk: int, what: str) -> None:
            async with faulty.node(kill=True) as vdisks:
                head = await create(vdisks, vdisk)
                async with trio.open_nursery() as nursery, faulty.faults.held(what) as hold:
                    nursery.start_soon(write_and_flush, head)
                    await hold.wait_reached()
                    nursery.cancel_scope.cancel()
                await write(head, B, block(2))
                with trio.CancelScope() as scope:
                    scope.cancel()
                    await flush(head)
                await write(head, 0, block(1))
                await flush(head)
                assert await content(head) == blocks(1, 2)
                await sound(vdisks, vdisk)
            faulty.lose_state()
            async with faulty.node() as vdisks:
                assert await content(await opened(vdisks, vdisk)) == blocks(1, 2)

        for number, what in enumerate(("sync", "apply", "create", "preallocate")):
            run(partial(main, 20 + number, what))


def test_room_is_made_ahead_while_the_group_lasts(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, 4 * MIB)
            await write(head, 0, block(1))
            limit = head.log.limit
            while head.log.wants_room_ahead():
                await grow_ahead(head)
                assert head.log.limit > limit
                limit = head.log.limit
            assert limit >= min(head.log.tail + AHEAD_BLOCKS, GROUP_BLOCKS)
            assert len(faulty.group_files(20)) == 1
            await sound(vdisks, 20)

    run(main)


def test_no_room_ahead_in_a_full_pool_is_no_failure(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, 4 * MIB)
            await write(head, 0, block(1))
            assert head.log.wants_room_ahead()
            faulty.faults.failing["preallocate"] = 2
            await grow_ahead(head)
            faulty.faults.disarm()
            await write(head, B, block(2))
            assert await read(head, 0, 2 * B) == blocks(1, 2)
            await sound(vdisks, 20)

    run(main)


async def sync_lightly(head: Head) -> None:
    """As a guest's fsync behind a write, of a guest that always does so."""
    assert begin_nowait(head, light=True)
    assert head.commit_done is not None
    await head.commit_done.wait()


class TestLightCommits:
    def test_they_are_durable_and_leave_the_index_alone(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await vdisks.flush(20)
                applied = faulty.faults.calls["apply"]
                for number in range(2, 10):
                    await write(head, (number % 3) * B, block(number))
                    await sync_lightly(head)
                assert faulty.faults.calls["apply"] == applied
                assert head.log.version == 9
                await write(head, 5 * B, block(99))  # not flushed: the journal has it
            async with faulty.node() as vdisks:
                head = await opened(vdisks, 20)
                assert (await content(head))[: 6 * B] == blocks(9, 7, 8) + bytes(2 * B) + block(99)
                await sound(vdisks, 20)

        run(main)

    @pytest.mark.parametrize("lost", ["state", "index"])
    def test_they_are_found_in_the_log_alone(self, faulty: FaultyRig, lost: str) -> None:
        async def main() -> None:
            async with faulty.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                for number in range(1, 10):
                    await write(head, number * B, block(number))
                    if head.running:
                        await sync_lightly(head)
                    else:
                        await vdisks.flush(20)
            faulty.lose_state() if lost == "state" else faulty.lose_index()
            async with faulty.node() as vdisks:
                assert (await content(await opened(vdisks, 20)))[B : 10 * B] == blocks(*range(1, 10))
                await sound(vdisks, 20)

        run(main)

    def test_a_flush_lets_the_index_catch_up_even_if_nothing_is_left_to_commit(
        self, faulty: FaultyRig
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await vdisks.flush(20)
                await write(head, B, block(2))
                await sync_lightly(head)
                assert (head.is_dirty, head.index_lags) == (False, True)
                version = head.log.version
                await vdisks.flush(20)
                assert (head.index_lags, head.log.version) == (False, version)
                state = vdisks.workspace.index.state(20)
                assert state is not None
                assert state.version == version
                await sound(vdisks, 20)

        run(main)

    def test_the_index_never_lags_by_more_than_so_many(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await vdisks.flush(20)
                applied = faulty.faults.calls["apply"]
                for number in range(3 * LIGHT_COMMITS_MAX):
                    await write(head, 0, block(number + 2))
                    await sync_lightly(head)
                    assert head.light_commits <= LIGHT_COMMITS_MAX
                assert faulty.faults.calls["apply"] - applied == 2
                await sound(vdisks, 20)

        run(main)

    def test_who_waits_is_answered_before_the_index_is_asked_and_once(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await vdisks.flush(20)
                await write(head, B, block(2))
                told: list[str] = []
                durable, failed = partial(told.append, "durable"), partial(told.append, "failed")
                async with trio.open_nursery() as nursery, faulty.faults.held("apply") as hold:
                    nursery.start_soon(flush, head)
                    await hold.wait_reached()
                    assert head.flight is not None
                    assert told == []
                    head.flight.answer(durable, when_failed=failed)  # it is durable already
                    assert told == ["durable"]
                assert told == ["durable"]

        run(main)

    def test_a_failure_reaches_who_waits_and_the_next_commit_holds_it_all(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await vdisks.flush(20)
                await write(head, B, block(2))
                await sync_lightly(head)
                await write(head, 2 * B, block(3))
                faulty.faults.failing["sync"] = 1
                told: list[str] = []
                async with faulty.faults.held("sync"):
                    assert begin_nowait(head, light=True)
                    done = head.commit_done
                    assert head.flight is not None
                    head.flight.answer(
                        partial(told.append, "durable"), when_failed=partial(told.append, "failed")
                    )
                assert done is not None
                await done.wait()
                assert (told, head.error_no) == (["failed"], 1)
                await vdisks.flush(20)
                await sound(vdisks, 20)
            faulty.lose_state()
            async with faulty.node() as vdisks:
                assert (await content(await opened(vdisks, 20)))[: 3 * B] == blocks(1, 2, 3)

        run(main)


class TestIndexThatLags:
    def test_a_flush_works_without_the_index_and_the_next_one_brings_it_up(
        self, faulty: FaultyRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, 2 * MIB)
                (handle,) = handles_of(vdisks, 20)
                await write(head, 0, blocks(1, 2))
                await write(head, MIB, block(3))
                faulty.faults.failing["apply"] = 1
                await vdisks.flush_handle(handle)
                assert (head.log.version, head.index_lags) == (1, True)
                vdisks.workspace.row_cache.shrink(0)
                vdisks.workspace.segment_cache.shrink(0)
                assert await read(head, 0, 2 * B) == blocks(1, 2)
                await write(head, 5 * B, block(4))
                await vdisks.flush_handle(handle)
                assert not head.index_lags
                await sound(vdisks, 20)

        run(main)
        expect_errors(caplog, "the index lags behind")

    def test_a_flush_of_nothing_brings_it_up_and_tries_that_once(
        self, faulty: FaultyRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, 2 * MIB)
                await write(head, 0, blocks(1, 2))
                faulty.faults.failing["apply"] = 3
                for tries in range(1, 4):
                    await vdisks.flush(20)
                    assert (head.log.version, head.index_lags) == (1, True)
                    assert faulty.faults.calls["apply"] == tries
                await vdisks.flush(20)
                assert (head.log.version, head.index_lags) == (1, False)
                assert faulty.faults.calls["apply"] == 4
                vdisks.workspace.row_cache.shrink(0)
                assert await content(head) == blocks(1, 2).ljust(2 * MIB, b"\0")
                await sound(vdisks, 20)

        run(main)
        expect_errors(caplog, "the index lags behind")

    @pytest.mark.parametrize("kill", [False, True])
    def test_an_index_that_lagged_to_the_end_is_brought_up_from_the_log(
        self, faulty: FaultyRig, caplog: pytest.LogCaptureFixture, kill: bool
    ) -> None:
        async def main() -> None:
            async with faulty.node(kill=kill) as vdisks:
                head = await create(vdisks, 20, 4 * MIB)
                for number in range(4):
                    await write(head, number * MIB, block(number))
                await vdisks.flush(20)
                faulty.faults.failing["apply"] = 100
                await write(head, 0, block(9))
                await head_write.truncate(head, 2 * MIB)
                await vdisks.flush(20)
                await head_write.truncate(head, 3 * MIB)
                await vdisks.flush(20)
                wanted = (block(9).ljust(MIB, b"\0") + block(1)).ljust(3 * MIB, b"\0")
                assert await content(head) == wanted
                if not kill:
                    await close_and_rest(vdisks, 20)
                    faulty.faults.disarm()
                    assert await content(await opened(vdisks, 20)) == wanted
                faulty.faults.disarm()
            async with faulty.node() as vdisks:
                head = await opened(vdisks, 20)
                assert (await content(head), head.own_blocks) == (wanted, 2)
                await sound(vdisks, 20)

        run(main)
        expect_errors(caplog, "the index lags behind")


def test_a_new_group_made_while_a_commit_fails_does_not_hide_the_failure(
    faulty: FaultyRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was pending in the group that failed is moved, though the next group is there already."""
    monkeypatch.setattr(log, "GROUP_BLOCKS", 32)

    async def main() -> None:
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(*range(20)))
            (failed,) = head.log.pending.files
            async with trio.open_nursery() as nursery, faulty.faults.held("create") as creating:
                async with faulty.faults.held("sync") as syncing:
                    begin_nowait(head)
                    await syncing.wait_reached()
                    nursery.start_soon(write, head, 20 * B, blocks(*range(20, 40)))
                    await creating.wait_reached()
                    faulty.faults.failing["sync"] = 1
                while head.commit_done is not None:
                    await trio.lowlevel.checkpoint()
                assert head.log.broken
            assert head.log.broken or failed not in head.log.pending.files
            await flush(head)
            assert not {place >> 16 for place in head.rows[0][:40]} & {failed}
            assert await content(head) == blocks(*range(40)).ljust(MIB, b"\0")
            await sound(vdisks, 20)

    run(main)
