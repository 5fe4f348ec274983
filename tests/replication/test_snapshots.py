"""Snapshots: one moment under running writers, read as they were for ever, gone when nobody needs them."""

import os

import pytest
import trio

from metadata.errors import Busy, Exists, InvalidRequest, NotFound, Unavailable
from metadata.ids import VdiskId
from replication import head_read, head_write
from replication.cloning import copy_range
from replication.snapshots import Snapshots
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
from tests.replication.snapshotting import MIB, clone, delete, snap, view_content


class TestCreating:
    def test_a_snapshot_is_what_the_vdisk_was_whatever_is_written_then(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 3 * MIB + 100)
                await write(head, 0, blocks(*range(300)))
                one = await content(head)
                first = await snap(vdisks, 20, "one", 100)
                assert (first.version, first.size, first.own_blocks) == (1, 3 * MIB + 100, 300)
                await write(head, 5 * B, blocks(*range(1000, 1300)))
                await head_write.punch(head, 100 * B, 50 * B)
                two = await content(head)
                second = await snap(vdisks, 20, "two", 101)
                await head_write.truncate(head, MIB + 5)
                await head_write.truncate(head, 4 * MIB)
                await write(head, 7, b"x" * 10)
                three = await content(head)
                assert await view_content(vdisks, 100) == one
                assert await view_content(vdisks, 101) == two
                await sound(vdisks, 20)
            for lose in (lambda: None, rig.lose_index, rig.lose_state):
                lose()
                async with rig.node() as vdisks:
                    assert await view_content(vdisks, 100) == one
                    assert await content(await opened(vdisks, 20)) == three
                    assert await view_content(vdisks, 101) == two
                    assert [s.name for s in Snapshots(vdisks).list(20)] == ["one", "two"]
                    assert Snapshots(vdisks).by_id(101) == second
                    await sound(vdisks, 20)

        run(main)

    def test_one_of_a_vdisk_at_rest_commits_nothing(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await close_and_rest(vdisks, 20)
                before = sum(path.stat().st_size for path in rig.group_files(20))
                made = [await snap(vdisks, 20, name, 100 + n) for n, name in enumerate("abc")]
                assert {snapshot.version for snapshot in made} == {1}
                assert sum(path.stat().st_size for path in rig.group_files(20)) == before
                assert await view_content(vdisks, 102) == block(1) + bytes(MIB - B)

        run(main)

    def test_one_of_a_vdisk_that_was_never_written_is_empty(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20)
                assert (await snap(vdisks, 20, "empty", 100)).version == 0
                await write(head, 0, block(5))
                await snap(vdisks, 20, "full", 101)
                assert await view_content(vdisks, 100) == b""
                assert await view_content(vdisks, 101) == block(5)
                await sound(vdisks, 20)

        run(main)

    def test_a_group_is_one_moment_of_all_its_members_under_running_writers(self, rig: Rig) -> None:
        """A writer writes each number to the first vdisk, then to the second: no snapshot has the second ahead."""

        async def main() -> None:
            async with rig.node() as vdisks:
                heads = [await create(vdisks, vdisk, MIB) for vdisk in (20, 21, 22)]
                for head in heads:
                    await write(head, 0, block(0))
                stop = False

                async def count() -> None:
                    number = 0
                    while not stop:
                        number += 1
                        for head in heads:
                            await write(head, 0, block(number))
                            await trio.lowlevel.checkpoint()

                async def sync(vdisk: int) -> None:
                    while not stop:
                        await vdisks.flush(VdiskId(vdisk))
                        await trio.lowlevel.checkpoint()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(count)
                    for vdisk in (20, 21, 22):
                        nursery.start_soon(sync, vdisk)
                    for turn in range(12):
                        targets = [(VdiskId(20 + n), f"s{turn}", 100 + 3 * turn + n) for n in range(3)]
                        await Snapshots(vdisks).create(targets)
                    stop = True
                for turn in range(12):
                    found = [await view_content(vdisks, 100 + 3 * turn + n) for n in range(3)]
                    numbers = [
                        max(0, int.from_bytes(data[:8], "little") - 1) for data in found
                    ]  # block(n) begins with n + 1
                    assert numbers == sorted(numbers, reverse=True)
                    assert numbers[0] - numbers[-1] <= 1
                await sound(vdisks, 20, 21, 22)

        run(main)

    @pytest.mark.parametrize("name", ["", "a/b", "a@b", "a\nb"])
    def test_a_name_that_cannot_be_is_refused(self, rig: Rig, name: str) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await create(vdisks, 20, MIB)
                with pytest.raises(InvalidRequest):
                    await snap(vdisks, 20, name, 100)
                await snap(vdisks, 20, "good", 100)
                with pytest.raises(InvalidRequest):
                    await Snapshots(vdisks).rename(20, "good", name)

        run(main)

    def test_a_name_that_is_taken_is_refused_and_a_group_is_all_or_nothing(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await create(vdisks, 20, MIB)
                await create(vdisks, 21, MIB)
                await snap(vdisks, 20, "a", 100)
                with pytest.raises(Exists):
                    await Snapshots(vdisks).create([(VdiskId(21), "a", 101), (VdiskId(20), "a", 102)])
                assert Snapshots(vdisks).list(21) == []
                with pytest.raises(NotFound):
                    await snap(vdisks, 99, "a", 103)
                async with trio.open_nursery() as nursery:  # two at once: one of them gets it
                    results: list[object] = []

                    async def one(number: int) -> None:
                        try:
                            results.append(await snap(vdisks, 20, "b", number))
                        except Exists:
                            results.append(None)

                    nursery.start_soon(one, 104)
                    nursery.start_soon(one, 105)
                assert results.count(None) == 1
                assert vdisks.family.pin_count(20) == 0

        run(main)

    def test_one_that_cannot_be_made_durable_is_not_there(
        self, faulty: FaultyRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, blocks(1, 2))
                faulty.faults.failing["sync"] = 50
                with pytest.raises(Unavailable):
                    await snap(vdisks, 20, "a", 100)
                faulty.faults.disarm()
                assert (Snapshots(vdisks).list(20), vdisks.kept_versions(20)) == ([], ())
                await write(head, B, block(3))
                for what in ("sync", "apply", "write"):
                    faulty.faults.failing[what] = 1
                    await snap(vdisks, 20, what, 101 + len(what))
                    await write(head, 2 * B, block(len(what)))
                wanted = blocks(1, 3) + bytes(MIB - 2 * B)
                assert await view_content(vdisks, 105) == wanted
                await sound(vdisks, 20)
            async with faulty.node() as vdisks:
                assert await view_content(vdisks, 105) == wanted
                await sound(vdisks, 20)

        run(main)
        expect_errors(caplog, "the index lags behind")


class TestChanging:
    def test_names_change_and_protection_keeps_from_removal(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await snap(vdisks, 20, "a", 100)
                await snap(vdisks, 20, "b", 101)
                snapshots = Snapshots(vdisks)
                with pytest.raises(Exists):
                    await snapshots.rename(20, "a", "b")
                assert (await snapshots.rename(20, "a", "a")).name == "a"
                assert (await snapshots.rename(20, "a", "c")).id == 100
                await snapshots.protect(20, "c", True)
                with pytest.raises(Busy, match="unprotect"):
                    await snapshots.remove(20, "c")
                with pytest.raises(NotFound):
                    await snapshots.remove(20, "a")
            async with rig.node() as vdisks:
                snapshots = Snapshots(vdisks)
                assert [(s.name, s.id, s.protected) for s in snapshots.list(20)] == [
                    ("c", 100, True),
                    ("b", 101, False),
                ]
                assert await view_content(vdisks, 100) == block(1) + bytes(MIB - B)
                await snapshots.protect(20, "c", False)
                await snapshots.remove(20, "c")
                await snapshots.remove(20, "b")
                assert (vdisks.kept_versions(20), list(snapshots.all())) == ((), [])

        run(main)

    def test_an_open_snapshot_that_is_removed_is_read_to_the_end(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, blocks(*range(10)))
                await snap(vdisks, 20, "a", 100)
                handle = await vdisks.open_version(100)
                assert vdisks.handle_count(100) == 1
                await Snapshots(vdisks).remove(20, "a")
                await write(head, 0, blocks(*range(50, 60)))
                await vdisks.flush(VdiskId(20))
                assert vdisks.kept_versions(20) == (1,)
                view = await vdisks.reader_of(handle)
                assert await head_read.read(view, 0, 10 * B) == blocks(*range(10))
                vdisks.close(handle)
                assert (vdisks.kept_versions(20), vdisks.handle_count(100)) == ((), 0)
                with pytest.raises(NotFound):
                    await vdisks.open_version(100)

        run(main)

    def test_a_handle_that_a_dead_daemon_gave_out_reads_on(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await snap(vdisks, 20, "a", 100)
                await write(head, 0, block(2))
                handle = await vdisks.open_version(100)
            async with rig.node() as vdisks:
                view = await vdisks.reader_of(handle)
                assert await head_read.read(view, 0, B) == block(1)
                assert await read(await opened(vdisks, 20), 0, B) == block(2)
                with pytest.raises(InvalidRequest) as caught:
                    await vdisks.head_of(handle)
                assert caught.value.number == 9
                await vdisks.flush_handle(handle)
                assert not vdisks.has_writer(VdiskId(100))
                vdisks.close(handle)
                assert vdisks.kept_versions(20) == (1,)

        run(main)

    def test_a_removed_one_s_handle_from_a_dead_daemon_is_an_error_and_no_empty_file(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await snap(vdisks, 20, "a", 100)
                handle = await vdisks.open_version(100)
                await Snapshots(vdisks).remove(20, "a")
            async with rig.node() as vdisks:
                with pytest.raises(NotFound):
                    await vdisks.reader_of(handle)
                assert (vdisks.handle_count(100), 100 in vdisks.heads) == (0, False)

        run(main)


class TestClones:
    def test_a_clone_of_a_snapshot_and_one_of_now_share_and_go_their_ways(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 2 * MIB + 10)
                await write(head, 0, blocks(*range(300)))
                old = await content(head)
                await snap(vdisks, 20, "a", 100)
                await write(head, 10 * B, blocks(*range(700, 710)))
                new = await content(head)
                first, second = await clone(vdisks, 20, "a", 21), await clone(vdisks, 20, None, 22)
                assert (first.own_blocks, first.size, second.size) == (0, 2 * MIB + 10, 2 * MIB + 10)
                assert (await content(first), await content(second)) == (old, new)
                await write(first, B, block(99))
                await head_write.punch(second, 0, MIB)
                assert await content(head) == new
                assert await content(first) == old[:B] + block(99) + old[2 * B :]
                assert await content(second) == bytes(MIB) + new[MIB:]
                await sound(vdisks, 20, 21, 22)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 21)) == old[:B] + block(99) + old[2 * B :]
                assert await content(await opened(vdisks, 22)) == bytes(MIB) + new[MIB:]
                await sound(vdisks, 20, 21, 22)

        run(main)

    def test_a_clone_that_nobody_wrote_shows_its_size_and_survives_anything(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB + 7)
                await write(head, 0, block(1))
                await clone(vdisks, 20, None, 21)
            async with rig.node() as vdisks:
                assert (await vdisks.stat(VdiskId(21))).size == MIB + 7
                assert 21 not in vdisks.heads
                second = await clone(vdisks, 21, None, 22)  # of version 0
                copied = await create(vdisks, 23)
                source = await opened(vdisks, 21)
                done = await copy_range(vdisks, source, copied, offset=0, to=0, length=source.size)
                assert (done, copied.own_blocks) == (MIB + 7, 0)
                for each in (second, copied):
                    assert await content(each) == block(1) + bytes(MIB + 7 - B)
                await sound(vdisks, 20, 21, 22, 23)

        run(main)

    def test_what_a_clone_cut_off_never_shows_the_parent_again(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 4 * MIB)
                await write(head, 0, blocks(*range(256)) * 4)
                child = await clone(vdisks, 20, None, 21)
                await head_write.truncate(child, MIB + 5 * B + 9)
                kept = (blocks(*range(256)) * 2)[: MIB + 5 * B + 9]
                await head_write.truncate(child, 4 * MIB)
                wanted = kept.ljust(4 * MIB, b"\0")
                assert await content(child) == wanted
                await snap(vdisks, 21, "cut", 100)
                grandchild = await clone(vdisks, 21, "cut", 22)
                await write(child, 3 * MIB, block(1))
                assert await content(grandchild) == wanted
                await sound(vdisks, 20, 21, 22)
            rig.lose_index()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 22)) == wanted
                assert await view_content(vdisks, 100) == wanted
                await sound(vdisks, 20, 21, 22)

        run(main)

    def test_a_copy_of_an_open_snapshot_shares_its_blocks(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, blocks(*range(256)))
                await snap(vdisks, 20, "a", 100)
                await write(head, 0, block(7))
                view = await vdisks.reader_of(await vdisks.open_version(100))
                target = await create(vdisks, 21)
                assert await copy_range(vdisks, view, target, offset=0, to=0, length=MIB) == MIB
                assert target.own_blocks == 0
                assert await content(target) == blocks(*range(256))
                await sound(vdisks, 20, 21)

        run(main)


class TestDeleting:
    @pytest.mark.parametrize("order", [(20, 21, 22), (22, 21, 20), (21, 20, 22), (21, 22, 20), (20, 22, 21)])
    def test_parents_and_snapshots_go_in_any_order_and_leave_nothing(
        self, rig: Rig, order: tuple[int, ...]
    ) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, blocks(1, 2, 3))
                await snap(vdisks, 20, "a", 100)
                child = await clone(vdisks, 20, "a", 21)
                await write(child, B, block(20))
                await snap(vdisks, 21, "b", 101)
                await write(child, B, block(21))
                await clone(vdisks, 21, "b", 22)
                wanted = blocks(1, 20, 3).ljust(MIB, b"\0")
                for number, vdisk in enumerate(order):
                    await delete(vdisks, vdisk)
                    if 22 not in order[: number + 1]:
                        last = vdisks.heads[22]
                        last.rows.clear()
                        assert await content(last) == wanted
                assert vdisks.workspace.pool.vdisks() == []
                assert list(vdisks.family.nameless()) == []
                rows, _ = await vdisks.workspace.catalog.read(b"")
                assert [row.key for row in rows] == []

        run(main)

    def test_a_deleted_vdisk_lives_until_the_last_open_snapshot_is_closed(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await snap(vdisks, 20, "a", 100)
                handle = await vdisks.open_version(100)
                await delete(vdisks, 20)
                assert Snapshots(vdisks).list(20) == []
                view = await vdisks.reader_of(handle)
                view.rows.clear()
                assert await head_read.read(view, 0, B) == block(1)
                vdisks.close(handle)
                await vdisks.release_unread(20)
                assert vdisks.workspace.pool.vdisks() == []

        run(main)

    def test_what_was_kept_for_an_open_file_goes_at_the_next_start(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await snap(vdisks, 20, "a", 100)
                await vdisks.open_version(100)
                await delete(vdisks, 20)
            async with rig.node() as vdisks:
                assert vdisks.workspace.pool.vdisks() == []

        run(main)


def test_opening_for_writing_makes_a_writer_and_only_a_vdisk_s_handle_does(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await create(vdisks, 20, MIB)
            assert not vdisks.has_writer(VdiskId(20))
            number = await vdisks.open(VdiskId(20), flags=os.O_RDWR | os.O_DIRECT)
            assert (vdisks.has_writer(VdiskId(20)), vdisks.has_buffered_writer(VdiskId(20))) == (True, False)
            vdisks.close(number)
            assert not vdisks.has_writer(VdiskId(20))

    run(main)
