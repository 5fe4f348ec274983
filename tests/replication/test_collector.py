"""Collection: what nobody reads goes, what anybody reads stays, whatever ends the node in between and whatever is lost."""

import pathlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import trio

from metadata.catalog import NEXT_ID_KEY, Change, encode_value
from metadata.errors import Corrupt, NoSpace, Unavailable
from metadata.ids import POSITION_BITS, VdiskId
from replication import collector, compaction, log, log_floor
from replication.cloning import copy_range
from replication.collector import Collector
from replication.commit import flush
from replication.head import Head
from replication.vdisks import Vdisks
from tests.replication.faults import FaultyRig
from tests.replication.rig import (
    B,
    Rig,
    block,
    content,
    create,
    handles_of,
    opened,
    read,
    run,
    sound,
    write,
)

MIB = 1 << 20
GROUP = 64
"""Blocks in a group here."""
BLOCKS = 100
"""Of the vdisk."""


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "GROUP_BLOCKS", GROUP)
    monkeypatch.setattr(log, "STEP_BLOCKS_MIN", 16)
    monkeypatch.setattr(compaction, "GROUP_BLOCKS", 600)  # two moves and a bit
    monkeypatch.setattr(compaction, "MOVE_BLOCKS", 48)
    monkeypatch.setattr(compaction, "REPOINT_VBLOCKS", 1)


async def collect(vdisks: Vdisks, **arguments: Any) -> dict[str, int]:
    return await Collector(vdisks).collect(lambda _: None, **arguments)


async def overwrite(head: Head, rounds: int, *, first: int = 0, count: int = BLOCKS) -> None:
    """Writes the same blocks again and again, with a flush now and then; values are (round, block)."""
    for number in range(rounds):
        for block_no in range(first, first + count):
            await write(head, block_no * B, block(number << 16 | block_no))
            if block_no % 10 == 9:
                await flush(head)
    await flush(head)


def after(rounds: int, *, count: int = BLOCKS) -> bytes:
    return b"".join(block(rounds - 1 << 16 | block_no) for block_no in range(count)).ljust(MIB, b"\0")


async def written_over(vdisks: Vdisks, vdisk: int, rounds: int = 5) -> Head:
    head = await create(vdisks, vdisk, MIB)
    await overwrite(head, rounds)
    return head


