"""The commit record, to the byte, and everything that must not pass for one."""

from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metadata.errors import Corrupt
from metadata.ids import CUT, HOLE, PARENT, Version, group_id
from metadata.records import (
    CHECKSUM_BYTES,
    EXTENT_BYTES,
    HEADER_BYTES,
    SEED_MASK,
    CommitRecord,
    decode_record,
    encode_record,
    group_seed,
    peek_block_count,
    record_block_count,
)
from metadata.units import BLOCK_BYTES

GROUP = group_id(3, 7)
BASE = GROUP << 16
SALT = 0x0123456789ABCDEF
SEED = group_seed(SALT, 0x42, GROUP) + 8

GOLDEN = """
56444653 52454331   020a06e2 447399a3   01000000 04000000 02000000 a7d926cc
42000000 00000000   09000000 00000000   07000000 00000000
05000700 000c0000   88776655 44332211   39300000 00000000   050064a7 b3b6e00d
03000000 00000000   00100000 00000000
01000200 00000000   06000700 000c0000
00002c01 00000000   00000000 00000000
00000002 00000000   01000000 00000000
00000700 00000000   02000000 00000000
efbeadde 04030201
"""


def golden_record() -> CommitRecord:
    return CommitRecord(
        vdisk=0x42,
        version=Version(9),
        previous_version=Version(7),
        previous_place=BASE | 5,
        previous_check=0x1122334455667788,
        size=12345,
        time_ns=10**18 + 5,
        own_blocks=3,
        overlap=4096,
        extents=array("Q", [2 << 16 | 1, BASE | 6, 300 << 16, HOLE, 512 << 16, CUT, 7 << 16, PARENT]),
        checksums=array("I", [0xDEADBEEF, 0x01020304]),
    )


def test_a_record_has_these_bytes() -> None:
    data, check = encode_record(golden_record(), SEED)
    assert data == bytes.fromhex(GOLDEN).ljust(BLOCK_BYTES, b"\0")
    assert check == 0xA3997344E2060A02
    assert decode_record(data, SEED) == (golden_record(), check)


def test_a_group_s_seed_is_this_number_and_leaves_room_for_positions() -> None:
    assert group_seed(SALT, 0x42, GROUP) == 0x236AEBFBDBDFD0BD
    seeds = {group_seed(salt, vdisk, group) for salt in (1, 2) for vdisk in (1, 2) for group in (1, 2)}
    assert len(seeds) == 8
    assert max(seeds) <= SEED_MASK


def test_its_extents_are_told_as_blocks_counts_and_places() -> None:
    assert golden_record().runs() == [(2, 2, BASE | 6), (300, 1, HOLE), (512, 1, CUT), (7, 1, PARENT)]


RECORDS = st.builds(
    lambda numbers, sizes, parts: CommitRecord(
        1,
        Version(numbers[0]),
        Version(numbers[1]),
        numbers[2],
        numbers[3],
        *sizes,
        extents=array("Q", [word for n, c, p, _ in parts for word in (n << 16 | c - 1, p)]),
        checksums=array("I", [s for _, c, p, sums in parts if p > PARENT for s in (sums * c)[:c]]),
    ),
    st.tuples(*[st.integers(0, 2**64 - 1)] * 4),
    st.tuples(*[st.integers(0, 2**63)] * 4),
    st.lists(
        st.tuples(
            st.integers(0, 2**48 - 1),
            st.integers(1, 300),
            st.sampled_from((HOLE, CUT, PARENT, BASE | 1)),
            st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3),
        ),
        max_size=30,
    ),
)


@given(RECORDS, st.integers(0, SEED_MASK))
def test_every_record_comes_back_as_it_was(record: CommitRecord, seed: int) -> None:
    data, check = encode_record(record, seed)
    assert len(data) == peek_block_count(data[:BLOCK_BYTES], seed) * BLOCK_BYTES
    assert decode_record(data, seed) == (record, check)


def test_a_record_takes_whole_blocks_and_says_how_many() -> None:
    for extents, checksums in ((0, 0), (249, 2), (250, 0), (3, 1000), (5000, 70000)):
        length = HEADER_BYTES + EXTENT_BYTES * extents + CHECKSUM_BYTES * checksums
        assert (record_block_count(extents, checksums) - 1) * BLOCK_BYTES < length
        assert record_block_count(extents, checksums) * BLOCK_BYTES >= length


@pytest.mark.parametrize("wrong", [1, 5, -1, 1 << 40])
def test_a_record_of_another_place_or_pool_is_refused(wrong: int) -> None:
    data, _ = encode_record(golden_record(), SEED)
    with pytest.raises(Corrupt):
        decode_record(data, SEED + wrong)


def test_no_flipped_bit_goes_unseen() -> None:
    data, _ = encode_record(golden_record(), SEED)
    length = HEADER_BYTES + 4 * EXTENT_BYTES + 2 * CHECKSUM_BYTES
    for bit in range(8 * length):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            decode_record(bytes(damaged), SEED)


def test_a_record_cut_short_is_refused() -> None:
    long = golden_record()
    long.extents = array("Q", [word for n in range(400) for word in (n << 16, HOLE)])
    long.checksums = array("I")
    data, _ = encode_record(long, SEED)
    assert len(data) == 2 * BLOCK_BYTES
    for length in (0, 8, HEADER_BYTES - 1, HEADER_BYTES, BLOCK_BYTES, HEADER_BYTES + 400 * EXTENT_BYTES - 1):
        with pytest.raises(Corrupt):
            decode_record(data[:length], SEED)


def test_a_record_whose_checksums_do_not_match_its_extents_is_refused() -> None:
    record = golden_record()
    record.checksums.append(1)
    with pytest.raises(Corrupt, match="do not match"):
        decode_record(encode_record(record, SEED)[0], SEED)


def test_a_look_at_a_block_believes_no_header_that_does_not_prove_itself() -> None:
    data, _ = encode_record(golden_record(), SEED)
    assert peek_block_count(data, SEED) == 1
    assert peek_block_count(data[:HEADER_BYTES], SEED) == 1
    assert peek_block_count(data, SEED + 1) == 0
    assert peek_block_count(data[: HEADER_BYTES - 1], SEED) == 0
    assert peek_block_count(b"", SEED) == 0
    assert peek_block_count(bytes(BLOCK_BYTES), SEED) == 0
    for bit in range(8 * HEADER_BYTES):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        in_check = 8 <= bit // 8 < 16
        assert peek_block_count(bytes(damaged), SEED) == (1 if in_check else 0)
