"""One real S3 server for all tests, and a pool of each test's own in it."""

import pathlib
from collections.abc import Iterator

import pytest

from tests.mounted_pool import MountedPool
from tests.s3.object_server import ACCESS, SECRET, ObjectServer


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectServer]:
    with ObjectServer(tmp_path_factory.mktemp("ceph") / "c") as server:
        server.make_bucket("disks")
        yield server


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


@pytest.fixture
def pool(tmp_path: pathlib.Path, server: ObjectServer) -> Iterator[MountedPool]:
    made = MountedPool(tmp_path)
    made.url = f"s3://disks/{tmp_path.name}"
    made.run("format", made.url, "--endpoint", server.endpoint, "--catalog", f"sqlite:{tmp_path}/catalog")
    yield made
    made.tear_down()
    assert made.stray_errors() == []
    texts = [*made.log_lines(), (tmp_path / "catalog").read_bytes().decode(errors="replace")]
    assert not [text for text in texts if SECRET in text or ACCESS in text]
