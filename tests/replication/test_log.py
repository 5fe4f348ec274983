"""The owner's log: room that covers the record too, commits that fail, and where a recovered log goes on."""

import os
import random
from array import array

import pytest

from metadata.errors import Corrupt, NoSpace, Unavailable
from metadata.ids import HOLE, PARENT, group_id
from metadata.records import EXTENT_BLOCKS_MAX, HEADER_BYTES
from replication import head_write, log
from replication.head import Head
from replication.log import GROUP_BLOCKS, STEP_BLOCKS_MAX, Pending
from replication.pool_directory import spare_bytes
from tests.replication.faults import FaultyRig
from tests.replication.rig import (
    B,
    Rig,
    block,
    blocks,
    close_and_rest,
    content,
    create,
    open_descriptors,
    opened,
    read,
    run,
    sound,
    write,
)

MIB = 1 << 20


class TestPending:
    def runs(self, pending: Pending) -> list[tuple[int, int, int]]:
        words = pending.extents
        return [(words[i] >> 16, (words[i] & 0xFFFF) + 1, words[i + 1]) for i in range(0, len(words), 2)]

    def test_extents_that_go_on_where_the_last_ends_are_one(self) -> None:
        pending, place = Pending(), group_id(1, 0) << 16
        for block_no, count, at in ((10, 1, place), (11, 3, place + 1), (14, 1, place + 9), (15, 1, HOLE)):
            pending.note(block_no, count, at)
        pending.note(16, 1, HOLE)
        assert self.runs(pending) == [(10, 4, place), (14, 1, place + 9), (15, 1, HOLE), (16, 1, HOLE)]
        assert pending.record_bytes() == HEADER_BYTES + 4 * 16

    def test_no_extent_is_longer_than_a_record_can_say(self) -> None:
        pending, place = Pending(), group_id(1, 0) << 16
        for start in range(0, 3 * EXTENT_BLOCKS_MAX, 1 << 14):
            pending.note(start, 1 << 14, place + start)
        assert sum(count for _, count, _ in self.runs(pending)) == 3 * EXTENT_BLOCKS_MAX
        assert max(count for _, count, _ in self.runs(pending)) <= EXTENT_BLOCKS_MAX
        shared = Pending()
        shared.note_shared(5, 2 * EXTENT_BLOCKS_MAX + 3, PARENT)
        assert [count for _, count, _ in self.runs(shared)] == [EXTENT_BLOCKS_MAX] * 2 + [3]

    def test_an_earlier_lot_comes_in_front_and_later_extents_still_win(self) -> None:
        earlier, later, place = Pending(first_sequence=3), Pending(first_sequence=9), group_id(1, 0) << 16
        earlier.note(1, 1, place)
        earlier.checksums.append(7)
        later.note(1, 1, place + 1)
        later.checksums.append(8)
        later.prepend(earlier)
        assert self.runs(later) == [(1, 1, place), (1, 1, place + 1)]
        assert (list(later.checksums), later.first_sequence) == ([7, 8], 3)
        later.note(2, 1, place + 2)
        assert len(self.runs(later)) == 3


def test_small_vdisks_reserve_little_and_streams_ask_seldom(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 64 * MIB)
            await write(head, 0, block(1))
            assert os.stat(rig.group_files(20)[0]).st_blocks * 512 < 400_000
            for at in range(1, 40):
                await write(head, at * MIB, blocks(*[at] * 256))
            assert head.log.limit - head.log.tail <= STEP_BLOCKS_MAX
            assert head.log.step == STEP_BLOCKS_MAX
            await close_and_rest(vdisks, 20)
            data_bytes = (39 * 256 + 1) * B
            assert data_bytes < os.stat(rig.group_files(20)[0]).st_blocks * 512 < data_bytes + 64 * B

    run(main)


def test_a_full_group_is_followed_by_the_next_and_one_record_covers_both(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "GROUP_BLOCKS", 64)

    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            head = await create(vdisks, 20, 4 * MIB)
            for at in range(10):
                await write(head, at * 30 * B, blocks(*range(at * 30, at * 30 + 30)))
            await vdisks.flush(20)
            assert head.log.version == 1
            assert len(rig.group_files(20)) == 5
            assert max(os.stat(path).st_size for path in rig.group_files(20)) < 100 * B
        rig.lose_state()
        async with rig.node() as vdisks:
            assert (await content(await opened(vdisks, 20)))[: 300 * B] == blocks(*range(300))
            await sound(vdisks, 20)

    run(main)
    assert GROUP_BLOCKS * B == 64 * MIB


