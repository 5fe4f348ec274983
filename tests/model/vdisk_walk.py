"""Random operations on a few vdisks of one node's core, each checked against a bytearray.

Every acknowledged write counts: whatever ends a node here leaves the page cache alone, so also after a kill a vdisk
holds exactly what the model says. Only an operation that fails may have been carried out in part, block by block.
A vdisk's model begins at its ``base``: everything before is a hole, so that far offsets come up too.
"""

import math
import pathlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio
import trio.testing

from metadata.errors import VdiskfsError
from metadata.ids import VdiskId
from replication import head_read, head_write
from replication.checkpoint import checkpoint
from replication.cloning import copy_range
from replication.collector import Collector
from replication.commit import begin_nowait
from replication.head import Head
from replication.mapping import map_range
from replication.vdisks import Vdisks
from tests.replication import rig
from tests.replication.faults import FaultyRig
from tests.replication.rig import B, create, handles_of, opened, sound

SIZE_MAX = 5 << 20
IO_MAX = 1 << 20
VDISKS_MAX = 5
FAR = 3 << 40
HISTORY = 40
"""How many of the last operations a failure shows."""
FAULTS = ("sync", "sync", "write", "apply", "read", "open", "create", "preallocate", "trim")


@dataclass
class Model:
    """What one vdisk must hold."""

    content: bytearray
    base: int = 0
    version: int = 0

    @property
    def size(self) -> int:
        return self.base + len(self.content) if self.content or self.base else 0


Operation = Callable[[int], Awaitable[str]]


