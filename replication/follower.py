"""A peer's half of publication: how this node knows the newest version of a vdisk that another node owns.

    subscribed and trusted   from memory: what was published has been applied, and acknowledged
    owner live               subscribe: the owner says where it is, the pool's log is read up to there
    no owner to ask          the pool's log is read to its end: what was acknowledged is durable there

A subscription is trusted for less time, from when its renewal was *sent*, than the owner waits for it, from when it
*came*; so while this node trusts it, no flush has returned that it does not know of.

**Generations.** A row that somebody may read at a version must not be overwritten by a later commit. What the owner keeps
comes with what it tells; what this node reads is pinned here. Where nobody could be asked, each version gets its own rows.

**Invariant** I9: what ``newest`` says never goes back.
"""

import functools
import itertools
import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from metadata.errors import Fenced, NotFound, NotOwner, Unavailable, VdiskfsError
from metadata.ids import POSITION_MASK
from metadata.index import VdiskState
from metadata.records import decode_record
from metadata.units import BLOCK_BYTES
from replication.cluster import SUBSCRIPTION_S, Answer, Links, Membership
from replication.family import Family
from replication.loading import Loading
from replication.mirror import Mirror
from replication.ownership import Floor, Owner, VdiskFacts, read_facts
from replication.publication import (
    MOVED,
    NUMBERS_MAX,
    PUBLISH,
    RENEW,
    STARTED,
    SUBSCRIBE,
    UNSUBSCRIBE,
    Standing,
    Told,
    digest,
    number_in,
    numbers_in,
    standing_in,
    told_in,
)
from replication.reader import Reader
from replication.recovery import Lineage, Placed, Recovered, apply_published, catch_up, go_on
from replication.workspace import Workspace

log = logging.getLogger(__name__)

RENEW_S = 0.5
TRUSTED_S = 0.75 * SUBSCRIPTION_S
ASK_S = 1.0
"""An owner that does not answer within this is not asked any more this time: the pool knows as well."""
UNUSED_S = 10.0
"""A subscription that nobody needs is kept so long after it was last of use."""
GOODBYE_S = 0.5
"""For telling owners at the end that nobody need wait for this node any more."""
TOLD_MAX = 256
"""Publications acknowledged before they are applied; one more waits."""
APPLY_S = 0.05
"""They are applied so much later, together; whoever asks for the newest version meanwhile has it done at once."""
ROUNDS_MAX = 10
"""Of catching up with an owner that goes on writing."""
TRIES_MAX = 5
"""Owners that change in a row while one is looked for."""


@dataclass(frozen=True, slots=True)
class Newest:
    """A version of a vdisk, as far as `ls -l` and a reader need to know it."""

    vdisk: int
    version: int
    check: int
    """Its record's, which tells it from a version of that number that a deposed owner wrote."""
    size: int
    own_blocks: int
    overlap: int
    mtime_ns: int


@dataclass(slots=True, eq=False)
class _Following:
    """A subscription."""

    owner: Owner
    used_s: float
    trusted_until_s: float = 0.0
    term: int = 0
    """As the owner calls it."""
    state: VdiskState | None = None
    """What the index has; None: not trusted yet."""
    heard: int = 0
    """The newest version that the owner has named in its answers to forwarded requests."""
    told: deque[Told] = field(default_factory=deque)
    """Publications acknowledged and not applied yet: whoever asks for the newest version applies them first."""
    is_applying: bool = False


