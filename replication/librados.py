"""Ceph's librados: one pool, atomic changes of one object, reads; its only user, loaded only where a pool is in Ceph.

The distribution's shared library is called as it is, so that any Python will do. Each call waits, in any thread, and comes
to an end: Ceph's own deadlines are set, because without them it waits for a lost cluster for ever.
"""

import ctypes
import errno
import functools
import json
import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_int, c_size_t, c_ubyte, c_uint64, c_void_p
from dataclasses import dataclass, field
from typing import Any, Protocol

from metadata.errors import InvalidRequest

CALL_S = 20
"""One operation at the slowest; then it counts as lost, though it may still be done."""
CONNECT_S = 10
_PAGE_ENTRIES = 1000
"""Entries of an object that one request asks for: an OSD gives 1024 at most."""
_EXCLUSIVE, _EQUAL, _AT_LEAST = 1, 1, 4
_FULL_TRY = 64
"""A full cluster refuses what grows, at once, instead of keeping it waiting."""


class RadosError(Exception):
    """What librados answered.

    Args:
        number: errno, positive.
    """

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"{what}: {os.strerror(number)}")
        self.number = number


class NotConnected(Exception):
    """There is no cluster at the other end, now."""


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one object: all of it, or, if a condition does not hold, nothing."""

    must_exist: bool = False
    """Else ENOENT."""
    attribute_is: Mapping[str, bytes] = field(default_factory=dict)
    """Else ECANCELED; one that is not there is empty."""
    attribute_up_to: Mapping[str, bytes] = field(default_factory=dict)
    """Not above this, as texts compare."""
    entry_is: Mapping[str, bytes] = field(default_factory=dict)
    create: bool = False
    """Else EEXIST."""
    attributes: Mapping[str, bytes] = field(default_factory=dict)
    entries: Mapping[str, bytes] = field(default_factory=dict)
    drop: Sequence[str] = ()
    """Entries."""
    content: bytes | None = None
    """All of it anew."""
    data: bytes = b""
    offset: int = 0
    remove: bool = False


class Objects(Protocol):
    """The objects of one pool, in one namespace. Each has bytes, attributes, and entries in the order of their names."""

    def change(self, name: str, change: Change) -> None:
        """Returns when it is durable. Raises: RadosError."""

    def read(self, name: str, offset: int, length: int) -> memoryview:
        """So many bytes, fewer at its end. Raises: RadosError."""

    def size(self, name: str) -> int:
        """Of its bytes. Raises: RadosError."""

    def attribute(self, name: str, attribute: str) -> bytes:
        """Empty if it has none. Raises: RadosError: there is no such object."""

    def entries(self, name: str, *, prefix: str = "", count_max: int = 1 << 62) -> dict[str, bytes]:
        """Those whose names begin so. Raises: RadosError."""

    def room(self) -> tuple[int, int]:
        """Bytes that the pool may hold, and that are free. Raises: RadosError."""


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL("librados.so.2", use_errno=False)
    except OSError as exc:
        raise InvalidRequest("pools in Ceph need its client library: apt-get install librados2") from exc
    for name in ("rados_create_write_op", "rados_create_read_op"):
        getattr(library, name).restype = c_void_p
    void, text, number = c_void_p, c_char_p, c_uint64
    arguments: dict[str, list[Any]] = {
        "rados_create2": [POINTER(void), text, text, number],
        "rados_conf_read_file": [void, text],
        "rados_conf_parse_env": [void, text],
        "rados_conf_set": [void, text, text],
        "rados_connect": [void],
        "rados_shutdown": [void],
        "rados_ioctx_create": [void, text, POINTER(void)],
        "rados_ioctx_destroy": [void],
        "rados_ioctx_set_namespace": [void, text],
        "rados_read": [void, text, void, c_size_t, number],
        "rados_stat": [void, text, POINTER(c_uint64), POINTER(ctypes.c_long)],
        "rados_getxattr": [void, text, text, void, c_size_t],
        "rados_release_write_op": [void],
        "rados_write_op_assert_exists": [void],
        "rados_write_op_cmpxattr": [void, text, c_ubyte, text, c_size_t],
        "rados_write_op_omap_cmp": [void, text, c_ubyte, text, c_size_t, void],
        "rados_write_op_create": [void, c_int, text],
        "rados_write_op_setxattr": [void, text, text, c_size_t],
        "rados_write_op_omap_set": [void, POINTER(text), POINTER(text), POINTER(c_size_t), c_size_t],
        "rados_write_op_omap_rm_keys": [void, POINTER(text), c_size_t],
        "rados_write_op_write_full": [void, text, c_size_t],
        "rados_write_op_write": [void, text, c_size_t, number],
        "rados_write_op_remove": [void],
        "rados_write_op_operate": [void, void, text, void, c_int],
        "rados_release_read_op": [void],
        "rados_read_op_omap_get_vals2": [void, text, text, number, POINTER(void), POINTER(c_ubyte), void],
        "rados_read_op_operate": [void, void, text, c_int],
        "rados_omap_get_next2": [
            void, POINTER(void), POINTER(void), POINTER(c_size_t), POINTER(c_size_t)
        ],
        "rados_omap_get_end": [void],
        "rados_mon_command": [
            void, POINTER(text), c_size_t, text, c_size_t, POINTER(void), POINTER(c_size_t), void, void
        ],
        "rados_buffer_free": [void],
    }  # fmt: skip
    for name, types in arguments.items():
        getattr(library, name).argtypes = types
    return library


class RadosPool:
    """Objects of a pool of a real cluster; connects when it is first used, and again when that failed.

    Args:
        pool, namespace: where.
        user: whose key: client.USER.
        configuration: the file; empty: CEPH_CONF's, or where Ceph looks for it.
    """

    def __init__(self, pool: str, *, namespace: str = "", user: str = "", configuration: str = "") -> None:
        self._pool, self._namespace, self._user = pool, namespace, user or "admin"
        self._configuration = configuration
        self._connecting, self._cluster, self._io = threading.Lock(), c_void_p(), c_void_p()
        self._library = _library()

    def change(self, name: str, change: Change) -> None:
        library, io = self._library, self._connected()
        op = c_void_p(library.rados_create_write_op())
        try:
            _fill(library, op, change)
            self._check(library.rados_write_op_operate(op, io, name.encode(), None, _FULL_TRY), name)
        finally:
            library.rados_release_write_op(op)

    def read(self, name: str, offset: int, length: int) -> memoryview:
        io, found = self._connected(), bytearray(length)
        target = (ctypes.c_char * length).from_buffer(found)
        got = self._check(self._library.rados_read(io, name.encode(), target, length, offset), name)
        return memoryview(found)[:got]

    def size(self, name: str) -> int:
        size, modified = c_uint64(), ctypes.c_long()
        io = self._connected()
        self._check(self._library.rados_stat(io, name.encode(), byref(size), byref(modified)), name)
        return size.value

    def attribute(self, name: str, attribute: str) -> bytes:
        io, target = self._connected(), ctypes.create_string_buffer(256)
        got = self._library.rados_getxattr(io, name.encode(), attribute.encode(), target, len(target))
        return b"" if got == -errno.ENODATA else target.raw[: self._check(got, name)]

    def entries(self, name: str, *, prefix: str = "", count_max: int = 1 << 62) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        more, last = True, ""
        while more and len(found) < count_max:
            page, more = self._page(name, (prefix, last), min(_PAGE_ENTRIES, count_max - len(found)))
            found |= page
            last = next(reversed(page), last)
        return found

    def _page(self, name: str, where: tuple[str, str], count: int) -> tuple[dict[str, bytes], bool]:
        library, io = self._library, self._connected()
        op, rows, more = c_void_p(library.rados_create_read_op()), c_void_p(), c_ubyte()
        prefix, after = where
        found: dict[str, bytes] = {}
        try:
            library.rados_read_op_omap_get_vals2(
                op, after.encode(), prefix.encode(), count, byref(rows), byref(more), None
            )
            try:
                self._check(library.rados_read_op_operate(op, io, name.encode(), 0), name)
                key, value, key_bytes, value_bytes = c_void_p(), c_void_p(), c_size_t(), c_size_t()
                while True:
                    library.rados_omap_get_next2(
                        rows, byref(key), byref(value), byref(key_bytes), byref(value_bytes)
                    )
                    if not key.value:
                        return found, bool(more.value)
                    entry = ctypes.string_at(key, key_bytes.value).decode(errors="replace")
                    found[entry] = ctypes.string_at(value, value_bytes.value) if value.value else b""
            finally:
                if rows.value:
                    library.rados_omap_get_end(rows)
        finally:
            library.rados_release_read_op(op)

    def room(self) -> tuple[int, int]:
        self._connected()
        command = (c_char_p * 1)(b'{"prefix": "df", "detail": "detail", "format": "json"}')
        found, found_bytes = c_void_p(), c_size_t()
        answer = self._library.rados_mon_command(
            self._cluster, command, 1, None, 0, byref(found), byref(found_bytes), None, None
        )
        try:
            self._check(answer, "df")
            pools = json.loads(ctypes.string_at(found, found_bytes.value))["pools"]
        finally:
            if found.value:
                self._library.rados_buffer_free(found)
        stats = next(pool["stats"] for pool in pools if pool["name"] == self._pool)
        free = int(stats["max_avail"])
        if stats.get("quota_bytes"):
            free = min(free, max(0, int(stats["quota_bytes"]) - int(stats["stored"])))
        return int(stats["stored"]) + free, free

    def _check(self, answer: int, name: str) -> int:
        if answer >= 0:
            return answer
        raise RadosError(-answer, f"object={name}")

    def _connected(self) -> c_void_p:
        with self._connecting:
            if not self._io.value:
                self._io = self._connect()
            return self._io

    def _connect(self) -> c_void_p:
        library, cluster, io = self._library, c_void_p(), c_void_p()
        user = f"client.{self._user}"
        _refuse(library.rados_create2(byref(cluster), b"ceph", user.encode(), 0), f"no such user as {user}")
        try:
            self._configure(cluster)
            answer = library.rados_connect(cluster)
            if answer in (-errno.ETIMEDOUT, -errno.ECONNREFUSED, -errno.EHOSTUNREACH, -errno.ENETUNREACH):
                raise NotConnected(f"the Ceph cluster does not answer: {os.strerror(-answer)}")
            _refuse(answer, f"the Ceph cluster does not let {user} in: is there a keyring, and its key right")
            answer = library.rados_ioctx_create(cluster, self._pool.encode(), byref(io))
            if answer == -errno.ENOENT:
                what = f"there is no such Ceph pool: make it first with 'ceph osd pool create {self._pool}'"
                raise InvalidRequest(what, number=errno.EIO)
            _refuse(answer, f"the Ceph pool cannot be opened pool={self._pool}")
        except BaseException:
            library.rados_shutdown(cluster)
            raise
        library.rados_ioctx_set_namespace(io, self._namespace.encode())
        self._cluster = cluster
        weakref.finalize(self, _end, library, cluster, io)
        return io

    def _configure(self, cluster: c_void_p) -> None:
        library, file = self._library, self._configuration
        _refuse(
            library.rados_conf_read_file(cluster, file.encode() if file else None),
            f"Ceph's configuration cannot be read file={file or os.environ.get('CEPH_CONF') or '/etc/ceph/ceph.conf'}",
        )
        library.rados_conf_parse_env(cluster, None)
        for option, value in {
            "client_mount_timeout": CONNECT_S, "rados_mon_op_timeout": CALL_S, "rados_osd_op_timeout": CALL_S,
            "log_to_stderr": "false", "err_to_stderr": "false",
        }.items():  # fmt: skip
            library.rados_conf_set(cluster, option.encode(), str(value).encode())


def _end(library: Any, cluster: c_void_p, io: c_void_p) -> None:
    library.rados_ioctx_destroy(io)
    library.rados_shutdown(cluster)


def _refuse(answer: int, what: str) -> None:
    """For whoever set it up; a guest that was being served hears of an I/O error."""
    if answer < 0:
        raise InvalidRequest(f"{what}: {os.strerror(-answer)}", number=errno.EIO)


def _fill(library: Any, op: c_void_p, change: Change) -> None:
    """Tells librados, which copies all of it."""
    if change.must_exist:
        library.rados_write_op_assert_exists(op)
    for comparison, wanted in ((_EQUAL, change.attribute_is), (_AT_LEAST, change.attribute_up_to)):
        for name, value in wanted.items():
            library.rados_write_op_cmpxattr(op, name.encode(), comparison, value, len(value))
    for name, value in change.entry_is.items():
        library.rados_write_op_omap_cmp(op, name.encode(), _EQUAL, value, len(value), None)
    if change.create:
        library.rados_write_op_create(op, _EXCLUSIVE, None)
    for name, value in change.attributes.items():
        library.rados_write_op_setxattr(op, name.encode(), value, len(value))
    if change.entries:
        count = len(change.entries)
        names = (c_char_p * count)(*(name.encode() for name in change.entries))
        values = (c_char_p * count)(*change.entries.values())
        lengths = (c_size_t * count)(*map(len, change.entries.values()))
        library.rados_write_op_omap_set(op, names, values, lengths, count)
    if change.drop:
        dropped = (c_char_p * len(change.drop))(*(name.encode() for name in change.drop))
        library.rados_write_op_omap_rm_keys(op, dropped, len(change.drop))
    if change.content is not None:
        library.rados_write_op_write_full(op, change.content, len(change.content))
    if change.data:
        library.rados_write_op_write(op, change.data, len(change.data), change.offset)
    if change.remove:
        library.rados_write_op_remove(op)
