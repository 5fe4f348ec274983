"""Runs seeds: ``python -m tests.simulation.run FIRST-LAST [MUTANT]``; prints the seeds that fail, with what is wrong.

With PYTHONHASHSEED=0, which ``make simulate`` and the tests set, a seed gives the same run in every process.
"""

import contextlib
import logging
import sys
import time
from concurrent.futures import ProcessPoolExecutor

from tests.simulation.mutants import planted
from tests.simulation.scenario import simulate

PROCESSES = 2


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


def run(first: int, last: int, mutant: str | None = None, *, stop_at_first: bool = False) -> list[int]:
    """The seeds that fail; tells of each."""
    begun, failed, operations = time.monotonic(), [], 0
    with ProcessPoolExecutor(PROCESSES) as processes:
        runs = [processes.submit(verdict, seed, mutant) for seed in range(first, last + 1)]
        for one in runs:
            seed, violations, done = one.result()
            operations += done
            if violations:
                failed.append(seed)
                sys.stdout.write(f"seed {seed}: " + "; ".join(violations[:3]) + "\n")
                sys.stdout.flush()
                if stop_at_first:
                    processes.shutdown(cancel_futures=True)
                    return failed
    wall_s = time.monotonic() - begun
    sys.stdout.write(
        f"{last + 1 - first} seeds, {len(failed)} failed, {operations} operations in {wall_s:.0f} s\n"
    )
    return failed


def main(arguments: list[str]) -> int:
    first, _, last = arguments[0].partition("-")
    mutant = arguments[1] if len(arguments) > 1 else None
    failed = run(int(first), int(last or first), mutant, stop_at_first=mutant is not None)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
