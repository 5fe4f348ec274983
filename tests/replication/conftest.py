"""The core on a temporary pool, sound or failing on demand; some modules' tests run over an object pool as well."""

import pathlib
from types import CodeType

import pytest

from tests.replication.faults import FaultyRig
from tests.replication.faulty_objects import put_objects_below
from tests.replication.rig import Rig

OVER_OBJECTS = {
    "test_cloning",
    "test_collector",
    "test_compaction",
    "test_follower",
    "test_recovery",
    "test_replay",
    "test_rollback",
    "test_snapshot_kills",
    "test_snapshots",
    "test_transfers",
}
"""Modules whose tests run twice, but for those that look into a directory pool's files."""
LAGGING = {"test_follower", "test_recovery", "test_transfers"}
"""Those whose tests run with durability ``node`` too."""
_FILES = {
    "group_files",
    "pool_path",
    "group_path",
    "targets",
    "DirectoryPool",
    "format_pool",
    "compacted_groups",
}
_READS_ON = {"test_a_file_read_on_a_deposed_owner_goes_on_at_the_last_version_that_counts"}
"""What was flushed may be void there, so that this fails too."""
_COUNTS_DISK_BLOCKS = {"test_what_cannot_be_moved_at_once_is_moved_in_rounds"}


@pytest.fixture
def rig(tmp_path: pathlib.Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def faulty(tmp_path: pathlib.Path) -> FaultyRig:
    return FaultyRig(tmp_path)


@pytest.fixture(autouse=True)
def pool_kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What pool the rigs have: "directory", "objects", or "lagging objects", with durability ``node``."""
    kind: str = getattr(request, "param", "directory")
    if kind != "directory":
        put_objects_below(monkeypatch, flush_here=kind == "lagging objects")
    return kind


def _names(code: CodeType) -> set[str]:
    inner = (_names(const) for const in code.co_consts if isinstance(const, CodeType))
    return set(code.co_names).union(*inner)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.module.__name__.rpartition(".")[2] in OVER_OBJECTS:
        own = _names(metafunc.function.__code__) & _FILES or metafunc.function.__name__ in _COUNTS_DISK_BLOCKS
        kinds = ["directory"] if own else ["directory", "objects"]
        if (
            not own
            and metafunc.function.__name__ not in _READS_ON
            and metafunc.module.__name__.rpartition(".")[2] in LAGGING
        ):
            kinds.append("lagging objects")
        metafunc.parametrize("pool_kind", kinds, indirect=True)
