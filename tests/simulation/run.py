"""Runs seeds: ``python -m tests.simulation.run FIRST-LAST [MUTANT]``; prints the seeds that fail, with what is wrong.

With a mutant, or ``all`` of them, or several with commas between: at which seed each is found, in one line each.

With PYTHONHASHSEED=0, which ``make simulate`` and the tests set, a seed gives the same run in every process.
"""

import contextlib
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.scenario import simulate

PROCESSES = 2
VIOLATIONS_SHOWN = 3


def verdict(seed: int, mutant: str | None) -> tuple[int, list[str], int]:
    """A seed, what is wrong with its run, and how many operations succeeded."""
    logging.disable(logging.CRITICAL)
    with planted(mutant) if mutant else contextlib.nullcontext():
        try:
            outcome = simulate(seed)
        except Exception as exc:  # of the code under test: as good as a violation
            return seed, [_innermost(exc)], 0
    return seed, outcome.violations, outcome.done


def _innermost(exc: BaseException) -> str:
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return f"ended by {exc!r}"


def run(first: int, last: int) -> list[int]:
    """The seeds that fail; tells of each."""
    begun, failed, operations = time.monotonic(), [], 0
    with ProcessPoolExecutor(PROCESSES) as processes:
        runs = [processes.submit(verdict, seed, None) for seed in range(first, last + 1)]
        for one in runs:
            seed, violations, done = one.result()
            operations += done
            if violations:
                failed.append(seed)
                _say(f"seed {seed}: " + "; ".join(violations[:VIOLATIONS_SHOWN]))
    wall_s = time.monotonic() - begun
    _say(f"{last + 1 - first} seeds, {len(failed)} failed, {operations} operations in {wall_s:.0f} s")
    return failed


def find(first: int, last: int, mutant: str) -> int | None:
    """The first seed that finds a mutant; tells of it."""
    begun, found = time.monotonic(), None
    with ProcessPoolExecutor(PROCESSES) as processes:
        runs = [processes.submit(verdict, seed, mutant) for seed in range(first, last + 1)]
        for one in runs:
            seed, violations, _ = one.result()
            if violations:
                found = seed
                _say(f"{mutant}: found at seed {seed} in {time.monotonic() - begun:.0f} s: {violations[0]}")
                break
        processes.shutdown(cancel_futures=True)
    if found is None:
        _say(f"{mutant}: NOT FOUND in seeds {first}-{last}")
    return found


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(arguments: list[str]) -> int:
    first, _, last = arguments[0].partition("-")
    seeds = int(first), int(last or first)
    if len(arguments) < 2:
        return bool(run(*seeds))
    mutants = list(MUTANTS) if arguments[1] == "all" else arguments[1].split(",")
    found = [find(*seeds, mutant) for mutant in mutants]
    return None in found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
