"""The owner's half of publication: who follows which of this node's vdisks, and what they are told.

    subscribe -> Audience -> publish (each commit, in order) -> acknowledged -> flush returns

A vdisk that nobody follows costs nothing: ``Head.audience`` is None. While one is followed its collection waits, so that
what a subscriber's index names stays where it is; so it does for a while after a takeover and after a daemon's start.
"""

import functools
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

import trio

from metadata.errors import NotOwner, Unavailable, VdiskfsError
from metadata.ids import VdiskId
from replication.audience import Audience
from replication.cluster import SESSION_S, SUBSCRIPTION_S, Answer, Links, Membership
from replication.family import Family
from replication.head import Head
from replication.lag import reach_pool
from replication.log import Commit
from replication.mirror import Mirror
from replication.ownership import Owner, Resting, read_facts
from replication.publication import (
    MOVED,
    RENEW,
    STARTED,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Publication,
    Standing,
    digest,
    number_in,
    numbers_in,
    values_of,
)
from replication.workspace import Workspace

log = logging.getLogger(__name__)

TICK_S = 0.5
RETRY_S = 0.05
GRACE_S = 2 * SUBSCRIPTION_S
"""A live node subscribes again to what it reads within a second; what one could not be told it does not trust."""
NEAR_VERSIONS = 32
"""So far behind a subscriber may be and yet be waited for: it needs milliseconds."""


