"""Back from a kill: every acknowledged write, in order; what lost its bytes is void."""

import pytest

from metadata.errors import Unavailable
from metadata.ids import CUT, HOLE, PARENT, group_id
from metadata.journal_entries import ENTRY_BYTES, JournalEntry
from replication import head_write
from replication.cloning import copy_range
from replication.replay import replay, verify_entries
from tests.replication.faults import FaultyRig
from tests.replication.rig import (
    B,
    Rig,
    block,
    blocks,
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


def test_all_kinds_of_changes_come_back_in_order(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            head = await create(vdisks, 20, 8 * MIB)
            for number in range(8):
                await write(head, number * MIB, blocks(*range(number, number + 3)))
            await vdisks.flush(20)
            await head_write.truncate(head, 2 * MIB + 100)
            await head_write.truncate(head, 5 * MIB)
            await write(head, 4 * MIB, block(9))
            await head_write.punch(head, 0, 2 * B)
            await write(head, B, block(10))
            await write(head, MIB - B, blocks(11, 12, 13))
            await head_write.truncate(head, 5 * MIB + 3)
            wanted, size, own = await content(head), head.size, head.own_blocks
        async with rig.node(kill=True) as vdisks:
            head = await opened(vdisks, 20)
            assert (await content(head), head.size, head.own_blocks) == (wanted, size, own)
            assert (head.log.version, head.is_dirty) == (2, False)  # committed at once
            await sound(vdisks, 20)
        rig.lose_state()
        async with rig.node() as vdisks:
            assert await content(await opened(vdisks, 20)) == wanted

    run(main)


def test_a_daemon_that_dies_again_and_again_loses_nothing(rig: Rig) -> None:
    async def main() -> None:
        for number in range(8):
            async with rig.node(kill=True) as vdisks:
                head = await (opened(vdisks, 20) if number else create(vdisks, 20, MIB))
                assert (await content(head))[: number * B] == blocks(*range(number))
                await write(head, number * B, block(number))
                if number % 3 == 2:
                    await vdisks.flush(20)
                    await write(head, 100 * B, block(number))

    run(main)


def test_a_kill_during_the_replay_s_own_commit_only_means_another_replay(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(1, 2, 3))
        for _ in range(3):
            faulty.faults.failing["write"] = 1  # the record's
            async with faulty.node(kill=True) as vdisks:
                head = await opened(vdisks, 20)
                assert head.is_dirty
                assert await read(head, 0, 3 * B) == blocks(1, 2, 3)
        async with faulty.node() as vdisks:
            assert await read(await opened(vdisks, 20), 0, 3 * B) == blocks(1, 2, 3)
            await sound(vdisks, 20)

    run(main)


def test_writes_after_a_replay_do_not_touch_what_it_brought_back(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, block(0))
            await vdisks.flush(20)
            for number in range(1, 6):
                await write(head, number * B, block(number))
        async with rig.node(kill=True) as vdisks:
            head = await opened(vdisks, 20)
            await write(head, 10 * B, blocks(*range(10, 20)))
            assert (await content(head))[: 20 * B] == blocks(*range(6)) + bytes(4 * B) + blocks(
                *range(10, 20)
            )
            await sound(vdisks, 20)

    run(main)


def test_a_write_whose_bytes_are_gone_is_void_and_the_others_come_back(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(1, 2, 3))
            await vdisks.flush(20)
            await write(head, 0, block(11))
            await write(head, B, blocks(12, 13))
            await write(head, 5 * B, block(15))
        (group,) = rig.group_files(20)
        data = bytearray(group.read_bytes())
        at = data.index(block(13))
        data[at : at + B] = bytes(B)
        group.write_bytes(data)
        async with rig.node() as vdisks:
            head = await opened(vdisks, 20)
            assert (await content(head))[: 6 * B] == blocks(11, 2, 3) + bytes(2 * B) + block(15)
            await write(head, 6 * B, block(16))
            assert await read(head, 5 * B, 2 * B) == blocks(15, 16)
            await sound(vdisks, 20)

    run(main)


def test_what_a_commit_holds_already_is_not_replayed(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, block(1))
            await vdisks.flush(20)
            await write(head, 0, block(2))
            await vdisks.flush(20)
            vdisks.workspace.journal.keep_from(1)  # the hint never reached the disk
        async with rig.node(kill=True) as vdisks:
            head = await opened(vdisks, 20)
            assert (head.log.version, await read(head, 0, B)) == (2, block(2))

    run(main)


def test_a_commit_that_failed_and_the_writes_during_it_come_back(faulty: FaultyRig) -> None:
    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, blocks(1, 2))
            faulty.faults.failing["sync"] = 5
            for number in range(3, 6):
                with pytest.raises(Unavailable):
                    await vdisks.flush(20)
                faulty.faults.failing["sync"] = 1 if number < 5 else 0
                await write(head, number * B, block(number))
        async with faulty.node() as vdisks:
            head = await opened(vdisks, 20)
            assert (await content(head))[: 6 * B] == blocks(1, 2) + bytes(B) + blocks(3, 4, 5)
            await sound(vdisks, 20)

    run(main)


def test_what_a_replay_brought_back_does_not_come_again_over_later_writes(faulty: FaultyRig) -> None:
    """Numbers of commits that failed are burnt: what was written behind them is of a version far from the log's.

    And a power cut may take the journal's hint, which lies in another page than the entries that it speaks of.
    """
    journal = faulty.state_path / "journal"

    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            for number in range(4):
                await write(head, number * B, block(number))
                faulty.faults.failing["write"] = 1
                with pytest.raises(Unavailable):
                    await vdisks.flush(20)
            await write(head, 0, block(10))
        hint = journal.read_bytes()[-ENTRY_BYTES:]
        async with faulty.node(kill=True) as vdisks:
            head = await opened(vdisks, 20)
            assert await read(head, 0, B) == block(10)
            await write(head, 0, block(11))
            await vdisks.flush(20)
        journal.write_bytes(journal.read_bytes()[:-ENTRY_BYTES] + hint)
        async with faulty.node() as vdisks:
            assert await read(await opened(vdisks, 20), 0, B) == block(11)
            await sound(vdisks, 20)

    run(main)


def test_a_vdisk_that_cannot_be_read_at_the_start_gets_its_writes_when_it_can(
    faulty: FaultyRig, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, block(1))
            await vdisks.flush(20)
            await write(head, B, block(2))
        faulty.faults.failing["open"] = 1
        async with faulty.node() as vdisks:
            assert await read(await opened(vdisks, 20), 0, 2 * B) == blocks(1, 2)

    run(main)
    expect_errors(caplog, "unflushed writes are lost")


def test_a_replay_that_fails_half_way_begins_anew(faulty: FaultyRig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entries are not forgotten before they are in the head."""

    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, block(1))
            await vdisks.flush(20)
            await write(head, B, block(2))
        failures = [Unavailable("the index does not answer")]

        async def flaky(*arguments: object) -> int:
            if failures:
                raise failures.pop()
            return await replay(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr("replication.vdisks.replay", flaky)
        async with faulty.node() as vdisks:
            assert await read(await opened(vdisks, 20), 0, 2 * B) == blocks(1, 2)

    with pytest.MonkeyPatch.context() as quiet:
        quiet.setattr("replication.vdisks.log.error", lambda *_: None)
        run(main)


def test_a_clone_s_parent_places_come_back_and_a_cut_takes_its_overlap_along(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            parent, clone = await create(vdisks, 20, 2 * MIB), await create(vdisks, 21)
            await write(parent, 0, blocks(*range(300)))
            await copy_range(vdisks, parent, clone, offset=0, to=0, length=2 * MIB)
            await write(clone, B, block(9))
            await write(parent, 0, block(8))
            assert clone.log.version == 0
            wanted = await content(clone)
            clone.overlap = 3 * MIB  # as a clone made with its parent showing through has it
            await head_write.truncate(clone, MIB)
        async with rig.node() as vdisks:
            clone = await opened(vdisks, 21)
            assert (await content(clone), clone.overlap) == (wanted[:MIB], 0)
            await sound(vdisks, 20, 21)

    run(main)


def test_entries_are_verified_against_the_bytes_they_name(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            head = await create(vdisks, 20, MIB)
            await write(head, 0, block(1))
            place = head.rows[0][0]
            sums = head.groups.checksums_nowait(place, 1)
            assert sums is not None
            entries = [
                JournalEntry(1, 20, 1, 0, place, MIB, 1, sums[0]),
                JournalEntry(2, 20, 1, 0, place, MIB, 1, sums[0] ^ 1),
                JournalEntry(3, 20, 1, 0, place + 1, MIB, 1, sums[0]),
                JournalEntry(4, 20, 1, 0, group_id(9, 9) << 16, MIB, 1, sums[0]),
                JournalEntry(5, 20, 1, 0, HOLE, MIB, 5, 0),
                JournalEntry(6, 20, 1, 0, PARENT, MIB, 5, 0),
                JournalEntry(7, 20, 1, 0, CUT, MIB, 1, 0),
                JournalEntry(8, 20, 1, 0, HOLE, 5, 0, 0),
                JournalEntry(9, 20, 1, 0, place, MIB, 20000, 0),
            ]
            verified = verify_entries(vdisks.workspace, entries)
            assert [entry.sequence for entry, _ in verified] == [1, 5, 6, 7, 8]

    run(main)