@pytest.mark.parametrize("kind", ["overwrites", "scattered", "holes between", "holes first", "truncations"])
def test_a_full_pool_refuses_writes_and_still_flushes_what_it_accepted(faulty: FaultyRig, kind: str) -> None:
    """Room for the record was reserved with the data, whatever its extents are like."""
    chance = random.Random(1)

    async def one(head: Head, n: int) -> None:
        if kind == "overwrites":
            await write(head, 0, block(n))
        elif kind == "scattered":
            await write(head, chance.randrange(1000) * 7 * B, block(n))
        elif kind == "truncations":
            await write(head, 2 * MIB, block(n))
            await head_write.truncate(head, MIB)
        else:
            await write(head, 0, block(n))
            await head_write.punch(head, 0, B)

    async def until_refused(head: Head) -> None:
        for n in range(5000):
            await one(head, n)

    async def main() -> None:
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, 64 * MIB)
            while head.log.limit - head.log.tail < 1000:
                await write(head, 0, block(1))
            await vdisks.flush(20)
            if kind == "holes first":
                await head_write.punch(head, 0, B)
            faulty.faults.blocks_free = 0
            with pytest.raises(NoSpace):
                await until_refused(head)
            before = await content(head)
            await vdisks.flush(20)
            assert await content(head) == before
            faulty.faults.disarm()
            await one(head, 7)
            await vdisks.flush(20)
            await sound(vdisks, 20)

    run(main)


def test_guests_leave_free_what_collection_needs_and_commits_may_take_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = os.statvfs_result((B, B, 1 << 20, 0, spare_bytes(B << 20) // B + 100, 0, 0, 0, 0, 255))

    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 64 * MIB)
            monkeypatch.setattr(vdisks.workspace.pool, "statistics", lambda: disk)
            await write(head, 0, block(1))
            with pytest.raises(NoSpace):
                await write(head, 0, b"x" * (500 * B))
            head.log.limit = head.log.tail  # not even the record fits into what is there
            await vdisks.flush(20)
            assert (await content(head))[:B] == block(1)
            head.log.limit = head.log.tail
            await head_write.punch(head, 0, B)
            head.log.limit = head.log.tail
            await head_write.truncate(head, 32 * MIB)
            await vdisks.flush(20)
            assert await content(head) == bytes(32 * MIB)

    run(main)


def test_a_full_pool_costs_neither_files_nor_descriptors(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, 64 * MIB)
            await write(head, 0, block(0))
            faulty.faults.blocks_free = 0
            head.log.tail = head.log.limit = log.GROUP_BLOCKS  # the group is full: the next one is wanted
            before = open_descriptors(), len(faulty.group_files(20))
            for _ in range(5):
                with pytest.raises(NoSpace):
                    await write(head, 0, block(0))
            assert (open_descriptors(), len(faulty.group_files(20))) == before

    run(main)


@pytest.mark.parametrize("what", ["sync", "write"])
def test_a_commit_that_failed_is_made_again_from_a_new_group(faulty: FaultyRig, what: str) -> None:
    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, 4 * MIB)
            await write(head, 0, blocks(*range(100)))
            await head_write.punch(head, 5 * B, B)
            faulty.faults.failing[what] = 1
            with pytest.raises(Unavailable):
                await vdisks.flush(20)
            await write(head, 3 * B, block(1000))
            await vdisks.flush(20)
            assert (head.log.version, len(faulty.group_files(20))) == (2, 2)  # number 1 is burnt
            wanted = bytearray(blocks(*range(100)))
            wanted[3 * B : 4 * B], wanted[5 * B : 6 * B] = block(1000), bytes(B)
            assert (await content(head))[: 100 * B] == wanted
        faulty.group_files(20)[0].write_bytes(b"")  # nothing may be believed of it, so nothing is
        faulty.lose_state()
        async with faulty.node() as vdisks:
            assert (await content(await opened(vdisks, 20)))[: 100 * B] == wanted
            await sound(vdisks, 20)

    run(main)


