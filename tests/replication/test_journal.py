"""The ring: what is still needed is never overwritten, and whole entries come back in order, whatever was torn."""

import pathlib
import random

import pytest

from metadata.errors import Unavailable
from metadata.ids import HOLE, group_id
from metadata.journal_entries import ENTRY_BYTES, JournalEntry, encode_entry
from replication.journal import CAPACITY, Journal

SALT = 99
PLACE = group_id(1, 0) << 16


def opened(folder: pathlib.Path, capacity: int = 8) -> Journal:
    return Journal(str(folder / "journal"), SALT, capacity=capacity)


def note(journal: Journal, block_no: int, *, vdisk: int = 20, version: int = 1) -> None:
    journal.append(vdisk, version, block_no, PLACE, 4096, 1, 7)


def replayed(journal: Journal) -> dict[int, list[int]]:
    return {vdisk: [e.block_no for e in entries] for vdisk, entries in journal.replay().items()}


def test_entries_come_back_by_vdisk_in_the_order_they_were_noted(tmp_path: pathlib.Path) -> None:
    journal = opened(tmp_path)
    for number, vdisk in enumerate((20, 21, 20, 22, 21)):
        note(journal, number, vdisk=vdisk)
    journal.close()
    again = opened(tmp_path)
    assert replayed(again) == {20: [0, 2], 21: [1, 4], 22: [3]}
    assert (again.sequence, again.room()) == (6, 8 - 5)
    again.close()


def test_an_entry_lies_at_its_sequence_in_the_ring_and_the_hint_behind(tmp_path: pathlib.Path) -> None:
    journal = opened(tmp_path)
    note(journal, 5)
    journal.keep_from(1)
    journal.close()
    content = (tmp_path / "journal").read_bytes()
    entry = JournalEntry(1, 20, 1, 5, PLACE, 4096, 1, 7)
    assert content[64:128] == encode_entry(entry, SALT)
    assert content[8 * 64 : 8 * 64 + 8] == (1).to_bytes(8, "little")
    assert len(content) == 9 * ENTRY_BYTES
    assert (CAPACITY + 1) * ENTRY_BYTES == 16 * 1024 * 1024 + 64


def test_the_ring_turns_and_only_what_is_needed_comes_back(tmp_path: pathlib.Path) -> None:
    journal = opened(tmp_path)
    for number in range(100):
        if journal.room() < 2:
            journal.keep_from(journal.sequence - 3)
        note(journal, number)
    journal.close()
    again = opened(tmp_path)
    (numbers,) = replayed(again).values()
    assert numbers == list(range(numbers[0], 100))
    assert 3 <= len(numbers) <= 8
    again.close()


def test_there_is_room_for_as_many_as_fit_before_the_oldest_that_is_needed(tmp_path: pathlib.Path) -> None:
    journal = opened(tmp_path)
    assert journal.room() == 8
    for number in range(8):
        note(journal, number)
    assert journal.room() == 0
    journal.keep_from(3)
    assert journal.room() == 2
    journal.keep_from(journal.sequence)
    assert journal.room() == 8
    journal.close()


def test_nothing_comes_back_that_was_said_to_be_needed_no_more(tmp_path: pathlib.Path) -> None:
    journal = opened(tmp_path)
    for number in range(5):
        note(journal, number)
    journal.keep_from(journal.sequence)
    journal.close()
    again = opened(tmp_path)
    assert (again.replay(), again.sequence, again.room()) == ({}, 6, 8)
    note(again, 9)
    again.close()
    third = opened(tmp_path)
    assert replayed(third) == {20: [9]}
    third.close()


