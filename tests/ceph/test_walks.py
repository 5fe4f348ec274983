"""The random walks of the vdisk and snapshot models, over a pool of a real Ceph cluster. `make test-ceph`."""

import pathlib

import pytest

from replication import object_sending
from replication.pool_objects import format_object_pool
from replication.pool_url import canonical_url
from replication.rados_store import connect
from tests.ceph_cluster import CephCluster
from tests.model.test_object_pool_model import merge_soon
from tests.model.vdisk_walk import Walk
from tests.replication.faulty_objects import FaultyObjectRig
from tests.replication.objects import URL
from tests.replication.rig import expect_errors, run


@pytest.mark.parametrize("number", range(20, 24))
def test_random_operations_over_rados_leave_what_the_model_says(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    cluster: CephCluster,
) -> None:
    class ClusterRig(FaultyObjectRig):
        def _make(self) -> None:
            url = canonical_url(
                f"rados://disks/{tmp_path.name}", options=[("conf", str(cluster.configuration))]
            )
            self.store = connect(url)  # type: ignore[assignment]
            format_object_pool(URL, store=self.store).close()
            self.state_path.mkdir()

    merge_soon(monkeypatch)
    monkeypatch.setattr(object_sending, "PART_BLOCKS", 16)
    monkeypatch.setattr(Walk, "rig_type", ClusterRig)
    run(lambda: Walk(tmp_path, number).walk(6, 80))
    expect_errors(caplog, "the index lags behind", "blocks that cannot be read stay")
