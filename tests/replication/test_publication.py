"""What owners and subscribers tell each other, as values: there and back, and what is refused."""

import itertools
from typing import Any

import pytest

from metadata.errors import InvalidRequest
from replication.publication import Publication, told_in, told_values

FIRST = Publication(20, 1, 7, 1 << 40, check=2**64 - 1, generation=1, descent=0)
SECOND = Publication(20, 1, 8, 2 << 40, check=3, generation=1, descent=2**63)
LOT = [(FIRST, b"a" * 4096), (SECOND, b""), (SECOND, b"b" * 8192)]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_publications_come_back_as_they_were_with_their_records(count: int) -> None:
    values, data = told_values(LOT[:count])
    assert told_in(values, data) == LOT[:count]


GOOD = [20, 1, 7, 5, 3, 1, 0, 4]
BAD: tuple[tuple[Any, bytes], ...] = (
    (None, b""),
    ([], b""),
    ({}, b""),
    ([7], b""),
    ([GOOD[:-1]], b"1234"),
    ([[*GOOD, 1]], b"1234"),
    ([GOOD], b"123"),
    ([GOOD], b"12345"),
    ([GOOD, [21, *GOOD[1:]]], b"12345678"),
    *(
        ([[*GOOD[:at], bad, *GOOD[at + 1 :]]], b"1234")
        for at, bad in itertools.product(range(8), (-1, "1", None, True))
    ),
)


@pytest.mark.parametrize(("told", "data"), BAD)
def test_what_is_no_publication_is_refused(told: Any, data: bytes) -> None:
    with pytest.raises(InvalidRequest):
        told_in({"told": told}, data)
