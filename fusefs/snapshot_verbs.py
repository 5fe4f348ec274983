"""What the command line asks about snapshots and clones: the daemon's side of snap and clone.

Before a vdisk's present content is frozen, the kernel is asked for what a buffered writer has left in its page
cache: who called write(2) before the command finds it in the snapshot.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

from fusefs.control import Progress, Verb
from fusefs.namespace_store import NamespaceStore
from fusefs.notifications import Notifications
from fusefs.resolution import PathResolver, flag_in, path_in, text_in
from metadata.catalog import SYNTHETIC_IDS_FROM
from metadata.errors import Exists, InvalidRequest, NotFound
from metadata.ids import VdiskId
from metadata.namespace import Kind
from metadata.namespace_plans import Birth, Origin, plan_clone
from metadata.snapshots import Snapshot
from metadata.units import BLOCK_BYTES
from replication.family import Family
from replication.snapshots import CloneOrigin, vdisk_record

GROUP_MAX = 10_000
"""Snapshots made at one moment: they are one transaction of the catalog."""


class ServedSnapshots(Protocol):
    """What is asked of the snapshots (``replication.snapshots``, and a double in the tests)."""

    async def create(self, targets: Sequence[tuple[VdiskId, str, int]]) -> Sequence[Snapshot]: ...
    async def remove(self, vdisk: VdiskId, name: str) -> None: ...
    async def rename(self, vdisk: VdiskId, name: str, new_name: str) -> Snapshot: ...
    async def protect(self, vdisk: VdiskId, name: str, on: bool) -> Snapshot: ...
    def origin(self, vdisk: VdiskId, name: str | None) -> AbstractAsyncContextManager[CloneOrigin]: ...
    def note_clone(self, child: int, origin: CloneOrigin) -> None: ...


class FrozenVdisks(Protocol):
    """What is asked of the vdisks beside that."""

    def handle_count(self, vdisk: int) -> int: ...
    def has_buffered_writer(self, vdisk: VdiskId) -> bool: ...


class SnapshotVerbs:
    """The verbs of one node; lives as long as its control server."""

    def __init__(
        self,
        store: NamespaceStore,
        vdisks: FrozenVdisks,
        snapshots: ServedSnapshots,
        *,
        family: Family,
        paths: PathResolver,
        notifications: Notifications,
        clock_ns: Callable[[], int],
    ) -> None:
        self._store, self._vdisks, self._snapshots, self._family = store, vdisks, snapshots, family
        self._paths, self._notifications, self._clock_ns = paths, notifications, clock_ns

    def verbs(self) -> dict[str, Verb]:
        """The verbs, for a control server."""
        return {
            "snap_create": self._create,
            "snap_ls": self._list,
            "snap_info": self._info,
            "snap_rm": self._remove,
            "snap_rename": self._rename,
            "snap_protect": self._protect,
            "clone": self._clone,
        }

    async def _create(self, arguments: dict[str, Any], _: Progress) -> object:
        """One consistent group: ``paths`` with one ``name`` or a list of ``names``, or all below ``directory``."""
        targets = self._targets(arguments)
        for vdisk, _name in targets:
            await self._write_back(vdisk)
        numbered = [(vdisk, name, await self._store.new_inode()) for vdisk, name in targets]
        created = await self._snapshots.create(numbered)
        return {"snapshots": [self._facts(snapshot) for snapshot in created]}

    def _targets(self, arguments: dict[str, Any]) -> list[tuple[VdiskId, str]]:
        paths = arguments.get("paths", [])
        if "directory" in arguments:
            vdisks = self._vdisks_below(path_in(arguments, "directory"))
        elif isinstance(paths, list):
            vdisks = [self._paths.vdisk(path_in({"path": path})) for path in paths]
        else:
            raise InvalidRequest("paths is no list")
        names = arguments.get("names") or [text_in(arguments, "name")] * len(vdisks)
        if not isinstance(names, list) or len(names) != len(vdisks):
            raise InvalidRequest("each path needs a name")
        if not vdisks:
            raise InvalidRequest("no vdisk is named")
        if len(vdisks) > GROUP_MAX:
            raise InvalidRequest(f"too many at once: at most {GROUP_MAX} snapshots make a group")
        targets = [
            (vdisk, text_in({"name": name}, "name")) for vdisk, name in zip(vdisks, names, strict=True)
        ]
        for target, count in Counter(targets).items():
            if count > 1:
                raise InvalidRequest(f"named twice: {self._paths.path_of(target[0])}@{target[1]}")
        return targets

    def _vdisks_below(self, path: bytes) -> list[VdiskId]:
        namespace = self._store.namespace
        top = self._paths.resolve(path)
        if namespace.inode(top).kind is not Kind.DIRECTORY:
            raise InvalidRequest(f"not a directory: {self._paths.path_of(top)!r}, leave --all away")
        found: list[VdiskId] = []
        ahead = [top]
        while ahead:
            for _, child in namespace.children(ahead.pop()):
                kind = namespace.inode(child).kind
                if kind is Kind.DIRECTORY:
                    ahead.append(child)
                elif kind is Kind.FILE:
                    found.append(VdiskId(child))
        if not found:
            raise NotFound(f"no vdisks below {self._paths.path_of(top)}")
        return found

    async def _list(self, arguments: dict[str, Any], _: Progress) -> object:
        """The snapshots of one vdisk, or of all at and below a path, oldest first."""
        namespace, top = self._store.namespace, self._paths.resolve(path_in(arguments))
        if namespace.inode(top).kind is Kind.FILE:
            found = self._family.snapshots(top)
        else:
            found = [one for one in self._family.all_snapshots() if namespace.is_within(one.vdisk, top)]
        clones = {
            vdisk: Counter(self._family.children(vdisk).values()) for vdisk in {one.vdisk for one in found}
        }
        shown = [self._facts(one, clones[one.vdisk]) for one in found]
        shown.sort(key=lambda facts: (str(facts["path"]), facts["version"], facts["created_ns"], facts["id"]))
        return {"path": self._paths.path_of(top), "snapshots": shown}

    async def _info(self, arguments: dict[str, Any], _: Progress) -> object:
        vdisk, name = self._named(arguments)
        snapshot = self._family.snapshot(vdisk, name)
        children = self._family.children(vdisk).items()
        clones = [self._paths.path_of(child) for child, version in children if version == snapshot.version]
        return {
            "kind": "snapshot",
            **self._facts(snapshot),
            "children": sorted(clone for clone in clones if clone is not None),
            "file": f"/.snapshots{self._paths.path_of(vdisk)}/{name}",
        }

    async def _remove(self, arguments: dict[str, Any], _: Progress) -> object:
        vdisk, name = self._named(arguments)
        async with self._notifications.entry_going(SYNTHETIC_IDS_FROM | vdisk, name.encode()):
            await self._snapshots.remove(vdisk, name)
        return {}

    async def _rename(self, arguments: dict[str, Any], _: Progress) -> object:
        vdisk, name = self._named(arguments)
        async with self._notifications.entry_going(SYNTHETIC_IDS_FROM | vdisk, name.encode()):
            renamed = await self._snapshots.rename(vdisk, name, text_in(arguments, "new_name"))
        return self._facts(renamed)

    async def _protect(self, arguments: dict[str, Any], _: Progress) -> object:
        vdisk, name = self._named(arguments)
        return self._facts(await self._snapshots.protect(vdisk, name, flag_in(arguments, "protected")))

    async def _clone(self, arguments: dict[str, Any], _: Progress) -> object:
        """A new vdisk out of a snapshot (``name``) or of what is there now."""
        vdisk, entry = (
            self._paths.vdisk(path_in(arguments)),
            self._paths.entry(path_in(arguments, "new_path")),
        )
        name = None if arguments.get("name") is None else text_in(arguments, "name")
        store, namespace = self._store, self._store.namespace
        taken = f"/{arguments.get('new_path')} exists: choose another name, or delete it first"
        if namespace.find(entry.parent, entry.name) is not None:
            raise Exists(taken)
        if name is None:
            await self._write_back(vdisk)
        like = namespace.inode(vdisk)
        number = await store.new_inode()
        birth = Birth(number, like.mode & 0o777, like.uid, like.gid, self._clock_ns())
        async with self._snapshots.origin(vdisk, name) as found:
            origin = Origin(vdisk_record(found), found.compares)
            try:
                await store.commit(lambda ns: plan_clone(ns, entry, birth=birth, origin=origin))
            except Exists:
                raise Exists(taken) from None
            self._snapshots.note_clone(number, found)
        return {
            "path": self._paths.path_of(number),
            "vdisk": number,
            "size": found.size,
            "parent": {"vdisk": found.vdisk, "version": found.version, "name": name},
        }

    async def _write_back(self, vdisk: VdiskId) -> None:
        if self._vdisks.has_buffered_writer(vdisk):
            await self._notifications.write_back(vdisk, 0)

    def _named(self, arguments: dict[str, Any]) -> tuple[VdiskId, str]:
        """The vdisk and the snapshot's name, which exist."""
        vdisk, name = self._paths.vdisk(path_in(arguments)), text_in(arguments, "name")
        self._family.snapshot(vdisk, name)
        return vdisk, name

    def _facts(self, snapshot: Snapshot, clones: Counter[int] | None = None) -> dict[str, Any]:
        clones = Counter(self._family.children(snapshot.vdisk).values()) if clones is None else clones
        return {
            **snapshot_facts(snapshot, path=self._paths.path_of(snapshot.vdisk)),
            "clones": clones[snapshot.version],
            "open_handles": self._vdisks.handle_count(snapshot.id),
        }


def snapshot_facts(snapshot: Snapshot, *, path: str | None) -> dict[str, Any]:
    """A snapshot, JSON-ready; ``path`` is its vdisk's."""
    return {
        "path": path,
        "name": snapshot.name,
        "id": snapshot.id,
        "vdisk": snapshot.vdisk,
        "version": snapshot.version,
        "size": snapshot.size,
        "own_bytes": snapshot.own_blocks * BLOCK_BYTES,
        "mtime_ns": snapshot.mtime_ns,
        "created_ns": snapshot.created_ns,
        "protected": snapshot.protected,
    }
