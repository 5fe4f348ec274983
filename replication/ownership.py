"""Who may commit to a vdisk: the owner record, and the mark that its head may be ahead of the catalog.

    owner/ID   {"node", "epoch"}      compare-and-swap; the epoch grows with each change of node
    vdisk/ID   {..., "resting"}       the summary of a vdisk nobody writes; taken away before the first change
    vdisk/ID   {..., "floor"}         what collection may have deleted (replication/log_floor.py)

So a vdisk with a ``resting`` summary is exactly as its summary says, and one without is read from its log.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from metadata.catalog import Catalog, Change, Row, decode_value, encode_value, owner_key, vdisk_key
from metadata.descent import Descent, read_descent
from metadata.errors import Conflict, Corrupt, NotFound
from metadata.ids import HOLE, Epoch

_TRIES = 20
_NOTHING = Change()


@dataclass(frozen=True, slots=True)
class Resting:
    """A vdisk at rest: its newest commit, and what `ls` shows."""

    version: int
    record_place: int
    record_check: int
    record_end: int
    size: int
    own_blocks: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class Floor:
    """What collection may have deleted of a vdisk; written before it does."""

    version: int = 0
    """A checkpoint of this or a newer version is in the pool; older log records may be gone."""
    collected: int = 0
    """Counts collections: an index or checkpoint that does not know of this one may name deleted groups."""
    compacted: int = 0
    """Groups of compaction have had numbers below this one; none is used twice."""


NO_FLOOR = Floor()
"""Nothing has been collected."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The node that may commit to a vdisk."""

    node: str
    epoch: int


def read_owner(row: Row) -> Owner:
    """What an ``owner/`` row says.

    Raises:
        Corrupt: it is none.
    """
    value = decode_value(row.key, row.value)
    try:
        return Owner(str(value["node"]), int(value["epoch"]))  # type: ignore[index]
    except (TypeError, KeyError, ValueError) as exc:
        raise Corrupt(f"a damaged owner in the catalog key={row.key!r}") from exc


@dataclass(frozen=True, slots=True)
class VdiskFacts:
    """What the catalog knows of a vdisk."""

    descent: Descent = field(default_factory=Descent)
    resting: Resting | None = None
    node: str = ""
    epoch: int = 0
    revision: int = 0
    owner_revision: int = 0
    floor: Floor = NO_FLOOR


def read_resting(value: object) -> Resting | None:
    """The summary in a decoded ``vdisk/`` row."""
    if not isinstance(value, dict) or not value.get("resting"):
        return None
    try:
        return Resting(**value["resting"])
    except TypeError as exc:
        raise Corrupt(f"a damaged summary in the catalog: {exc}") from exc


def _read_floor(value: dict[str, object]) -> Floor:
    fields = value.get("floor") or {}
    try:
        return Floor(**fields)  # type: ignore[arg-type]
    except TypeError as exc:
        raise Corrupt(f"a damaged floor in the catalog: {exc}") from exc


async def read_facts(catalog: Catalog, vdisk: int) -> VdiskFacts:
    """The vdisk's rows in the catalog.

    Raises:
        NotFound: there is no such vdisk.
    """
    rows, _ = await catalog.read(vdisk_key(vdisk))
    owners, _ = await catalog.read(owner_key(vdisk))
    if not rows:
        raise NotFound(f"no such vdisk vdisk={vdisk}")
    value = decode_value(rows[0].key, rows[0].value)
    owner = decode_value(owners[0].key, owners[0].value) if owners else {"node": "", "epoch": 0}
    if not isinstance(value, dict) or not isinstance(owner, dict):
        raise Corrupt(f"a damaged record in the catalog vdisk={vdisk}")
    return VdiskFacts(
        descent=read_descent(value),
        resting=read_resting(value),
        node=str(owner["node"]),
        epoch=int(owner["epoch"]),
        revision=rows[0].revision,
        owner_revision=owners[0].revision if owners else 0,
        floor=_read_floor(value),
    )


async def update_record(
    catalog: Catalog, vdisk: int, changes: Mapping[str, object], *, besides: Change = _NOTHING
) -> Descent:
    """Changes fields of a vdisk's row, and does ``besides`` in the same transaction; returns its descent now.

    Raises:
        NotFound: there is no such vdisk.
        Conflict: a compare of ``besides`` does not hold.
    """
    tried = 0
    for _ in range(_TRIES):
        rows, _ = await catalog.read(vdisk_key(vdisk))
        if not rows:
            raise NotFound(f"no such vdisk vdisk={vdisk}")
        value = decode_value(rows[0].key, rows[0].value)
        if not isinstance(value, dict):
            raise Corrupt(f"a damaged record in the catalog vdisk={vdisk}")
        if rows[0].revision == tried:
            raise Conflict(f"what the change of a vdisk's record rests on is gone vdisk={vdisk}")
        tried, renewed = rows[0].revision, {**value, **changes}
        change = Change(
            compares=((rows[0].key, rows[0].revision), *besides.compares),
            puts=((rows[0].key, encode_value(renewed)), *besides.puts),
            deletes=besides.deletes,
        )
        try:
            await catalog.transact(change)
            return read_descent(renewed)
        except Conflict:
            continue
    raise Conflict(f"the vdisk's record keeps changing vdisk={vdisk}")


async def claim(catalog: Catalog, vdisk: int, *, node: str) -> Epoch:
    """Makes this node the owner and takes the resting summary away; durable when it returns.

    Returns:
        The epoch to write under: the old one if the node owned the vdisk already.
    """
    for _ in range(_TRIES):
        facts = await read_facts(catalog, vdisk)
        epoch = facts.epoch if facts.node == node else facts.epoch + 1
        rows, _ = await catalog.read(vdisk_key(vdisk))
        value = decode_value(rows[0].key, rows[0].value) if rows else None
        if not isinstance(value, dict) or rows[0].revision != facts.revision:
            continue
        change = Change(
            compares=((vdisk_key(vdisk), facts.revision), (owner_key(vdisk), facts.owner_revision)),
            puts=(
                (vdisk_key(vdisk), encode_value({**value, "resting": None})),
                (owner_key(vdisk), encode_value({"node": node, "epoch": epoch})),
            ),
        )
        try:
            await catalog.transact(change)
            return Epoch(epoch)
        except Conflict:
            continue
    raise Conflict(f"the vdisk's owner keeps changing vdisk={vdisk}")


async def rest(catalog: Catalog, vdisk: int, resting: Resting) -> None:
    """Notes what the vdisk is now that nobody writes it."""
    await update_record(catalog, vdisk, {"resting": asdict(resting)})


async def adopt(catalog: Catalog, vdisk: int, *, parent: tuple[int, int], parent_overlap: int = 0) -> Descent:
    """Makes a vdisk without blocks a child of (vdisk, version); blocks it has no row for stay holes.

    ``parent_overlap``: the parent's own overlap at that version. Returns the child's descent.
    """
    changes = {"parent": list(parent), "absent": HOLE, "overlap": 0, "parent_overlap": parent_overlap}
    return await update_record(catalog, vdisk, changes)


async def set_nameless(catalog: Catalog, vdisk: int, *, snapshots: Sequence[bytes] = ()) -> Descent:
    """Notes that a vdisk lives only for others; the rows of its snapshots go. Returns its descent."""
    return await update_record(catalog, vdisk, {"nameless": True}, besides=Change(deletes=tuple(snapshots)))


async def set_floor(catalog: Catalog, vdisk: int, floor: Floor) -> None:
    """Notes what may be deleted from now on; durable when it returns."""
    await update_record(catalog, vdisk, {"floor": asdict(floor)})
