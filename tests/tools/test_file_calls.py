"""Calls on files that Python has no names for: what they replace, exchange and punch, and what they refuse."""

import os
import pathlib

import pytest

from metadata.errors import Exists
from tools import file_calls
from tools.file_calls import exchange_names, punch_hole, rename_new, sync


@pytest.fixture
def two(tmp_path: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path]:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("1")
    other.write_text("2")
    return one, other


def test_a_rename_replaces_nothing(two: tuple[pathlib.Path, pathlib.Path], tmp_path: pathlib.Path) -> None:
    one, other = two
    with pytest.raises(Exists, match=f"{other} exists"):
        rename_new(str(one), str(other))
    assert (one.read_text(), other.read_text()) == ("1", "2")
    rename_new(str(one), str(tmp_path / "new"))
    assert ((tmp_path / "new").read_text(), one.exists()) == ("1", False)
    with pytest.raises(FileNotFoundError):
        rename_new(str(one), str(tmp_path / "another"))
    with pytest.raises(OSError, match="too long"):
        rename_new(str(other), str(tmp_path / ("x" * 300)))


@pytest.mark.parametrize("number", [22, 38])
def test_a_filesystem_that_knows_no_flags_renames_all_the_same(
    number: int,
    two: tuple[pathlib.Path, pathlib.Path],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(file_calls, "_rename", lambda source, target, flags: number)
    rename_new(str(two[0]), str(tmp_path / "new"))
    assert (tmp_path / "new").read_text() == "1"
    with pytest.raises(OSError, match=r"Invalid argument|not implemented"):
        exchange_names(str(two[1]), str(tmp_path / "new"))


def test_two_names_change_what_they_stand_for(two: tuple[pathlib.Path, pathlib.Path]) -> None:
    one, other = two
    exchange_names(str(one), str(other))
    assert (one.read_text(), other.read_text()) == ("2", "1")
    other.unlink()
    with pytest.raises(FileNotFoundError):
        exchange_names(str(one), str(other))
    assert one.read_text() == "2"


def test_a_hole_is_zeros_and_the_size_stays(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10000)
    with path.open("r+b") as file:
        punch_hole(file.fileno(), 4096, 1 << 20)
        sync(str(path))
        sync(str(tmp_path))
    assert path.read_bytes() == b"x" * 4096 + bytes(10000 - 4096)
    with path.open("rb") as file, pytest.raises(OSError, match="Bad file descriptor"):
        punch_hole(file.fileno(), 0, 1)
    with pytest.raises(FileNotFoundError):
        sync(str(tmp_path / "missing"))
    assert os.path.getsize(path) == 10000
