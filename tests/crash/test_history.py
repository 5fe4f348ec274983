"""The oracle of the crash tests must itself be able to say no."""

import pytest

from tests.crash.history import BLOCK, History, block_bytes, block_value

NOTES = """
10 write 1 7 100
11 wrote 1 7 100
12 flush 1 0 9
15 flushed 1 0 9
16 write 1 7 200
18 wrote 1 7 200
19 flush 1 0 9
20 write 1 7 300
25 flushed 1 0 9
""".strip().splitlines()


@pytest.mark.parametrize(
    ("at_ns", "legal"),
    [
        (5, {0}),
        (10, {0, 100}),
        (14, {0, 100}),
        (15, {100}),
        (17, {100, 200}),
        (24, {100, 200, 300}),
        (25, {200, 300}),
    ],
)
def test_a_register_may_hold_what_was_flushed_or_came_later(at_ns: int, legal: set[int]) -> None:
    history = History()
    history.note(NOTES)
    assert history.legal((1, 7), at_ns) == legal


def test_an_acknowledged_write_counts_where_memory_survives() -> None:
    history = History()
    history.note(NOTES)
    assert history.legal((1, 7), 18, acknowledged_counts=True) == {200}


def test_a_lost_write_is_reported_with_its_place() -> None:
    history = History()
    history.note(NOTES)
    history.verify({(1, 7): 300}, 30)
    with pytest.raises(AssertionError, match="vdisk 1 register 7: 100"):
        history.verify({(1, 7): 100}, 30)


def test_what_a_crash_settled_does_not_come_back() -> None:
    history = History()
    history.note(NOTES)
    history.settle({(1, 7): 200})
    with pytest.raises(AssertionError, match="register 7: 300"):
        history.verify({(1, 7): 300}, 30)


def test_torn_and_misplaced_blocks_are_told_from_whole_ones() -> None:
    old, new = block_bytes(1, 7, 100), block_bytes(1, 7, 200)
    assert block_value(1, 7, new) == 200
    assert block_value(1, 7, bytes(BLOCK)) == 0
    with pytest.raises(AssertionError, match="torn"):
        block_value(1, 7, new[:512] + old[512:])
    with pytest.raises(AssertionError, match="torn"):
        block_value(1, 7, new[:2048] + bytes(2048))
    with pytest.raises(AssertionError, match="misplaced"):
        block_value(1, 8, new)
