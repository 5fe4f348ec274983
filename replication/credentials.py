"""Who a node is to the others: the cluster's authority, and the node's own key and certificate.

    setting/cluster (catalog)     {"id", "authority"}: the cluster of the pool, and a hash of its authority's certificate
    POOL/cluster/                 authority.key, authority.pem; 0700. Or elsewhere (``cluster init --ca-dir``)
    STATE/node.pem                0600: who it is in words, its key, its certificate, the authority's certificate
    STATE/identity                a random word: who has another one is another node

The first node of a pool makes all of it without being asked. Only who can read the authority's key can let another
node in; a node that has its certificate never reads the key again before a third of its time is left.
"""

import datetime
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from metadata.catalog import Catalog, Change, decode_value, encode_value, setting_key
from metadata.errors import Conflict, Corrupt, Exists, InvalidRequest, NotFound, Unavailable
from replication.certificates import (
    NODE_DAYS,
    Signed,
    cluster_of,
    make_authority,
    make_certificate,
    valid_until,
)
from replication.pool_directory import sync_directory

log = logging.getLogger(__name__)

CLUSTER_KEY = setting_key("cluster")
RENEW_BEFORE_S = NODE_DAYS * 86400 / 3
_FILE_BYTES_MAX = 64 << 10
_BEGIN = "-----BEGIN "


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a node proves itself with, and checks others by."""

    cluster: str
    node: str
    path: str
    """The file with key and certificate."""
    authority: str
    """The authority's certificate, PEM."""
    expires: float
    """Unix time."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What the catalog knows of the cluster."""

    cluster: str
    authority_hash: str


def read_identity(state: str) -> str:
    """The identity of the node with this state directory; made if there is none.

    Raises:
        Unavailable: it can be neither read nor written.
    """
    path = os.path.join(state, "identity")
    known = _read(path).strip()
    if not known:
        known = secrets.token_hex(8)
        _write(path, known + "\n")
    return known


async def ensure_credentials(
    catalog: Catalog, *, node: str, state: str, folder: str, is_asked: bool = False
) -> Credentials:
    """The node's credentials; made, and the cluster with them, where they are missing and may be made.

    Args:
        node: its name.
        state: its state directory.
        folder: where the authority is.
        is_asked: make a new certificate even if there is one.

    Raises:
        InvalidRequest: the pool, the authority and the node's certificate are of different clusters.
        Unavailable: there is no certificate and nothing to make one with; the message says what to do.
    """
    known = await read_cluster(catalog)
    has_key = os.path.exists(os.path.join(folder, "authority.key"))
    own = None if is_asked else read_credentials(state)
    if own is not None and known is not None and own.node == node:
        _check_own(own, known, state=state, is_renewable=has_key)
        if own.expires - time.time() > RENEW_BEFORE_S:
            return own
        if not has_key:
            log.warning(
                "this node's certificate expires on %s: 'vdiskfs cluster join' renews it", _day(own.expires)
            )
            return own
    if known is None:
        known = await make_cluster(catalog, folder)
    elif not has_key:
        raise Unavailable(
            "this node has no certificate of the pool's cluster, and its authority is not here: "
            f"vdiskfs cluster join POOL --node {node} --ca-dir DIR cluster={known.cluster} state={state}"
        )
    authority = await trio.to_thread.run_sync(_read_authority, folder)
    _check_authority(authority, known, folder=folder)
    await trio.to_thread.run_sync(_install, authority, known.cluster, node, state)
    made = read_credentials(state)
    assert made is not None
    return made


async def make_cluster(catalog: Catalog, folder: str, *, is_asked: bool = False) -> Cluster:
    """Makes the pool's cluster, with its authority in ``folder``; takes an authority that is there already.

    Raises:
        Exists: (asked for) the pool has a cluster.
        InvalidRequest: another cluster claimed the pool meanwhile.
    """
    if is_asked and await read_cluster(catalog) is not None:
        raise Exists("the pool has a cluster already: 'vdiskfs cluster join' lets nodes in")
    await trio.to_thread.run_sync(_make_authority, folder)
    authority = await trio.to_thread.run_sync(_read_authority, folder)
    cluster = Cluster(cluster_of(authority.certificate), _hash(authority.certificate))
    row = encode_value({"id": cluster.cluster, "authority": cluster.authority_hash})
    try:
        await catalog.transact(Change(compares=((CLUSTER_KEY, 0),), puts=((CLUSTER_KEY, row),)))
    except Conflict:
        known = await read_cluster(catalog)
        if known is None or is_asked:
            raise Exists("the pool has a cluster already") from None
        _check_authority(authority, known, folder=folder)
    return cluster


async def read_cluster(catalog: Catalog) -> Cluster | None:
    """The cluster of the pool, if it has one.

    Raises:
        Corrupt: its row cannot be read.
    """
    rows, _ = await catalog.read(CLUSTER_KEY)
    if not rows:
        return None
    match decode_value(rows[0].key, rows[0].value):
        case {"id": str(cluster), "authority": str(authority_hash)}:
            return Cluster(cluster, authority_hash)
    raise Corrupt(f"an unreadable row in the catalog key={CLUSTER_KEY!r}")


