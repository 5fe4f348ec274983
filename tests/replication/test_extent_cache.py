"""What stays on the disk and what goes: a bound, use, scans."""

from replication.extent_cache import CHUNK_BLOCKS, ExtentCache
from replication.object_tables import Ranges

MIB = CHUNK_BLOCKS * 4096


class Group:
    """Blocks that are here, or not."""

    def __init__(self) -> None:
        self.here = Ranges()
        self.is_busy = False

    def local_count(self, start: int, end: int) -> int:
        return sum(high - low for low, high in self.here.within(start, end))

    def drop_local(self, start: int, end: int) -> bool:
        if not self.is_busy:
            self.here.remove(start, end)
        return not self.is_busy

    def chunks(self) -> set[int]:
        return {low // CHUNK_BLOCKS for start, end in self.here for low in range(start, end, CHUNK_BLOCKS)}


def read(cache: ExtentCache, group: Group, number: int) -> None:
    """A MiB in pieces, as a guest reads; fetched first if it is not there."""
    start = number * CHUNK_BLOCKS
    if not group.local_count(start, start + CHUNK_BLOCKS):
        group.here.add(start, start + CHUNK_BLOCKS)
        cache.note_stored(group, start, start + CHUNK_BLOCKS)
    for at in range(start, start + CHUNK_BLOCKS, 32):
        cache.note_read(group, at, at + 32)


def test_no_more_is_here_than_the_limit() -> None:
    cache, group = ExtentCache(10 * MIB), Group()
    for number in range(100):
        read(cache, group, number)
        assert cache.bytes <= 10 * MIB
    assert cache.bytes == 10 * MIB
    assert cache.evicted_bytes == 90 * MIB


def test_what_is_read_again_survives_a_scan_of_everything_else() -> None:
    cache, group, golden = ExtentCache(20 * MIB), Group(), Group()
    for _ in range(2):
        for number in range(8):
            read(cache, golden, number)
    for number in range(500):
        read(cache, group, number)
    assert golden.chunks() == set(range(8))


def test_what_is_not_read_any_more_goes_in_the_end() -> None:
    cache, old, new = ExtentCache(20 * MIB), Group(), Group()
    for group in (old, new):
        for _ in range(6):
            for number in range(16):
                read(cache, group, number)
    assert len(new.chunks()) >= 12
    assert len(old.chunks()) <= 8


def test_what_is_in_use_stays_and_the_rest_goes_around_it() -> None:
    cache, busy, other = ExtentCache(4 * MIB), Group(), Group()
    for number in range(3):
        read(cache, busy, number)
    busy.is_busy = True
    for number in range(50):
        read(cache, other, number)
    assert busy.chunks() == {0, 1, 2}
    assert cache.bytes <= 4 * MIB


def test_a_group_that_is_gone_counts_no_more() -> None:
    cache, one, two = ExtentCache(10 * MIB), Group(), Group()
    for number in range(3):
        read(cache, one, number)
        read(cache, two, number)
    cache.forget(one)
    assert cache.bytes == 3 * MIB
