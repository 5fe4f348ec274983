"""Changed blocks of two rows, against comparing them block by block; ranges made of them."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.differences import (
    DATA_KIND,
    HOLE_KIND,
    ChangedRange,
    changed_runs,
    compared_runs,
    first_common,
    join,
)
from metadata.errors import Corrupt
from metadata.ids import HOLE, PARENT
from metadata.rows import encode_row, uniform_row
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS

FIRST = 1 << 42
B = BLOCK_BYTES

starts = st.sampled_from([FIRST, FIRST + 1, FIRST + 5000])
whole_rows = st.one_of(
    starts.map(lambda first: array("Q", range(first, first + VBLOCK_BLOCKS))),
    st.sampled_from([HOLE, FIRST]).map(uniform_row),
)
patches = st.lists(
    st.tuples(
        st.integers(0, VBLOCK_BLOCKS - 1),
        st.integers(1, 70),
        st.sampled_from([HOLE, FIRST + 9, FIRST + 7000]),
    ),
    max_size=6,
)


def patched(row: "array[int]", changes: list[tuple[int, int, int]]) -> "array[int]":
    row = array("Q", row)
    for first, count, place in changes:
        for at in range(first, min(first + count, VBLOCK_BLOCKS)):
            row[at] = place + at if place > PARENT else place
    return row


def one_by_one(old: "array[int]", new: "array[int]") -> list[tuple[int, str]]:
    return [
        (block, HOLE_KIND if place == HOLE else DATA_KIND)
        for block, (was, place) in enumerate(zip(old, new, strict=True))
        if was != place
    ]


@given(whole_rows, whole_rows, patches, patches)
def test_the_changed_blocks_are_those_whose_places_differ(
    one: "array[int]",
    other: "array[int]",
    one_patch: list[tuple[int, int, int]],
    patch: list[tuple[int, int, int]],
) -> None:
    old = patched(one, one_patch)
    for new in (patched(old, patch), patched(other, patch)):
        runs = changed_runs(encode_row(old), encode_row(new))
        assert runs is not None
        flat = [(block, kind) for start, end, kind in runs for block in range(start, end)]
        assert flat == one_by_one(old, new)
        assert compared_runs(old, new, 0) is not None


@pytest.mark.parametrize("at", [0, 31, 32, 100, 255])
def test_a_block_of_the_parent_s_takes_a_look_there(at: int) -> None:
    plain, inherited = uniform_row(HOLE), uniform_row(HOLE)
    inherited[at] = PARENT
    assert changed_runs(encode_row(plain), encode_row(inherited)) is None
    assert changed_runs(encode_row(inherited), encode_row(plain)) is None
    inherited[at ^ 1] = FIRST
    before = uniform_row(HOLE)
    before[at] = PARENT
    assert changed_runs(encode_row(before), encode_row(inherited)) == [(at ^ 1, (at ^ 1) + 1, DATA_KIND)]
    everything = array("Q", range(FIRST, FIRST + VBLOCK_BLOCKS))
    runs = changed_runs(encode_row(uniform_row(PARENT)), encode_row(everything))
    assert runs is None


@pytest.mark.parametrize("row", [b"", b"\x00" * 9, b"\x01" * 8, b"\x07" + bytes(8), b"\x00" + bytes(2049)])
def test_what_is_no_row_is_refused(row: bytes) -> None:
    for pair in ((row, encode_row(uniform_row(HOLE))), (encode_row(uniform_row(HOLE)), row)):
        with pytest.raises(Corrupt):
            changed_runs(*pair)


def test_runs_that_touch_are_one_range_cut_at_the_end_of_the_vdisk() -> None:
    runs = [(1, 2, DATA_KIND), (2, 4, DATA_KIND), (4, 5, HOLE_KIND), (7, 9, HOLE_KIND), (9, 12, DATA_KIND)]
    assert list(join(runs, size=9 * B + 5)) == [
        ChangedRange(B, 3 * B, DATA_KIND),
        ChangedRange(4 * B, B, HOLE_KIND),
        ChangedRange(7 * B, 2 * B, HOLE_KIND),
        ChangedRange(9 * B, 5, DATA_KIND),
    ]
    assert list(join(runs, size=B)) == []
    assert list(join([], size=B)) == []


def test_lines_of_descent_meet_at_the_nearest_common_vdisk() -> None:
    assert first_common([5, 3, 1], [9, 3, 1]) == (1, 1)
    assert first_common([3, 1], [3, 1]) == (0, 0)
    assert first_common([1], [5, 3, 1]) == (0, 2)
    assert first_common([5], [6]) is None
