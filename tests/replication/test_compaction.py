"""Compaction under whatever may run beside it: writers, syncs, clones, open snapshots, slow reads, failing disks."""

import pathlib
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from metadata.errors import Corrupt, NoSpace, Unavailable
from metadata.ids import VdiskId, is_compacted
from replication import compaction, head_write, log
from replication.cloning import copy_range
from replication.collector import Collector
from replication.commit import flush
from replication.head import Head
from replication.snapshots import Snapshots
from replication.vdisks import Vdisks
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
    opened,
    read,
    run,
    sound,
    write,
)

MIB = 1 << 20
GROUP = 64
BLOCKS = 400
"""Of the vdisk: two rows."""


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "GROUP_BLOCKS", GROUP)
    monkeypatch.setattr(log, "STEP_BLOCKS_MIN", 16)
    monkeypatch.setattr(compaction, "GROUP_BLOCKS", 600)  # two moves and a bit
    monkeypatch.setattr(compaction, "MOVE_BLOCKS", 16)
    monkeypatch.setattr(compaction, "REPOINT_VBLOCKS", 1)


async def collect(vdisks: Vdisks, **arguments: Any) -> dict[str, int]:
    return await Collector(vdisks).collect(lambda _: None, **arguments)


async def scattered(vdisks: Vdisks, vdisk: int) -> tuple[Head, bytearray]:
    """A vdisk of which most groups hold something that lives, and its content."""
    head = await create(vdisks, vdisk, 2 * MIB)
    for block_no in range(0, BLOCKS, 20):
        await write(head, block_no * B, blocks(*range(block_no, block_no + 20)))
    wanted = bytearray(blocks(*range(BLOCKS)).ljust(2 * MIB, b"\0"))
    for block_no in range(BLOCKS):
        if block_no % 5:
            await write(head, block_no * B, block(1000 + block_no))
            wanted[block_no * B : (block_no + 1) * B] = block(1000 + block_no)
    await flush(head)
    return head, wanted


def compacted_groups(rig: Rig, vdisk: int) -> int:
    return sum("-2" in path.name for path in rig.group_files(vdisk))


