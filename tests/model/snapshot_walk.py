"""The random walk on vdisks, with snapshots, clones, rollbacks and flattening, against full copies of everything.

Each snapshot's model is a copy of its vdisk's when it was made; a rollback gives it back, a clone begins with it. After
each life all vdisks are read, now and then all snapshots too; at the end they go in a random order, and nothing is left.
"""

import pathlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from metadata.errors import VdiskfsError
from metadata.ids import VdiskId
from replication import head_read
from replication.snapshots import Snapshots
from tests.model.vdisk_walk import VDISKS_MAX, Model, Operation, Walk
from tests.replication import rig
from tests.replication.rig import B, handles_of
from tests.replication.snapshotting import clone

SNAPSHOTS_MAX = 8
MIB = 1 << 20


@dataclass
class Kept:
    """What a snapshot must hold."""

    content: bytes
    base: int
    id: int


class SnapshotWalk(Walk):
    """Such a walk. Names of snapshots are unique over all vdisks."""

    def __init__(self, folder: pathlib.Path, seed: int, *, faults: bool = True, **limits: int) -> None:
        super().__init__(folder, seed, faults=faults, **limits)
        self.kept: dict[tuple[int, str], Kept] = {}
        self.next_snapshot = 1 << 20

    @property
    def snapshots(self) -> Snapshots:
        return Snapshots(self.vdisks)

    def new_name(self) -> tuple[str, int]:
        self.next_snapshot += 1
        return f"s{self.next_snapshot - (1 << 20)}", self.next_snapshot

    def named(self, vdisk: int) -> list[tuple[int, str]]:
        return sorted(key for key in self.kept if key[0] == vdisk)

    def keep(self, vdisk: int, name: tuple[str, int], content: bytes | None = None) -> None:
        model = self.models[vdisk]
        held = bytes(model.content) if content is None else content
        self.kept[vdisk, name[0]] = Kept(held, model.base, name[1])

    # ---- operations

    async def snapshot(self, vdisk: int) -> str:
        """One of one vdisk, or of several at one moment."""
        if len(self.kept) >= SNAPSHOTS_MAX:
            return "no more snapshots"
        members = {vdisk, *(other for other in self.models if self.chance.random() < 0.3)}
        targets = [(VdiskId(member), *self.new_name()) for member in sorted(members)]
        if not await self.attempt(lambda: self.snapshots.create(targets)):
            for member, name, _ in targets:
                assert name not in [found.name for found in self.snapshots.list(member)]
            return "snapshot failed"
        for member, name, number in targets:
            self.keep(member, (name, number))
        return f"snapshot {targets}"

    async def snapshot_under_a_writer(self, vdisk: int) -> str:
        """What it holds is a prefix of what was being written."""
        if len(self.kept) >= SNAPSHOTS_MAX:
            return "no more snapshots"
        model, name = self.models[vdisk], self.new_name()
        states = [bytes(model.content)]
        self.rig.faults.disarm()

        async def keep_writing() -> None:
            for _ in range(self.chance.randrange(2, 12)):
                offset, length = self.span(model)
                data = self.data(min(length, 3 * B)) if length else b""
                await rig.write(self.head(vdisk), model.base + offset, data)
                if data:
                    model.content += bytes(max(0, offset - len(model.content)))
                    model.content[offset : offset + len(data)] = data
                states.append(bytes(model.content))
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_writing)
            for _ in range(self.chance.randrange(8)):
                await trio.lowlevel.checkpoint()
            await self.snapshots.create([(VdiskId(vdisk), *name)])
        found = await self.content_of(name[1], model.base)
        assert found in states
        self.keep(vdisk, name, found)
        return f"snapshot {name} after {states.index(found)} of {len(states) - 1} writes"

    async def remove_snapshot(self, vdisk: int) -> str:
        if not self.named(vdisk):
            return "remove nothing"
        key = self.chance.choice(self.named(vdisk))
        await self.snapshots.remove(*key)
        del self.kept[key]
        return f"remove {key[1]}"

    async def rename_snapshot(self, vdisk: int) -> str:
        if not self.named(vdisk):
            return "rename nothing"
        key, new_name = self.chance.choice(self.named(vdisk)), self.new_name()[0]
        await self.snapshots.rename(*key, new_name)
        self.kept[vdisk, new_name] = self.kept.pop(key)
        return f"rename {key[1]} to {new_name}"

    async def clone(self, vdisk: int) -> str:
        if len(self.models) >= VDISKS_MAX:
            return "no more vdisks"
        child, self.next_id = self.next_id, self.next_id + 1
        key = self.chance.choice([None, *self.named(vdisk)])
        model = self.models[vdisk]
        content = bytes(model.content) if key is None else self.kept[key].content
        before = min(self.rig.faults.injected, self.held_since)
        try:
            await clone(self.vdisks, vdisk, key and key[1], child)
        except VdiskfsError:
            if self.rig.faults.injected <= before:
                raise
            if child in self.vdisks.family.children(vdisk):  # it is there, and could not be opened
                self.models[child] = Model(bytearray(content), base=model.base)
                await self.open(child)
            return f"clone {child} of {key} failed"
        self.models[child] = Model(bytearray(content), base=model.base)
        return f"clone {child} of {key}"

    async def rollback(self, vdisk: int) -> str:
        if not self.named(vdisk):
            return "roll nothing back"
        key, name = self.chance.choice(self.named(vdisk)), self.new_name()
        before = bytes(self.models[vdisk].content)
        injected = min(self.rig.faults.injected, self.held_since)
        try:
            await self.snapshots.rollback(VdiskId(vdisk), key[1], keep_as=name)
        except VdiskfsError:
            if self.rig.faults.injected <= injected:
                raise
            return f"rollback to {key[1]} failed"
        self.keep(vdisk, name, before)
        self.models[vdisk].content = bytearray(self.kept[key].content)
        return f"rollback to {key[1]}, kept as {name[0]}"

    async def flatten(self, vdisk: int) -> str:
        before = min(self.rig.faults.injected, self.held_since)
        try:
            await self.snapshots.flatten(VdiskId(vdisk), lambda _: None)
        except VdiskfsError:
            if self.rig.faults.injected <= before:
                raise
            return "flatten failed"
        assert not self.head(vdisk).ancestry.generations
        return "flatten"

    async def drop(self, vdisk: int) -> str:
        done = await super().drop(vdisk)
        if vdisk not in self.models:
            self.kept = {key: kept for key, kept in self.kept.items() if key[0] != vdisk}
        return done

    async def look(self, vdisk: int) -> str:
        """A snapshot is what it was."""
        if not self.named(vdisk):
            return "look at nothing"
        key = self.chance.choice(self.named(vdisk))
        kept = self.kept[key]
        found = await self.settled(partial(self.content_of, kept.id, kept.base))
        assert found == kept.content, key
        return f"look at {key[1]}"

    async def content_of(self, snapshot_id: int, base: int) -> bytes:
        number = await self.vdisks.open_version(snapshot_id)
        try:
            view = await self.vdisks.reader_of(number)
            offsets = range(base, view.size, MIB)
            return b"".join([await head_read.read(view, offset, MIB) for offset in offsets])
        finally:
            self.vdisks.close(number)

    @property
    def operations(self) -> list[Operation]:
        changing = [self.rename_snapshot, self.remove_snapshot, self.flatten, self.snapshot_under_a_writer]
        often = [self.snapshot, self.clone, self.look, self.rollback, self.drop]
        return [*super().operations, *often * 2, *changing]

    # ---- walking

    async def verify(self) -> None:
        await super().verify()
        for (vdisk, name), kept in self.kept.items():
            assert await self.content_of(kept.id, kept.base) == kept.content, (vdisk, name)
        for vdisk in self.models:
            names = {name for owner, name in self.kept if owner == vdisk}
            assert {snapshot.name for snapshot in self.snapshots.list(vdisk)} == names

    async def finish(self) -> None:
        await super().finish()
        async with self.rig.node() as self.vdisks:
            for vdisk in sorted(self.models):
                await self.open(vdisk)
            deeds: list[Callable[[], object]] = [partial(self.go, vdisk) for vdisk in self.models]
            deeds += [partial(self.go_snapshot, key) for key in self.kept]
            self.chance.shuffle(deeds)
            for deed in deeds:
                await deed()  # type: ignore[misc]
                for vdisk in self.models:
                    self.head(vdisk).rows.clear()
                await self.verify()
            assert self.vdisks.workspace.pool.vdisks() == []
            rows, _ = await self.vdisks.workspace.catalog.read(b"")
            assert [row.key for row in rows] == []

    async def go(self, vdisk: int) -> None:
        for number in handles_of(self.vdisks, vdisk):
            self.vdisks.close(number)
        await self.vdisks.forget(VdiskId(vdisk))
        del self.models[vdisk]
        self.kept = {key: kept for key, kept in self.kept.items() if key[0] != vdisk}

    async def go_snapshot(self, key: tuple[int, str]) -> None:
        if key in self.kept:
            await self.snapshots.remove(*key)
            del self.kept[key]
