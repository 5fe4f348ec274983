"""A node's session, and who else has one: the mirror of ``session/`` in the catalog.

    session/NODE   {"host", "port", "identity", "run"}, under a lease of SESSION_S

    no session -> (granted, row put) -> on_lost -> certain -> (kept alive late, or not at all) -> doubtful -> certain
                                                                                 doubtful -> (lease ended) -> no session

A session is *certain* until ``SESSION_S`` after the last time that it was known to be live, less a margin: so long nobody
can have taken over what the node owns, whatever happened to it meanwhile; the clock goes on while the machine sleeps.
When the lease has ended, ownership may have moved. **Invariant** between a lost session and the next time that
``is_certain`` says yes, ``on_lost`` has looked at what this node still owns; while it looks, nobody takes anything over.
"""

import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Self

import trio

from metadata.boot_clock import boot_time_s
from metadata.catalog import (
    SESSION_PREFIX,
    Catalog,
    Change,
    Compacted,
    Event,
    Row,
    decode_value,
    encode_value,
    session_key,
)
from metadata.errors import Conflict, Corrupt, Exists, NotFound, VdiskfsError
from replication.cluster import SESSION_S, Member

KEEP_ALIVE_S = SESSION_S / 4
MARGIN_S = 1.0
"""For clocks that do not run alike, and for the time between asking ``is_certain`` and acting on it."""
RETRY_S = 0.25
PATIENCE_S = SESSION_S + 1
"""How long a node waits for another's session under its name to end, before it says so."""

log = logging.getLogger(__name__)


