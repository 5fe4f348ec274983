"""Index rows: their three forms, to the byte, and the stretches found in them."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.errors import Corrupt
from metadata.ids import (
    CUT,
    EPOCH_MAX,
    HOLE,
    NUMBER_MAX,
    PARENT,
    POSITION_MASK,
    epoch_of,
    group_id,
    number_of,
)
from metadata.rows import counting, decode_row, encode_row, own_block_count, runs, uniform_row
from metadata.units import GROUP_BLOCKS, VBLOCK_BLOCKS

BASE = group_id(3, 7) << 16

PLACES = st.one_of(
    st.just(HOLE),
    st.just(PARENT),
    st.builds(
        lambda epoch, number, position: group_id(epoch, number) << 16 | position,
        st.integers(1, EPOCH_MAX),
        st.integers(0, NUMBER_MAX),
        st.integers(0, GROUP_BLOCKS - 1),
    ),
)


@st.composite
def rows(draw: st.DrawFn) -> "array[int]":
    """Rows as writes leave them: stretches that count up, holes, parents and single blocks."""
    row = uniform_row(draw(st.sampled_from((HOLE, PARENT))))
    for _ in range(draw(st.integers(0, 12))):
        first = draw(st.integers(0, VBLOCK_BLOCKS - 1))
        count = draw(st.integers(1, VBLOCK_BLOCKS - first))
        place = draw(PLACES)
        step = 1 if place > PARENT else 0
        row[first : first + count] = array("Q", [place + step * i for i in range(count)])
    return row


def test_a_place_holds_epoch_number_and_position_and_sorts_in_log_order() -> None:
    group = group_id(3, 7)
    assert (group, BASE | 9) == (0xC000007, 0xC0000070009)
    assert (epoch_of(group), number_of(group)) == (3, 7)
    assert group_id(1, NUMBER_MAX) < group_id(2, 0) < group_id(2, 1)
    assert (group_id(EPOCH_MAX, NUMBER_MAX) << 16 | POSITION_MASK) == (1 << 64) - 1
    assert max(HOLE, CUT, PARENT) < group_id(1, 0) << 16


def test_a_dense_row_is_its_places_as_little_endian_words() -> None:
    row = uniform_row(HOLE)
    row[1], row[255] = BASE | 6, PARENT
    expected = bytes(8) + bytes.fromhex("0600 0700 000c 0000") + bytes(8 * 253) + b"\x02" + bytes(7)
    assert encode_row(row) == b"\x00" + expected


def test_a_sequential_row_is_its_first_place() -> None:
    row = array("Q", range(BASE + 6, BASE + 6 + VBLOCK_BLOCKS))
    assert encode_row(row) == bytes.fromhex("01 0600 0700 000c 0000")


@pytest.mark.parametrize(("place", "golden"), [(HOLE, "02" + "00" * 8), (PARENT, "02" + "02" + "00" * 7)])
def test_a_uniform_row_is_its_one_place(place: int, golden: str) -> None:
    assert encode_row(uniform_row(place)) == bytes.fromhex(golden)


def test_a_row_that_only_begins_and_ends_like_a_sequential_one_is_dense() -> None:
    row = array("Q", range(BASE, BASE + VBLOCK_BLOCKS))
    row[100] = HOLE
    assert encode_row(row)[:1] == b"\x00"
    row = uniform_row(HOLE)
    row[100] = BASE
    assert encode_row(row)[:1] == b"\x00"


@given(rows())
def test_every_row_comes_back_as_it_was(row: "array[int]") -> None:
    assert decode_row(encode_row(row)) == row


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00",
        b"\x00" + bytes(2047),
        b"\x00" + bytes(2049),
        b"\x01" + bytes(7),
        b"\x02" + bytes(9),
        b"\x03" + bytes(8),
        b"\x01" + (BASE | POSITION_MASK - 254).to_bytes(8, "little"),
    ],
)
def test_bytes_that_are_no_row_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_row(data)


def test_a_sequential_row_may_end_with_its_group() -> None:
    first = BASE | POSITION_MASK - 255
    assert decode_row(b"\x01" + first.to_bytes(8, "little"))[-1] == BASE | POSITION_MASK


@given(rows(), st.integers(0, VBLOCK_BLOCKS - 1), st.integers(0, VBLOCK_BLOCKS))
def test_runs_cover_what_was_asked_in_order_and_are_as_long_as_can_be(
    row: "array[int]", first: int, count: int
) -> None:
    count = min(count, VBLOCK_BLOCKS - first)
    at, previous = first, None
    for start, length, place in runs(row, first, count):
        step = 1 if place > PARENT else 0
        assert (start, length >= 1) == (at, True)
        assert list(row[start : start + length]) == [place + step * i for i in range(length)]
        assert place != previous
        at += length
        previous = place + step * length
    assert at == first + count


@given(rows(), st.integers(0, VBLOCK_BLOCKS - 1), st.integers(0, VBLOCK_BLOCKS))
def test_own_blocks_are_those_with_bytes_in_a_group(row: "array[int]", first: int, count: int) -> None:
    part = row[first : first + min(count, VBLOCK_BLOCKS - first)]
    assert own_block_count(row, first, len(part)) == sum(place > PARENT for place in part)
    assert own_block_count(row) == sum(place > PARENT for place in row)


@pytest.mark.parametrize("count", [1, 2, 7, 255, 256])
@pytest.mark.parametrize("place", [3, 0xFFFF, 1 << 16, (1 << 64) - 256])
def test_counting_is_a_range(place: int, count: int) -> None:
    assert counting(place, count) == array("Q", range(place, place + count))
