"""What an OSD does with the objects of a pool, in memory, with faults."""

import errno
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from replication.librados import Change, RadosError
from replication.rados_store import RadosStore


@dataclass
class _Object:
    data: bytearray = field(default_factory=bytearray)
    attributes: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, bytes] = field(default_factory=dict)


class RadosInMemory:
    """Outlives the clients."""

    def __init__(self) -> None:
        self.objects: dict[str, _Object] = {}
        self.failing: Counter[str] = Counter()
        """How many of the next "change"s or "read"s are lost before they are done."""
        self.forgetting: Counter[str] = Counter()
        """How many are done, and the answer is lost."""
        self.on_change: Callable[[str, Change], None] | None = None
        """Called before each."""
        self._lock = threading.RLock()

    def change(self, name: str, change: Change) -> None:
        if self.on_change is not None:
            self.on_change(name, change)
        with self._lock:
            self._meet("change", name)
            self._apply(name, change)
            if self.forgetting["change"]:
                self.forgetting["change"] -= 1
                raise RadosError(errno.ETIMEDOUT, name)

    def _apply(self, name: str, change: Change) -> None:
        found = self.objects.get(name)
        compares = change.attribute_is or change.attribute_up_to or change.entry_is
        if found is None and (change.must_exist or compares or change.remove):
            raise RadosError(errno.ENOENT, name)
        known = found or _Object()
        if (
            any(known.attributes.get(key, b"") != value for key, value in change.attribute_is.items())
            or any(known.attributes.get(key, b"") > value for key, value in change.attribute_up_to.items())
            or any(known.entries.get(key, b"") != value for key, value in change.entry_is.items())
        ):
            raise RadosError(errno.ECANCELED, name)
        if change.create and found is not None:
            raise RadosError(errno.EEXIST, name)
        if change.remove:
            del self.objects[name]
            return
        self.objects[name] = known
        known.attributes |= change.attributes
        known.entries |= change.entries
        for entry in change.drop:
            known.entries.pop(entry, None)
        if change.content is not None:
            known.data[:] = change.content
        if change.data:
            known.data.extend(bytes(max(0, change.offset - len(known.data))))
            known.data[change.offset : change.offset + len(change.data)] = change.data

    def read(self, name: str, offset: int, length: int) -> memoryview:
        return memoryview(bytes(self._found(name).data[offset : offset + length]))

    def size(self, name: str) -> int:
        return len(self._found(name).data)

    def attribute(self, name: str, attribute: str) -> bytes:
        return self._found(name).attributes.get(attribute, b"")

    def entries(self, name: str, *, prefix: str = "", count_max: int = 1 << 62) -> dict[str, bytes]:
        with self._lock:
            rows = sorted(self._found(name).entries.items())
        return dict([row for row in rows if row[0].startswith(prefix)][:count_max])

    def room(self) -> tuple[int, int]:
        return 1 << 40, 1 << 40

    def _found(self, name: str) -> _Object:
        with self._lock:
            self._meet("read", name)
            if name not in self.objects:
                raise RadosError(errno.ENOENT, name)
            return self.objects[name]

    def _meet(self, what: str, name: str) -> None:
        if self.failing[what]:
            self.failing[what] -= 1
            raise RadosError(errno.ETIMEDOUT, name)


def rados_store() -> RadosStore:
    """One of its own."""
    return RadosStore(RadosInMemory())
