"""The random walks of the vdisk and snapshot models, over an object pool."""

import pathlib
import random

import pytest

from replication import object_groups, object_lag, object_sending, object_tables
from replication.librados import Change
from replication.object_lag import Trails
from replication.object_store import Lost
from replication.pool_objects import format_object_pool
from replication.rados_store import RadosStore
from tests.model.test_vdisk_model import shrink
from tests.model.vdisk_walk import Walk
from tests.replication.faulty_objects import FaultyObjectRig
from tests.replication.objects import URL
from tests.replication.rados_in_memory import RadosInMemory
from tests.replication.rig import expect_errors, run

TINY = {"rows_max": 40, "segments_max": 16, "journal_capacity": 1100}


class FlakyRig(FaultyObjectRig):
    """A store that loses one request in thirty, and the answers of as many that it has done."""

    def _make(self) -> None:
        super()._make()
        chance = random.Random(1)

        def lose(what: str, key: str) -> None:
            if chance.random() < 0.03:
                raise Lost(f"connection reset call={what} key={key}")

        self.store.on_call = self.store.on_answer = lose


class RadosRig(FaultyObjectRig):
    """Ceph's way, over OSDs in memory that lose one change in forty before it is done, and one answer in forty."""

    def _make(self) -> None:
        objects, chance = RadosInMemory(), random.Random(1)
        self.store = RadosStore(objects)  # type: ignore[assignment]
        format_object_pool(URL, store=self.store).close()
        self.state_path.mkdir()

        def lose(name: str, change: Change) -> None:
            if chance.random() < 0.05:
                chance.choice((objects.failing, objects.forgetting))["change"] = 1

        objects.on_change = lose


class TinyCacheRig(FaultyObjectRig):
    """Nearly nothing may stay here."""

    cache_bytes = 1 << 20


def merge_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a walk writes is little."""
    monkeypatch.setattr(object_tables, "OPEN_SPANS_MAX", 6)
    monkeypatch.setattr(object_groups, "OPEN_SPANS_MAX", 6)
    monkeypatch.setattr(object_tables, "_FAN", 3)


@pytest.mark.parametrize(
    ("number", "rig"), [(4, FlakyRig), (5, FlakyRig), (6, FlakyRig), (7, RadosRig), (8, RadosRig)]
)
def test_random_operations_over_a_store_that_loses_requests_leave_what_the_model_says(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    rig: type[FaultyObjectRig],
) -> None:
    if rig is RadosRig:
        merge_soon(monkeypatch)
    monkeypatch.setattr(object_sending, "PART_BLOCKS", 16)
    monkeypatch.setattr(Walk, "rig_type", rig)
    run(lambda: Walk(tmp_path, number).walk(4, 50))
    expect_errors(caplog, "the index lags behind", "blocks that cannot be read stay")


@pytest.mark.parametrize("tiny", [False, True], ids=["roomy", "tiny"])
@pytest.mark.parametrize("number", range(1, 4))
def test_random_operations_over_objects_leave_what_the_model_says(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    tiny: bool,
) -> None:
    merge_soon(monkeypatch)
    monkeypatch.setattr(object_sending, "PART_BLOCKS", 16)
    monkeypatch.setattr(Walk, "rig_type", TinyCacheRig if tiny else FaultyObjectRig)
    if tiny:
        shrink(monkeypatch)
    run(lambda: Walk(tmp_path, number, **(TINY if tiny else {})).walk(5, 60))
    expect_errors(caplog, "the index lags behind", "blocks that cannot be read stay")


@pytest.mark.parametrize("rig", [FaultyObjectRig, FlakyRig], ids=["sound", "flaky"])
@pytest.mark.parametrize("number", range(7, 9))
def test_random_operations_with_durability_node_leave_what_the_model_says(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    rig: type[FaultyObjectRig],
) -> None:
    """Kills between a flush and the pool's having it: the next daemon of the node goes on."""
    monkeypatch.setattr(Trails, "flushes_here", lambda self, vdisk: True)
    monkeypatch.setattr(object_lag, "LOT_BLOCKS", 16)
    monkeypatch.setattr(object_sending, "PART_BLOCKS", 16)
    monkeypatch.setattr(Walk, "rig_type", rig)
    run(lambda: Walk(tmp_path, number).walk(4, 50))
    expect_errors(caplog, "the index lags behind", "blocks that cannot be read stay")
