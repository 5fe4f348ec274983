"""An object store: S3 and what else ``obstore`` speaks, with deadlines, retries and our errors; its only user.

A call is tried again, with growing pauses of a random length, until it has used up its budget: throttling, a
server that is started again and a connection that hangs cost time, not errors. A put that may have been done though its
answer was lost finds its own object when it is tried again, and that counts as done.

Credentials come from the environment, from AWS's credentials file, or from the machine's metadata service; they are in no
catalog, no log and no address.
"""

import configparser
import errno
import functools
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from metadata.errors import Exists, InvalidRequest, NotFound, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")

CALL_S = 20.0
"""One request, from the connection to its last byte, at the slowest; then it counts as lost."""
CONNECT_S = 5.0
RETRY_S = 120.0
"""A call is tried again so long: a guest stalls, and hears of an error only then."""
PAUSE_S_MIN, PAUSE_S_MAX = 0.05, 5.0
CALLS_MAX = 16
"""Requests of one kind under way at once, for one call that needs many."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What lies directly below a prefix: objects with their sizes, and folders; names without the prefix."""

    objects: dict[str, int]
    folders: list[str]


class Store(Protocol):
    """One bucket, or a part of it. Keys are relative. Any thread; each call waits."""

    def get(self, key: str) -> bytes:
        """An object. Raises: NotFound."""

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        """So many bytes of an object. Raises: NotFound: it has not so many, or is not there."""

    def put_new(self, key: str, data: bytes | memoryview) -> None:
        """Makes an object; one of the same content there counts as made. Raises: Exists: another content is there."""

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Makes an object or replaces it."""

    def put_file(self, key: str, path: str) -> None:
        """Makes an object of a file, in parts."""

    def delete(self, keys: Sequence[str]) -> None:
        """Objects that are not there are no error."""

    def list(self, prefix: str) -> Listed:
        """Objects and folders directly below ``prefix``, which ends with a slash or is empty."""


@runtime_checkable
class GuardedStore(Store, Protocol):
    """One that has more than objects to put (replication/rados_store.py)."""

    def join(self, key: str, old: Sequence[str]) -> None:
        """Makes one object of neighbours, those at the ``old`` keys, without moving their bytes. Raises: NotFound."""

    def fence(self, prefix: str, epoch: int) -> None:
        """Refuses what is still put into groups of older epochs of the vdisk there."""

    def room(self) -> tuple[int, int]:
        """Bytes that it may hold, and that are free."""


class Lost(Exception):
    """A request that may or may not have been done: try again."""


class ObstoreStore:
    """Single requests, nothing tried again: ``RetryingStore`` does that."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def get(self, key: str) -> bytes:
        import obstore

        return self._call(lambda: bytes(obstore.get(self._store, key).bytes()), key)

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        import obstore

        found = self._call(
            lambda: memoryview(obstore.get_range(self._store, key, start=start, length=length)), key
        )
        if len(found) != length:
            raise NotFound(f"an object is shorter than its name says key={key}")
        return found

    def put_new(self, key: str, data: bytes | memoryview) -> None:
        import obstore

        self._call(lambda: obstore.put(self._store, key, data, mode="create", use_multipart=False), key)

    def put(self, key: str, data: bytes | memoryview) -> None:
        import obstore

        self._call(lambda: obstore.put(self._store, key, data, use_multipart=False), key)

    def put_file(self, key: str, path: str) -> None:
        import pathlib

        import obstore

        self._call(lambda: obstore.put(self._store, key, pathlib.Path(path), chunk_size=8 << 20), key)

    def delete(self, keys: Sequence[str]) -> None:
        import obstore

        for key in keys:
            try:
                self._call(functools.partial(obstore.delete, self._store, key), key)
            except NotFound:
                pass

    def list(self, prefix: str) -> Listed:
        import obstore

        found = self._call(lambda: obstore.list_with_delimiter(self._store, prefix), prefix)
        objects = {str(each["path"]).rpartition("/")[2]: int(each["size"]) for each in found["objects"]}
        return Listed(objects, [each.rpartition("/")[2] for each in found["common_prefixes"]])

    def _call(self, call: Callable[[], T], key: str) -> T:
        from obstore import exceptions

        try:
            return call()
        except (FileNotFoundError, exceptions.GenericError) as exc:
            self._tell_bucket(exc)
            if not isinstance(exc, FileNotFoundError):
                raise self._doubt(exc) from exc
            raise NotFound(f"there is no such object key={key}: {_first_line(exc)}") from exc
        except exceptions.AlreadyExistsError as exc:
            raise Exists(f"the object is there already key={key}") from exc
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as exc:
            self._tell_clock(exc)
            raise _refused(exc) from exc
        except (exceptions.BaseError, OSError) as exc:
            raise self._doubt(exc) from exc

    def _tell_bucket(self, exc: Exception) -> None:
        if "NoSuchBucket" in str(exc):
            what = f"there is no such bucket: make it first, {_first_line(exc)}"
            raise InvalidRequest(what, number=errno.EIO) from exc

    def _tell_clock(self, exc: Exception) -> None:
        if "RequestTimeTooSkewed" in str(exc):
            raise InvalidRequest(
                "the object store says that this machine's clock is wrong: set it, by NTP for instance",
                number=errno.EIO,
            ) from exc

    def _doubt(self, exc: Exception) -> Exception:
        self._tell_clock(exc)
        if any(word in str(exc) for word in ("403 Forbidden", "401 Unauthorized", "InvalidAccessKeyId")):
            return _refused(exc)
        return Lost(_first_line(exc))


