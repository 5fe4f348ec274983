"""Vdisks loaded, used, resting and deleted, by handles that outlive daemons, at the same time."""

import os

import pytest
import trio
import trio.testing

from metadata.catalog import Change, decode_value, vdisk_key
from metadata.errors import Corrupt, IndexDamaged, NotFound, Unavailable
from metadata.ids import VdiskId
from replication import head_write
from replication.housekeeping import PENDING_TICKS_MAX, REST_AFTER_TICKS
from replication.ownership import read_facts
from replication.vdisks import HANDLE_SHIFT, TICK_S, Vdisks
from tests.replication.faults import FaultyRig
from tests.replication.rig import (
    B,
    Rig,
    block,
    blocks,
    close_and_rest,
    content,
    create,
    expect_errors,
    handles_of,
    open_descriptors,
    opened,
    read,
    run,
    sound,
    write,
)

MIB = 1 << 20
ID = VdiskId(20)


class TestHandles:
    def test_a_handle_carries_its_vdisk_and_means_the_same_to_the_next_daemon(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                await write(await create(vdisks, 20, MIB), 0, block(1))
                (number,) = handles_of(vdisks, 20)
                assert number & (1 << HANDLE_SHIFT) - 1 == 20
                assert number < 1 << 64
            async with rig.node() as vdisks:
                heads = []

                async def use() -> None:
                    heads.append(await vdisks.head_of(number))

                async with trio.open_nursery() as nursery:
                    for _ in range(5):
                        nursery.start_soon(use)
                assert {id(head) for head in heads} == {id(vdisks.heads[20])}
                assert vdisks.handle_count(20) == 1
                assert await read(heads[0], 0, B) == block(1)
                await vdisks.flush_handle(number)
                vdisks.close(number)
                assert not vdisks.has_handles(ID)

        run(main)

    def test_each_open_is_counted_and_a_close_of_nothing_is_nothing(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await create(vdisks, 20, MIB)
                await opened(vdisks, 20)
                assert vdisks.handle_count(20) == 2
                for number in handles_of(vdisks, 20):
                    vdisks.close(number)
                    vdisks.close(number)
                assert (vdisks.handle_count(20), vdisks.heads_by_handle) == (0, {})

        run(main)

    def test_an_open_that_fails_leaves_no_handle(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                await write(await create(vdisks, 20, MIB), 0, block(1))
            faulty.lose_state()
            async with faulty.node() as vdisks:
                faulty.faults.failing["open"] = 1
                with pytest.raises(Unavailable):
                    await vdisks.open(ID)
                assert (vdisks.has_handles(ID), vdisks.handles) == (False, {})
                assert await read(await opened(vdisks, 20), 0, B) == block(1)

        run(main)

    def test_many_opens_at_once_load_one_head(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                await write(await create(vdisks, 20, MIB), 0, block(1))
            async with rig.node() as vdisks:
                async with trio.open_nursery() as nursery:
                    for _ in range(20):
                        nursery.start_soon(vdisks.open, ID)
                assert len({id(head) for head in vdisks.heads_by_handle.values()}) == 1

        run(main)


class TestStat:
    def test_a_vdisk_nobody_wrote_is_empty_and_one_at_rest_is_known_without_loading(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await create(vdisks, 21)
                head = await create(vdisks, 20, MIB)
                await write(head, 0, blocks(1, 2))
                await vdisks.flush(ID)
                stat = vdisks.stat_nowait(ID)
            async with rig.node() as vdisks:
                assert vdisks.stat_nowait(ID) == stat == await vdisks.stat(ID)
                assert stat is not None
                assert (stat.size, stat.allocated_bytes, stat.version) == (MIB, 2 * B, 1)
                empty = vdisks.stat_nowait(VdiskId(21))
                assert empty is not None
                assert (empty.size, empty.allocated_bytes, empty.mtime_ns) == (0, 0, 0)
                assert vdisks.heads == {}

        run(main)

    def test_one_that_was_not_put_to_rest_is_loaded_to_be_known(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 5 * MIB, block(1))
                await vdisks.flush(ID)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert vdisks.stat_nowait(ID) is None
                assert (await vdisks.stat(ID)).size == 5 * MIB + B

        run(main)


class TestResting:
    def test_a_vdisk_at_rest_holds_no_space_memory_or_descriptors(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                before = open_descriptors()
                for turn in range(5):
                    head = await (opened(vdisks, 20) if turn else create(vdisks, 20, 64 * MIB))
                    for number in range(50):
                        await write(head, number * MIB, block(number))
                        await write(head, number * MIB + 7, b"part")
                    await close_and_rest(vdisks, 20)
                    assert (vdisks.heads, open_descriptors()) == ({}, before)
                    (group,) = rig.group_files(20)
                    assert group.stat().st_blocks * 512 <= os.stat(group).st_size + 64 * 1024
                    facts = await read_facts(vdisks.workspace.catalog, 20)
                    assert facts.resting is not None
                    assert facts.resting.record_end * B == os.stat(group).st_size

        run(main)

    def test_a_running_vdisk_has_no_summary(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await write(await create(vdisks, 20, MIB), 0, block(1))
                await close_and_rest(vdisks, 20)
                head = await opened(vdisks, 20)
                await read(head, 0, B)
                assert (await read_facts(vdisks.workspace.catalog, 20)).resting is not None
                await write(head, 0, block(2))
                assert (await read_facts(vdisks.workspace.catalog, 20)).resting is None

        run(main)

    def test_one_that_was_claimed_but_could_not_be_written_rests_too(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                await write(await create(vdisks, 20, MIB), 0, block(1))
                await close_and_rest(vdisks, 20)
                head = await opened(vdisks, 20)
                faulty.faults.failing["preallocate"] = 1
                with pytest.raises(Unavailable):
                    await write(head, 0, block(2))
                await close_and_rest(vdisks, 20)
                facts = await read_facts(vdisks.workspace.catalog, 20)
                assert facts.resting is not None
                assert (facts.resting.version, vdisks.heads) == (1, {})
                head = await opened(vdisks, 20)
                await write(head, B, block(2))
                await sound(vdisks, 20)

        run(main)

    def test_a_write_that_comes_while_the_group_is_cut_is_not_cut_off(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await vdisks.flush(ID)
                (number,) = handles_of(vdisks, 20)
                vdisks.close(number)
                async with trio.open_nursery() as nursery, faulty.faults.held("trim") as hold:
                    nursery.start_soon(vdisks.put_to_rest, head)
                    await hold.wait_reached()
                    again = await opened(vdisks, 20)
                    nursery.start_soon(write, again, B, block(2))
                    await trio.testing.wait_all_tasks_blocked()
                assert (await content(await opened(vdisks, 20)))[: 2 * B] == blocks(1, 2)
                await sound(vdisks, 20)

        run(main)

    @pytest.mark.parametrize("what", ["trim", "sync", "apply"])
    def test_a_resize_without_a_handle_beside_a_rest_finds_the_head_it_began_with(
        self, faulty: FaultyRig, what: str
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, 4 * MIB)
                await write(head, 0, block(1))
                await write(head, 3 * MIB, block(2))
                (number,) = handles_of(vdisks, 20)
                vdisks.close(number)
                async with trio.open_nursery() as nursery, faulty.faults.held(what) as hold:
                    nursery.start_soon(vdisks.put_to_rest, head)
                    await hold.wait_reached()
                    nursery.start_soon(vdisks.truncate, ID, 2 * MIB + 5)
                    await trio.testing.wait_all_tasks_blocked()
                head = await opened(vdisks, 20)
                assert (head.size, head.own_blocks) == (2 * MIB + 5, 1)
                await sound(vdisks, 20)

        run(main)

    def test_the_end_of_a_node_puts_all_to_rest_and_says_what_it_could_not(
        self, faulty: FaultyRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                for vdisk in range(20, 40):
                    await write(await create(vdisks, vdisk, MIB), 0, block(vdisk))
                faulty.faults.failing["sync"] = 1
            async with faulty.node() as vdisks:
                for vdisk in range(20, 40):
                    assert await read(await opened(vdisks, vdisk), 0, B) == block(vdisk)

        run(main)
        expect_errors(caplog, "could not be put to rest")


async def let_pass(seconds: float) -> None:
    """On a clock that jumps."""
    with trio.move_on_after(seconds):
        await trio.sleep_forever()


def test_housekeeping_commits_what_waits_and_rests_what_nobody_uses(rig: Rig) -> None:
    clock = trio.testing.MockClock(autojump_threshold=0)

    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, block(1))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(vdisks.run)
                await let_pass(PENDING_TICKS_MAX * TICK_S * 0.9)
                assert head.is_dirty
                await let_pass(PENDING_TICKS_MAX * TICK_S)
                while head.is_dirty:  # the threads' time is real
                    await trio.lowlevel.checkpoint()
                assert vdisks.heads == {20: head}
                (number,) = handles_of(vdisks, 20)
                vdisks.close(number)
                await let_pass(REST_AFTER_TICKS * TICK_S * 0.9)
                assert vdisks.heads == {20: head}
                await let_pass(REST_AFTER_TICKS * TICK_S)
                while vdisks.heads:
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    run(main, clock=clock)


class TestDeleting:
    def test_a_deleted_vdisk_leaves_nothing_anywhere(self, rig: Rig) -> None:
        rig.sqlite = True

        async def main() -> None:
            async with rig.node() as vdisks:
                for vdisk in (20, 21):
                    head = await create(vdisks, vdisk, MIB)
                    await write(head, 0, blocks(*range(100)))
                    await vdisks.flush(VdiskId(vdisk))
                    await write(head, 0, block(5))
                for number in handles_of(vdisks, 20):
                    vdisks.close(number)
                before = open_descriptors()
                await vdisks.forget(ID)
                assert open_descriptors() == before - 1
                space = vdisks.workspace
                assert (rig.group_files(20), space.pool.vdisks()) == ([], [21])
                assert (space.index.state(20), list(space.index.rows_at(20, 1 << 60))) == (None, [])
                assert [row.key for row in (await space.catalog.read(b"vdisk/"))[0]] == [vdisk_key(21)]
                assert len((await space.catalog.read(b"owner/"))[0]) == 1
                await sound(vdisks, 21)
            async with rig.node() as vdisks:
                assert (await content(await opened(vdisks, 21)))[:B] == block(5)

        run(main)

    def test_a_vdisk_is_deleted_during_a_commit_of_it(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                for number in handles_of(vdisks, 20):
                    vdisks.close(number)
                async with trio.open_nursery() as nursery, faulty.faults.held("sync") as hold:
                    nursery.start_soon(vdisks.flush, ID)
                    await hold.wait_reached()
                    nursery.start_soon(vdisks.forget, ID)
                    await trio.testing.wait_all_tasks_blocked()
                assert (faulty.group_files(20), vdisks.workspace.index.state(20)) == ([], None)
                assert vdisks.workspace.journal.room() > 0

        run(main)

    def test_its_journal_entries_bother_nobody(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                other = await create(vdisks, 21, MIB)
                await write(other, 0, block(2))
                for number in handles_of(vdisks, 20):
                    vdisks.close(number)
                await vdisks.forget(ID)
            async with rig.node() as vdisks:
                assert await read(await opened(vdisks, 21), 0, B) == block(2)

        run(main)


class TestDamage:
    def test_a_damaged_index_is_told_to_whoever_can_start_over(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await vdisks.flush(ID)
                vdisks.workspace.index.flush()
            (table,) = rig.index_path.glob("*.sst")
            data = bytearray(table.read_bytes())
            data[: len(data) // 2] = os.urandom(len(data) // 2)
            table.write_bytes(data)
            with pytest.raises((IndexDamaged, ExceptionGroup)):
                async with rig.node(kill=True) as vdisks:
                    await vdisks.open(ID)
            rig.lose_index()
            async with rig.node() as vdisks:
                assert await read(await opened(vdisks, 20), 0, B) == block(1)
                await sound(vdisks, 20)

        run(main)

    def test_a_catalog_row_that_cannot_be_read_stops_the_start(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await create(vdisks, 20, MIB)
                catalog = vdisks.workspace.catalog
                rows, _ = await catalog.read(vdisk_key(20))
                assert isinstance(decode_value(rows[0].key, rows[0].value), dict)
                await catalog.transact(Change(puts=((vdisk_key(20), b"\xc1"),)))
            with pytest.raises(Corrupt):
                async with rig.node(kill=True):
                    pass

        with pytest.MonkeyPatch.context() as quiet:
            quiet.setattr("replication.vdisks.log.error", lambda *_: None)
            run(main)


def test_no_vdisk_no_handle(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await opened(vdisks, 99)
            assert (head.size, await read(head, 0, B)) == (0, b"")
            with pytest.raises(NotFound):
                await head_write.write(head, 0, block(1))
            assert isinstance(vdisks, Vdisks)

    run(main)
