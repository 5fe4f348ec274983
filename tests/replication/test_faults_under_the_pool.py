"""Each fault of the pool's disk in each verb: what a guest sees is what the failure table says, and no promise breaks.

In every cell: the verb succeeds, or fails with the errno that the table has; while the fault lasts nobody reads wrong bytes;
behind it the disk heals, and a flush that then succeeds has everything that was acknowledged; the next daemon finds that.
"""

import errno
import pathlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field

import pytest
import trio

from metadata.errors import Corrupt, VdiskfsError
from metadata.ids import VdiskId
from replication import collector, compaction, log
from replication.collector import Collector
from replication.vdisks import Vdisks
from tests.crash.small_histories import values_in
from tests.crash.worlds import Content, Disk
from tests.replication import rig
from tests.replication.failing_calls import FailingCalls, Fault, failing_calls
from tests.replication.rig import B, Rig, block, create, expect_errors, opened, run
from tests.replication.snapshotting import clone, snap, view_content

VDISK, CLONE, SNAPSHOT = 20, 21, 1000
BLOCKS = 300
EIO, ENOSPC = errno.EIO, errno.ENOSPC
OK = 0
TRIES = 3


@dataclass
class Scene:
    """One vdisk with something flushed, something overwritten, and something that is only acknowledged."""

    rig: Rig
    calls: FailingCalls
    disk: Disk = field(default_factory=lambda: Disk(sizes=[BLOCKS]))
    value: int = 0
    kept: Content | None = None

    async def write(self, vdisks: Vdisks, first: int, count: int) -> None:
        self.value += 1
        for number in range(first, first + count):
            self.disk.put(number, self.value)
        await rig.write(vdisks.heads[VDISK], first * B, block(self.value) * count)

    async def begin(self, vdisks: Vdisks) -> None:
        await rig.write(await create(vdisks, VDISK, BLOCKS * B), 0, b"")
        for first in (0, 100, 250, 0, 100):
            await self.write(vdisks, first, 20)
            await self.flush(vdisks)

    async def flush(self, vdisks: Vdisks) -> None:
        await vdisks.flush(VdiskId(VDISK))
        self.disk.settle()

    async def read(self, vdisks: Vdisks, vdisk: int = VDISK) -> Content:
        head = vdisks.heads.get(vdisk) or await opened(vdisks, vdisk)
        return values_in(await rig.read(head, 0, head.size))

    async def read_each(self, vdisks: Vdisks) -> int:
        """Every block by itself: each is legal, or an error; how many were errors."""
        numbers = []
        for number in {*self.disk.flushed, *self.disk.since}:
            try:
                found = values_in(await rig.read(vdisks.heads[VDISK], number * B, B)).get(0, 0)
            except VdiskfsError as exc:
                numbers.append(exc.number)
                continue
            allowed = [self.disk.flushed.get(number, 0), *self.disk.since.get(number, ())]
            assert found in allowed, f"block {number} holds {found}, none of {allowed}"
        assert set(numbers) <= {EIO}
        return len(numbers)

    async def heal(self, vdisks: Vdisks, *, is_gone: bool, is_lost: bool) -> None:
        """The disk is well again: flushes work, unless what was to be flushed cannot be read back any more.

        Args:
            is_gone: a failed sync may have taken what was pending.
            is_lost: writes may have been lost of which nobody was told.
        """
        failed, numbers = await self.read_each(vdisks), []
        while len(numbers) < TRIES:
            try:
                await vdisks.flush(VdiskId(VDISK))
                break
            except VdiskfsError as exc:
                numbers.append(exc.number)
        assert set(numbers) <= {EIO}
        if len(numbers) == TRIES:
            assert is_gone
            assert failed
            return
        assert not failed or is_lost
        if not failed:
            await self.adopt(await self.read(vdisks))

    async def adopt(self, found: Content) -> None:
        """What a write that failed has left, is there or not: from now on it is known."""
        assert self.disk.wrong(BLOCKS, found) == ""
        self.disk.flushed, self.disk.since = found, {}

    async def survive(self, *, is_lost: bool) -> None:
        """The next daemon finds what was flushed, and wrong bytes nowhere; lost commits are an error."""
        async with self.rig.node(kill=True) as vdisks:
            try:
                await opened(vdisks, VDISK)
            except Corrupt:
                assert is_lost
                return
            assert not await self.read_each(vdisks) or is_lost
            if self.kept is not None:
                assert values_in(await view_content(vdisks, SNAPSHOT)) == self.kept


Verb = Callable[[Scene, Vdisks], Awaitable[object]]


async def write(scene: Scene, vdisks: Vdisks) -> None:
    await scene.write(vdisks, 40, 2)


async def write_much(scene: Scene, vdisks: Vdisks) -> None:
    """So much that the group must grow, and another is begun."""
    await scene.write(vdisks, 130, 80)


async def flush(scene: Scene, vdisks: Vdisks) -> None:
    await scene.flush(vdisks)


async def read(scene: Scene, vdisks: Vdisks) -> None:
    assert await scene.read(vdisks) == scene.disk.now()


async def snapshot(scene: Scene, vdisks: Vdisks) -> None:
    await snap(vdisks, VDISK, "s", SNAPSHOT)
    scene.disk.settle()
    scene.kept = scene.disk.now()


async def make_clone(scene: Scene, vdisks: Vdisks) -> None:
    await clone(vdisks, VDISK, None, CLONE)
    scene.disk.settle()
    assert await scene.read(vdisks, CLONE) == scene.disk.now()


async def collect(scene: Scene, vdisks: Vdisks) -> None:
    await Collector(vdisks).collect(lambda _: None)


