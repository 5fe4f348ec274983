"""Random operations on the core against bytearrays: every way a node ends, small limits, failing disks.

Seeds are fixed; ``make fuzz SECONDS=...`` walks on with new ones, and SEED=... repeats a failure's.
"""

import itertools
import pathlib
import time

import pytest

from replication import (
    collector,
    commit,
    compaction,
    head,
    head_write,
    housekeeping,
    log,
    pool,
)
from tests.model.vdisk_walk import Walk
from tests.replication.rig import expect_errors, run

ROOMY: dict[str, int] = {}
TINY = {"rows_max": 40, "segments_max": 16, "journal_capacity": 1100}


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that a short walk meets all the time."""
    monkeypatch.setattr(log, "GROUP_BLOCKS", 400)
    monkeypatch.setattr(log, "STEP_BLOCKS_MAX", 128)
    monkeypatch.setattr(pool, "OPEN_FILES_MAX", 3)
    monkeypatch.setattr(compaction, "GROUP_BLOCKS", 400)
    monkeypatch.setattr(compaction, "MOVE_BLOCKS", 50)
    monkeypatch.setattr(compaction, "REPOINT_VBLOCKS", 1)
    monkeypatch.setattr(collector, "SEAL_BYTES_MIN", 100 << 10)
    for module in (commit, head, head_write, housekeeping):
        monkeypatch.setattr(module, "DIRTY_ROWS_MAX", 4)


def walk(folder: pathlib.Path, seed: int, *, lives: int = 5, steps: int = 60, tiny: bool = False) -> None:
    run(lambda: Walk(folder, seed, **(TINY if tiny else ROOMY)).walk(lives, steps))


@pytest.mark.parametrize("tiny", [False, True], ids=["roomy", "tiny"])
@pytest.mark.parametrize("number", range(1, 5))
def test_random_operations_leave_what_the_model_says(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    tiny: bool,
) -> None:
    if tiny:
        shrink(monkeypatch)
    walk(tmp_path, number, tiny=tiny)
    expect_errors(caplog, "the index lags behind", "blocks that cannot be read stay")


@pytest.mark.parametrize("tiny", [False, True], ids=["roomy", "tiny"])
def test_random_operations_leave_what_the_model_says_for_as_long_as_asked(
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
        expect_errors(caplog, "the index lags behind", "blocks that cannot be read stay")
        if time.monotonic() >= end:
            break
