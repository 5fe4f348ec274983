"""Rolling a vdisk back to a snapshot: its old content becomes the newest version, whatever its size.

flush        what is there now becomes version R, durable and in the index
room closed  no change and no commit begins from here on
catalog      one transaction: R gets a name, so that all this can be undone, and the rollback (S, R) joins the
             vdisk's record: **from here on it has happened**, also for a daemon that starts after a crash
head         forgets its rows; those between S and R are masked (metadata/descent.py)
commit       the first version above R says what S was; until it is durable the record says so (``rolled_back``)
"""

import logging
from collections.abc import Sequence

import trio

from metadata.catalog import Catalog, Change
from metadata.descent import Descent
from metadata.errors import Busy, Conflict, Exists, NotFound, Unavailable, VdiskfsError
from metadata.ids import VdiskId
from metadata.snapshots import Snapshot, encode_snapshot
from replication.commit import flush, start_running
from replication.head import Head
from replication.moments import Moment, pinned_moments, take_moments
from replication.ownership import read_facts, update_record
from replication.vdisks import Vdisks

log = logging.getLogger(__name__)

_TRIES = 50
"""Somebody without an open file may change the vdisk meanwhile; so often in a row means a bug."""
_ASK_AGAIN_S = 1.0


async def roll_back(vdisks: Vdisks, snapshot: Snapshot, *, name_now: "NameNow") -> Snapshot:
    """Makes a snapshot's content the vdisk's; returns the snapshot of what was there before.

    Raises:
        Busy: the vdisk is open for writing, or being flattened.
        NotFound: it, or the snapshot, was deleted meanwhile.
        Exists: the name for what is there now is taken.
        NoSpace, Unavailable, Corrupt: nothing has happened.
    """
    vdisk = VdiskId(snapshot.vdisk)
    async with vdisks.using(vdisk) as head:
        for _ in range(_TRIES):
            _refuse_users(vdisks, vdisk)
            moments = await take_moments([head], vdisks.family)
            with pinned_moments(moments, vdisks.family):
                kept = await _try(vdisks, head, snapshot, now=name_now(moments[0]))
            if kept is not None:
                break
        else:
            raise Unavailable(f"the vdisk found no quiet moment vdisk={vdisk}")
        try:
            await flush(head)
        except VdiskfsError as exc:  # the record says so all the same, and the next commit again
            log.warning("a rollback is not in the log yet: %s vdisk=%d", exc, vdisk)
            if vdisks.company is not None:
                await vdisks.company.publisher.end_trust(vdisk)
    return kept


class NameNow:
    """Gives what is there now a name."""

    def __init__(self, name: str, snapshot_id: int, *, now_ns: int) -> None:
        self._fields = name, snapshot_id, now_ns

    def __call__(self, moment: Moment) -> Snapshot:
        name, snapshot_id, now_ns = self._fields
        return Snapshot(
            vdisk=moment.vdisk,
            name=name,
            id=snapshot_id,
            version=moment.version,
            size=moment.size,
            own_blocks=moment.own_blocks,
            overlap=moment.overlap,
            mtime_ns=moment.mtime_ns,
            created_ns=now_ns,
        )


def _refuse_users(vdisks: Vdisks, vdisk: VdiskId) -> None:
    if vdisks.has_writer(vdisk):
        raise Busy("the vdisk is open for writing: shut down or close whatever uses it, then roll it back")
    if vdisk in vdisks.flattening:
        raise Busy("the vdisk is being flattened: try again when that is done")


async def _try(vdisks: Vdisks, head: Head, snapshot: Snapshot, *, now: Snapshot) -> Snapshot | None:
    """The snapshot of what was there before; None: the vdisk changed meanwhile."""
    family, vdisk = vdisks.family, VdiskId(head.vdisk)
    ancestry = await vdisks.loading.ancestry(vdisk, snapshot.version)
    async with family.lock, head.room_lock:
        await start_running(head)
        _refuse_users(vdisks, vdisk)
        if not family.has_snapshot(vdisk, snapshot.name) or family.by_id(snapshot.id) is None:
            raise NotFound(f"the snapshot was removed meanwhile name={snapshot.name!r}")
        if family.has_snapshot(vdisk, now.name):
            raise Exists(f"there is a snapshot of this name already: choose another one name={now.name!r}")
        if (
            head.is_dirty
            or head.index_lags
            or head.commit_done is not None
            or head.log.version != now.version
        ):
            return None
        head.log.close_room()  # a change after this needs room first, and waits for the lock
        with trio.CancelScope(shield=True):
            old = family.descent(vdisk)
            descent = await _record(head, old, to=snapshot, now=now)
        # No await from here: nobody sees the one without the other.
        family.set_descent(vdisk, descent)
        family.add_snapshot(now)
        if descent.rollbacks != old.rollbacks:
            _restore(head, snapshot, descent)
            if bool(ancestry.generations) != bool(head.ancestry.generations):  # flattened since, or before
                head.ancestry = ancestry
    return now


async def _record(head: Head, old: Descent, *, to: Snapshot, now: Snapshot) -> Descent:
    """Notes the rollback and the name of what was there before, in one transaction; returns the vdisk's descent."""
    changes: dict[str, object] = {}
    rollbacks: Sequence[tuple[int, int]] = old.rollbacks
    if to.version != now.version:
        rollbacks = (*old.rollbacks, (to.version, now.version))
        changes = {
            "rollbacks": [list(rollback) for rollback in rollbacks],
            "rolled_back": [to.size, to.own_blocks, to.overlap],
            "resting": None,
        }
    row, catalog = encode_snapshot(now), head.workspace.catalog
    try:
        besides = Change(compares=((row[0], 0),), puts=(row,))
        return await update_record(catalog, now.vdisk, changes, besides=besides, owner=head.owner)
    except Conflict:
        raise Exists(f"there is a snapshot of this name already name={now.name!r}") from None
    except Unavailable as exc:  # perhaps it was done all the same: nothing may go on before that is known
        descent = await _ask_again(catalog, now.vdisk)
        if not changes or descent.rollbacks != tuple(rollbacks):
            raise exc from None
        return descent


async def _ask_again(catalog: Catalog, vdisk: int) -> Descent:
    while True:
        try:
            return (await read_facts(catalog, vdisk)).descent
        except Unavailable as exc:
            log.warning("whether a rollback has happened only the catalog can tell: %s vdisk=%d", exc, vdisk)
            await trio.sleep(_ASK_AGAIN_S)


def _restore(head: Head, snapshot: Snapshot, descent: Descent) -> None:
    """The head, which has nothing uncommitted, is what the snapshot was."""
    head.rows.clear()
    head.rollbacks = descent.rollbacks
    head.size, head.own_blocks, head.overlap = snapshot.size, snapshot.own_blocks, snapshot.overlap
    head.touch()
    head.commits += 1  # what threads look up now is of before
    head.change_no += 1
