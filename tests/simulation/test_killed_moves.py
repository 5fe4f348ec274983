"""Ownership moves, and a daemon dies, or wakes up, at each step of that: one owner at the end, nothing acknowledged is lost.

A first run without misfortune notes the moments at which anything happened. The seed makes every other run the same up
to the moment at which its misfortune strikes. ``--rounds`` 1: at every moment; otherwise at some.
"""

import os
import pathlib
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
import trio

from metadata.errors import VdiskfsError
from replication.cluster import SESSION_S
from replication.vdisks import Vdisks
from tests.replication.rig import create, handles_of
from tests.simulation.deterministic import run_seeded
from tests.simulation.files import NodeFiles
from tests.simulation.mutants import planted
from tests.simulation.scenario import MEMORY, SIZE
from tests.simulation.simulated_threads import pass_time
from tests.simulation.workload import BLOCKS, block_of, content_of, offset_of
from tests.simulation.world import World

VDISK = 20
OLD, NEW, THIRD = "n1", "n2", "n3"
STRIDE = 5
LATE = 98
"""What the sleeper writes."""
PATIENCE_S = 60.0
AWAY_S = 0.3
"""So long a daemon is dead."""


class _Moments(trio.abc.Instrument):
    """The moments at which anything happens."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        now = trio.current_time()
        if not self.found or now > self.found[-1]:
            self.found.append(now)


@dataclass
class Stage:
    """Three nodes, a vdisk of the first one, and what is known of its content."""

    world: World
    strikes_s: float | None
    """When; None: never."""
    content: dict[int, set[int]] = field(default_factory=lambda: {block: {0} for block in range(BLOCKS)})
    """What each block may hold."""
    moments: list[float] = field(default_factory=list)
    value: int = 0
    lives: dict[str, trio.CancelScope] = field(default_factory=dict)
    reader: int = 0
    """A file that is open for reading on the first node since before the vdisk moved."""

    async def set_up(self) -> None:
        for name in (OLD, NEW, THIRD):
            await self.revive(name)
        await create(self.world.vdisks(OLD), VDISK, SIZE)
        for number in handles_of(self.world.vdisks(OLD), VDISK):
            self.world.vdisks(OLD).close(number)
        await self.write(OLD)
        self.reader = await NodeFiles(self.world, OLD).open(VDISK, os.O_RDONLY)

    async def revive(self, name: str) -> None:
        """Its keeper tries again and again."""
        while not self.world.is_running(name):
            try:
                vdisks: Vdisks = await self.world.revive(name)
            except VdiskfsError:
                await pass_time(1.0)
                continue
            assert vdisks.company is not None
            vdisks.company.may_be_written = lambda _: False
            vdisks.company.may_be_open = lambda _: True
            self.lives[name] = trio.CancelScope()
            self.world.nursery.start_soon(self._keep_house, vdisks, self.lives[name])

    async def _keep_house(self, vdisks: Vdisks, scope: trio.CancelScope) -> None:
        with scope:
            await vdisks.run()

    async def die(self, name: str) -> None:
        """No goodbye."""
        self.lives[name].cancel()
        await self.world.die(name)

    async def write(self, name: str) -> None:
        """Opens for writing there, writes each block, syncs, closes; a daemon that dies meanwhile is waited for."""
        self.value += 1
        for held in self.content.values():
            held.add(self.value)
        while not await self._written(name, self.value):
            await pass_time(0.1)
        for block in self.content:
            self.content[block] = {self.value}

    async def _written(self, name: str, value: int) -> bool:
        async def work() -> None:
            files = NodeFiles(self.world, name)
            handle = await files.open(VDISK, os.O_RDWR)
            for block in range(BLOCKS):
                await files.write(handle, offset_of(block), block_of(value))
            await files.sync(handle)
            await files.close(handle)

        return await self.in_its_life(name, work)

    async def in_its_life(self, name: str, work: Callable[[], Awaitable[None]]) -> bool:
        """Does it, unless the daemon dies; says whether it came to its end."""
        if not self.world.is_running(name):
            return False
        life = self.world.rig(name).lives
        with trio.CancelScope() as scope:
            self.world.nursery.start_soon(self._cancel_after, name, life, scope)
            try:
                await work()
            except VdiskfsError:  # of a daemon that is just dying
                if self.world.is_running(name) and self.world.rig(name).lives == life:
                    raise
                return False
        return not scope.cancelled_caught

    async def _cancel_after(self, name: str, life: int, scope: trio.CancelScope) -> None:
        while self.world.is_running(name) and self.world.rig(name).lives == life:
            await pass_time(0.05)
        scope.cancel()

    async def work(
        self, deed: Callable[[], Awaitable[None]], misfortune: Callable[[], Awaitable[None]]
    ) -> None:
        """Does it, with a misfortune in the middle."""
        noted = _Moments()
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                if self.strikes_s is not None:
                    nursery.start_soon(self._strike, misfortune)
                else:
                    trio.lowlevel.add_instrument(noted)
                await deed()
                if self.strikes_s is None:
                    trio.lowlevel.remove_instrument(noted)
        self.moments = noted.found

    async def _strike(self, misfortune: Callable[[], Awaitable[None]]) -> None:
        assert self.strikes_s is not None
        await trio.sleep_until(self.strikes_s)
        await misfortune()

    async def die_and_come_again(self, name: str) -> None:
        await self.die(name)
        await pass_time(AWAY_S)
        await self.revive(name)

    async def read(self, name: str, handle: int | None = None) -> dict[int, int]:
        """What a new open, or this file, shows."""
        files = NodeFiles(self.world, name)
        number = await files.open(VDISK, os.O_RDONLY) if handle is None else handle
        found = await content_of(files, number)
        if handle is None:
            await files.close(number)
        return found

    async def verify(self) -> None:
        """All nodes are there: each sees what was acknowledged, can write, and is seen by the others."""
        with trio.fail_after(PATIENCE_S):
            for name in (OLD, NEW, THIRD):
                await self.revive(name)
            for writer in (NEW, OLD, THIRD):
                for name in (OLD, NEW, THIRD):
                    for block, value in (await self.read(name)).items():
                        assert value in self.content[block], (name, block, value, self.content[block])
                await self.write(writer)
            owners = {self.world.vdisks(name).may_be_parent(VDISK) for name in (OLD, NEW, THIRD)}
            assert owners == {True, False}


async def hand_over(stage: Stage, victim: str) -> None:
    """The second node wants to write; nobody writes on the first."""
    await stage.work(lambda: stage.write(NEW), lambda: stage.die_and_come_again(victim))
    with trio.fail_after(PATIENCE_S):
        await stage.revive(OLD)
        assert set((await stage.read(OLD, stage.reader)).values()) == {1}, "a frozen file has changed"


async def hand_over_between_writers(stage: Stage, victim: str) -> None:
    """The first node's last writer closes while the second one's forwards."""
    files = NodeFiles(stage.world, OLD)
    mine = await files.open(VDISK, os.O_RDWR)

    async def move() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stage.write, NEW)
            await pass_time(0.02)
            if stage.world.rig(OLD).lives == 1:
                await stage.in_its_life(OLD, lambda: files.close(mine))

    await stage.work(move, lambda: stage.die_and_come_again(victim))


async def takeover(stage: Stage, victim: str) -> None:
    """The first node is gone for good, as far as anybody knows; the second one takes its vdisk over."""
    await stage.die(OLD)
    await pass_time(SESSION_S + 1)
    again = stage.revive if victim == OLD else stage.die_and_come_again
    await stage.work(lambda: stage.write(NEW), lambda: again(victim))


async def takeover_from_a_sleeper(stage: Stage, victim: str) -> None:
    """The first node stands still in the middle of a commit; it may wake up, or the second one die."""
    world, files, told = stage.world, NodeFiles(stage.world, OLD), list[float]()
    mine = await files.open(VDISK, os.O_RDWR)
    await files.write(mine, 0, block_of(LATE))
    stage.content[0].add(LATE)

    async def sync() -> None:
        with suppress(VdiskfsError):
            await files.sync(mine)
            told.append(trio.current_time())

    world.nursery.start_soon(sync)
    await pass_time(0.001)
    world.pause(OLD)
    assert not told
    await pass_time(SESSION_S + 1)

    async def wake_up() -> None:
        world.resume(OLD)

    again = wake_up if victim == OLD else lambda: stage.die_and_come_again(victim)
    await stage.work(lambda: stage.write(NEW), again)
    world.resume(OLD)
    await pass_time(SESSION_S)
    assert not told, "a late commit was acknowledged"
    world.vdisks(OLD).close(mine)


def play(move: Callable[[Stage, str], Awaitable[None]], victim: str, strikes_s: float | None) -> list[float]:
    """One run; returns its moments."""

    async def main(chance: object) -> list[float]:
        with tempfile.TemporaryDirectory(dir=MEMORY, prefix="vdiskfs-simulation-") as folder:
            world = World(pathlib.Path(folder), chance)  # type: ignore[arg-type]
            async with world.running():
                stage = Stage(world, strikes_s)
                await stage.set_up()
                await move(stage, victim)
                await stage.verify()
                for name in (OLD, NEW, THIRD):
                    stage.lives[name].cancel()
                    await world.stop(name)
                world.nursery.cancel_scope.cancel()
        return stage.moments

    return run_seeded(main, 1)


@pytest.mark.parametrize("victim", [OLD, NEW])
@pytest.mark.parametrize("move", [hand_over, hand_over_between_writers, takeover, takeover_from_a_sleeper])
def test_a_daemon_dies_or_wakes_up_at_each_step_of_a_move(
    move: Callable[[Stage, str], Awaitable[None]],
    victim: str,
    rounds: int | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    moments = play(move, victim, None)
    assert len(moments) > STRIDE
    for moment in moments[:: rounds or STRIDE]:
        play(move, victim, moment)
        caplog.clear()  # who is deposed says so


@pytest.mark.parametrize("mutant", ["no_fence", "epochs_are_used_again"])
def test_a_sleeper_finds_bugs_that_were_planted(mutant: str, caplog: pytest.LogCaptureFixture) -> None:
    with planted(mutant), pytest.raises(Exception) as found:
        play(takeover_from_a_sleeper, OLD, None)
    told = str(innermost(found.value))
    assert "a late commit was acknowledged" in told or "fails its checksum" in told
    caplog.clear()


def innermost(exc: BaseException) -> BaseException:
    """What began it."""
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
