"""The same seed gives the same schedule, another seed another."""

import random

import trio

from tests.simulation.deterministic import run_seeded
from tests.simulation.simulated_threads import SimulatedThreads, pass_time


async def _race(chance: random.Random) -> list[tuple[float, int]]:
    seen: list[tuple[float, int]] = []

    async def step(number: int) -> None:
        for _ in range(5):
            await (pass_time(chance.random()) if chance.random() < 0.5 else trio.lowlevel.checkpoint())
            seen.append((round(trio.current_time(), 9), number))

    begun = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(step, number)
    return [(round(at - begun, 9), number) for at, number in seen]


def test_a_seed_is_a_schedule() -> None:
    assert run_seeded(_race, 7) == run_seeded(_race, 7)
    assert run_seeded(_race, 7) != run_seeded(_race, 8)


def test_simulated_threads_do_the_work_and_carry_its_errors() -> None:
    async def scenario(chance: random.Random) -> None:
        async with trio.open_nursery() as nursery:
            threads = SimulatedThreads(nursery, lambda: chance.random())
            assert await threads.run(lambda: 7) == 7
            try:
                await threads.run(lambda: 1 // 0)
            except ZeroDivisionError:
                return
            raise AssertionError

    run_seeded(scenario, 1)


def test_work_of_a_node_that_died_is_not_done() -> None:
    async def scenario(chance: random.Random) -> list[int]:
        done: list[int] = []
        async with trio.open_nursery() as nursery:
            threads = SimulatedThreads(nursery, lambda: 1.0)
            threads.submit(lambda: done.append(1), lambda result, error: None)
            await pass_time(0.5)
            threads.die()
        return done

    assert run_seeded(scenario, 1) == []
