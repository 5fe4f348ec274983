"""The snapshot index: its keys to the byte, one seek to any version, and damage that never reads as an answer."""

import pathlib
import random
import shutil
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgpack
import pytest

from metadata.errors import Corrupt, IndexDamaged
from metadata.ids import HOLE, PARENT, group_id
from metadata.index import Index, IndexBatch, Nowait, VdiskState, row_key, segment_key, vdisk_key
from metadata.rows import encode_row, uniform_row
from metadata.units import VBLOCK_BLOCKS

VDISK = 0x42
BASE = group_id(3, 7) << 16
NEWEST = (1 << 64) - 1


def row_of(place: int) -> "array[int]":
    """A row that says who it is: sequential from this position on."""
    return array("Q", range(BASE + place, BASE + place + VBLOCK_BLOCKS))


def scattered_row(seed: int) -> "array[int]":
    return array("Q", random.Random(seed).sample(range(BASE, BASE + 16384), VBLOCK_BLOCKS))


@contextmanager
def opened(path: pathlib.Path) -> Iterator[Index]:
    index = Index(str(path))
    try:
        yield index
    finally:
        index.close()


@pytest.fixture
def index(tmp_path: pathlib.Path) -> Iterator[Index]:
    with opened(tmp_path / "index") as index:
        yield index


def put(
    index: Index,
    rows: dict[int, "array[int]"],
    *,
    vdisk: int = VDISK,
    generation: int = 1,
    drop_from: int | None = None,
    segments: dict[int, "array[int]"] | None = None,
    version: int = 1,
) -> None:
    index.apply(
        IndexBatch(
            vdisk,
            generation,
            rows={vblock: encode_row(row) for vblock, row in rows.items()},
            segments={key: sums.tobytes() for key, sums in (segments or {}).items()},
            state=VdiskState(version=version, generation=generation),
            drop_from_vblock=drop_from,
        )
    )


def test_keys_have_these_bytes() -> None:
    assert row_key(0x42, 0x10, 9).hex() == "6d" + "0000000000000042" + "0000000000000010" + "fffffffffffffff6"
    assert segment_key(0x42, (BASE | 0x106) >> 8).hex() == "67" + "0000000000000042" + "0000000c00000701"
    assert vdisk_key(0x42).hex() == "76" + "0000000000000042"


def test_newer_generations_of_a_row_sort_first_and_vblocks_and_vdisks_in_order() -> None:
    keys = [row_key(1, 1, 5), row_key(1, 1, 4), row_key(1, 2, 9), row_key(1, 256, 0), row_key(2, 0, 9)]
    assert keys == sorted(keys)


def test_a_state_has_these_bytes(index: Index) -> None:
    state = VdiskState(9, BASE | 8, 0x1122334455667788, 9, 12345, 3, 4096, 10**18 + 5, 8, 3)
    index.apply(IndexBatch(VDISK, 8, rows={}, segments={}, state=state))
    assert index.state(VDISK) == state
    stored = {
        "version": 9,
        "record_place": BASE | 8,
        "record_check": 0x1122334455667788,
        "record_end": 9,
        "size": 12345,
        "own_blocks": 3,
        "overlap": 4096,
        "time_ns": 10**18 + 5,
        "generation": 8,
        "collected": 3,
    }
    assert index._get(vdisk_key(VDISK)) == msgpack.packb(stored)
    assert index.state(VDISK + 1) is None


def test_a_row_comes_back_by_its_generation_and_by_any_version_from_it_on(index: Index) -> None:
    for generation in (1, 6, 9):
        put(index, {3: row_of(generation)}, generation=generation)
    assert index.row(VDISK, 3, 6) == row_of(6)
    assert index.row(VDISK, 3, 7) is None
    assert index.row_nowait(VDISK, 3, 7) is Nowait.ABSENT
    found = [index.row_at(VDISK, 3, version) for version in (0, 1, 5, 6, 8, 9, 10**6, NEWEST)]
    assert found == [None, *(row_of(g) for g in (1, 1, 6, 6, 9, 9, 9))]
    assert index.row_at(VDISK, 2, NEWEST) is None
    assert index.row_at(VDISK, 4, NEWEST) is None


def test_a_row_written_again_in_its_generation_replaces_the_old_one(index: Index) -> None:
    put(index, {3: row_of(1)})
    put(index, {3: row_of(2)})
    assert index.row_at(VDISK, 3, NEWEST) == row_of(2)
    assert index.row_nowait(VDISK, 3, 1) == row_of(2)


