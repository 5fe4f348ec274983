"""What the catalog says of vdisks that other nodes own: owners, descents, snapshots, summaries.

The owner's own mirror (replication/family.py) is the truth for its vdisks: it changes it behind each transaction.
What others own, and what nobody has written yet, follows the catalog's watch; who must not be behind asks ``refresh``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

from metadata.catalog import (
    OWNER_PREFIX,
    SNAP_PREFIX,
    VDISK_PREFIX,
    Catalog,
    Event,
    Row,
    decode_value,
    id_in_key,
    owner_key,
    vdisk_key,
)
from metadata.descent import read_descent
from metadata.errors import Corrupt
from metadata.snapshots import decode_snapshot
from replication.family import Family
from replication.ownership import Owner, Resting, read_owner, read_resting

_PREFIXES = {OWNER_PREFIX, SNAP_PREFIX, VDISK_PREFIX}
OwnerListener = Callable[[int, Owner | None], None]
"""Given a vdisk and its owner now."""


class Mirror:
    """One to a node that has others; owned by its ``Company``.

    Args:
        node: this one.
        family: the snapshot tree.
        resting: summaries of vdisks that nobody writes.
        claimed: vdisks that have been written.
        note_gone: told of each that the catalog knows no more.
    """

    def __init__(
        self,
        node: str,
        family: Family,
        *,
        resting: dict[int, Resting],
        claimed: set[int],
        note_gone: Callable[[int], None],
    ) -> None:
        self.owners: dict[int, Owner] = {}
        self.deleted: set[int] = set()
        """Vdisks that are gone: what the index has of them may go, which only the node that deletes one sees to at once."""
        self.listeners: list[OwnerListener] = []
        """Told when a vdisk has another owner, or epoch, in one stretch with that being noted."""
        self._node, self._family = node, family
        self._resting, self._claimed, self._note_gone = resting, claimed, note_gone
        self._known_at: dict[int, int] = {}
        """Revision at which a vdisk's rows were read: what happened before is known."""

    def load_owners(self, rows: Iterable[Row]) -> None:
        """At the start, when all else has just been read."""
        self.owners = {id_in_key(row.key, OWNER_PREFIX): read_owner(row) for row in rows}

    def is_mine(self, vdisk: int) -> bool:
        """Whether the owner is this node, or nobody has written the vdisk yet."""
        owner = self.owners.get(vdisk)
        return owner is None or owner.node == self._node

    def is_owned_here(self, vdisk: int) -> bool:
        """Whether the owner record names this node."""
        owner = self.owners.get(vdisk)
        return owner is not None and owner.node == self._node

    def reign(self, vdisk: int) -> int:
        """The epoch of the owner; that of a vdisk which nobody has written yet is its first owner's."""
        owner = self.owners.get(vdisk)
        return 1 if owner is None else owner.epoch

    def note_owner(self, vdisk: int, owner: Owner | None) -> None:
        """The catalog says so now, or will have said so; an older epoch says nothing new."""
        known = self.owners.get(vdisk)
        if owner == known or (owner is not None and known is not None and owner.epoch < known.epoch):
            return
        if owner is None:
            del self.owners[vdisk]
        else:
            self.owners[vdisk] = owner
            self._claimed.add(vdisk)
        for listener in self.listeners:
            listener(vdisk, owner)

    async def refresh(self, catalog: Catalog, vdisk: int) -> None:
        """Reads all that the catalog says of a vdisk now; for one that this node has just taken over, too."""
        owners, revision = await catalog.read(owner_key(vdisk))
        rows, _ = await catalog.read(vdisk_key(vdisk))
        snapshots, _ = await catalog.read(b"%b%016x/" % (SNAP_PREFIX, vdisk))
        self._known_at[vdisk] = max(revision, self._known_at.get(vdisk, 0))
        self.note_owner(vdisk, read_owner(owners[0]) if owners else None)
        if rows:
            self._note_record(vdisk, rows[0].key, rows[0].value)
            self._family.drop_snapshots(vdisk)
            for row in snapshots:
                self._family.add_snapshot(decode_snapshot(row.key, row.value))

    def note_events(self, events: Sequence[Event], *, is_own: bool) -> None:
        """The catalog's changes as its watch tells them; this node's own transactions on names among them."""
        relevant = [event for event in events if event.key[: event.key.find(b"/") + 1] in _PREFIXES]
        for event in sorted(relevant, key=lambda event: (event.revision, event.value is not None)):
            prefix = event.key[: event.key.find(b"/") + 1]
            vdisk = id_in_key(event.key, prefix)
            if event.revision <= self._known_at.get(vdisk, 0):
                continue
            if prefix == OWNER_PREFIX:
                owner = (
                    None if event.value is None else read_owner(Row(event.key, event.value, event.revision))
                )
                self.note_owner(vdisk, owner)
            elif prefix == VDISK_PREFIX and event.value is None:
                self._known_at.pop(vdisk, None)
                self.deleted.add(vdisk)
                self._note_gone(vdisk)
            elif self.is_mine(vdisk) and vdisk in self.owners:
                continue
            elif prefix == VDISK_PREFIX and event.value is not None:
                self._note_record(vdisk, event.key, event.value)
            else:
                self._note_snapshot(vdisk, event)

    def note_reload(self, rows: Sequence[Row], revision: int) -> None:
        """All rows of the catalog: what happened since the last events is unknown."""
        events = [Event(row.key, row.value, row.revision) for row in rows]
        there = {row.key for row in rows}
        gone = [owner_key(vdisk) for vdisk in self.owners]
        gone += [vdisk_key(vdisk) for vdisk in self._family.known() | self._claimed]
        gone += [snapshot.key for snapshot in self._family.all_snapshots()]
        events += [Event(key, None, revision) for key in gone if key not in there]
        self._known_at.clear()
        self.note_events(events, is_own=False)

    def _note_record(self, vdisk: int, key: bytes, value: bytes) -> None:
        decoded = decode_value(key, value)
        if not isinstance(decoded, Mapping):
            raise Corrupt(f"a damaged record in the catalog key={key!r}")
        self._family.set_descent(vdisk, read_descent(decoded))
        resting = read_resting(decoded)
        if resting is None:
            self._resting.pop(vdisk, None)
        else:
            self._resting[vdisk] = resting

    def _note_snapshot(self, vdisk: int, event: Event) -> None:
        if event.value is not None:
            self._family.add_snapshot(decode_snapshot(event.key, event.value))
            return
        name = event.key[len(SNAP_PREFIX) + 17 :].decode()
        if self._family.has_snapshot(vdisk, name):
            self._family.drop_snapshot(self._family.snapshot(vdisk, name))
