"""Journal entries, to the byte, and that half of one is none."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.ids import group_id
from metadata.journal_entries import ENTRY_BYTES, JournalEntry, decode_entry, digest_of, encode_entry

SALT = 0x0123456789ABCDEF
ENTRY = JournalEntry(
    sequence=5,
    vdisk=0x42,
    version=9,
    block_no=300,
    place=group_id(3, 7) << 16 | 6,
    size=12345,
    block_count=2,
    digest=0x540F6826,
)
GOLDEN = """
05000000 00000000   42000000 00000000   09000000 00000000   2c010000 00000000
06000700 000c0000   39300000 00000000   02000000 26680f54   bea9926c 734d4746
"""


def test_an_entry_has_these_64_bytes() -> None:
    assert encode_entry(ENTRY, SALT) == bytes.fromhex(GOLDEN)
    assert decode_entry(bytes.fromhex(GOLDEN), SALT) == ENTRY


def test_one_block_s_digest_is_its_checksum_and_several_blocks_have_a_hash_over_theirs() -> None:
    assert digest_of(array("I", [0xDEADBEEF])) == 0xDEADBEEF
    assert digest_of(array("I", [0xDEADBEEF, 0x01020304])) == 0x540F6826


WORDS = st.integers(0, 2**64 - 1)
HALVES = st.integers(0, 2**32 - 1)


@given(st.builds(JournalEntry, *[WORDS] * 6, HALVES, HALVES), WORDS)
def test_every_entry_comes_back_as_it_was(entry: JournalEntry, salt: int) -> None:
    assert decode_entry(encode_entry(entry, salt), salt) == entry


def test_no_flipped_bit_goes_unseen() -> None:
    for bit in range(8 * ENTRY_BYTES):
        damaged = bytearray(encode_entry(ENTRY, SALT))
        damaged[bit // 8] ^= 1 << bit % 8
        assert decode_entry(bytes(damaged), SALT) is None


@pytest.mark.parametrize("torn_at", range(8, ENTRY_BYTES, 8))
def test_an_entry_torn_between_two_is_none(torn_at: int) -> None:
    other = JournalEntry(6, 0x43, 10, 301, group_id(3, 8) << 16, 54321, 3, 7)
    mixed = encode_entry(ENTRY, SALT)[:torn_at] + encode_entry(other, SALT)[torn_at:]
    assert decode_entry(mixed, SALT) is None


def test_another_pool_s_entry_is_none() -> None:
    assert decode_entry(encode_entry(ENTRY, SALT), SALT + 1) is None


def test_what_has_another_length_is_none() -> None:
    data = encode_entry(ENTRY, SALT)
    assert [decode_entry(part, SALT) for part in (b"", data[:63], data + b"\0", bytes(64))] == [None] * 4
