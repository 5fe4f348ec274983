"""Checkpoints: an index from the pool in one piece, the log's tail on top, and nothing lost by a bad one."""

import pathlib
import random

import pytest

from metadata.errors import Unavailable
from metadata.ids import VdiskId
from metadata.index import Index
from replication import checkpoint as checkpoints
from replication import head_write
from replication.checkpoint import checkpoint, checkpoint_if_due
from replication.cloning import copy_range
from replication.collector import Collector
from replication.log_floor import settle
from replication.pool_directory import DirectoryPool
from replication.recovery import Lineage, LogReader, catch_up
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
    opened,
    read,
    run,
    sound,
    write,
)

MIB = 1 << 20
ID = VdiskId(20)


def test_a_checkpoint_that_is_replaced_while_it_is_fetched_is_not_missing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its owner, another node, goes on meanwhile; records before the newer one may be gone already."""

    async def main() -> None:
        async with rig.node() as vdisks:
            await written(vdisks)
            await Collector(vdisks).collect(lambda _: None)
            await settle(vdisks.heads[20])
            wanted = await content(vdisks.heads[20])
        rig.lose_state()
        real, asked = DirectoryPool.checkpoints, list[int]()

        def replaced(self: DirectoryPool, vdisk: int) -> list[int]:
            asked.append(vdisk)
            return [1] if len(asked) == 1 else real(self, vdisk)

        monkeypatch.setattr(DirectoryPool, "checkpoints", replaced)
        async with rig.node() as vdisks:
            assert await content(await opened(vdisks, 20)) == wanted

    run(main)


def test_a_checkpoint_newer_than_the_tail_means_that_the_vdisk_has_moved_on(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await written(vdisks)
            head = vdisks.heads[20]
            record = head.log.record_place, head.log.record_check
            await write(head, 0, block(1))
            settled = await settle(head)
            space = vdisks.workspace
            index = Index(str(rig.folder / "another"))
            lineage = Lineage(20, floor=settled.floor)
            with pytest.raises(Unavailable, match="moved on"):
                catch_up(space.pool, index, lineage, record=record, may_rebuild=True)
            record = head.log.record_place, head.log.record_check
            found = catch_up(space.pool, index, lineage, record=record, may_rebuild=False)
            assert found is not None
            assert found.state.version == head.log.version
            index.close()

    run(main)


async def written(vdisks: Vdisks, *, commits: int = 5) -> None:
    chance = random.Random(8)
    head = await create(vdisks, 20, 20 * MIB)
    for _ in range(commits):
        for _ in range(20):
            await write(head, chance.randrange(5000) * B, block(chance.randrange(1000)))
        await vdisks.flush(ID)


def paths(rig: Rig) -> list[pathlib.Path]:
    return sorted(pathlib.Path(rig.pool_path).rglob("*.checkpoint"))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Places of the records that are read."""
    places: list[int] = []
    real = LogReader.record_at

    def record_at(self: LogReader, place: int) -> object:
        places.append(place)
        return real(self, place)

    monkeypatch.setattr(LogReader, "record_at", record_at)
    return places


def test_a_node_that_knows_nothing_reads_the_checkpoint_and_only_the_log_s_tail(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            await written(vdisks, commits=30)
            head = vdisks.heads[20]
            assert await checkpoint(head)
            await write(head, 0, block(1))
            await vdisks.flush(ID)
            await head_write.truncate(head, 9 * MIB)
            await vdisks.flush(ID)
            wanted = await content(head)
        assert [path.name for path in paths(rig)] == [f"{30:016x}.checkpoint"]
        counts = {}
        for with_it in (True, False):
            if not with_it:
                paths(rig)[0].unlink()
            rig.lose_state()
            async with rig.node(kill=True) as vdisks:
                with pytest.MonkeyPatch.context() as patch:
                    places = counted(patch)
                    head = await opened(vdisks, 20)
                    counts[with_it] = len(set(places))
                assert await content(head) == wanted
                await sound(vdisks, 20)
        # The scan of the newest group meets every record once; replaying from nothing needs no others.
        assert counts[True] <= counts[False]

    run(main)


def test_a_checkpoint_holds_every_kept_version(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            parent, child = await create(vdisks, 20, 3 * MIB), await create(vdisks, 21)
            await write(parent, 0, blocks(*range(300)))
            await copy_range(vdisks, parent, child, offset=0, to=0, length=3 * MIB)
            kept = await content(child)
            await write(parent, 5 * B, blocks(*range(1000, 1100)))
            await head_write.truncate(parent, 2 * MIB)
            await vdisks.flush(ID)
            assert await checkpoint(parent)
            wanted = await content(parent)
        rig.lose_state()
        async with rig.node() as vdisks:
            assert await content(await opened(vdisks, 21)) == kept
            assert await content(await opened(vdisks, 20)) == wanted
            await sound(vdisks, 20, 21)

    run(main)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "another vdisk's", "garbage"])
