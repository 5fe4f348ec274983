"""The core on a temporary pool, sound or failing on demand."""

import pathlib

import pytest

from tests.replication.faults import FaultyRig
from tests.replication.rig import Rig


@pytest.fixture
def rig(tmp_path: pathlib.Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def faulty(tmp_path: pathlib.Path) -> FaultyRig:
    return FaultyRig(tmp_path)
