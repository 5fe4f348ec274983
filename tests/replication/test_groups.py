"""From places to verified bytes: damage and misplacement are found, checksums are never lost from sight."""

import pathlib
import shutil
from array import array
from collections.abc import Iterator

import pytest

from metadata.errors import Corrupt
from metadata.ids import group_id
from metadata.index import Index, IndexBatch, VdiskState
from replication.caches import FifoCache
from replication.groups import GroupSet, block_checksums
from replication.pool_directory import DirectoryPool, format_pool
from tests.replication.rig import B, block, blocks

VDISK = 20
GROUP = group_id(1, 0)
PLACE = GROUP << 16
COUNT = 600


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> Iterator[DirectoryPool]:
    pool = format_pool(str(tmp_path / "pool"))
    yield pool
    pool.close()


@pytest.fixture
def index(tmp_path: pathlib.Path) -> Iterator[Index]:
    index = Index(str(tmp_path / "index"))
    yield index
    index.close()


@pytest.fixture
def groups(pool: DirectoryPool, index: Index) -> GroupSet:
    """One group of 600 blocks, its checksums noted."""
    groups = GroupSet(VDISK, pool, index=index, cache=FifoCache(100))
    file = pool.create_group(VDISK, GROUP)
    file.write(blocks(*range(COUNT)), 0)
    pool.note_open(file)
    groups.files[GROUP] = file
    groups.note_checksums(PLACE, block_checksums(memoryview(blocks(*range(COUNT))), file.seed))
    return groups


def read(groups: GroupSet, place: int, count: int) -> bytes:
    """The waiting way."""
    view = memoryview(bytearray(count * B))
    expected = groups.checksums_nowait(place, count)
    assert expected is not None
    groups.read_run(view, place, expected)
    return bytes(view)


def commit(groups: GroupSet) -> None:
    """What a commit does with the checksums: into the index, and no longer pinned."""
    changed = {key: groups.segments[key].tobytes() for key in groups.pinned[0]}
    groups.index.apply(IndexBatch(VDISK, 1, rows={}, segments=changed, state=VdiskState()))
    groups.pinned[0] = set()


@pytest.mark.parametrize(("first", "count"), [(0, 1), (255, 2), (256, 1), (3, 590), (0, COUNT)])
def test_a_run_is_read_both_ways(groups: GroupSet, first: int, count: int) -> None:
    wanted = blocks(*range(first, first + count))
    view = memoryview(bytearray(count * B))
    assert groups.read_run_nowait(view, PLACE + first, count)
    assert bytes(view) == wanted == read(groups, PLACE + first, count)


def test_the_checksum_of_a_block_depends_on_its_group_and_position(groups: GroupSet) -> None:
    seed = groups.files[GROUP].seed
    sums = block_checksums(memoryview(blocks(7, 7)), seed)
    assert sums[0] != sums[1]
    assert block_checksums(memoryview(block(7)), seed + 1)[0] == sums[1]
    other = groups.pool.file(VDISK, group_id(1, 1)).seed
    assert block_checksums(memoryview(block(7)), other)[0] != sums[0]


@pytest.mark.parametrize("count", [1, 3])
def test_a_flipped_bit_is_told_with_its_place_and_only_there(groups: GroupSet, count: int) -> None:
    path = pathlib.Path(groups.files[GROUP].path)
    content = bytearray(path.read_bytes())
    content[41 * B + 100] ^= 4
    path.write_bytes(content)
    assert not groups.read_run_nowait(memoryview(bytearray(count * B)), PLACE + 41, count)
    with pytest.raises(
        Corrupt, match=rf"fails its checksum vdisk=20 epoch=1 group=0 position=41 file={path}"
    ):
        read(groups, PLACE + 41, count)
    assert read(groups, PLACE + 40, 1) == block(40)
    assert read(groups, PLACE + 42, 1) == block(42)


def test_a_block_in_another_s_place_is_told(groups: GroupSet) -> None:
    groups.files[GROUP].write(block(8), 9)
    with pytest.raises(Corrupt, match="position=9"):
        read(groups, PLACE + 8, 2)


def test_another_group_s_file_in_its_place_is_told(groups: GroupSet, pool: DirectoryPool) -> None:
    other = pool.create_group(VDISK, group_id(1, 1))
    shutil.copy(groups.files[GROUP].path, other.path)
    groups.files[group_id(1, 1)] = other
    groups.note_checksums(group_id(1, 1) << 16, array("I", groups.segments[PLACE >> 8]))
    with pytest.raises(Corrupt):
        read(groups, group_id(1, 1) << 16, 1)
    other.close()


def test_a_truncated_group_lacks_blocks_and_says_so(groups: GroupSet) -> None:
    groups.files[GROUP].trim(300)
    assert read(groups, PLACE + 299, 1) == block(299)
    assert not groups.read_run_nowait(memoryview(bytearray(2 * B)), PLACE + 299, 2)
    with pytest.raises(Corrupt, match=r"is missing .* position=300"):
        read(groups, PLACE + 299, 2)


def test_an_append_beside_evicted_checksums_keeps_them(groups: GroupSet) -> None:
    """The segment at the log's tail stays in memory: appending must not begin it anew."""
    commit(groups)
    for key in range(1000, 1200):
        groups.install_segment(key, array("I", bytes(1024)))
    file = groups.files[GROUP]
    file.write(block(600), 600)
    groups.note_checksums(PLACE + 600, block_checksums(memoryview(block(600)), file.seed + 600))
    commit(groups)
    for key in range(1000, 1200):
        groups.install_segment(key, array("I", bytes(1024)))
    assert read(groups, PLACE + 590, 11) == blocks(*range(590, 601))
    assert PLACE >> 8 not in groups.segments or groups.index.segment(VDISK, PLACE >> 8)


def test_what_is_missing_is_fetched_and_then_there(groups: GroupSet, pool: DirectoryPool) -> None:
    commit(groups)
    fresh = GroupSet(VDISK, pool, index=groups.index, cache=FifoCache(100))
    missing = fresh.missing(PLACE + 250, 20)
    assert missing
    missing.begin()
    missing.fetch()
    missing.install()
    missing.end()
    assert not fresh.missing(PLACE + 250, 20)
    assert read(fresh, PLACE + 250, 20) == blocks(*range(250, 270))


def test_a_place_without_checksums_is_damage_of_the_index(groups: GroupSet, pool: DirectoryPool) -> None:
    commit(groups)
    fresh = GroupSet(VDISK, pool, index=groups.index, cache=FifoCache(100))
    missing = fresh.missing(PLACE + 5000, 1)
    missing.begin()
    missing.fetch()
    with pytest.raises(Corrupt, match="lacks checksums"):
        missing.install()
    missing.end()
