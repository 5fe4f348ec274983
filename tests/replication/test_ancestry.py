"""What a clone's PARENT blocks resolve to: nearest first, holes where nobody has anything, neighbours kept apart."""

import pathlib
from array import array
from collections.abc import Iterator

import pytest

from metadata.ids import HOLE, PARENT, group_id
from metadata.index import Index, IndexBatch, VdiskState
from metadata.rows import encode_row, uniform_row
from metadata.units import BLOCK_BYTES, VBLOCK_BYTES
from replication.ancestry import Ancestry, Generation, absent_row
from replication.caches import FifoCache
from replication.groups import GroupSet
from replication.pool_directory import format_pool

PLACE = group_id(1, 0) << 16


@pytest.mark.parametrize(
    ("vblock", "overlap", "parents"),
    [
        (0, 0, 0),
        (0, 1, 1),
        (0, BLOCK_BYTES, 1),
        (0, BLOCK_BYTES + 1, 2),
        (0, VBLOCK_BYTES, 256),
        (1, VBLOCK_BYTES, 0),
        (1, VBLOCK_BYTES + 5 * BLOCK_BYTES, 5),
        (1, 10 * VBLOCK_BYTES, 256),
        (9, 10 * VBLOCK_BYTES - 1, 256),
        (10, 10 * VBLOCK_BYTES, 0),
    ],
)
def test_a_vblock_without_a_row_is_the_parent_s_as_far_as_it_shows_through(
    vblock: int, overlap: int, parents: int
) -> None:
    row = absent_row(vblock, absent=PARENT, overlap=overlap)
    assert list(row) == [PARENT] * parents + [HOLE] * (256 - parents)
    assert absent_row(vblock, absent=HOLE, overlap=overlap) == uniform_row(HOLE)


class Family:
    """Generations above a clone, nearest first, with rows put by hand."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.pool = format_pool(str(folder / "pool"))
        self.index = Index(str(folder / "index"))
        self.generations: list[Generation] = []

    def generation(self, row: "array[int] | None", *, absent: int = HOLE, overlap: int = 0) -> GroupSet:
        vdisk = 20 + len(self.generations)
        groups = GroupSet(vdisk, self.pool, index=self.index, cache=FifoCache(10))
        if row is not None:
            batch = IndexBatch(vdisk, 1, rows={0: encode_row(row)}, segments={}, state=VdiskState())
            self.index.apply(batch)
        self.generations.append(Generation(groups, 7, absent, overlap))
        return groups

    def ancestry(self) -> Ancestry:
        return Ancestry(self.index, FifoCache(10), absent=HOLE, generations=self.generations)


@pytest.fixture
def family(tmp_path: pathlib.Path) -> Iterator[Family]:
    family = Family(tmp_path)
    yield family
    family.index.close()
    family.pool.close()


def row_with(**blocks: int) -> "array[int]":
    row = uniform_row(PARENT)
    for name, place in blocks.items():
        row[int(name[1:])] = place
    return row


def test_each_block_is_the_nearest_ancestor_s_that_has_it(family: Family) -> None:
    near = family.generation(row_with(_0=PLACE, _1=HOLE))
    middle = family.generation(row_with(_0=PLACE + 50, _1=PLACE + 51, _2=PLACE + 52))
    far = family.generation(row_with(_2=PLACE + 90, _3=PLACE + 91))
    ancestry = family.ancestry()
    ancestry.install(0, ancestry.find(0))
    parts = ancestry.parts(0, 6)
    assert parts == [
        (near, PLACE, 1),
        (None, HOLE, 1),
        (middle, PLACE + 52, 1),
        (far, PLACE + 91, 1),
        (None, HOLE, 2),
    ]


def test_equal_places_of_two_ancestors_are_not_one_run(family: Family) -> None:
    """Places count within a vdisk: a run may go on in numbers and still change its owner."""
    near = family.generation(row_with(_0=PLACE, _2=PLACE + 2))
    far = family.generation(row_with(_1=PLACE + 1, _3=PLACE + 3, _4=PLACE + 4))
    ancestry = family.ancestry()
    ancestry.install(0, ancestry.find(0))
    assert ancestry.parts(0, 5) == [
        (near, PLACE, 1),
        (far, PLACE + 1, 1),
        (near, PLACE + 2, 1),
        (far, PLACE + 3, 2),
    ]
    assert ancestry.parts(3, 1) == [(far, PLACE + 3, 1)]


def test_an_ancestor_without_a_row_shows_its_own_parent_as_far_as_its_overlap(family: Family) -> None:
    family.generation(None, absent=PARENT, overlap=2 * BLOCK_BYTES)
    far = family.generation(row_with(_0=PLACE, _1=PLACE + 1, _2=PLACE + 2))
    ancestry = family.ancestry()
    ancestry.install(0, ancestry.find(0))
    assert ancestry.parts(0, 4) == [(far, PLACE, 2), (None, HOLE, 2)]


def test_only_rows_at_or_below_the_kept_version_count(family: Family) -> None:
    groups = family.generation(row_with(_0=PLACE))
    newer = IndexBatch(20, 8, rows={0: encode_row(uniform_row(HOLE))}, segments={}, state=VdiskState())
    family.index.apply(newer)
    ancestry = family.ancestry()
    ancestry.install(0, ancestry.find(0))
    assert ancestry.parts(0, 2) == [(groups, PLACE, 1), (None, HOLE, 1)]


def test_what_is_not_resolved_yet_is_not_answered(family: Family) -> None:
    family.generation(row_with(_0=PLACE))
    ancestry = family.ancestry()
    assert ancestry.parts(0, 1) is None
    assert not ancestry.read_nowait(memoryview(bytearray(BLOCK_BYTES)), 0, 1)
    for vblock, answer in ancestry.find_all([0, 5]).items():
        ancestry.install(vblock, answer)
    assert ancestry.parts(5 << 8, 256) == [(None, HOLE, 256)]
    view = memoryview(bytearray(b"x" * BLOCK_BYTES))
    assert ancestry.read_nowait(view, 5 << 8, 1)
    assert bytes(view) == bytes(BLOCK_BYTES)
