"""Random calls on real mounts, against an ordinary folder: ``make fuzz MINUTES= SEED=``."""

import pathlib

from tests.calls.file_machine import fuzz
from tests.calls.mounted_files import run_on
from tests.mounted_nodes import MountedNodes
from tests.mounted_pool import MountedPool

SHORT_S, SHORT_SEED = 6.0, 7
"""Of the slice in every run, which is the same each time."""


def test_any_calls_answer_on_one_node_as_in_an_ordinary_folder(
    mounted: MountedPool, tmp_path: pathlib.Path, seed: int, seconds: float | None
) -> None:
    run = run_on([mounted], tmp_path / "reference")
    fuzz(run, seed=seed if seconds else SHORT_SEED, seconds=seconds or SHORT_S)
    print(run.describe())
    assert mounted.json("check", mounted.mountpoint)["findings"] == []


def test_any_calls_answer_on_three_nodes_as_in_one_ordinary_folder(
    nodes: MountedNodes, tmp_path: pathlib.Path, seed: int, seconds: float | None
) -> None:
    mounts = [nodes.node(name) for name in "abc"]
    run = run_on(mounts, tmp_path / "reference")
    fuzz(run, seed=seed if seconds else SHORT_SEED, seconds=seconds or SHORT_S)
    print(run.describe())
    for mount in mounts:
        assert mount.json("check", mount.mountpoint)["findings"] == []
