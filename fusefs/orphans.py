"""Inodes without a name: each goes for good when nobody has it open any more, on any node.

An unlinked inode becomes an orphan of the node that took the name away, and goes when that node's kernel forgets it,
which is after the last file is closed, and which a successor of the daemon hears too. What nobody can have open any
more, because the mount or the daemon that was told is gone, is dropped by ``drop_all``.

**Other nodes** may have it open as well. Before an orphan's data goes, each live node is asked (``in_use``), which looks
into its own mirror of the names at least as new as the removal: from then on nobody there can open it by name. A node that
uses it gets the orphan, and asks in its turn when its own kernel forgets. A node that does not answer keeps the data
where it is; it is asked again. The orphans of a node that is gone are adopted after ``GRACE_S``.

**Invariant** an orphan is dropped by the node that its row names, after every live node has denied using it.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import trio

from fusefs.namespace_store import NamespaceStore
from metadata.catalog import ORPHAN_PREFIX, Event, Row, id_in_key
from metadata.errors import NotFound, VdiskfsError
from metadata.ids import VdiskId
from metadata.namespace import Kind
from metadata.namespace_plans import plan_forget, plan_hand_orphan
from replication.cluster import Answer, Links, Membership

VERB = "in_use"
ASK_S = 2.0
"""How long a node may take to say whether it uses an inode."""
PERIOD_S = 5.0
"""Between two looks at orphans that could not be dropped, and at those of nodes that are gone."""
GRACE_S = 300.0
"""A node that is gone for so long, with files open that have no name, has lost them: its daemon may start anew until then."""
AT_ONCE = 16

_log = logging.getLogger(__name__)


class OrphanedVdisks(Protocol):
    """What is asked of the vdisks (``replication.vdisks``, and a double in the tests)."""

    def has_handles(self, vdisk: VdiskId) -> bool: ...
    async def forget(self, vdisk: VdiskId) -> None: ...


class Neighbours(Protocol):
    """What is asked about the other nodes (``replication.company``, and a double in the tests)."""

    @property
    def links(self) -> Links: ...
    @property
    def membership(self) -> Membership: ...
    def has_others(self) -> bool: ...


async def _nothing(_: VdiskId) -> None:
    pass


class Orphans:
    """One to a mount; ``run`` is its task where there are other nodes.

    Args:
        node: this node's name.
        company: the other nodes.
        is_known: whether the kernel, or somebody else here, holds an inode.
        own: makes this node a vdisk's owner, so that it may delete its data.
        abandoned: deleted vdisks that nobody reads any more, and whose owners are gone.
    """

    def __init__(
        self,
        store: NamespaceStore,
        vdisks: OrphanedVdisks,
        *,
        node: str,
        company: Neighbours | None = None,
        is_known: Callable[[int], bool] = lambda inode: False,
        own: Callable[[VdiskId], Awaitable[None]] = _nothing,
        abandoned: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self._store, self._vdisks, self._node = store, vdisks, node
        self._company, self._is_known, self._own = company, is_known, own
        self._abandoned = abandoned
        self._dropping: set[int] = set()
        self._wanted: set[int] = set()
        """Those to look at soon."""
        self._woken = trio.Event()
        self._gone_since: dict[str, float] = {}
        """When a node that has orphans was first seen to be gone."""
        if company is not None:
            company.links.serve(VERB, self._answer_in_use)
            store.listen(self)

    # What the mount does.

    async def drop_all(self, *, kernel_knows: Callable[[int], bool] = lambda inode: False) -> None:
        """Drop this node's nameless inodes that nobody can have open: all of them before the kernel's first
        request on a new mount and after its last one; those it does not know, after a daemon has died, which
        may have been told to forget them and have taken the word with it."""
        for inode in self._store.namespace.orphans(self._node):
            if not kernel_knows(inode):
                await self.drop(inode)

    async def forgotten(self, inode: int) -> None:
        """The kernel knows an inode no more. A late word about one that was looked up since may come while it is open."""
        mine = self._store.namespace.orphan_node(inode) == self._node
        if not mine or self._vdisks.has_handles(VdiskId(inode)):
            return
        if self._has_others():  # a handler of the kernel's requests does not wait for other nodes
            self._want(inode)
        else:
            await self.drop(inode)

    async def drop(self, inode: int) -> None:
        """Drop an orphan, its data first, or hand it to a node that uses it; what fails is tried again."""
        if inode in self._dropping:
            return
        self._dropping.add(inode)
        try:
            if self._store.namespace.inode(inode).kind is Kind.FILE:
                if await self._hand_over(inode):
                    return
                await self._own(VdiskId(inode))
                await self._vdisks.forget(VdiskId(inode))
            await self._store.commit(lambda ns: plan_forget(ns, inode))
        except NotFound:
            pass
        except VdiskfsError as exc:
            _log.warning("a deleted vdisk's space is not free yet: %s inode=%d", exc, inode)
        except Exception:  # pyfuse3 must not see any
            _log.exception("unexpected error while a deleted inode was dropped inode=%d", inode)
        finally:
            self._dropping.discard(inode)

    # Other nodes.

    def is_first(self) -> bool:
        """Whether this is the one of the live nodes that does what one of them must do."""
        return self._company is None or self._node == min(
            self._company.membership.members(), default=self._node
        )

    async def openers(self, inode: int) -> list[str]:
        """The other nodes that have a file open."""
        return await self._asked(inode, "open")

    async def _asked(self, inode: int, what: str) -> list[str]:
        """The other nodes that say yes.

        Raises:
            Unavailable: one of them does not say.
        """
        company, found = self._company, []
        if company is not None and company.has_others():
            for node in sorted(company.membership.members()):
                if node != self._node:
                    answer, _ = await company.links.call(node, VERB, {"inode": inode}, deadline_s=ASK_S)
                    if answer[what]:
                        found.append(node)
        return found

    async def _hand_over(self, inode: int) -> bool:
        users = await self._asked(inode, "used")
        if not users:
            return False
        await self._store.commit(lambda ns: plan_hand_orphan(ns, inode, source=self._node, target=users[0]))
        return True

    async def _answer_in_use(self, _node: str, arguments: Mapping[str, Any], _data: bytes) -> Answer:
        inode = int(arguments["inode"])
        await self._store.catch_up()
        return {"used": self._is_used(inode), "open": self._vdisks.has_handles(VdiskId(inode))}, b""

    def _is_used(self, inode: int) -> bool:
        return self._vdisks.has_handles(VdiskId(inode)) or self._is_known(inode)

    def note_events(self, events: Sequence[Event], *, is_own: bool) -> None:
        """As ``CatalogListener``: what another node hands over is looked at, perhaps nobody uses it any more."""
        if is_own:
            return
        for event in events:
            if event.value is not None and event.key.startswith(ORPHAN_PREFIX):
                self._want(id_in_key(event.key, ORPHAN_PREFIX))

    def note_reload(self, rows: Sequence[Row], revision: int) -> None:
        """As ``CatalogListener``; the next look finds them."""

    async def run(self) -> None:
        """Drops what waits for other nodes, until cancelled."""
        limit = trio.CapacityLimiter(AT_ONCE)

        async def one(inode: int) -> None:
            async with limit:
                if self._store.namespace.orphan_node(inode) == self._node and not self._is_used(inode):
                    await self.drop(inode)

        async with trio.open_nursery() as nursery:
            while True:
                with trio.move_on_after(PERIOD_S) as scope:
                    await self._woken.wait()
                self._woken = trio.Event()
                wanted, self._wanted = self._wanted, set()
                if scope.cancelled_caught:
                    wanted.update(self._store.namespace.orphans(self._node))
                    await self._adopt()
                for inode in wanted:
                    nursery.start_soon(one, inode)

    async def _adopt(self) -> None:
        """Take over the orphans of nodes that have been gone for long; the first of the live ones does."""
        if self._company is None:
            return
        members, now = self._company.membership.members(), trio.current_time()
        orphans = self._store.namespace.orphans_by_node()
        gone = {node for node in orphans if node not in members}
        self._gone_since = {node: self._gone_since.get(node, now) for node in gone}
        if not self.is_first():
            return
        for vdisk in self._abandoned():
            try:
                await self._own(VdiskId(vdisk))  # which then deletes it
            except VdiskfsError as exc:
                _log.warning("a lost node's deleted vdisk is not taken over: %s vdisk=%d", exc, vdisk)
        for node, since in self._gone_since.items():
            if now - since < GRACE_S:
                continue
            for inode in orphans[node]:
                try:
                    await self._store.commit(
                        lambda ns, inode=inode, node=node: plan_hand_orphan(  # type: ignore[misc]
                            ns, inode, source=node, target=self._node
                        )
                    )
                except VdiskfsError as exc:
                    _log.warning("a lost node's deleted vdisk cannot be adopted: %s inode=%d", exc, inode)
                self._want(inode)

    def _want(self, inode: int) -> None:
        self._wanted.add(inode)
        self._woken.set()

    def _has_others(self) -> bool:
        return self._company is not None and self._company.has_others()
