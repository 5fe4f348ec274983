"""Which catalog a pool has, and formatting one whose catalog is an etcd."""

import json
import pathlib
from collections.abc import Iterator

import pytest
import trio

from metadata import etcd_calls
from metadata.catalog import inode_key
from metadata.errors import Exists, InvalidRequest, NotFound, Unavailable
from replication import pool_directory
from replication.pool_catalog import check_catalog, open_catalog, read_address
from replication.pool_directory import format_pool
from tests.etcd_members import EtcdMembers, free_ports


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    with EtcdMembers(tmp_path_factory.mktemp("etcd")) as members:
        yield members


def test_a_pool_remembers_where_its_catalog_is(tmp_path: pathlib.Path, etcd: EtcdMembers) -> None:
    pool = format_pool(str(tmp_path / "pool"), catalog=etcd.url)
    assert (tmp_path / "pool" / "catalog").read_text() == etcd.url + "\n"
    assert not (tmp_path / "pool" / "catalog.sqlite").exists()

    async def main() -> None:
        catalog = await open_catalog(pool.path, pool.pool_id)
        rows, _ = await catalog.read(inode_key(1))
        assert len(rows) == 1
        await catalog.aclose()

    trio.run(main)
    check_catalog(pool.path, pool.pool_id)
    with pytest.raises(NotFound, match="knows nothing of this pool"):
        check_catalog(pool.path, "another")
    with pytest.raises(Exists):
        format_pool(pool.path, catalog=etcd.url)


def test_a_pool_without_an_address_has_its_catalog_inside(tmp_path: pathlib.Path) -> None:
    pool = format_pool(str(tmp_path / "pool"))
    assert read_address(pool.path) is None
    check_catalog(pool.path, pool.pool_id)


def test_nothing_is_begun_where_the_catalog_does_not_answer(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_calls.EtcdCalls.call, "__kwdefaults__", {"deadline_s": 0.5})
    (closed,) = free_ports(1)
    with pytest.raises(Unavailable):
        format_pool(str(tmp_path / "pool"), catalog=f"etcd://127.0.0.1:{closed}")
    with pytest.raises(InvalidRequest):
        format_pool(str(tmp_path / "pool"), catalog="http://127.0.0.1")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_cannot_be_written_leaves_nothing_in_the_catalog(
    tmp_path: pathlib.Path, etcd: EtcdMembers, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: str, content: bytes) -> None:
        raise PermissionError

    before = etcd.ctl("get", "--prefix", "--keys-only", "/vdiskfs/")
    monkeypatch.setattr(pool_directory, "write_durably", fail)
    with pytest.raises(InvalidRequest):
        format_pool(str(tmp_path / "pool"), catalog=etcd.url)
    assert etcd.ctl("get", "--prefix", "--keys-only", "/vdiskfs/") == before


def test_the_pool_s_own_file_says_nothing_of_the_catalog(tmp_path: pathlib.Path, etcd: EtcdMembers) -> None:
    pool = format_pool(str(tmp_path / "pool"), catalog=etcd.url)
    facts = json.loads((tmp_path / "pool" / "vdiskfs.pool").read_text())
    assert facts["pool"] == pool.pool_id
    assert set(facts) == {"format", "pool", "salt"}
