"""The owner's record and the resting summary: who may write, and what a vdisk is that nobody writes."""

from collections.abc import Awaitable, Callable

import pytest

from metadata.catalog import (
    Catalog,
    Change,
    decode_value,
    encode_value,
    owner_key,
    session_key,
    vdisk_key,
)
from metadata.catalog_memory import MemoryCatalog
from metadata.descent import Descent
from metadata.errors import Conflict, Corrupt, Fenced, NotFound, NotOwner
from replication.ownership import (
    Floor,
    Owner,
    Resting,
    adopt,
    claim,
    find_owner,
    hand_over,
    read_facts,
    read_resting,
    rest,
    set_floor,
    set_nameless,
    take_over,
)
from tests.replication.rig import run

VDISK = 0x42
SUMMARY = Resting(7, 1 << 42, 99, 12, 4096, 1, 10**18)


async def catalog_with_vdisk() -> MemoryCatalog:
    catalog = MemoryCatalog()
    row = {"parent": None, "absent": 0, "resting": None, "nameless": False}
    await catalog.transact(Change(puts=((vdisk_key(VDISK), encode_value(row)),)))
    return catalog


async def value_of(catalog: Catalog, key: bytes) -> object:
    rows, _ = await catalog.read(key)
    return decode_value(key, rows[0].value)


def test_the_rows_hold_these_values() -> None:
    async def main() -> None:
        catalog = await catalog_with_vdisk()
        assert await claim(catalog, VDISK, node="here") == 1
        await rest(catalog, VDISK, SUMMARY)
        assert await value_of(catalog, owner_key(VDISK)) == {"node": "here", "epoch": 1}
        assert await value_of(catalog, vdisk_key(VDISK)) == {
            "parent": None,
            "absent": 0,
            "nameless": False,
            "resting": {
                "version": 7,
                "record_place": 1 << 42,
                "record_check": 99,
                "record_end": 12,
                "size": 4096,
                "own_blocks": 1,
                "mtime_ns": 10**18,
            },
        }
        facts = await read_facts(catalog, VDISK)
        assert (facts.resting, facts.node, facts.epoch, facts.descent.parent) == (SUMMARY, "here", 1, None)

    run(main)


def test_the_epoch_grows_when_the_owner_changes_and_only_then() -> None:
    async def main() -> None:
        catalog = await catalog_with_vdisk()
        assert [await claim(catalog, VDISK, node="here") for _ in range(2)] == [1, 1]
        here = await find_owner(catalog, VDISK)
        assert await hand_over(catalog, VDISK, owner=here, to="there") == 2
        assert [await claim(catalog, VDISK, node="there") for _ in range(2)] == [2, 2]
        there = await find_owner(catalog, VDISK)
        assert await take_over(catalog, VDISK, owner=there, node="here") == 3
        assert await claim(catalog, VDISK, node="here") == 3

    run(main)


def test_a_claim_takes_nothing_from_another_node() -> None:
    async def main() -> None:
        catalog = await catalog_with_vdisk()
        await claim(catalog, VDISK, node="there")
        with pytest.raises(NotOwner):
            await claim(catalog, VDISK, node="here")
        assert await find_owner(catalog, VDISK) == Owner("there", 1)

    run(main)


def test_only_a_node_without_a_session_is_taken_over_and_only_once() -> None:
    async def main() -> None:
        catalog = await catalog_with_vdisk()
        await claim(catalog, VDISK, node="there")
        owner, session = await find_owner(catalog, VDISK), session_key("there")
        await catalog.transact(Change(puts=((session, b"x"),)))
        with pytest.raises(NotOwner):
            await take_over(catalog, VDISK, owner=owner, node="here")
        await catalog.transact(Change(deletes=(session,)))
        assert await take_over(catalog, VDISK, owner=owner, node="here") == 2
        with pytest.raises(NotOwner):
            await take_over(catalog, VDISK, owner=owner, node="third")
        assert await find_owner(catalog, VDISK) == Owner("here", 2)

    run(main)