def test_a_checkpoint_that_fails_its_check_is_passed_over(rig: Rig, damage: str) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await written(vdisks)
            await write(await create(vdisks, 21, MIB), 0, block(7))
            await vdisks.flush(VdiskId(21))
            for vdisk in (20, 21):
                assert await checkpoint(vdisks.heads[vdisk])
            wanted = await content(vdisks.heads[20])
        mine, other = paths(rig)
        whole, chance = mine.read_bytes(), random.Random(9)
        for _ in range(6 if damage in ("flipped", "cut") else 1):
            at = chance.randrange(len(whole))
            mine.write_bytes(
                {
                    "flipped": whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :],
                    "cut": whole[:at],
                    "empty": b"",
                    "another vdisk's": other.read_bytes(),
                    "garbage": chance.randbytes(len(whole)),
                }[damage]
            )
            rig.lose_state()
            async with rig.node(kill=True) as vdisks:
                assert await content(await opened(vdisks, 20)) == wanted
                assert await read(await opened(vdisks, 21), 0, B) == block(7)
                await sound(vdisks, 20, 21)

    run(main)


def test_a_checkpoint_of_another_past_is_passed_over(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            await written(vdisks, commits=2)
            (group,) = rig.group_files(20)
            copy = group.read_bytes()
            await write(vdisks.heads[20], 0, block(1))
            await vdisks.flush(ID)
            await checkpoint(vdisks.heads[20])
        group.write_bytes(copy)
        rig.lose_state()
        async with rig.node(kill=True) as vdisks:
            head = await opened(vdisks, 20)
            assert head.log.version == 2
            await write(head, B, block(2))
            await vdisks.flush(ID)
        rig.lose_state()
        async with rig.node() as vdisks:
            assert await read(await opened(vdisks, 20), B, B) == block(2)
            await sound(vdisks, 20)

    run(main)


def test_one_is_due_after_many_commits_when_a_vdisk_comes_to_rest(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "DUE_COMMITS", 10)

    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, MIB)
            for turn in range(4):
                for number in range(6):
                    await write(head, number * B, block(turn * 10 + number))
                    await vdisks.flush(ID)
                await close_and_rest(vdisks, 20)
                head = await opened(vdisks, 20)
                assert [int(path.stem, 16) for path in paths(rig)] == ([], [12], [12], [24])[turn]

    run(main)


def test_none_is_made_of_a_vdisk_with_changes_or_without_commits(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "DUE_COMMITS", 1)

    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20)
            await checkpoint_if_due(head)
            await checkpoint(head)
            await write(head, 0, block(1))
            await vdisks.flush(ID)
            await write(head, 0, block(2))
            await checkpoint_if_due(head)
            assert paths(rig) == []

    run(main)


def test_failing_to_write_one_is_no_failure(faulty: FaultyRig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with faulty.node() as vdisks:
            await written(vdisks)
            head = vdisks.heads[20]

            def full(*_: object) -> None:
                raise Unavailable("the pool does not answer")

            with monkeypatch.context() as patch:
                patch.setattr(vdisks.workspace.pool, "publish_checkpoint", full)
                assert not await checkpoint(head)
            with monkeypatch.context() as patch:
                patch.setattr(vdisks.workspace.index, "path", "/proc/no/such/folder/index")
                assert not await checkpoint(head)  # the state directory's disk is full
            assert paths(faulty) == []
            assert sorted(path.name for path in faulty.state_path.iterdir()) == ["index", "journal"]
            assert await checkpoint(head)

    run(main)