class Follower:
    """One to a node that has others; owned by its ``Company``. ``run`` is its task.

    Args:
        workspace: what the vdisks share.
        links: the way to the others.
        membership: who they are.
        mirror: whose vdisks are whose.
        family: the snapshot tree.
        loading: who else applies logs to the index.
    """

    def __init__(
        self,
        workspace: Workspace,
        links: Links,
        membership: Membership,
        *,
        mirror: Mirror,
        family: Family,
        loading: Loading,
    ) -> None:
        self._workspace, self._links, self._membership, self._mirror = workspace, links, membership, mirror
        self._family, self._loading = family, loading
        self._following: dict[int, _Following] = {}
        self._serial = 0
        self.applied = 0
        """Counts publications applied."""
        self.gaps = 0
        """Counts those before which something was missing."""
        self.pinned: list[Callable[[], Iterable[int]]] = []
        """Who knows vdisks of which something is pinned besides what open readers read."""
        self._nursery: trio.Nursery | None = None
        mirror.listeners.append(self._note_owner)
        links.serve(PUBLISH, self._publish, at_once=self._publish_nowait)
        links.serve(MOVED, self._moved)
        links.serve(STARTED, self._started)

    # ---- what the rest of the node asks

    async def newest(self, vdisk: int) -> Newest:
        """The newest version, durable and at least as new as any that a flush or close published before the call.

        Raises:
            NotFound: there is no such vdisk.
            NotOwner: it is this node's own, or nobody's.
            Corrupt, Unavailable: its log cannot be read.
        """
        known = self.newest_nowait(vdisk)
        if known is not None:
            return known
        async with self._loading.alone_at(vdisk):
            await self._apply_told(vdisk)
            known = self.newest_nowait(vdisk)
            return self._described(vdisk, await self._find(vdisk)) if known is None else known

    def newest_nowait(self, vdisk: int) -> Newest | None:
        """The same, if a subscription knows."""
        following = self._following.get(vdisk)
        if following is None or following.state is None or not self._is_trusted(following):
            return None
        if following.told or following.state.version < following.heard:
            return None
        following.used_s = self._workspace.clock_s()
        return self._described(vdisk, following.state)

    def note_version(self, vdisk: int, version: int) -> None:
        """There is this version: an owner that answers forwarded requests with it does not wait for the publication."""
        following = self._following.get(vdisk)
        if following is not None:
            following.heard = max(following.heard, version)

    async def hold(self, vdisk: int) -> None:
        """Sees to it that rows of this vdisk may be read: its index is current, and its owner told, if it can be.

        What snapshots and clones rest on is there too: who made them did not wait until it was published here.

        Raises:
            As ``newest``.
        """
        self.note_version(vdisk, self._family.newest_named(vdisk))
        await self.newest(vdisk)

    def lag(self) -> dict[int, int]:
        """By vdisk: the version that was applied last, of those that are followed."""
        return {
            vdisk: following.state.version
            for vdisk, following in self._following.items()
            if following.state is not None
        }

    async def run(self) -> None:
        """Renews subscriptions until it is cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                while True:
                    await trio.sleep(RENEW_S)
                    with suppress(VdiskfsError):
                        await self._tick()
                        await self._forget_deleted()
        finally:
            self._nursery = None
            with trio.move_on_after(GOODBYE_S, shield=True):
                await self._leave()

    # ---- finding out

    def _next_serial(self) -> int:
        """Of what is sent: greater than those before, an earlier daemon's of this node too."""
        self._serial = max(self._serial + 1, int(self._workspace.clock_s() * 1e9))
        return self._serial

    def _is_trusted(self, following: _Following) -> bool:
        return self._workspace.clock_s() < following.trusted_until_s

    def _described(self, vdisk: int, state: VdiskState) -> Newest:
        version, size, own_blocks, overlap = state.version, state.size, state.own_blocks, state.overlap
        descent = self._family.descent(vdisk)
        if descent.rolled_back is not None and version == descent.rollbacks[-1][1]:  # no commit since says so
            version = descent.rollbacks[-1][0]
            size, own_blocks, overlap = descent.rolled_back
        return Newest(vdisk, version, state.record_check, size, own_blocks, overlap, state.time_ns)

    async def _find(self, vdisk: int) -> VdiskState:
        for number in range(TRIES_MAX):
            facts = await read_facts(self._workspace.catalog, vdisk)
            owner = Owner(facts.node, facts.epoch)
            if not facts.epoch or owner.node == self._membership.node:
                raise NotOwner(f"the vdisk is no other node's vdisk={vdisk}")
            self._mirror.note_owner(vdisk, owner)
            if self._membership.is_live(owner.node):
                try:
                    return await self._subscribe(vdisk, owner)
                except (NotOwner, Fenced):
                    continue
                except Unavailable as exc:
                    log.info(
                        "the owner cannot be asked, the pool is: %s vdisk=%d node=%s", exc, vdisk, owner.node
                    )
            try:
                state = await self._read_pool(vdisk, facts)
            except Unavailable:  # perhaps the vdisk has moved on meanwhile
                if number:
                    raise
                continue
            again = await read_facts(self._workspace.catalog, vdisk)
            if (again.node, again.epoch) == (facts.node, facts.epoch):
                return state
        raise Unavailable(f"the vdisk's owner keeps changing vdisk={vdisk}")

    async def _subscribe(self, vdisk: int, owner: Owner) -> VdiskState:
        """Subscribes and catches up with the owner, as often as it takes to be close behind it."""
        following = _Following(owner, used_s=self._workspace.clock_s())
        self._following[vdisk] = following
        try:
            state = await self._workspace.wait_for(lambda: self._workspace.index.state(vdisk))
            for _ in range(ROUNDS_MAX):
                sent_s = self._workspace.clock_s()
                version = state.version if state is not None else 0
                values = {"vdisk": vdisk, "version": version, "serial": self._next_serial()}
                answer, _ = await self._links.call(owner.node, SUBSCRIBE, values, deadline_s=ASK_S)
                standing = standing_in(answer)
                if standing.epoch != owner.epoch:
                    raise NotOwner(f"the vdisk has got another epoch vdisk={vdisk}")
                following.trusted_until_s = max(following.trusted_until_s, sent_s + TRUSTED_S)
                following.term = standing.term
                state = await self._catch_up_with(vdisk, standing)
                if standing.is_active and self._following.get(vdisk) is following:
                    following.state = state
                    return state
            raise Unavailable(f"cannot keep up with the vdisk's owner vdisk={vdisk}")
        except BaseException:
            if self._following.get(vdisk) is following:
                del self._following[vdisk]
            raise

    async def _catch_up_with(self, vdisk: int, standing: Standing) -> VdiskState:
        if standing.descent != digest(self._family.descent(vdisk)):
            await self._mirror.refresh(self._workspace.catalog, vdisk)
        floor = Floor(collected=standing.collected)
        lineage = self._lineage(vdisk, VdiskFacts(floor=floor), kept=standing.kept)
        space = self._workspace
        if not standing.version:
            return lineage.beginning()

        def attempt(may_rebuild: bool) -> Recovered | None:
            record = (standing.place, standing.check)
            return catch_up(space.pool, space.index, lineage, record=record, may_rebuild=may_rebuild)

        return await self._bring(vdisk, attempt, kept=standing.kept)

    async def _read_pool(self, vdisk: int, facts: VdiskFacts) -> VdiskState:
        """Without the owner's word."""
        await self._mirror.refresh(self._workspace.catalog, vdisk)
        space, lineage = self._workspace, replace(self._lineage(vdisk, facts), every=True)

        def attempt(may_rebuild: bool) -> Recovered | None:
            return go_on(space.pool, space.index, lineage, may_rebuild=may_rebuild)

        return await self._bring(vdisk, attempt)

    def _lineage(self, vdisk: int, facts: VdiskFacts, *, kept: Iterable[int] = ()) -> Lineage:
        found = self._loading.lineage(vdisk, facts)
        return replace(found, kept=tuple(sorted({*found.kept, *kept})))

    async def _bring(
        self, vdisk: int, attempt: Callable[[bool], Recovered | None], *, kept: Iterable[int] = ()
    ) -> VdiskState:
        """Brings the index forward; if it must be built anew, then while nobody looks into it."""
        recovered = await self._workspace.wait_for(functools.partial(attempt, False))
        if recovered is None:
            async with self._workspace.moves.rebuilding(vdisk):
                recovered = await self._workspace.wait_for(functools.partial(attempt, True))
                assert recovered is not None
                self._loading.note_rebuilt(vdisk, recovered, kept=kept)
        self._loading.groups(vdisk).segments.clear()
        return recovered.state

    # ---- what owners tell

    async def _publish(self, node: str, values: Mapping[str, Any], data: bytes) -> Answer:
        """What is told while the vdisk is just being subscribed to here, or has fallen behind."""
        vdisk = told_in(values, data)[0][0].vdisk
        async with self._loading.alone_at(vdisk):
            await self._apply_told(vdisk)
            answer = self._publish_nowait(node, values, data)
        if answer is None:
            raise NotFound(f"the vdisk is not followed vdisk={vdisk}")
        return answer

    def _publish_nowait(self, node: str, values: Mapping[str, Any], data: bytes) -> Answer | None:
        lot = told_in(values, data)
        vdisk, epoch = lot[0][0].vdisk, lot[0][0].epoch
        following = self._following.get(vdisk)
        if following is None or following.state is None or len(following.told) >= TOLD_MAX:
            return None
        if following.owner != Owner(node, epoch):
            raise NotFound(f"the vdisk is not followed vdisk={vdisk}")
        following.told.extend(lot)
        if not following.is_applying and self._nursery is not None:
            following.is_applying = True
            self._nursery.start_soon(self._apply_soon, vdisk, following)
        return {}, b""

    async def _apply_soon(self, vdisk: int, following: _Following) -> None:
        try:
            await trio.sleep(APPLY_S)
            async with self._loading.alone_at(vdisk):
                await self._apply_told(vdisk)
        finally:
            following.is_applying = False

    async def _apply_told(self, vdisk: int) -> None:
        """Inside ``alone_at``: applies what was acknowledged; what cannot be ends the subscription."""
        following = self._following.get(vdisk)
        while following is not None and following.told and following.state is not None:
            lot = _alike(following.told)
            try:
                following.state = await self._applied(lot, following.state)
            except VdiskfsError as exc:
                log.warning("a publication cannot be applied: %s vdisk=%d", exc, vdisk)
                if self._following.get(vdisk) is following:
                    del self._following[vdisk]
                return
            for _ in lot:
                following.told.popleft()
            self.applied += len(lot)

    async def _applied(self, lot: list[Told], state: VdiskState) -> VdiskState:
        """The state with all of these, which are alike, applied."""
        lot = _told_once(lot, state)
        if not lot:
            return state
        told, space = lot[-1][0], self._workspace
        vdisk = told.vdisk
        if told.descent != digest(self._family.descent(vdisk)):
            await self._mirror.refresh(space.catalog, vdisk)
        lineage = self._lineage(vdisk, VdiskFacts(), kept=(told.generation - 1,))
        placed = self._chained(lot, state)
        if placed:
            applied, segments = await space.wait_for(
                lambda: apply_published(space.index, lineage, state, placed)
            )
            self._loading.groups(vdisk).note_applied(segments)
            return applied
        self.gaps += 1
        # What lies between was committed under the owner's eyes, but what it kept then is not told any more.
        lineage = replace(lineage, every=True)

        def attempt(may_rebuild: bool) -> Recovered | None:
            record = (told.place, told.check)
            return catch_up(space.pool, space.index, lineage, record=record, may_rebuild=may_rebuild)

        return await self._bring(vdisk, attempt)

    def _chained(self, lot: list[Told], state: VdiskState) -> list[Placed]:
        """The commits, if all have come along and each follows the one before, the first one ``state``; else none."""
        placed, last = list[Placed](), (state.record_place, state.record_check)
        for told, data in lot:
            if not data:
                return []
            seed = self._workspace.pool.file(told.vdisk, told.place >> 16).seed + (told.place & POSITION_MASK)
            record, check = decode_record(data, seed)
            if (record.previous_place, record.previous_check) != last:
                return []
            placed.append(
                (record, told.place, check, (told.place & POSITION_MASK) + len(data) // BLOCK_BYTES)
            )
            last = told.place, check
        return placed

    async def _moved(self, node: str, values: Mapping[str, Any], _: bytes) -> Answer:
        self._mirror.note_owner(number_in(values, "vdisk"), Owner(node, number_in(values, "epoch")))
        return {}, b""

    async def _started(self, node: str, values: Mapping[str, Any], _: bytes) -> Answer:
        """A node's daemon is another one now, which knows of no subscriber."""
        for vdisk in [vdisk for vdisk, one in self._following.items() if one.owner.node == node]:
            del self._following[vdisk]
        return {}, b""

    def _note_owner(self, vdisk: int, owner: Owner | None) -> None:
        following = self._following.get(vdisk)
        if following is not None and following.owner != owner:
            del self._following[vdisk]

    # ---- keeping subscriptions

    async def _tick(self) -> None:
        needed, now_s = self._needed(), self._workspace.clock_s()
        by_node: dict[str, list[int]] = {}
        unused: dict[str, list[int]] = {}
        for vdisk, following in list(self._following.items()):
            if vdisk in needed:
                following.used_s = now_s
            is_used = now_s < following.used_s + UNUSED_S or following.state is None
            (by_node if is_used else unused).setdefault(following.owner.node, []).append(vdisk)
            if not is_used:
                del self._following[vdisk]
        async with trio.open_nursery() as nursery:
            for node, vdisks in by_node.items():
                for at in range(0, len(vdisks), NUMBERS_MAX):
                    nursery.start_soon(self._renew, node, vdisks[at : at + NUMBERS_MAX])
            for node, vdisks in unused.items():
                nursery.start_soon(self._unsubscribe, node, vdisks[:NUMBERS_MAX])
            for vdisk in needed:
                if vdisk not in self._following and self._is_followable(vdisk):
                    nursery.start_soon(self._take_up, vdisk)

    def _needed(self) -> set[int]:
        """Vdisks of others that somebody here reads, or may be about to."""
        found = {vdisk for pinned in self.pinned for vdisk in pinned()}
        for reader in list(self._workspace.moves.readers):
            if isinstance(reader, Reader):
                found |= reader.reads()
        return {vdisk for vdisk in found if not self._mirror.is_mine(vdisk)}

    def _is_followable(self, vdisk: int) -> bool:
        owner = self._mirror.owners.get(vdisk)
        return owner is not None and self._membership.is_live(owner.node)

    async def _take_up(self, vdisk: int) -> None:
        """A subscription that is needed and was lost."""
        try:
            await self.newest(vdisk)
        except VdiskfsError as exc:
            log.warning("a vdisk that is read here cannot be followed: %s vdisk=%d", exc, vdisk)

    async def _renew(self, node: str, vdisks: list[int]) -> None:
        before = {vdisk: self._following.get(vdisk) for vdisk in vdisks}
        terms = [following.term if following is not None else 0 for following in before.values()]
        sent_s = self._workspace.clock_s()
        try:
            answer, _ = await self._links.call(
                node, RENEW, {"vdisks": vdisks, "terms": terms}, deadline_s=RENEW_S
            )
            lost = set(numbers_in(answer, "lost"))
        except VdiskfsError:  # not renewed: trust in it ends by itself
            return
        for vdisk, renewed in before.items():
            if renewed is None or self._following.get(vdisk) is not renewed:
                continue
            if vdisk not in lost:
                renewed.trusted_until_s = max(renewed.trusted_until_s, sent_s + TRUSTED_S)
            elif renewed.state is not None:
                del self._following[vdisk]

    async def _leave(self) -> None:
        by_node: dict[str, list[int]] = {}
        for vdisk, following in self._following.items():
            by_node.setdefault(following.owner.node, []).append(vdisk)
        self._following.clear()
        async with trio.open_nursery() as nursery:
            for node, vdisks in by_node.items():
                nursery.start_soon(self._unsubscribe, node, vdisks[:NUMBERS_MAX])

    async def _forget_deleted(self) -> None:
        """What the index has of vdisks that other nodes have deleted."""
        readers = list(self._workspace.moves.readers)
        read = {vdisk for reader in readers if isinstance(reader, Reader) for vdisk in reader.reads()}
        for vdisk in self._mirror.deleted - read:
            async with self._loading.alone_at(vdisk):
                self._following.pop(vdisk, None)
                await self._workspace.wait_for(functools.partial(self._workspace.index.forget, vdisk))
            self._mirror.deleted.discard(vdisk)

    async def _unsubscribe(self, node: str, vdisks: list[int]) -> None:
        values = {"vdisks": vdisks, "serial": self._next_serial()}
        with suppress(VdiskfsError):  # then it ends by itself
            await self._links.call(node, UNSUBSCRIBE, values, deadline_s=RENEW_S)


def _alike(told: deque[Told]) -> list[Told]:
    """The first publications, as many as can be applied together."""
    first = told[0][0]
    alike = itertools.takewhile(
        lambda one: (one[0].generation, one[0].descent) == (first.generation, first.descent), told
    )
    return list(alike)


def _told_once(lot: list[Told], state: VdiskState) -> list[Told]:
    """Those that are new to the index; some were told again because an acknowledgement was lost."""
    found, version, check = list[Told](), state.version, state.record_check
    for told, data in lot:
        if told.check != check and told.version >= version:
            version, check = told.version, told.check
            found.append((told, data))
    return found
