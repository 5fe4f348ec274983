"""Random writes, flushes and power cuts on a pool whose disk forgets what was not synced, against what may be left.

Each group file knows what its last sync made durable. A power cut keeps that, and of every block written since keeps,
zeroes or garbles it, or cuts the file; the index goes with the node or is as old as its files; the journal keeps some
of its pages. Then the node starts again: each block must be one that was written to it since the last flush, or what
that flush covered (I1, I2), whole (promise 11); each snapshot is exactly what it was (I6); and life goes on from there.
"""

import os
import pathlib
import random
from contextlib import suppress
from dataclasses import dataclass, field

from metadata.errors import Unavailable, VdiskfsError
from metadata.ids import VdiskId
from metadata.records import group_seed
from replication import head_write, pool_directory
from replication.commit import begin_nowait
from replication.head import Head
from replication.pool import GroupFile
from replication.pool_directory import DirectoryPool
from replication.snapshots import Snapshots
from replication.vdisks import Vdisks
from tests.replication import rig
from tests.replication.rig import B, Rig, block, create, opened, sound
from tests.replication.snapshotting import view_content

BLOCKS = 600
"""Of each vdisk: a little over two vblocks."""
VDISKS = (20, 21)
HISTORY = 30
PAGE = 4096


class Disk:
    """What would be there after a power cut: by path, the content at the last sync."""

    def __init__(self) -> None:
        self.durable: dict[str, bytes] = {}
        self.syncs_left: int | None = None
        """The power fails at the sync after so many; None: not during a sync."""

    def synced(self, path: str) -> None:
        if self.syncs_left is not None:
            if not self.syncs_left:
                raise Unavailable("the power is gone")
            self.syncs_left -= 1
        self.durable[path] = pathlib.Path(path).read_bytes()

    def cut_power(self, chance: random.Random) -> None:
        """Makes every file one of those a power cut may leave."""
        self.syncs_left = None
        for path in self.durable:
            now = pathlib.Path(path).read_bytes() if os.path.exists(path) else b""
            self.durable[path] = left = self._left_of(self.durable[path], now, chance)
            pathlib.Path(path).write_bytes(left)

    @staticmethod
    def _left_of(durable: bytes, now: bytes, chance: random.Random) -> bytes:
        length = len(durable) if chance.random() < 0.3 else max(len(durable), len(now))
        left = bytearray(durable.ljust(length, b"\0")[:length])
        changed = [at for at in range(0, min(length, len(now)), B) if now[at : at + B] != left[at : at + B]]
        if changed and chance.random() < 0.4:  # all but one block got there
            left = bytearray(now.ljust(length, b"\0")[:length])
            at = chance.choice(changed)
            left[at : at + B] = bytes(len(left[at : at + B]))
        else:
            mood = chance.random()
            for at in changed:
                roll = chance.random()
                if roll < mood:
                    left[at : at + B] = now[at : at + B]
                elif roll > 0.95:
                    left[at : at + B] = chance.randbytes(len(left[at : at + B]))
                elif roll > 0.9:
                    left[at : at + 512] = now[at : at + 512]
        return bytes(left)


class ForgetfulFile(GroupFile):
    """Tells the disk what was synced."""

    disk: Disk

    def sync(self) -> None:
        super().sync()
        self.disk.synced(self.path)

    def preallocate(self, end: int, *, written: bool = False) -> None:
        super().preallocate(end, written=written)
        self.disk.durable.setdefault(self.path, b"")


class ForgetfulPool(DirectoryPool):
    """A pool of such files. Names are durable once ``create_group`` has returned."""

    disk: Disk

    def file(self, vdisk: int, group: int) -> GroupFile:
        seed = group_seed(self.salt, vdisk, group)
        file = ForgetfulFile(self.group_path(vdisk, group), vdisk=vdisk, group=group, seed=seed)
        file.disk = self.disk
        return file

    def create_group(self, vdisk: int, group: int) -> GroupFile:
        file = super().create_group(vdisk, group)
        self.disk.durable[file.path] = b""
        return file


