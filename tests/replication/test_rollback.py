"""Rollback: the old content is the newest version, at no cost, can be undone, and crashes leave before or after."""

import pytest
import trio

from metadata.catalog import Catalog, Change
from metadata.errors import Busy, Exists, NotFound, Unavailable
from metadata.ids import VdiskId
from replication import head_write
from replication.snapshots import Snapshots
from replication.vdisks import Vdisks
from tests.replication.faults import FaultyRig
from tests.replication.rig import B, Rig, block, blocks, content, create, opened, run, sound, write
from tests.replication.snapshotting import MIB, clone, delete, flatten, rollback, snap, view_content


async def three_states(vdisks: Vdisks) -> tuple[bytes, bytes, bytes]:
    """A vdisk with snapshots "one" and "two", and what it holds at each and now."""
    head = await create(vdisks, 20, 3 * MIB + 100)
    await write(head, 0, blocks(*range(300)))
    one = await content(head)
    await snap(vdisks, 20, "one", 100)
    await write(head, 5 * B, blocks(*range(1000, 1300)))
    await head_write.punch(head, 100 * B, 50 * B)
    await head_write.truncate(head, MIB + 50 * B)
    two = await content(head)
    await snap(vdisks, 20, "two", 101)
    await head_write.truncate(head, 5 * MIB)
    await write(head, 4 * MIB, block(7))
    return one, two, await content(head)


