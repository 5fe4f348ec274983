"""Damage planted by hand is found and named, each kind, and a sound pool has no findings."""

import random
from typing import Any

import pytest
import trio

from metadata.ids import VdiskId, group_id
from metadata.index import IndexBatch
from metadata.rows import encode_row, uniform_row
from replication import head_write
from replication.checking import check
from replication.cloning import copy_range
from replication.scrub import scrub
from replication.vdisks import Vdisks
from tests.replication.rig import B, Rig, block, blocks, create, opened, run, sound, write

MIB = 1 << 20
ID = VdiskId(20)


async def findings(vdisks: Vdisks, *, checking: bool = False) -> list[dict[str, Any]]:
    told: list[object] = []
    found = await (check if checking else scrub)(vdisks, [ID], told.append)
    assert len(told) == 1
    return found


async def prepared(vdisks: Vdisks) -> None:
    head = await create(vdisks, 20, 4 * MIB)
    await write(head, 0, blocks(*range(10)))
    await write(head, 2 * MIB - B, blocks(20, 21))
    await vdisks.flush(ID)


def test_scrub_names_every_damaged_block_with_offset_and_file(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await prepared(vdisks)
            (group,) = rig.group_files(20)
            data = bytearray(group.read_bytes())
            for value in (3, 4, 21):
                data[data.index(block(value)) + value] ^= 16
            group.write_bytes(data)
            found = await findings(vdisks)
            assert [(f["offset"], f["length"], f["problem"]) for f in found] == [
                (3 * B, B, "a block fails its checksum"),
                (4 * B, B, "a block fails its checksum"),
                (2 * MIB, B, "a block fails its checksum"),
            ]
            assert {f["file"] for f in found} == {str(group)}
            assert {(f["vdisk"], f["group"]) for f in found} == {(20, "1.0")}
            assert [f["position"] for f in found] == [3, 4, 11]

    run(main)


def test_scrub_names_what_a_truncated_or_missing_group_took(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            await prepared(vdisks)
            (group,) = rig.group_files(20)
            whole = group.read_bytes()
            group.write_bytes(whole[: 8 * B])
            found = await findings(vdisks)
            assert [(f["offset"], f["problem"]) for f in found] == [
                (8 * B, "a block is missing"),
                (9 * B, "a block is missing"),
                (2 * MIB - B, "a block is missing"),
                (2 * MIB, "a block is missing"),
            ]
            group.unlink()
            vdisks.workspace.pool.forget_open(20)
            found = await findings(vdisks)
            assert [f["offset"] for f in found] == [0, 2 * MIB - B, 2 * MIB]
            assert all("missing from the pool" in f["problem"] for f in found)

    run(main)


def test_scrub_follows_a_clone_to_its_parent(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await prepared(vdisks)
            child = await create(vdisks, 21)
            await copy_range(vdisks, vdisks.heads[20], child, offset=0, to=0, length=4 * MIB)
            (group,) = rig.group_files(20)
            data = bytearray(group.read_bytes())
            data[data.index(block(5))] ^= 16
            group.write_bytes(data)
            found = await scrub(vdisks, [VdiskId(21)], lambda _: None)
            assert [(f["vdisk"], f["offset"], f["file"]) for f in found] == [(21, 5 * B, str(group))]

    run(main)


def test_a_vdisk_that_cannot_be_opened_is_a_finding_and_the_others_are_looked_at(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await prepared(vdisks)
            await write(await create(vdisks, 21, MIB), 0, block(1))
        (group,) = rig.group_files(20)
        group.write_bytes(group.read_bytes()[:B])
        rig.lose_state()
        async with rig.node(kill=True) as vdisks:
            for look in (scrub, check):
                found = await look(vdisks, [ID, VdiskId(21)], lambda _: None)
                assert [(f["vdisk"], "durable" in f["problem"]) for f in found] == [(20, True)]

    run(main)


@pytest.mark.parametrize("damage", ["row", "extra row", "lost row", "missing group", "count", "state"])
def test_check_finds_an_index_that_is_not_what_the_log_says(rig: Rig, damage: str) -> None:
    async def main() -> None:
        async with rig.node(kill=True) as vdisks:
            await prepared(vdisks)
            index = vdisks.workspace.index
            state, row = index.state(20), index.row_at(20, 0, 1 << 60)
            assert state is not None
            assert row is not None
            rows = {0: row}
            match damage:
                case "row":
                    row[3], row[4] = row[4], row[3]
                case "extra row":
                    rows = {3: row}
                case "lost row":
                    rows = {0: uniform_row(0)}
                case "missing group":
                    row[5] = group_id(1, 5) << 16
                case _:
                    rows = {}
            encoded = {vblock: encode_row(r) for vblock, r in rows.items()}
            if damage == "state":
                index.forget(20)
            else:
                index.apply(IndexBatch(20, 1, rows=encoded, segments={}, state=state))
            if damage == "count":
                vdisks.heads[20].own_blocks += 1
                await write(vdisks.heads[20], 3 * MIB, block(5))
            (found, *_) = await findings(vdisks, checking=True)
            expected = {
                "row": "index and log disagree (I10) vblock=0",
                "extra row": "the index has a row that the log has not (I10) vblock=3",
                "lost row": "index and log disagree (I10) vblock=0",
                "missing group": "index and log disagree (I10) vblock=0",
                "count": "the count of own blocks is off counted=13 recorded=14",
                "state": "the index is not at the log's end",
            }
            assert found["problem"].startswith(expected[damage])
            assert found["vdisk"] == 20

    run(main)


def test_check_leaves_nothing_behind(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await prepared(vdisks)
            assert await findings(vdisks, checking=True) == []
            assert sorted(path.name for path in rig.state_path.iterdir()) == ["index", "journal"]

    run(main)


def test_neither_finds_anything_wrong_beside_a_guest_that_writes(rig: Rig) -> None:
    chance = random.Random(7)

    async def main() -> None:
        async with rig.node() as vdisks:
            await prepared(vdisks)
            head, done = await opened(vdisks, 20), trio.Event()

            async def guest() -> None:
                while not done.is_set():
                    offset = chance.randrange(1000) * B
                    match chance.randrange(4):
                        case 0:
                            await head_write.punch(head, offset, 30 * B)
                        case 1:
                            await vdisks.flush(ID)
                        case _:
                            await write(head, offset, block(chance.randrange(1 << 40)))
                    await trio.lowlevel.checkpoint()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest)
                for _ in range(5):
                    await sound(vdisks, 20)
                done.set()

    run(main)


def test_a_deleted_vdisk_is_no_finding(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            assert await findings(vdisks) == []
            assert await findings(vdisks, checking=True) == []

    run(main)
