"""After a power cut: nothing but the pool, its tail cut, zeroed, garbled or torn at every block.

Promise 1: what a flush that returned covered is there. Promise 11: each block is whole, old or new. Promise 8: what
is damaged is an error, never other bytes, and never a quiet step back where the node knows better.
"""

import os
import pathlib
import random
import shutil
from collections.abc import Callable

import pytest
import trio

from metadata.errors import Corrupt, NotFound
from metadata.ids import HOLE, Version
from metadata.index import Index, VdiskState
from metadata.records import CommitRecord, encode_record, group_seed
from replication import head_write
from replication.head import Head
from replication.recovery import Lineage, LogReader, recover
from replication.vdisks import Vdisks
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
VDISK = 20
FLUSHED = blocks(*range(10))
NEW = blocks(*range(100, 104))
"""Written over blocks 3 to 6 after the flush; then come a hole in block 8, and a block of its own at 12."""

OLD_STATE = FLUSHED.ljust(MIB, b"\0")
_new = bytearray(OLD_STATE)
_new[3 * B : 7 * B], _new[8 * B : 9 * B], _new[12 * B : 13 * B] = NEW, bytes(B), block(200)
NEW_STATE = bytes(_new)

ENDS: dict[str, Callable[[bytearray, int], bytes]] = {
    "cut": lambda data, at: bytes(data[: at * B]),
    "zeroed": lambda data, at: bytes(data[: at * B]).ljust(len(data), b"\0"),
    "garbled": lambda data, at: bytes(data[: at * B]) + random.Random(at).randbytes(len(data) - at * B),
    "one block zeroed": lambda data, at: bytes(data[: at * B]) + bytes(B) + bytes(data[(at + 1) * B :]),
    "one block torn": lambda data, at: bytes(data[: at * B + 512]) + os.urandom(512) + bytes(data[at * B + 1024 :]),
}  # fmt: skip


async def flush_and_change(vdisks: Vdisks) -> tuple[Head, int]:
    """One flush that returned, then changes; and where the flushed part of the only group ends."""
    head = await create(vdisks, VDISK, MIB)
    await write(head, 0, FLUSHED)
    await vdisks.flush(VDISK)
    end = head.log.tail
    await write(head, 3 * B, NEW)
    await head_write.punch(head, 8 * B, B)
    await write(head, 12 * B, block(200))
    return head, end


