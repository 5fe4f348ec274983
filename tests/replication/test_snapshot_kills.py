"""A kill at each step of what changes the snapshot tree: before or after, nothing half, and nothing left behind.

The steps are those of the task at work: between two of them it waited for something. It is cut off there, the daemon
dies, and the next one must find the vdisks as the model says.
"""

import pathlib
import random
from collections.abc import Awaitable, Callable

import pytest
import trio

from metadata.errors import NotFound
from metadata.ids import VdiskId
from replication.snapshots import Snapshots
from replication.vdisks import Vdisks
from tests.replication.rig import B, Rig, block, blocks, content, create, opened, run, sound, write
from tests.replication.snapshotting import MIB, clone, delete, flatten, rollback, snap, view_content

STEPS_MAX = 400


@pytest.fixture
def rig(tmp_path: pathlib.Path) -> Rig:
    """With a catalog that waits for a disk there are more steps."""
    return Rig(tmp_path, sqlite=True)


class _Cut(trio.abc.Instrument):
    """Cancels a scope at a task's step of this number."""

    def __init__(self, step: int, scope: trio.CancelScope) -> None:
        self._left, self._scope, self._task = step, scope, trio.lowlevel.current_task()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._left -= 1
            if self._left == 0:
                self._scope.cancel()


async def cut_at(step: int, work: Callable[[], Awaitable[object]]) -> bool:
    """Does the work up to this step; says whether it came to its end."""
    with trio.CancelScope() as scope:
        cut = _Cut(step, scope)
        trio.lowlevel.add_instrument(cut)
        try:
            await work()
        finally:
            trio.lowlevel.remove_instrument(cut)
        return not scope.cancel_called
    return False


