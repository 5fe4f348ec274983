"""Many tasks on one vdisk at once, each with bytes of its own, over commits, rests of caches, and failing syncs.

Where one task's bytes end and the next one's begin lies inside a block, so that they patch the same blocks.
"""

import pathlib
import random
from contextlib import suppress

import pytest
import trio

from metadata.errors import VdiskfsError
from metadata.ids import VdiskId
from replication import head_write
from replication.head import Head
from replication.vdisks import Vdisks
from tests.model.test_vdisk_model import TINY, shrink
from tests.replication import rig
from tests.replication.faults import FaultyRig
from tests.replication.rig import content, create, expect_errors, opened, run, sound

VDISK = VdiskId(20)
TASKS = 12
SHARE = 300_001
"""Bytes of each task: odd, so that hardly any share begins with a block."""
STEPS = 120


class Writers:
    """The tasks, and what they have written."""

    def __init__(self, seed: int) -> None:
        self.seed, self.model = seed, bytearray(TASKS * SHARE)
        self.done = 0

    async def writer(self, head: Head, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        for _ in range(STEPS):
            length = chance.choice((1, 100, 4096, 5000, 100_000))
            start = chance.randrange(SHARE - length)
            if chance.random() < 0.3:
                start = chance.choice((0, SHARE - length))
            offset = number * SHARE + start
            match chance.randrange(5):
                case 0:
                    await self.insist(lambda: head_write.punch(head, offset, length))  # noqa: B023
                    self.model[offset : offset + length] = bytes(length)
                case 1:
                    got = await self.insist(lambda: rig.read(head, offset, length))  # noqa: B023
                    assert got == self.model[offset : offset + length]
                case _:
                    data = chance.randbytes(length)
                    way = chance.choice((rig.write, head_write.write))
                    await self.insist(lambda: way(head, offset, data))  # noqa: B023
                    self.model[offset : offset + length] = data
            await trio.lowlevel.checkpoint()
        self.done += 1

    async def insist(self, operation):  # type: ignore[no-untyped-def]
        """Tries again what failed: a fault may have been injected into somebody's commit."""
        while True:
            with suppress(VdiskfsError):
                return await operation()

    async def meddler(self, vdisks: Vdisks, head: Head, faults: object) -> None:
        """Commits, empties caches, makes syncs fail."""
        chance = random.Random(self.seed)
        while self.done < TASKS:
            match chance.randrange(6):
                case 0:
                    vdisks.workspace.row_cache.shrink(0)
                    vdisks.workspace.segment_cache.shrink(0)
                case 1:
                    await vdisks.workspace.wait_for(vdisks.workspace.index.flush)
                case 2:
                    faults.failing[chance.choice(("sync", "apply", "create"))] = 1
                case _:
                    with suppress(VdiskfsError):
                        await vdisks.flush(VDISK)
            await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("seed", range(1, 5))
def test_writers_with_bytes_of_their_own_never_lose_any_to_each_other(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, seed: int
) -> None:
    if seed % 2:
        shrink(monkeypatch)
    faulty, writers = FaultyRig(tmp_path, **(TINY if seed % 2 else {})), Writers(seed)

    async def main() -> None:
        async with faulty.node(kill=True) as vdisks:
            head = await create(vdisks, VDISK, TASKS * SHARE)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(writers.meddler, vdisks, head, faulty.faults)
                for number in range(TASKS):
                    nursery.start_soon(writers.writer, head, number)
            faulty.faults.disarm()
            assert await content(head) == writers.model
            with suppress(VdiskfsError):
                await vdisks.flush(VDISK)
            await rig.write(
                head, 0, bytes(writers.model[:1])
            )  # an index that lags follows with the next commit
            await vdisks.flush(VDISK)
            await sound(vdisks, VDISK)
        faulty.lose_state()
        async with faulty.node() as vdisks:
            assert await content(await opened(vdisks, VDISK)) == writers.model
            await sound(vdisks, VDISK)

    run(main)
    expect_errors(caplog, "the index lags behind")
