"""Differences of versions, straight on an index, against resolving every block of both."""

import pathlib
import random
from array import array
from collections.abc import Iterator

import pytest

from metadata.differences import DATA_KIND, HOLE_KIND, ChangedRange, ranges_of
from metadata.errors import InvalidRequest
from metadata.ids import HOLE, PARENT
from metadata.index import Index, IndexBatch, VdiskState
from metadata.rows import encode_row, uniform_row
from metadata.units import BLOCK_BYTES, VBLOCK_BYTES
from replication.ancestry import absent_row
from replication.differences import Ancestor, Differences, Side

VBLOCKS = 6
SIZE = VBLOCKS * VBLOCK_BYTES
PLACE = 1 << 42


@pytest.fixture
def index(tmp_path: pathlib.Path) -> Iterator[Index]:
    opened = Index(str(tmp_path / "index"))
    yield opened
    opened.close()


def put(index: Index, vdisk: int, generation: int, rows: "dict[int, array[int]]") -> None:
    encoded = {vblock: encode_row(row) for vblock, row in rows.items()}
    index.apply(IndexBatch(vdisk, generation, encoded, {}, VdiskState()))


def every_block(index: Index, side: Side) -> list[tuple[int, int]]:
    """(owner, place) of each block, the plain way."""
    found = []
    for block_no in range(SIZE // BLOCK_BYTES):
        answer = (0, HOLE)
        for ancestor in side.line:
            row = index.row_at(ancestor.vdisk, block_no >> 8, ancestor.version, rollbacks=ancestor.rollbacks)
            if row is None:
                row = absent_row(block_no >> 8, absent=ancestor.absent, overlap=ancestor.overlap)
            place = row[block_no & 255]
            if place != PARENT:
                answer = (ancestor.vdisk, place) if place else (0, HOLE)
                break
        found.append(answer)
    return found


def expected(index: Index, older: Side | None, newer: Side) -> list[tuple[int, str]]:
    now = every_block(index, newer)
    was = every_block(index, older) if older is not None else [(0, HOLE)] * len(now)
    return [
        (block_no, HOLE_KIND if place[1] == HOLE else DATA_KIND)
        for block_no, (before, place) in enumerate(zip(was, now, strict=True))
        if before != place and block_no * BLOCK_BYTES < newer.size
    ]


def found_blocks(index: Index, older: Side | None, newer: Side) -> list[tuple[int, str]]:
    def ranges_between(first: int, end: int) -> list[ChangedRange]:
        return list(ranges_of(Differences(index, older, newer).words(first, end), size=newer.size))

    ranges = ranges_between(0, 1 << 40)
    parts: list[ChangedRange] = []
    for vblock in range(VBLOCKS):
        parts += ranges_between(vblock, vblock + 1)
    for found in (ranges, parts):
        assert all(r.length % BLOCK_BYTES == 0 and r.offset + r.length <= newer.size for r in found)
    flat = [
        [(r.offset // BLOCK_BYTES + n, r.kind) for r in f for n in range(r.length // BLOCK_BYTES)]
        for f in (ranges, parts)
    ]
    assert flat[0] == flat[1]
    return flat[0]


class Family:
    """Vdisks 1, 2, ... each a child of some version of an earlier one, with rows of random generations."""

    def __init__(self, index: Index, seed: int) -> None:
        self.chance = random.Random(seed)
        self.index = index
        self.lines: dict[int, tuple[Ancestor, ...]] = {}
        """What a vdisk inherits from."""
        self.absents = {1: HOLE}
        self.rollbacks = {
            vdisk: tuple(sorted({at: (self.chance.randrange(at), at) for at in (4, 7)}.values()))
            if self.chance.random() < 0.5
            else ()
            for vdisk in range(1, 5)
        }
        self._places = iter(range(PLACE, PLACE << 1))
        for vdisk in range(1, 5):
            parent = self.side(self.chance.randrange(1, vdisk)) if vdisk > 1 else None
            self.lines[vdisk] = parent.line if parent else ()
            self.absents[vdisk] = self.chance.choice([HOLE, PARENT]) if parent else HOLE
            self.write(vdisk)

    def write(self, vdisk: int) -> None:
        kinds = [HOLE, PARENT] if self.lines[vdisk] else [HOLE]
        for generation in sorted(self.chance.sample(range(1, 9), 3)):
            rows = {}
            for vblock in self.chance.sample(range(VBLOCKS), 2):
                row = self.index.row_at(vdisk, vblock, generation)
                row = uniform_row(self.absents[vdisk]) if row is None else row
                for _ in range(self.chance.choice([1, 3])):
                    first, count = self.chance.randrange(256), self.chance.choice([1, 2, 256])
                    kind = self.chance.choice([*kinds, None, None])
                    for at in range(first if count < 256 else 0, min(first + count, 256)):
                        row[at] = next(self._places) if kind is None else kind
                rows[vblock] = row
            put(self.index, vdisk, generation, rows)

    def side(self, vdisk: int) -> Side:
        overlap = self.chance.choice([SIZE, SIZE // 2 + 3 * BLOCK_BYTES, 0])
        own = Ancestor(
            vdisk, self.chance.randrange(0, 10), self.absents[vdisk], overlap, self.rollbacks[vdisk]
        )
        return Side(self.chance.choice([SIZE, SIZE - 9 * BLOCK_BYTES]), (own, *self.lines[vdisk]))


@pytest.mark.parametrize("seed", range(12))
def test_any_two_relatives_differ_where_their_resolved_blocks_do(index: Index, seed: int) -> None:
    family = Family(index, seed)
    for _ in range(15):
        one, other = (family.side(family.chance.randrange(1, 5)) for _ in range(2))
        assert found_blocks(index, one, other) == expected(index, one, other)
        assert found_blocks(index, None, one) == expected(index, None, one)
        assert found_blocks(index, one, one) == []


def test_vdisks_without_a_common_ancestor_are_refused(index: Index) -> None:
    one, other = (Side(SIZE, (Ancestor(vdisk, 1, HOLE, 0),)) for vdisk in (1, 2))
    with pytest.raises(InvalidRequest, match="vdisks 1 and 2"):
        Differences(index, one, other)


def test_many_generations_between_two_versions_are_stepped_over(index: Index) -> None:
    for generation in range(1, 40):
        put(index, 1, generation, {0: uniform_row(PLACE + generation), 3: uniform_row(PLACE + generation)})
    put(index, 1, 20, {2: uniform_row(PLACE)})
    put(index, 1, 38, {VBLOCKS: uniform_row(PLACE)})
    pairs = list(index.row_pairs(1, (5, 30), end_vblock=VBLOCKS))
    assert [(vblock, older is not None) for vblock, older, _ in pairs] == [(0, True), (2, False), (3, True)]
    swapped = list(index.row_pairs(1, (30, 5), end_vblock=VBLOCKS))
    assert swapped == [(vblock, newer, older) for vblock, older, newer in pairs]
    assert list(index.row_pairs(1, (39, 60), end_vblock=VBLOCKS)) == []
    assert [vblock for vblock, _, _ in index.row_pairs(1, (0, 1))] == [0, 3]
