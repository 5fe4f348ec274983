"""The checker of histories can say no."""

import pytest

from tests.simulation.histories import NEVER, History, Moment, Opening, Read, Write, conflicts


def w(value: int, begin: float, end: float = NEVER, block: int = 0) -> Write:
    return Write(block, value, begin, end)


def r(value: int, begin: float, end: float, block: int = 0) -> Read:
    return Read(block, value, begin, end)


@pytest.mark.parametrize(
    ("writes", "reads"),
    [
        ([w(1, 0, 1), w(2, 2, 3)], [r(1, 1.2, 1.4), r(2, 4, 5)]),
        ([w(1, 0, 3), w(2, 1, 2)], [r(1, 4, 5)]),
        ([w(1, 0, 3), w(2, 1, 2)], [r(2, 4, 5), r(2, 6, 7)]),
        ([w(1, 0, NEVER)], [r(0, 1, 2), r(1, 3, 4)]),
        ([w(1, 0, NEVER)], [r(0, 1, 2), r(0, 3, 4)]),
        ([w(1, 5, 6)], [r(0, 1, 2)]),
        ([w(1, 0, 10), w(2, 0, 10)], [r(1, 1, 2), r(2, 3, 4)]),
    ],
)
def test_what_can_be_put_in_an_order_is_allowed(writes: list[Write], reads: list[Read]) -> None:
    assert conflicts(writes, reads) == []


@pytest.mark.parametrize(
    ("writes", "reads"),
    [
        ([w(1, 0, 1), w(2, 2, 3)], [r(1, 4, 5)]),
        ([w(1, 0, 1)], [r(0, 2, 3)]),
        ([w(1, 0, 10), w(2, 0, 10)], [r(1, 1, 2), r(2, 3, 4), r(1, 5, 6)]),
        ([w(1, 0, NEVER)], [r(1, 1, 2), r(0, 3, 4)]),
        ([w(1, 0, 1), w(2, 2, 3), w(3, 4, 5)], [r(3, 6, 7), r(2, 8, 9)]),
    ],
)
def test_what_cannot_is_not(writes: list[Write], reads: list[Read]) -> None:
    assert conflicts(writes, reads)


def opened(begin: float, end: float, *reads: Read, node: str = "a") -> Opening:
    return Opening(node, begin, end, list(reads))


def test_a_frozen_view_that_changes_is_found() -> None:
    history = History([w(1, 0, 1), w(2, 5, 6)], [], [opened(2, 3, r(1, 4, 4.5), r(2, 7, 8))])
    assert any("showed 1, then 2" in line for line in history.violations())


def test_an_opening_that_misses_a_commit_is_found() -> None:
    history = History([w(1, 0, 1), w(2, 2, 3)], [], [opened(4, 5, r(1, 6, 7))])
    assert any("had been committed" in line for line in history.violations())
    history.openings[0].begin = 2.5
    assert history.violations() == []


def test_a_view_of_the_future_is_found() -> None:
    history = History([w(1, 4, 5)], [], [opened(1, 2, r(1, 6, 7))])
    assert any("after it was opened" in line for line in history.violations())


def test_a_node_that_goes_back_is_found() -> None:
    first, second = opened(4, 4.1, r(2, 4.2, 4.3)), opened(5, 5.1, r(1, 5.2, 5.3))
    history = History([w(1, 0, 1), w(2, 3, NEVER)], [], [first, second])
    assert any("opening again" in line for line in history.violations())
    second.node = "b"
    assert history.violations() == []


def test_a_value_from_elsewhere_is_found() -> None:
    history = History([w(1, 0, 1)], [r(1, 2, 3, block=7)])
    assert any("nobody wrote there" in line for line in history.violations())
    assert History([w(1, 5, 6)], [r(1, 2, 3)]).violations() == ["block 0: 1 was read before it was written"]


def test_what_was_not_acknowledged_or_done_twice_proves_nothing() -> None:
    twice, other = w(1, 0, 9), w(2, 3, 4)
    history = History([twice, other], [r(1, 1, 2), r(2, 5, 6), r(1, 7, 8)])
    assert history.violations()
    twice.is_repeated = True
    assert history.violations() == []
    twice.is_repeated, twice.end = False, NEVER
    assert history.violations() == []


def test_a_whole_history_that_is_right_is_allowed() -> None:
    history = History(
        [w(1, 0, 1), w(2, 2, 3), w(9, 0, 1, block=4)],
        [r(1, 1.5, 1.6), r(2, 3.5, 3.6), r(9, 3.5, 3.6, block=4)],
        [opened(1.1, 1.2, r(1, 4, 5), r(9, 4, 5, block=4)), opened(6, 6.1, r(2, 7, 8))],
    )
    assert history.violations() == []


def test_a_snapshot_of_no_one_moment_is_found() -> None:
    writes = [w(1, 0, 1), w(2, 2, 3, block=1), w(3, 4, 5)]
    assert History(writes, moments=[Moment("s", 6, 7, {0: 3, 1: 2})]).violations() == []
    for begin, end, content in ((6, 7, {0: 1, 1: 2}), (1.5, 9, {0: 3, 1: 0}), (0, 3.5, {0: 3})):
        found = History(writes, moments=[Moment("s", begin, end, content)]).violations()
        assert any("no one moment" in line or "before it was written" in line for line in found)


def test_a_view_that_mixes_versions_is_found() -> None:
    writes = [w(1, 0, 1), w(2, 2, 3, block=1)]
    mixed = opened(0.5, 4, r(0, 5, 6), r(2, 6, 7, block=1))
    assert any("no one moment" in line for line in History(writes, openings=[mixed]).violations())


def test_a_node_that_goes_back_in_another_block_is_found() -> None:
    writes = [w(1, 0, 1), w(2, 2, NEVER, block=1)]
    history = History(writes, openings=[opened(3, 4, r(2, 5, 6, block=1)), opened(7, 8, r(0, 9, 10))])
    assert any("an earlier one" in line for line in history.violations())


def test_what_a_clone_began_with_may_be_read_until_it_is_overwritten() -> None:
    history = History([w(2, 2, 3)], [r(1, 0, 1), r(2, 4, 5)], initial={0: 1})
    assert history.violations() == []
    history.shared_reads.append(r(1, 6, 7))
    assert any("cannot be put in an order" in line for line in history.violations())
    history.shared_reads[-1] = r(0, 0, 1)
    assert any("nobody wrote there" in line for line in history.violations())