def read_credentials(state: str) -> Credentials | None:
    """What is in the state directory.

    Raises:
        Corrupt: not what belongs there.
        Unavailable: it cannot be read.
    """
    path = os.path.join(state, "node.pem")
    text = _read(path)
    if not text:
        return None
    facts = dict(line.split(": ", 1) for line in text.partition(_BEGIN)[0].splitlines() if ": " in line)
    pieces = [_BEGIN + piece for piece in text.split(_BEGIN)[1:]]
    try:
        _key, _own, authority = pieces
        return Credentials(facts["cluster"], facts["node"], path, authority, float(facts["expires"]))
    except (ValueError, KeyError):
        raise Corrupt(
            f"the node's certificate cannot be read: delete it, or join again path={path}"
        ) from None


def _check_own(own: Credentials, known: Cluster, *, state: str, is_renewable: bool) -> None:
    if (own.cluster, _hash(own.authority)) != (known.cluster, known.authority_hash):
        raise InvalidRequest(
            "this node's certificate is of another cluster than the pool: choose another --state, or 'vdiskfs cluster "
            f"join' its={own.cluster} pool={known.cluster} state={state}"
        )
    if own.expires <= time.time() and not is_renewable:
        raise InvalidRequest(
            "this node's certificate has expired: 'vdiskfs cluster join' renews it "
            f"expired={_day(own.expires)} state={state}"
        )


def _check_authority(authority: Signed, known: Cluster, *, folder: str) -> None:
    if _hash(authority.certificate) != known.authority_hash:
        raise InvalidRequest(
            "two clusters claim this pool: the authority is not that of the pool's cluster "
            f"its={cluster_of(authority.certificate)} pool={known.cluster} folder={folder}"
        )


def _day(time_s: float) -> datetime.date:
    return datetime.datetime.fromtimestamp(time_s, datetime.UTC).date()


def _hash(certificate: str) -> str:
    return hashlib.sha256(certificate.encode()).hexdigest()


# Files. All of it may wait for a disk.


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _make_authority(folder: str) -> None:
    """Makes an authority, if there is none. The key is there last: where it is, all is.

    A new folder comes whole, under its name at once: of several hosts that make one, one succeeds, locks or none.
    """
    if os.path.exists(os.path.join(folder, "authority.key")):
        return
    beside = f"{folder}.{secrets.token_hex(8)}"
    made = make_authority(secrets.token_hex(8), now=_now())
    try:
        os.makedirs(beside, mode=0o700)
        _write_authority(beside, made)
        os.rename(beside, folder)
        sync_directory(os.path.dirname(folder))
        return
    except (
        OSError,
        Unavailable,
    ):  # it holds something, perhaps an authority; or nothing can be made beside it
        shutil.rmtree(beside, ignore_errors=True)
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        sync_directory(os.path.dirname(folder))
    except OSError as exc:
        raise Unavailable(f"cannot make the authority's folder: {exc.strerror} folder={folder}") from exc
    with _alone(folder):
        if not os.path.exists(os.path.join(folder, "authority.key")):
            _write_authority(folder, made)


def _write_authority(folder: str, made: Signed) -> None:
    _write(os.path.join(folder, "authority.pem"), made.certificate)
    _write(os.path.join(folder, "authority.key"), made.key)


def _read_authority(folder: str) -> Signed:
    key = _read(os.path.join(folder, "authority.key"))
    certificate = _read(os.path.join(folder, "authority.pem"))
    if not key or not certificate:
        raise NotFound(
            f"there is no certificate authority here: 'vdiskfs cluster init' makes one folder={folder}"
        )
    return Signed(key, certificate)


def _install(authority: Signed, cluster: str, node: str, state: str) -> None:
    made = make_certificate(authority, cluster, node, now=_now())
    until = valid_until(made.certificate)
    facts = f"cluster: {cluster}\nnode: {node}\nexpires: {until.timestamp():.0f}\nuntil: {until.date()}\n\n"
    _write(os.path.join(state, "node.pem"), facts + made.key + made.certificate + authority.certificate)


@contextmanager
def _alone(folder: str) -> Iterator[None]:
    try:
        lock_fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise Unavailable(f"cannot use the authority's folder: {exc.strerror} folder={folder}") from exc
    try:
        fcntl.flock(lock_fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock_fd)


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(_FILE_BYTES_MAX).decode("ascii", errors="replace")
    except FileNotFoundError:
        return ""
    except OSError as exc:
        raise Unavailable(f"cannot be read: {exc.strerror} file={path}") from exc


def _write(path: str, text: str) -> None:
    """Durably, whole or not at all, for nobody else's eyes."""
    try:
        file_fd = os.open(path + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(file_fd, "w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            os.fsync(file_fd)
        os.rename(path + ".new", path)
        sync_directory(os.path.dirname(path))
    except OSError as exc:
        raise Unavailable(f"cannot be written: {exc.strerror} file={path}") from exc
