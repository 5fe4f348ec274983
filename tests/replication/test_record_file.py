"""Files in which a daemon notes something for the next one."""

import os
import pathlib

import pytest

from replication.record_file import WASTE_MAX, RecordFile

Pairs = dict[int, int]


def record_file(path: pathlib.Path, pairs: Pairs, *, is_needed: bool = False) -> RecordFile:
    return RecordFile(
        str(path), "<QQ", what="pairs", current=lambda: list(pairs.items()), is_needed=is_needed
    )


def test_what_was_added_is_read_in_order_and_what_counts_is_left(tmp_path: pathlib.Path) -> None:
    pairs: Pairs = {1: 10}
    file = record_file(tmp_path / "file", pairs)
    assert list(file.read()) == []
    file.add((9, 9))  # not begun
    file.rewrite()
    file.add((2, 20), (1, 11))
    assert list(file.read()) == [(1, 10), (2, 20), (1, 11)]
    pairs |= {1: 11, 2: 20}
    file.rewrite()
    file.add((3, 30))
    file.close()
    assert list(file.read()) == [(1, 11), (2, 20), (3, 30)]
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("at", range(24))
def test_a_flipped_byte_ends_the_list(tmp_path: pathlib.Path, at: int) -> None:
    file, path = record_file(tmp_path / "file", {1: 10, 2: 20, 3: 30}), tmp_path / "file"
    file.rewrite()
    file.close()
    data = bytearray(path.read_bytes())
    data[24 + at] ^= 1
    path.write_bytes(data)
    assert list(file.read()) == [(1, 10)]
    path.write_bytes(data[:23])
    assert list(file.read()) == []


def test_it_does_not_grow_without_end(tmp_path: pathlib.Path) -> None:
    pairs: Pairs = dict.fromkeys(range(100), 1)
    file = record_file(tmp_path / "file", pairs)
    file.rewrite()
    for number in range(3 * WASTE_MAX):
        pairs[7] = number
        file.add((7, number))
    assert (tmp_path / "file").stat().st_size < 24 * (WASTE_MAX + 300)
    assert dict(file.read()) == pairs


def test_a_disk_that_does_not_take_it_is_an_error_where_it_is_needed(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "gone" / "file"
    record_file(path, {1: 10}).rewrite()
    assert "pairs: not noted for the next daemon" in caplog.text
    with pytest.raises(FileNotFoundError):
        record_file(path, {1: 10}, is_needed=True).rewrite()


def test_after_a_full_disk_the_list_is_whole_again(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pairs: Pairs = {1: 10}
    file, write = record_file(tmp_path / "file", pairs), os.write
    file.rewrite()
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
    pairs[2] = 20
    file.add((2, 20))
    assert "No space left" in caplog.text
    monkeypatch.undo()
    assert list(file.read()) == [(1, 10)]
    pairs[3] = 30
    file.add((3, 30))
    assert dict(file.read()) == pairs
    file.close()
    file.add((4, 40))
    assert dict(file.read()) == pairs