def _refused(exc: Exception) -> InvalidRequest:
    """For whoever set it up; a guest that was being served hears of an I/O error."""
    what = f"the object store refuses these credentials: {_first_line(exc)}"
    return InvalidRequest(what, number=errno.EIO)


def _first_line(exc: BaseException) -> str:
    """Without the server's own page, which may name the key it was asked with."""
    return str(exc).partition("\n")[0].partition(": <")[0]


class RetryingStore:
    """Calls that come to an end: done, refused for a reason, or ``Unavailable`` once the budget is used up.

    Args:
        store: makes one request a call; raises ``Lost`` for what may be tried again.
        budget_s: how long a call is tried.
        pause: waits so many seconds; an event, so that closing the pool ends it.
    """

    def __init__(
        self,
        store: Store,
        *,
        budget_s: float = RETRY_S,
        pause: Callable[[float], object] | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._budget_s, self._clock_s = store, budget_s, clock_s
        self._closing = threading.Event()
        self._pause = pause or self._closing.wait
        self.retries = 0
        """Counts requests that were made again."""
        self.requests = 0
        self.received_bytes = 0

    def close(self) -> None:
        """Nobody waits any more."""
        self._closing.set()

    def get(self, key: str) -> bytes:
        found = self._try(lambda: self._store.get(key), key)
        self.received_bytes += len(found)
        return found

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        found = self._try(lambda: self._store.get_range(key, start, length), key)
        self.received_bytes += length
        return found

    def put_new(self, key: str, data: bytes | memoryview) -> None:
        try:
            self._try(lambda: self._store.put_new(key, data), key)
        except Exists:
            if self.get(key) != data:
                raise Exists(f"another content is there already key={key}") from None

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._try(lambda: self._store.put(key, data), key)

    def put_file(self, key: str, path: str) -> None:
        self._try(lambda: self._store.put_file(key, path), key)

    def delete(self, keys: Sequence[str]) -> None:
        if keys:
            self._try(lambda: self._store.delete(keys), keys[0])

    def list(self, prefix: str) -> Listed:
        return self._try(lambda: self._store.list(prefix), prefix)

    def join(self, key: str, old: Sequence[str]) -> bool:
        """Whether one object is made of those; a store that cannot is put it."""
        store = self._store
        if not isinstance(store, GuardedStore):
            return False
        self._try(lambda: store.join(key, old), key)
        return True

    def fence(self, prefix: str, epoch: int) -> None:
        """Where the store has a guard of its own."""
        store = self._store
        if isinstance(store, GuardedStore):
            self._try(lambda: store.fence(prefix, epoch), prefix)

    def room(self) -> tuple[int, int] | None:
        """Bytes that the store may hold, and that are free; None: it is never full."""
        store = self._store
        return self._try(store.room, "") if isinstance(store, GuardedStore) else None

    def _try(self, call: Callable[[], T], key: str) -> T:
        deadline, pause_s = self._clock_s() + self._budget_s, PAUSE_S_MIN
        while True:
            self.requests += 1
            try:
                return call()
            except Lost as exc:
                if self._clock_s() + pause_s > deadline or self._closing.is_set():
                    raise Unavailable(f"the object store does not answer key={key}: {exc}") from exc
                if not self.retries % 100:
                    log.warning("the object store is asked again key=%s: %s", key, exc)
            self.retries += 1
            self._pause(pause_s * (0.5 + secrets.randbelow(1000) / 1000))
            pause_s = min(2 * pause_s, PAUSE_S_MAX)


def connect(url: str) -> ObstoreStore:
    """The store at a canonical address; no request is made yet.

    Raises:
        InvalidRequest: ``obstore`` is not installed, or refuses the settings.
    """
    try:
        from obstore.store import MemoryStore, from_url
    except ImportError as exc:
        raise InvalidRequest("object stores need the obstore library: pip install obstore") from exc
    parts = urlsplit(url)
    if parts.scheme == "memory":
        return ObstoreStore(MemoryStore())
    config: dict[str, Any] = dict(parse_qsl(parts.query))
    place = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
    if parts.scheme == "file":
        return ObstoreStore(from_url(place, mkdir=True, automatic_cleanup=True))
    if parts.scheme == "s3":
        config = _file_credentials() | config
        config.setdefault(
            "region", os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        )
    endpoint = config.get("endpoint") or os.environ.get("AWS_ENDPOINT_URL") or ""
    client = {"timeout": timedelta(seconds=CALL_S), "connect_timeout": timedelta(seconds=CONNECT_S)}
    options: dict[str, Any] = {**client, "allow_http": endpoint.startswith("http://")}
    storage_class = config.pop("storage_class", None)
    if storage_class:
        options["default_headers"] = {"x-amz-storage-class": storage_class}
    try:
        connect: Any = from_url  # typed for each store's own settings
        made = connect(place, config=config, client_options=options, retry_config={"max_retries": 0})
    except Exception as exc:  # it raises many kinds, all about the settings
        raise InvalidRequest(f"the object store's settings do not do: {_first_line(exc)}") from exc
    return ObstoreStore(made)


def _file_credentials() -> dict[str, str]:
    """From AWS's credentials file, if the environment has none."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    path = os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or os.path.expanduser("~/.aws/credentials")
    parser = configparser.RawConfigParser()
    try:
        parser.read(path)
    except (configparser.Error, ValueError) as exc:
        raise InvalidRequest(f"the credentials file cannot be read file={path}") from exc
    profile = os.environ.get("AWS_PROFILE", "default")
    names = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key",
             "aws_session_token": "session_token"}  # fmt: skip
    if not parser.has_section(profile):
        return {}
    return {
        ours: parser.get(profile, name) for name, ours in names.items() if parser.has_option(profile, name)
    }
