"""One simulated run: nodes, clients and misfortune, all from one seed; then peace, and the verdict."""

import pathlib
import random
import tempfile
from dataclasses import dataclass, field, replace

import trio

from metadata.errors import VdiskfsError
from replication.cluster import SESSION_S
from tests.replication.rig import create
from tests.simulation.deterministic import run_seeded
from tests.simulation.files import NodeFiles
from tests.simulation.histories import History
from tests.simulation.simulated_threads import pass_time
from tests.simulation.workload import Client, Values
from tests.simulation.world import World

NODES = (3, 7)
"""Least and most."""
VDISKS = (20, 21)
CLIENTS_PER_NODE = 2
TURMOIL_S = 25.0
MISFORTUNES_S = 2.5
"""Between two, at most."""
PEACE_S = 1.5 * SESSION_S
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
        self._names = [f"n{number}" for number in range(1, chance.randint(*NODES) + 1)]
        self._histories = {vdisk: History() for vdisk in VDISKS}
        self._values = {vdisk: Values() for vdisk in VDISKS}
        self._clients: list[Client] = []
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
                for vdisk in VDISKS:
                    await create(vdisks, vdisk, SIZE)
                    vdisks.close(next(iter(vdisks.handles)))
            self._begin_life(name)
        with trio.move_on_after(TURMOIL_S):
            while True:
                await pass_time(self._chance.random() * MISFORTUNES_S)
                await self._misfortune(nursery)
        await self._make_peace()
        violations = self._failures + [
            f"vdisk {vdisk}: {line}" for vdisk in VDISKS for line in self._histories[vdisk].violations()
        ]
        done = sum(client.done for client in self._clients)
        refused = sum(client.refused for client in self._clients)
        return Outcome(-1, violations, world.trace, done, refused, self._histories)

    # ---- clients

    def _begin_life(self, name: str) -> None:
        scope = self._lives[name] = trio.CancelScope()
        self._nursery.start_soon(self._live, name, scope)

    async def _live(self, name: str, scope: trio.CancelScope) -> None:
        """Clients on a node, for as long as it lives."""
        with scope:
            async with trio.open_nursery() as nursery:
                for _ in range(CLIENTS_PER_NODE):
                    nursery.start_soon(self._use, name)

    async def _use(self, name: str) -> None:
        vdisk, chance = self._chance.choice(VDISKS), random.Random(self._chance.random())
        client = Client(
            NodeFiles(self._world, name),
            vdisk,
            self._histories[vdisk],
            chance=chance,
            values=self._values[vdisk],
        )
        self._clients.append(client)
        while not self._is_over:
            await pass_time(chance.random())
            await (client.write_for_a_while() if chance.random() < 0.5 else client.read_for_a_while())

    # ---- misfortune

    async def _misfortune(self, nursery: trio.Nursery) -> None:
        world, chance = self._world, self._chance
        name, other = chance.sample(self._names, 2)
        what = chance.choice(
            ("die", "pause", "cut", "cut one way", "heal", "lossy", "slow", "catalog", "calm")
        )
        world.note(f"{what} {name} {other}")
        match what:
            case "die" if world.is_running(name) and not self._reviving.get(name):
                await self._die(name)
                nursery.start_soon(self._come_again, name, chance.random() * 2 * SESSION_S)
            case "pause" if world.is_running(name) and world.is_awake(name):
                world.pause(name)
                nursery.start_soon(self._wake, name, chance.random() * 2 * SESSION_S)
            case "cut":
                world.switch.cut |= {(name, other), (other, name)}
            case "cut one way":
                world.switch.cut.add((name, other))
            case "heal":
                world.heal()
            case "lossy":
                world.loss = chance.random() * 0.2
            case "slow":
                world.slow = {name}
            case "catalog":
                world.catalog_of(name).failing = chance.random() * 0.5
            case _:
                self._calm()

    def _calm(self) -> None:
        self._world.loss, self._world.slow = 0.0, set()
        for name in self._names:
            self._world.catalog_of(name).failing = 0.0

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
        self._calm()
        for name in self._names:
            self._world.resume(name)
            await self._revive(name)
        self._world.heal()
        await pass_time(PEACE_S)
        self._is_over = True
        await pass_time(PEACE_S)
        for name in self._names:
            for vdisk in VDISKS:
                await self._look(name, vdisk)

    async def _look(self, name: str, vdisk: int) -> None:
        """Nothing may stand in the way any more."""
        reader = Client(
            NodeFiles(self._world, name),
            vdisk,
            self._histories[vdisk],
            chance=self._chance,
            values=self._values[vdisk],
        )
        await reader.read_all()
        if reader.refused:
            self._failures.append(f"vdisk {vdisk} cannot be read on {name} though all is well")


def simulate(seed: int) -> Outcome:
    """One run; the same seed, the same outcome."""

    async def main(chance: random.Random) -> Outcome:
        with tempfile.TemporaryDirectory(dir=MEMORY, prefix="vdiskfs-simulation-") as folder:
            world = World(pathlib.Path(folder), chance)
            async with world.running(), trio.open_nursery() as nursery:
                outcome = await Scenario(world, chance).run(nursery)
                nursery.cancel_scope.cancel()
            return outcome

    return replace(run_seeded(main, seed), seed=seed)