class Session:
    """This node's session, and the mirror of all. Entered with ``async with``; needs ``run``."""

    def __init__(
        self,
        catalog: Catalog,
        member: Member,
        *,
        is_alone: bool = False,
        clock_s: Callable[[], float] = boot_time_s,
    ) -> None:
        """
        Args:
            catalog: where sessions are.
            member: this node, as the others are to see it.
            is_alone: no other node can bear this name now, so that a session under it is of the past.
            clock_s: does not stop, and does not jump.
        """
        self.on_lost: list[Callable[[], Awaitable[None]]] = []
        """Called, in order, after a session was lost and a new one granted, before that is certain. A hook that
        raises is called again."""
        self.is_ending = False
        """Told by the daemon: the node leaves, and its session ends with ``__aexit__``."""
        self._catalog, self._member, self._is_alone, self._clock_s = catalog, member, is_alone, clock_s
        self._key = session_key(member.node)
        self._run = secrets.token_hex(8)
        """Tells this process's session from an earlier one's of the same state directory."""
        self._value = encode_value(
            {"host": member.host, "port": member.port, "identity": member.identity, "run": self._run}
        )
        self._lease = 0
        self._certain_until_s = float("-inf")
        self._replaced = trio.Event()
        self._members: dict[str, Member] = {}
        self._revision = 0
        self._moved_on = trio.Event()

    @property
    def node(self) -> str:
        return self._member.node

    def is_certain(self) -> bool:
        return self._clock_s() < self._certain_until_s

    def is_live(self, node: str) -> bool:
        return node in self._members

    def members(self) -> Mapping[str, Member]:
        return self._members

    async def wait_moved(self) -> None:
        """Waits until a session has come or gone, as far as this node knows."""
        await self._moved_on.wait()

    async def catch_up(self) -> list[Row]:
        """Brings the mirror to where the catalog is now; returns the sessions' rows.

        Raises:
            VdiskfsError: the catalog cannot be read.
        """
        rows, revision = await self._catalog.read(SESSION_PREFIX)
        if revision < self._revision:
            return rows
        self._revision = revision
        before, self._members = self._members, {}
        for row in rows:
            self._note(row.key, row.value)
        if before != self._members:
            self._tell()
        return rows

    async def __aenter__(self) -> Self:
        """Begins the session.

        Raises:
            Exists: another node bears this name.
        """
        asked_s = self._clock_s()
        with trio.move_on_after(PATIENCE_S):
            while not await self._begin():
                await trio.sleep(RETRY_S)
                asked_s = self._clock_s()
        if not self._lease:
            other = self._members.get(self.node)
            where = f" host={other.host} port={other.port}" if other else ""
            raise Exists(f"another node of this name has the pool mounted: choose another with --node{where}")
        self._certain_until_s = asked_s + SESSION_S - MARGIN_S
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._certain_until_s = float("-inf")
        if not self.is_ending or self._replaced.is_set() or kind is not None:
            return
        with trio.move_on_after(SESSION_S, shield=True):
            try:
                await self._catalog.revoke(self._lease)
            except VdiskfsError as problem:
                log.warning("the session ends by itself: %s", problem)

    async def run(self) -> None:
        """Keeps the session alive and follows the others', until cancelled.

        Raises:
            Exists: another process has taken this node's name: one with a copy of its state directory, or one that
                waited until this node was not heard of any more. This one may write nothing from now on.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_when_replaced)
            nursery.start_soon(self._follow_for_ever)
            nursery.start_soon(self._live_for_ever)

    # One's own.

    async def _begin(self) -> bool:
        """Puts the row under a new lease; returns whether that is done: not while another node bears the name."""
        own = [row for row in await self.catch_up() if row.key == self._key]
        if own and not self._is_alone:
            other = read_member(own[0].key, own[0].value)
            if other is not None and other.identity != self._member.identity:
                return False
        lease = await self._catalog.grant_lease(SESSION_S)
        compares = ((self._key, own[0].revision if own else 0),)
        try:
            await self._catalog.transact(Change(compares, ((self._key, self._value),)), lease=lease)
        except (Conflict, NotFound):
            return False
        self._lease = lease
        self._note(self._key, self._value)  # before the watch says so
        self._tell()
        return True

    async def _live_for_ever(self) -> None:
        while True:
            await trio.sleep(KEEP_ALIVE_S if self.is_certain() else RETRY_S)
            asked_s = self._clock_s()
            try:
                await self._catalog.keep_alive(self._lease)
                if not self._replaced.is_set():
                    self._certain_until_s = asked_s + SESSION_S - MARGIN_S
            except NotFound:
                self._certain_until_s = float("-inf")
                log.warning("the session has ended: the node was not heard of for %g s", SESSION_S)
                await self._begin_again()
            except VdiskfsError as exc:
                log.warning("the session cannot be kept alive, trying again: %s", exc)

    async def _begin_again(self) -> None:
        """A new session, with ``on_lost`` done before it is certain."""
        is_begun, told = False, 0
        while not self._replaced.is_set():
            try:
                asked_s = self._clock_s()
                if is_begun:
                    await self._catalog.keep_alive(self._lease)
                else:
                    is_begun = await self._begin()
                    told = 0
                while is_begun and told < len(self.on_lost):
                    await self.on_lost[told]()
                    told += 1
                if is_begun:
                    self._certain_until_s = asked_s + SESSION_S - MARGIN_S
                    log.info("the session has begun anew")
                    return
            except NotFound:
                is_begun = False
                continue
            except VdiskfsError as exc:
                log.warning("no new session yet: %s", exc)
            await trio.sleep(RETRY_S)

    # The others'.

    async def _follow_for_ever(self) -> None:
        while True:
            try:
                async with aclosing(self._catalog.watch(SESSION_PREFIX, after=self._revision)) as watch:
                    async for events in watch:
                        self._apply(events)
            except Compacted:
                pass
            except VdiskfsError as exc:
                log.warning("cannot follow the sessions, trying again: %s", exc)
                await trio.sleep(RETRY_S)
            try:
                await self.catch_up()
            except VdiskfsError:
                await trio.sleep(RETRY_S)

    def _apply(self, events: list[Event]) -> None:
        for event in events:
            if event.revision > self._revision:
                self._note(event.key, event.value)
        self._revision = max(self._revision, events[-1].revision)
        self._tell()

    def _note(self, key: bytes, value: bytes | None) -> None:
        name = key[len(SESSION_PREFIX) :].decode(errors="replace")
        if value is None:
            self._members.pop(name, None)
            return
        try:
            member = read_member(key, value)
        except Corrupt as exc:
            log.warning("%s", exc)
            return
        self._members[name] = member
        if key == self._key and self._lease and value != self._value:
            self._certain_until_s = float("-inf")
            self._replaced.set()

    async def _end_when_replaced(self) -> None:
        await self._replaced.wait()
        by = self._members.get(self.node, self._member)
        raise Exists(f"another node has taken this node's name host={by.host} port={by.port}")

    def _tell(self) -> None:
        self._moved_on.set()
        self._moved_on = trio.Event()


def read_member(key: bytes, value: bytes) -> Member:
    """The member whose session is in this row.

    Raises:
        Corrupt: it cannot be read.
    """
    node = key[len(SESSION_PREFIX) :].decode(errors="replace")
    match decode_value(key, value):
        case {"host": str(host), "port": int(port), "identity": str(identity)}:
            return Member(node, host, port, identity)
    raise Corrupt(f"an unreadable session in the catalog key={key!r}")
