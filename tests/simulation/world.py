"""Several nodes over a simulated network, clock and threads, on one pool and one catalog: the daemon's own code inside.

What can happen is drawn from one seed: messages take their time, are lost, come twice or out of order; links are cut
one way or both; nodes die and come again, with or without what their index had in memory; nodes stand still for longer
than their session lives; the catalog is slow, or fails.
"""

import errno
import os
import pathlib
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import trio

from metadata.catalog import Catalog, Change, Event, Row, owner_key
from metadata.errors import Unavailable
from replication.cluster import Member
from replication.company import Company
from replication.ownership import read_owner
from replication.pool_directory import DirectoryPool, open_pool, pool_error
from replication.session import Session
from replication.vdisks import Vdisks
from replication.workspace import Workspace
from tests.replication.cluster_rig import ClusterRig, NodeRig
from tests.replication.faults import Faults, FaultyPool
from tests.simulation.network import Network
from tests.simulation.simulated_threads import SimulatedThreads, pass_time

CATALOG_S = 0.002
"""The longest it takes to answer when nothing is wrong."""
WATCH_S = 0.3
"""The longest that an event is under way."""
DISK_S = 0.004
SLOW_DISK_S = 0.4
UNEVEN = 0.6
"""How likely a thread is to wait at all."""
RETRY_S = 0.25


class SimulatedCatalog:
    """One node's way to the catalog they share."""

    def __init__(self, catalog: Catalog, node: "SimulatedRig", chance: random.Random) -> None:
        self._catalog, self._node, self._chance = catalog, node, chance
        self.failing = 0.0
        """How likely a call is to fail."""
        self.forgetting = 0.0
        """How likely a change's answer is to be lost, or its event to be late."""

    async def _call(self) -> None:
        await pass_time(self._chance.random() * CATALOG_S)
        await self._node.resumed.wait()
        if self._chance.random() < self.failing:
            raise Unavailable("the catalog does not answer, says the simulation")

    async def _event(self) -> None:
        await pass_time(self._chance.random() * WATCH_S)
        await self._node.resumed.wait()
        while self._chance.random() < max(self.failing, self.forgetting):
            await pass_time(RETRY_S)

    async def read(self, prefix: bytes) -> tuple[list[Row], int]:
        await self._call()
        return await self._catalog.read(prefix)

    async def transact(self, change: Change, *, lease: int = 0) -> int:
        await self._call()
        revision = await self._catalog.transact(change, lease=lease)
        await self._node.resumed.wait()
        if self._chance.random() < self.forgetting:
            raise Unavailable("the catalog's answer is lost, says the simulation")
        return revision

    async def watch(self, prefix: bytes, *, after: int) -> AsyncGenerator[list[Event], None]:
        async with aclosing(self._catalog.watch(prefix, after=after)) as watch:
            async for events in watch:
                await self._event()
                yield events

    async def grant_lease(self, ttl_s: float) -> int:
        await self._call()
        return await self._catalog.grant_lease(ttl_s)

    async def keep_alive(self, lease: int) -> None:
        await self._call()
        await self._catalog.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        await self._call()
        await self._catalog.revoke(lease)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class RandomFaults(Faults):
    """A node's way to the pool."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance
        self.failing_share = 0.0
        """How likely a call is to fail."""
        self.full_share = 0.0
        """How likely there is to be no room."""

    def meet(self, what: str, path: str) -> None:
        if self._chance.random() < self.failing_share:
            raise pool_error(OSError(errno.EIO, os.strerror(errno.EIO)), f"{what} {path}")
        if what in ("preallocate", "create") and self._chance.random() < self.full_share:
            raise pool_error(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), f"{what} {path}")


class SimulatedRig(NodeRig):
    """One node's own state, and what stands for its threads, its clock and its way to the catalog."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.resumed = trio.Event()
        self.resumed.set()
        self.drift = 1.0 + (world.chance.random() - 0.5) * 0.1
        """How fast its clock goes."""
        self.disk_s = DISK_S
        """The longest that a thread waits for its turn, and for its end."""
        self.faults = RandomFaults(random.Random(world.chance.random()))
        self.threads: list[SimulatedThreads] = []
        self.revision = 0
        """Of the catalog, as far as the node has followed it."""
        self.lives = 0
        """How often it has come."""
        super().__init__(world, name)
        self.seen_catalog = SimulatedCatalog(world.catalog, self, random.Random(world.chance.random()))

    def open_pool(self) -> DirectoryPool:
        real = open_pool(self.pool_path)
        pool = FaultyPool(real.path, pool_id=real.pool_id, salt=real.salt)
        pool.faults = self.faults
        return pool

    async def _open_catalog(self) -> Catalog:
        return self.seen_catalog

    @asynccontextmanager
    async def node(self, *, kill: bool = False) -> AsyncIterator[Vdisks]:
        name = self.node_name
        self.lives += 1
        session = Session(self.seen_catalog, Member(name, "simulated", 1, name), clock_s=self._clock_s)
        self.session = session
        async with session:
            scope = trio.CancelScope()
            self.world.nursery.start_soon(self._run_session, session, scope)
            try:
                async with super().node(kill=kill) as vdisks:
                    yield vdisks
                session.is_ending = not (kill or self.dying)
            finally:
                scope.cancel()

    async def _run_session(self, session: Session, scope: trio.CancelScope) -> None:
        with scope:
            await session.run()

    def _clock_s(self) -> float:
        return trio.current_time() * self.drift

    def _join(self, workspace: Workspace) -> None:
        workspace.links = self.world.switch.join(self.node_name)
        workspace.membership = self.session
        workspace.clock_s = self._clock_s
        chance = random.Random(self.world.chance.random())
        self.threads = [
            SimulatedThreads(
                self.world.nursery,
                lambda: chance.random() * self.disk_s if chance.random() < UNEVEN else 0.0,
                standing=lambda: self.resumed.wait(),
            )
            for _ in range(2)
        ]
        workspace.threads, workspace.commit_threads = self.threads  # type: ignore[assignment]


