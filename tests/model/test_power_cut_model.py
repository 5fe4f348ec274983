"""Power cuts at random moments: what was flushed is there, every block is whole and one that was written."""

import itertools
import pathlib
import time

import pytest

from tests.model.power_cut_walk import PowerCutWalk
from tests.model.test_vdisk_model import TINY, shrink
from tests.replication.rig import run


def walk(folder: pathlib.Path, seed: int, *, lives: int = 8, tiny: bool = False) -> None:
    run(lambda: PowerCutWalk(folder, seed, **(TINY if tiny else {})).walk(lives, 40))


@pytest.mark.parametrize("tiny", [False, True], ids=["roomy", "tiny"])
@pytest.mark.parametrize("number", range(1, 4))
def test_power_cuts_at_random_leave_what_was_flushed_and_whole_blocks(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, number: int, tiny: bool
) -> None:
    if tiny:
        shrink(monkeypatch)
    walk(tmp_path, number, tiny=tiny)


@pytest.mark.parametrize("tiny", [False, True], ids=["roomy", "tiny"])
def test_power_cuts_leave_what_was_flushed_for_as_long_as_asked(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, seed: int, seconds: float | None, tiny: bool
) -> None:
    if tiny:
        shrink(monkeypatch)
    end = time.monotonic() + (seconds or 0)
    for number in itertools.count(seed if seconds else 5):
        print(f"seed={number}")
        (tmp_path / str(number)).mkdir()
        walk(tmp_path / str(number), number, lives=12, tiny=tiny)
        if time.monotonic() >= end:
            break
