"""Which catalog a pool has, and formatting one whose catalog is an etcd."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from metadata import etcd_calls
from metadata.catalog import inode_key
from metadata.errors import Corrupt, Exists, InvalidRequest, NotFound, Unavailable
from metadata.ids import group_id
from metadata.index import Index
from metadata.units import BLOCK_BYTES
from replication import pool_directory
from replication.caches import FifoCache
from replication.groups import GroupSet, block_checksums
from replication.pool_catalog import check_catalog, open_catalog, read_address
from replication.pool_directory import format_pool
from tests.etcd_members import EtcdMembers, free_ports
from tests.mounted_pool import package_environment


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


def test_what_a_host_s_cache_has_of_before_is_read_again(tmp_path: pathlib.Path, etcd: EtcdMembers) -> None:
    pool = format_pool(str(tmp_path / "pool"), catalog=etcd.url)
    group = group_id(1, 0)
    written = pool.create_group(16, group)
    written.write(b"a" * BLOCK_BYTES, 0)
    before, path = written.fd, pathlib.Path(written.path)
    path.rename(tmp_path / "before")  # as a cache: who has it open sees this one
    path.write_bytes(b"b" * 2 * BLOCK_BYTES)
    view = memoryview(bytearray(2 * BLOCK_BYTES))
    assert written.read(view, 0) == BLOCK_BYTES
    assert written.renew(0, 2)
    assert written.fd == before
    assert written.read(view, 0) == 2 * BLOCK_BYTES
    assert bytes(view) == b"b" * 2 * BLOCK_BYTES
    assert not os.get_inheritable(written.fd)
    path.unlink()
    assert not written.renew(0, 2)
    assert written.read(view, 0) == 2 * BLOCK_BYTES
    written.close()
    assert not written.renew(0, 2)


def test_a_block_that_a_cache_has_of_before_is_no_damage(tmp_path: pathlib.Path, etcd: EtcdMembers) -> None:
    pool = format_pool(str(tmp_path / "pool"), catalog=etcd.url)
    place = group_id(1, 0) << 16
    written = pool.create_group(16, group_id(1, 0))
    path = pathlib.Path(written.path)
    path.rename(tmp_path / "before")
    block = os.urandom(BLOCK_BYTES)
    path.write_bytes(block)
    index = Index(str(tmp_path / "index"))
    groups = GroupSet(16, pool, index=index, cache=FifoCache(16))
    groups.files[group_id(1, 0)] = written
    view = memoryview(bytearray(BLOCK_BYTES))
    groups.read_run(view, place, block_checksums(memoryview(block), written.seed))
    assert bytes(view) == block
    with pytest.raises(Corrupt, match="fails its checksum"):
        groups.read_run(view, place, block_checksums(memoryview(bytes(BLOCK_BYTES)), written.seed))
    written.close()
    index.close()


def test_what_speaks_to_etcd_is_loaded_only_for_a_pool_that_needs_it() -> None:
    probe = "import sys, fusefs.node; print([name for name in ('h11', 'metadata.catalog_etcd') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe], env=package_environment(), capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
