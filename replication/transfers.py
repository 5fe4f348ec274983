"""How ownership of a vdisk moves between nodes: asked for, handed over, taken over, lost.

    acquire   whoever is about to change a vdisk asks its owner for it (``acquire``). If nobody there writes it, the owner
              puts it to rest and writes the new owner's name into the owner record; else the two share it: the asker
              forwards its requests (replication/remote.py) until the owner's last writer has closed.
    retire    before it names another owner, a head takes no more changes, commits what it has, and rests. Files open for
              reading go on reading that version; files open for writing (a forced hand-over) forward from there on.
    take over an owner without a session: one transaction, which rests on the session being gone. Loading the head then
              reads the log's tail, and begins the epoch with a commit of nothing: what a deposed owner appends later to
              groups of its own is outside the log's chain from then on.
    learn     the new owner's mirror of the snapshot tree is the truth from now on, so it reads it anew first; versions
              that the old owner keeps for others are pinned until the watch has told of them.

At most one node writes the owner record at a time: each change compares it with what was read.
"""

import functools
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import trio

from metadata.catalog import VDISK_PREFIX, decode_value, id_in_key
from metadata.descent import read_descent
from metadata.errors import Fenced, NotOwner, Unavailable, VdiskfsError
from metadata.ids import VdiskId
from metadata.snapshots import Snapshot
from replication.cluster import SESSION_S, Answer, Links, Membership
from replication.commit import start_running
from replication.deposed import DeposedReaders
from replication.expected_writers import ExpectedWriters
from replication.forwarding import facts_of, perform
from replication.frozen_files import FrozenFiles
from replication.head import Head
from replication.holdings import Holdings
from replication.mirror import Mirror
from replication.ownership import Owner, VdiskFacts, find_owner, hand_over, take_over
from replication.publisher import Publisher
from replication.remote import Remote
from replication.view import View
from replication.void_tails import VoidTails

log = logging.getLogger(__name__)

ASK_S = 10.0
"""An owner commits, and perhaps waits for a silent subscriber, before it hands over."""
ACQUIRE_S = 3 * SESSION_S
"""A dead owner's session must end first."""
RETRY_S = 0.1
TEND_S = 0.5
KEEP_PINS_S = SESSION_S
"""The catalog's watch is never so far behind."""


@dataclass(slots=True)
class TransferCounts:
    """What ``status`` shows."""

    taken_over: int = 0
    handed_over: int = 0
    received: int = 0
    deposed: int = 0


Kept = list[tuple[int, float]]
"""Versions that an owner must keep though it may not know yet for whom, and for how many more seconds."""


@dataclass(frozen=True, slots=True)
class _Pin:
    """A version pinned for a while."""

    vdisk: int
    version: int
    until_s: float


