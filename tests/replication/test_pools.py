"""Pools by their address: a directory or an object store's, made whole or not at all."""

import pathlib

import pytest

from metadata.durability import ATTRIBUTE
from metadata.errors import Exists, InvalidRequest, NotFound
from metadata.ids import VdiskId
from replication.pool_catalog import authority_folder, catalog_file, check_catalog, read_address
from replication.pool_directory import DirectoryPool
from replication.pool_objects import ObjectPool
from replication.pools import format_pool, open_pool, resolve_pool


@pytest.fixture
def url(tmp_path: pathlib.Path) -> str:
    """An object store's: on this disk."""
    (tmp_path / "store").mkdir()
    return f"file://{tmp_path}/store"


def test_a_directory_is_an_absolute_path_without_links(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").symlink_to("pool")
    monkeypatch.chdir(tmp_path)
    assert resolve_pool("there") == resolve_pool("./pool/") == str(tmp_path / "pool")


def test_an_object_store_is_its_address_with_what_was_told_besides() -> None:
    assert resolve_pool("s3://b/p/") == "s3://b/p"
    assert resolve_pool("s3://b", endpoint="http://h") == "s3://b?endpoint=http%3A%2F%2Fh"


@pytest.mark.parametrize("where", ["http://b/p", "S3://b"])
def test_what_is_neither_is_refused(where: str) -> None:
    with pytest.raises(InvalidRequest, match="not a directory, nor the address of an object store"):
        resolve_pool(where)


def test_a_directory_has_no_endpoint_and_no_durability(tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidRequest, match="not a directory"):
        resolve_pool(str(tmp_path), endpoint="http://h")
    with pytest.raises(InvalidRequest, match="durability is chosen for pools in object stores"):
        format_pool(str(tmp_path / "pool"), durability="node")
    assert not (tmp_path / "pool").exists()


def test_each_kind_is_opened_as_what_it_is(tmp_path: pathlib.Path, url: str) -> None:
    where = str(tmp_path / "pool")
    format_pool(where).close()
    pool = open_pool(where)
    assert isinstance(pool, DirectoryPool)
    pool.close()
    format_pool(url, catalog=f"sqlite:{tmp_path}/catalog", durability="node").close()
    (tmp_path / "state").mkdir()
    remote = open_pool(url, state=str(tmp_path / "state"))
    assert isinstance(remote, ObjectPool)
    assert remote.vdisks() == list[VdiskId]()
    remote.close()
    with pytest.raises(NotFound):
        open_pool(f"{url}/elsewhere", state=str(tmp_path / "state"))


def test_an_object_pool_says_where_its_catalog_is(tmp_path: pathlib.Path, url: str) -> None:
    file = tmp_path / "catalog"
    pool = format_pool(url, catalog=f"sqlite:{tmp_path}/x/../catalog", durability="node")
    assert read_address(url) is None
    assert catalog_file(url) == file
    assert authority_folder(url) == f"{file}.cluster"
    check_catalog(url, pool.pool_id)
    assert ATTRIBUTE in file.read_bytes()
    pool.close()


def test_a_pool_is_made_once_and_not_without_a_catalog(tmp_path: pathlib.Path, url: str) -> None:
    with pytest.raises(InvalidRequest, match="an object store holds no catalog"):
        format_pool(url)
    format_pool(url, catalog=f"sqlite:{tmp_path}/catalog").close()
    with pytest.raises(Exists, match="this is a pool already"):
        format_pool(url, catalog=f"sqlite:{tmp_path}/another")
    assert not (tmp_path / "another").exists()


@pytest.mark.parametrize(
    ("catalog", "error"),
    [
        ("sqlite:{0}/taken", Exists),
        ("sqlite:{0}/missing/catalog", InvalidRequest),
        ("http://h", InvalidRequest),
    ],
)
def test_a_catalog_that_cannot_be_made_leaves_no_pool(
    catalog: str, error: type[Exception], tmp_path: pathlib.Path, url: str
) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(error):
        format_pool(url, catalog=catalog.format(tmp_path))
    assert list((tmp_path / "store").iterdir()) == []
    assert (tmp_path / "taken").read_bytes() == b""


def test_a_pool_that_cannot_be_made_leaves_no_catalog(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(Exception, match=r"\w"):
        format_pool(f"file://{tmp_path}/file/store", catalog=f"sqlite:{tmp_path}/catalog")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
