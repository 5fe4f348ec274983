"""What a version sees after rollbacks, against a model that keeps each version's rows; and a vdisk's record read."""

import hypothesis
import hypothesis.strategies as st
import pytest

from metadata.descent import Descent, is_visible, read_descent, visible_spans
from metadata.errors import Corrupt


@pytest.mark.parametrize(
    ("rollbacks", "version", "spans"),
    [
        ((), 7, ((0, 7),)),
        (((3, 5),), 5, ((0, 5),)),
        (((3, 5),), 6, ((5, 6), (0, 3))),
        (((3, 5),), 2, ((0, 2),)),
        (((3, 5), (3, 8)), 9, ((8, 9), (0, 3))),
        (((3, 5), (7, 9)), 12, ((9, 12), (5, 7), (0, 3))),
        (((3, 5), (5, 9)), 12, ((9, 12), (0, 5))),  # to what was there before the first rollback
        (((3, 5), (2, 9)), 12, ((9, 12), (0, 2))),
        (((0, 5),), 6, ((5, 6), (0, 0))),
    ],
)
def test_a_version_sees_these_generations(
    rollbacks: tuple[tuple[int, int], ...], version: int, spans: tuple[tuple[int, int], ...]
) -> None:
    assert visible_spans(version, rollbacks) == spans


@hypothesis.given(st.lists(st.tuples(st.booleans(), st.integers(0, 30)), max_size=40))
def test_each_version_sees_the_row_that_was_the_newest_then(steps: list[tuple[bool, int]]) -> None:
    """A row is written with each commit, or the content of an earlier version comes back."""
    seen: list[int | None] = [None]  # by version: the generation of the newest row
    rollbacks: list[tuple[int, int]] = []
    for is_rollback, to in steps:
        version = len(seen) - 1
        if is_rollback and to < version:
            rollbacks.append((to, version))
            seen.append(seen[to])  # the commit that says so writes no row
        else:
            seen.append(version + 1)
    rows = [generation for generation in range(1, len(seen)) if seen[generation] == generation]
    for version, expected in enumerate(seen):
        spans = visible_spans(version, tuple(rollbacks))
        assert max((row for row in rows if is_visible(row, spans)), default=None) == expected


def test_a_record_is_read_with_what_it_lacks_counting_as_none() -> None:
    plain = {"parent": None, "absent": 0, "resting": None, "nameless": False}
    assert read_descent(plain) == Descent()
    clone = {"parent": [5, 6], "absent": 2, "overlap": 8192, "size": 8192, "parent_overlap": 4096}
    clone |= {"rollbacks": [[1, 4], [3, 9]], "rolled_back": [1, 2, 3], "flattened": [7], "nameless": True}
    assert read_descent(clone) == Descent(
        (5, 6), 2, 8192, 8192, 4096, (7,), rollbacks=((1, 4), (3, 9)), rolled_back=(1, 2, 3), nameless=True
    )


def test_a_flattened_vdisk_s_newer_versions_have_no_parent() -> None:
    descent = Descent(parent=(5, 6), flattened=(7,))
    assert [descent.parent_at(version) for version in (1, 6, 7, None)] == [(5, 6), (5, 6), None, None]
    assert Descent(parent=(5, 6)).parent_at(None) == (5, 6)
    back = Descent(parent=(5, 6), flattened=(7,), rollbacks=((3, 9),))
    assert [back.parent_at(version) for version in (6, 7, 9, 10, None)] == [
        (5, 6),
        None,
        None,
        (5, 6),
        (5, 6),
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"parent": 5},
        {"parent": [1]},
        {"rollbacks": 3},
        {"rollbacks": [[1]]},
        {"size": "x"},
        {"rolled_back": [1]},
    ],
)
def test_a_damaged_record_is_told(record: dict[str, object]) -> None:
    with pytest.raises(Corrupt):
        read_descent(record)