class TestPowerCuts:
    @pytest.mark.parametrize("ending", ENDS)
    def test_a_second_flush_that_never_returned_is_there_as_a_whole_or_not_at_all(
        self, rig: Rig, ending: str
    ) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                _, end = await flush_and_change(vdisks)
                await vdisks.flush(VDISK)
            (group,) = rig.group_files(VDISK)
            written, seen = bytearray(group.read_bytes().rstrip(b"\0")), set()
            written += bytes(-len(written) % B)
            for at in range(end, len(written) // B + 1):
                rig.lose_state()
                group.write_bytes(ENDS[ending](written, at))
                async with rig.node(kill=True) as vdisks:
                    head = await opened(vdisks, VDISK)
                    found = await content(head)
                    assert found in (OLD_STATE, NEW_STATE)
                    seen.add(found)
                    await sound(vdisks, VDISK)
            assert seen == {OLD_STATE, NEW_STATE}

        run(main)

    @pytest.mark.parametrize("ending", ["cut", "zeroed", "one block torn"])
    def test_with_a_journal_that_survived_each_unflushed_block_is_old_or_new(
        self, rig: Rig, ending: str
    ) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                _, end = await flush_and_change(vdisks)
            (group,) = rig.group_files(VDISK)
            written = bytearray(group.read_bytes().rstrip(b"\0"))
            written += bytes(-len(written) % B)
            shutil.copytree(rig.state_path, rig.folder / "state-before")
            for at in range(end, len(written) // B + 1):
                shutil.rmtree(rig.state_path)
                shutil.copytree(rig.folder / "state-before", rig.state_path)
                group.write_bytes(ENDS[ending](written, at))
                async with rig.node(kill=True) as vdisks:
                    found = await content(await opened(vdisks, VDISK))
                    for i in range(0, MIB, B):
                        assert found[i : i + B] in (OLD_STATE[i : i + B], NEW_STATE[i : i + B])
                    await sound(vdisks, VDISK)
            assert found == NEW_STATE  # nothing was lost the last time

        run(main)

    @pytest.mark.parametrize("ending", ["zeroed", "one block zeroed"])
    def test_after_a_cut_life_goes_on_and_a_second_cut_finds_what_was_flushed_since(
        self, rig: Rig, ending: str
    ) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                _, end = await flush_and_change(vdisks)
                await vdisks.flush(VDISK)
            (group,) = rig.group_files(VDISK)
            written = bytearray(group.read_bytes().rstrip(b"\0"))
            written += bytes(-len(written) % B)
            for at in range(end, len(written) // B):
                rig.lose_state()
                for other in rig.group_files(VDISK)[1:]:
                    other.unlink()
                group.write_bytes(ENDS[ending](written, at))
                async with rig.node(kill=True) as vdisks:
                    head = await opened(vdisks, VDISK)
                    before = await content(head)
                    await write(head, 50 * B, block(at))
                    await vdisks.flush(VDISK)
                rig.lose_state()
                async with rig.node(kill=True) as vdisks:
                    head = await opened(vdisks, VDISK)
                    assert await content(head) == before[: 50 * B] + block(at) + before[51 * B :]
                    await sound(vdisks, VDISK)

        run(main)

    def test_a_vdisk_whose_first_flush_was_torn_is_empty_and_goes_on(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, VDISK, MIB)
                await write(head, 0, FLUSHED)
                await vdisks.flush(VDISK)
            (group,) = rig.group_files(VDISK)
            group.write_bytes(bytes(B) + group.read_bytes()[B:])
            rig.lose_state()
            async with rig.node(kill=True) as vdisks:
                head = await opened(vdisks, VDISK)
                assert (head.size, head.log.version) == (0, 0)
                await write(head, B, block(5))
                await vdisks.flush(VDISK)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, VDISK)) == bytes(B) + block(5)
                await sound(vdisks, VDISK)

        run(main)


def flip(path: pathlib.Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


class TestDamage:
    @pytest.mark.parametrize("known_by", ["index", "resting summary"])
    def test_a_flipped_byte_in_the_last_durable_commit_is_an_error_there_and_no_step_back(
        self, rig: Rig, known_by: str
    ) -> None:
        async def main() -> None:
            async with rig.node(kill=known_by == "index") as vdisks:
                await flush_and_change(vdisks)
                await vdisks.flush(VDISK)
                vdisks.workspace.index.flush()
            (group,) = rig.group_files(VDISK)
            flip(group, group.read_bytes().index(NEW[B : 2 * B]) + 77)
            if known_by == "resting summary":
                rig.lose_state()
            async with rig.node(kill=True) as vdisks:
                head = await opened(vdisks, VDISK)
                assert head.log.version == 2
                for number in range(16):
                    offset = number * B
                    if number == 4:
                        with pytest.raises(Corrupt, match="fails its checksum"):
                            await read(head, offset, B)
                    else:
                        assert await read(head, offset, B) == NEW_STATE[offset : offset + B]
                await write(head, 4 * B, block(9))
                assert await read(head, 4 * B, B) == block(9)

        run(main)

    @pytest.mark.parametrize("known_by", ["index", "resting summary"])
    def test_lost_commits_that_were_known_to_be_durable_are_reported(
        self, rig: Rig, caplog: pytest.LogCaptureFixture, known_by: str
    ) -> None:
        async def main() -> None:
            async with rig.node(kill=known_by == "index") as vdisks:
                _, end = await flush_and_change(vdisks)
                await vdisks.flush(VDISK)
                vdisks.workspace.index.flush()
            (group,) = rig.group_files(VDISK)
            whole = group.read_bytes()
            if known_by == "resting summary":
                rig.lose_state()
            for damaged in (whole[: end * B], whole[: B * 5], b"", None):
                group.unlink()
                if damaged is not None:
                    group.write_bytes(damaged)
                for _ in range(2):  # and it stays reported
                    async with rig.node(kill=True) as vdisks:
                        with pytest.raises(Corrupt, match="lost commits that were durable"):
                            await vdisks.open(VDISK)
                group.touch()
            group.write_bytes(whole)
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, VDISK)) == NEW_STATE

        run(main)
        expect_errors(caplog, "unflushed writes are lost")

    def test_a_truncated_older_group_loses_its_blocks_and_nothing_else(
        self, rig: Rig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("replication.log.GROUP_BLOCKS", 32)

        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, VDISK, MIB)
                for at in range(0, 100, 20):
                    await write(head, at * B, blocks(*range(at, at + 20)))
                    await vdisks.flush(VDISK)
            first = rig.group_files(VDISK)[0]
            first.write_bytes(first.read_bytes()[: 7 * B])
            async with rig.node(kill=True) as vdisks:
                head = await opened(vdisks, VDISK)
                for number in range(100):
                    if 7 <= number < 20:
                        with pytest.raises(Corrupt, match="is missing"):
                            await read(head, number * B, B)
                    else:
                        assert await read(head, number * B, B) == block(number)
            rig.lose_state()
            async with rig.node(kill=True) as vdisks:
                with pytest.raises(Corrupt, match="no commit record where the log says"):
                    await vdisks.open(VDISK)

        run(main)

    def test_a_damaged_record_in_the_middle_is_reported_and_costs_no_index(
        self, rig: Rig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, VDISK, MIB)
                places = []
                for number in range(5):
                    await write(head, number * B, block(number))
                    await vdisks.flush(VDISK)
                    places.append(head.log.record_place & 0xFFFF)
                    if number == 1:
                        vdisks.workspace.index.flush()
            (group,) = rig.group_files(VDISK)
            whole = group.read_bytes()
            flip(group, places[3] * B + 40)
            for _ in range(2):
                async with rig.node(kill=True) as vdisks:
                    with pytest.raises(Corrupt):
                        await vdisks.open(VDISK)
                    state = vdisks.workspace.index.state(VDISK)
                    assert (state.version if state else 0) == 2
            group.write_bytes(whole)
            async with rig.node() as vdisks:
                assert (await content(await opened(vdisks, VDISK)))[: 5 * B] == blocks(*range(5))
                await sound(vdisks, VDISK)

        run(main)
        expect_errors(caplog, "unflushed writes are lost")

    def test_a_pool_of_another_past_is_no_past_of_this_index(self, rig: Rig) -> None:
        """Restored from a copy and then written: same versions, other commits. The pool is the truth."""

        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, VDISK, MIB)
                await write(head, 0, block(1))
                await vdisks.flush(VDISK)
            (group,) = rig.group_files(VDISK)
            copy = group.read_bytes()
            for value, keep in ((2, False), (3, True)):
                async with rig.node(kill=True) as vdisks:
                    head = await opened(vdisks, VDISK)
                    await write(head, value * B, block(value))
                    await vdisks.flush(VDISK)
                    vdisks.workspace.index.flush()
                if not keep:
                    shutil.copytree(rig.state_path, rig.folder / "other")
                    group.write_bytes(copy)
                    rig.lose_state()
            shutil.rmtree(rig.state_path)
            (rig.folder / "other").rename(rig.state_path)
            async with rig.node() as vdisks:
                head = await opened(vdisks, VDISK)
                assert (await content(head))[: 4 * B] == block(1) + bytes(2 * B) + block(3)
                await sound(vdisks, VDISK)

        run(main)


