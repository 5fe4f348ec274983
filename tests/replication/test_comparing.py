"""Comparisons of real versions: an older content with its changed ranges applied is the newer one."""

import random
from collections.abc import Iterable

import pytest

from metadata.catalog import Change, encode_value, vdisk_key
from metadata.differences import DATA_KIND, HOLE_KIND, ChangedRange
from metadata.errors import InvalidRequest, NotFound
from metadata.ids import VdiskId
from replication import head_write
from replication.cloning import copy_range
from replication.comparing import Comparison, Named, compare
from replication.head import Head
from replication.snapshots import Snapshots, vdisk_record
from replication.vdisks import Vdisks
from tests.replication.rig import B, Rig, block, blocks, content, create, opened, run, write

MIB = 1 << 20
SIZE = 3 * MIB + 5 * B


def named(vdisk: int, name: str | None = None) -> Named:
    return Named(VdiskId(vdisk), name)


def applied(older: bytes, newer: bytes, found: Comparison) -> bytes:
    """The older content made the newer one, by the ranges."""
    made = bytearray(older[: found.size].ljust(found.size, b"\0"))
    last = 0
    for offset, length, kind in found.ranges:
        assert offset >= last
        last = offset + length
        made[offset:last] = newer[offset:last] if kind == DATA_KIND else bytes(length)
    return bytes(made)


def total(ranges: Iterable[ChangedRange]) -> int:
    return sum(found.length for found in ranges)


