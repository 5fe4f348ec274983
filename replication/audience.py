"""The subscribers of one vdisk, at its owner: what each has been told, has acknowledged, and how long it lives.

A flush waits until all that are *active* have acknowledged, or until the subscription of those that have not is over,
SUBSCRIPTION_S after their last renewal came: they trust theirs for a shorter time than that, counted from when they
sent it, so nobody who is waited for no more believes that it has the newest version.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from metadata.errors import Unavailable, VdiskfsError
from replication.cluster import CALL_DATA_BYTES_MAX, SUBSCRIPTION_S, Links
from replication.log import Commit
from replication.publication import PUBLISH, Publication, values_of

RETRY_S = 0.05
"""Before a node that cannot be reached is told again."""
BACKLOG_MAX = 32
"""Commits told one by one; a subscriber further behind is told of the newest, and reads the others from the pool."""
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
    acknowledged: int = 0
    is_active: bool = False
    """It has, or is being told, all commits; what is not is only a pin against collection."""
    gone: bool = False
    backlog: deque[tuple[Publication, bytes]] = field(default_factory=deque)
    woken: trio.Event = field(default_factory=trio.Event)


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
        self._moved = trio.Event()

    def add(self, node: str) -> Subscriber:
        """A node subscribes, or subscribes anew: not active yet."""
        self.remove(node)
        added = self.subscribers[node] = Subscriber(node, self._clock_s())
        return added

    def activate(self, subscriber: Subscriber, version: int) -> None:
        """It will have this version before it believes anything; later ones are told."""
        subscriber.is_active, subscriber.acknowledged = True, version
        self._nursery.start_soon(self._tell, subscriber)

    def renew(self, node: str) -> bool:
        """A renewal came; says whether there was anything to renew."""
        self.end_old()
        subscriber = self.subscribers.get(node)
        if subscriber is None:
            return False
        subscriber.renewed_s = self._clock_s()
        return True

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
                subscriber.woken.set()

    async def wait(self, version: int) -> None:
        """Returns when no active subscriber lacks this version."""
        while True:
            lagging = [s for s in self.subscribers.values() if s.is_active and s.acknowledged < version]
            if not lagging:
                return
            left_s = min(s.renewed_s for s in lagging) + SUBSCRIPTION_S - self._clock_s()
            with trio.move_on_after(max(LOOK_S, left_s)):
                await self._moved.wait()
            self.end_old()

    async def _tell(self, subscriber: Subscriber) -> None:
        while not subscriber.gone:
            if not subscriber.backlog:
                subscriber.woken = trio.Event()
                await subscriber.woken.wait()
                continue
            if len(subscriber.backlog) > BACKLOG_MAX:
                newest = subscriber.backlog.pop()
                subscriber.backlog.clear()
                subscriber.backlog.append(newest)
            told, data = subscriber.backlog[0]
            try:
                await self._links.call(subscriber.node, PUBLISH, values_of(told), data, deadline_s=TRY_S)
            except Unavailable:
                await trio.sleep(RETRY_S)
                self.end_old()
                continue
            except VdiskfsError:  # it does not follow, or cannot: it knows, and does not trust what it has
                if not subscriber.gone:
                    self.remove(subscriber.node)
                return
            if subscriber.backlog and subscriber.backlog[0][0] is told:
                subscriber.backlog.popleft()
            subscriber.acknowledged = max(subscriber.acknowledged, told.version)
            self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()
