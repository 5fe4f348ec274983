"""Who may commit to a vdisk: the owner record, and the mark that its head may be ahead of the catalog.

    owner/ID   {"node", "epoch"}      compare-and-swap; the epoch grows with each change of node (below)
    vdisk/ID   {..., "resting"}       the summary of a vdisk nobody writes; taken away before the first change
    vdisk/ID   {..., "floor"}         what collection may have deleted (replication/log_floor.py)

So a vdisk with a ``resting`` summary is exactly as its summary says, and one without is read from its log.

    nobody's --claim--> N's --hand_over--> M's         what N had acknowledged lies in the log, and N rests
                        N's --take_over--> M's         N has no session: it acknowledges nothing any more

What only the owner may say of a vdisk (that it rests, what may be deleted) is said in a transaction that rests on
the owner record, so that a deposed owner, however late it wakes up, cannot say it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from metadata.catalog import (
    Catalog,
    Change,
    Row,
    check_kind,
    decode_value,
    encode_value,
    owner_key,
    session_key,
    vdisk_key,
)
from metadata.descent import Descent, read_descent
from metadata.errors import Conflict, Corrupt, Fenced, NotFound, NotOwner
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
    """Who may commit to a vdisk; ``node`` empty: nobody has yet."""

    node: str = ""
    epoch: int = 0
    revision: int = field(default=0, compare=False)
    """Of the row; 0: there is none."""


def read_owner(row: Row) -> Owner:
    """What an ``owner/`` row says.

    Raises:
        Corrupt: it is none.
    """
    value = decode_value(row.key, row.value)
    try:
        return Owner(str(value["node"]), int(value["epoch"]), row.revision)  # type: ignore[index]
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
        fields = dict(value["resting"])
        check_kind(int, fields.values())
        return Resting(**fields)
    except (TypeError, ValueError) as exc:
        raise Corrupt(f"a damaged summary in the catalog: {exc}") from exc


def _read_floor(value: dict[str, object]) -> Floor:
    if not value.get("floor"):
        return NO_FLOOR
    try:
        fields = dict(value["floor"])  # type: ignore[call-overload]
        check_kind(int, fields.values())
        return Floor(**fields)
    except (TypeError, ValueError) as exc:
        raise Corrupt(f"a damaged floor in the catalog: {exc}") from exc


async def read_facts(catalog: Catalog, vdisk: int) -> VdiskFacts:
    """The vdisk's rows in the catalog.

    Raises:
        NotFound: there is no such vdisk.
    """
    rows, _ = await catalog.read(vdisk_key(vdisk))
    owner = await find_owner(catalog, vdisk)
    if not rows:
        raise NotFound(f"no such vdisk vdisk={vdisk}")
    value = decode_value(rows[0].key, rows[0].value)
    if not isinstance(value, dict):
        raise Corrupt(f"a damaged record in the catalog vdisk={vdisk}")
    return VdiskFacts(
        descent=read_descent(value),
        resting=read_resting(value),
        node=owner.node,
        epoch=owner.epoch,
        revision=rows[0].revision,
        owner_revision=owner.revision,
        floor=_read_floor(value),
    )


async def find_owner(catalog: Catalog, vdisk: int) -> Owner:
    """Who owns a vdisk now."""
    rows, _ = await catalog.read(owner_key(vdisk))
    return read_owner(rows[0]) if rows else Owner()


def _encode_owner(node: str, epoch: int) -> bytes:
    return encode_value({"node": node, "epoch": epoch})


async def _as_owner(catalog: Catalog, vdisk: int, me: Owner | None, *, besides: Change = _NOTHING) -> Change:
    """``besides``, only as long as ``me`` owns the vdisk (None: whoever does).

    Raises:
        Fenced: it does not any more.
    """
    if me is None:
        return besides
    now = await find_owner(catalog, vdisk)
    if (now.node, now.epoch) != (me.node, me.epoch):
        raise Fenced(
            f"another node owns the vdisk now vdisk={vdisk} node={now.node} epoch={now.epoch} ours={me.epoch}"
        )
    compares = ((owner_key(vdisk), now.revision), *besides.compares)
    return Change(compares=compares, puts=besides.puts, deletes=besides.deletes)


async def update_record(
    catalog: Catalog,
    vdisk: int,
    changes: Mapping[str, object],
    *,
    besides: Change = _NOTHING,
    owner: Owner | None = None,
) -> Descent:
    """Changes fields of a vdisk's row, and does ``besides`` in the same transaction; returns its descent now.

    Args:
        catalog: where.
        vdisk: whose.
        changes: fields and their new values.
        besides: done in the same transaction, or nothing is.
        owner: who must own the vdisk for it.

    Raises:
        NotFound: there is no such vdisk.
        Conflict: a compare of ``besides`` does not hold.
        Fenced: ``owner`` does not own it any more.
    """
    tried, wanted = 0, besides
    for _ in range(_TRIES):
        besides = await _as_owner(catalog, vdisk, owner, besides=wanted)
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

    Raises:
        NotOwner: another node owns it.
    """
    for _ in range(_TRIES):
        facts = await read_facts(catalog, vdisk)
        if facts.node not in ("", node):
            raise NotOwner(f"another node owns the vdisk vdisk={vdisk} node={facts.node}")
        epoch = facts.epoch if facts.node == node else facts.epoch + 1
        rows, _ = await catalog.read(vdisk_key(vdisk))
        value = decode_value(rows[0].key, rows[0].value) if rows else None
        if not isinstance(value, dict) or rows[0].revision != facts.revision:
            continue
        change = Change(
            compares=((vdisk_key(vdisk), facts.revision), (owner_key(vdisk), facts.owner_revision)),
            puts=(
                (vdisk_key(vdisk), encode_value({**value, "resting": None})),
                (owner_key(vdisk), _encode_owner(node, epoch)),
            ),
        )
        try:
            await catalog.transact(change)
            return Epoch(epoch)
        except Conflict:
            continue
    raise Conflict(f"the vdisk's owner keeps changing vdisk={vdisk}")


