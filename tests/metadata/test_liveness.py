"""Which rows are seen and which blocks live, against the plain definitions; which groups are worth moving."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from metadata.ids import COMPACTED_FROM, HOLE, PARENT, group_id, is_compacted
from metadata.liveness import (
    HEAD,
    SMALL_GROUP_BYTES,
    SMALL_GROUPS_MAX,
    GroupUse,
    Space,
    Visibility,
    count_by_group,
    is_due,
    live_blocks,
    plan_compaction,
)
from metadata.units import BLOCK_BYTES

MIB = 1 << 20

versions = st.integers(1, 40)


def seen_by(version: int, generations: list[int], rollbacks: list[tuple[int, int]]) -> int | None:
    """The definition: the newest at or below the version, unless a rollback before it takes the search elsewhere."""
    to, since = max((r for r in rollbacks if r[1] < version), key=lambda r: r[1], default=(0, 0))
    here = max((g for g in generations if since < g <= version), default=None)
    return here if here is not None or not to else seen_by(to, generations, rollbacks)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[int], list[int], list[tuple[int, int]]]:
    generations = sorted(draw(st.sets(versions, max_size=8)), reverse=True)
    kept = draw(st.lists(versions, max_size=6))
    rollbacks = []
    for since in draw(st.sets(st.integers(2, 40), max_size=4)):
        rollbacks.append((draw(st.integers(1, since - 1)), since))
    return generations, kept, rollbacks


@given(histories())
def test_exactly_what_some_reader_finds_is_seen(
    history: tuple[list[int], list[int], list[tuple[int, int]]],
) -> None:
    generations, kept, rollbacks = history
    found = {seen_by(version, generations, rollbacks) for version in (*kept, HEAD)} - {None}
    assert Visibility(kept, rollbacks).seen(generations) == sorted(found, reverse=True)  # type: ignore[type-var]


def test_without_kept_versions_only_the_newest_row_is_seen() -> None:
    assert Visibility(()).seen([9, 5, 1]) == [9]
    assert Visibility(()).seen([]) == []


def test_of_a_deleted_vdisk_only_kept_versions_are_seen() -> None:
    assert Visibility((4,), head=False).seen([9, 5, 1]) == [1]
    assert Visibility((), [(3, 7)], head=False).seen([9, 5, 1]) == []


def test_a_kept_version_sees_the_newest_row_at_or_below_it() -> None:
    assert Visibility((4,)).seen([9, 5, 1]) == [9, 1]
    assert Visibility((5, 8)).seen([9, 5, 1]) == [9, 5]
    assert Visibility((100,)).seen([9, 5, 1]) == [9]


def test_a_rollback_hides_rows_from_the_head_and_not_from_the_snapshot_it_left() -> None:
    assert Visibility((3, 7), [(3, 7)]).seen([6, 2]) == [6, 2]
    assert Visibility((3,), [(3, 7)]).seen([6, 2]) == [2]
    assert Visibility((3, 7), [(3, 7)]).seen([8, 6, 2]) == [8, 6, 2]
    assert Visibility((), [(3, 7)]).seen([8, 6, 2]) == [8]


def test_a_place_that_several_rows_name_counts_once() -> None:
    first, second = group_id(1, 0) << 16, group_id(1, 1) << 16
    counts: Counter[int] = Counter()
    count_by_group([[HOLE, first + 1, first + 2]], counts)
    count_by_group([[PARENT, first + 5, second], [first + 4, first + 5, HOLE]], counts)
    assert (counts[first >> 16], counts[second >> 16], live_blocks(counts)) == (4, 1, 5)


def test_groups_of_compaction_have_numbers_of_their_own() -> None:
    assert is_compacted(group_id(3, COMPACTED_FROM))
    assert is_compacted(group_id(3, COMPACTED_FROM + 77))
    assert not is_compacted(group_id(3, COMPACTED_FROM - 1))


def use(group: int, occupied_mib: int, live_mib: float) -> GroupUse:
    return GroupUse(group, occupied_mib * MIB, int(live_mib * MIB) // BLOCK_BYTES)


class TestWhatIsCompacted:
    def test_nothing_while_little_is_garbage(self) -> None:
        uses = [use(1, 64, 50), use(2, 64, 60)]
        assert plan_compaction(uses, garbage_bytes_max=20 * MIB, move_bytes_max=1 << 40) == []

    def test_the_emptiest_first_and_no_more_than_needed(self) -> None:
        uses = [use(1, 64, 50), use(2, 64, 10), use(3, 64, 30), use(4, 64, 0)]
        assert plan_compaction(uses, garbage_bytes_max=15 * MIB, move_bytes_max=1 << 40) == [2, 3]

    def test_no_more_than_may_be_moved_at_once(self) -> None:
        uses = [use(1, 64, 50), use(2, 64, 10), use(3, 64, 30)]
        assert plan_compaction(uses, garbage_bytes_max=0, move_bytes_max=41 * MIB) == [2, 3]
        assert plan_compaction(uses, garbage_bytes_max=0, move_bytes_max=1 * MIB) == [2]

    def test_what_does_not_fit_into_the_room_there_is_stays_where_it_is(self) -> None:
        uses = [use(1, 64, 50), use(2, 64, 10), use(3, 64, 30)]
        assert plan_compaction(uses, garbage_bytes_max=0, move_bytes_max=1 << 40, room_bytes=41 * MIB) == [
            2,
            3,
        ]
        assert plan_compaction(uses, garbage_bytes_max=0, move_bytes_max=1 << 40, room_bytes=1 * MIB) == []
        small = [use(number, 1, 1) for number in range(1, SMALL_GROUPS_MAX + 2)]
        assert plan_compaction(small, garbage_bytes_max=0, move_bytes_max=1 << 40, room_bytes=MIB) == []

    def test_many_small_groups_are_joined(self) -> None:
        small = [use(number, 1, 1) for number in range(1, SMALL_GROUPS_MAX + 2)]
        assert plan_compaction(small[1:], garbage_bytes_max=0, move_bytes_max=1 << 40) == []
        chosen = plan_compaction(small, garbage_bytes_max=0, move_bytes_max=1 << 40)
        assert chosen == [found.group for found in small]
        large = [
            GroupUse(found.group, SMALL_GROUP_BYTES, SMALL_GROUP_BYTES // BLOCK_BYTES) for found in small
        ]
        assert plan_compaction(large, garbage_bytes_max=0, move_bytes_max=1 << 40) == []


class TestWhenAVdiskIsDue:
    def test_a_quarter_of_what_lives_is_garbage(self) -> None:
        assert not is_due(Space(1240 * MIB, 1000 * MIB), None, filling=False)
        assert is_due(Space(1260 * MIB, 1000 * MIB), None, filling=False)

    def test_little_garbage_is_not_worth_it_unless_the_pool_fills(self) -> None:
        assert not is_due(Space(26 * MIB, 11 * MIB), None, filling=False)
        assert is_due(Space(26 * MIB, 11 * MIB), None, filling=True)
        assert not is_due(Space(14 * MIB, 11 * MIB), None, filling=True)

    def test_what_the_last_collection_left_it_would_leave_again(self) -> None:
        last = Space(1310 * MIB, 1000 * MIB)
        assert not is_due(Space(1320 * MIB, 1000 * MIB), last, filling=False)
        assert not is_due(Space(1320 * MIB, 1000 * MIB), last, filling=True)
        assert is_due(Space(1330 * MIB, 1000 * MIB), last, filling=True)
        assert is_due(Space(1430 * MIB, 1000 * MIB), last, filling=False)

    def test_what_kept_versions_need_is_known_from_the_last_one(self) -> None:
        last = Space(3000 * MIB, 2900 * MIB, (4, 9))
        assert not is_due(Space(3600 * MIB, 1000 * MIB, (4, 9)), last, filling=False)
        assert is_due(Space(3800 * MIB, 1000 * MIB, (4, 9)), last, filling=False)

    def test_when_a_snapshot_goes_it_is_looked_at_again(self) -> None:
        last = Space(3000 * MIB, 2900 * MIB, (4, 9))
        assert is_due(Space(3000 * MIB, 1000 * MIB, (9,)), last, filling=False)