def test_all_rows_at_a_version_come_in_order_and_of_this_vdisk_only(index: Index) -> None:
    put(index, {0: row_of(0), 2: row_of(2), 300: row_of(3)})
    put(index, {2: row_of(20), 7: row_of(7)}, generation=5)
    put(index, {0: row_of(9), 2: row_of(9)}, vdisk=VDISK - 1)
    put(index, {0: row_of(9)}, vdisk=VDISK + 1)
    old, new = dict(index.rows_at(VDISK, 4)), dict(index.rows_at(VDISK, NEWEST))
    assert old == {0: row_of(0), 2: row_of(2), 300: row_of(3)}
    assert new == {0: row_of(0), 2: row_of(20), 7: row_of(7), 300: row_of(3)}
    assert [list(old), list(new)] == [[0, 2, 300], [0, 2, 7, 300]]
    assert [v for v, _ in index.rows_at(VDISK, NEWEST, first_vblock=1, end_vblock=300)] == [2, 7]
    assert list(index.rows_at(VDISK, 0)) == []


def test_vblocks_with_a_row_of_any_generation_are_found(index: Index) -> None:
    put(index, {5: row_of(0), 9: row_of(0)})
    put(index, {5: row_of(1), 7: row_of(0)}, generation=8)
    put(index, {6: row_of(0)}, vdisk=VDISK + 1)
    assert index.vblocks(VDISK, 0, 100) == [5, 7, 9]
    assert index.vblocks(VDISK, 6, 9) == [7]
    firsts = [index.first_vblock(VDISK, first, 100) for first in (0, 5, 6, 8, 10)]
    assert firsts == [5, 5, 7, 9, None]
    assert index.first_vblock(VDISK, 6, 7) is None


def test_own_blocks_are_counted_in_the_newest_rows(index: Index) -> None:
    mixed = row_of(0)
    mixed[:10] = array("Q", (HOLE,)) * 10
    mixed[250:] = array("Q", (PARENT,)) * 6
    put(index, {1: row_of(0), 2: row_of(0), 3: mixed})
    put(index, {2: uniform_row(HOLE)}, generation=4)
    assert index.own_block_counts(VDISK, 2) == {2: 0, 3: 240}
    assert index.own_block_counts(VDISK, 0) == {1: 256, 2: 0, 3: 240}


def test_a_drop_takes_rows_from_there_on_and_the_batch_s_own_rows_stay(index: Index) -> None:
    put(index, {0: row_of(0), 4: row_of(4), 5: row_of(5), 900: row_of(6)})
    put(index, {4: row_of(4)}, vdisk=VDISK + 1)
    put(index, {5: row_of(50)}, drop_from=4)
    assert dict(index.rows_at(VDISK, NEWEST)) == {0: row_of(0), 5: row_of(50)}
    assert index.row_nowait(VDISK, 4, 1) is Nowait.ABSENT
    assert index.row_nowait(VDISK, 5, 1) == row_of(50)
    assert index.row_at(VDISK + 1, 4, NEWEST) == row_of(4)


def test_segments_come_back_whole(index: Index) -> None:
    sums = array("I", range(256))
    put(index, {}, segments={BASE >> 8: sums})
    assert index.segment(VDISK, BASE >> 8) == sums
    assert index.segment_nowait(VDISK, BASE >> 8) == sums
    assert index.segment(VDISK, (BASE >> 8) + 1) is None
    assert index.segment_nowait(VDISK, (BASE >> 8) + 1) is Nowait.ABSENT


def test_forgetting_a_vdisk_leaves_its_neighbours(index: Index) -> None:
    for vdisk in (VDISK - 1, VDISK, VDISK + 1):
        put(index, {0: row_of(1), NEWEST >> 8: row_of(2)}, vdisk=vdisk, segments={7: array("I", range(256))})
    index.forget(VDISK)
    assert (index.state(VDISK), index.segment(VDISK, 7)) == (None, None)
    assert list(index.rows_at(VDISK, NEWEST)) == []
    for vdisk in (VDISK - 1, VDISK + 1):
        assert len(list(index.rows_at(vdisk, NEWEST))) == 2
        assert index.state(vdisk) is not None
        assert index.segment(vdisk, 7) is not None


def test_everything_is_there_after_closing_and_opening(tmp_path: pathlib.Path) -> None:
    with opened(tmp_path / "index") as index:
        put(index, {3: row_of(1)}, segments={7: array("I", range(256))}, version=5)
    with opened(tmp_path / "index") as index:
        assert index.row_at(VDISK, 3, NEWEST) == row_of(1)
        assert index.segment(VDISK, 7) == array("I", range(256))
        assert index.state(VDISK) == VdiskState(version=5)


