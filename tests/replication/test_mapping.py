"""Where bytes live, as people and tools are told."""

from metadata.ids import group_id
from replication import head_write
from replication.cloning import copy_range
from replication.mapping import describe, group_name, map_range
from tests.replication.rig import B, Rig, block, blocks, close_and_rest, create, opened, run, write

MIB = 1 << 20


def test_a_group_is_named_by_epoch_and_number() -> None:
    assert group_name(group_id(3, 17)) == "3.17"


def test_a_vdisk_s_facts_are_told(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head, child = await create(vdisks, 20, MIB), await create(vdisks, 21)
            await write(head, 0, blocks(1, 2, 3))
            await copy_range(vdisks, head, child, offset=0, to=0, length=MIB)
            await write(head, 5 * B, block(4))
            facts = await describe(vdisks, 20)
            assert facts.pop("mtime_ns") > 0
            assert facts.pop("pool_bytes") >= 5 * B
            assert facts == {
                "version": 1,
                "epoch": 1,
                "size": MIB,
                "allocated_bytes": 4 * B,
                "groups": 1,
                "parent": None,
                "children": 1,
                "snapshots": [],
                "open_handles": 1,
                "dirty_bytes": B,
                "directory": str(rig.group_files(20)[0].parent),
            }
            assert (await describe(vdisks, 21))["parent"] == {"vdisk": 20, "version": 1}

    run(main)


def test_the_map_says_of_every_byte_where_it_lies(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 3 * MIB + 100)
            await write(head, 2 * B, blocks(1, 2, 3))
            await write(head, MIB - B, blocks(4, 5))
            await vdisks.flush(20)
            await close_and_rest(vdisks, 20)
            await opened(vdisks, 20)
            extents = await map_range(vdisks, 20, 0, 1 << 62)
            shape = [(e["offset"], e["length"], e["kind"], e.get("position")) for e in extents]
            assert shape == [
                (0, 2 * B, "hole", None),
                (2 * B, 3 * B, "data", 0),
                (5 * B, MIB - 6 * B, "hole", None),
                (MIB - B, 2 * B, "data", 3),
                (MIB + B, 2 * MIB + 100 - B, "hole", None),
            ]
            path = rig.group_files(20)[0]
            data = path.read_bytes()
            for extent in extents:
                if extent["kind"] == "data":
                    assert (extent["file"], extent["group"], extent["vdisk"]) == (str(path), "1.0", 20)
                    number = 1 if extent["position"] == 0 else 4
                    assert data[extent["position"] * B :][:B] == block(number)
                    assert len(extent["checksum"]) == 8

    run(main)


def test_a_part_of_the_map_begins_and_ends_where_it_was_asked(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 10 * B)
            await write(head, 0, blocks(*range(4)))
            extents = await map_range(vdisks, 20, 100, 5 * B)
            assert [(e["offset"], e["length"], e["kind"]) for e in extents] == [
                (100, 4 * B - 100, "data"),
                (4 * B, B + 100, "hole"),
            ]
            assert await map_range(vdisks, 20, 10 * B, 5) == []
            assert await map_range(vdisks, 20, 5, 0) == []
            (one,) = await map_range(vdisks, 20, 2 * B + 7, 1)
            assert (one["offset"], one["length"], one["position"]) == (2 * B + 7, 1, 2)

    run(main)


def test_a_clone_s_map_names_the_parent_s_files(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head, child = await create(vdisks, 20, MIB), await create(vdisks, 21)
            await write(head, 0, blocks(1, 2, 3))
            await copy_range(vdisks, head, child, offset=0, to=0, length=MIB)
            await write(child, B, block(9))
            await head_write.punch(child, 2 * B, B)
            extents = await map_range(vdisks, 21, 0, 4 * B)
            assert [(e["offset"], e["kind"], e.get("vdisk")) for e in extents] == [
                (0, "parent", 20),
                (B, "data", 21),
                (2 * B, "hole", None),
            ]
            assert extents[0]["file"] == str(rig.group_files(20)[0])

    run(main)
