"""Durability ``node``: flushed is what the node's own disk has; the pool follows in order, a lost node loses the tail alone."""

import pathlib
import threading

import pytest
import trio

from metadata.errors import Fenced
from metadata.ids import VdiskId
from replication import object_lag, object_sending
from replication.commit import flush
from replication.head import Head
from replication.lag import reach_pool
from replication.vdisks import Vdisks
from tests.replication.cluster_rig import ClusterRig
from tests.replication.faulty_objects import put_objects_below
from tests.replication.objects import ObjectRig, StoreInMemory, object_pool
from tests.replication.rig import (
    B,
    block,
    blocks,
    close_and_rest,
    content,
    create,
    expect_errors,
    opened,
    read,
    run,
    sound,
    write,
)
from tests.replication.sharing import get, put, writer
from tests.replication.snapshotting import snap, view_content

MIB = 1 << 20


class Gate:
    """What a store does with puts: lets so many data objects through, then none until it is opened."""

    def __init__(self, store: StoreInMemory, passes: int = 0) -> None:
        self.passes, self.opened = passes, threading.Event()
        self._lock = threading.Lock()
        store.on_call = self._meet

    def _meet(self, what: str, key: str) -> None:
        name = key.rpartition("/")[2]
        if what != "put" or key.endswith("checkpoint") or name == "00000-00000":
            return
        with self._lock:
            self.passes -= 1
            if self.passes >= 0:
                return
        self.opened.wait(20)

    def open(self) -> None:
        self.opened.set()


@pytest.fixture
def rig(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ObjectRig:
    put_objects_below(monkeypatch, flush_here=True)
    return ObjectRig(tmp_path)


async def versions(vdisks: Vdisks, count: int) -> Head:
    """A vdisk of which each flush writes the same four blocks anew: version n reads as four blocks of n."""
    head = await create(vdisks, 20, MIB)
    for number in range(1, count + 1):
        await write(head, 0, blocks(number, number, number, number))
        await flush(head)
    return head


async def whole_version(head: Head) -> int:
    """Which flush the vdisk is at; a mixture of two is none."""
    data = await read(head, 0, 4 * B)
    found = [number for number in range(1000) if data == blocks(number, number, number, number)]
    assert len(found) == 1 or not data, "neither one flush nor another"
    return found[0] if found else 0


def test_a_flush_does_not_wait_for_the_pool_and_what_others_rest_on_does(rig: ObjectRig) -> None:
    async def scenario() -> None:
        gate = Gate(rig.store)
        async with rig.node() as vdisks:
            head, pool = await versions(vdisks, 5), object_pool(vdisks.workspace.pool)
            lag = pool.trails.lag(20)
            assert (lag.commits, lag.bytes) == (5, 5 * 5 * B)
            assert pool.lag_facts(20)["durability"] == "pool"  # the rig overrides what is asked
            assert pool.facts()["lag_commits"] == 5
            made = []
            async with trio.open_nursery() as nursery:

                async def take() -> None:
                    made.append(await snap(vdisks, 20, "s", 900))

                nursery.start_soon(take)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert made == []
                gate.open()
            assert not pool.trails.lag(20).commits
            assert (await view_content(vdisks, made[0].id))[: 4 * B] == blocks(5, 5, 5, 5)
            assert head.log.version == 5
        rig.lose_state()
        async with rig.node() as vdisks:
            assert await whole_version(await opened(vdisks, 20)) == 5
            await sound(vdisks, 20)

    run(scenario)


@pytest.mark.parametrize("passes", range(7))
def test_a_lost_node_leaves_an_earlier_version_whole(
    rig: ObjectRig, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_sending, "PART_BLOCKS", 2)  # a version is several objects
    monkeypatch.setattr(object_lag, "LOT_BLOCKS", 5)

    async def scenario() -> None:
        gate = Gate(rig.store, passes)
        async with rig.node(kill=True) as vdisks:
            await versions(vdisks, 4)
            kept = dict(rig.store.objects)
            gate.open()
        rig.store.objects = kept
        rig.store.on_call = None
        rig.lose_state()
        async with rig.node() as vdisks:
            head = await opened(vdisks, 20)
            assert await whole_version(head) <= 4
            await write(head, 0, blocks(9, 9, 9, 9))
            await flush(head)
            await close_and_rest(vdisks, 20)
            await sound(vdisks, 20)

    run(scenario)


def test_the_next_daemon_sends_the_rest(rig: ObjectRig) -> None:
    async def scenario() -> None:
        gate = Gate(rig.store, 2)
        async with rig.node(kill=True) as vdisks:
            await versions(vdisks, 30)
            kept = dict(rig.store.objects)
            gate.open()
        rig.store.objects = kept  # nothing of what a dead process did later
        rig.store.on_call = None
        rig.lose_index()
        async with rig.node(kill=True) as vdisks:
            assert await whole_version(await opened(vdisks, 20)) == 30
            assert not object_pool(vdisks.workspace.pool).left_behind()
        rig.lose_state()
        async with rig.node() as vdisks:
            assert await whole_version(await opened(vdisks, 20)) == 30
            await sound(vdisks, 20)

    run(scenario)


def test_flushes_wait_when_too_much_is_on_its_way(rig: ObjectRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_lag, "LAG_BYTES_MAX", 12 * B)

    async def scenario() -> None:
        gate = Gate(rig.store)
        async with rig.node() as vdisks:
            head = await versions(vdisks, 2)  # ten blocks
            await write(head, 0, blocks(3, 3, 3, 3))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flush, head)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert head.commit_done is not None
                gate.open()
            assert not head.is_dirty
            await reach_pool(head)
            assert object_pool(vdisks.workspace.pool).trails.lag(20).bytes == 0
            assert await content(head) == blocks(3, 3, 3, 3) + bytes(MIB - 4 * B)

    run(scenario)