def test_a_look_that_may_not_wait_never_denies_what_is_on_the_disk(tmp_path: pathlib.Path) -> None:
    """Right after opening nothing is in memory, and the answer is "unknown", not "absent" or an empty row."""
    rows = {vblock: scattered_row(vblock) for vblock in range(300)}
    with opened(tmp_path / "index") as index:
        put(index, rows, segments={7: array("I", range(256))})
        index.flush()
    with opened(tmp_path / "index") as index:
        for vblock, row in rows.items():
            assert index.row_nowait(VDISK, vblock, 1) in (Nowait.UNKNOWN, row)
        assert index.segment_nowait(VDISK, 7) in (Nowait.UNKNOWN, array("I", range(256)))
        for vblock, row in rows.items():
            assert index.row(VDISK, vblock, 1) == row
            assert index.row_nowait(VDISK, vblock, 1) in (Nowait.UNKNOWN, row)


def test_an_empty_answer_means_that_only_the_disk_knows(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RocksDB may say of a key on disk: perhaps there, with an empty value. No value of ours is empty."""

    class Vague:
        def key_may_exist(self, key: bytes, *, fetch: bool) -> tuple[bool, bytes]:
            return True, b""

        def close(self) -> None:
            real.close()

    real = index._db
    monkeypatch.setattr(index, "_db", Vague())
    assert index.row_nowait(VDISK, 3, 1) is Nowait.UNKNOWN
    assert index.segment_nowait(VDISK, 3) is Nowait.UNKNOWN


def test_a_vdisk_s_export_taken_in_elsewhere_says_the_same(tmp_path: pathlib.Path, index: Index) -> None:
    put(
        index,
        {v: scattered_row(v) for v in range(50)},
        segments={v: array("I", range(256)) for v in range(9)},
    )
    put(index, {3: row_of(3), 70: row_of(7)}, generation=6, version=8)
    put(index, {1: row_of(3)}, vdisk=VDISK + 1)
    put(index, {1: row_of(3)}, vdisk=VDISK - 1)
    path = str(tmp_path / "export")
    assert index.export_vdisk(VDISK, path) == 52 + 9 + 1
    with opened(tmp_path / "other") as other:
        put(other, {1: row_of(5)}, vdisk=VDISK + 1)
        other.ingest(path)
        for version in (3, NEWEST):
            assert dict(other.rows_at(VDISK, version)) == dict(index.rows_at(VDISK, version))
        assert [other.segment(VDISK, v) for v in range(10)] == [index.segment(VDISK, v) for v in range(10)]
        assert other.state(VDISK) == index.state(VDISK)
        assert other.row_at(VDISK + 1, 1, NEWEST) == row_of(5)
        assert other.state(VDISK - 1) is None


def test_what_is_no_export_is_not_taken_in(tmp_path: pathlib.Path, index: Index) -> None:
    for content in (b"", b"nonsense" * 1000):
        (tmp_path / "export").write_bytes(content)
        with pytest.raises(Corrupt):
            index.ingest(str(tmp_path / "export"))
    with pytest.raises(Corrupt):
        index.ingest(str(tmp_path / "absent"))


def looks(index: Index) -> list[Callable[[], object]]:
    """Every way to ask the index."""
    return [
        lambda: index.row(VDISK, 5, 1),
        lambda: index.row_at(VDISK, 5, NEWEST),
        lambda: dict(index.rows_at(VDISK, NEWEST)),
        lambda: index.vblocks(VDISK, 0, 1000),
        lambda: index.first_vblock(VDISK, 2, 1000),
        lambda: index.own_block_counts(VDISK, 0),
        lambda: index.segment(VDISK, 7),
        lambda: index.state(VDISK),
    ]


def test_a_damaged_file_is_an_error_or_no_matter_but_never_another_answer(tmp_path: pathlib.Path) -> None:
    with opened(tmp_path / "whole") as index:
        put(index, {v: scattered_row(v) for v in range(40)}, segments={7: array("I", range(256))})
        index.flush()
        answers = [look() for look in looks(index)]
    (table,) = (tmp_path / "whole").glob("*.sst")
    chance, refused = random.Random(1), 0
    for number in range(60):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        content = bytearray(table.read_bytes())
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (folder / table.name).write_bytes(content)
        try:
            with opened(folder) as index:
                for look, answer in zip(looks(index), answers, strict=True):
                    try:
                        assert look() == answer
                    except IndexDamaged:
                        refused += 1
        except IndexDamaged:
            refused += 1
        shutil.rmtree(folder)
    assert refused > 20


def test_what_cannot_be_opened_is_damaged_and_destroying_it_heals(tmp_path: pathlib.Path) -> None:
    with opened(tmp_path / "index") as index:
        put(index, {3: row_of(1)})
    (tmp_path / "index" / "CURRENT").write_bytes(b"nonsense")
    with pytest.raises(IndexDamaged):
        Index(str(tmp_path / "index"))
    Index.destroy(str(tmp_path / "index"))
    with opened(tmp_path / "index") as index:
        assert index.state(VDISK) is None
