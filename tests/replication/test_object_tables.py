"""Which objects hold which blocks: sets of ranges against plain sets, coverage, and what is merged."""

from hypothesis import given
from hypothesis import strategies as st

from replication.object_tables import (
    MERGED_BLOCKS_MAX,
    OPEN_SPANS_MAX,
    ObjectTable,
    Ranges,
    Span,
    parse_span,
    plan_merge,
    span_name,
    superseded,
)

LIMIT = 60
POSITIONS = st.integers(0, LIMIT)
STEPS = st.lists(st.tuples(st.booleans(), POSITIONS, POSITIONS), max_size=30)
SPANS = st.lists(st.builds(Span, st.integers(0, LIMIT), st.integers(1, 12)), max_size=30)


def numbers(ranges: list[tuple[int, int]]) -> set[int]:
    return {number for start, end in ranges for number in range(start, end)}


@given(STEPS, POSITIONS, POSITIONS)
def test_ranges_hold_what_a_set_would(steps: list[tuple[bool, int, int]], start: int, end: int) -> None:
    ranges, model = Ranges(), set[int]()
    for is_added, low, high in steps:
        (ranges.add if is_added else ranges.remove)(low, high)
        model = model | set(range(low, high)) if is_added else model - set(range(low, high))
    kept = list(ranges)
    assert numbers(kept) == model
    assert all(low < high for low, high in kept)
    assert all(kept[at][1] < kept[at + 1][0] for at in range(len(kept) - 1))
    assert numbers(ranges.within(start, end)) == model & set(range(start, end))
    assert numbers(ranges.missing(start, end)) == set(range(start, end)) - model


def test_names_of_objects_sort_as_positions_do_and_others_are_none() -> None:
    spans = [Span(0, 1), Span(15, 2), Span(16, 1), Span(65535, 70000)]
    assert [parse_span(name) for name in sorted(map(span_name, spans))] == spans
    assert span_name(Span(16, 3)) == "00010-00003"
    assert [parse_span(name) for name in ("", "1-2", "0000g-00001", "begun", "00001-000001")] == [None] * 5


@given(SPANS, POSITIONS, POSITIONS)
def test_pieces_are_every_block_that_an_object_holds_once_and_in_order(
    spans: list[Span], start: int, end: int
) -> None:
    table = ObjectTable(spans)
    pieces = table.pieces(start, end)
    held = {number for span in spans for number in range(span.position, span.end)}
    found = [number for piece in pieces for number in range(piece.position, piece.position + piece.count)]
    assert found == sorted(held & set(range(start, end)))
    assert all(p.span.position <= p.position and p.position + p.count <= p.span.end for p in pieces)
    assert {piece.span for piece in pieces} <= set(spans)


@given(SPANS, st.booleans())
def test_merging_goes_on_until_nothing_is_left_to_do_and_keeps_what_was_held(
    spans: list[Span], is_sealed: bool
) -> None:
    table = ObjectTable(spans)
    before = list(table.covered)
    for _ in range(len(spans) + 1):
        run = plan_merge(table.spans, is_sealed=is_sealed)
        if run is None:
            break
        merged = Span(run[0].position, run[-1].end - run[0].position)
        assert len(run) > 1
        table.add([merged])
        table.drop(superseded(table.spans))
        assert list(table.covered) == before
    assert plan_merge(table.spans, is_sealed=is_sealed) is None
    if is_sealed:
        table.drop(superseded(table.spans))
        assert len(table.spans) == len(before)


def test_a_day_of_small_commits_leaves_few_objects_and_copies_each_block_a_few_times() -> None:
    table, copied, group_blocks = ObjectTable(), 0, 16384
    for position in range(0, group_blocks, 2):
        table.add([Span(position, 2)])
        while (run := plan_merge(table.spans, is_sealed=False)) is not None:
            merged = Span(run[0].position, run[-1].end - run[0].position)
            copied += merged.count
            table.add([merged])
            table.drop(superseded(table.spans))
        assert len(table.spans) <= OPEN_SPANS_MAX
    while (run := plan_merge(table.spans, is_sealed=True)) is not None:
        table.add([Span(run[0].position, run[-1].end - run[0].position)])
        table.drop(superseded(table.spans))
    assert len(table.spans) * 16 < 64  # sixteen groups are a GiB
    assert all(span.count <= MERGED_BLOCKS_MAX for span in table.spans)
    assert copied < 5 * group_blocks
