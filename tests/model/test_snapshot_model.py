"""Snapshots, clones, rollbacks and flattening at random, against full copies: tests/model/snapshot_walk.py.

Seeds are fixed; ``make fuzz SECONDS=...`` walks on with new ones, and SEED=... repeats a failure's.
"""

import itertools
import pathlib
import time

import pytest

from tests.model.snapshot_walk import SnapshotWalk
from tests.model.test_vdisk_model import ROOMY, TINY, shrink
from tests.replication.rig import expect_errors, run

EXPECTED = ("the index lags behind", "blocks that cannot be read stay")


def walk(folder: pathlib.Path, seed: int, *, lives: int = 5, steps: int = 60, tiny: bool = False) -> None:
    run(lambda: SnapshotWalk(folder, seed, **(TINY if tiny else ROOMY)).walk(lives, steps))


@pytest.mark.parametrize("tiny", [False, True], ids=["roomy", "tiny"])
@pytest.mark.parametrize("number", range(1, 5))
def test_random_histories_of_snapshots_leave_what_the_model_says(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    tiny: bool,
) -> None:
    if tiny:
        shrink(monkeypatch)
    walk(tmp_path, number, tiny=tiny)
    expect_errors(caplog, *EXPECTED)


@pytest.mark.parametrize("tiny", [False, True], ids=["roomy", "tiny"])
def test_random_histories_of_snapshots_leave_what_the_model_says_for_as_long_as_asked(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    seed: int,
    seconds: float | None,
    tiny: bool,
) -> None:
    if tiny:
        shrink(monkeypatch)
    end = time.monotonic() + (seconds or 0)
    for number in itertools.count(seed if seconds else 5):
        print(f"seed={number}")
        (tmp_path / str(number)).mkdir()
        walk(tmp_path / str(number), number, lives=8, steps=100, tiny=tiny)
        expect_errors(caplog, *EXPECTED)
        if time.monotonic() >= end:
            break
