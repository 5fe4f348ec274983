"""One simulated run: nodes, clients and misfortune, all from one seed; then peace, and the verdict."""

import pathlib
import random
import tempfile
from dataclasses import dataclass, field, replace

import trio

from metadata.catalog import NEXT_ID_KEY, Change, encode_value
from metadata.errors import VdiskfsError
from replication.cluster import SESSION_S
from replication.vdisks import Vdisks
from tests.replication.rig import create
from tests.simulation.administration import Administrator, Estate
from tests.simulation.deterministic import run_seeded
from tests.simulation.disks import Disk, Values
from tests.simulation.files import NodeFiles
from tests.simulation.histories import History
from tests.simulation.limits import limits_of
from tests.simulation.simulated_threads import pass_time
from tests.simulation.workload import Client
from tests.simulation.world import DISK_S, SLOW_DISK_S, World

NODES = (3, 3, 3, 3, 4, 4, 5, 7)
"""How many; most worlds are small, so that there can be many."""
VDISKS = (20, 21)
CLIENTS_PER_NODE = (1, 2, 2, 4)
TURMOIL_S = (6.0, 18.0)
"""Longer than a session at times."""
MISFORTUNES_S = (0.4, 3.0)
"""Between two, at most."""
MISFORTUNES = (
    "die",
    "pause",
    "cut",
    "cut one way",
    "alone",
    "heal",
    "lossy",
    "slow",
    "catalog",
    "disk",
    "pool",
    "calm",
)
WEIGHTS = (0, 1, 1, 3)
"""Of a kind of misfortune in a run: some do not happen, so that others can go on for long."""
CALMING_S = 3.0
"""Clients go on for so long when all is well."""
PEACE_S = SESSION_S + 1
STUCK_S = 60.0
"""Longer than any request may take."""
LEAVING = 0.2
"""How likely a client goes on with another vdisk."""
IDS_END = 1 << 20
"""Whatever of a smaller number the catalog does not know was deleted."""
SIZE = 2 << 20
MEMORY = "/dev/shm"
"""Where a run's pool and indexes are: nothing of it outlives a power cut, nor need it."""


@dataclass(slots=True)
class Outcome:
    """What a run came to."""

    seed: int
    violations: list[str]
    trace: list[str]
    done: int
    """Operations that succeeded."""
    refused: int
    histories: dict[int, History] = field(default_factory=dict)


