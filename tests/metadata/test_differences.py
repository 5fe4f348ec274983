"""Changed blocks of two rows, against comparing them block by block; ranges made of them."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.differences import (
    DATA_KIND,
    HOLE_KIND,
    ChangedRange,
    add_changed,
    add_compared,
    first_common,
    join,
    ranges_of,
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
        words = array("Q", [1, 1024 << 1])
        assert add_changed(words, 1024, encode_row(old), encode_row(new))
        compared = array("Q", [1, 1024 << 1])
        add_compared(compared, 1024, old, new)
        assert words == compared
        flat = [
            (found.offset // B + n - 1024, found.kind)
            for found in ranges_of(words, size=1 << 40)
            for n in range(found.length // B)
        ]
        assert flat[1023:] == one_by_one(old, new)


@pytest.mark.parametrize("at", [0, 31, 32, 100, 255])
def test_a_block_of_the_parent_s_takes_a_look_there(at: int) -> None:
    plain, inherited = uniform_row(HOLE), uniform_row(HOLE)
    inherited[at] = PARENT
    before = uniform_row(HOLE)
    before[at] = PARENT
    other = uniform_row(HOLE)
    other[at] = FIRST
    for pair in (
        (plain, inherited),
        (inherited, plain),
        (inherited, uniform_row(PARENT)),
        (inherited, other),
    ):
        words = array("Q", [0, 100 << 1 | 1])
        expected = pair[1] is other  # what it is now is known, whatever the parent's was
        assert add_changed(words, 100, *map(encode_row, pair)) is expected
        assert expected or words == array("Q", [0, 100 << 1 | 1])
    inherited[at ^ 1] = FIRST
    words = array("Q")
    assert add_changed(words, 0, encode_row(before), encode_row(inherited))
    assert list(words) == [at ^ 1, (at ^ 1) + 1 << 1]
    everything = array("Q", range(FIRST, FIRST + VBLOCK_BLOCKS))
    assert not add_changed(words, 0, encode_row(uniform_row(PARENT)), encode_row(everything))


@pytest.mark.parametrize("row", [b"", b"\x00" * 9, b"\x01" * 8, b"\x07" + bytes(8), b"\x00" + bytes(2049)])
def test_what_is_no_row_is_refused(row: bytes) -> None:
    for pair in ((row, encode_row(uniform_row(HOLE))), (encode_row(uniform_row(HOLE)), row)):
        with pytest.raises(Corrupt):
            add_changed(array("Q"), 0, *pair)


def test_runs_that_touch_are_one_range_cut_at_the_end_of_the_vdisk() -> None:
    words = array("Q", [1, 2 << 1])
    join(words, array("Q", [2, 4 << 1, 4, 5 << 1 | 1]))
    join(words, array("Q", [7, 9 << 1 | 1]))
    join(words, array("Q", [9, 12 << 1]))
    join(words, array("Q"))
    assert list(ranges_of(words, size=9 * B + 5)) == [
        ChangedRange(B, 3 * B, DATA_KIND),
        ChangedRange(4 * B, B, HOLE_KIND),
        ChangedRange(7 * B, 2 * B, HOLE_KIND),
        ChangedRange(9 * B, 5, DATA_KIND),
    ]
    assert list(ranges_of(words, size=B)) == []
    assert list(ranges_of(array("Q"), size=B)) == []


def test_lines_of_descent_meet_at_the_nearest_common_vdisk() -> None:
    assert first_common([5, 3, 1], [9, 3, 1]) == (1, 1)
    assert first_common([3, 1], [3, 1]) == (0, 0)
    assert first_common([1], [5, 3, 1]) == (0, 2)
    assert first_common([5], [6]) is None
