"""The byte fuzzers' slice: every input of the corpus, and some at random, within bounds; ``make fuzz-bytes`` for more."""

import pathlib
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator

import pytest

from tests.fuzzing import mutation, requests, source, stored, targets

PEAK_BYTES = 48 << 20
"""No input of some KiB needs more; the largest record's buffer would be 64 MiB."""
SLOW = {"tails": 10, "requests": 12, "credentials": 40}
INPUTS = 120
CORPUS_BYTES_MAX = 96 << 10


@pytest.fixture(autouse=True)
def _folder(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(source.FOLDER_VARIABLE, str(tmp_path))
    yield
    requests.stop()
    stored.close()
    stored.folder.cache_clear()


@pytest.mark.parametrize("name", targets.NAMES)
def test_no_bytes_crash_hang_fill_memory_or_pass_for_others(name: str, seed: int) -> None:
    run, corpus, chance = targets.target(name), targets.read_corpus(name), random.Random(seed)
    run(b"")
    inputs = [*corpus, *(mutation.mutate(corpus, chance) for _ in range(SLOW.get(name, INPUTS)))]
    tracemalloc.start()
    try:
        for data in inputs:
            run(data)
        assert tracemalloc.get_traced_memory()[1] < PEAK_BYTES
    finally:
        tracemalloc.stop()


def test_the_corpus_is_small_and_each_target_has_one() -> None:
    sizes = {path.stem: path.stat().st_size for path in targets.CORPUS.iterdir()}
    assert set(sizes) == set(targets.NAMES)
    assert sum(sizes.values()) < CORPUS_BYTES_MAX


def test_the_driver_counts_what_it_ran_and_shows_how_to_run_one_input_again(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzzing.driver", "--plain", "--minutes", "0.005", "--target", "rows"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "rows " in done.stdout
    assert int(done.stdout.split("executions")[-2].split()[-1]) >= len(targets.read_corpus("rows"))
