"""Which catalog a pool has: the embedded one in its directory, or the etcd whose address the pool remembers.

    POOL/catalog.sqlite      the embedded catalog, or
    POOL/catalog             one line: etcd://HOST:PORT,HOST:PORT?ca=... (metadata/etcd_address.py); may be edited

What speaks to etcd is loaded only where there is one.
"""

import os
import pathlib

import trio

from metadata.catalog import Catalog, Change
from metadata.catalog_sqlite import check_sqlite_catalog, create_sqlite_catalog, open_sqlite_catalog
from metadata.errors import InvalidRequest, Unavailable
from metadata.etcd_address import EtcdAddress, parse_etcd_address

CATALOG_NAME = "catalog.sqlite"
ADDRESS_NAME = "catalog"
_ADDRESS_BYTES_MAX = 4096


def read_address(pool_path: str) -> EtcdAddress | None:
    """Where the pool's catalog is; none: in the pool.

    Raises:
        InvalidRequest: the file says something else.
        Unavailable: it cannot be read.
    """
    path = os.path.join(pool_path, ADDRESS_NAME)
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


async def open_catalog(pool_path: str, pool_id: str) -> Catalog:
    """The pool's catalog.

    Raises:
        NotFound, InvalidRequest, Corrupt, Unavailable: it cannot be had, and why.
    """
    address = await trio.to_thread.run_sync(read_address, pool_path)
    if address is None:
        return await open_sqlite_catalog(pathlib.Path(pool_path, CATALOG_NAME))
    from metadata.catalog_etcd import open_etcd_catalog

    return await open_etcd_catalog(address, pool_id)


def check_catalog(pool_path: str, pool_id: str) -> None:
    """See that this release reads the catalog, while others use it. Blocks.

    Raises:
        VdiskfsError: it does not, or nobody can.
    """
    if read_address(pool_path) is None:
        check_sqlite_catalog(pathlib.Path(pool_path, CATALOG_NAME))
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


def forget_catalog(pool_id: str, address: EtcdAddress) -> None:
    """Take back what ``create_catalog`` made at an etcd, for a pool that did not come to be."""
    from metadata.catalog_etcd import forget_etcd_catalog

    forget_etcd_catalog(address, pool_id)
