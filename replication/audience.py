"""The subscribers of one vdisk, at its owner: what each has been told, has acknowledged, and how long it lives.

A flush waits until all that are *active* have acknowledged, or until the subscription of those that have not is over,
SUBSCRIPTION_S after their last renewal came: they trust theirs for a shorter time than that, counted from when they
sent it, so nobody who is waited for no more believes that it has the newest version.

A node whose own forwarded requests a commit holds learns from their answers which version there is, and does not believe
that it has the newest before it has that one (``Follower.note_version``). So those requests do not wait for it, and it is
told a little later, of many commits at once.
"""

import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

from metadata.errors import Unavailable, VdiskfsError
from replication.cluster import CALL_DATA_BYTES_MAX, SUBSCRIPTION_S, Links
from replication.log import Commit
from replication.publication import PUBLISH, Publication, Told, told_values

RETRY_S = 0.05
"""Before a node that cannot be reached is told again."""
BACKLOG_MAX = 256
"""Commits that are told; a subscriber further behind is told of the newest, and reads the others from the pool."""
LATE_S = 0.02
"""How much later a node is told of its own forwarded requests."""
LOOK_S = 0.01
"""Before a subscription that should be over is looked at again: trio's clock and the node's may differ."""
TRY_S = 0.5
"""After so long without an answer a commit is told again: the message may be lost."""


Describe = Callable[[Commit, int, int], Publication]
"""Given a commit, its epoch, and the generation under which rows are written now."""


@dataclass(slots=True, eq=False)
class Subscriber:
    """A node that follows the vdisk."""

    node: str
    renewed_s: float
    """When its last renewal came."""
    serial: int
    """Of its subscription; the node gives each a greater one."""
    term: int = 0
    """Given by the owner: of two that bear one serial, because the node's call came twice, only the one whose answer
    the node has got can be renewed."""
    acknowledged: int = 0
    is_active: bool = False
    """It has, or is being told, all commits; what is not is only a pin against collection."""
    gone: bool = False
    backlog: deque[Told] = field(default_factory=deque)
    woken: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True, eq=False)
class _Waiting:
    """Somebody who waits until all have a version."""

    version: int
    besides: str
    over: trio.Event = field(default_factory=trio.Event)


