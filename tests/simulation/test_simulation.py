"""A slice of the simulation: ``make simulate`` runs as many seeds as it is asked to."""

import subprocess
import sys

import pytest

from tests.mounted_pool import package_environment

SEEDS = "1-120"
TIMEOUT_S = 1200
MUTANTS = "acknowledged_before_durable,no_waiting_for_subscribers,the_newest_publication_first"
MUTANT_SEEDS = "1-20"


def simulated(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.simulation.run", *arguments]
    environment = {**package_environment(), "PYTHONHASHSEED": "0"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)


def test_no_seed_breaks_a_promise() -> None:
    done = simulated(SEEDS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("seed", ["7", "20"])
def test_a_seed_replays_to_the_same_trace(seed: str) -> None:
    script = f"from tests.simulation.scenario import simulate; print(*simulate({seed}).trace, sep='\\n')"
    environment = {**package_environment(), "PYTHONHASHSEED": "0"}
    traces = {
        subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(traces) == 1
    assert traces != {""}


def test_the_checker_finds_bugs_that_were_planted() -> None:
    done = simulated(MUTANT_SEEDS, MUTANTS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("found at seed") == 1 + MUTANTS.count(",")
