"""Snapshot rows and names: golden bytes, and one clear line for each name that cannot be."""

import pytest

from metadata.catalog import encode_value, snap_key
from metadata.errors import Corrupt, InvalidRequest
from metadata.snapshots import Snapshot, check_snapshot_name, decode_snapshot, encode_snapshot

SNAPSHOT = Snapshot(
    vdisk=0x20,
    name="vor dem Umbau",
    id=77,
    version=5,
    size=1 << 30,
    own_blocks=9,
    overlap=4096,
    mtime_ns=10**18,
    created_ns=10**18 + 1,
    protected=True,
)


def test_a_row_has_these_bytes() -> None:
    key, value = encode_snapshot(SNAPSHOT)
    assert key == b"snap/0000000000000020/vor dem Umbau"
    assert value == encode_value(
        {
            "id": 77,
            "version": 5,
            "size": 1 << 30,
            "own_blocks": 9,
            "overlap": 4096,
            "mtime_ns": 10**18,
            "created_ns": 10**18 + 1,
            "protected": True,
        }
    )
    assert value.hex() == (
        "88a269644da776657273696f6e05a473697a65ce40000000aa6f776e5f626c6f636b7309a76f7665726c6170cd1000a86d74696d"
        "655f6e73cf0de0b6b3a7640000aa637265617465645f6e73cf0de0b6b3a7640001a970726f746563746564c3"
    )
    assert decode_snapshot(key, value) == SNAPSHOT


def test_a_row_of_a_later_version_is_read_as_far_as_it_is_known() -> None:
    key, value = encode_snapshot(SNAPSHOT)
    fields = {**{"comment": "new"}, **{"id": 77, "version": 5, "size": 1 << 30, "own_blocks": 9}}
    fields |= {"overlap": 4096, "mtime_ns": 10**18, "created_ns": 10**18 + 1, "protected": True}
    assert decode_snapshot(key, encode_value(fields)) == SNAPSHOT
    assert value != encode_value(fields)


@pytest.mark.parametrize("value", [b"\x80", encode_value(7), encode_value([1]), b"\xc1"])
def test_a_damaged_row_is_told(value: bytes) -> None:
    with pytest.raises(Corrupt):
        decode_snapshot(snap_key(0x20, "a"), value)
    with pytest.raises(Corrupt):
        decode_snapshot(b"snap/0000000000000020/\xff", encode_snapshot(SNAPSHOT)[1])


@pytest.mark.parametrize("name", ["a", "...", "2026-11-22 12:00", "Übergabe", "x" * 255, "-", "a.b"])
def test_names_that_can_be(name: str) -> None:
    check_snapshot_name(name)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", "needs a name"),
        (".", "cannot be called"),
        ("..", "cannot be called"),
        ("a/b", "cannot hold '/'"),
        ("a@b", "cannot hold '@'"),
        ("a\nb", "control characters"),
        ("a\0", "control characters"),
        ("\x7f", "control characters"),
        ("a\x85", "control characters"),
        ("\udc80", "control characters"),
        ("x" * 256, "at most 255 bytes"),
        ("é" * 128, "at most 255 bytes"),
    ],
)
def test_names_that_cannot_be_are_refused_in_one_line(name: str, why: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_snapshot_name(name)
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)