@pytest.mark.parametrize("restarts", [False, True])
def test_what_the_pool_has_not_is_void_when_another_node_takes_over(
    tmp_path: pathlib.Path, restarts: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    put_objects_below(monkeypatch, flush_here=True)
    cluster = ClusterRig(tmp_path)

    async def scenario() -> None:
        async with cluster.running():
            a = await cluster.start("a")
            head = await create(a, 20, MIB)
            number = await writer(a, 20)
            await put(a, number, 0, blocks(1, 1, 1, 1))
            await a.flush_handle(number)
            await reach_pool(head)
            store = object_pool(a.workspace.pool).store._store
            assert isinstance(store, StoreInMemory)
            gate = Gate(store)
            for value in range(2, 6):
                await put(a, number, 0, blocks(value, value, value, value))
                await a.flush_handle(number)
            store.on_call = None  # what waits goes on waiting
            if restarts:
                gate_key = dict(store.objects)
                await _kill(cluster, gate)
                store.objects.clear()
                store.objects.update(gate_key)
            cluster.switch.expire("a")
            b = await cluster.start("b")
            theirs = await writer(b, 20)
            assert await get(b, theirs, 0, 4 * B) == blocks(1, 1, 1, 1)
            await put(b, theirs, 0, blocks(7, 7))
            await b.flush_handle(theirs)
            cluster.switch.live.add("a")
            if restarts:
                a = await cluster.start("a")
            else:
                with pytest.raises(Fenced):
                    await a.flush_handle(number)
                gate.open()
                a.close(number)
            b.close(theirs)
            await close_and_rest(b, 20)
            again = await writer(a, 20)
            assert await get(a, again, 0, 4 * B) == blocks(7, 7, 1, 1)
            assert list((cluster.rigs["a"].state_path / "extents").rglob("*.refused"))
            a.close(again)
            await sound(a, 20)

    run(scenario)
    expect_errors(caplog, "another node took the vdisk over", "deposed", "a commit does not count")


async def _kill(cluster: ClusterRig, gate: Gate) -> None:
    """Its threads, which a real death would end, are let go."""
    gate.opened.set()
    await cluster.kill("a")


def test_a_peer_is_told_of_no_version_that_the_pool_has_not(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_objects_below(monkeypatch, flush_here=True)
    cluster = ClusterRig(tmp_path)

    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, 20, MIB)
            number = await writer(a, 20)
            pool = object_pool(a.workspace.pool)
            for value in range(1, 20):
                await put(a, number, 0, block(value))
                await a.flush_handle(number)
                if value == 10:
                    assert b.company is not None
                    assert (await b.company.follower.newest(VdiskId(20))).version == 10
                if value >= 10:
                    assert not pool.trails.lag(20).commits
            assert (await b.company.follower.newest(VdiskId(20))).version == 19

    run(scenario)