class TestMoving:
    def test_groups_with_little_in_them_go_and_what_lived_there_lies_elsewhere(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head, wanted = await scattered(vdisks, 20)
                before = set(rig.group_files(20))
                done = await collect(vdisks)
                assert done["moved_bytes"] >= BLOCKS // 5 * B
                assert done["compacted_groups"] >= 6
                assert len(before & set(rig.group_files(20))) <= len(before) - 6
                assert compacted_groups(rig, 20) > 0
                for _ in range(2):
                    assert await content(head) == wanted
                    vdisks.workspace.row_cache.shrink(0)
                    vdisks.workspace.segment_cache.shrink(0)
                await sound(vdisks, 20)
                again = await collect(vdisks)
                assert (again["moved_bytes"], again["deleted_groups"]) == (0, 0)

        run(main)

    def test_what_is_moved_is_durable_before_the_index_names_it(self, faulty: FaultyRig) -> None:
        unsynced: set[str] = set()
        pointed = list[set[str]]()
        meet: Callable[[str, str], None] = faulty.faults.meet

        def noting(what: str, path: str) -> None:
            if what == "write":
                unsynced.add(path)
            elif what == "sync":
                unsynced.discard(path)
            meet(what, path)

        faulty.faults.meet = noting

        async def main() -> None:
            async with faulty.node() as vdisks:
                await scattered(vdisks, 20)
                index = vdisks.workspace.index
                change_rows = index.change_rows

                def change(vdisk: int, **what: Any) -> None:
                    if what.get("puts"):
                        pointed.append(set(unsynced))
                    change_rows(vdisk, **what)

                index.change_rows = change  # type: ignore[method-assign]
                await collect(vdisks)
                assert pointed
                assert not any(pointed)

        run(main)

    def test_numbers_of_groups_of_compaction_are_never_used_again(self, rig: Rig) -> None:
        seen: set[str] = set()

        async def main() -> None:
            for _ in range(3):
                async with rig.node() as vdisks:
                    vdisk = VdiskId(20)
                    head, _ = await scattered(vdisks, 20) if not seen else (await opened(vdisks, 20), b"")
                    await collect(vdisks)
                    fresh = {path.name for path in rig.group_files(20) if "-2" in path.name}
                    assert fresh
                    assert not fresh & seen
                    seen.update(fresh)
                    for _ in range(2):  # all of it dies, and goes
                        await write(head, 0, blocks(*range(BLOCKS)))
                        await flush(head)
                    await collect(vdisks)
                    assert not fresh & {path.name for path in rig.group_files(20)}
                    for block_no in range(0, BLOCKS, 2):
                        await write(head, block_no * B, block(7))
                    await flush(head)
                    assert await vdisks.stat(vdisk)

        run(main)

    @pytest.mark.parametrize("lost", ["nothing", "index", "state"])
    def test_a_node_that_is_killed_right_behind_finds_all(self, rig: Rig, lost: str) -> None:
        contents: list[bytearray] = []

        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head, wanted = await scattered(vdisks, 20)
                contents.append(wanted)
                await collect(vdisks)
                await write(head, 0, block(9))
                wanted[:B] = block(9)
                await flush(head)
            {"nothing": lambda: None, "index": rig.lose_index, "state": rig.lose_state}[lost]()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == contents[0]
                await sound(vdisks, 20)

        run(main)

    def test_written_over_ten_times_a_vdisk_stays_below_one_and_a_half_of_what_lives(self, rig: Rig) -> None:
        async def main() -> None:
            chance = random.Random(4)
            async with rig.node() as vdisks:
                head, wanted = await scattered(vdisks, 20)
                for step in range(10 * BLOCKS):
                    block_no = chance.randrange(BLOCKS)
                    await write(head, block_no * B, block(step))
                    wanted[block_no * B : (block_no + 1) * B] = block(step)
                    if step % 50 == 49:
                        await flush(head)
                        await collect(vdisks)
                        occupied = sum(path.stat().st_blocks * 512 for path in rig.group_files(20))
                        assert occupied < 1.5 * BLOCKS * B + GROUP * B
                assert await content(head) == wanted
                await sound(vdisks, 20)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == wanted

        run(main)


class TestBesideOthers:
    @pytest.mark.parametrize("place", ["sync", "change"])
    def test_a_block_overwritten_while_it_is_moved_stays_as_it_was_written(
        self, faulty: FaultyRig, place: str
    ) -> None:
        async def main() -> None:
            async with faulty.node(kill=True) as vdisks:
                head, wanted = await scattered(vdisks, 20)
                for block_no in range(0, BLOCKS, 3):  # room for what comes, rows in memory
                    await read(head, block_no * B, B)
                hold_changes(vdisks, faulty)
                async with trio.open_nursery() as nursery:
                    async with faulty.faults.held(place) as hold:
                        nursery.start_soon(collect, vdisks)
                        await hold.wait_reached()
                        for block_no in range(0, BLOCKS, 3):
                            if head.write_nowait(block_no * B, memoryview(block(5000 + block_no))):
                                wanted[block_no * B : (block_no + 1) * B] = block(5000 + block_no)
                    assert wanted.count(block(5000)[:16])
                assert await content(head) == wanted
                await flush(head)
            async with faulty.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == wanted
                await sound(vdisks, 20)

        run(main)

    def test_a_row_looked_up_before_the_move_and_taken_after_it_is_not_believed(
        self, faulty: FaultyRig
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head, wanted = await scattered(vdisks, 20)
                await flush(head)
                vdisks.workspace.row_cache.shrink(0)
                head.rows.clear()
                fetch, found = head.fetch_row, []

                def slow_fetch(vblock: int) -> Any:
                    row = fetch(vblock)
                    faulty.faults.meet("fetch", "")
                    return row

                head.fetch_row = slow_fetch  # type: ignore[method-assign]
                head._index_row_nowait = lambda _: None  # type: ignore[method-assign]

                async def slowly() -> None:
                    found.append(await read(head, 0, 300 * B))

                async with trio.open_nursery() as nursery, faulty.faults.held("fetch") as hold:
                    nursery.start_soon(slowly)
                    await hold.wait_reached()
                    nursery.start_soon(collect, vdisks)
                    while not compacted_groups(faulty, 20) or not vdisks.workspace.moves.serial:
                        await trio.lowlevel.checkpoint()
                assert found == [wanted[: 300 * B]]
                assert await content(head) == wanted

        run(main)

    def test_a_guest_that_syncs_behind_each_write_goes_on(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head, wanted = await scattered(vdisks, 20)
                ended = trio.Event()

                async def guest() -> None:
                    chance = random.Random(1)
                    while not ended.is_set():
                        block_no, value = chance.randrange(BLOCKS), chance.randrange(1 << 30)
                        await write(head, block_no * B, block(value))
                        wanted[block_no * B : (block_no + 1) * B] = block(value)
                        await flush(head)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(guest)
                    for _ in range(5):
                        assert (await collect(vdisks))["failed"] == 0
                    ended.set()
                assert await content(head) == wanted
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == wanted
                await sound(vdisks, 20)

        run(main)

    def test_clones_and_open_snapshots_that_have_places_in_memory_read_on(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head, wanted = await scattered(vdisks, 20)
                snapshots = Snapshots(vdisks)
                await snapshots.create([(VdiskId(20), "s", 50)])
                view = await vdisks.reader_of(await vdisks.open_version(50))
                clone, grandchild = await create(vdisks, 21), await create(vdisks, 22)
                await copy_range(vdisks, head, clone, offset=0, to=0, length=2 * MIB)
                await write(clone, 0, block(1))
                await copy_range(vdisks, clone, grandchild, offset=0, to=0, length=2 * MIB)
                old = bytes(wanted)
                readers: list[tuple[Any, bytes]] = [
                    (view, old), (clone, block(1) + old[B:]), (grandchild, block(1) + old[B:])
                ]  # fmt: skip
                for reader, expected in readers:
                    assert await content(reader) == expected
                for block_no in range(0, BLOCKS, 2):
                    await write(head, block_no * B, block(3000 + block_no))
                    wanted[block_no * B : (block_no + 1) * B] = block(3000 + block_no)
                await flush(head)
                assert (await collect(vdisks))["moved_bytes"] > 0
                for reader, expected in [*readers, (head, bytes(wanted))]:
                    assert await content(reader) == expected
                vdisks.workspace.row_cache.shrink(0)
                for reader, expected in [*readers, (head, bytes(wanted))]:
                    assert await content(reader) == expected
                await sound(vdisks, 20, 21, 22)
            rig.lose_state()
            async with rig.node() as vdisks:
                view = await vdisks.reader_of(await vdisks.open_version(50))
                assert await content(view) == old  # type: ignore[arg-type]
                assert await content(await opened(vdisks, 20)) == wanted
                assert await content(await opened(vdisks, 22)) == block(1) + old[B:]
                before = len(rig.group_files(20))
                for vdisk in (22, 21):
                    for number in [n for n, h in vdisks.handles.items() if h.vdisk in (vdisk, 50)]:
                        vdisks.close(number)
                    await vdisks.forget(VdiskId(vdisk))
                await Snapshots(vdisks).remove(VdiskId(20), "s")
                assert (await collect(vdisks))["pruned_rows"] > 0
                assert len(rig.group_files(20)) < before

        run(main)

    def test_what_a_rollback_hides_goes_and_what_it_brought_back_stays(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head, wanted = await scattered(vdisks, 20)
                snapshots = Snapshots(vdisks)
                await snapshots.create([(VdiskId(20), "s", 50)])
                for block_no in range(BLOCKS):
                    await write(head, block_no * B, block(3000 + block_no))
                await flush(head)
                for number in list(vdisks.handles):
                    vdisks.close(number)
                await snapshots.rollback(VdiskId(20), "s", keep_as=("before", 51))
                head = await opened(vdisks, 20)
                assert await content(head) == wanted
                await collect(vdisks)
                assert await content(head) == wanted
                view = await vdisks.reader_of(await vdisks.open_version(51))
                assert await content(view) == blocks(*range(3000, 3000 + BLOCKS)).ljust(2 * MIB, b"\0")  # type: ignore[arg-type]
                for number in list(vdisks.handles):
                    vdisks.close(number)
                await snapshots.remove(VdiskId(20), "before")
                await snapshots.remove(VdiskId(20), "s")
                assert (await collect(vdisks))["pruned_rows"] > 0
                head = await opened(vdisks, 20)
                assert await content(head) == wanted
                await sound(vdisks, 20)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == wanted

        run(main)

    def test_a_truncation_not_yet_in_the_index_hides_what_was_moved(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head, wanted = await scattered(vdisks, 20)
                move, cut = compaction.Compaction._repoint, []

                async def cut_first(self: Any, *arguments: Any) -> None:
                    if not cut:
                        cut.append(True)
                        await head_write.truncate(head, MIB)
                        await head_write.truncate(head, 2 * MIB)
                    await move(self, *arguments)

                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(compaction.Compaction, "_repoint", cut_first)
                    await collect(vdisks)
                wanted[MIB:] = bytes(MIB)
                assert await content(head) == wanted
                await flush(head)
                assert await content(head) == wanted
                await sound(vdisks, 20)

        run(main)


def hold_changes(vdisks: Vdisks, faulty: FaultyRig) -> None:
    """The index's batches of compaction meet the faults."""
    index = vdisks.workspace.index
    change = index.change_rows

    def change_rows(*arguments: Any, **named: Any) -> None:
        faulty.faults.meet("change", "")
        change(*arguments, **named)

    index.change_rows = change_rows  # type: ignore[method-assign]


class TestFailures:
    STEPS = ("create", "write", "sync", "change", "changed, but an error all the same", "full")

    @pytest.mark.parametrize("step", STEPS)
    @pytest.mark.parametrize("after", [0, 1], ids=["at once", "after one"])
    @pytest.mark.parametrize("lost", ["nothing", "index"])
    def test_a_step_that_fails_loses_nothing(
        self, faulty: FaultyRig, step: str, after: int, lost: str
    ) -> None:
        contents: list[bytearray] = []

        async def main() -> None:
            async with faulty.node(kill=True) as vdisks:
                head, wanted = await scattered(vdisks, 20)
                contents.append(wanted)
                with pytest.MonkeyPatch.context() as patch:
                    break_step(patch, vdisks, step=step, after=after)
                    done = await collect(vdisks)
                    assert done["failed"] == (step != "full")
                assert await content(head) == wanted
                vdisks.workspace.row_cache.shrink(0)
                assert await content(head) == wanted
                await write(head, 0, block(9))
                wanted[:B] = block(9)
                await flush(head)
            if lost == "index":
                faulty.lose_index()
            async with faulty.node() as vdisks:
                head = await opened(vdisks, 20)
                assert await content(head) == contents[0]
                await sound(vdisks, 20)
                assert (await collect(vdisks))["failed"] == 0
                assert await content(head) == contents[0]
                await sound(vdisks, 20)
                occupied = sum(path.stat().st_blocks * 512 for path in faulty.group_files(20))
                assert occupied < 1.5 * BLOCKS * B + GROUP * B

        run(main)

    def test_a_block_that_does_not_verify_stays_where_it_is(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head, wanted = await scattered(vdisks, 20)
                place = head.rows[0][5]
                with open(vdisks.workspace.pool.group_path(20, place >> 16), "r+b") as file:
                    file.seek((place & 0xFFFF) * B + 17)
                    file.write(b"damage")
                assert (await collect(vdisks))["moved_bytes"] > 0
                assert not is_compacted(head.rows[0][5] >> 16)
                with pytest.raises(Corrupt):
                    await read(head, 5 * B, B)
                assert await read(head, 6 * B, 300 * B) == wanted[6 * B : 306 * B]

        run(main)
        expect_errors(caplog, "blocks that cannot be read stay")

    def test_a_group_of_which_something_stays_is_there_also_when_nobody_has_its_rows_in_memory(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head, _ = await scattered(vdisks, 20)
                place = head.rows[0][5]
                await close_and_rest(vdisks, 20)
                path = vdisks.workspace.pool.group_path(20, place >> 16)
                with open(path, "r+b") as file:
                    file.seek((place & 0xFFFF) * B + 17)
                    file.write(b"damage")
                assert (await collect(vdisks))["moved_bytes"] > 0
                assert pathlib.Path(path).exists()
                with pytest.raises(Corrupt, match="fails its checksum"):
                    await read(await opened(vdisks, 20), 5 * B, B)

        run(main)
        expect_errors(caplog, "blocks that cannot be read stay")

    def test_a_group_that_is_missing_stops_nothing_and_is_still_told(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head, _ = await scattered(vdisks, 20)
                place = head.rows[0][5]
                vdisks.workspace.pool.forget_open(20)
                pathlib.Path(vdisks.workspace.pool.group_path(20, place >> 16)).unlink()
                await collect(vdisks)
                vdisks.workspace.segment_cache.shrink(0)
                with pytest.raises(Exception, match="missing from the pool"):
                    await read(head, 5 * B, B)

        run(main)
        expect_errors(caplog, "blocks that cannot be read stay")


def break_step(patch: pytest.MonkeyPatch, vdisks: Vdisks, *, step: str, after: int) -> None:
    """Makes one step of compaction fail, once, after it has worked some times."""
    index, pool = vdisks.workspace.index, vdisks.workspace.pool
    left = [after]

    def failing(call: Callable[..., Any], *, late: bool = False) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                if late:
                    call(*arguments, **named)
                raise Unavailable(f"{step} fails")
            return call(*arguments, **named)

        return wrapper

    if step == "create":
        patch.setattr(pool, "create_group", failing(pool.create_group))
    elif step in ("write", "sync", "full"):
        make = pool.create_group

        def create_group(vdisk: int, group: int) -> Any:
            file = make(vdisk, group)
            name = "sync" if step == "sync" else "write"
            call = getattr(file, name)

            def limited(*arguments: Any) -> Any:
                left[0] -= 1
                if left[0] < 0 and is_compacted(group):
                    raise (NoSpace if step == "full" else Unavailable)(f"{step} fails")
                return call(*arguments)

            object.__setattr__(file, name, limited)
            return file

        patch.setattr(pool, "create_group", create_group)
    else:
        patch.setattr(index, "change_rows", failing(index.change_rows, late=step != "change"))