def test_a_deposed_owner_says_nothing_of_the_vdisk_any_more() -> None:
    async def main() -> None:
        catalog = await catalog_with_vdisk()
        await claim(catalog, VDISK, node="there")
        owner = await find_owner(catalog, VDISK)
        await take_over(catalog, VDISK, owner=owner, node="here")
        before = await catalog.read(b"")
        for late in (
            rest(catalog, VDISK, SUMMARY, owner=owner),
            set_floor(catalog, VDISK, Floor(7, 1, 1), owner=owner),
            hand_over(catalog, VDISK, owner=owner, to="third"),
        ):
            with pytest.raises(Fenced):
                await late
        assert await catalog.read(b"") == before

    run(main)


def test_a_claim_takes_the_summary_away_in_the_same_step() -> None:
    async def main() -> None:
        catalog = await catalog_with_vdisk()
        await rest(catalog, VDISK, SUMMARY)
        await claim(catalog, VDISK, node="here")
        assert (await read_facts(catalog, VDISK)).resting is None

    run(main)


class Meddling:
    """A catalog in which somebody else changes the vdisk's record first, a few times."""

    def __init__(self, catalog: MemoryCatalog, times: int) -> None:
        self.catalog, self.times = catalog, times
        self.read = catalog.read

    async def transact(self, change: Change, *, lease: int = 0) -> int:
        if self.times:
            self.times -= 1
            rows, _ = await self.catalog.read(vdisk_key(VDISK))
            await self.catalog.transact(Change(puts=((rows[0].key, rows[0].value),)))
        return await self.catalog.transact(change, lease=lease)


ACTIONS: list[Callable[[Catalog], Awaitable[object]]] = [
    lambda catalog: claim(catalog, VDISK, node="here"),
    lambda catalog: rest(catalog, VDISK, SUMMARY),
    lambda catalog: adopt(catalog, VDISK, parent=(5, 6)),
    lambda catalog: set_nameless(catalog, VDISK),
]


@pytest.mark.parametrize("number", range(len(ACTIONS)))
def test_a_change_that_was_overtaken_is_made_again_but_not_for_ever(number: int) -> None:
    async def main() -> None:
        await ACTIONS[number](Meddling(await catalog_with_vdisk(), times=5))  # type: ignore[arg-type]
        with pytest.raises(Conflict):
            await ACTIONS[number](Meddling(await catalog_with_vdisk(), times=1000))  # type: ignore[arg-type]

    run(main)


@pytest.mark.parametrize("number", range(len(ACTIONS)))
def test_a_vdisk_that_is_not_there_is_not_found(number: int) -> None:
    async def main() -> None:
        catalog = MemoryCatalog()
        with pytest.raises(NotFound):
            await ACTIONS[number](catalog)
        with pytest.raises(NotFound):
            await read_facts(catalog, VDISK)
        assert (await catalog.read(b""))[0] == []

    run(main)


def test_changes_of_a_record_leave_its_other_facts() -> None:
    async def main() -> None:
        catalog = await catalog_with_vdisk()
        await rest(catalog, VDISK, SUMMARY)
        await adopt(catalog, VDISK, parent=(5, 6))
        await set_nameless(catalog, VDISK)
        facts = await read_facts(catalog, VDISK)
        assert facts.descent == Descent(parent=(5, 6), nameless=True)
        assert facts.resting == SUMMARY

    run(main)


def test_damaged_records_are_told() -> None:
    async def main() -> None:
        for damaged in ([1], "text", 7):
            catalog = await catalog_with_vdisk()
            await catalog.transact(Change(puts=((vdisk_key(VDISK), encode_value(damaged)),)))
            with pytest.raises(Corrupt):
                await read_facts(catalog, VDISK)

    run(main)
    with pytest.raises(Corrupt):
        read_resting({"resting": {"version": 1, "colour": 2}})
    assert read_resting({"resting": None}) is None
    assert read_resting([]) is None