class Transfers:
    """One to a daemon that has others; owned by its ``Company``. ``run`` is its task.

    Args:
        holdings: what this node has.
        links: the way to the others.
        membership: who they are.
        mirror: what the catalog says of them.
        publisher: tells the others of a new owner.
        note_version: told of versions of others' vdisks, as ``Follower.note_version``.
        frozen: who reads what a head that has gone was.
    """

    def __init__(
        self,
        holdings: Holdings,
        links: Links,
        membership: Membership,
        *,
        mirror: Mirror,
        publisher: Publisher,
        note_version: Callable[[int, int], None],
        frozen: FrozenFiles,
    ) -> None:
        self.frozen = frozen
        self._own, self._links, self._membership, self._mirror = holdings, links, membership, mirror
        self._publisher, self._note_version = publisher, note_version
        self._catalog, self.node = holdings.workspace.catalog, membership.node
        self.counts = TransferCounts()
        self.is_serving = False
        """The journal has been replayed: whoever asks before that could get a vdisk without what it holds."""
        self.remotes: dict[int, Remote] = {}
        """Vdisks open for writing here that another node owns, or owned when they were opened."""
        self._sharers: dict[int, set[str]] = {}
        """Nodes that forward to this one, by vdisk."""
        self._learned: dict[int, int] = {}
        """Epochs of this node under which the mirror has been read anew, or was never behind."""
        self._opening: Counter[int] = Counter()
        self.writers = ExpectedWriters(
            os.path.join(os.path.dirname(holdings.workspace.index.path), "writers"),
            clock_s=holdings.workspace.clock_s,
            note_over=self.note_closed,
        )
        self.may_be_open: Callable[[int], bool] = lambda vdisk: False
        """Whether files of the vdisk may be open of which this daemon has not heard yet: they are frozen, too."""
        self.note_resized: Callable[[int], None] | None = None
        """As ``Remote.note_resized``."""
        self._forwarded_before = 0
        """Of remotes that are no more."""
        self._leaving: list[tuple[int, str]] = []
        """Vdisks whose last file open for writing here was closed, and their owners."""
        self._pins: list[_Pin] = []
        self._asking: WeakValueDictionary[int, trio.Lock] = WeakValueDictionary()
        self._handing: WeakValueDictionary[int, trio.Lock] = WeakValueDictionary()
        self.deposed = DeposedReaders(holdings, mirror, keep=frozen.note)
        self.void = VoidTails(holdings.workspace)
        self._strange: set[int] = set()
        """Nobody's vdisks of which heads were loaded here, and which another node has claimed."""
        self._wake = trio.Event()
        mirror.listeners.append(self._note_owner)
        membership.on_lost.append(self.check_owned)
        links.serve("acquire", self._serve_acquire)
        links.serve("owned", self._serve_owned)
        links.serve("remote_close", self._serve_close)

    def begin(self) -> None:
        """At the start: all that the catalog says has just been read."""
        owners = self._mirror.owners.items()
        self._learned = {vdisk: owner.epoch for vdisk, owner in owners if owner.node == self.node}

    @property
    def forwarded(self) -> int:
        """How many requests of this node's guests other nodes have answered."""
        return self._forwarded_before + sum(remote.forwarded for remote in self.remotes.values())

    # ---- asking

    async def acquire(self, vdisk: int, *, force: bool = False) -> Owner:
        """Makes this node the owner if nobody else writes the vdisk; returns who is the owner now.

        Args:
            vdisk: which.
            force: also if the owner writes it; its writers then forward to this node.

        Raises:
            NotFound: no such vdisk.
            Unavailable: the owner is there and does not answer, or the catalog does not.
        """
        head, failure = self._own.heads.get(vdisk), "it is silent"
        if head is not None and head.owned and head.closed is None:
            return head.owner
        async with self._asking.setdefault(vdisk, trio.Lock()):
            with trio.move_on_after(ACQUIRE_S):
                while True:
                    try:
                        owner = await self._try(vdisk, force=force)
                    except (NotOwner, Fenced, Unavailable) as exc:
                        owner, failure = None, str(exc)
                    if owner is not None:
                        return owner
                    await trio.sleep(RETRY_S)
        raise Unavailable(f"the vdisk's owner cannot be asked: {failure} vdisk={vdisk}")

    async def _try(self, vdisk: int, *, force: bool) -> Owner | None:
        owner = await find_owner(self._catalog, vdisk)
        if owner.node == self.node:
            return owner
        if not owner.node:
            head = await self._own.head(VdiskId(vdisk))
            async with head.room_lock:
                await start_running(head)
            return self._now_mine(vdisk, head.log.epoch)
        await self.leave_strange(vdisk)
        if not self._membership.is_live(owner.node):
            return await self._take_over(vdisk, owner)
        asked = {"vdisk": vdisk, "force": force}
        answer, _ = await self._links.call(owner.node, "acquire", asked, deadline_s=ASK_S)
        if not answer["epoch"]:
            return owner
        self.counts.received += 1
        return await self._receive(vdisk, int(answer["epoch"]), answer["kept"])

    def _now_mine(self, vdisk: int, epoch: int) -> Owner:
        owner = Owner(self.node, epoch)
        self._learned[vdisk] = epoch
        self._mirror.note_owner(vdisk, owner)
        return owner

    async def _take_over(self, vdisk: int, owner: Owner) -> Owner:
        epoch = await take_over(self._catalog, vdisk, owner=owner, node=self.node)
        self.counts.taken_over += 1
        log.info(
            "taken over from a node without a session vdisk=%d node=%s epoch=%d", vdisk, owner.node, epoch
        )
        await self._learn(vdisk, epoch)
        return self._now_mine(vdisk, epoch)

    async def _receive(self, vdisk: int, epoch: int, kept: Kept) -> Owner:
        """The owner has handed the vdisk over to this node."""
        now_s = self._own.workspace.clock_s()
        for version, left_s in kept:
            self._own.family.pin(vdisk, version, elsewhere=True)
            self._pins.append(_Pin(vdisk, version, now_s + min(left_s, KEEP_PINS_S)))
        await self._mirror.refresh(self._catalog, vdisk)
        await self._announce(vdisk, epoch)
        return self._now_mine(vdisk, epoch)

    async def _announce(self, vdisk: int, epoch: int) -> None:
        """Nobody trusts what an owner before said, or deletes what its subscribers read."""
        self._publisher.note_taken_over(vdisk)
        await self._publisher.announce(vdisk, epoch)

    async def _learn(self, vdisk: int, epoch: int) -> None:
        """Reads what the catalog says of a vdisk that has become this node's, its children included."""
        await self._announce(vdisk, epoch)
        await self._mirror.refresh(self._catalog, vdisk)
        for row in (await self._catalog.read(VDISK_PREFIX))[0]:
            value = decode_value(row.key, row.value)
            if isinstance(value, Mapping):
                descent = read_descent(value)
                if descent.parent is not None and descent.parent[0] == vdisk:
                    self._own.family.set_descent(id_in_key(row.key, VDISK_PREFIX), descent)

    async def prepare_load(self, vdisk: int, facts: VdiskFacts) -> None:
        """Before the head is loaded: this node may have it, and knows who keeps what.

        Raises:
            NotOwner: another node owns the vdisk.
        """
        await self.void.wait(vdisk)
        if facts.node not in ("", self.node):
            self._mirror.note_owner(vdisk, Owner(facts.node, facts.epoch))
            raise NotOwner(f"another node owns the vdisk vdisk={vdisk} node={facts.node}")
        if facts.epoch > 1 and self._learned.get(vdisk) != facts.epoch:
            await self._learn(vdisk, facts.epoch)
            self._now_mine(vdisk, facts.epoch)

    def check_loaded(self, vdisk: int, facts: VdiskFacts) -> None:
        """No await before the head, just loaded, is among the others: nobody told it of an owner that came meanwhile.

        Raises:
            NotOwner: one has.
        """
        owner = self._mirror.owners.get(vdisk)
        if owner is not None and owner.epoch > facts.epoch and (facts.epoch or owner.node != self.node):
            raise NotOwner(f"the vdisk has got another owner vdisk={vdisk} node={owner.node}")

    # ---- files open for writing of what others own

    def remote(self, vdisk: VdiskId, owner: Owner | None = None) -> Remote:
        """What a file of the vdisk open for writing reads and writes."""
        remote = self.remotes.get(vdisk)
        if remote is None:
            perform_here = functools.partial(self._perform_here, vdisk)
            remote = Remote(
                vdisk,
                self._links,
                node=self.node,
                find=self.acquire,
                perform=perform_here,
                note_version=self._note_version,
            )
            remote.note_resized = self.note_resized
            self.remotes[vdisk] = remote
        remote.owner = owner or remote.owner
        return remote

    async def _perform_here(self, vdisk: VdiskId, deed: str, arguments: dict[str, Any], data: bytes) -> bytes:
        head = await self._own.head(vdisk)
        remote = self.remotes.get(vdisk)
        if remote is not None:
            self._swap(remote, head)
        answer = await perform(head, deed, arguments, data)
        if remote is not None:
            remote.note_facts(facts_of(head))
        return answer

    def _swap(self, old: Head | Remote, new: Head | Remote) -> None:
        """Files that one has served are the other's from now on."""
        files = self._own.files
        for number in files.serving(old):
            files.served[number] = new
            files.by_number[number].errors_told = new.error_no

    def note_closed(self, vdisk: int) -> None:
        """A file of the vdisk was closed here; perhaps the last one, or the last writer's."""
        if vdisk in self._sharers:
            self._wake.set()
        if self._own.files.count(vdisk):
            return
        self.deposed.note_closed(vdisk)
        remote = self.remotes.pop(vdisk, None)
        self._forwarded_before += remote.forwarded if remote is not None else 0
        if remote is not None and remote.owner is not None and remote.owner.node != self.node:
            self._leaving.append((vdisk, remote.owner.node))
            self._wake.set()

    # ---- giving away

    async def _serve_acquire(self, node: str, arguments: Mapping[str, Any], data: bytes) -> Answer:
        vdisk, force = int(arguments["vdisk"]), bool(arguments["force"])
        if not self.is_serving:
            raise Unavailable("the node is just starting, or ending")
        async with self._handing.setdefault(vdisk, trio.Lock()):
            given = await self._give(vdisk, node, force=force)
            if given is None:
                await self._check_mine(vdisk)
                self._sharers.setdefault(vdisk, set()).add(node)
        epoch, kept = given or (0, [])
        return {"epoch": epoch, "kept": kept}, b""

    def _is_used(self, vdisk: int) -> bool:
        used = (
            self._own.users.get(vdisk, 0) > 0 or self._opening[vdisk] > 0 or self.writers.is_expected(vdisk)
        )
        return used or self._own.files.has_writer(vdisk)

    @contextmanager
    def opening(self, vdisk: int) -> Iterator[None]:
        """A file is being opened for writing: what is acquired meanwhile is not given away before it is open."""
        self._opening[vdisk] += 1
        try:
            yield
        finally:
            self._opening[vdisk] -= 1
            if not self._opening[vdisk]:
                del self._opening[vdisk]

    async def _check_mine(self, vdisk: int) -> Owner:
        owner = await find_owner(self._catalog, vdisk)
        if owner.node != self.node:
            raise NotOwner(f"another node owns the vdisk vdisk={vdisk} node={owner.node}")
        return owner

    async def _give(self, vdisk: int, to: str, *, force: bool = False) -> tuple[int, Kept] | None:
        """Hands the vdisk over; returns the new epoch, and the versions that are kept. None: it is written here."""
        own = self._own
        if self.may_be_open(vdisk):
            await own.head(VdiskId(vdisk))  # what it is now must be known
        async with own.loading.alone_at(vdisk):  # nobody loads the head meanwhile
            owner, head = await self._check_mine(vdisk), own.heads.get(vdisk)
            view = None
            # No await from here to the head's being closed: who opens a file meanwhile waits for the end, or is seen.
            if not force and self._is_used(vdisk):
                return None
            if head is not None:
                head.close(NotOwner(f"the vdisk is being handed over vdisk={vdisk} node={to}"))
            try:
                if head is not None:
                    await own.put_to_rest(head)
                    if head.is_dirty or head.running or head.index_lags:
                        raise Unavailable(f"the vdisk found no rest vdisk={vdisk}")
                    view = await self._freeze(head)
                epoch = await self._name_owner(vdisk, owner, to=to)
            except BaseException:
                if head is not None and isinstance(head.closed, NotOwner):
                    head.closed = None
                    own.heads.setdefault(vdisk, head)
                if view is not None:
                    own.family.unpin(vdisk, view.version)
                raise
            self._let_go(vdisk, head, view)
        self.counts.handed_over += 1
        self._mirror.note_owner(vdisk, Owner(to, epoch))
        return epoch, self._kept(vdisk)

    def _kept(self, vdisk: int) -> Kept:
        """Versions read here, and those that this node was told of, not for longer: told on and on they would stay for ever."""
        now_s, left_s = self._own.workspace.clock_s(), dict[int, float]()
        for pin in self._pins:
            if pin.vdisk == vdisk and pin.until_s > now_s:
                left_s[pin.version] = max(pin.until_s - now_s, left_s.get(pin.version, 0.0))
        return sorted((left_s | dict.fromkeys(self._own.family.indexed_versions(vdisk), KEEP_PINS_S)).items())

    async def _name_owner(self, vdisk: int, owner: Owner, *, to: str) -> int:
        """Writes the owner record; does not return before it is known whether it was written."""
        with trio.CancelScope(shield=True):
            try:
                return await hand_over(self._catalog, vdisk, owner=owner, to=to)
            except Unavailable as exc:
                log.warning(
                    "whether a vdisk was handed over only the catalog can tell: %s vdisk=%d", exc, vdisk
                )
            now = await self._owner_at_last(vdisk)
        if now == owner:
            raise NotOwner(f"not handed over, the catalog was silent vdisk={vdisk}")
        return now.epoch

    async def _owner_at_last(self, vdisk: int) -> Owner:
        while True:
            await trio.sleep(RETRY_S)
            try:
                return await find_owner(self._catalog, vdisk)
            except Unavailable:
                continue

    async def _freeze(self, head: Head) -> View:
        """What files open for reading read from now on: the vdisk at its last version, which is pinned."""
        own, vdisk, version = self._own, head.vdisk, head.log.version
        frozen = Snapshot(
            vdisk=vdisk,
            name="",
            id=vdisk,
            version=version,
            size=head.size,
            own_blocks=head.own_blocks,
            overlap=head.overlap,
            mtime_ns=head.mtime_ns,
            created_ns=head.mtime_ns,
        )
        own.family.pin(vdisk, version)
        try:
            ancestry = await own.loading.ancestry(vdisk, version)
        except BaseException:
            own.family.unpin(vdisk, version)
            raise
        view = View(own.workspace, head.groups, ancestry=ancestry, snapshot=frozen)
        view.rollbacks = head.rollbacks
        return view

    def _let_go(self, vdisk: int, head: Head | None, view: View | None) -> None:
        """Another node owns the vdisk: in one stretch, no file reads or writes the head any more."""
        own = self._own
        own.heads.pop(vdisk, None)
        self._sharers.pop(vdisk, None)
        self._learned.pop(vdisk, None)
        if head is None or view is None:
            return
        readers = []
        for number in own.files.serving(head):
            if own.files.by_number[number].writer:
                remote = self.remote(VdiskId(vdisk))
                remote.note_facts(facts_of(head))
                own.files.served[number] = remote
            else:
                own.files.served[number] = view
                readers.append(number)
        if self.may_be_open(vdisk):
            self.frozen.note_unheard(view)
        self.frozen.note(view, readers)

    # ---- being given

    async def _serve_owned(self, node: str, arguments: Mapping[str, Any], data: bytes) -> Answer:
        """An owner without a writer has handed a vdisk over that this node writes."""
        vdisk = VdiskId(int(arguments["vdisk"]))
        owner = await find_owner(self._catalog, vdisk)
        if owner == Owner(self.node, int(arguments["epoch"])) and self._learned.get(vdisk) != owner.epoch:
            self.counts.received += 1
            await self._receive(vdisk, owner.epoch, arguments["kept"])
        remote = self.remotes.get(vdisk)
        if remote is not None:
            remote.owner = owner
            if owner.node == self.node:
                self._swap(remote, await self._own.head(vdisk))
        return {}, b""

    async def _serve_close(self, node: str, arguments: Mapping[str, Any], data: bytes) -> Answer:
        self._sharers.get(int(arguments["vdisk"]), set()).discard(node)
        return {}, b""

    # ---- losing

    def note_deposed(self, vdisk: int, why: VdiskfsError) -> None:
        """Another node has taken the vdisk over: what is not committed is lost, and whoever wrote it hears of it."""
        head = self._own.heads.pop(vdisk, None)
        self._learned.pop(vdisk, None)
        self._sharers.pop(vdisk, None)
        if head is None:
            return
        self.counts.deposed += 1
        self._own.resting.pop(vdisk, None)
        log.error("deposed, files that are open fail from now on: %s", why)
        head.close(why)
        head.journal_forfeited = True
        remote = self.remotes.pop(vdisk, None) or self.remote(VdiskId(vdisk))
        self.remotes.pop(vdisk, None)
        remote.fenced = why
        if not self._own.workspace.pool.has_flushed_here(vdisk):  # else readers may have seen what is void
            self.deposed.note(head)
        self._swap(head, remote)
        self.void.refuse(vdisk)

    async def check_owned(self) -> None:
        """After a session was lost: which heads are still this node's."""
        for vdisk, head in list(self._own.heads.items()):
            owner = await find_owner(self._catalog, vdisk)
            if head.owned and self._own.heads.get(vdisk) is head:
                self._note_owner(vdisk, owner)

    def _note_owner(self, vdisk: int, owner: Owner | None) -> None:
        if owner is not None and owner.node != self.node and vdisk not in self._own.heads:
            self.void.refuse(vdisk)
        head = self._own.heads.get(vdisk)
        if head is None or owner is None or isinstance(head.closed, NotOwner):
            return
        if owner.node == self.node and (not head.owned or owner.epoch == head.log.epoch):
            return  # of another epoch, others have had the vdisk meanwhile
        if head.owned:
            self.note_deposed(
                vdisk, Fenced(f"another node took the vdisk over vdisk={vdisk} node={owner.node}")
            )
        else:
            self._strange.add(vdisk)
            self._wake.set()

    async def leave_strange(self, vdisk: int) -> None:
        """A head that nobody owned, and nobody changed here, is another node's: it goes, as after a hand-over."""
        async with self._own.loading.alone_at(vdisk):
            head = self._own.heads.get(vdisk)
            if head is None or head.owned:
                return
            owner = await find_owner(self._catalog, vdisk)
            if owner.node in ("", self.node):
                return
            self._mirror.note_owner(vdisk, owner)
            head.close(NotOwner(f"another node owns the vdisk vdisk={vdisk} node={owner.node}"))
            view = await self._freeze(head)
            self._let_go(vdisk, head, view)

    async def wait_moved(self, vdisk: int) -> None:
        """Returns when no hand-over of the vdisk is under way, and no head is here that is another node's."""
        async with self._own.loading.alone_at(vdisk):
            pass
        await self.leave_strange(vdisk)

    # ---- the task

    async def run(self) -> None:
        """Hands over what only others write, tells owners of closed files, and lets pins go."""
        while True:
            with trio.move_on_after(TEND_S):
                await self._wake.wait()
            self._wake = trio.Event()
            self._expire_pins()
            for tend in (self._tend_sharers, self._tend_strange, self._tend_leaving):
                try:
                    await tend()
                except VdiskfsError as exc:
                    log.warning("tried again later: %s", exc)

    def _expire_pins(self) -> None:
        now_s = self._own.workspace.clock_s()
        over = [pin for pin in self._pins if pin.until_s < now_s]
        self._pins = [pin for pin in self._pins if pin.until_s >= now_s]
        for pin in over:
            self._own.family.unpin(pin.vdisk, pin.version, elsewhere=True)

    async def _tend_sharers(self) -> None:
        for vdisk, sharers in list(self._sharers.items()):
            live = sorted(node for node in sharers if self._membership.is_live(node))
            if not live:
                self._sharers.pop(vdisk, None)
            elif not self._is_used(vdisk):
                await self._hand_to_sharer(vdisk, live[0])

    async def _hand_to_sharer(self, vdisk: int, node: str) -> None:
        async with self._handing.setdefault(vdisk, trio.Lock()):
            given = await self._give(vdisk, node)
        if given is None:
            return
        epoch, kept = given
        with suppress(VdiskfsError):  # it finds out with its next request
            told = {"vdisk": vdisk, "epoch": epoch, "kept": kept}
            await self._links.call(node, "owned", told, deadline_s=ASK_S)

    async def _tend_strange(self) -> None:
        while self._strange:
            await self.leave_strange(self._strange.pop())

    async def _tend_leaving(self) -> None:
        leaving, self._leaving = self._leaving, []
        for vdisk, node in leaving:
            with suppress(VdiskfsError):
                await self._links.call(node, "remote_close", {"vdisk": vdisk}, deadline_s=RETRY_S)