class Scene:
    """A vdisk 20 with a snapshot "old", a clone 21 of it with a snapshot "young", and a clone 22 of that one."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.turn = 0

    async def set_up(self, vdisks: Vdisks) -> None:
        parent = await create(vdisks, 20, 2 * MIB)
        await write(parent, 0, blocks(*range(300)))
        self.old = await content(parent)
        await snap(vdisks, 20, "old", 100)
        await write(parent, 50 * B, blocks(*range(900, 920)))
        child = await clone(vdisks, 20, "old", 21)
        await write(child, 10 * B, block(500))
        self.young = await content(child)
        await snap(vdisks, 21, "young", 101)
        await write(child, 11 * B, block(501))
        await clone(vdisks, 21, "young", 22)
        self.now = {20: await content(parent), 21: await content(child), 22: self.young}

    async def change(self, vdisks: Vdisks) -> None:
        """Something to commit in both."""
        self.turn += 1
        for vdisk in (20, 21):
            head, at = await opened(vdisks, vdisk), self.turn % 500
            await write(head, at * B, block(10_000 + self.turn))
            self.now[vdisk] = (
                self.now[vdisk][: at * B] + block(10_000 + self.turn) + self.now[vdisk][(at + 1) * B :]
            )

    async def verify(self, vdisks: Vdisks, *, instead: dict[int, bytes] | None = None) -> bool:
        """All is as it should be; ``instead``: or so. Returns which it is."""
        happened: set[bool] = set()
        for vdisk, expected in self.now.items():
            found = await content(await opened(vdisks, vdisk))
            if instead and vdisk in instead and instead[vdisk] != expected:
                assert found in (expected, instead[vdisk])
                happened.add(found == instead[vdisk])
            else:
                assert found == expected
        assert len(happened) < 2
        if "old" in [snapshot.name for snapshot in Snapshots(vdisks).list(20)]:
            assert await view_content(vdisks, 100) == self.old
        if self.turn % 3 == 0:
            await sound(vdisks, *self.now)
        assert all(not vdisks.family.pin_count(vdisk) for vdisk in self.now)
        return True in happened


def every_step(
    rig: Rig,
    work: Callable[[Vdisks, int], Awaitable[object]],
    look: Callable[[Scene, Vdisks, int], Awaitable[None]],
) -> None:
    """Cuts the work off at each of its steps, each time with another daemon."""

    async def main() -> None:
        scene, chance = Scene(rig), random.Random(5)
        async with rig.node(kill=True) as vdisks:
            await scene.set_up(vdisks)
        for step in range(1, STEPS_MAX):
            async with rig.node(kill=True) as vdisks:
                await scene.change(vdisks)
                for number in list(vdisks.handles):
                    vdisks.close(number)
                ended = await cut_at(step, lambda: work(vdisks, step))  # noqa: B023
            if chance.random() < 0.3:
                rig.lose_index()
            async with rig.node(kill=chance.random() < 0.5) as vdisks:
                await look(scene, vdisks, step)
            if ended:
                return
        raise AssertionError("it has no end")

    run(main)


def test_creating_a_group_of_snapshots(rig: Rig) -> None:
    async def work(vdisks: Vdisks, step: int) -> None:
        targets = [(VdiskId(20), f"a{step}", 1000 + step), (VdiskId(21), f"b{step}", 2000 + step)]
        await Snapshots(vdisks).create(targets)

    async def look(scene: Scene, vdisks: Vdisks, step: int) -> None:
        await scene.verify(vdisks)
        made = {snapshot.name for vdisk in (20, 21) for snapshot in Snapshots(vdisks).list(vdisk)} - {
            "old",
            "young",
        }
        assert made in (set(), {f"a{step}", f"b{step}"})
        if made:
            assert await view_content(vdisks, 1000 + step) == scene.now[20]
            assert await view_content(vdisks, 2000 + step) == scene.now[21]
            await Snapshots(vdisks).remove(20, f"a{step}")
            await Snapshots(vdisks).remove(21, f"b{step}")

    every_step(rig, work, look)


def test_rolling_back_to_a_snapshot(rig: Rig) -> None:
    async def work(vdisks: Vdisks, step: int) -> None:
        await rollback(vdisks, 20, "old", (f"kept{step}", 1000 + step))

    async def look(scene: Scene, vdisks: Vdisks, step: int) -> None:
        happened = await scene.verify(vdisks, instead={20: scene.old})
        names = {snapshot.name for snapshot in Snapshots(vdisks).list(20)} - {"old"}
        assert names == ({f"kept{step}"} if happened else set())
        if happened:
            assert await view_content(vdisks, 1000 + step) == scene.now[20]
            await Snapshots(vdisks).remove(20, f"kept{step}")
            scene.now[20] = scene.old

    every_step(rig, work, look)


def test_cloning_what_is_there_now(rig: Rig) -> None:
    async def work(vdisks: Vdisks, step: int) -> None:
        await clone(vdisks, 21, None, 3000 + step)

    async def look(scene: Scene, vdisks: Vdisks, step: int) -> None:
        await scene.verify(vdisks)
        if 3000 + step in vdisks.family.children(21):
            assert await content(await opened(vdisks, 3000 + step)) == scene.now[21]
            await delete(vdisks, 3000 + step)
        assert set(vdisks.workspace.pool.vdisks()) <= {20, 21, 22}

    every_step(rig, work, look)


def test_flattening_a_clone_of_a_clone(rig: Rig) -> None:
    async def work(vdisks: Vdisks, step: int) -> None:
        await clone(vdisks, 21, "young", 4000 + step)
        await flatten(vdisks, 4000 + step)

    async def look(scene: Scene, vdisks: Vdisks, step: int) -> None:
        await scene.verify(vdisks)
        rows, _ = await vdisks.workspace.catalog.read(b"vdisk/%016x" % (4000 + step))
        if rows:
            assert await content(await opened(vdisks, 4000 + step)) == scene.young
            await sound(vdisks, 4000 + step)
            await flatten(vdisks, 4000 + step)
            assert 4000 + step not in vdisks.family.children(21)
            assert await content(vdisks.heads[4000 + step]) == scene.young
            await sound(vdisks, 4000 + step)
            await delete(vdisks, 4000 + step)

    every_step(rig, work, look)


def test_deleting_a_parent_its_snapshot_and_its_clone(rig: Rig) -> None:
    """Vdisks 30 (with a snapshot), 31, its clone, and 32, the clone's: made anew each time, and all gone at the end."""

    async def work(vdisks: Vdisks, step: int) -> None:
        for vdisk in (30, 31, 32):
            await delete(vdisks, vdisk)

    async def look(scene: Scene, vdisks: Vdisks, step: int) -> None:
        await scene.verify(vdisks)
        for vdisk in (30, 31, 32):
            rows, _ = await vdisks.workspace.catalog.read(b"vdisk/%016x" % vdisk)
            if rows and not vdisks.family.descent(vdisk).nameless:
                if vdisk == 32:
                    assert await content(await opened(vdisks, 32)) == block(1) + bytes(MIB - B)
                await delete(vdisks, vdisk)
        rows, _ = await vdisks.workspace.catalog.read(b"snap/")
        assert {row.key[5:21] for row in rows} == {b"%016x" % 20, b"%016x" % 21}
        assert list(vdisks.family.nameless()) == []
        await make_family(vdisks)

    async def make_family(vdisks: Vdisks) -> None:
        head = await create(vdisks, 30, MIB)
        await write(head, 0, block(1))
        await snap(vdisks, 30, "x", 5000)
        await clone(vdisks, 30, "x", 31)
        await clone(vdisks, 31, None, 32)

    every_step(rig, work, look)


def test_removing_the_last_snapshot_that_read_a_flattened_clone_s_parent(rig: Rig) -> None:
    async def work(vdisks: Vdisks, step: int) -> None:
        await clone(vdisks, 20, "old", 6000 + step)
        await snap(vdisks, 6000 + step, "x", 7000 + step)
        await flatten(vdisks, 6000 + step)
        await Snapshots(vdisks).remove(6000 + step, "x")

    async def look(scene: Scene, vdisks: Vdisks, step: int) -> None:
        await scene.verify(vdisks)
        vdisk = 6000 + step
        rows, _ = await vdisks.workspace.catalog.read(b"vdisk/%016x" % vdisk)
        if not rows:
            return
        assert await content(await opened(vdisks, vdisk)) == scene.old
        if Snapshots(vdisks).list(vdisk):
            assert await view_content(vdisks, 7000 + step) == scene.old
            await Snapshots(vdisks).remove(vdisk, "x")
        await flatten(vdisks, vdisk)
        assert vdisk not in vdisks.family.children(20)
        await delete(vdisks, vdisk)

    every_step(rig, work, look)


def test_a_vdisk_that_is_not_there_cannot_be_snapshotted(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            with pytest.raises(NotFound):
                await snap(vdisks, 99, "a", 100)
            assert list(Snapshots(vdisks).all()) == []

    run(main)
