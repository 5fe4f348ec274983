"""Searches small histories for a power cut that breaks a promise: ``python -m tests.crash.search --length 3 --minutes 10``.

Histories of one letter first, then all of two, and so on (tests/crash/small_histories.py has the letters); of the
longest, if the time does not suffice, a choice at random. Prints how many histories and states there were, and
each history with a state that is wrong: it is run again with ``--history LETTERS``.
"""

import argparse
import logging
import os
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import trio

from tests.crash.small_histories import ALPHABET, Searched, StateRig, search, sequences, small_limits

LOT = 8
"""Histories handed to a process at once."""
TELL_HISTORIES = 100
MEMORY = pathlib.Path("/dev/shm")


def look(histories: Sequence[str], *, stride: int = 1, until: float | None = None) -> Searched:
    """Searches these, as long as there is time; in a process of its own, or a test's."""
    searched = Searched()

    async def main() -> None:
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder, small_limits():
            place = StateRig(pathlib.Path(folder))
            try:
                for letters in histories:
                    if until is None or time.monotonic() < until:
                        await search(place, letters, searched, stride=stride)
            finally:
                place.index.end()

    trio.run(main)
    return searched


def _quiet_look(histories: Sequence[str], stride: int, until: float) -> Searched:
    logging.disable(logging.CRITICAL)
    return look(histories, stride=stride, until=until)


def run(length: int, *, alphabet: str, minutes: float, seed: int, stride: int = 1) -> Searched:
    """The search by all processors; tells of it."""
    begun, total = time.monotonic(), Searched()
    until = begun + minutes * 60
    with ProcessPoolExecutor(os.cpu_count()) as processes:
        for count in range(1, length + 1):
            wanted = list(sequences(count, alphabet))
            random.Random(seed).shuffle(wanted)
            lots = [wanted[at : at + LOT] for at in range(0, len(wanted), LOT)]
            before = total.histories
            for searched in processes.map(_quiet_look, lots, [stride] * len(lots), [until] * len(lots)):
                total.histories += searched.histories
                total.states += searched.states
                total.failures += searched.failures
                for line in searched.failures:
                    print(line[:1000], flush=True)
                if (
                    total.histories // TELL_HISTORIES
                    > (total.histories - searched.histories) // TELL_HISTORIES
                ):
                    print(f"... {total.histories} histories, {total.states} states", flush=True)
            whole = "all" if time.monotonic() < until else "a choice"
            print(f"length {count}: {total.histories - before} histories, {whole}", flush=True)
    spent_s = time.monotonic() - begun
    rate = total.states / spent_s * 60
    print(
        f"{total.histories} histories, {total.states} states, {rate:.0f} a minute, {len(total.failures)} wrong"
    )
    return total


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--length", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--letters", default=ALPHABET, help="an alphabet")
    parser.add_argument("--stride", type=int, default=1, help="bring up one state of so many")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--history", help="only this one")
    asked = parser.parse_args()
    if asked.history:
        searched = look([asked.history], stride=asked.stride)
        print(*searched.failures, f"{searched.states} states", sep="\n")
    else:
        print(f"seed={asked.seed}")
        searched = run(
            asked.length, alphabet=asked.letters, minutes=asked.minutes, seed=asked.seed, stride=asked.stride
        )
    return 1 if searched.failures else 0


if __name__ == "__main__":
    sys.exit(main())
