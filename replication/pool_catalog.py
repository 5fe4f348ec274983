"""Which catalog a pool has: the embedded one in its directory, or the etcd whose address the pool remembers.

    POOL/catalog.sqlite      the embedded catalog, or
    POOL/catalog             one line: etcd://HOST:PORT,HOST:PORT?ca=... (metadata/etcd_address.py); may be edited

An object pool's marker says the same under "catalog", or sqlite:PATH: a file of the one machine that uses the pool.

What speaks to etcd is loaded only where there is one.
"""

import os
import pathlib

import trio

from metadata.catalog import Catalog, Change
from metadata.catalog_sqlite import check_sqlite_catalog, create_sqlite_catalog, open_sqlite_catalog
from metadata.errors import Exists, InvalidRequest, Unavailable
from metadata.etcd_address import EtcdAddress, parse_etcd_address
from replication.pool_url import is_object_url

CATALOG_NAME = "catalog.sqlite"
ADDRESS_NAME = "catalog"
SQLITE = "sqlite:"
_ADDRESS_BYTES_MAX = 4096


def read_address(pool_path: str) -> EtcdAddress | None:
    """Where the pool's catalog is; none: in the pool.

    Raises:
        InvalidRequest: the file says something else.
        Unavailable: it cannot be read.
    """
    path = os.path.join(pool_path, ADDRESS_NAME)
    if is_object_url(pool_path):
        said = _said_by_marker(pool_path)
        return None if said.startswith(SQLITE) else parse_etcd_address(said)
    try:
        with open(path, "rb") as file:
            text = file.read(_ADDRESS_BYTES_MAX).decode("utf-8", errors="replace").strip()
    except FileNotFoundError:
        return None
    except OSError as exc:
        raise Unavailable(
            f"the address of the pool's catalog cannot be read: {exc.strerror} file={path}"
        ) from exc
    try:
        return parse_etcd_address(text)
    except InvalidRequest as exc:
        raise InvalidRequest(f"{exc} file={path}") from exc


def _said_by_marker(url: str) -> str:
    from replication.pool_objects import read_marker

    return str(read_marker(url).get("catalog", ""))


def catalog_file(pool_path: str) -> pathlib.Path:
    """The embedded catalog's."""
    if is_object_url(pool_path):
        return pathlib.Path(_said_by_marker(pool_path).removeprefix(SQLITE))
    return pathlib.Path(pool_path, CATALOG_NAME)


def authority_folder(pool_path: str, *, state: str = "") -> str:
    """Where a pool's certificate authority is unless told otherwise: in the pool, or beside the catalog's file.

    Args:
        state: of a node, which keeps it where nothing else is shared; it is brought from there to where others join.

    Raises:
        InvalidRequest: nowhere.
    """
    if not is_object_url(pool_path):
        return os.path.join(pool_path, "cluster")
    if read_address(pool_path) is None:
        return f"{catalog_file(pool_path)}.cluster"
    if not state:
        raise InvalidRequest(
            "an object store holds no certificate authority: say where it is with --ca-dir DIR"
        )
    return os.path.join(state, "cluster")


async def open_catalog(pool_path: str, pool_id: str) -> Catalog:
    """The pool's catalog.

    Raises:
        NotFound, InvalidRequest, Corrupt, Unavailable: it cannot be had, and why.
    """
    address = await trio.to_thread.run_sync(read_address, pool_path)
    if address is None:
        return await open_sqlite_catalog(await trio.to_thread.run_sync(catalog_file, pool_path))
    from metadata.catalog_etcd import open_etcd_catalog

    return await open_etcd_catalog(address, pool_id)


def check_catalog(pool_path: str, pool_id: str) -> None:
    """See that this release reads the catalog, while others use it. Blocks.

    Raises:
        VdiskfsError: it does not, or nobody can.
    """
    if read_address(pool_path) is None:
        check_sqlite_catalog(catalog_file(pool_path))
        return

    async def look() -> None:
        catalog = await open_catalog(pool_path, pool_id)
        await catalog.aclose()

    trio.run(look)


def create_catalog(pool_path: str, pool_id: str, *, address: EtcdAddress | None, first: Change) -> None:
    """Make the catalog of a new pool, with the puts of ``first``. Blocks.

    Raises:
        InvalidRequest, Unavailable: it cannot be made.
    """
    if address is None:
        create_sqlite_catalog(pathlib.Path(pool_path, CATALOG_NAME), first=first)
        return
    from metadata.catalog_etcd import create_etcd_catalog

    create_etcd_catalog(address, pool_id, first=first)


def create_catalog_file(path: pathlib.Path, *, first: Change) -> None:
    """Make an embedded catalog that is no pool's directory's. Blocks.

    Raises:
        Exists: there is a file.
        InvalidRequest: it cannot be made.
    """
    if path.exists():
        raise Exists(f"there is a file already: choose another for the catalog path={path}")
    if not path.parent.is_dir():
        raise InvalidRequest(f"no such directory for the catalog: make it first path={path.parent}")
    create_sqlite_catalog(path, first=first)


def forget_catalog(pool_id: str, address: EtcdAddress) -> None:
    """Take back what ``create_catalog`` made at an etcd, for a pool that did not come to be."""
    from metadata.catalog_etcd import forget_etcd_catalog

    forget_etcd_catalog(address, pool_id)
