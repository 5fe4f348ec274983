"""The snapshot tree in memory: parents, children, snapshots, pins; who keeps which version of a vdisk.

A mirror of the ``vdisk/`` and ``snap/`` rows of the catalog, read at start and changed right behind each
transaction; besides it, the *pins* of this daemon: versions that an open file reads, or that something is being
made of. A version may be pinned for readers *elsewhere*, too: it stays, but this node's index may not have its rows.
Whoever changes the tree in the catalog holds ``lock`` until the mirror shows it.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import trio

from metadata.catalog import SNAP_PREFIX, VDISK_PREFIX, Catalog, decode_value, id_in_key
from metadata.descent import Descent, read_descent
from metadata.errors import Corrupt, NotFound
from metadata.snapshots import Snapshot, decode_snapshot

_NOTHING = Descent()


class Family:
    """One to a daemon; owned by ``Vdisks``."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self._descents: dict[int, Descent] = {}
        self._children: dict[int, dict[int, int]] = {}
        self._snapshots: dict[int, dict[str, Snapshot]] = {}
        self._by_id: dict[int, Snapshot] = {}
        self._pins: dict[int, Counter[int]] = {}
        self._pins_elsewhere: dict[int, Counter[int]] = {}

    async def load(self, catalog: Catalog) -> None:
        """Reads the mirror."""
        for row in (await catalog.read(VDISK_PREFIX))[0]:
            value = decode_value(row.key, row.value)
            if not isinstance(value, Mapping):
                raise Corrupt(f"a damaged record in the catalog key={row.key!r}")
            self.set_descent(id_in_key(row.key, VDISK_PREFIX), read_descent(value))
        for row in (await catalog.read(SNAP_PREFIX))[0]:
            self.add_snapshot(decode_snapshot(row.key, row.value))

    # ---- descent

    def descent(self, vdisk: int) -> Descent:
        """Where a vdisk's content comes from besides its own rows."""
        return self._descents.get(vdisk, _NOTHING)

    def known(self) -> set[int]:
        """Vdisks of which there is anything to say."""
        return {*self._descents, *self._snapshots}

    def set_descent(self, vdisk: int, descent: Descent) -> None:
        """The catalog says so now."""
        self._leave_parent(vdisk)
        if descent == _NOTHING:
            self._descents.pop(vdisk, None)
            return
        self._descents[vdisk] = descent
        if descent.parent is not None:
            parent, version = descent.parent
            self._children.setdefault(parent, {})[vdisk] = version

    def forget(self, vdisk: int) -> None:
        """The vdisk is gone, with its snapshots."""
        self._leave_parent(vdisk)
        self._descents.pop(vdisk, None)
        self.drop_snapshots(vdisk)

    def _leave_parent(self, vdisk: int) -> None:
        old = self._descents.get(vdisk)
        if old is not None and old.parent is not None:
            siblings = self._children[old.parent[0]]
            del siblings[vdisk]
            if not siblings:
                del self._children[old.parent[0]]

    def children(self, vdisk: int) -> Mapping[int, int]:
        """Vdisks that have this one for a parent, and of which version."""
        return self._children.get(vdisk, {})

    def nameless(self) -> Iterator[int]:
        """Deleted vdisks that are kept."""
        return (vdisk for vdisk, descent in self._descents.items() if descent.nameless)

    def kept_for_others(self) -> Iterator[int]:
        """These, and flattened vdisks whose older versions still read their parents."""
        return (vdisk for vdisk, descent in self._descents.items() if descent.nameless or descent.flattened)

    def has_unread_parent(self, vdisk: int) -> bool:
        """Whether the vdisk has a parent that no version of it reads any more."""
        descent = self.descent(vdisk)
        if descent.parent is None or not descent.flattened:
            return False
        readers: list[int | None] = [*self.read_versions(vdisk)]
        if not descent.nameless:
            readers.append(None)
        return all(descent.parent_at(version) is None for version in readers)

    # ---- snapshots

    def snapshots(self, vdisk: int) -> list[Snapshot]:
        """A vdisk's, oldest first."""
        found = self._snapshots.get(vdisk, {}).values()
        return sorted(found, key=lambda snapshot: (snapshot.version, snapshot.created_ns, snapshot.id))

    def all_snapshots(self) -> Iterable[Snapshot]:
        """Those of every vdisk."""
        return self._by_id.values()

    def snapshot(self, vdisk: int, name: str) -> Snapshot:
        """The one of this name.

        Raises:
            NotFound: there is none.
        """
        try:
            return self._snapshots[vdisk][name]
        except KeyError:
            raise NotFound(
                f"there is no snapshot of this name: see 'vdiskfs snap ls' name={name!r}"
            ) from None

    def has_snapshot(self, vdisk: int, name: str) -> bool:
        """Whether the name is taken."""
        return name in self._snapshots.get(vdisk, {})

    def by_id(self, snapshot_id: int) -> Snapshot | None:
        """The snapshot whose file has this inode number."""
        return self._by_id.get(snapshot_id)

    def add_snapshot(self, snapshot: Snapshot) -> None:
        """It is in the catalog; also one that has changed."""
        self._snapshots.setdefault(snapshot.vdisk, {})[snapshot.name] = snapshot
        self._by_id[snapshot.id] = snapshot

    def drop_snapshot(self, snapshot: Snapshot) -> None:
        """It is not in the catalog any more."""
        mine = self._snapshots[snapshot.vdisk]
        del mine[snapshot.name], self._by_id[snapshot.id]
        if not mine:
            del self._snapshots[snapshot.vdisk]

    def drop_snapshots(self, vdisk: int) -> None:
        """None of the vdisk's are."""
        for snapshot in self._snapshots.pop(vdisk, {}).values():
            del self._by_id[snapshot.id]

    # ---- who keeps what

    def pin(self, vdisk: int, version: int, *, elsewhere: bool = False) -> None:
        """Somebody reads this version until ``unpin``, here or elsewhere."""
        pins = self._pins_elsewhere if elsewhere else self._pins
        pins.setdefault(vdisk, Counter())[version] += 1

    def unpin(self, vdisk: int, version: int, *, elsewhere: bool = False) -> None:
        """Somebody does not any more."""
        all_pins = self._pins_elsewhere if elsewhere else self._pins
        pins = all_pins[vdisk]
        pins[version] -= 1
        if not pins[version]:
            del pins[version]
        if not pins:
            del all_pins[vdisk]

    @contextmanager
    def pinned(self, vdisk: int, version: int) -> Iterator[None]:
        """Pins a version meanwhile."""
        self.pin(vdisk, version)
        try:
            yield
        finally:
            self.unpin(vdisk, version)

    def pinned_versions(self, vdisk: int) -> set[int]:
        """Versions with a pin of this node's and without a name or a child."""
        others = {snapshot.version for snapshot in self._snapshots.get(vdisk, {}).values()}
        return set(self._pins.get(vdisk, ())) - others - set(self.children(vdisk).values())

    def pin_count(self, vdisk: int) -> int:
        """How many pins its versions have."""
        return sum(sum(pins.get(vdisk, Counter()).values()) for pins in (self._pins, self._pins_elsewhere))

    def indexed_versions(self, vdisk: int) -> set[int]:
        """Versions besides the newest of which this node's index has the rows: with a name, a child, or a reader here."""
        versions = {snapshot.version for snapshot in self._snapshots.get(vdisk, {}).values()}
        versions.update(self.children(vdisk).values(), self._pins.get(vdisk, ()))
        return versions

    def read_versions(self, vdisk: int) -> tuple[int, ...]:
        """Versions that somebody other than the head may read, in order: what they see stays."""
        return tuple(sorted({*self.indexed_versions(vdisk), *self._pins_elsewhere.get(vdisk, ())}))

    def kept_versions(self, vdisk: int) -> tuple[int, ...]:
        """Borders between generations, in order: read versions, and for ever both ends of each rollback."""
        ends = {end for rollback in self.descent(vdisk).rollbacks for end in rollback}
        return tuple(sorted({*ends, *self.read_versions(vdisk)}))

    def newest_named(self, vdisk: int) -> int:
        """The newest version that the catalog names: it was durable before."""
        named = [snapshot.version for snapshot in self._snapshots.get(vdisk, {}).values()]
        rolled_back_at = [at for _, at in self.descent(vdisk).rollbacks]
        return max((*named, *self.children(vdisk).values(), *rolled_back_at), default=0)

    def doomed_with(self, vdisk: int) -> list[int]:
        """What goes when this vdisk goes: itself, and deleted ancestors that were kept for it alone, nearest first."""
        doomed, child = [vdisk], vdisk
        while (parent := self.descent(child).parent) is not None:
            if not self.descent(parent[0]).nameless or len(self.children(parent[0])) > 1:
                break
            if self.pin_count(parent[0]):
                break
            child = parent[0]
            doomed.append(child)
        return doomed

    def is_needed(self, vdisk: int) -> bool:
        """Whether anybody reads the vdisk besides whoever opens it by its name."""
        return bool(self.children(vdisk) or self.pin_count(vdisk) or vdisk in self._snapshots)
