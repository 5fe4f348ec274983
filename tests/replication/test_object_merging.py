"""Merging the objects of one group: what comes out holds what went in, whatever the objects, and their local copies, are like."""

import pathlib

import pytest

from metadata.ids import GroupId, group_id
from replication.object_groups import ObjectGroup
from replication.object_tables import Span, span_name
from replication.pool_objects import ObjectPool
from tests.replication.objects import ObjectRig, object_pool
from tests.replication.rig import block

GROUP: GroupId = group_id(1, 0)


@pytest.fixture
def rig(tmp_path: pathlib.Path) -> ObjectRig:
    return ObjectRig(tmp_path)


def content(span: Span) -> bytes:
    """A block's content goes by its position, whichever object holds it."""
    return b"".join(block(position) for position in range(span.position, span.end))


def stored(rig: ObjectRig, pool: ObjectPool, *spans: Span) -> ObjectGroup:
    """A group that an earlier process left, of these objects."""
    group = pool.group(20, GROUP)
    rig.store.objects[group.prefix + span_name(Span(0, 0))] = b"begun"
    for span in spans:
        rig.store.objects[group.key(span)] = content(span)
    return group


def held(rig: ObjectRig, group: ObjectGroup) -> dict[str, bytes]:
    """Its objects with blocks, by name."""
    begun = span_name(Span(0, 0))
    names = {key.removeprefix(group.prefix): data for key, data in rig.store.objects.items()}
    return {name: data for name, data in names.items() if len(name) == len(begun) and name != begun}


def test_objects_that_overlap_become_one_that_holds_each_block_once(rig: ObjectRig) -> None:
    pool = object_pool(rig.open_pool())
    group = stored(rig, pool, Span(0, 4), Span(2, 4), Span(5, 3), Span(6, 1))
    pool.merger.merge(group)
    whole = Span(0, 8)
    assert held(rig, group) == {span_name(whole): content(whole)}
    pool.close()


def test_objects_with_a_gap_between_stay_two(rig: ObjectRig) -> None:
    pool = object_pool(rig.open_pool())
    spans = Span(0, 4), Span(5, 4)
    group = stored(rig, pool, *spans)
    pool.merger.merge(group)
    assert held(rig, group) == {span_name(span): content(span) for span in spans}
    assert pool.merger.merged_objects == 0
    pool.close()


def test_a_group_that_is_gone_is_left_alone(rig: ObjectRig) -> None:
    pool = object_pool(rig.open_pool())
    group = stored(rig, pool, Span(0, 4), Span(4, 4))
    group.refresh()
    group.is_gone = True
    pool.merger.merge(group)
    assert len(held(rig, group)) == 2
    assert rig.store.calls["delete"] == 0
    pool.close()


def test_what_is_asked_for_when_the_pool_is_closed_is_not_begun(rig: ObjectRig) -> None:
    pool = object_pool(rig.open_pool())
    group = stored(rig, pool, Span(0, 4), Span(4, 4))
    pool.close()
    pool.merger.ask(group)
    assert len(held(rig, group)) == 2
