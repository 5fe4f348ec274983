"""Carries changes of the namespace out: the mirror's only writer, and its link to the catalog.

    handler --plan--> commit() --> one committer task --one transaction--> catalog
                                        |                                    |
                                        v                                    v events
                                    the mirror  <------------------- the watch task

Changes that arrive while a transaction is under way are carried out together by the next one, each planned
on top of those before it. Between the planning and the transaction's end the mirror does not show them:
**Invariant** the mirror is the catalog at a revision, so nobody sees what is not durable.

A transaction can conflict only with another node's (or with this node's owner records, which touch no row of
the namespace); then the mirror catches up and everything is planned again, errors included.

**Other nodes.** Their changes come with the watch, a moment after they were made. Who must not miss one asks
``catch_up`` first: a name that is not there, a listing. While no other node is live it costs nothing.
"""

import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

import trio

from metadata.catalog import (
    NAME_PREFIX,
    NEXT_ID_KEY,
    ROOT_ID,
    SYNTHETIC_IDS_FROM,
    Catalog,
    Change,
    Compacted,
    Event,
    Row,
    merge_changes,
    split_name_key,
)
from metadata.errors import Conflict, Corrupt, NotFound, Unavailable, VdiskfsError
from metadata.namespace import Namespace
from metadata.namespace_plans import plan_store_times, plan_take_ids

BATCH_MAX = 64
"""Changes in one transaction: enough to share a sync among all of pyfuse3's workers."""
PENDING_MAX = 256
TRIES_MAX = 20
"""Conflicts in a row; each means that another node got something done."""
CATCH_UP_S = 5.0
"""The watch needs milliseconds; after this the mirror is read anew."""
RETRY_S, RETRY_S_MAX = 1.0, 16.0
"""Before a catalog that does not answer is asked again, the first time and at most."""
ID_BATCH = 1024
"""Ids that a daemon's end may waste, of 2**40."""
STORE_TIMES_S = 5.0
"""How old recent times may grow before they are stored."""

Plan = Callable[[Namespace], Change]


class CatalogListener(Protocol):
    """Told what happens in the catalog, all kinds of rows. Called in one stretch with the mirror's change, just before it."""

    def note_events(self, events: Sequence[Event], *, is_own: bool) -> None:
        """These happened, in order of revision; ``is_own``: by this store's commit, surely. Nothing is left out or repeated."""

    def note_reload(self, rows: Sequence[Row], revision: int) -> None:
        """These are all rows now; what happened in between is unknown."""


_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Request:
    """A plan to carry out, and what became of it."""

    plan: Plan
    done: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None
    revision: int = 0
    """At which it took names away; 0: it did not."""