VERBS: dict[str, Verb] = {
    "write": write,
    "write much": write_much,
    "flush": flush,
    "read": read,
    "snapshot": snapshot,
    "clone": make_clone,
    "collect": collect,
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "GROUP_BLOCKS", 64)
    monkeypatch.setattr(log, "STEP_BLOCKS_MIN", 8)
    monkeypatch.setattr(log, "STEP_BLOCKS_MAX", 16)
    monkeypatch.setattr(compaction, "GROUP_BLOCKS", 64)
    monkeypatch.setattr(collector, "SEAL_BYTES_MIN", 4096)


@pytest.fixture
def scene(tmp_path: pathlib.Path) -> Iterator[Scene]:
    with failing_calls() as calls:
        yield Scene(Rig(tmp_path), calls)


async def outcome(scene: Scene, fault: Fault, work: Callable[[], Awaitable[object]]) -> int:
    """The errno of the verb under the fault, 0 if it succeeds."""
    with scene.calls.armed(fault):
        try:
            await work()
        except VdiskfsError as exc:
            return exc.number
    return OK


def cells(*, otherwise: int = OK, **numbers: int) -> dict[str, int]:
    """What each verb ends with; underscores stand for spaces."""
    named = {name.replace("_", " "): number for name, number in numbers.items()}
    assert set(named) <= set(VERBS)
    return {name: named.get(name, otherwise) for name in VERBS}


TABLE: dict[Fault, dict[str, int]] = {
    Fault.EIO: cells(otherwise=EIO, collect=OK),
    Fault.READ_EIO: cells(read=EIO, clone=EIO),
    Fault.WRITE_EIO: cells(otherwise=EIO, read=OK, collect=OK),
    Fault.ENOSPC: cells(write_much=ENOSPC),
    Fault.SHORT: cells(),
    Fault.STALE: cells(read=EIO, clone=EIO),
    Fault.ZEROS: cells(read=EIO, clone=EIO),
    Fault.LOST: cells(),
    Fault.SYNC: cells(flush=EIO, snapshot=EIO, clone=EIO),
    Fault.DIRECTORY_SYNC: cells(write_much=EIO),
}
"""Collection is the daemon's own: what fails there is logged, and tried again another time. A clone is read here, too."""

LOGGED = ("collection", "a commit", "blocks that cannot", "a block", "unflushed", "the index lags", "cannot")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault.name.lower())
def test_a_guest_sees_what_the_failure_table_says(
    scene: Scene, caplog: pytest.LogCaptureFixture, fault: Fault, verb: str
) -> None:
    async def main() -> None:
        async with scene.rig.node() as vdisks:
            await scene.begin(vdisks)
        async with scene.rig.node(kill=True) as vdisks:
            await opened(vdisks, VDISK)
            await scene.write(vdisks, 5, 3)
            number = await outcome(scene, fault, lambda: VERBS[verb](scene, vdisks))
            assert errno.errorcode.get(number) == errno.errorcode.get(TABLE[fault][verb])
            await scene.heal(vdisks, is_gone=fault is Fault.SYNC, is_lost=fault is Fault.LOST)
            vdisks.workspace.index.flush()
        await scene.survive(is_lost=fault is Fault.LOST)

    run(main)
    expect_errors(caplog, *LOGGED)


RECOVERY = {
    Fault.EIO: EIO,
    Fault.READ_EIO: EIO,
    Fault.STALE: EIO,
    Fault.ZEROS: EIO,
    Fault.SYNC: EIO,
}
"""Of opening a vdisk after a kill; what does not stand here succeeds."""


@pytest.mark.parametrize("fault", TABLE, ids=lambda fault: fault.name.lower())
def test_recovery_under_a_fault_fails_or_finds_everything_and_never_less(
    scene: Scene, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    async def main() -> None:
        async with scene.rig.node() as vdisks:
            await scene.begin(vdisks)
        async with scene.rig.node(kill=True) as vdisks:
            await opened(vdisks, VDISK)
            await scene.write(vdisks, 5, 3)
            await scene.flush(vdisks)
            vdisks.workspace.index.flush()
            await scene.write(vdisks, 60, 2)
            vdisks.workspace.journal.keep_from(
                vdisks.workspace.journal.sequence
            )  # else the start itself recovers it
        del scene.disk.since[60], scene.disk.since[61]
        async with scene.rig.node(kill=True) as vdisks:
            number = await outcome(scene, fault, lambda: opened(vdisks, VDISK))
            assert errno.errorcode.get(number) == errno.errorcode.get(RECOVERY.get(fault, OK))
            await opened(vdisks, VDISK)
            assert await scene.read(vdisks) == scene.disk.now()

    run(main)
    expect_errors(caplog, *LOGGED)


SLOW = ("flush", "read", "snapshot", "clone", "collect")


@pytest.mark.parametrize("verb", SLOW)
def test_a_slow_disk_delays_the_verb_and_nobody_else(scene: Scene, verb: str) -> None:
    async def main() -> None:
        async with scene.rig.node() as vdisks:
            await scene.begin(vdisks)
        async with scene.rig.node() as vdisks:
            await opened(vdisks, VDISK)
            other = await create(vdisks, 30, 8 * B)
            await rig.write(other, 0, block(1))
            await scene.write(vdisks, 5, 3)
            ended = trio.Event()

            async def slow() -> None:
                await VERBS[verb](scene, vdisks)
                ended.set()

            async with trio.open_nursery() as nursery:
                with scene.calls.armed(Fault.LATENCY):
                    nursery.start_soon(slow)
                    while not scene.calls.reached.is_set():
                        await trio.lowlevel.checkpoint()
                    assert other.write_nowait(B, memoryview(block(2)))
                    assert not ended.is_set()
            assert ended.is_set()
            assert await scene.read(vdisks) == scene.disk.now()

    run(main)