def test_the_vdisk_is_what_the_snapshot_was_and_back_again(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            one, two, three = await three_states(vdisks)
            kept = await rollback(vdisks, 20, "one", ("three", 102))
            assert (kept.name, kept.size) == ("three", 5 * MIB)
            head = await opened(vdisks, 20)
            assert (head.size, head.own_blocks) == (3 * MIB + 100, 300)
            assert await content(head) == one
            await write(head, MIB, block(9))
            four = one[:MIB] + block(9) + one[MIB + B :]
            assert await content(head) == four
            await sound(vdisks, 20)
            await rollback(vdisks, 20, "three", ("four", 103))
            assert await content(await opened(vdisks, 20)) == three
            await rollback(vdisks, 20, "two", ("five", 104))
            assert await content(await opened(vdisks, 20)) == two
            wanted = {100: one, 101: two, 102: three, 103: four, 104: three}
            for number, expected in wanted.items():
                assert await view_content(vdisks, number) == expected
            await sound(vdisks, 20)
        for lose in (lambda: None, rig.lose_index, rig.lose_state):
            lose()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == two
                for number, expected in wanted.items():
                    assert await view_content(vdisks, number) == expected
                await sound(vdisks, 20)

    run(main)


def test_it_costs_no_data_and_one_commit(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await three_states(vdisks)
            await vdisks.flush(VdiskId(20))
            before = vdisks.heads[20].log.version
            await rollback(vdisks, 20, "one", ("three", 102))
            assert vdisks.heads[20].log.version == before + 1

    run(main)


def test_one_to_what_is_there_only_gives_it_another_name(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            _, _, three = await three_states(vdisks)
            last = await snap(vdisks, 20, "three", 102)
            kept = await rollback(vdisks, 20, "three", ("again", 103))
            assert (kept.version, vdisks.family.descent(20).rollbacks) == (last.version, ())
            assert await content(await opened(vdisks, 20)) == three

    run(main)


def test_one_of_a_vdisk_that_is_open_for_writing_is_refused(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await three_states(vdisks)
            snapshots = Snapshots(vdisks)
            number = await vdisks.open(VdiskId(20), flags=2)
            with pytest.raises(Busy, match="open for writing"):
                await snapshots.rollback(VdiskId(20), "one", keep_as=("three", 102))
            vdisks.close(number)
            with pytest.raises(NotFound):
                await snapshots.rollback(VdiskId(20), "none", keep_as=("three", 102))
            with pytest.raises(Exists):
                await snapshots.rollback(VdiskId(20), "one", keep_as=("two", 102))
            await snapshots.rollback(VdiskId(20), "one", keep_as=("three", 102))
            assert len(snapshots.list(20)) == 3

    run(main)


def test_a_truncation_meanwhile_comes_before_or_after(rig: Rig) -> None:
    """One by path needs no open file: what it makes of the vdisk is as if one came after the other."""

    async def main() -> None:
        async with rig.node() as vdisks:
            one, _, three = await three_states(vdisks)
            for turn in range(6):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(vdisks.truncate, VdiskId(20), MIB + turn * B)
                    for _ in range(3 * turn):
                        await trio.lowlevel.checkpoint()
                    await rollback(vdisks, 20, "one", (f"kept{turn}", 200 + turn))
                head = vdisks.heads[20]
                assert await content(head) in (one, one[: MIB + turn * B])
                await sound(vdisks, 20)
            assert await view_content(vdisks, 200) in (three, three[:MIB])

    run(main)


def test_clones_of_versions_that_a_rollback_masks_keep_them(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            one, two, three = await three_states(vdisks)
            await clone(vdisks, 20, "two", 21)
            await rollback(vdisks, 20, "one", ("three", 102))
            await clone(vdisks, 20, "three", 22)
            await clone(vdisks, 20, None, 23)
            for name in ("one", "two", "three"):
                await Snapshots(vdisks).remove(20, name)
        rig.lose_index()
        async with rig.node() as vdisks:
            for vdisk, expected in ((20, one), (21, two), (22, three), (23, one)):
                assert await content(await opened(vdisks, vdisk)) == expected
            await sound(vdisks, 20, 21, 22, 23)
            await delete(vdisks, 20)
            await delete(vdisks, 22)
            vdisks.heads[23].rows.clear()
            assert await content(vdisks.heads[23]) == one

    run(main)


def test_a_clone_rolled_back_shows_its_parent_again(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            parent = await create(vdisks, 20, 4 * MIB)
            await write(parent, 0, blocks(*range(1024)))
            whole = await content(parent)
            child = await clone(vdisks, 20, None, 21)
            await snap(vdisks, 21, "whole", 100)
            await write(child, 3 * MIB, block(7))
            await head_write.truncate(child, MIB)
            await head_write.truncate(child, 4 * MIB)
            assert await content(child) == whole[:MIB] + bytes(3 * MIB)
            await rollback(vdisks, 21, "whole", ("cut", 101))
            assert await content(await opened(vdisks, 21)) == whole
            head = vdisks.heads[21]
            await write(head, 2 * MIB, block(5))
            assert await view_content(vdisks, 101) == whole[:MIB] + bytes(3 * MIB)
            await sound(vdisks, 20, 21)
        rig.lose_index()
        async with rig.node() as vdisks:
            assert (
                await content(await opened(vdisks, 21)) == whole[: 2 * MIB] + block(5) + whole[2 * MIB + B :]
            )
            await sound(vdisks, 20, 21)

    run(main)


def test_a_kill_behind_the_record_leaves_a_vdisk_rolled_back(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commit that says so in the log never comes; the next daemon's does."""

    async def no_flush(head: object) -> None:
        raise Unavailable("killed")

    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            one, _, _ = await three_states(vdisks)
            with monkeypatch.context() as patched:
                patched.setattr("replication.rollback.flush", no_flush)
                await rollback(vdisks, 20, "one", ("three", 102))
        for write_first in (True, False):
            async with rig.node(kill=True) as vdisks:
                assert (await vdisks.stat(VdiskId(20))).size == len(one)
                head = await opened(vdisks, 20)
                assert await content(head) == one
                if write_first:
                    await write(head, 0, block(77))
                    one = block(77) + one[B:]
        rig.lose_index()
        async with rig.node() as vdisks:
            assert await content(await opened(vdisks, 20)) == one
            await sound(vdisks, 20)

    run(main)


class Doubtful:
    """A catalog that does a transaction and then says that it cannot tell."""

    def __init__(self, real: Catalog) -> None:
        self._real, self.armed, self.reads_fail = real, 0, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    async def transact(self, change: Change, *, lease: int = 0) -> int:
        revision = await self._real.transact(change, lease=lease)
        if self.armed:
            self.armed -= 1
            raise Unavailable("the disk does not answer")
        return revision


@pytest.mark.parametrize("done", [True, False])
def test_a_catalog_that_cannot_tell_is_asked_again(rig: Rig, done: bool) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            one, _, three = await three_states(vdisks)
            await vdisks.flush(VdiskId(20))
            real, doubtful = vdisks.workspace.catalog, Doubtful(vdisks.workspace.catalog)
            if done:
                doubtful.armed = 1
                vdisks.workspace.catalog = doubtful  # type: ignore[assignment]
                await rollback(vdisks, 20, "one", ("three", 102))
            else:
                vdisks.workspace.catalog = Refusing(real)  # type: ignore[assignment]
                with pytest.raises(Unavailable):
                    await rollback(vdisks, 20, "one", ("three", 102))
            vdisks.workspace.catalog = real
            assert await content(await opened(vdisks, 20)) == (one if done else three)
            await sound(vdisks, 20)

    run(main)


class Refusing(Doubtful):
    """One that does not even do it."""

    async def transact(self, change: Change, *, lease: int = 0) -> int:
        raise Unavailable("the disk does not answer")


def test_a_full_pool_rolls_back_all_the_same_if_it_takes_the_commit_before(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node() as vdisks:
            one, _, three = await three_states(vdisks)
            faulty.faults.failing["sync"] = 100
            with pytest.raises(Unavailable):
                await rollback(vdisks, 20, "one", ("three", 102))
            faulty.faults.disarm()
            assert await content(await opened(vdisks, 20)) == three
            await rollback(vdisks, 20, "one", ("three", 102))
            assert await content(await opened(vdisks, 20)) == one
            await sound(vdisks, 20)

    run(main)


def test_a_flattened_clone_rolled_back_reads_its_parent_again(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            parent = await create(vdisks, 20, 2 * MIB)
            await write(parent, 0, blocks(*range(300)))
            whole = await content(parent)
            await clone(vdisks, 20, None, 21)
            await snap(vdisks, 21, "before", 100)
            await flatten(vdisks, 21)
            assert vdisks.heads[21].own_blocks == 300
            await delete(vdisks, 20)
            assert await view_content(vdisks, 100) == whole
            await rollback(vdisks, 21, "before", ("flat", 101))
            head = await opened(vdisks, 21)
            assert (head.own_blocks, await content(head)) == (0, whole)
            assert await view_content(vdisks, 101) == whole
            await sound(vdisks, 21)
        rig.lose_index()
        async with rig.node() as vdisks:
            assert await content(await opened(vdisks, 21)) == whole
            await Snapshots(vdisks).remove(21, "before")
            await flatten(vdisks, 21)
            assert vdisks.workspace.pool.vdisks() == [21]
            assert await view_content(vdisks, 101) == whole
            await sound(vdisks, 21)

    run(main)
