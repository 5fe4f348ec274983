"""Files open for reading on a head whose node was deposed: they go on at the last version that counts.

What the head held besides is void, and rows of it may be in memory, so nothing is read from it any more: a request waits
until the index has what the pool says up to that version, and then reads there. Files open for writing fail: their guests
believe in writes that are lost. So does an fsync of any of them.
"""

import logging
from collections.abc import Awaitable, Callable, Iterable

import trio

from metadata.errors import Unavailable, VdiskfsError
from metadata.snapshots import Snapshot
from replication.cluster import SESSION_S
from replication.head import Head
from replication.holdings import Holdings
from replication.mirror import Mirror
from replication.recovery import LogReader
from replication.view import View

log = logging.getLogger(__name__)

TRIES_S = SESSION_S
"""So long a request waits for a pool, or a catalog, that is silent."""
RETRY_S = 0.2


class DeposedReaders:
    """One to a daemon that has others; owned by its ``Transfers``.

    Args:
        holdings: what this node has.
        mirror: what the catalog says of the others.
        keep: told of a view that these files read from now on, its version pinned; it unpins it when they are closed.
    """

    def __init__(
        self, holdings: Holdings, mirror: Mirror, *, keep: Callable[[View, Iterable[int]], None]
    ) -> None:
        self._own, self._mirror, self._keep = holdings, mirror, keep
        self._waiting: dict[int, tuple[Head, set[int]]] = {}
        """By vdisk: the head that went, and the files that read it."""
        self._finding: dict[int, trio.Event] = {}
        self.drop_pages: Callable[[int, int, int], Awaitable[None]] | None = None
        """As ``Forwarding.drop_pages``: what the kernel has read of the head may be void."""

    def note(self, head: Head) -> None:
        """The head does not count any more: its readers are served by nothing until they are asked for."""
        files = self._own.files
        numbers = {number for number in files.serving(head) if not files.by_number[number].writer}
        if not numbers or head.vdisk in self._waiting:
            return
        for number in numbers:
            del files.served[number]
        self._own.family.pin(head.vdisk, head.log.version)
        self._waiting[head.vdisk] = head, numbers

    async def wait(self, number: int, vdisk: int) -> None:
        """Returns when such a file can be read again.

        Raises:
            VdiskfsError: it cannot.
        """
        while number in self._waiting.get(vdisk, (None, ()))[1]:
            if vdisk in self._finding:
                await self._finding[vdisk].wait()
            else:
                await self._find(vdisk)

    async def _find(self, vdisk: int) -> None:
        found = self._finding[vdisk] = trio.Event()
        try:
            failure: VdiskfsError = Unavailable(
                f"what a deposed owner had committed is not known vdisk={vdisk}"
            )
            with trio.move_on_after(TRIES_S):
                while vdisk in self._waiting:
                    try:
                        self._serve(vdisk, await self._view(vdisk))
                    except VdiskfsError as exc:
                        failure = exc
                        await trio.sleep(RETRY_S)
            if vdisk in self._waiting:
                raise failure
        finally:
            del self._finding[vdisk]
            found.set()

    async def _view(self, vdisk: int) -> View:
        own, (head, _) = self._own, self._waiting[vdisk]
        space, version = own.workspace, int(head.log.version)

        def look() -> Snapshot:
            if not version:
                raise Unavailable(f"a deposed owner had committed nothing vdisk={vdisk}")
            with LogReader(space.pool, vdisk) as reader:
                record, _, _ = reader.record_at(head.log.record_place)
            return Snapshot(
                vdisk=vdisk,
                name="",
                id=vdisk,
                version=version,
                size=record.size,
                own_blocks=record.own_blocks,
                overlap=record.overlap,
                mtime_ns=record.time_ns,
                created_ns=record.time_ns,
            )

        await self._mirror.refresh(space.catalog, vdisk)
        snapshot = await space.wait_for(look)
        await own.loading.prepare(vdisk)
        ancestry = await own.loading.ancestry(vdisk, version)
        if self.drop_pages is not None:
            with trio.move_on_after(TRIES_S):
                await self.drop_pages(vdisk, 0, 0)
        view = View(space, own.loading.groups(vdisk), ancestry=ancestry, snapshot=snapshot)
        view.rollbacks, view.fenced = own.family.descent(vdisk).rollbacks, head.closed
        return view

    def _serve(self, vdisk: int, view: View) -> None:
        if vdisk not in self._waiting:  # closed meanwhile
            return
        _, numbers = self._waiting.pop(vdisk)
        files = self._own.files
        there = numbers & files.by_number.keys()
        for number in there:
            files.served[number] = view
        self._keep(view, there)

    def note_closed(self, vdisk: int) -> None:
        """The last file of a vdisk was closed."""
        waiting = self._waiting.pop(vdisk, None)
        if waiting is not None:
            self._own.family.unpin(vdisk, waiting[0].log.version)
