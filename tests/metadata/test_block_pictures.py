"""A block map in cells: shares, scatter, rows counted, equal cells told once."""

import base64

from metadata.block_pictures import cell_of, count_jumps, count_row, encode_cells
from metadata.ids import HOLE, PARENT
from metadata.rows import uniform_row


def test_a_cell_shows_the_least_share_and_never_more_than_all() -> None:
    assert cell_of(0, 0, 256) == (0, 0, 0)
    assert cell_of(256, 0, 256) == (15, 0, 0)
    assert cell_of(1, 255, 256) == (1, 14, 0)
    assert cell_of(1, 1, 1 << 30, jumps=1, counted=1) == (1, 1, 255)
    for own in range(0, 257, 8):
        assert sum(cell_of(own, 256 - own, 256)[:2]) == 15


def test_rows_are_counted_and_their_jumps() -> None:
    row = uniform_row(HOLE)
    row[3:9] = row[3:9].__class__("Q", [900, 901, 902, PARENT, 950, 951])
    assert count_row(row) == (5, 1)
    assert count_jumps(row) == 2
    assert count_jumps(row.__class__("Q", range(700, 956))) == 0


def test_equal_cells_are_told_once() -> None:
    assert encode_cells([(1, 2, 3)] * 300 + [(0, 0, 0)]) == bytes([255, 0x12, 3, 45, 0x12, 3, 1, 0, 0])
    assert encode_cells([]) == b""
    assert base64.b64encode(encode_cells([(15, 0, 0)])) == b"AfAA"
