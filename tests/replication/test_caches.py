"""The bound on decoded rows and segments: first in, first out, what is pinned stays."""

import random

from replication.caches import FifoCache

NOTHING: list[set[int]] = []


def fill(cache: FifoCache, entries: dict[int, str], *keys: int, pinned: list[set[int]] = NOTHING) -> None:
    for key in keys:
        entries[key] = "value"
        cache.admit(entries, key, pinned)


def test_the_oldest_entries_go_whoever_owns_them() -> None:
    cache, ours, theirs = FifoCache(3), dict[int, str](), dict[int, str]()
    fill(cache, ours, 1)
    fill(cache, theirs, 1, 2)
    fill(cache, ours, 3)
    assert (set(ours), set(theirs), len(cache)) == ({3}, {1, 2}, 3)


def test_pinned_entries_stay_and_may_go_once_they_are_not() -> None:
    cache, entries, pinned = FifoCache(3), dict[int, str](), [{1}, {2}]
    fill(cache, entries, *range(1, 9), pinned=pinned)
    assert {1, 2} <= set(entries)
    assert len(entries) == 3
    pinned[0].clear()
    pinned[1] = set()
    fill(cache, entries, *range(20, 24), pinned=pinned)
    assert set(entries) == {21, 22, 23}


def test_an_entry_just_admitted_is_not_the_one_to_go() -> None:
    cache, entries = FifoCache(2), dict[int, str]()
    for key in range(10):
        fill(cache, entries, key, pinned=[set(range(9))])
        assert key in entries
    assert set(entries) == set(range(10))


def test_entries_that_their_owner_removed_are_no_matter() -> None:
    cache, entries = FifoCache(2), dict[int, str]()
    fill(cache, entries, 1, 2)
    del entries[1]
    fill(cache, entries, 3, 4)
    assert set(entries) == {3, 4}


def test_shrinking_keeps_the_newest_and_the_pinned() -> None:
    cache, entries, pinned = FifoCache(100), dict[int, str](), [{3}]
    fill(cache, entries, *range(10), pinned=pinned)
    cache.shrink(2)
    assert set(entries) == {3, 8, 9}
    cache.shrink(0)
    assert (set(entries), len(cache)) == ({3}, 1)


def test_the_bound_holds_for_any_order_of_admissions_and_pins() -> None:
    chance = random.Random(1)
    for limit in (1, 5, 50):
        cache, owners = FifoCache(limit), [dict[int, str]() for _ in range(3)]
        pins: list[list[set[int]]] = [[set(), set()] for _ in range(3)]
        for _ in range(3000):
            owner = chance.randrange(3)
            if chance.random() < 0.1:
                pins[owner][chance.randrange(2)] = set(chance.sample(range(200), min(limit, 20) // 5))
            for group in pins[owner]:
                group &= set(owners[owner])
            fill(cache, owners[owner], chance.randrange(200), pinned=pins[owner])
            assert all(key in owners[o] for o in range(3) for group in pins[o] for key in group)
        assert sum(map(len, owners)) <= len(cache) <= limit + 3 * 2 * 4