class World(ClusterRig):
    """All nodes, and what befalls them."""

    def __init__(self, folder: pathlib.Path, chance: random.Random) -> None:
        super().__init__(folder)
        self.chance = chance
        self.network = self.switch = Network(
            random.Random(chance.random()),
            start=lambda *work: self.nursery.start_soon(*work),
            standing=lambda name: self.rig(name).resumed.wait(),
        )
        self.trace: list[str] = []
        """What happened, in order; the same for the same seed."""
        self.born: dict[int, int] = {}
        """Revisions at which clones got their names."""
        self.untold: dict[int, int] = {}
        """Revisions at which vdisks were rolled back of which nobody was told: who asked for that heard of a failure."""

    def _rig(self, name: str) -> SimulatedRig:
        return SimulatedRig(self, name)

    def rig(self, name: str) -> SimulatedRig:
        """A node's own state."""
        found = self.rigs[name]
        assert isinstance(found, SimulatedRig)
        return found

    def is_awake(self, name: str) -> bool:
        """Whether a node does not stand still."""
        return self.rig(name).resumed.is_set()

    def catalog_of(self, name: str) -> SimulatedCatalog:
        """A node's way to the catalog."""
        return self.rig(name).seen_catalog

    def vdisks(self, name: str) -> Vdisks:
        """Those of a node that runs."""
        return self._running[name].vdisks

    def reign(self, vdisk: int) -> tuple[int, int]:
        """The epoch under which a vdisk is owned, and which of its lives the owner lives."""
        row = self.catalog._rows.get(owner_key(vdisk))
        if row is None:
            return 0, 0
        owner = read_owner(row)
        return owner.epoch, self.rig(owner.node).lives

    def note(self, what: str) -> None:
        """A line of the trace."""
        self.trace.append(f"{trio.current_time():10.4f} {what}")

    async def _feed(self, company: Company) -> None:
        """By each node's own way, which may be slow or cut."""
        catalog = self.catalog_of(company.node)
        while True:
            try:
                rows, revision = await catalog.read(b"")
            except Unavailable:
                await pass_time(RETRY_S)
                continue
            company.mirror.note_reload(rows, revision)
            rig = self.rig(company.node)
            rig.revision = revision
            async with aclosing(catalog.watch(b"", after=revision)) as watch:
                async for events in watch:
                    company.mirror.note_events(events, is_own=False)
                    rig.revision = events[-1].revision

    # ---- what befalls a node

    def pause(self, name: str) -> None:
        """It stands still: nothing that it sends, waits for or asks goes on, but its clock does."""
        self.note(f"{name} stands still")
        self.rig(name).resumed = trio.Event()

    def resume(self, name: str) -> None:
        """It goes on as if nothing had been."""
        self.note(f"{name} goes on")
        self.rig(name).resumed.set()

    async def die(self, name: str) -> None:
        """No goodbye: work that threads had not begun is never done."""
        self.note(f"{name} dies")
        rig = self.rig(name)
        for threads in rig.threads:
            threads.die()
        await self.kill(name)
        rig.resumed.set()

    async def revive(self, name: str) -> Vdisks:
        """It comes, or comes again."""
        self.note(f"{name} comes")
        return await self.start(name)
