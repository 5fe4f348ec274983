"""One owner and two readers, at random: opens see the last flush or newer, what is open never changes, snapshots are whole."""

import pathlib
import random

import pytest
import trio
import trio.testing

from metadata.ids import VdiskId
from replication.collector import Collector
from replication.commit import flush
from replication.vdisks import Vdisks
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import B, block, create, passes, run, write
from tests.replication.snapshotting import snap, view_content
from tests.replication.test_versions import content, opened

V, BLOCKS, STEPS = 20, 700, 150
READERS = ("b", "c")


class Walk:
    """Random steps, and what must be read."""

    def __init__(self, cluster: ClusterRig, seed: int) -> None:
        self.cluster, self.random = cluster, random.Random(seed)
        self.now = bytearray()
        self.history: list[bytes] = []
        """As of each flush, and at its start."""
        self.flushed = 0
        """How many of these a flush has returned for."""
        self.seen = dict.fromkeys(READERS, 0)
        self.handles: list[tuple[str, int, bytes]] = []
        self.snapshots: dict[int, bytes] = {}
        self.nodes: dict[str, Vdisks] = {}
        self.writes = 0

    async def go(self) -> None:
        for name in ("a", *READERS):
            self.nodes[name] = await self.cluster.start(name)
        await create(self.nodes["a"], V)
        await self.write()
        await self.flush()
        steps = [self.write] * 6 + [self.flush] * 4 + [self.open] * 6 + [self.read] * 3 + [self.close] * 3
        steps += [self.snap, self.read_snapshot, self.collect, self.pause, self.restart_reader, self.shrink]
        for _ in range(STEPS):
            await self.random.choice(steps)()
        await self.flush()
        for name in READERS:
            await self._look(name)

    async def write(self) -> None:
        head = await self.nodes["a"].head(VdiskId(V))
        for _ in range(self.random.randrange(1, 40)):
            at, count = self.random.randrange(BLOCKS), self.random.choice((1, 1, 1, 20))
            data = b"".join(block((self.writes << 8) + part) for part in range(count))
            self.writes += 1
            await write(head, at * B, data)
            self.now.extend(bytes(max(0, at * B + len(data) - len(self.now))))
            self.now[at * B : at * B + len(data)] = data

    async def flush(self) -> None:
        self.history.append(bytes(self.now))
        await flush(await self.nodes["a"].head(VdiskId(V)))
        self.flushed = len(self.history)

    async def open(self) -> None:
        name = self.random.choice(READERS)
        handle, found = await self._look(name)
        self.handles.append((name, handle, found))

    async def _look(self, name: str) -> tuple[int, bytes]:
        handle = await opened(self.nodes[name])
        found = await content(self.nodes[name], handle)
        last = max(index for index, then in enumerate(self.history) if then == found)
        assert last + 1 >= self.flushed, "an open sees an older version than the last flush"
        assert last >= self.seen[name]
        self.seen[name] = last
        return handle, found

    async def read(self) -> None:
        for name, handle, then in self.handles:
            assert await content(self.nodes[name], handle) == then

    async def close(self) -> None:
        if self.handles:
            name, handle, _ = self.handles.pop(self.random.randrange(len(self.handles)))
            self.nodes[name].close(handle)

    async def snap(self) -> None:
        number = 900 + len(self.snapshots)
        self.history.append(bytes(self.now))
        await snap(self.nodes["a"], V, f"s{number}", number)
        self.snapshots[number] = bytes(self.now)

    async def read_snapshot(self) -> None:
        await trio.testing.wait_all_tasks_blocked(0.01)
        if self.snapshots:
            number = self.random.choice(list(self.snapshots))
            assert (
                await view_content(self.nodes[self.random.choice(READERS)], number) == self.snapshots[number]
            )

    async def collect(self) -> None:
        await Collector(self.nodes["a"]).collect(lambda _: None, vdisks=(V,))

    async def pause(self) -> None:
        await passes(self.random.choice((0.3, 3, 30)))

    async def shrink(self) -> None:
        for name in READERS:
            self.nodes[name].workspace.row_cache.shrink(0)
            self.nodes[name].workspace.segment_cache.shrink(0)

    async def restart_reader(self) -> None:
        name = self.random.choice(READERS)
        await self.cluster.kill(name)
        self.nodes[name] = await self.cluster.start(name)


@pytest.mark.parametrize("seed", [1, 3, 10])
def test_readers_follow_an_owner(tmp_path: pathlib.Path, seed: int) -> None:
    async def scenario() -> None:
        cluster = ClusterRig(tmp_path)
        async with cluster.running():
            await Walk(cluster, seed).go()

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.03))
