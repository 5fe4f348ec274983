"""One real Ceph cluster for all tests, and a pool of each test's own in it."""

import pathlib
from collections.abc import Iterator

import pytest

from tests.ceph_cluster import CephCluster
from tests.mounted_pool import MountedPool

OSDS, COPIES = 3, 2
"""The loss of one costs a pause."""


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CephCluster]:
    with CephCluster(
        tmp_path_factory.mktemp("ceph") / "c", osds=OSDS, copies=COPIES, osd_bytes=3 << 30
    ) as cluster:
        cluster.make_pool("disks")
        yield cluster


@pytest.fixture
def pool(
    tmp_path: pathlib.Path, cluster: CephCluster, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MountedPool]:
    monkeypatch.setenv("CEPH_CONF", str(cluster.configuration))
    made = MountedPool(tmp_path)
    made.url = f"rados://disks/{tmp_path.name}"
    made.run("format", made.url, "--catalog", f"sqlite:{tmp_path}/catalog")
    yield made
    made.tear_down()
    assert made.stray_errors() == []
