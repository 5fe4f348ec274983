"""An object store in memory, with faults; and rigs whose pool it is."""

import pathlib
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from metadata.errors import Exists, NotFound
from metadata.units import CACHE_BYTES_DEFAULT
from replication import pool_directory
from replication.object_store import Listed, Lost
from replication.pool import Pool
from replication.pool_objects import ObjectPool, format_object_pool, open_object_pool
from tests.replication.rig import Rig

URL = "memory://tests"


class StoreInMemory:
    """What an S3 server does, and at times does not do."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self.failing: Counter[str] = Counter()
        """How many of the next calls of "get", "put", "list", "delete" are lost before they are done."""
        self.forgetting: Counter[str] = Counter()
        """How many are done, and the answer is lost."""
        self.on_call: Callable[[str, str], None] | None = None
        self.on_answer: Callable[[str, str], None] | None = None
        self._lock = threading.Lock()

    def _meet(self, what: str, key: str) -> None:
        if self.on_call is not None:
            self.on_call(what, key)
        with self._lock:
            self.calls[what] += 1
            if self.failing[what]:
                self.failing[what] -= 1
                raise Lost(f"503 Slow Down key={key}")

    def _answer(self, what: str, key: str) -> None:
        if self.on_answer is not None:
            self.on_answer(what, key)
        with self._lock:
            if self.forgetting[what]:
                self.forgetting[what] -= 1
                raise Lost(f"connection reset key={key}")

    def get(self, key: str) -> bytes:
        self._meet("get", key)
        try:
            return self.objects[key]
        except KeyError:
            raise NotFound(f"there is no such object key={key}") from None

    def get_range(self, key: str, start: int, length: int) -> memoryview:
        found = self.get(key)[start : start + length]
        if len(found) != length:
            raise NotFound(f"an object is shorter than its name says key={key}")
        return memoryview(found)

    def put_new(self, key: str, data: bytes | memoryview) -> None:
        self._meet("put", key)
        with self._lock:
            if key in self.objects:
                raise Exists(f"the object is there already key={key}")
            self.objects[key] = bytes(data)
        self._answer("put", key)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self._meet("put", key)
        self.objects[key] = bytes(data)
        self._answer("put", key)

    def put_file(self, key: str, path: str) -> None:
        self.put(key, pathlib.Path(path).read_bytes())

    def delete(self, keys: Sequence[str]) -> None:
        for key in keys:
            self._meet("delete", key)
            self.objects.pop(key, None)
            self._answer("delete", key)

    def list(self, prefix: str) -> Listed:
        self._meet("list", prefix)
        there = self.objects.copy()  # in one step: other threads put
        rest = {key[len(prefix) :]: data for key, data in there.items() if key.startswith(prefix)}
        folders = sorted({name.partition("/")[0] for name in rest if "/" in name})
        return Listed({name: len(data) for name, data in rest.items() if "/" not in name}, folders)


class ObjectRig(Rig):
    """A rig over an object pool; the store outlives the nodes."""

    store: StoreInMemory
    cache_bytes = CACHE_BYTES_DEFAULT

    def _make(self) -> None:
        pool_directory.format_pool(self.pool_path).close()  # for its catalog
        self.store = StoreInMemory()
        format_object_pool(URL, store=self.store).close()
        self.state_path.mkdir()

    def open_pool(self) -> Pool:  # type: ignore[override]
        pool = open_object_pool(
            URL, state=str(self.state_path), store=self.store, cache_bytes=self.cache_bytes
        )
        pool.lock(self.node_name)
        return pool

    @property
    def keys(self) -> list[str]:
        """Of all objects of vdisks."""
        return sorted(key for key in self.store.objects if key.startswith("vdisks/"))


def object_pool(vdisks_pool: Pool) -> ObjectPool:
    """The same, by its real type."""
    assert isinstance(vdisks_pool, ObjectPool)
    return vdisks_pool
