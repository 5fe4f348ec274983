"""Times as people write and read them."""

import pytest

from metadata.errors import InvalidRequest
from tools.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("90", 90), ("90s", 90), ("5m", 300), ("12H", 43200), ("7d", 604800), ("2 w", 1209600)],
)
def test_a_time_is_a_number_with_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "d", "-1d", "1.5d", "1y", "1e3", "٣d", "99999999d"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_duration(text)


def test_times_are_printed_short() -> None:
    seconds = [-5, 0, 59.9, 60, 90, 7200, 86400, 90000, 604800]
    assert [format_duration(s) for s in seconds] == [
        "0 s", "0 s", "59 s", "1 m", "90 s", "2 h", "1 d", "25 h", "7 d",
    ]  # fmt: skip