class Walk:
    """One random walk; its seed decides everything but the order in which threads end."""

    rig_type: type[FaultyRig] = FaultyRig

    def __init__(self, folder: pathlib.Path, seed: int, *, faults: bool = True, **limits: int) -> None:
        self.chance = random.Random(seed)
        self.rig = self.rig_type(folder, **limits)
        self.with_faults = faults
        self.models: dict[int, Model] = {}
        self.nameless: set[int] = set()
        self.next_id = 16
        self.history: list[str] = []
        self.held_since: float = math.inf
        """How many faults there were when a commit was held; operations may meet its failure later."""
        self.vdisks: Vdisks

    # ---- choices

    def head(self, vdisk: int) -> Head:
        (number, *_) = handles_of(self.vdisks, vdisk)
        return self.vdisks.heads_by_handle[number]

    def span(self, model: Model, *, inside: bool = False) -> tuple[int, int]:
        """A random (offset in the model, length): bytes, sectors, blocks, and long stretches."""
        limit = len(model.content) if inside else SIZE_MAX
        length = self.chance.choice((1, 512, B, B, 2 * B, 5 * B + 3, self.chance.randrange(1, IO_MAX)))
        offset = self.chance.randrange(limit + 1)
        if self.chance.random() < 0.7:
            offset -= offset % B
        if self.chance.random() < 0.3:
            length += -length % B
        return offset, min(length, limit - offset)

    def data(self, length: int) -> bytes:
        """Some bytes, of which whole blocks may be zeros."""
        if self.chance.random() < 0.05:
            return bytes(length)
        data = bytearray(self.chance.randbytes(length))
        while self.chance.random() < 0.3:
            at = self.chance.randrange(0, length, B)
            end = min(length, at + B * self.chance.randrange(1, 4))
            data[at:end] = bytes(end - at)
        return bytes(data)

    # ---- operations: each carries itself out, notes it in the model and returns a line for the history

    async def create(self, _: int) -> str:
        if len(self.models) >= VDISKS_MAX:
            return "no more vdisks"
        vdisk, self.next_id = self.next_id, self.next_id + 1
        model = Model(bytearray(), base=self.chance.choice((0, 0, FAR)))
        head = await create(self.vdisks, vdisk)
        self.models[vdisk] = model
        if model.base:
            await self.settled(lambda: head_write.truncate(head, model.base))
        return f"create {vdisk} at {model.base:#x}"

    async def write(self, vdisk: int) -> str:
        model = self.models[vdisk]
        offset, length = self.span(model)
        data = self.data(length)
        before = bytes(model.content)
        done = length and await self.attempt(lambda: rig.write(self.head(vdisk), model.base + offset, data))
        if done:
            model.content += bytes(max(0, offset - len(model.content)))
            model.content[offset : offset + length] = data
        elif length:
            await self.learn(vdisk, before, offset, data)
        return f"write {offset}+{length} {'' if done else 'failed'}"

    async def learn(
        self, vdisk: int, before: bytes, offset: int, data: bytes, *, in_pieces: bool = False
    ) -> None:
        """After a write that failed: each block is as before or as written; the model takes what is there.

        What was written in pieces may have ended inside a block.
        """
        model, head = self.models[vdisk], self.head(vdisk)
        self.rig.faults.disarm()
        end = max(len(before), offset + len(data))
        old = before.ljust(end, b"\0")
        new = bytearray(old)
        new[offset : offset + len(data)] = data
        assert head.size in (model.base + len(before), model.base + end)
        found = await rig.read(head, model.base, head.size - model.base)
        for at in range(0, len(found), B):
            piece = found[at : at + B]
            either = old[at : at + len(piece)], bytes(new[at : at + len(piece)])
            if piece not in either:
                assert in_pieces, f"block at {at}"
                bytewise = zip(piece, *either, strict=True)
                assert all(byte in pair for byte, *pair in bytewise), f"block at {at}"
        model.content = bytearray(found)

    async def punch(self, vdisk: int) -> str:
        model = self.models[vdisk]
        offset, length = self.span(model)
        before = bytes(model.content)
        if not await self.attempt(lambda: head_write.punch(self.head(vdisk), model.base + offset, length)):
            await self.learn(vdisk, before, offset, bytes(max(0, min(length, len(before) - offset))))
            return "punch failed"
        part = model.content[offset : offset + length]
        model.content[offset : offset + length] = bytes(len(part))
        return f"punch {offset}+{length}"

    async def truncate(self, vdisk: int) -> str:
        model = self.models[vdisk]
        size = self.span(model)[0]
        await self.settled(lambda: head_write.truncate(self.head(vdisk), model.base + size))
        del model.content[size:]
        model.content += bytes(size - len(model.content))
        return f"truncate {size}"

    async def copy(self, vdisk: int) -> str:
        source = self.chance.choice(sorted(self.models))
        origin, model = self.models[source], self.models[vdisk]
        if origin.base != model.base:
            return "copy nothing"
        offset, length = self.chance.choice(((0, len(origin.content)), self.span(origin, inside=True)))
        to = offset if self.chance.random() < 0.7 else self.span(model)[0]
        length = min(length, SIZE_MAX - to)
        if source == vdisk and abs(to - offset) < length:
            return "copy nothing"
        heads = self.head(source), self.head(vdisk)
        before, wanted = bytes(model.content), bytes(origin.content[offset : offset + length])
        before_faults, copied = min(self.rig.faults.injected, self.held_since), 0
        try:
            copied = await copy_range(
                self.vdisks, *heads, offset=origin.base + offset, to=model.base + to, length=length
            )
        except VdiskfsError:
            if self.rig.faults.injected <= before_faults:
                raise
            await self.learn_copy(vdisk, before, to, wanted)
            return f"copy {source} failed"
        assert copied == length
        if length:
            model.content += bytes(max(0, to - len(before)))
            model.content[to : to + length] = wanted
        return f"copy {source} {offset}+{length} to {to}, parent {bool(heads[1].ancestry.generations)}"

    async def learn_copy(self, vdisk: int, before: bytes, to: int, data: bytes) -> None:
        """A copy that failed may have left the size anywhere between."""
        model, head = self.models[vdisk], self.head(vdisk)
        padded = before.ljust(max(len(before), min(to + len(data), head.size - model.base)), b"\0")
        await self.learn(vdisk, padded, to, data, in_pieces=True)

    async def read(self, vdisk: int) -> str:
        model = self.models[vdisk]
        offset, length = self.span(model)
        got = await self.settled(lambda: rig.read(self.head(vdisk), model.base + offset, length))
        assert got == model.content[offset : offset + length], f"{vdisk} differs at {offset}+{length}"
        return f"read {offset}+{length}"

    async def seek(self, vdisk: int) -> str:
        """A block is a hole exactly if all of it is zero."""
        model, head = self.models[vdisk], self.head(vdisk)
        start = self.chance.randrange(len(model.content) + 1)
        for wanted in (True, False):
            found = await self.settled(partial(head_read.seek, head, model.base + start, data=wanted))
            expected = next(
                (
                    max(start, at)
                    for at in range(start - start % B, len(model.content), B)
                    if any(model.content[at : at + B]) == wanted
                ),
                None if wanted else len(model.content),
            )
            if start == len(model.content):
                expected = None
            assert found == (None if expected is None else model.base + expected), (start, wanted)
        return f"seek from {start}"

    async def map(self, vdisk: int) -> str:
        model, head = self.models[vdisk], self.head(vdisk)
        extents = await self.settled(lambda: map_range(self.vdisks, vdisk, model.base, SIZE_MAX))
        at, own = model.base, 0
        for extent in extents:
            assert extent["offset"] == at
            part = model.content[at - model.base : at - model.base + extent["length"]]
            zeros = [not any(part[i : i + B]) for i in range(0, len(part), B)]
            assert all(zeros) if extent["kind"] == "hole" else not any(zeros), extent
            at += extent["length"]
            own += len(zeros) if extent["kind"] == "data" else 0
        assert (at, own) == (head.size, head.own_blocks)
        return "map"

    async def flush(self, vdisk: int) -> str:
        await self.flushed(vdisk)
        return "flush"

    async def begin_lightly(self, vdisk: int) -> str:
        """What a guest that syncs behind each write sets going."""
        head = self.head(vdisk)
        if begin_nowait(head, light=True) and self.chance.random() < 0.7 and head.commit_done is not None:
            await head.commit_done.wait()
        return "light commit"

    async def flushed(self, vdisk: int) -> None:
        """A flush that works, after those that may fail."""
        handle = handles_of(self.vdisks, vdisk)[0]
        before = self.head(vdisk).log.version
        await self.settled(lambda: self.vdisks.flush_handle(handle), sticky=True)
        version = self.head(vdisk).log.version
        assert version >= max(before, self.models[vdisk].version)
        self.models[vdisk].version = version

    async def rest(self, vdisk: int) -> str:
        """Close it, let it rest, open it again."""
        await self.flushed(vdisk)
        self.rig.faults.disarm()
        await rig.close_and_rest(self.vdisks, vdisk)
        assert vdisk not in self.vdisks.heads
        await self.open(vdisk)
        return "rest"

    async def open(self, vdisk: int) -> None:
        model = self.models[vdisk]
        head = await self.settled(lambda: opened(self.vdisks, vdisk))
        assert (head.size, head.log.version >= model.version) == (model.size, True)

    async def drop(self, vdisk: int) -> str:
        if len(self.models) < 3 or self.chance.random() < 0.6:
            return "drop nothing"
        self.rig.faults.disarm()
        for number in handles_of(self.vdisks, vdisk):
            self.vdisks.close(number)
        await self.vdisks.forget(VdiskId(vdisk))
        del self.models[vdisk]
        return "drop"

    async def write_checkpoint(self, vdisk: int) -> str:
        await self.flushed(vdisk)
        await checkpoint(self.head(vdisk))
        return "checkpoint"

    async def collect(self, _: int) -> str:
        done = await Collector(self.vdisks).collect(lambda _: None)
        return f"collect {done}"

    async def shrink_caches(self, _: int) -> str:
        self.vdisks.workspace.row_cache.shrink(0)
        self.vdisks.workspace.segment_cache.shrink(0)
        if self.chance.random() < 0.3:
            self.vdisks.workspace.index.flush()
        return "caches emptied"

    async def arm(self, _: int) -> str:
        """Something will fail soon, or the pool is full for a while."""
        if not self.with_faults:
            return "nothing armed"
        if self.chance.random() < 0.2:
            self.rig.faults.blocks_free = self.chance.randrange(400)
            return f"space for {self.rig.faults.blocks_free}"
        what = self.chance.choice(FAULTS)
        self.rig.faults.failing[what] = self.chance.choice((1, 1, 2, 5))
        return f"{what} will fail"

    async def hold_commit(self, vdisk: int) -> str:
        """Other operations meet a commit that takes its time."""
        what = self.chance.choice(("sync", "apply"))
        self.held_since = self.rig.faults.injected
        async with trio.open_nursery() as nursery, self.rig.faults.held(what):
            nursery.start_soon(self.flushed, vdisk)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(self.steps, self.chance.randrange(1, 12), self.data_operations)
            await trio.testing.wait_all_tasks_blocked()
        self.held_since = math.inf
        return f"a commit held at {what}"

    # ---- failures

    async def attempt(self, operation: Callable[[], Awaitable[object]]) -> bool:
        """Whether it worked; it may fail only where a fault was injected."""
        before = min(self.rig.faults.injected, self.held_since)
        try:
            await operation()
        except VdiskfsError:
            if self.rig.faults.injected <= before:
                raise
            return False
        return True

    async def settled(self, operation: Callable[[], Awaitable[rig.T]], *, sticky: bool = False) -> rig.T:
        """Its result, tried again where a fault was injected, then without faults.

        Args:
            operation: may be tried several times.
            sticky: it may also fail for what went wrong before, once.
        """
        for _ in range(3):
            before = min(self.rig.faults.injected, self.held_since)
            try:
                return await operation()
            except VdiskfsError:
                if not sticky and self.rig.faults.injected <= before:
                    raise
        self.rig.faults.disarm()
        return await operation()

    # ---- walking

    @property
    def data_operations(self) -> list[Operation]:
        often = [self.write, self.write, self.write, self.read, self.punch]
        return [
            *often,
            self.truncate,
            self.copy,
            self.copy,
            self.seek,
            self.flush,
            self.begin_lightly,
            self.shrink_caches,
        ]

    @property
    def operations(self) -> list[Operation]:
        rare = [self.create, self.rest, self.drop, self.write_checkpoint, self.map, self.hold_commit]
        return [*self.data_operations * 2, *rare, self.collect, *[self.arm] * 3]

    async def steps(self, count: int, operations: list[Operation]) -> None:
        for _ in range(count):
            operation = self.chance.choice(operations) if self.models else self.create
            vdisk = self.chance.choice(sorted(self.models) or [0])
            self.history.append(f"{vdisk}: {operation.__name__} begins")
            at = len(self.history) - 1
            self.history[at] = f"{vdisk}: {await operation(vdisk)}"

    async def life(self, steps: int) -> None:
        """One node from start to end, and what may happen to its disk between it and the next."""
        end = self.chance.choice(("rest", "rest", "kill", "kill", "kill"))
        self.rig.node_name = self.chance.choice(("here", "here", "there"))
        async with self.rig.node(kill=end == "kill") as self.vdisks:
            for vdisk in sorted(self.models):
                await self.open(vdisk)
            await self.verify()
            await self.steps(steps, self.operations)
            self.rig.faults.disarm()
            lost = self.chance.choice(("nothing", "nothing", "index", "state"))
            for vdisk in sorted(self.models):
                if lost == "state" or self.head(vdisk).journal_forfeited:
                    await self.flushed(vdisk)
        self.history.append(f"---- {end}, {lost} lost")
        if lost == "index":
            self.rig.lose_index()
        if lost == "state":
            self.rig.lose_state()

    async def verify(self) -> None:
        """Every vdisk is what its model says."""
        for vdisk, model in self.models.items():
            head = self.head(vdisk)
            assert head.size == model.size
            for offset in range(0, len(model.content), 1 << 20):
                wanted = model.content[offset : offset + (1 << 20)]
                assert await head_read.read(head, model.base + offset, 1 << 20) == wanted, f"{vdisk} {offset}"
                assert await rig.read(head, model.base + offset, 1 << 20) == wanted, (
                    f"{vdisk} {offset} at once"
                )

    async def finish(self) -> None:
        """At the end all is well, also with an index built anew."""
        for lose in (False, True):
            if lose:
                self.rig.lose_index()
            async with self.rig.node() as self.vdisks:
                for vdisk in sorted(self.models):
                    await self.open(vdisk)
                await self.verify()
                await sound(self.vdisks, *self.models)
                await self.all_gone_or_known()

    async def all_gone_or_known(self) -> None:
        """The pool holds the groups of vdisks with a name or with children, and no others."""
        kept = set(self.vdisks.family.nameless())
        assert set(self.vdisks.workspace.pool.vdisks()) <= {*self.models, *kept}

    async def walk(self, lives: int, steps: int) -> None:
        try:
            for _ in range(lives):
                await self.life(steps)
            await self.finish()
        except BaseException:
            print("\n".join(self.history[-HISTORY:]))
            raise