async def take_over(catalog: Catalog, vdisk: int, *, owner: Owner, node: str) -> Epoch:
    """Makes this node the owner in place of one that has no session; durable when it returns.

    What the old owner acknowledged is in the log: it looks at its session, or at the owner record, before it does.

    Returns:
        The epoch to write under.

    Raises:
        NotOwner: ``owner`` has a session, or does not own the vdisk any more.
    """
    epoch = owner.epoch + 1
    compares = ((owner_key(vdisk), owner.revision), (session_key(owner.node), 0))
    put = (owner_key(vdisk), _encode_owner(node, epoch))
    try:
        await catalog.transact(Change(compares=compares, puts=(put,)))
    except Conflict:
        raise NotOwner(f"another node owns the vdisk vdisk={vdisk} node={owner.node}") from None
    return Epoch(epoch)


async def hand_over(catalog: Catalog, vdisk: int, *, owner: Owner, to: str) -> Epoch:
    """Gives the vdisk, of which the owner has nothing uncommitted, to another node; durable when it returns.

    Returns:
        The epoch under which that writes.

    Raises:
        Fenced: it is not ``owner``'s to give any more.
    """
    epoch = owner.epoch + 1
    change = await _as_owner(
        catalog, vdisk, owner, besides=Change(puts=((owner_key(vdisk), _encode_owner(to, epoch)),))
    )
    try:
        await catalog.transact(change)
    except Conflict:
        raise Fenced(f"another node owns the vdisk now vdisk={vdisk} ours={owner.epoch}") from None
    return Epoch(epoch)


async def rest(catalog: Catalog, vdisk: int, resting: Resting, *, owner: Owner | None = None) -> None:
    """Notes what the vdisk is now that nobody writes it.

    Raises:
        Fenced: ``owner`` does not own it any more.
    """
    await update_record(catalog, vdisk, {"resting": asdict(resting)}, owner=owner)


async def adopt(
    catalog: Catalog,
    vdisk: int,
    *,
    parent: tuple[int, int],
    parent_overlap: int = 0,
    compares: Sequence[tuple[bytes, int]] = (),
) -> Descent:
    """Makes a vdisk without blocks a child of (vdisk, version); blocks it has no row for stay holes.

    ``parent_overlap``: the parent's own overlap at that version. Returns the child's descent.

    Raises:
        Conflict: one of ``compares`` does not hold.
    """
    changes = {"parent": list(parent), "absent": HOLE, "overlap": 0, "parent_overlap": parent_overlap}
    return await update_record(catalog, vdisk, changes, besides=Change(compares=tuple(compares)))


async def set_nameless(
    catalog: Catalog,
    vdisk: int,
    *,
    snapshots: Sequence[bytes] = (),
    compares: Sequence[tuple[bytes, int]] = (),
) -> Descent:
    """Notes that a vdisk lives only for others; the rows of its snapshots go. Returns its descent.

    Raises:
        Conflict: one of ``compares`` does not hold.
    """
    besides = Change(compares=tuple(compares), deletes=tuple(snapshots))
    return await update_record(catalog, vdisk, {"nameless": True}, besides=besides)


async def set_floor(catalog: Catalog, vdisk: int, floor: Floor, *, owner: Owner | None = None) -> None:
    """Notes what may be deleted from now on; durable when it returns.

    Raises:
        Fenced: ``owner`` does not own the vdisk any more.
    """
    await update_record(catalog, vdisk, {"floor": asdict(floor)}, owner=owner)