class Scenario:
    """One run."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self._world, self._chance = world, chance
        self._names = [f"n{number}" for number in range(1, chance.choice(NODES) + 1)]
        self._kinds = [kind for kind in MISFORTUNES for _ in range(chance.choice(WEIGHTS))] or ["calm"]
        self._turmoil_s, self._misfortunes_s = chance.uniform(*TURMOIL_S), chance.uniform(*MISFORTUNES_S)
        self._client_count = chance.choice(CLIENTS_PER_NODE)
        self._estate = Estate(world, Values())
        self._estate.disks = [Disk(vdisk) for vdisk in VDISKS[: chance.randint(1, len(VDISKS))]]
        self._clients: list[Client] = []
        self._busy = 0
        """Clients that are not done yet."""
        self._lives: dict[str, trio.CancelScope] = {}
        self._reviving: dict[str, bool] = {}
        self._failures: list[str] = []
        self._nursery: trio.Nursery
        self._is_over = False

    async def run(self, nursery: trio.Nursery) -> Outcome:
        """Turmoil, peace, verdict."""
        world = self._world
        self._nursery = nursery
        for name in self._names:
            vdisks = await world.revive(name)
            if name == self._names[0]:
                await self._create_all(vdisks)
            self._begin_life(name)
        with trio.move_on_after(self._turmoil_s):
            while True:
                await pass_time(self._chance.random() * self._misfortunes_s)
                await self._misfortune(nursery)
        await self._make_peace()
        told = [line for client in self._clients for line in client.failures]
        violations = self._failures + told + self._estate.violations()
        done = self._estate.done + sum(client.done for client in self._clients)
        refused = self._estate.refused + sum(client.refused for client in self._clients)
        histories = {disk.number: disk.history for disk in self._estate.disks}
        return Outcome(-1, violations, world.trace, done, refused, histories)

    async def _create_all(self, vdisks: Vdisks) -> None:
        ids_end = Change(puts=((NEXT_ID_KEY, encode_value(IDS_END)),))
        await self._world.catalog.transact(ids_end)
        for disk in self._estate.disks:
            await create(vdisks, disk.number, SIZE)
            vdisks.close(next(iter(vdisks.handles)))

    # ---- clients

    def _begin_life(self, name: str) -> None:
        scope = self._lives[name] = trio.CancelScope()
        self._nursery.start_soon(self._live, name, scope)

    async def _live(self, name: str, scope: trio.CancelScope) -> None:
        """Clients on a node, for as long as it lives."""
        with scope:
            async with trio.open_nursery() as nursery:
                for _ in range(self._client_count):
                    nursery.start_soon(self._use, name)
                nursery.start_soon(self._administer, name)
                nursery.start_soon(self._world.vdisks(name).run)

    async def _use(self, name: str) -> None:
        chance = random.Random(self._chance.random())
        node, disks = NodeFiles(self._world, name), self._estate.open_disks() or self._estate.disks
        client = Client(node, disks[0], chance=chance, values=self._estate.values)
        self._clients.append(client)
        self._busy += 1
        try:
            disk: Disk | None = None
            while not self._is_over:
                await pass_time(chance.random())
                disks = self._estate.open_disks()
                if disk not in disks or chance.random() < LEAVING:
                    disk = chance.choice(disks) if disks else None
                if disk is not None:
                    await self._use_one(client, disk)
        finally:
            self._busy -= 1

    async def _use_one(self, client: Client, disk: Disk) -> None:
        disk.users += 1
        try:
            client.use(disk)
            await client.use_for_a_while()
        finally:
            disk.users -= 1

    async def _administer(self, name: str) -> None:
        self._busy += 1
        try:
            administrator = Administrator(self._estate, name, random.Random(self._chance.random()))
            await administrator.work(lambda: self._is_over)
        finally:
            self._busy -= 1

    # ---- misfortune

    async def _misfortune(self, nursery: trio.Nursery) -> None:
        world, chance = self._world, self._chance
        name, other = chance.sample(self._names, 2)
        what, network = chance.choice(self._kinds), world.network
        world.note(f"{what} {name} {other}")
        match what:
            case "die" if world.is_running(name) and not self._reviving.get(name):
                await self._die(name)
                nursery.start_soon(self._come_again, name, chance.random() ** 2 * 2 * SESSION_S)
            case "pause" if world.is_running(name) and world.is_awake(name):
                world.pause(name)
                nursery.start_soon(self._wake, name, chance.random() * 2 * SESSION_S)
            case "cut":
                network.cut |= {(name, other), (other, name)}
            case "cut one way":
                network.cut.add((name, other))
            case "alone":
                ways = chance.choice(((0, 1), (0,), (1,)))
                both = [((name, each), (each, name)) for each in self._names if each != name]
                network.cut |= {pair[way] for pair in both for way in ways}
            case "heal":
                network.cut.clear()
            case "lossy":
                network.loss, network.repeated = chance.random() * 0.2, chance.choice((0.0, 0.1))
            case "slow":
                network.slow = {name}
            case "catalog":
                catalog = world.catalog_of(name)
                catalog.failing = chance.choice((0.0, 0.3, 1.0))
                catalog.forgetting = chance.choice((0.0, 0.1, 0.5))
            case "disk":
                world.rig(name).disk_s = SLOW_DISK_S
            case "pool":
                faults = world.rig(name).faults
                faults.failing_share = chance.choice((0.01, 0.1, 1.0))
                faults.full_share = chance.choice((0.0, 0.3, 1.0))
            case _:
                self._calm()

    def _calm(self) -> None:
        network = self._world.network
        network.loss, network.repeated, network.slow = 0.0, 0.0, set()
        for name in self._names:
            catalog = self._world.catalog_of(name)
            catalog.failing = catalog.forgetting = 0.0
            rig = self._world.rig(name)
            rig.disk_s, rig.faults.failing_share, rig.faults.full_share = DISK_S, 0.0, 0.0

    async def _die(self, name: str) -> None:
        self._lives[name].cancel()
        with trio.CancelScope(shield=True):  # also when the turmoil ends meanwhile
            await self._world.die(name)

    async def _come_again(self, name: str, after_s: float) -> None:
        await pass_time(after_s)
        await self._revive(name)

    async def _revive(self, name: str) -> None:
        if not self._world.is_running(name) and not self._reviving.get(name):
            self._reviving[name] = True
            while not await self._has_come(name):
                await pass_time(1.0)
            self._reviving[name] = False
            self._begin_life(name)

    async def _has_come(self, name: str) -> bool:
        try:
            await self._world.revive(name)
        except VdiskfsError as exc:  # its keeper tries again
            self._world.note(f"{name} cannot come: {exc}")
            return False
        return True

    async def _wake(self, name: str, after_s: float) -> None:
        await pass_time(after_s)
        if self._world.is_running(name):
            self._world.resume(name)

    # ---- peace

    async def _make_peace(self) -> None:
        """Everything works again; then every node sees what was committed last."""
        self._world.note("peace")
        self._calm()
        self._world.network.cut.clear()
        for name in self._names:
            self._world.resume(name)
            await self._revive(name)
        await pass_time(CALMING_S)
        self._is_over = True
        await pass_time(PEACE_S)
        with trio.move_on_after(STUCK_S):
            while self._busy:
                await pass_time(1.0)
        if self._busy:
            self._failures.append(f"clients wait for ever though all is well: {self._busy}")
        with trio.move_on_after(STUCK_S) as scope:
            for name in self._names:
                for disk in self._estate.disks:
                    if disk.is_known:
                        await self._look(name, disk)
                await Administrator(self._estate, name, self._chance).look_at_all()
            await Administrator(self._estate, self._names[0], self._chance).remove_strays()
        if scope.cancelled_caught:
            self._failures.append("a reader waits for ever though all is well")

    async def _look(self, name: str, disk: Disk) -> None:
        """Nothing may stand in the way any more."""
        node = NodeFiles(self._world, name)
        reader = Client(node, disk, chance=self._chance, values=self._estate.values)
        await reader.read_all()
        if reader.refused:
            self._failures.append(f"vdisk {disk.number} cannot be read on {name} though all is well")


def simulate(seed: int) -> Outcome:
    """One run; the same seed, the same outcome."""

    async def main(chance: random.Random) -> Outcome:
        with tempfile.TemporaryDirectory(dir=MEMORY, prefix="vdiskfs-simulation-") as folder:
            world = World(pathlib.Path(folder), chance)
            with limits_of(chance):
                async with world.running(), trio.open_nursery() as nursery:
                    outcome = await Scenario(world, chance).run(nursery)
                    nursery.cancel_scope.cancel()
            return outcome

    return replace(run_seeded(main, seed), seed=seed)
