"""The trash: what ``vdiskfs rm`` deletes stays restorable for a while; the daemon's side of rm and trash.

    a name --rm--> trash/ID --restore--> a name
       |              | purge, or its time is over, or the pool is nearly full (oldest first)
       +--rm --now----+--> orphan/ID --> gone once nobody has it open

A file that is deleted in the mount does not come here: programs that delete disks expect the space back. The
kernel is told of each name that goes, because it did not take part in it.
"""

import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import trio

from fusefs.control import Progress, Verb
from fusefs.namespace_store import NamespaceStore
from fusefs.notifications import Notifications
from fusefs.resolution import KINDS, PathResolver, flag_in, path_in
from fusefs.snapshot_tree import listed
from metadata.catalog import Catalog, decode_value, setting_key
from metadata.errors import Busy, Corrupt, Exists, InvalidRequest, NotFound, VdiskfsError
from metadata.ids import VdiskId
from metadata.namespace import Kind
from metadata.namespace_plans import Deed, Entry, plan_purge, plan_restore, plan_trash, plan_unlink
from metadata.trash import Trashed
from metadata.units import TRASH_S_DEFAULT
from replication.family import Family
from replication.vdisks import VdiskStat

PERIOD_S = 1.0
"""Between two looks for what has been in the trash long enough."""
AT_ONCE = 32
"""Deletions under way together."""
FREE_PERCENT_MIN = 5
"""A pool with less free space purges the oldest, however new they are."""

_T = TypeVar("_T")
_log = logging.getLogger(__name__)


class TrashedVdisks(Protocol):
    """What is asked of the vdisks (``replication.vdisks``, and a double in the tests)."""

    def has_handles(self, vdisk: VdiskId) -> bool: ...
    def stat_nowait(self, vdisk: VdiskId) -> VdiskStat | None: ...
    async def statfs(self) -> os.statvfs_result: ...


async def _together(work: Callable[[_T], Awaitable[None]], items: Sequence[_T]) -> None:
    """Do something with each, several at once: changes of names under way together share a sync.

    Raises:
        VdiskfsError: the first that was raised; nothing was begun after that.
    """
    failures: list[VdiskfsError] = []
    left = iter(items)

    async def do_some() -> None:
        for item in left:
            try:
                await work(item)
            except VdiskfsError as exc:
                failures.append(exc)
            if failures:
                return

    async with trio.open_nursery() as nursery:
        for _ in range(AT_ONCE):
            nursery.start_soon(do_some)
    if failures:
        raise failures[0]


async def _nobody(_: int) -> Sequence[str]:
    return ()


async def read_keep_s(catalog: Catalog) -> int:
    """How long this pool keeps deleted vdisks.

    Raises:
        Corrupt: the setting is no number.
    """
    rows, _ = await catalog.read(setting_key("trash_s"))
    keep_s = decode_value(rows[0].key, rows[0].value) if rows else TRASH_S_DEFAULT
    if not isinstance(keep_s, int):
        raise Corrupt(f"an unreadable setting in the catalog trash_s={keep_s!r}")
    return keep_s