class NamespaceStore:
    """One node's names and inodes: ask ``namespace``, change through ``commit``.

    Entered with ``async with``, which reads the mirror. Changes wait for ``run``; those that wait when it is
    cancelled fail. Leaving, after ``run`` has ended, stores the times that are still to be stored.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        has_company: Callable[[], bool] = lambda: False,
        announce: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        """``has_company``: whether other nodes are live; ``announce``: tells them that names are gone (a revision)."""
        self.namespace = Namespace()
        self._catalog, self._has_company, self._announce = catalog, has_company, announce
        self._listeners: list[CatalogListener] = []
        self._send, self._receive = trio.open_memory_channel[_Request](PENDING_MAX)
        self._moved_on = trio.Event()
        self._is_followed = False
        self._has_left = False
        self._times_noted = trio.Event()
        self._ids: list[int] = []
        self._ids_lock = trio.Lock()

    async def __aenter__(self) -> Self:
        """Read the mirror.

        Raises:
            Corrupt: there is no root directory, or a row cannot be read.
        """
        await self._reload()
        try:
            self.namespace.inode(ROOT_ID)
        except NotFound:
            raise Corrupt("the catalog has no root directory") from None
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._has_left = True
        inodes = self.namespace.recent_inodes()
        with trio.move_on_after(CATCH_UP_S) as scope:
            scope.shield = True
            for start in range(0, len(inodes), BATCH_MAX):
                await self._store_times_once(inodes[start : start + BATCH_MAX])

    async def run(self) -> None:
        """Carry out, follow, and store times, until cancelled; then it may be run again."""
        self._is_followed = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._commit_for_ever)
                nursery.start_soon(self._follow_for_ever)
                nursery.start_soon(self._store_times_for_ever)
        finally:
            self._is_followed = False

    async def commit(self, plan: Plan) -> None:
        """Plan a change and carry it out; durable, and in the mirror, when this returns.

        ``plan`` may be called several times, and must not wait nor keep what it saw.

        Raises:
            VdiskfsError: what the plan raised; NoSpace and Unavailable from the catalog.
        """
        if self._has_left:
            raise _ending()
        request = _Request(plan)
        await self._send.send(request)
        await request.done.wait()
        if request.error is not None:
            raise request.error
        if request.revision and self._announce is not None and self._has_company():
            await self._announce(request.revision)

    def listen(self, listener: CatalogListener) -> None:
        """From now on ``listener`` is told."""
        self._listeners.append(listener)

    async def catch_up(self, *, always: bool = False) -> bool:
        """The mirror shows at least what the catalog held when this was called; at once while no other node is live.

        Args:
            always: also while no other node is known to be.

        Returns whether it may show something new.

        Raises:
            Unavailable: the catalog does not say.
        """
        if not always and not self._has_company():
            return False
        _, revision = await self._catalog.read(NEXT_ID_KEY)
        await self._wait_for(revision)
        if self.namespace.revision < revision:
            raise Unavailable("cannot follow the catalog: other nodes' names are unknown")
        return True

    async def new_inode(self) -> int:
        """An id that nobody has had before."""
        async with self._ids_lock:
            if not self._ids:
                await self._take_ids()
            return self._ids.pop()

    def note_times(self, inode: int, *, mtime_ns: int | None, ctime_ns: int, now_ns: int) -> None:
        """Show these times at once (None: as it is), and store them within ``STORE_TIMES_S``.

        Raises:
            NotFound: there is no such inode.
        """
        self.namespace.note_times(inode, mtime_ns=mtime_ns, ctime_ns=ctime_ns, now_ns=now_ns)
        self._times_noted.set()

    async def _take_ids(self) -> None:
        first = 0

        def plan(namespace: Namespace) -> Change:
            nonlocal first
            first, _ = namespace.number(NEXT_ID_KEY)
            return plan_take_ids(namespace, ID_BATCH)

        await self.commit(plan)
        assert first + ID_BATCH < SYNTHETIC_IDS_FROM
        self._ids = list(range(first + ID_BATCH - 1, first - 1, -1))

    # Carrying out.

    async def _commit_for_ever(self) -> None:
        batch: list[_Request] = []
        try:
            while True:
                batch = [await self._receive.receive()]
                self._receive_more(batch)
                await self._carry_out(batch)
                for request in batch:
                    request.done.set()
        finally:
            self._receive_more(batch, count_max=sys.maxsize)
            for request in batch:
                if not request.done.is_set():
                    request.error = _ending()
                    request.done.set()

    def _receive_more(self, batch: list[_Request], *, count_max: int = BATCH_MAX) -> None:
        try:
            while len(batch) < count_max:
                batch.append(self._receive.receive_nowait())
        except trio.WouldBlock:
            pass

    async def _carry_out(self, batch: list[_Request]) -> None:
        """Carry out what can be, and leave each request its error."""
        for number in range(TRIES_MAX):
            change = self._plan(batch)
            if not change.puts and not change.deletes:
                return
            try:
                revision = await self._catalog.transact(change)
            except Conflict:
                await self._catch_up(thoroughly=number % 3 == 2)
                continue
            except Unavailable as exc:  # perhaps it was done all the same: the watch will tell
                for request in batch:
                    request.error = exc
                return
            except VdiskfsError as exc:
                if len(batch) == 1:
                    batch[0].error = exc
                    return
                half = len(batch) // 2  # too much for one transaction, or one of them asks for too much
                await self._carry_out(batch[:half])
                await self._carry_out(batch[half:])
                return
            if self._takes_names(change):
                for request in batch:
                    request.revision = revision
            await self._follow_own(change, revision)
            return
        for request in batch:
            request.error = Unavailable(f"other nodes keep changing the same names tries={TRIES_MAX}")

    def _plan(self, batch: list[_Request]) -> Change:
        """One change for all whose plans succeed; the others have their errors. No await in here."""
        namespace = self.namespace
        changes, undos = [], []
        try:
            for request in batch:
                request.error = None
                try:
                    change = request.plan(namespace)
                    if len(batch) > 1:
                        undos.append(namespace.attempt(change, namespace.revision + 1))
                    changes.append(change)
                except Exception as exc:  # its own matter, the handler's to report
                    request.error = exc
        finally:
            for undo in reversed(undos):
                namespace.undo(undo)
        return merge_changes(changes) if len(changes) != 1 else changes[0]

    def _takes_names(self, change: Change) -> bool:
        """Whether a name is gone, or stands for something else; asked before the mirror shows it."""
        names = [key for key in change.deletes if key.startswith(NAME_PREFIX)]
        return bool(names) or any(
            self.namespace.name_revision(*split_name_key(key))
            for key, _ in change.puts
            if key.startswith(NAME_PREFIX)
        )

    async def _follow_own(self, change: Change, revision: int) -> None:
        """Let the mirror show what has been carried out at ``revision``."""
        if revision == self.namespace.revision + 1:
            events = [Event(key, value, revision) for key, value in change.puts]
            self._apply(events + [Event(key, None, revision) for key in change.deletes], is_own=True)
        else:
            await self._wait_for(revision)

    # Following.

    async def _follow_for_ever(self) -> None:
        while True:
            try:
                async with aclosing(self._catalog.watch(b"", after=self.namespace.revision)) as watch:
                    async for events in watch:
                        self._apply(events)
            except Compacted:
                pass
            except VdiskfsError as exc:
                _log.warning("cannot follow the catalog, trying again: %s", exc)
                await trio.sleep(RETRY_S)
            pause_s = RETRY_S
            while not await self._reload_or_warn():
                await trio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_S_MAX)

    def _apply(self, events: list[Event], *, is_own: bool = False) -> None:
        new = [event for event in events if event.revision > self.namespace.revision]
        if new:
            for listener in self._listeners:
                listener.note_events(new, is_own=is_own)
            self.namespace.apply(new, new[-1].revision)
        self._moved_on.set()
        self._moved_on = trio.Event()

    async def _wait_for(self, revision: int) -> None:
        """Let the watch come to ``revision``; if it does not, read everything."""
        if self._is_followed:
            with trio.move_on_after(CATCH_UP_S):
                while self.namespace.revision < revision:
                    await self._moved_on.wait()
        if self.namespace.revision < revision:
            await self._reload_or_warn()

    async def _catch_up(self, *, thoroughly: bool) -> None:
        """Follow to where the catalog is now."""
        if thoroughly:
            await self._reload_or_warn()
            return
        try:
            _, revision = await self._catalog.read(NEXT_ID_KEY)
        except VdiskfsError as exc:
            _log.warning("cannot catch up with the catalog: %s", exc)
        else:
            await self._wait_for(revision)

    async def _reload(self) -> None:
        rows, revision = await self._catalog.read(b"")
        if revision >= self.namespace.revision:
            for listener in self._listeners:
                listener.note_reload(rows, revision)
            self.namespace.reload(rows, revision)
        self._apply([])

    async def _reload_or_warn(self) -> bool:
        try:
            await self._reload()
        except VdiskfsError as exc:
            _log.warning("cannot read the catalog: %s", exc)
            return False
        return True

    # Times.

    async def _store_times_for_ever(self) -> None:
        while True:
            await self._times_noted.wait()
            await trio.sleep(STORE_TIMES_S)
            self._times_noted = trio.Event()
            inodes = self.namespace.recent_inodes()
            for start in range(0, len(inodes), BATCH_MAX):
                try:
                    await self.commit(_plan_of_times(inodes[start : start + BATCH_MAX]))
                except VdiskfsError as exc:
                    _log.warning("cannot store times, keeping them: %s", exc)
                    self._times_noted.set()
                    break

    async def _store_times_once(self, inodes: list[int]) -> None:
        """As the committer does, which has ended by now."""
        request = _Request(_plan_of_times(inodes))
        await self._carry_out([request])
        if request.error is not None:
            _log.warning("some times could not be stored: %s", request.error)


def _plan_of_times(inodes: list[int]) -> Plan:
    return lambda namespace: plan_store_times(namespace, inodes)


def _ending() -> Unavailable:
    return Unavailable("the daemon is ending; whether the change was made will show")