@pytest.mark.parametrize("kept", range(0, 9 * ENTRY_BYTES, 24))
def test_of_a_journal_cut_anywhere_the_whole_entries_come_back(tmp_path: pathlib.Path, kept: int) -> None:
    journal = opened(tmp_path)
    for number in range(1, 8):
        note(journal, number)
    journal.close()
    path = tmp_path / "journal"
    path.write_bytes(path.read_bytes()[:kept])
    again = opened(tmp_path)
    assert replayed(again).get(20, []) == list(range(1, min(8, kept // ENTRY_BYTES)))
    assert again.capacity == 8
    again.close()


def test_damaged_entries_are_left_out_and_the_others_come_back(tmp_path: pathlib.Path) -> None:
    chance = random.Random(1)
    for _ in range(50):
        (tmp_path / "journal").unlink(missing_ok=True)
        journal = opened(tmp_path)
        for number in range(1, 8):
            note(journal, number)
        journal.close()
        path, torn = tmp_path / "journal", chance.randrange(1, 8)
        content = bytearray(path.read_bytes())
        content[torn * 64 + chance.randrange(64)] ^= 1 << chance.randrange(8)
        path.write_bytes(content)
        again = opened(tmp_path)
        assert replayed(again) == {20: [n for n in range(1, 8) if n != torn]}
        again.close()


def test_garbage_is_no_journal_and_does_no_harm(tmp_path: pathlib.Path) -> None:
    (tmp_path / "journal").write_bytes(random.Random(1).randbytes(8 * ENTRY_BYTES) + bytes(64))
    journal = opened(tmp_path)
    assert journal.replay() == {}
    note(journal, 1)
    journal.close()
    again = opened(tmp_path)
    assert replayed(again) == {20: [1]}
    again.close()


def test_another_pool_s_entries_are_void(tmp_path: pathlib.Path) -> None:
    journal = opened(tmp_path)
    note(journal, 1)
    journal.close()
    other = Journal(str(tmp_path / "journal"), SALT + 1, capacity=8)
    assert other.replay() == {}
    other.close()


def test_a_longer_journal_keeps_its_length_and_its_entries(tmp_path: pathlib.Path) -> None:
    journal = opened(tmp_path, capacity=20)
    for number in range(15):
        note(journal, number)
    journal.close()
    again = opened(tmp_path, capacity=8)
    assert again.capacity == 20
    assert replayed(again) == {20: list(range(15))}
    again.close()


def test_a_journal_that_cannot_be_opened_says_so(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Unavailable, match="path="):
        opened(tmp_path / "absent")


def test_a_hint_that_nobody_gave_is_none(tmp_path: pathlib.Path) -> None:
    journal = opened(tmp_path)
    note(journal, 1)
    journal.close()
    path = tmp_path / "journal"
    for hint in ((1 << 64) - 1, 1 << 63, 100):
        path.write_bytes(path.read_bytes()[:-64] + hint.to_bytes(64, "little"))
        again = opened(tmp_path)
        assert replayed(again)[20][0] == 1
        note(again, 2)
        again.close()


def test_a_hint_that_outlived_its_entries_does_not_void_later_ones(tmp_path: pathlib.Path) -> None:
    """A power cut may keep the hint's page and lose those before it; the sequences are used again then."""
    journal = opened(tmp_path)
    note(journal, 1)
    journal.keep_from(4)
    journal.close()
    again = opened(tmp_path)
    assert replayed(again) == {20: [1]}
    for number in (2, 3, 4):
        note(again, number)
    again.close()  # killed before anything was committed
    last = opened(tmp_path)
    assert replayed(last) == {20: [1, 2, 3, 4]}
    last.close()


def test_any_order_of_appends_and_needs_replays_all_that_is_needed(tmp_path: pathlib.Path) -> None:
    chance = random.Random(2)
    journal, noted, oldest = opened(tmp_path, capacity=16), dict[int, int](), 1
    journal.replay()
    for step in range(400):
        if chance.random() < 0.03:
            journal.close()
            journal = opened(tmp_path, capacity=16)
            entries = [entry for of_one in journal.replay().values() for entry in of_one]
            assert entries == sorted(entries, key=lambda entry: entry.sequence)
            found = {entry.sequence: entry.block_no for entry in entries}
            assert found == {sequence: n for sequence, n in noted.items() if sequence >= oldest}
        elif journal.room() and chance.random() < 0.7:
            noted[journal.sequence] = step
            journal.append(20, 1, step, HOLE, 0, 1, 0)
        else:
            oldest = chance.randint(oldest, journal.sequence)
            journal.keep_from(oldest)
    journal.close()