class History:
    """Random changes of a few vdisks, clones among them, with copies of what each snapshot held."""

    def __init__(self, vdisks: Vdisks, seed: int) -> None:
        self.vdisks, self.chance = vdisks, random.Random(seed)
        self.heads: dict[int, Head] = {}
        self.copies: dict[Named, bytes] = {}
        self._ids = iter(range(100, 1 << 20))

    async def change(self) -> None:
        head = self.chance.choice(list(self.heads.values()))
        at = self.chance.randrange(SIZE // B) * B
        match self.chance.randrange(12):
            case 0 | 1 | 2 | 3:
                await write(head, at, self.chance.randbytes(B * self.chance.choice([1, 1, 3, 200])))
            case 4 | 5:
                await head_write.punch(head, at, self.chance.choice([B, 64 * B, MIB]))
            case 6:
                await head_write.truncate(head, self.chance.choice([SIZE, at + 1, SIZE + MIB]))
            case 7 | 8:
                await self.snapshot(head)
            case 9 if len(self.heads) < 4:
                await self.clone()
            case 10:
                await self.roll_back(head)
            case 11 if self.chance.random() < 0.3:
                await Snapshots(self.vdisks).flatten(VdiskId(head.vdisk), lambda news: None)
            case _:
                await write(head, at + 7, b"part of a block")

    async def snapshot(self, head: Head) -> None:
        number = next(self._ids)
        await Snapshots(self.vdisks).create([(VdiskId(head.vdisk), f"s{number}", number)])
        self.copies[named(head.vdisk, f"s{number}")] = await content(head)

    async def roll_back(self, head: Head) -> None:
        to = [snapshot for snapshot in self.copies if snapshot.vdisk == head.vdisk]
        if to:
            number, before = next(self._ids), await content(head)
            chosen = self.chance.choice(to)
            assert chosen.name is not None
            await Snapshots(self.vdisks).rollback(chosen.vdisk, chosen.name, keep_as=(f"s{number}", number))
            self.copies[named(head.vdisk, f"s{number}")] = before
            self.heads[head.vdisk] = await self.vdisks.head(VdiskId(head.vdisk))
            assert await content(self.heads[head.vdisk]) == self.copies[chosen]

    async def clone(self, origin: Named | None = None) -> None:
        number, snapshots = next(self._ids), Snapshots(self.vdisks)
        origin = origin or self.chance.choice([*self.copies, *map(named, self.heads)])
        async with snapshots.origin(origin.vdisk, origin.name) as found:
            put = (vdisk_key(number), encode_value(vdisk_record(found)))
            await self.vdisks.workspace.catalog.transact(Change(puts=(put,)))
            snapshots.note_clone(number, found)
        self.heads[number] = await opened(self.vdisks, number)

    async def compare_some(self) -> None:
        copies = self.copies | {named(vdisk): await content(head) for vdisk, head in self.heads.items()}
        for _ in range(8):
            older, newer = (self.chance.choice([*copies]) for _ in range(2))
            try:
                found = await compare(self.vdisks, older, newer)
            except InvalidRequest:
                assert older.vdisk != newer.vdisk  # strangers since one of them was flattened
                continue
            assert found.size == len(copies[newer])
            assert applied(copies[older], copies[newer], found) == copies[newer]
            whole = await compare(self.vdisks, None, newer)
            assert applied(b"", copies[newer], whole) == copies[newer]


@pytest.mark.parametrize("seed", [*range(6), 44])
def test_an_older_content_with_its_changes_applied_is_the_newer(rig: Rig, seed: int) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            history = History(vdisks, seed)
            history.heads[20] = await create(vdisks, 20, SIZE)
            await history.snapshot(history.heads[20])
            for _ in range(6):
                for _ in range(6):
                    await history.change()
                await history.compare_some()

    run(main)


def test_only_what_was_written_between_two_versions_is_told(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head, history = await create(vdisks, 20, SIZE), History(vdisks, 1)
            await write(head, 0, blocks(*range(512)))
            await history.snapshot(head)
            await write(head, 3 * B, blocks(1000, 1001))
            await head_write.punch(head, MIB, 2 * B)
            await write(head, 2 * MIB + B, block(7))
            await history.snapshot(head)
            one, two = history.copies
            assert (await compare(vdisks, one, two)).ranges == [
                ChangedRange(3 * B, 2 * B, DATA_KIND),
                ChangedRange(MIB, 2 * B, HOLE_KIND),
                ChangedRange(2 * MIB + B, B, DATA_KIND),
            ]
            assert (await compare(vdisks, two, named(20))).ranges == []
            await write(head, 2 * MIB + 9 * B, block(7))
            now = await compare(vdisks, two, named(20))
            assert now.ranges == [ChangedRange(2 * MIB + 9 * B, B, DATA_KIND)]
            back = await compare(vdisks, two, one)
            assert [(found.offset, found.kind) for found in back.ranges] == [
                (3 * B, DATA_KIND),
                (MIB, DATA_KIND),
                (2 * MIB + B, HOLE_KIND),
            ]

    run(main)


def test_a_clone_differs_from_its_origin_in_what_it_wrote_itself(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head, history = await create(vdisks, 20, SIZE), History(vdisks, 1)
            await write(head, 0, blocks(*range(512)))
            await history.snapshot(head)
            (origin,) = history.copies
            await history.clone(origin)
            ((child, clone),) = history.heads.items()
            assert (await compare(vdisks, origin, named(child))).ranges == []
            await write(clone, 5 * B, block(7))
            await write(head, 9 * B, block(7))
            changed = [ChangedRange(5 * B, B, DATA_KIND)]
            assert (await compare(vdisks, origin, named(child))).ranges == changed
            assert total((await compare(vdisks, named(20), named(child))).ranges) == 2 * B
            assert total((await compare(vdisks, None, named(child))).ranges) == 512 * B
            copy = await create(vdisks, 21)
            await copy_range(vdisks, head, copy, offset=0, to=0, length=SIZE)
            assert total((await compare(vdisks, origin, named(21))).ranges) == B

    run(main)


def test_a_long_comparison_comes_in_parts_that_fit_together(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 5000 * MIB)
            await Snapshots(vdisks).create([(VdiskId(20), "a", 100)])
            for vblock in range(0, 5000, 500):
                await write(head, vblock * MIB, blocks(1))
                await write(head, vblock * MIB + 9 * B, blocks(1))
            whole = await compare(vdisks, named(20, "a"), named(20))
            assert (len(whole.ranges), whole.next_offset) == (20, None)
            first = await compare(vdisks, named(20, "a"), named(20), count=3)
            assert first.next_offset == 4096 * MIB
            rest = await compare(vdisks, named(20, "a"), named(20), offset=first.next_offset)
            assert (first.ranges + rest.ranges, rest.next_offset) == (whole.ranges, None)

    run(main)


def test_strangers_and_what_is_not_there_cannot_be_compared(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            await create(vdisks, 20, MIB)
            await create(vdisks, 21, MIB)
            with pytest.raises(InvalidRequest, match="no relatives"):
                await compare(vdisks, named(20), named(21))
            with pytest.raises(NotFound):
                await compare(vdisks, named(20, "never"), named(20))

    run(main)
