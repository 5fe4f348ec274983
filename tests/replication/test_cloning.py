"""Copies that share blocks: when they may, what they see for ever, and what their deletion brings back."""

from functools import partial

import pytest
import trio
import trio.testing

from metadata.errors import NoSpace, Unavailable
from metadata.ids import VdiskId
from replication import head_write
from replication.cloning import COPY_BYTES_MAX, copy_range
from replication.head import Head
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
    handles_of,
    opened,
    read,
    run,
    sound,
    write,
)

MIB = 1 << 20


async def copy(vdisks: Vdisks, source: Head, target: Head, *, piece: int = COPY_BYTES_MAX) -> None:
    """The whole vdisk, as cp does it."""
    at = 0
    while at < source.size:
        done = await copy_range(vdisks, source, target, offset=at, to=at, length=min(piece, source.size - at))
        assert done > 0
        at += done


def is_child(head: Head) -> bool:
    return bool(head.ancestry.generations)


async def delete(vdisks: Vdisks, vdisk: int) -> None:
    for number in handles_of(vdisks, vdisk):
        vdisks.close(number)
    await vdisks.forget(VdiskId(vdisk))


class TestSharing:
    @pytest.mark.parametrize("size", [3 * MIB, 3 * MIB + 100, B - 1, 1])
    @pytest.mark.parametrize("piece", [MIB, COPY_BYTES_MAX])
    def test_a_copy_of_a_whole_vdisk_moves_and_takes_no_blocks(self, rig: Rig, size: int, piece: int) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                source, target = await create(vdisks, 20, size), await create(vdisks, 21)
                await write(source, 0, blocks(*range(300))[:size])
                await write(source, max(0, size - 50), b"x" * min(50, size))
                wanted = await content(source)
                await copy(vdisks, source, target, piece=piece)
                assert (target.own_blocks, is_child(target), target.size) == (0, True, size)
                assert await content(target) == wanted
                await vdisks.flush(VdiskId(21))
                assert sum(path.stat().st_size for path in rig.group_files(21)) < MIB
                await sound(vdisks, 20, 21)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 21)) == wanted
                await sound(vdisks, 20, 21)

        run(main)

    def test_what_cannot_be_shared_is_copied_by_bytes(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                source = await create(vdisks, 20, MIB)
                await write(source, 0, blocks(*range(100)))
                cases = [
                    (0, B, 5 * B),
                    (100, 100, 5 * B),
                    (0, 0, 5 * B + 7),
                    (3 * B, 3 * B, 100),
                    (7, 9, 3 * B),
                ]
                for number, (offset, to, length) in enumerate(cases):
                    target = await create(vdisks, 30 + number)
                    copied = await copy_range(vdisks, source, target, offset=offset, to=to, length=length)
                    assert (copied, is_child(target)) == (length, False)
                    expected = bytes(to) + blocks(*range(100))[offset : offset + length]
                    assert await content(target) == expected
                    await sound(vdisks, 30 + number)

        run(main)

    def test_only_an_empty_vdisk_becomes_a_child_and_only_of_one_version(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                source, full = await create(vdisks, 20, 2 * MIB), await create(vdisks, 21, 2 * MIB)
                await write(source, 0, blocks(*range(300)))
                await write(full, MIB, block(7))
                await copy_range(vdisks, source, full, offset=0, to=0, length=MIB)
                assert not is_child(full)
                child = await create(vdisks, 22)
                await copy_range(vdisks, source, child, offset=0, to=0, length=MIB)
                await write(source, MIB, block(1000))
                await copy_range(vdisks, source, child, offset=MIB, to=MIB, length=MIB)
                assert (is_child(child), child.own_blocks) == (True, 300 - 256)
                assert await content(child) == await content(source)
                other = await create(vdisks, 23, MIB)
                await write(other, 0, block(5))
                await copy_range(vdisks, other, child, offset=0, to=0, length=B)
                assert await read(child, 0, 2 * B) == blocks(5, 1)
                await sound(vdisks, 20, 21, 22, 23)

        run(main)

    def test_a_copy_over_blocks_of_a_child_s_own_gives_them_back(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                source, child = await create(vdisks, 20, MIB), await create(vdisks, 21)
                await write(source, 0, blocks(*range(50)))
                await copy(vdisks, source, child)
                await write(child, 10 * B, blocks(*range(500, 510)))
                assert child.own_blocks == 10
                await copy(vdisks, source, child)
                assert child.own_blocks == 0
                assert await content(child) == await content(source)
                await sound(vdisks, 20, 21)

        run(main)

    def test_nothing_is_copied_from_behind_the_end(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                source, target = await create(vdisks, 20, 5000), await create(vdisks, 21)
                for offset in (5000, 8192, 1 << 60):
                    assert await copy_range(vdisks, source, target, offset=offset, to=0, length=B) == 0
                assert await copy_range(vdisks, source, target, offset=4096, to=4096, length=1 << 62) == 904
                assert target.size == 5000

        run(main)

    def test_a_copy_within_one_vdisk_copies_bytes(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, blocks(*range(20)))
                assert await copy_range(vdisks, head, head, offset=0, to=100 * B, length=20 * B) == 20 * B
                assert await read(head, 100 * B, 20 * B) == blocks(*range(20))
                await sound(vdisks, 20)

        run(main)

    def test_a_copy_that_fails_half_way_leaves_no_parent_s_bytes_behind_the_end(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                source, target = await create(vdisks, 20, 200 * MIB), await create(vdisks, 21)
                for number in range(200):
                    await write(source, number * MIB, block(number))
                ready, calls = head_write._ready_to_share, []

                async def flaky(*arguments: object) -> None:
                    calls.append(arguments)
                    if len(calls) == 3:
                        raise NoSpace("the pool is full")
                    await ready(*arguments)

                monkeypatch.setattr(head_write, "_ready_to_share", flaky)
                with pytest.raises(NoSpace):
                    await copy(vdisks, source, target)
                size = target.size
                await head_write.truncate(target, max(size, 128 * MIB))
                for number in range(200):
                    found = await read(target, number * MIB, B)
                    assert found in (block(number), bytes(B), b"")
                    assert number * MIB < size or not any(found)

        run(main)

    def test_a_source_that_grows_within_its_last_block_meanwhile_shows_nothing_behind_the_copy_s_end(
        self, faulty: FaultyRig
    ) -> None:
        async def main() -> None:
            async with faulty.node() as vdisks:
                source, target = await create(vdisks, 20), await create(vdisks, 21)
                await write(source, 0, blocks(1, 2)[:5000])
                async with trio.open_nursery() as nursery, faulty.faults.held("sync") as hold:
                    whole = partial(copy_range, vdisks, source, target, offset=0, to=0, length=5000)
                    nursery.start_soon(whole)
                    await hold.wait_reached()
                    await write(source, 5000, block(3))
                assert target.size == 5000
                await head_write.truncate(target, 5 * B)
                assert await content(target) == blocks(1, 2)[:5000].ljust(5 * B, b"\0")
                await sound(vdisks, 20, 21)

        run(main)

    def test_two_copies_in_opposite_directions_both_end(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                heads = [await create(vdisks, 20, MIB), await create(vdisks, 21, MIB)]
                for turn in range(10):
                    await write(heads[0], 0, block(turn))
                    await write(heads[1], B, block(100 + turn))
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(copy, vdisks, *heads)
                        nursery.start_soon(copy, vdisks, *reversed(heads))
                await sound(vdisks, 20, 21)

        run(main)

    def test_empty_vdisks_copied_onto_each_other_make_no_circle(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                heads = [await create(vdisks, 20 + n, MIB) for n in range(3)]
                async with trio.open_nursery() as nursery:
                    for n in range(3):
                        nursery.start_soon(copy, vdisks, heads[n], heads[(n + 1) % 3])
                for _ in range(2):
                    for n in range(3):
                        await copy(vdisks, heads[n], heads[(n + 1) % 3])
                parents = {
                    child: parent
                    for parent in (20, 21, 22, 23, 24)
                    for child in vdisks.family.children(parent)
                }
                for vdisk in (20, 21, 22):
                    seen = set()
                    while vdisk in parents:
                        assert vdisk not in seen
                        seen.add(vdisk)
                        vdisk = parents[vdisk]
                assert [await content(head) for head in heads] == [bytes(MIB)] * 3
                await sound(vdisks, 20, 21, 22)

        run(main)


class TestKeptVersions:
    def test_a_child_sees_its_parent_s_version_for_ever(self, rig: Rig) -> None:
        """I6: overwrites, holes, truncations, rests, rebuilt indexes and further children change nothing."""

        async def main() -> None:
            async with rig.node() as vdisks:
                parent = await create(vdisks, 20, 4 * MIB)
                wanted: dict[int, bytes] = {}
                for number in range(6):
                    await write(parent, number * 100 * B, blocks(*range(number * 10, number * 10 + 5)))
                    child = await create(vdisks, 30 + number)
                    await copy(vdisks, parent, child)
                    await write(child, (number * 100 + 1) * B, block(1000 + number))
                    wanted[30 + number] = await content(child)
                    match number:
                        case 1:
                            await head_write.punch(parent, 0, MIB)
                        case 2:
                            await head_write.truncate(parent, MIB)
                            await head_write.truncate(parent, 5 * MIB)
                        case 4:
                            await close_and_rest(vdisks, 20)
                            parent = await opened(vdisks, 20)
                wanted[20] = await content(parent)
                for vdisk, expected in wanted.items():
                    assert await content(vdisks.heads[vdisk]) == expected
            for lose in (rig.lose_index, rig.lose_state):
                lose()
                async with rig.node() as vdisks:
                    for vdisk, expected in wanted.items():
                        assert await content(await opened(vdisks, vdisk)) == expected
                    await sound(vdisks, *wanted)

        run(main)

    def test_after_the_last_child_is_gone_the_parent_still_reads_its_newest_rows(self, rig: Rig) -> None:
        """Rows were written under a higher generation while the child lived; they are still the newest."""

        async def main() -> None:
            async with rig.node() as vdisks:
                parent, child = await create(vdisks, 20, 4 * MIB), await create(vdisks, 21)
                await write(parent, 0, block(1))
                await copy(vdisks, parent, child)
                await write(parent, 0, block(2))
                await vdisks.flush(VdiskId(20))
                await delete(vdisks, 21)
                await close_and_rest(vdisks, 20)
                parent = await opened(vdisks, 20)
                assert await read(parent, 0, B) == block(2)
                await write(parent, MIB, block(3))
                await sound(vdisks, 20)

        run(main)

    def test_commits_replayed_after_the_last_child_is_gone_are_the_newest_rows(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                parent, child = await create(vdisks, 20, 4 * MIB), await create(vdisks, 21)
                await write(parent, 0, block(1))
                await copy(vdisks, parent, child)
                await write(parent, 0, block(2))
                await vdisks.flush(VdiskId(20))
                await delete(vdisks, 21)
                vdisks.workspace.index.flush()
                await write(parent, 0, block(3))
                await vdisks.flush(VdiskId(20))
            async with rig.node() as vdisks:
                assert await read(await opened(vdisks, 20), 0, B) == block(3)
                await sound(vdisks, 20)

        run(main)

    def test_a_source_whose_index_lags_is_copied_by_bytes(
        self, faulty: FaultyRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The child would read the index, and the index has not got that version."""

        async def main() -> None:
            async with faulty.node() as vdisks:
                source = await create(vdisks, 20, 2 * MIB)
                await write(source, 0, blocks(*range(300)))
                await vdisks.flush(VdiskId(20))
                for number, change in enumerate(
                    (write(source, 5 * B, block(9)), head_write.truncate(source, MIB))
                ):
                    faulty.faults.failing["apply"] = 1
                    await change
                    target = await create(vdisks, 30 + number)
                    await copy(vdisks, source, target)
                    assert not is_child(target)
                    assert await content(target) == await content(source)
                    await write(source, 0, block(10))
                    await vdisks.flush(VdiskId(20))
                await sound(vdisks, 20, 30, 31)

        run(main)
        expect_errors(caplog, "the index lags behind")

    def test_a_copy_of_a_vdisk_that_is_written_all_the_time_is_one_of_its_states(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                source, target = await create(vdisks, 20, MIB), await create(vdisks, 21)
                await write(source, 0, blocks(0, 0))

                async def writer() -> None:
                    for number in range(1, 200):
                        await write(source, 0, blocks(number, number))
                        await trio.lowlevel.checkpoint()

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(writer)
                    await copy(vdisks, source, target)
                found = await read(target, 0, 2 * B)
                assert found[:B] == found[B:]
                await sound(vdisks, 20, 21)

        run(main)


class TestFamilies:
    def test_a_hundred_generations_are_read_like_one(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                for generation in range(100):
                    await write(head, generation * B, block(generation))
                    child = await create(vdisks, 21 + generation)
                    await copy(vdisks, head, child)
                    head = child
                assert (await content(head))[: 100 * B] == blocks(*range(100))
                assert head.read_nowait(0, 100 * B) is not None
                await head_write.punch(head, 50 * B, B)
                assert (await content(head))[: 100 * B] == blocks(*range(50)) + bytes(B) + blocks(
                    *range(51, 100)
                )
            async with rig.node() as vdisks:
                head = await opened(vdisks, 120)
                assert (await content(head))[:B] == block(0)
                await sound(vdisks, 120)

        run(main)

    def test_a_deleted_parent_lives_on_for_its_children_and_goes_with_the_last(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                heads = [await create(vdisks, 20, MIB)]
                await write(heads[0], 0, blocks(*range(10)))
                for number in range(1, 4):  # a chain, each with a block of its own
                    heads.append(await create(vdisks, 20 + number))
                    await copy(vdisks, heads[-2], heads[-1])
                    await write(heads[-1], number * B, block(100 + number))
                wanted = await content(heads[3])
                await delete(vdisks, 21)
                await delete(vdisks, 20)
                assert await content(vdisks.heads[23]) == wanted
            async with rig.node() as vdisks:
                head = await opened(vdisks, 23)
                assert await content(head) == wanted
                await delete(vdisks, 22)
                assert await content(head) == wanted
                assert vdisks.workspace.pool.vdisks() == [20, 21, 22, 23]
                await delete(vdisks, 23)
                assert vdisks.workspace.pool.vdisks() == []
                assert (await vdisks.workspace.catalog.read(b"vdisk/"))[0] == []
                assert (await vdisks.workspace.catalog.read(b"owner/"))[0] == []

        run(main)

    def test_a_deleted_parent_outlives_the_first_of_two_children(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                parent = await create(vdisks, 20, MIB)
                await write(parent, 0, blocks(*range(10)))
                wanted = await content(parent)
                children = [await create(vdisks, 21), await create(vdisks, 22)]
                for child in children:
                    await copy(vdisks, parent, child)
                await delete(vdisks, 20)
                await delete(vdisks, 21)
                assert vdisks.workspace.pool.vdisks() == [20, 22]
                assert await content(children[1]) == wanted
                await delete(vdisks, 22)
                assert vdisks.workspace.pool.vdisks() == []

        run(main)

    def test_a_corrupt_block_of_the_parent_is_an_error_in_the_child_there_and_nowhere_else(
        self, rig: Rig
    ) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                parent, child = await create(vdisks, 20, MIB), await create(vdisks, 21)
                await write(parent, 0, blocks(*range(10)))
                await copy(vdisks, parent, child)
                (group,) = rig.group_files(20)
                data = bytearray(group.read_bytes())
                data[data.index(block(4)) + 9] ^= 1
                group.write_bytes(data)
                for head in (parent, child):
                    with pytest.raises(Exception, match="fails its checksum vdisk=20"):
                        await read(head, 4 * B, B)
                    assert await read(head, 5 * B, 5 * B) == blocks(*range(5, 10))
                await write(child, 4 * B, block(4))
                assert await read(child, 0, 10 * B) == blocks(*range(10))

        run(main)

    def test_a_kill_between_adopting_and_committing_leaves_an_empty_child(self, faulty: FaultyRig) -> None:
        async def main() -> None:
            async with faulty.node(kill=True) as vdisks:
                parent, child = await create(vdisks, 20, MIB), await create(vdisks, 21)
                await write(parent, 0, blocks(*range(10)))
                faulty.faults.failing["create"] = 0
                await vdisks.flush(VdiskId(20))
                faulty.faults.failing["create"] = 1
                with pytest.raises(Unavailable):
                    await copy(vdisks, parent, child)
            faulty.faults.disarm()
            async with faulty.node() as vdisks:
                parent, child = await opened(vdisks, 20), await opened(vdisks, 21)
                assert (child.size, child.own_blocks) == (0, 0)
                await copy(vdisks, parent, child)
                assert await content(child) == await content(parent)
                await sound(vdisks, 20, 21)

        run(main)


def test_the_version_that_a_copy_is_about_to_share_counts_as_kept_before_the_catalog_knows(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            source, target = await create(vdisks, 20), await create(vdisks, 21)
            await write(source, 0, blocks(*range(10)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy, vdisks, source, target)
                while source.generation == 1:
                    assert vdisks.kept_versions(20) == ()
                    await trio.lowlevel.checkpoint()
                assert vdisks.kept_versions(20) == (source.log.version,)
            assert vdisks.kept_versions(20) == (source.log.version,)
            with vdisks.pinned(20, 77), vdisks.pinned(20, 77):
                assert 77 in vdisks.kept_versions(20)
            assert 77 not in vdisks.kept_versions(20)

    run(main)
