"""Who keeps which version: names, children, pins, the ends of rollbacks; and what goes with a vdisk that goes."""

import pytest
import trio

from metadata.catalog import Change, encode_value, vdisk_key
from metadata.catalog_memory import MemoryCatalog
from metadata.descent import Descent
from metadata.errors import Corrupt, NotFound
from metadata.snapshots import Snapshot, encode_snapshot
from replication.family import Family


def snapshot(vdisk: int, name: str, number: int, version: int) -> Snapshot:
    return Snapshot(vdisk, name, number, version, 4096, 1, 0, 1, 1)


def child_of(vdisk: int, version: int, *, nameless: bool = False) -> Descent:
    return Descent(parent=(vdisk, version), nameless=nameless)


def test_snapshots_children_and_pins_keep_versions_and_rollbacks_keep_their_ends() -> None:
    family = Family()
    family.add_snapshot(snapshot(20, "one", 100, 3))
    family.set_descent(21, child_of(20, 5))
    family.set_descent(20, Descent(rollbacks=((3, 9),)))
    family.pin(20, 7)
    assert family.read_versions(20) == (3, 5, 7)
    assert family.kept_versions(20) == (3, 5, 7, 9)
    assert family.newest_named(20) == 9
    assert family.pinned_versions(20) == {7}
    family.unpin(20, 7)
    assert family.read_versions(20) == (3, 5)


def test_a_pin_lasts_as_long_as_the_last_of_those_who_hold_it() -> None:
    family = Family()
    family.pin(20, 7)
    with family.pinned(20, 7):
        family.unpin(20, 7)
        assert family.read_versions(20) == (7,)
        assert family.is_needed(20)
        assert family.pin_count(20) == 1
    assert family.read_versions(20) == ()
    assert not family.is_needed(20)


def test_a_vdisk_takes_deleted_ancestors_along_that_were_kept_for_it_alone() -> None:
    family = Family()
    family.set_descent(21, child_of(20, 1, nameless=True))
    family.set_descent(20, Descent(nameless=True))
    family.set_descent(22, child_of(21, 1))
    assert family.doomed_with(22) == [22, 21, 20]
    family.pin(20, 1)
    assert family.doomed_with(22) == [22, 21]
    family.unpin(20, 1)
    family.set_descent(23, child_of(21, 2))
    assert family.doomed_with(22) == [22]
    family.forget(23)
    family.set_descent(21, child_of(20, 1))
    assert family.doomed_with(22) == [22]


def test_a_parent_is_unread_once_no_version_that_is_kept_reads_it() -> None:
    family = Family()
    assert not family.has_unread_parent(21)
    family.set_descent(21, Descent(parent=(20, 1), flattened=(5,)))
    assert family.has_unread_parent(21)
    family.add_snapshot(snapshot(21, "old", 100, 4))
    assert not family.has_unread_parent(21)
    family.drop_snapshot(snapshot(21, "old", 100, 4))
    assert family.has_unread_parent(21)
    assert list(family.kept_for_others()) == [21]


def test_a_renamed_parent_leaves_the_old_one_without_children() -> None:
    family = Family()
    family.set_descent(21, child_of(20, 1))
    family.set_descent(21, child_of(30, 2))
    assert (dict(family.children(20)), dict(family.children(30))) == ({}, {21: 2})
    family.set_descent(21, Descent())
    assert dict(family.children(30)) == {}
    assert family.known() == set()


def test_snapshots_are_found_by_name_and_number_and_go_with_their_vdisk() -> None:
    family = Family()
    for number, version in ((102, 2), (101, 1)):
        family.add_snapshot(snapshot(20, f"s{number}", number, version))
    assert [found.id for found in family.snapshots(20)] == [101, 102]
    assert family.snapshot(20, "s101") == family.by_id(101)
    with pytest.raises(NotFound):
        family.snapshot(20, "s103")
    family.forget(20)
    assert (family.by_id(101), list(family.all_snapshots()), family.known()) == (None, [], set())


def test_the_mirror_is_read_from_the_catalog_and_damage_is_told() -> None:
    async def main() -> None:
        catalog, family = MemoryCatalog(), Family()
        rows = (
            (vdisk_key(21), encode_value({"parent": [20, 1]})),
            encode_snapshot(snapshot(20, "one", 100, 1)),
        )
        await catalog.transact(Change(puts=rows))
        await family.load(catalog)
        assert dict(family.children(20)) == {21: 1}
        assert family.has_snapshot(20, "one")
        await catalog.transact(Change(puts=((vdisk_key(22), encode_value([1])),)))
        with pytest.raises(Corrupt):
            await Family().load(catalog)

    trio.run(main)
