"""Sizes as they are typed and shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.errors import InvalidRequest
from metadata.units import VDISK_BYTES_MAX
from tools.sizes import format_size, parse_size


@given(st.integers(0, VDISK_BYTES_MAX))
def test_a_number_of_bytes_is_itself(size: int) -> None:
    assert parse_size(str(size)) == size


@pytest.mark.parametrize(
    ("text", "size"),
    [("1.5K", 1536), (" 20 g ", 20 << 30), ("1TiB", 1 << 40), ("0.5k", 512), ("1E", 1 << 60)],
)
def test_letters_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1", "1.5", "0.3K", "1.0001K", "1e3", "٣", "2E", "1X", "1 2"])
def test_what_is_no_size_of_a_vdisk_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), ((1 << 30) - 1, "1.0 GiB")]
)
def test_the_largest_unit_that_leaves_something_before_the_point(size: int, text: str) -> None:
    assert format_size(size) in (text, text.replace(".0", ""))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1K", 1024),
        ("1k", 1024),
        ("1.5G", 3 << 29),
        ("20GiB", 20 << 30),
        ("4 T", 4 << 40),
        ("0.25K", 256),
        ("1E", 1 << 60),
        ("1024P", 1 << 60),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "1.", ".5G", "1e3", "0x10", "1 2", "1X", "1KK", "١", "0.1K", "1,5G"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_size(text)


@pytest.mark.parametrize("text", ["16E", "1.25E", str((1 << 60) + 1), "9" * 30])
def test_a_size_beyond_the_limit_is_refused_with_the_limit(text: str) -> None:
    with pytest.raises(InvalidRequest, match="at most 1 EiB"):
        parse_size(text)


@given(st.integers(0, VDISK_BYTES_MAX))
def test_a_printed_size_is_close_to_the_size(size: int) -> None:
    number, unit = format_size(size).split(" ")
    factor = 1 << 10 * ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit)
    assert abs(float(number) * factor - size) <= factor * 0.0501
    assert float(number) < 1024


def test_sizes_are_printed_short() -> None:
    sizes = [0, 1023, 1024, 1536, (1 << 20) - 1, 10 << 30, 1 << 60]
    assert [format_size(size) for size in sizes] == [
        "0 B", "1023 B", "1 KiB", "1.5 KiB", "1 MiB", "10 GiB", "1 EiB",
    ]  # fmt: skip