class Publisher:
    """One to a node that has others; owned by its ``Company``. ``run`` is its task.

    Args:
        workspace: what the vdisks share.
        links: the way to the others.
        membership: who they are.
        mirror: whose vdisks are whose.
        family: the snapshot tree.
        heads: those loaded.
        resting: summaries of vdisks that nobody writes.
        load: loads a head.
    """

    def __init__(
        self,
        workspace: Workspace,
        links: Links,
        membership: Membership,
        *,
        mirror: Mirror,
        family: Family,
        heads: Mapping[int, Head],
        resting: Mapping[int, Resting],
        load: Callable[[VdiskId], Awaitable[Head]],
    ) -> None:
        self._workspace, self._links, self._membership, self._mirror = workspace, links, membership, mirror
        self._family, self._heads, self._resting, self._load = family, heads, resting, load
        self._audiences: dict[int, Audience] = {}
        self._taken_over_s: dict[int, float] = {}
        self._unknown_until_s = -math.inf
        """Who follows what is not known before, after a start."""
        self._nursery: trio.Nursery | None = None
        mirror.listeners.append(self._note_owner)
        for verb, handler in (
            (SUBSCRIBE, self._subscribe),
            (RENEW, self._renew),
            (UNSUBSCRIBE, self._unsubscribe),
        ):
            links.serve(verb, handler)

    async def run(self) -> None:
        """Serves subscribers until it is cancelled; what is committed after that waits for nobody."""
        try:
            async with trio.open_nursery() as self._nursery:
                while True:
                    await trio.sleep(TICK_S)
                    for vdisk, audience in list(self._audiences.items()):
                        audience.end_old()
                        self._drop_if_empty(vdisk)
        finally:
            self._nursery = None
            for vdisk, audience in list(self._audiences.items()):
                audience.end_all()
                self._drop_if_empty(vdisk)

    # ---- what the rest of the node asks

    def has_subscribers(self, vdisk: int) -> bool:
        """Whether anybody may read what the vdisk's rows named: nothing of it is moved or deleted now."""
        if self._workspace.clock_s() < self._unknown_until_s:
            return True
        audience = self._audiences.get(vdisk)
        if audience is not None:
            audience.end_old()
            if audience.subscribers:
                return True
        taken_over_s = self._taken_over_s.get(vdisk)
        if taken_over_s is None:
            return False
        if self._workspace.clock_s() < taken_over_s + SESSION_S:
            return True
        del self._taken_over_s[vdisk]
        return False

    def note_taken_over(self, vdisk: int) -> None:
        """The vdisk is this node's as of now: its subscribers elsewhere have not been heard of yet."""
        self._taken_over_s[vdisk] = self._workspace.clock_s()

    def attach(self, head: Head) -> None:
        """A head was loaded: its commits are told to those who follow it."""
        head.audience = self._audiences.get(head.vdisk)

    async def announce(self, vdisk: int, epoch: int) -> None:
        """Returns when no other node trusts what an earlier owner publishes: before this one's first commit is acknowledged.

        Raises:
            VdiskfsError: the catalog does not say who there is: a node of which this one has not heard yet may be among
                those who subscribed to the earlier owner.
        """
        await self._membership.catch_up()
        await self._tell_others(MOVED, {"vdisk": vdisk, "epoch": epoch})

    async def end_trust(self, vdisk: int) -> None:
        """Returns when no node trusts what it has of a vdisk that has changed without a commit to publish: each asks again."""
        audience = self._audiences.get(vdisk)
        if audience is not None and audience.subscribers:
            audience.end_all()
            self._drop_if_empty(vdisk)
            await trio.sleep(SUBSCRIPTION_S)

    async def announce_start(self) -> None:
        """Returns when no other node trusts what a daemon before this one, of this node's name, knew of it as a subscriber.

        This one publishes to nobody yet: what it acknowledged they would not hear of. And it collects nothing before those
        who read have subscribed again, for it knows of none of them.
        """
        if len(self._membership.members()) > 1:
            self._unknown_until_s = math.inf
            await self._tell_others(STARTED, {})
            self._unknown_until_s = self._workspace.clock_s() + GRACE_S

    async def _tell_others(self, verb: str, values: Mapping[str, Any]) -> None:
        others = [node for node in self._membership.members() if node != self._membership.node]

        async def tell(node: str) -> None:
            try:
                with trio.move_on_after(SUBSCRIPTION_S):  # silent for so long, it trusts nobody any more
                    while not await self._is_told(node, verb, values):
                        await trio.sleep(RETRY_S)
            except VdiskfsError as exc:
                log.warning("a node does not take notice of what is new: %s node=%s", exc, node)

        async with trio.open_nursery() as nursery:
            for node in others:
                nursery.start_soon(tell, node)

    async def _is_told(self, node: str, verb: str, values: Mapping[str, Any]) -> bool:
        """Tells a node, if it is live and can be reached; False: it must be tried again."""
        if not self._membership.is_live(node):
            return True
        try:
            await self._links.call(node, verb, values, deadline_s=SUBSCRIPTION_S)
        except Unavailable:
            return False
        return True

    def statistics(self) -> dict[int, dict[str, int]]:
        """By vdisk and node: the version that the subscriber has acknowledged."""
        return {
            vdisk: {node: one.acknowledged for node, one in audience.subscribers.items() if one.is_active}
            for vdisk, audience in self._audiences.items()
        }

    # ---- what subscribers ask

    async def _subscribe(self, node: str, values: Mapping[str, Any], _: bytes) -> Answer:
        vdisk, version = number_in(values, "vdisk"), number_in(values, "version")
        serial = number_in(values, "serial")
        owner = await self._check_mine(vdisk)
        if self._nursery is None:
            raise Unavailable("the node is just starting")
        audience = self._audiences.get(vdisk)
        if audience is None:
            describe = functools.partial(self._describe, vdisk)
            audience = Audience(self._links, self._workspace.clock_s, self._nursery, describe)
            self._audiences[vdisk] = audience
        subscriber = audience.add(node, serial)
        self._workspace.pool.note_followed(
            vdisk, True
        )  # commits from now on are in the pool when they are told
        head = self._heads.get(vdisk)
        if head is None and vdisk not in self._resting:
            head = await self._load(VdiskId(vdisk))
        if head is not None:
            head.audience = audience
            if head.commit_done is not None:  # it may have been answered already, and is not noted yet
                await head.commit_done.wait()
            await reach_pool(head)
        collected = await self._collected(vdisk)
        # No await from here: what is told here and what is published from now on have no gap between.
        if subscriber.gone:
            raise Unavailable(f"the subscription has ended vdisk={vdisk}")
        if self._mirror.owners.get(vdisk, owner) != owner:
            raise NotOwner(f"the vdisk has got another owner vdisk={vdisk}")
        standing = self._standing(vdisk, owner, collected=collected, seen=version)
        standing = replace(standing, term=subscriber.term)
        if standing.is_active:
            audience.activate(subscriber, standing.version)
        return values_of(standing), b""

    def _standing(self, vdisk: int, owner: Owner, *, collected: int, seen: int) -> Standing:
        head, resting = self._heads.get(vdisk), self._resting.get(vdisk)
        if head is not None:
            version, place, check = int(head.log.version), head.log.record_place, head.log.record_check
            collected = max(collected, head.collected)
        elif resting is not None:
            version, place, check = resting.version, resting.record_place, resting.record_check
        else:
            raise Unavailable(f"the vdisk was put away just now vdisk={vdisk}")
        return Standing(
            owner.epoch,
            version,
            place,
            check,
            collected=collected,
            descent=digest(self._family.descent(vdisk)),
            is_active=version - seen <= NEAR_VERSIONS,
            kept=self._family.kept_versions(vdisk),
        )

    async def _collected(self, vdisk: int) -> int:
        return (await read_facts(self._workspace.catalog, vdisk)).floor.collected

    def _describe(self, vdisk: int, commit: Commit, epoch: int, generation: int) -> Publication:
        return Publication(
            vdisk,
            epoch,
            commit.record.version,
            commit.place,
            check=commit.check,
            generation=min(generation, commit.record.version),
            descent=digest(self._family.descent(vdisk)),
        )

    async def _check_mine(self, vdisk: int) -> Owner:
        if not self._membership.is_certain():
            raise Unavailable("the node is not sure of its session")
        owner = self._mirror.owners.get(vdisk)
        if owner is None or owner.node != self._membership.node:
            await self._mirror.refresh(self._workspace.catalog, vdisk)
            owner = self._mirror.owners.get(vdisk)
        if owner is None or owner.node != self._membership.node:
            raise NotOwner(f"the vdisk is another node's vdisk={vdisk}")
        return owner

    async def _renew(self, node: str, values: Mapping[str, Any], _: bytes) -> Answer:
        if not self._membership.is_certain():
            raise Unavailable("the node is not sure of its session")
        lost, vdisks, terms = [], numbers_in(values, "vdisks"), numbers_in(values, "terms")
        for vdisk, term in zip(vdisks, terms, strict=False):
            audience = self._audiences.get(vdisk)
            if audience is None or not audience.renew(node, term):
                lost.append(vdisk)
        return {"lost": lost}, b""

    async def _unsubscribe(self, node: str, values: Mapping[str, Any], _: bytes) -> Answer:
        for vdisk in numbers_in(values, "vdisks"):
            audience = self._audiences.get(vdisk)
            if audience is not None:
                audience.leave(node, number_in(values, "serial"))
                self._drop_if_empty(vdisk)
        return {}, b""

    def _note_owner(self, vdisk: int, owner: Owner | None) -> None:
        audience = self._audiences.get(vdisk)
        if audience is not None and (owner is None or owner.node != self._membership.node):
            audience.end_all()
            self._drop_if_empty(vdisk)

    def _drop_if_empty(self, vdisk: int) -> None:
        audience, head = self._audiences.get(vdisk), self._heads.get(vdisk)
        if audience is not None and not audience.subscribers:
            del self._audiences[vdisk]
            self._workspace.pool.note_followed(vdisk, False)
            if head is not None:
                head.audience = None
