"""What versions occupy alone and together, counted on a real index."""

from metadata.ids import VdiskId
from replication import head_write
from replication.snapshots import Snapshots
from replication.usage import HEAD, count_usage
from tests.replication.rig import Rig, blocks, create, run, write

DISK = VdiskId(20)
MIB = 1 << 20


def test_blocks_are_counted_with_those_who_see_them(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head, snapshots = await create(vdisks, DISK, 4 * MIB), Snapshots(vdisks)
            await write(head, 0, blocks(*range(10)))
            await write(head, 2 * MIB, blocks(*range(5)))
            (one,) = await snapshots.create([(DISK, "one", 100)])
            await write(head, 0, blocks(91, 92))
            (two,) = await snapshots.create([(DISK, "two", 101)])
            await write(head, 0, blocks(93))
            await write(head, 3 * MIB, blocks(*range(7)))
            await head_write.punch(head, 2 * MIB, 4096)
            assert await count_usage(vdisks, DISK) == {
                one.version: (2, 8 + 5),  # the two blocks overwritten first
                two.version: (1, 1 + 8 + 5),
                HEAD: (1 + 7, 1 + 8 + 4),
            }
            await snapshots.remove(DISK, "two")
            assert await count_usage(vdisks, DISK) == {one.version: (3, 8 + 4), HEAD: (2 + 7, 8 + 4)}

    run(main)


def test_a_plain_vdisk_has_everything_alone(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, DISK, MIB)
            assert await count_usage(vdisks, DISK) == {HEAD: (0, 0)}
            await write(head, 0, blocks(1, 2, 3))
            assert await count_usage(vdisks, DISK) == {HEAD: (3, 0)}

    run(main)


def test_what_a_clone_reads_is_shared_with_it(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head, snapshots = await create(vdisks, DISK, MIB), Snapshots(vdisks)
            await write(head, 0, blocks(1, 2, 3))
            async with snapshots.origin(DISK, None) as origin:
                snapshots.note_clone(30, origin)
            await write(head, 0, blocks(4))
            assert await count_usage(vdisks, DISK) == {origin.version: (0, 3), HEAD: (1, 2)}

    run(main)