class ForgetfulRig(Rig):
    def __init__(self, folder: pathlib.Path, **limits: int) -> None:
        super().__init__(folder, **limits)
        self.disk = Disk()

    def open_pool(self) -> DirectoryPool:
        real = pool_directory.open_pool(self.pool_path)
        pool = ForgetfulPool(real.path, pool_id=real.pool_id, salt=real.salt)
        pool.disk = self.disk
        return pool


@dataclass
class Legal:
    """What each block of a vdisk may be after a power cut: the value flushed last, and all written since."""

    flushed: list[int] = field(default_factory=lambda: [0] * BLOCKS)
    since: list[list[int]] = field(default_factory=lambda: [[] for _ in range(BLOCKS)])

    def now(self, number: int) -> int:
        return self.since[number][-1] if self.since[number] else self.flushed[number]


def bytes_of(value: int) -> bytes:
    return block(value) if value else bytes(B)


class PowerCutWalk:
    """One random walk over several power cuts."""

    def __init__(self, folder: pathlib.Path, seed: int, **limits: int) -> None:
        self.chance = random.Random(seed)
        self.rig = ForgetfulRig(folder, **limits)
        self.legal = {vdisk: Legal() for vdisk in VDISKS}
        self.versions = dict.fromkeys(VDISKS, 0)
        self.value = 0
        self.kept: dict[tuple[int, str], list[int]] = {}
        """What each snapshot must hold, exactly: all of it was durable when it was made."""
        self.next_snapshot = 1000
        self.history: list[str] = []

    async def write(self, vdisk: int, head: Head) -> None:
        count = self.chance.choice((1, 1, 2, 5, 40, 200))
        first = self.chance.randrange(BLOCKS - count)
        values = []
        for number in range(first, first + count):
            self.value += 1
            values.append(0 if self.chance.random() < 0.1 else self.value)
            self.legal[vdisk].since[number].append(values[-1])
        await rig.write(head, first * B, b"".join(map(bytes_of, values)))
        self.history.append(f"{vdisk}: write {first}+{count}")

    async def punch(self, vdisk: int, head: Head) -> None:
        count = self.chance.randrange(1, 100)
        first = self.chance.randrange(BLOCKS - count)
        for number in range(first, first + count):
            self.legal[vdisk].since[number].append(0)
        await head_write.punch(head, first * B, count * B)
        self.history.append(f"{vdisk}: punch {first}+{count}")

    async def flush(self, vdisks: Vdisks, vdisk: int) -> None:
        head = vdisks.heads[vdisk]
        if self.chance.random() < 0.5 and begin_nowait(head, light=True) and head.commit_done is not None:
            await head.commit_done.wait()
            assert not head.is_dirty
        else:
            await vdisks.flush(VdiskId(vdisk))
        legal = self.legal[vdisk]
        legal.flushed = [legal.now(number) for number in range(BLOCKS)]
        legal.since = [[] for _ in range(BLOCKS)]
        assert vdisks.heads[vdisk].log.version >= self.versions[vdisk]
        self.versions[vdisk] = vdisks.heads[vdisk].log.version
        self.history.append(f"{vdisk}: flushed, version {self.versions[vdisk]}")

    async def change_tree(self, vdisks: Vdisks, vdisk: int) -> None:
        """A snapshot is made, removed, or rolled back to."""
        legal, snapshots = self.legal[vdisk], Snapshots(vdisks)
        mine = sorted(key for key in self.kept if key[0] == vdisk)
        self.next_snapshot += 1
        name, number = f"s{self.next_snapshot}", self.next_snapshot
        what = self.chance.randrange(4) if mine else 0
        if what == 1 or len(mine) > 4:
            key = self.chance.choice(mine)
            await snapshots.remove(*key)
            del self.kept[key]
            self.history.append(f"{vdisk}: {key[1]} removed")
            return
        now = [legal.now(block_no) for block_no in range(BLOCKS)]
        if what < 2:
            await snapshots.create([(VdiskId(vdisk), name, number)])
            legal.flushed = list(now)
        else:
            key = self.chance.choice(mine)
            await snapshots.rollback(VdiskId(vdisk), key[1], keep_as=(name, number))
            legal.flushed = list(self.kept[key])
        self.kept[vdisk, name] = now
        legal.since = [[] for _ in range(BLOCKS)]
        self.versions[vdisk] = vdisks.heads[vdisk].log.version
        self.history.append(f"{vdisk}: {name} made{', rolled back to ' + key[1] if what > 1 else ''}")

    async def verify_kept(self, vdisks: Vdisks) -> None:
        for (vdisk, name), values in self.kept.items():
            snapshot = Snapshots(vdisks).get(vdisk, name)
            found = await view_content(vdisks, snapshot.id)
            assert found == b"".join(map(bytes_of, values)), f"snapshot {name} of {vdisk}"

    async def settle(self, vdisk: int, head: Head) -> None:
        """What is there must be legal, and is what counts from now on."""
        legal = self.legal[vdisk]
        assert head.log.version >= self.versions[vdisk]
        for number in range(BLOCKS):
            found = await rig.read(head, number * B, B)
            allowed = {bytes_of(value): value for value in (legal.flushed[number], *legal.since[number])}
            assert found in allowed, f"vdisk {vdisk} block {number} is none of {sorted(allowed.values())}"
            legal.flushed[number] = allowed[found]
            legal.since[number] = []

    async def life(self, steps: int) -> None:
        async with self.rig.node(kill=True) as vdisks:
            heads = {}
            for vdisk in VDISKS:
                made = self.versions[vdisk] > 0
                heads[vdisk] = await (opened(vdisks, vdisk) if made else create(vdisks, vdisk))
                if not made:
                    await head_write.truncate(heads[vdisk], BLOCKS * B)
                    await self.flush(vdisks, vdisk)
                await self.settle(vdisk, heads[vdisk])
            await self.verify_kept(vdisks)
            if self.chance.random() < 0.3:
                await sound(vdisks, *VDISKS)
            for _ in range(steps):
                vdisk = self.chance.choice(VDISKS)
                match self.chance.randrange(12):
                    case 0 | 1:
                        await self.flush(vdisks, vdisk)
                    case 2:
                        await self.punch(vdisk, heads[vdisk])
                    case 3 if self.chance.random() < 0.3:
                        vdisks.workspace.index.flush()
                    case 4 if self.chance.random() < 0.7:
                        await self.change_tree(vdisks, vdisk)
                    case _:
                        await self.write(vdisk, heads[vdisk])
            if self.chance.random() < 0.6:  # the power fails during a commit
                self.rig.disk.syncs_left = self.chance.choice((0, 0, 1, 2))
                with suppress(Unavailable):
                    await vdisks.flush(VdiskId(vdisk))
        self.cut_power()

    def cut_power(self) -> None:
        self.rig.disk.cut_power(self.chance)
        what = self.chance.choice(("state lost", "journal kept", "journal torn", "index lost"))
        journal = self.rig.state_path / "journal"
        if what == "state lost":
            self.rig.lose_state()
        elif what == "journal torn":
            content = bytearray(journal.read_bytes())
            for at in range(0, len(content), PAGE):
                if self.chance.random() < 0.5:
                    content[at : at + PAGE] = bytes(len(content[at : at + PAGE]))
            journal.write_bytes(content)
        elif what == "index lost":
            self.rig.lose_index()
        self.history.append(f"---- power cut, {what}")

    async def walk(self, lives: int, steps: int) -> None:
        try:
            for _ in range(lives):
                await self.life(self.chance.randrange(1, steps))
            async with self.rig.node() as vdisks:
                for vdisk in VDISKS:
                    await self.settle(vdisk, await opened(vdisks, vdisk))
                await self.verify_kept(vdisks)
                await sound(vdisks, *VDISKS)
        except (AssertionError, VdiskfsError):
            print("\n".join(self.history[-HISTORY:]))
            raise
