"""Verbs on any node: each runs where what it needs is, and answers as if it had run here.

A verb about a vdisk needs its owner: who writes it, who may snapshot it, who has its newest rows. Before a verb begins,
the vdisks that it names are looked up, and for each that another node owns

* a verb that changes something tries to *acquire* it: an idle vdisk is handed over, one whose owner is gone taken over;
* if its owner has files open for writing, and for a verb that only looks, the verb as a whole goes to the owner.

A verb that was forwarded is not forwarded again: a group of vdisks that are written on different nodes is refused.
Verbs about names alone, and those whose answer every node knows, run where they were asked.

Paths are sent as the names have them, links resolved, so that the other node's mountpoint does not matter.
"""

import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from fusefs.control import Progress, Verb
from fusefs.namespace_store import NamespaceStore
from fusefs.resolution import PathResolver, path_in
from metadata.errors import Busy, NotFound, NotOwner, Unavailable, VdiskfsError
from metadata.ids import VdiskId
from metadata.namespace import Kind

TRIES = 5
"""Ownership may move while a verb is on its way; each time somebody else got it."""

Acquire = Callable[[VdiskId], Awaitable[str | None]]
"""Makes this node a vdisk's owner; or the node that owns it and has it open for writing. NotOwner, Unavailable: neither."""
RunOn = Callable[[str, str, Mapping[str, Any], Progress], Awaitable[Any]]
"""Given a node, a verb, its arguments: as ``verb_jobs.RemoteVerbs.run``."""


class Owners(Protocol):
    """What is asked about owners."""

    def is_mine(self, vdisk: int) -> bool:
        """Whether this node owns a vdisk, or nobody yet."""

    def is_owned_here(self, vdisk: int) -> bool:
        """Whether this node owns it: nobody makes a child of it elsewhere."""

    def live_owner(self, vdisk: int) -> str | None:
        """The node that owns a vdisk, if it has a session and is not this one."""


@dataclass(frozen=True, slots=True)
class _Need:
    """What a verb is about: arguments that are paths of vdisks, and whether it only looks."""

    paths: tuple[str, ...] = ("path",)
    looks: bool = False


_NEEDS = {
    "snap_create": _Need(),
    "snap_rm": _Need(),
    "snap_rename": _Need(),
    "snap_protect": _Need(),
    "snap_rollback": _Need(),
    "flatten": _Need(),
    "clone": _Need(),
    "info": _Need(looks=True),
    "map": _Need(looks=True),
    "diff": _Need(("path", "base_path"), looks=True),
}
"""All others run where they are asked."""
_SENT_AS_NAMED = ("new_path", "to")
"""Paths of what is not there yet: the directory's name is sent, and the last one as it is."""


class VerbForwarding:
    """One to a node.

    Args:
        acquire: makes this node the owner.
        run_on: has another node run a verb.
    """

    def __init__(
        self,
        store: NamespaceStore,
        paths: PathResolver,
        *,
        owners: Owners,
        acquire: Acquire,
        run_on: RunOn,
    ) -> None:
        self._store, self._paths = store, paths
        self._owners, self._acquire, self._run_on = owners, acquire, run_on

    def wrapped(self, verbs: Mapping[str, Verb]) -> dict[str, Verb]:
        """The verbs for this node's control server."""
        return {name: self._wrap(name, verb, may_forward=True) for name, verb in verbs.items()}

    def served(self, verbs: Mapping[str, Verb]) -> dict[str, Verb]:
        """The same verbs for other nodes."""
        return {name: self._wrap(name, verb, may_forward=False) for name, verb in verbs.items()}

    def _wrap(self, name: str, verb: Verb, *, may_forward: bool) -> Verb:
        need = _NEEDS.get(name)

        async def run(arguments: dict[str, Any], progress: Progress) -> object:
            await self._store.catch_up()
            if need is None:
                return await verb(arguments, progress)
            for _ in range(TRIES):
                vdisks = self._vdisks(need, arguments)
                elsewhere = await self._elsewhere(vdisks, only_looks=need.looks, may_forward=may_forward)
                if len(elsewhere) > 1 or (elsewhere and not may_forward):
                    raise Busy(self._written_elsewhere(elsewhere))
                try:
                    if not elsewhere:
                        return await verb(arguments, progress)
                    (node,) = elsewhere
                    answer = await self._run_on(node, name, self._canonical(need, arguments), progress)
                    await self._store.catch_up()
                    return answer
                except NotOwner:
                    await self._store.catch_up()
            raise Unavailable(f"the vdisk's owner keeps changing, try again verb={name}")

        return run

    async def _elsewhere(
        self, vdisks: Iterable[VdiskId], *, only_looks: bool, may_forward: bool
    ) -> dict[str, VdiskId]:
        """The nodes that must do it, each with one vdisk that is why; none: this one can."""
        found: dict[str, VdiskId] = {}
        for vdisk in vdisks:
            if self._owners.is_owned_here(vdisk) or (only_looks and self._owners.is_mine(vdisk)):
                continue
            node = self._owners.live_owner(vdisk) if only_looks and may_forward else None
            node = node or await self._acquire(vdisk)
            if node is not None:
                found[node] = vdisk
        return found

    def _vdisks(self, need: _Need, arguments: Mapping[str, Any]) -> list[VdiskId]:
        """The vdisks that a verb's arguments name; what they do not name well is the verb's to refuse."""
        named = [path_in(arguments, name) for name in need.paths if name in arguments]
        paths = arguments.get("paths")
        if isinstance(paths, list):
            named += [path_in({"path": path}) for path in paths]
        found: list[VdiskId] = []
        for path in named:
            with suppress(VdiskfsError):
                found.append(self._paths.vdisk(path))
        if "directory" in arguments:
            with suppress(VdiskfsError):
                found += self._below(self._paths.resolve(path_in(arguments, "directory")))
        return list(dict.fromkeys(found))

    def _below(self, top: int) -> Iterable[VdiskId]:
        namespace, ahead = self._store.namespace, [top]
        while ahead:
            for _, child in namespace.children(ahead.pop()):
                kind = namespace.inode(child).kind
                if kind is Kind.DIRECTORY:
                    ahead.append(child)
                elif kind is Kind.FILE:
                    yield VdiskId(child)

    def _canonical(self, need: _Need, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments with every path as the names have it."""
        sent = dict(arguments)
        for name in (*need.paths, "directory"):
            if name in sent:
                sent[name] = self._named(path_in(sent, name))
        if isinstance(sent.get("paths"), list):
            sent["paths"] = [self._named(path_in({"path": path})) for path in sent["paths"]]
        for name in _SENT_AS_NAMED:
            if sent.get(name) is not None:
                entry = self._paths.entry(path_in(sent, name))
                folder = self._paths.path_of(entry.parent)
                sent[name] = f"{(folder or '').strip('/')}/{os.fsdecode(entry.name)}"
        return sent

    def _named(self, path: bytes) -> str:
        named = self._paths.path_of(self._paths.resolve(path))
        if named is None:
            raise NotFound(f"it has been deleted meanwhile: /{os.fsdecode(path)}")
        return named.lstrip("/")

    def _written_elsewhere(self, elsewhere: Mapping[str, VdiskId]) -> str:
        shown = ", ".join(
            f"{self._paths.path_of(vdisk)} on {node}" for node, vdisk in sorted(elsewhere.items())
        )
        return f"these are being written on other nodes, take the command there or close them: {shown}"