class Trash:
    """One to a node.

    Args:
        keep_s: how long a deleted vdisk stays; 0: it is deleted at once.
        drop: deletes an orphan's data.
        is_purger: whether it is this node, of all live ones, that empties the trash.
        users: the other nodes that use a file.
    """

    def __init__(
        self,
        store: NamespaceStore,
        vdisks: TrashedVdisks,
        family: Family,
        *,
        paths: PathResolver,
        notifications: Notifications,
        drop: Callable[[int], Awaitable[None]],
        keep_s: int,
        node: str,
        clock_ns: Callable[[], int],
        is_purger: Callable[[], bool] = lambda: True,
        users: Callable[[int], Awaitable[Sequence[str]]] = _nobody,
    ) -> None:
        self._store, self._vdisks, self._family = store, vdisks, family
        self._paths, self._notifications, self._drop = paths, notifications, drop
        self._keep_s, self._node, self._clock_ns = keep_s, node, clock_ns
        self._is_purger, self._users = is_purger, users

    def verbs(self) -> dict[str, Verb]:
        """The verbs, for a control server."""
        return {
            "rm": self._rm,
            "trash_ls": self._list,
            "trash_restore": self._restore,
            "trash_purge": self._purge_verb,
        }

    async def run(self) -> None:
        """Purge what has been here long enough, until cancelled."""
        while True:
            await trio.sleep(PERIOD_S)
            try:
                if self._is_purger():
                    await self.purge_due()
            except VdiskfsError as exc:
                _log.warning("the trash cannot be emptied, trying again: %s", exc)

    async def purge_due(self) -> None:
        """Purge what is over time; in a pool that is nearly full, the oldest too, until it is not."""
        now_ns = self._clock_ns()
        for vdisk, trashed in self._oldest_first():
            if trashed.until_ns <= now_ns:
                await self._purge(vdisk)
        for vdisk, trashed in self._oldest_first():
            pool = await self._vdisks.statfs()
            if pool.f_bavail * 100 >= pool.f_blocks * FREE_PERCENT_MIN:
                return
            _log.warning("the pool is nearly full: purging %s from the trash", os.fsdecode(trashed.path))
            await self._purge(vdisk)

    # Verbs.

    async def _rm(self, arguments: dict[str, Any], _: Progress) -> object:
        """Delete vdisks and links; nothing is deleted if one of them cannot be."""
        paths = arguments.get("paths")
        if not isinstance(paths, list):
            raise InvalidRequest("paths is no list")
        with_snapshots, now = flag_in(arguments, "snapshots"), flag_in(arguments, "now")
        entries = dict.fromkeys(self._paths.entry(path_in({"path": path})) for path in paths)
        for entry in entries:
            self._check_removable(entry, with_snapshots=with_snapshots)
        if flag_in(arguments, "unless_used"):
            await self._check_unused(entries)
        removed: dict[Entry, dict[str, Any]] = {}

        async def remove(entry: Entry) -> None:
            removed[entry] = await self._remove(entry, now=now or not self._keep_s)

        await _together(remove, list(entries))
        return {"removed": [removed[entry] for entry in entries]}

    def _check_removable(self, entry: Entry, *, with_snapshots: bool) -> None:
        namespace = self._store.namespace
        found = namespace.find(entry.parent, entry.name)
        shown = os.fsdecode(entry.name)
        if found is None:
            raise NotFound(f"{shown} does not exist")
        kind = namespace.inode(found).kind
        if kind is Kind.DIRECTORY:
            raise InvalidRequest(f"{shown} is a {KINDS[kind]}: rm deletes vdisks, rmdir empty directories")
        snapshots = self._family.snapshots(found) if kind is Kind.FILE else []
        if snapshots and not with_snapshots:
            what = "a snapshot" if len(snapshots) == 1 else f"{len(snapshots)} snapshots"
            raise Busy(
                f"{shown} has {what}: say --snapshots to delete it with {listed(snapshots)}",
            )
        protected = [snapshot for snapshot in snapshots if snapshot.protected]
        if protected:
            raise Busy(
                f"{shown} has protected snapshots: 'vdiskfs snap unprotect' first: {listed(protected)}",
            )

    async def _check_unused(self, entries: Iterable[Entry]) -> None:
        """By other nodes; of this one the command line has looked itself."""
        for entry in entries:
            users = await self._users(self._store.namespace.lookup(entry.parent, entry.name))
            if users:
                raise Busy(
                    f"{os.fsdecode(entry.name)} is in use on {', '.join(users)}: end that first, or say --force"
                )

    async def _remove(self, entry: Entry, *, now: bool) -> dict[str, Any]:
        namespace, deed = self._store.namespace, self._deed()
        victim = namespace.lookup(entry.parent, entry.name)
        facts: dict[str, Any] = {"path": self._paths.path_of(victim), "id": victim, "until_ns": None}
        async with self._notifications.entry_going(entry.parent, entry.name):
            if now or namespace.inode(victim).kind is not Kind.FILE:
                await self._store.commit(lambda ns: plan_unlink(ns, entry, deed=deed))
            else:
                until_ns = deed.now_ns + self._keep_s * 10**9
                await self._store.commit(lambda ns: plan_trash(ns, entry, deed=deed, until_ns=until_ns))
                facts["until_ns"] = until_ns
        await self._drop_unused(victim)
        return facts

    async def _list(self, arguments: dict[str, Any], _: Progress) -> object:
        return {
            "keep_s": self._keep_s,
            "entries": [self._facts(vdisk, trashed) for vdisk, trashed in self._oldest_first()],
        }

    def _facts(self, vdisk: int, trashed: Trashed) -> dict[str, Any]:
        stat = self._vdisks.stat_nowait(VdiskId(vdisk))
        return {
            "id": vdisk,
            "path": "/" + os.fsdecode(trashed.path),
            "size": stat.size if stat else None,
            "own_bytes": stat.allocated_bytes if stat else None,
            "snapshots": len(self._family.snapshots(vdisk)),
            "deleted_ns": trashed.deleted_ns,
            "until_ns": trashed.until_ns,
        }

    async def _restore(self, arguments: dict[str, Any], _: Progress) -> object:
        """By ``id``, or the one that was deleted last at ``path``; to where it was, or to the path ``to``."""
        vdisk, trashed = self._find(arguments)
        namespace, deed = self._store.namespace, self._deed()
        if arguments.get("to") is not None:
            entry = self._paths.entry(path_in(arguments, "to"))
        elif self._paths.path_of(trashed.parent) is not None:
            entry = Entry(trashed.parent, trashed.name)
        else:
            raise NotFound(f"its directory is gone: say --to NEWPATH path=/{os.fsdecode(trashed.path)}")
        if namespace.find(entry.parent, entry.name) is not None:
            raise Exists(f"the name {os.fsdecode(entry.name)} is taken: say --to NEWPATH")
        await self._store.commit(lambda ns: plan_restore(ns, vdisk, entry=entry, deed=deed))
        return {"id": vdisk, "path": self._paths.path_of(vdisk)}

    async def _purge_verb(self, arguments: dict[str, Any], _: Progress) -> object:
        """One, by ``id`` or by ``path``, or ``all``."""
        chosen = self._oldest_first() if flag_in(arguments, "all") else [self._find(arguments)]
        await _together(self._purge, [vdisk for vdisk, _trashed in chosen])
        return {"purged": [{"id": vdisk, "path": "/" + os.fsdecode(t.path)} for vdisk, t in chosen]}

    # What they share.

    def _find(self, arguments: dict[str, Any]) -> tuple[int, Trashed]:
        number = arguments.get("id")
        if number is not None:
            found = self._store.namespace.trashed(number) if type(number) is int else None
            if found is None:
                raise NotFound(f"nothing in the trash has the id {number}: see 'vdiskfs trash ls'")
            return number, found
        path = b"/".join(part for part in path_in(arguments).split(b"/") if part)
        for vdisk, trashed in reversed(self._oldest_first()):
            if trashed.path == path:
                return vdisk, trashed
        raise NotFound(f"nothing in the trash was called /{os.fsdecode(path)}: see 'vdiskfs trash ls'")

    def _oldest_first(self) -> list[tuple[int, Trashed]]:
        return sorted(self._store.namespace.trash().items(), key=lambda item: (item[1].deleted_ns, item[0]))

    async def _purge(self, vdisk: int) -> None:
        deed = self._deed()
        try:
            await self._store.commit(lambda ns: plan_purge(ns, vdisk, deed=deed))
        except NotFound:
            return  # restored or purged meanwhile
        await self._drop_unused(vdisk)

    async def _drop_unused(self, inode: int) -> None:
        """An orphan that nobody has open goes at once; any other when the kernel forgets it."""
        orphan = self._store.namespace.orphan_node(inode) == self._node
        if (
            orphan
            and not self._vdisks.has_handles(VdiskId(inode))
            and not self._notifications.knows_inode(inode)
        ):
            await self._drop(inode)

    def _deed(self) -> Deed:
        return Deed(self._node, self._clock_ns())
