"""Plants each mutant in a copy of the tree and runs its test: ``python -m tests.mutants.run [WORDS]``; a table.

Only mutants whose name or file holds the words, if there are any. First all their tests must pass without a mutant: a test
that fails anyway would kill everything. The mutants of the simulation are other ones (tests/simulation/mutants.py).
"""

import os
import pathlib
import queue
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from tests.mounted_pool import kill_processes, mountpoints
from tests.mutants.catalog import MUTANTS
from tests.mutants.planting import PACKAGES, Mutant, copy_tree, mutated, write_source

WORKERS = 2
TEST_S = 600.0
"""What takes longer hangs: the mutant is noticed. All tests together, before any mutant, stay below it."""
_PASSED, _FAILED = 0, 1
"""pytest's exit codes; any other is about the test and not about the mutant."""
_OPTIONS = "-x -q --no-header -p no:cacheprovider -o faulthandler_timeout=0 --hypothesis-seed=0"


class Verdict(StrEnum):
    """What became of a mutant."""

    KILLED = "killed"
    HANGS = "killed, hangs"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"
    """The test could not be run, or fails without the mutant."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One line of the table."""

    mutant: Mutant
    verdict: Verdict
    seconds: float
    said: str = ""

    @property
    def is_good(self) -> bool:
        return self.verdict in (Verdict.KILLED, Verdict.HANGS)


def judge(mutant: Mutant, folder: pathlib.Path) -> Outcome:
    """Plants a mutant in a copy, runs its test there, and takes it out again."""
    begun, path = time.monotonic(), folder / mutant.file
    source = path.read_text()
    write_source(path, mutated(source, mutant))
    try:
        exit_code, said = run_tests(mutant.test, folder)
    finally:
        write_source(path, source)
    known = {_PASSED: Verdict.SURVIVED, _FAILED: Verdict.KILLED, None: Verdict.HANGS}
    return Outcome(mutant, known.get(exit_code, Verdict.BROKEN), time.monotonic() - begun, said)


def run_tests(tests: str, folder: pathlib.Path) -> tuple[int | None, str]:
    """pytest's exit code, None if it did not end in time, and what it said; nothing is left mounted or running."""
    scratch = folder / "scratch"
    command = [
        sys.executable,
        "-m",
        "pytest",
        *_OPTIONS.split(),
        f"--basetemp={scratch}",
        *shlex.split(tests),
    ]
    # What runs of a mutant is no part of what tests run of the packages.
    unmeasured = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**unmeasured, "PYTHONPATH": str(folder), "PYTHONHASHSEED": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=TEST_S)
        return process.returncode, said
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        said, _ = process.communicate()
        return None, said
    finally:
        kill_processes(scratch)
        for path, _ in mountpoints(scratch):
            subprocess.run(["umount", "-l", path], check=False, capture_output=True)


def judge_all(mutants: Sequence[Mutant], scratch: pathlib.Path) -> list[Outcome]:
    """The outcomes, in order; several at a time, each worker in a copy of its own."""
    copies: queue.SimpleQueue[pathlib.Path] = queue.SimpleQueue()
    for number in range(WORKERS):
        copy = scratch / f"copy{number}"
        copy.mkdir()
        copy_tree(copy)
        copies.put(copy)
    broken = _broken_tests(mutants, copies)

    def one(mutant: Mutant) -> Outcome:
        if mutant.test in broken:
            outcome = Outcome(mutant, Verdict.BROKEN, 0.0, broken[mutant.test])
        else:
            copy = copies.get()
            try:
                outcome = judge(mutant, copy)
            finally:
                copies.put(copy)
        _say(line_of(outcome))
        return outcome

    with ThreadPoolExecutor(WORKERS) as workers:
        return list(workers.map(one, mutants))


def _broken_tests(mutants: Sequence[Mutant], copies: "queue.SimpleQueue[pathlib.Path]") -> dict[str, str]:
    """The tests that do not pass without a mutant, and what they say."""

    def one(test: str) -> tuple[int | None, str]:
        copy = copies.get()
        try:
            return run_tests(test, copy)
        finally:
            copies.put(copy)

    tests = list(dict.fromkeys(mutant.test for mutant in mutants))
    shares = [" ".join(tests[number::WORKERS]) for number in range(min(WORKERS, len(tests)))]
    with ThreadPoolExecutor(WORKERS) as workers:
        if all(exit_code == _PASSED for exit_code, _ in workers.map(one, shares)):
            return {}
        found = dict(zip(tests, workers.map(one, tests), strict=True))  # which of them is it?
    return {test: said for test, (exit_code, said) in found.items() if exit_code != _PASSED}


def line_of(outcome: Outcome) -> str:
    """A mutant's line of the table."""
    mutant, tests = outcome.mutant, " ".join(test.rpartition("::")[2] for test in outcome.mutant.test.split())
    return f"{outcome.verdict:14}{outcome.seconds:6.1f} s  {mutant.file}: {mutant.name} | {mutant.breaks} | {tests}"


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(words: Sequence[str]) -> int:
    """The exit code: 1 if any mutant lives."""
    chosen = [mutant for mutant in MUTANTS if all(word in f"{mutant.name} {mutant.file}" for word in words)]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutants") as scratch:
        outcomes = judge_all(chosen, pathlib.Path(scratch))
    for outcome in outcomes:
        if not outcome.is_good:
            _say(f"\n{line_of(outcome)}\n{outcome.said[-3000:]}")
    good = sum(outcome.is_good for outcome in outcomes)
    by_package = ", ".join(
        f"{package} {sum(mutant.file.startswith(package) for mutant in chosen)}" for package in PACKAGES[:-1]
    )
    _say(f"{len(outcomes)} mutants ({by_package}), {good} killed, in {time.monotonic() - begun:.0f} s")
    return int(good < len(outcomes) or not outcomes)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        sys.exit(main(sys.argv[1:]))
