"""A name that is taken away is over on every node when the call returns: the other nodes are told, and say so.

A name that is new needs no word: who does not find it asks the catalog. One that is gone, or stands for something else now,
may be in the other nodes' mirrors until the catalog's watch gets there, and in their kernels until they are told. So
whoever takes a name away waits until each live node's mirror has caught up and its kernel has dropped the entry, or
has had the time to: it may itself wait for a lock that a request holds which waits for us.

A node that does not answer is not waited for again for a while; it comes to know by the watch, as it would have.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import trio

from metadata.errors import VdiskfsError
from replication.cluster import Answer, Links, Membership

VERB = "names"
ANSWER_S = 1.0
"""How long a change of names waits for another node at most."""
SILENT_S = 5.0
"""How long one that did not answer is not waited for."""
KERNEL_S = 0.1
"""How long the asked node waits for its kernel."""
LOOK_S = 0.005

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Peer:
    """What another node has said."""

    shown: int = 0
    """The newest revision of the catalog that it is known to show."""
    silent_until_s: float = 0.0
    lock: trio.Lock = field(default_factory=trio.Lock)


class Neighbours(Protocol):
    """What is asked about the other nodes (``replication.company``)."""

    @property
    def links(self) -> Links: ...
    @property
    def membership(self) -> Membership: ...


async def introduce(company: Neighbours | None) -> None:
    """Before a new mount shows anything: the others know that they are not alone, and that their mirrors may be behind."""
    if company is not None:
        await Announcer(company.links, company.membership).announce(1)


def answer_announcements(
    links: Links,
    membership: Membership,
    *,
    catch_up: Callable[[], Awaitable[object]],
    settled: Callable[[], Awaitable[None]],
) -> None:
    """Answers the others' announcements from now on.

    Args:
        links: the way to them.
        membership: who they are.
        catch_up: lets this node's mirror show what the catalog holds.
        settled: waits until the kernel has been told of it.
    """

    async def answer(node: str, _named: Mapping[str, Any], _data: bytes) -> Answer:
        await catch_up()
        with trio.move_on_after(KERNEL_S):
            await settled()
        with trio.move_on_after(KERNEL_S):  # the reading has woken who watches the sessions
            while node not in membership.members():
                await trio.sleep(LOOK_S)
        return {}, b""

    links.serve(VERB, answer)


class Announcer:
    """Tells the others; one to a node that has any."""

    def __init__(self, links: Links, membership: Membership) -> None:
        self._links, self._membership = links, membership
        self._peers: dict[str, _Peer] = {}
        self._newest = 0

    async def announce(self, revision: int) -> None:
        """Returns when each live node shows this revision, or does not answer."""
        self._newest = max(self._newest, revision)
        others = [node for node in self._membership.members() if node != self._membership.node]
        if len(others) == 1:
            await self._tell(others[0], revision)
        elif others:
            async with trio.open_nursery() as nursery:
                for node in others:
                    nursery.start_soon(self._tell, node, revision)

    async def _tell(self, node: str, revision: int) -> None:
        peer = self._peers.setdefault(node, _Peer())
        async with peer.lock:  # whoever comes meanwhile shares the next call
            if peer.shown >= revision or trio.current_time() < peer.silent_until_s:
                return
            told = self._newest
            try:
                await self._links.call(node, VERB, {}, deadline_s=ANSWER_S)
                peer.shown = told
            except VdiskfsError as exc:
                peer.silent_until_s = trio.current_time() + SILENT_S
                _log.info("a node may show old names for a moment: %s node=%s", exc, node)