def test_a_rescue_that_fails_is_tried_again_and_loses_nothing(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node() as vdisks:
            head = await create(vdisks, 20, 4 * MIB)
            await write(head, 0, blocks(*range(50)))
            faulty.faults.failing["sync"] = 1
            for what in ("sync", "create", "preallocate", "read", "write", "sync"):
                faulty.faults.failing[what] = 1
                with pytest.raises(Unavailable):
                    await vdisks.flush(20)
            faulty.faults.disarm()
            await vdisks.flush(20)
            assert len(faulty.group_files(20)) <= 3  # failed tries leave nothing
            assert (await content(head))[: 50 * B] == blocks(*range(50))
            await sound(vdisks, 20)

    run(main)


def test_pending_data_that_cannot_be_read_back_stays_an_error(faulty: FaultyRig) -> None:
    """No fsync claims success for lost data, however often it is asked (promise 12)."""

    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, block(1))
            await vdisks.flush(20)
            await write(head, B, block(2))
            faulty.faults.failing["sync"] = 1
            with pytest.raises(Unavailable):
                await vdisks.flush(20)
            assert head.log.file is not None
            head.log.file.write(bytes(B), head.log.tail - 2)  # the page was dropped, the disk never had it
            for _ in range(3):
                with pytest.raises(Corrupt):
                    await vdisks.flush(20)
            assert await read(head, 0, B) == block(1)

    run(main)


def test_a_log_goes_on_behind_its_last_record_and_what_lay_there_is_gone(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(1, 2, 3))
            await vdisks.flush(20)
            end = head.log.tail
        (group,) = rig.group_files(20)
        with group.open("r+b") as file:
            file.seek(end * B)
            file.write(os.urandom(9 * B))
        rig.lose_state()
        async with rig.node() as vdisks:
            head = await opened(vdisks, 20)
            await write(head, 0, block(9))
            assert (head.log.tail, len(rig.group_files(20))) == (end + 1, 1)
            assert group.read_bytes()[(end + 1) * B :].strip(b"\0") == b""
            await vdisks.flush(20)
            await sound(vdisks, 20)

    run(main)


def test_a_log_never_goes_on_in_front_of_a_later_group_nor_reuses_a_torn_number(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut tore the first commit of a new group: the next recovery must not meet it first."""
    monkeypatch.setattr(log, "GROUP_BLOCKS", 64)

    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            head = await create(vdisks, 20, 16 * MIB)
            await write(head, 0, blocks(*range(50)))
            await vdisks.flush(20)
            await write(head, MIB, blocks(*range(40)))
            await vdisks.flush(20)
        _, second = rig.group_files(20)
        with second.open("r+b") as file:
            file.seek(5 * B)
            file.write(bytes(B))
        rig.lose_state()
        async with rig.node(kill=True) as vdisks:
            head = await opened(vdisks, 20)
            assert await read(head, MIB, B) == bytes(B)
            await write(head, 2 * B, block(777))
            await vdisks.flush(20)
            assert head.log.version == 3
            await sound(vdisks, 20)
        for _ in range(2):
            async with rig.node(kill=True) as vdisks:
                head = await opened(vdisks, 20)
                assert await read(head, 2 * B, B) == block(777)
                await sound(vdisks, 20)
            rig.lose_state()

    run(main)


def test_another_owner_s_commits_go_to_groups_of_its_own(rig: Rig) -> None:
    async def main() -> None:
        for number, node in enumerate(("here", "there", "here", "here")):
            rig.node_name = node
            async with rig.node() as vdisks:
                head = await (opened(vdisks, 20) if number else create(vdisks, 20, MIB))
                await write(head, number * B, block(number))
                await vdisks.flush(20)
                assert head.log.epoch == (1, 2, 3, 3)[number]
        assert [path.name[:6] for path in rig.group_files(20)] == ["000001", "000002", "000003"]
        rig.lose_state()
        async with rig.node() as vdisks:
            head = await opened(vdisks, 20)
            assert (await content(head))[: 4 * B] == blocks(0, 1, 2, 3)
            await sound(vdisks, 20)

    run(main)


def test_extents_are_told_in_words_of_64_bits_up_to_the_end_of_the_largest_vdisk() -> None:
    pending = Pending()
    pending.note((1 << 48) - 1, 1, HOLE)
    assert pending.extents == array("Q", [((1 << 48) - 1) << 16, HOLE])
