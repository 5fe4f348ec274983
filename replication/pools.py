"""Pools of every kind by their address: a directory, an object store's like s3://bucket/prefix, rados://pool.

What speaks to an object store is loaded only where there is one.
"""

import os
import pathlib
import secrets
import time
from contextlib import suppress

from metadata.durability import ATTRIBUTE
from metadata.errors import Exists, InvalidRequest, NotFound, VdiskfsError
from metadata.etcd_address import parse_etcd_address
from metadata.namespace_plans import plan_root
from metadata.units import CACHE_BYTES_DEFAULT, TRASH_S_DEFAULT
from replication import pool_directory
from replication.pool import Pool
from replication.pool_catalog import SQLITE, create_catalog, create_catalog_file, forget_catalog
from replication.pool_url import canonical_url, is_object_url


def resolve_pool(where: str, *, endpoint: str = "") -> str:
    """The one way of writing a pool's address: an absolute path without links, or a URL.

    Raises:
        InvalidRequest: it is no address.
    """
    if is_object_url(where):
        return canonical_url(where, options=[("endpoint", endpoint)])
    if endpoint or "://" in where:
        raise InvalidRequest(
            f"not a directory, nor the address of an object store like s3://bucket/prefix or rados://pool: {where}"
        )
    return os.path.realpath(where)


def open_pool(where: str, *, state: str = "", cache_bytes: int = CACHE_BYTES_DEFAULT) -> Pool:
    """The pool at a resolved address.

    Args:
        state: the node's state directory, where an object pool keeps local files; empty: only looked at.
        cache_bytes: how much of what an object pool has may lie there too.

    Raises:
        NotFound, InvalidRequest, Corrupt, Unavailable: there is none, or it cannot be opened.
    """
    if not is_object_url(where):
        return pool_directory.open_pool(where)
    from replication.pool_objects import open_object_pool

    return open_object_pool(where, state=state, cache_bytes=cache_bytes)


def format_pool(
    where: str, *, trash_s: int = TRASH_S_DEFAULT, catalog: str = "", durability: str = ""
) -> Pool:
    """Makes a directory, or a bucket or the part of it below a prefix, a pool.

    Args:
        where: resolved.
        trash_s: how long deleted vdisks can be restored; 0: not at all.
        catalog: etcd://HOST:PORT,..., or sqlite:PATH, a file of this machine, which an object pool must be told.
        durability: of its vdisks, where nothing else is said of one (metadata/durability.py); only of an object pool.

    Raises:
        Exists: it is a pool already.
        InvalidRequest, Unavailable: it cannot be made, and why.
    """
    if not is_object_url(where):
        if durability:
            raise InvalidRequest(
                "durability is chosen for pools in object stores: a directory pool is flushed to always"
            )
        return pool_directory.format_pool(where, trash_s=trash_s, catalog=catalog)
    from replication.pool_objects import format_object_pool, read_marker

    file = os.path.realpath(catalog.removeprefix(SQLITE)) if catalog.startswith(SQLITE) else ""
    if not catalog:
        raise InvalidRequest(
            "an object store holds no catalog: --catalog etcd://HOST:PORT,... for nodes on several machines, or "
            "--catalog sqlite:PATH, a file of this machine"
        )
    address = None if file else parse_etcd_address(catalog)
    with suppress(NotFound):
        read_marker(where)
        raise Exists(f"this is a pool already: choose another prefix, or delete it first url={where}")
    pool_id = secrets.token_hex(8)
    said = ((ATTRIBUTE, durability.encode()),) if durability else ()
    settings = {"trash_s": trash_s}
    root = plan_root(os.getuid(), os.getgid(), now_ns=time.time_ns(), settings=settings, xattrs=said)
    if address is not None:
        create_catalog("", pool_id, address=address, first=root)
    else:
        create_catalog_file(pathlib.Path(file), first=root)
    facts: dict[str, object] = {"pool": pool_id, "catalog": SQLITE + file if file else catalog}
    try:
        return format_object_pool(where, facts=facts)
    except VdiskfsError:
        if address is not None:
            forget_catalog(pool_id, address)
        else:
            for suffix in ("", "-wal", "-shm"):
                pathlib.Path(file + suffix).unlink(missing_ok=True)
        raise
