"""Groups by epoch and number: their order is the log's, and no group's place is one of the special ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.ids import (
    COMPACTED_FROM,
    CUT,
    EPOCH_MAX,
    HOLE,
    NUMBER_MAX,
    PARENT,
    POSITION_BITS,
    epoch_of,
    group_id,
    is_compacted,
    number_of,
)

EPOCHS, NUMBERS = st.integers(1, EPOCH_MAX), st.integers(0, NUMBER_MAX)


@given(EPOCHS, NUMBERS)
def test_a_group_s_id_holds_its_epoch_and_its_number(epoch: int, number: int) -> None:
    group = group_id(epoch, number)
    assert (epoch_of(group), number_of(group)) == (epoch, number)
    assert group < 1 << 64 - POSITION_BITS


@given(st.tuples(EPOCHS, NUMBERS), st.tuples(EPOCHS, NUMBERS))
def test_groups_sort_as_the_log_was_written(one: tuple[int, int], other: tuple[int, int]) -> None:
    assert (group_id(*one) < group_id(*other)) == (one < other)


def test_the_first_block_of_the_first_group_is_no_special_place() -> None:
    assert group_id(1, 0) << POSITION_BITS > max(HOLE, CUT, PARENT)


@pytest.mark.parametrize(
    ("number", "compacted"),
    [(0, False), (COMPACTED_FROM - 1, False), (COMPACTED_FROM, True), (NUMBER_MAX, True)],
)
def test_compaction_has_numbers_of_its_own(number: int, compacted: bool) -> None:
    assert is_compacted(group_id(7, number)) is compacted


@pytest.mark.parametrize(("epoch", "number"), [(0, 0), (EPOCH_MAX + 1, 0), (1, -1), (1, NUMBER_MAX + 1)])
def test_an_epoch_or_number_out_of_range_is_a_programmer_s_error(epoch: int, number: int) -> None:
    with pytest.raises(AssertionError):
        group_id(epoch, number)