class TestForgery:
    def test_guest_data_that_looks_like_records_is_data(self, rig: Rig) -> None:
        """Without the pool's salt no guest can make a record; copies of real ones are in the wrong place."""

        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, VDISK, MIB)
                await write(head, 0, block(1))
                await vdisks.flush(VDISK)
                (group,) = rig.group_files(VDISK)
                real = group.read_bytes()[(head.log.tail - 1) * B : head.log.tail * B]
                assert real[:8] == b"VDFSREC1"
                forged = CommitRecord(
                    VDISK,
                    Version(99),
                    Version(1),
                    head.log.record_place,
                    head.log.record_check,
                    5 * MIB,
                    0,
                    0,
                    0,
                )
                data, _ = encode_record(
                    forged, group_seed(0, VDISK, head.log.record_place >> 16) + head.log.tail
                )
                lies = [real, data, b"VDFSREC1" + bytes(B - 8), (b"VDFSREC1" + b"\xff" * 32).ljust(B, b"\1")]
                for number, lie in enumerate(lies):
                    await write(head, (number + 1) * B, lie)
                await vdisks.flush(VDISK)
                await write(head, 9 * B, real)
            rig.lose_state()
            async with rig.node() as vdisks:
                head = await opened(vdisks, VDISK)
                assert (head.log.version, head.size) == (2, MIB)
                assert (await content(head))[: 5 * B] == block(1) + b"".join(lies)
                await sound(vdisks, VDISK)

        run(main)

    def test_another_vdisk_s_group_in_the_place_of_its_own_is_none(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                for vdisk in (VDISK, VDISK + 1):
                    head = await create(vdisks, vdisk, MIB)
                    await write(head, 0, block(vdisk))
                    await vdisks.flush(vdisk)
            (mine,), (other,) = rig.group_files(VDISK), rig.group_files(VDISK + 1)
            mine.write_bytes(other.read_bytes())
            rig.lose_state()
            async with rig.node(kill=True) as vdisks:
                assert (await opened(vdisks, VDISK)).log.version == 0
                assert await read(await opened(vdisks, VDISK + 1), 0, B) == block(VDISK + 1)

        run(main)


class TestRebuilding:
    def test_a_rebuilt_index_equals_the_lost_one(self, rig: Rig) -> None:
        """I10, after random writes, holes, truncations and many commits."""
        chance = random.Random(5)

        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, VDISK, 20 * MIB)
                for _ in range(400):
                    at, count = chance.randrange(5000) * B, chance.randrange(1, 40)
                    match chance.choice("wwwpft"):
                        case "w":
                            await write(head, at, chance.randbytes(count * B))
                        case "p":
                            await head_write.punch(head, at, count * 10 * B)
                        case "t":
                            await head_write.truncate(head, chance.randrange(20 * MIB))
                        case _:
                            await vdisks.flush(VDISK)
                await vdisks.flush(VDISK)
                index, pool = vdisks.workspace.index, vdisks.workspace.pool
                rebuilt = Index(str(rig.folder / "rebuilt"))
                recovered = recover(pool, rebuilt, Lineage(VDISK))
                assert recovered.state == index.state(VDISK)
                assert recovered.last_version == head.log.version
                newest = (1 << 64) - 1
                rows = [{v: r for v, r in i.rows_at(VDISK, newest) if any(r)} for i in (index, rebuilt)]
                assert rows[0] == rows[1]
                await sound(vdisks, VDISK)
                rebuilt.close()

        run(main)

    def test_recovering_twice_changes_nothing(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                await flush_and_change(vdisks)
                await vdisks.flush(VDISK)
                pool, index = vdisks.workspace.pool, vdisks.workspace.index
                first, told = recover(pool, index, Lineage(VDISK)), []
                assert recover(pool, index, Lineage(VDISK), progress=lambda *n: told.append(n)) == first
                assert told == []  # nothing to replay

        run(main)

    def test_progress_is_told_while_many_commits_are_replayed(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, VDISK, MIB)
                for number in range(30):
                    await write(head, number * B, block(number))
                    await vdisks.flush(VDISK)
                index, told = Index(str(rig.folder / "rebuilt")), []
                recover(vdisks.workspace.pool, index, Lineage(VDISK), progress=lambda *n: told.append(n))
                index.close()
                assert told[0] == (0, 30)

        run(main)

    def test_rows_of_kept_versions_survive_a_rebuild(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, VDISK, 3 * MIB)
                for number in range(1, 7):
                    await write(head, 0, block(number))
                    await write(head, MIB + number * B, block(number))
                    if number == 5:
                        await head_write.truncate(head, MIB)
                    await vdisks.flush(VDISK)
                index = Index(str(rig.folder / "rebuilt"))
                recover(vdisks.workspace.pool, index, Lineage(VDISK, kept=(2, 4)))
                rows = {version: index.row_at(VDISK, 1, version) for version in (2, 4, 6)}
                index.close()
                counts = {v: sum(place > 2 for place in row) for v, row in rows.items() if row is not None}
                assert counts == {2: 2, 4: 4, 6: 1}

        run(main)

    def test_a_vdisk_without_groups_has_no_tail(self, rig: Rig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                with LogReader(vdisks.workspace.pool, VDISK) as reader:
                    assert reader.find_tail() is None
                    with pytest.raises(NotFound):
                        reader.record_at(1 << 60)
                assert (
                    recover(vdisks.workspace.pool, vdisks.workspace.index, Lineage(VDISK)).state
                    == VdiskState()
                )

        run(main)

    def test_a_parent_and_its_clone_opened_together_apply_the_parent_s_log_once(self, rig: Rig) -> None:
        async def main() -> None:
            from replication.cloning import copy_range

            async with rig.node(kill=True) as vdisks:
                parent, clone = await create(vdisks, VDISK, MIB), await create(vdisks, VDISK + 1)
                await write(parent, 0, FLUSHED)
                await copy_range(vdisks, parent, clone, offset=0, to=0, length=MIB)
                for number in range(40):
                    await write(parent, number * B, block(1000 + number))
                    await vdisks.flush(VDISK)
                await vdisks.flush(VDISK + 1)
            rig.lose_state()
            async with rig.node() as vdisks:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(vdisks.open, VDISK + 1)
                    nursery.start_soon(vdisks.open, VDISK)
                heads = vdisks.heads
                assert await content(heads[VDISK + 1]) == OLD_STATE
                assert (await content(heads[VDISK]))[: 40 * B] == blocks(*range(1000, 1040))
                await sound(vdisks, VDISK, VDISK + 1)

        run(main)


def test_a_vdisk_at_rest_is_opened_without_a_look_at_its_groups(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await flush_and_change(vdisks)
            await close_and_rest(vdisks, VDISK)
            (group,) = rig.group_files(VDISK)
            group.rename(group.with_suffix(".away"))
            head = await opened(vdisks, VDISK)
            assert (head.size, head.log.version) == (MIB, 2)
            assert await read(head, 8 * B, B) == bytes(B)
            with pytest.raises(NotFound):
                await read(head, 0, B)
            group.with_suffix(".away").rename(group)
            assert await content(head) == NEW_STATE
            assert head.rows[0][8] == HOLE

    run(main)