class TestSpaceThatNobodyReads:
    def test_groups_that_nothing_names_are_deleted_and_all_else_stays(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await written_over(vdisks, 20)
                before = rig.group_files(20)
                foreseen = await collect(vdisks, dry_run=True)
                assert (rig.group_files(20), foreseen["deleted_groups"]) == (before, 0)
                done = await collect(vdisks)
                left = rig.group_files(20)
                assert done["deleted_groups"] == len(set(before) - set(left)) > 4
                assert done["freed_bytes"] > 4 * GROUP * B
                assert done["garbage_bytes"] == foreseen["garbage_bytes"] >= done["freed_bytes"]
                assert done["live_bytes"] == BLOCKS * B
                assert (done["vdisks"], done["failed"]) == (1, 0)
                assert await content(head) == after(5)
                await sound(vdisks, 20)
                again = await collect(vdisks)
                assert (again["deleted_groups"], rig.group_files(20)) == (0, left)

        run(main)

    @pytest.mark.parametrize("lost", ["nothing", "index", "state"])
    @pytest.mark.parametrize("kill", [False, True], ids=["rested", "killed"])
    def test_every_next_node_finds_the_same(self, rig: Rig, lost: str, kill: bool) -> None:
        async def main() -> None:
            async with rig.node(kill=kill) as vdisks:
                head = await written_over(vdisks, 20)
                assert (await collect(vdisks))["deleted_groups"]
                await overwrite(head, 3)
                assert (await collect(vdisks))["deleted_groups"]
                await write(head, 0, block(7))
                await flush(head)
            {"nothing": lambda: None, "index": rig.lose_index, "state": rig.lose_state}[lost]()
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                assert await content(head) == block(7) + after(3)[B:]
                await sound(vdisks, 20)
                await overwrite(head, 2)
                assert (await collect(vdisks))["deleted_groups"]
                assert await content(head) == after(2)

        run(main)

    def test_the_checksums_of_deleted_groups_go_too(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
                await collect(vdisks)
                space = vdisks.workspace
                assert set(space.index.segment_groups(20)) <= set(space.pool.groups(20))

        run(main)

    def test_a_vdisk_nobody_has_open_is_collected_and_rests_again(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
            async with rig.node() as vdisks:
                assert (await collect(vdisks))["deleted_groups"] > 4
                assert not await vdisks.rest_all()
                assert vdisks.heads == {}
                assert await content(await opened(vdisks, 20)) == after(5)

        run(main)

    def test_another_node_s_vdisk_is_claimed_first(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
            rig.node_name = "there"
            async with rig.node() as vdisks:
                assert (await collect(vdisks))["deleted_groups"] > 4
                head = await opened(vdisks, 20)
                await overwrite(head, 3)
                assert (await collect(vdisks))["deleted_groups"] > 2
                assert await content(head) == after(3)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == after(3)
                await sound(vdisks, 20)

        run(main)

    def test_a_discard_and_a_truncation_give_their_groups_back(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await written_over(vdisks, 20, rounds=1)
                await vdisks.truncate(VdiskId(20), 0)
                await overwrite(head, 1, count=GROUP + 1)
                assert (await collect(vdisks))["deleted_groups"] >= 1
                assert await content(head) == after(1, count=GROUP + 1)[: (GROUP + 1) * B]

        run(main)

    def test_what_cannot_be_moved_at_once_is_moved_in_rounds(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(collector, "MOVE_BYTES_MAX", 1)  # a group at a time

        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await overwrite(head, 1, count=240)
                for first in range(0, 240, 8):
                    await overwrite(head, 1, first=first, count=7)
                done = await collect(vdisks)
                assert done["compacted_groups"] >= 3
                assert done["deleted_groups"] >= 3
                assert await content(head) == after(1, count=240)
                await sound(vdisks, 20)
                assert (await collect(vdisks))["deleted_groups"] == 0

        run(main)


class TestTheOpenGroup:
    @pytest.mark.parametrize("lost", ["nothing", "index", "state"])
    @pytest.mark.parametrize("kill", [False, True], ids=["rested", "killed"])
    def test_a_group_full_of_garbage_is_sealed_and_goes(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, lost: str, kill: bool
    ) -> None:
        monkeypatch.setattr(log, "GROUP_BLOCKS", 1000)
        monkeypatch.setattr(collector, "SEAL_BYTES_MIN", 100 << 10)

        async def main() -> None:
            async with rig.node(kill=kill) as vdisks:
                head = await written_over(vdisks, 20)
                assert len(rig.group_files(20)) == 1
                version = head.log.version
                assert (await collect(vdisks, dry_run=True))["garbage_bytes"] == 0
                assert (await collect(vdisks))["deleted_groups"] == 1
                assert head.log.version == version + 1
                assert sum(path.stat().st_blocks * 512 for path in rig.group_files(20)) < 1.5 * BLOCKS * B
                assert await content(head) == after(5)
                await sound(vdisks, 20)
                assert (await collect(vdisks))["deleted_groups"] == 0
                await write(head, 0, block(7))
                await flush(head)
            {"nothing": lambda: None, "index": rig.lose_index, "state": rig.lose_state}[lost]()
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                assert await content(head) == block(7) + after(5)[B:]
                await sound(vdisks, 20)

        run(main)

    def test_a_vdisk_that_rests_is_sealed_too(self, rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(log, "GROUP_BLOCKS", 1000)
        monkeypatch.setattr(collector, "SEAL_BYTES_MIN", 100 << 10)

        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
            async with rig.node() as vdisks:
                assert (await collect(vdisks))["deleted_groups"] == 1
                head = await opened(vdisks, 20)
                await write(head, 0, block(7))
                assert await content(head) == block(7) + after(5)[B:]
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == block(7) + after(5)[B:]

        run(main)

    def test_writes_that_do_not_find_room_for_the_next_group_can_still_be_flushed(
        self, faulty: FaultyRig
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await flush(head)
                await write(head, 0, block(2))
                faulty.faults.blocks_free = 0
                with pytest.raises(NoSpace):
                    await log_floor.seal(head)
                faulty.faults.disarm()
                await flush(head)
                assert (await content(head))[:B] == block(2)
                await sound(vdisks, 20)

        run(main)


class TestWhatSomebodyReads:
    def test_a_clone_keeps_what_it_reads_and_no_more_and_gives_it_back(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await written_over(vdisks, 20)
                clone = await create(vdisks, 21)
                assert await copy_range(vdisks, head, clone, offset=0, to=0, length=MIB) == MIB
                await overwrite(head, 4)
                wanted = block(0)
                await write(clone, 0, wanted)
                wanted += after(5)[B:]
                freed = (await collect(vdisks))["deleted_groups"]
                assert freed > 6
                assert await content(clone) == wanted
                await vdisks.flush(VdiskId(21))
                await sound(vdisks, 20, 21)
            rig.lose_state()
            async with rig.node() as vdisks:
                head, clone = await opened(vdisks, 20), await opened(vdisks, 21)
                assert await content(clone) == wanted
                for number in handles_of(vdisks, 21):
                    vdisks.close(number)
                kept = len(rig.group_files(20))
                await vdisks.forget(VdiskId(21))
                done = await collect(vdisks)
                assert done["pruned_rows"] > 0
                assert len(rig.group_files(20)) < kept
                assert await content(head) == after(4)
                await sound(vdisks, 20)

        run(main)

    def test_a_deleted_parent_is_collected_for_its_clone(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await written_over(vdisks, 20)
                clone = await create(vdisks, 21)
                await copy_range(vdisks, head, clone, offset=0, to=0, length=MIB)
                for number in handles_of(vdisks, 20):
                    vdisks.close(number)
                await vdisks.forget(VdiskId(20))
                assert (await collect(vdisks))["deleted_groups"] > 4
                assert await content(clone) == after(5)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 21)) == after(5)

        run(main)

    @pytest.mark.parametrize("held", ["before", "behind"])
    def test_a_version_kept_while_rows_are_looked_at_loses_nothing(
        self, faulty: FaultyRig, held: str
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await written_over(vdisks, 20, rounds=2)
                index, begun = vdisks.workspace.index, trio.Event()
                look = index.stored_rows

                def slow_look(*arguments: Any, **named: Any) -> Any:
                    found = look(*arguments, **named)
                    trio.from_thread.run_sync(begun.set, trio_token=token)
                    faulty.faults.meet("look", "")
                    return found if held == "behind" else look(*arguments, **named)

                token = trio.lowlevel.current_trio_token()
                index.stored_rows = slow_look  # type: ignore[method-assign]
                async with trio.open_nursery() as nursery, faulty.faults.held("look"):
                    nursery.start_soon(collect, vdisks)
                    await begun.wait()
                    clone = await create(vdisks, 21)
                    await copy_range(vdisks, head, clone, offset=0, to=0, length=MIB)
                    await overwrite(head, 3)
                    await flush(head)
                await collect(vdisks)
                vdisks.workspace.row_cache.shrink(0)
                assert await content(clone) == after(2)
                assert await content(head) == after(3)

        run(main)

    def test_groups_stay_while_anybody_who_came_before_has_places_in_hand(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
                before, moves, is_done = rig.group_files(20), vdisks.workspace.moves, trio.Event()
                era = moves._era

                async def collect_all() -> None:
                    await collect(vdisks)
                    is_done.set()

                async with trio.open_nursery() as nursery:
                    with moves.hold():
                        nursery.start_soon(collect_all)
                        while moves._era == era and not is_done.is_set():
                            await trio.lowlevel.checkpoint()
                        assert set(before) <= set(rig.group_files(20))
                assert len(rig.group_files(20)) < len(before)

        run(main)

    def test_groups_stay_that_anything_in_memory_names(self, rig: Rig) -> None:
        class Named:
            """A reader whose rows are in memory alone."""

            def __init__(self, group: int) -> None:
                self.places = [group << POSITION_BITS]

            def note_moved(self, vdisk: int, moved: object) -> None: ...
            def note_replaced(self, vdisk: int) -> None: ...
            def places_of(self, vdisk: int) -> Iterator[Sequence[int]]:
                yield self.places

        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
                pool = vdisks.workspace.pool
                named = Named(pool.groups(20)[1])
                vdisks.workspace.moves.readers.add(named)
                await collect(vdisks)
                assert pool.groups(20)[0] == named.places[0] >> POSITION_BITS
                vdisks.workspace.moves.readers.discard(named)
                await collect(vdisks)
                assert named.places[0] >> POSITION_BITS not in pool.groups(20)

        run(main)

    def test_a_read_that_waits_with_places_in_hand_gets_its_bytes(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await written_over(vdisks, 20, rounds=2)
                vdisks.workspace.pool.forget_open(20)
                vdisks.workspace.row_cache.shrink(0)
                vdisks.workspace.segment_cache.shrink(0)
                found: list[bytes] = []

                async def slowly() -> None:
                    found.append(await read(head, 0, GROUP * B))

                async with trio.open_nursery() as nursery, faulty.faults.held("open") as hold:
                    nursery.start_soon(slowly)
                    await hold.wait_reached()
                    nursery.start_soon(collect, vdisks)
                    await trio.testing.wait_all_tasks_blocked()
                assert found == [after(2)[: GROUP * B]]

        run(main)


class TestWhatComesBackFromThePast:
    def test_an_old_state_directory_is_not_gone_on_from(self, rig: Rig, tmp_path: pathlib.Path) -> None:
        """Its index names groups that are gone."""

        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
            shutil.copytree(rig.state_path, tmp_path / "old")
            async with rig.node() as vdisks:
                await collect(vdisks)
            shutil.rmtree(rig.state_path)
            (tmp_path / "old").rename(rig.state_path)
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                assert head.collected == 1
                assert await content(head) == after(5)
                await sound(vdisks, 20)

        run(main)

    def test_without_index_and_checkpoint_it_is_an_error_and_never_other_bytes(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
                await collect(vdisks)
            rig.lose_state()
            for path in pathlib.Path(rig.pool_path).glob("vdisks/*/*/*.checkpoint"):
                path.unlink()
            async with rig.node() as vdisks:
                with pytest.raises(Corrupt, match="checkpoint is missing"):
                    await opened(vdisks, 20)

        run(main)


class TestFailures:
    """Whatever fails, nothing is lost, and the next collection goes on."""

    STEPS = ("flush", "checkpoint", "floor", "second look", "delete", "forget")

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("lost", ["nothing", "index"])
    def test_a_step_that_fails_leaves_all_that_is_read(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch, step: str, lost: str
    ) -> None:
        def fail(*_: Any, **__: Any) -> Any:
            raise Unavailable(f"{step} fails")

        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await written_over(vdisks, 20)
                space = vdisks.workspace
                broken: dict[str, tuple[object, str, Callable[..., Any]]] = {
                    "flush": (space.index, "flush", fail),
                    "checkpoint": (space.pool, "publish_checkpoint", fail),
                    "floor": (log_floor, "set_floor", fail),
                    "second look": (collector, "mark_stored", fail),
                    "delete": (space.pool, "remove_group", fail),
                    "forget": (space.index, "drop_segments", fail),
                }
                with monkeypatch.context() as patch:
                    patch.setattr(*broken[step])
                    assert (await collect(vdisks))["failed"] == 1
                assert await content(head) == after(5)
                await write(head, 0, block(7))
                await flush(head)
            if lost == "index":
                rig.lose_index()
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                assert await content(head) == block(7) + after(5)[B:]
                await sound(vdisks, 20)
                await overwrite(head, 1)
                done = await collect(vdisks)
                assert done["failed"] == 0
                assert await content(head) == after(1)
                space = vdisks.workspace
                assert set(space.index.segment_groups(20)) <= set(space.pool.groups(20))
                assert len(rig.group_files(20)) <= 5
                await sound(vdisks, 20)

        run(main)

    def test_a_vdisk_that_cannot_be_read_does_not_stop_the_others(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
                await written_over(vdisks, 21)
            rig.lose_state()
            for path in rig.group_files(20)[:2]:
                path.unlink()
            async with rig.node() as vdisks:
                done = await collect(vdisks)
                assert (done["failed"], done["vdisks"]) == (1, 2)
                assert len(rig.group_files(20)) > 4
                assert await content(await opened(vdisks, 21)) == after(5)

        run(main)


class TestDeletedVdisks:
    def test_what_a_crash_left_of_a_deleted_vdisk_goes(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
                await written_over(vdisks, 300)
            async with rig.node() as vdisks:
                catalog = vdisks.workspace.catalog
                rows, _ = await catalog.read(b"vdisk/")
                await catalog.transact(
                    Change(puts=((NEXT_ID_KEY, encode_value(100)),), deletes=tuple(row.key for row in rows))
                )
            async with rig.node() as vdisks:
                assert (await collect(vdisks, dry_run=True))["freed_bytes"] == 0
                done = await collect(vdisks)
                assert done["freed_bytes"] > 0
                assert vdisks.workspace.pool.vdisks() == [
                    300
                ]  # of a newer catalog than this one: not ours to judge
                assert vdisks.workspace.index.state(20) is None

        run(main)

    def test_a_vdisk_deleted_while_it_is_collected_is_gone(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await written_over(vdisks, 20)
                for number in handles_of(vdisks, 20):
                    vdisks.close(number)

                async def delete() -> None:
                    await vdisks.forget(VdiskId(20))

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(collect, vdisks)
                    nursery.start_soon(delete)
                await vdisks.workspace.catalog.transact(Change(puts=((NEXT_ID_KEY, encode_value(100)),)))
                await collect(vdisks)
                assert vdisks.workspace.pool.vdisks() == []

        run(main)