class Audience:
    """One to a vdisk that has subscribers; owned by the ``Publisher``.

    Args:
        links: the way to them.
        clock_s: the node's.
        nursery: for a task for each.
        describe: makes a publication of a commit.
    """

    def __init__(
        self,
        links: Links,
        clock_s: Callable[[], float],
        nursery: trio.Nursery,
        describe: Describe,
    ) -> None:
        self._links, self._clock_s, self._nursery, self._describe = links, clock_s, nursery, describe
        self.subscribers: dict[str, Subscriber] = {}
        self._waiting = set[_Waiting]()
        self._forwarding = Counter[str]()
        """Nodes, by how many of their requests are being committed."""
        self._is_late = False
        self._terms = secrets.randbits(48)

    def add(self, node: str, serial: int) -> Subscriber:
        """A node subscribes, or subscribes anew: not active yet.

        Raises:
            Unavailable: what it sent later came before, or this came twice: it would be believed to have what it was told
                since the first time, and was not.
        """
        self.end_old()
        before = self.subscribers.get(node)
        if before is not None and before.serial >= serial:
            raise Unavailable("the node has subscribed anew since")
        self.remove(node)
        self._terms += 1
        added = self.subscribers[node] = Subscriber(node, self._clock_s(), serial, self._terms)
        return added

    def activate(self, subscriber: Subscriber, version: int) -> None:
        """It will have this version before it believes anything; later ones are told."""
        subscriber.is_active, subscriber.acknowledged = True, version
        self._nursery.start_soon(self._tell, subscriber)

    def renew(self, node: str, term: int) -> bool:
        """A renewal came; says whether there was anything to renew."""
        self.end_old()
        subscriber = self.subscribers.get(node)
        if subscriber is None or subscriber.term != term:
            return False
        subscriber.renewed_s = self._clock_s()
        return True

    def leave(self, node: str, serial: int) -> None:
        """A node says that it does not follow any more, unless it has subscribed anew since."""
        subscriber = self.subscribers.get(node)
        if subscriber is not None and subscriber.serial <= serial:
            self.remove(node)

    def remove(self, node: str) -> None:
        """A node does not follow any more."""
        subscriber = self.subscribers.pop(node, None)
        if subscriber is not None:
            subscriber.gone = True
            subscriber.woken.set()
            self._wake()

    def end_all(self) -> None:
        """Nobody follows any more."""
        for node in list(self.subscribers):
            self.remove(node)

    def end_old(self) -> None:
        """Those that have not renewed for too long are gone."""
        now_s = self._clock_s()
        for subscriber in list(self.subscribers.values()):
            if now_s >= subscriber.renewed_s + SUBSCRIPTION_S:
                self.remove(subscriber.node)

    def publish(self, commit: Commit, epoch: int, *, generation: int) -> None:
        """On the event loop, in one stretch with the commit being noted: tells all that are active."""
        told = self._describe(commit, epoch, generation)
        data = commit.data if len(commit.data) <= CALL_DATA_BYTES_MAX else b""
        for subscriber in self.subscribers.values():
            if subscriber.is_active:
                subscriber.backlog.append((told, data))
                if subscriber.node not in self._forwarding:
                    subscriber.woken.set()
                elif not self._is_late:
                    self._is_late = True
                    self._nursery.start_soon(self._tell_late)

    async def _tell_late(self) -> None:
        await trio.sleep(LATE_S)
        self._is_late = False
        for subscriber in self.subscribers.values():
            if subscriber.backlog:
                subscriber.woken.set()

    @contextmanager
    def forwarding(self, node: str) -> Iterator[None]:
        """Inside, a forwarded request of this node is being committed."""
        self._forwarding[node] += 1
        try:
            yield
        finally:
            self._forwarding[node] -= 1
            if not self._forwarding[node]:
                del self._forwarding[node]

    async def wait(self, version: int, *, besides: str = "") -> None:
        """Returns when no active subscriber lacks this version; ``besides``: a node that is not waited for."""
        while lagging := self._lagging(version, besides):
            for subscriber in lagging:
                if subscriber.backlog:
                    subscriber.woken.set()
            left_s = min(s.renewed_s for s in lagging) + SUBSCRIPTION_S - self._clock_s()
            waiting = _Waiting(version, besides)
            self._waiting.add(waiting)
            with trio.move_on_after(max(LOOK_S, left_s)):
                try:
                    await waiting.over.wait()
                finally:
                    self._waiting.discard(waiting)
            self.end_old()

    def _lagging(self, version: int, besides: str) -> list[Subscriber]:
        return [
            subscriber
            for subscriber in self.subscribers.values()
            if subscriber.acknowledged < version and subscriber.is_active and subscriber.node != besides
        ]

    async def _tell(self, subscriber: Subscriber) -> None:
        while not subscriber.gone:
            await subscriber.woken.wait()
            subscriber.woken = trio.Event()
            if subscriber.gone or not subscriber.backlog:
                continue
            if len(subscriber.backlog) > BACKLOG_MAX:
                newest = subscriber.backlog.pop()
                subscriber.backlog.clear()
                subscriber.backlog.append(newest)
            lot = _first_lot(subscriber.backlog)
            if len(lot) < len(subscriber.backlog):
                subscriber.woken.set()
            values, data = told_values(lot)
            try:
                await self._links.call(subscriber.node, PUBLISH, values, data, deadline_s=TRY_S)
            except Unavailable:
                await trio.sleep(RETRY_S)
                self.end_old()
                subscriber.woken.set()
                continue
            except VdiskfsError:  # it does not follow, or cannot: it knows, and does not trust what it has
                if not subscriber.gone:
                    self.remove(subscriber.node)
                return
            for told in lot:
                if subscriber.backlog and subscriber.backlog[0] is told:
                    subscriber.backlog.popleft()
            subscriber.acknowledged = max(subscriber.acknowledged, lot[-1][0].version)
            self._wake()

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not self._lagging(waiting.version, waiting.besides):
                waiting.over.set()


def _first_lot(backlog: deque[Told]) -> list[Told]:
    """As many commits as go into one call, at least one."""
    lot, size = list[Told](), 0
    for told in backlog:
        size += len(told[1])
        if lot and size > CALL_DATA_BYTES_MAX:
            break
        lot.append(told)
    return lot
