"""Holes of local files, to the block."""

import os
import pathlib

import pytest

from metadata.units import BLOCK_BYTES as B
from replication.local_files import data_ranges, punch_hole


def test_whole_blocks_with_data_are_found_and_punched_ones_read_as_zeros(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    with path.open("w+b") as file:
        file.truncate(64 * B)
        assert data_ranges(file.fileno()) == []
        for first, count in ((0, 1), (16, 4), (40, 8)):
            os.pwrite(file.fileno(), b"x" * count * B, first * B)
        assert data_ranges(file.fileno()) == [(0, 1), (16, 20), (40, 48)]
        punch_hole(file.fileno(), 17, 19)
        punch_hole(file.fileno(), 40, 48)
        assert data_ranges(file.fileno()) == [(0, 1), (16, 17), (19, 20)]
        assert os.pread(file.fileno(), 2 * B, 17 * B) == bytes(2 * B)
        assert os.fstat(file.fileno()).st_size == 64 * B


def test_a_file_that_cannot_be_written_keeps_its_blocks(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * B)
    with path.open("rb") as file, pytest.raises(OSError, match="no hole"):
        punch_hole(file.fileno(), 0, 1)
    assert path.read_bytes() == b"x" * B
