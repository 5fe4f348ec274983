"""The owner's side of forwarded requests: what another node's guest asks of a head here.

A write is taken, committed, published, and only then answered; it counts once, though it may come twice, to this owner or
to the next one (replication/calls.py). What the kernel of this node holds in its page cache is written back before a read, and
dropped around a write. The epoch in each call is that of the owner whom the caller means; another one is refused.
"""

import functools
import os
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from metadata.errors import NotOwner, Unavailable
from metadata.ids import VdiskId
from metadata.units import BLOCK_BYTES
from replication import head_read, head_write
from replication.calls import is_committed, note_taken
from replication.cluster import Answer, Links
from replication.commit import commit_light, note_sync
from replication.handles import Handles
from replication.head import Head
from replication.lag import reach_pool

Arguments = Mapping[str, Any]
DropPages = Callable[[int, int, int], Awaitable[None]]
"""Given a vdisk, an offset and a length (0: to the end): the kernel writes back and drops what it holds there."""
NoteResized = Callable[[int], Awaitable[None]]
"""Given a vdisk, of which another node has set the size: the kernel looks it up again."""


async def _read(head: Head, arguments: Arguments, data: bytes) -> bytes:
    offset, size = int(arguments["offset"]), int(arguments["size"])
    found = head.read_nowait(offset, size)
    return await head_read.read(head, offset, size) if found is None else bytes(found)


async def _write(head: Head, arguments: Arguments, data: bytes) -> bytes:
    offset = int(arguments["offset"])
    has_room = head.journal.room() > 2 * (len(data) // BLOCK_BYTES + 2) + 2  # for the call's number, too
    if not has_room or not head.write_nowait(offset, memoryview(data)):
        await head_write.write(head, offset, data)
    return b""


async def _punch(head: Head, arguments: Arguments, data: bytes) -> bytes:
    await head_write.punch(head, int(arguments["offset"]), int(arguments["size"]))
    return b""


async def _truncate(head: Head, arguments: Arguments, data: bytes) -> bytes:
    await head_write.truncate(head, int(arguments["size"]))
    return b""


async def _grow(head: Head, arguments: Arguments, data: bytes) -> bytes:
    await head_write.grow_to(head, int(arguments["size"]))
    return b""


async def _seek(head: Head, arguments: Arguments, data: bytes) -> bytes:
    found = await head_read.seek(head, int(arguments["offset"]), data=bool(arguments["data"]))
    return b"" if found is None else found.to_bytes(8, "little")


async def _look(head: Head, arguments: Arguments, data: bytes) -> bytes:
    return b""


_DEEDS: Mapping[str, Callable[[Head, Arguments, bytes], Awaitable[bytes]]] = {
    "read": _read,
    "write": _write,
    "punch": _punch,
    "truncate": _truncate,
    "grow": _grow,
    "seek": _seek,
    "flush": _look,
    "look": _look,
}
CHANGING = frozenset({"write", "punch", "truncate", "grow"})
FLUSHING = CHANGING | {"flush"}


async def perform(head: Head, deed: str, arguments: Arguments, data: bytes) -> bytes:
    """Does one of these on a head of this node; a change only if it has not been done yet.

    Raises:
        NotOwner: the head changes no more; nothing was done.
        VdiskfsError: as the deed itself.
    """
    if deed not in CHANGING:
        return await _DEEDS[deed](head, arguments, data)
    call = int(arguments["call"])
    again = bool(arguments["again"])
    if not (call in head.calls or (again and await is_committed(head, call, since=int(arguments["since"])))):
        await _DEEDS[deed](head, arguments, data)
        # No await from here, if anything has changed: the same commit holds the change and its number.
        await note_taken(head, call)
    return b""


def facts_of(head: Head) -> dict[str, int]:
    """What each answer tells of the vdisk."""
    return {
        "size": head.size,
        "own_blocks": head.own_blocks,
        "mtime_ns": head.mtime_ns,
        "version": head.log.version,
    }


class Forwarding:
    """One to a daemon that has others; owned by its ``Company``.

    Args:
        links: where the calls come from.
        head: loads a head that this node owns.
        files: open files here.
    """

    def __init__(self, links: Links, *, head: Callable[[VdiskId], Awaitable[Head]], files: Handles) -> None:
        self._head, self._files = head, files
        self.drop_pages: DropPages | None = None
        """Of the kernel of this node's mount, if there is one."""
        self.note_resized: NoteResized | None = None
        """The kernel believes its own size of a file as long as it knows it."""
        self.is_serving = False
        self.served = 0
        """Counts forwarded requests of others."""
        self._uncached: set[int] = set()
        """Vdisks of which the kernel's page cache holds nothing."""
        self._under_way: dict[int, trio.Event] = {}
        """Changes, by the numbers of their calls: one that comes again waits for itself."""
        for deed in _DEEDS:
            links.serve(f"remote_{deed}", functools.partial(self._serve, deed))

    def note_open(self, vdisk: int, flags: int) -> None:
        """A file of the vdisk is opened here: the kernel may cache what it reads. ``flags``: of open(2)."""
        if not flags & os.O_DIRECT:
            self._uncached.discard(vdisk)

    async def _serve(self, deed: str, node: str, arguments: Arguments, data: bytes) -> Answer:
        if not self.is_serving:
            raise Unavailable("the node is just starting, or ending")
        self.served += 1
        if deed not in CHANGING:
            return await self._carry_out(deed, node, arguments, data=data)
        call = int(arguments["call"])
        while call in self._under_way:
            await self._under_way[call].wait()
        over = self._under_way[call] = trio.Event()
        try:
            return await self._carry_out(deed, node, arguments, data=data)
        finally:
            del self._under_way[call]
            over.set()

    async def _carry_out(self, deed: str, node: str, arguments: Arguments, *, data: bytes) -> Answer:
        vdisk = VdiskId(int(arguments["vdisk"]))
        head = await self._head_of(vdisk, epoch=int(arguments["epoch"]))
        offset, length = int(arguments.get("offset", 0)), int(arguments.get("size", len(data)))
        if deed in CHANGING:
            await self._drop(vdisk, offset, length)
        elif self._files.has_writer(vdisk, buffered=True):
            await self._drop(vdisk, offset, length if deed == "read" else 0)
        size = head.size
        answer = await perform(head, deed, arguments, data)
        if head.size != size and self.note_resized is not None:
            await self.note_resized(vdisk)
        if deed in CHANGING:  # a guest of ours may have read it meanwhile
            await self._drop(vdisk, offset, length)
        if deed in FLUSHING:
            note_sync(head)  # room that is written beforehand makes each of these commits cheaper
            await commit_light(head, node=node)
            await reach_pool(head)  # what others write is no worse off than without durability ``node``
        return facts_of(head), answer

    async def _head_of(self, vdisk: VdiskId, *, epoch: int) -> Head:
        head = await self._head(vdisk)
        if not head.owned or head.log.epoch != epoch:
            raise NotOwner(f"not under this epoch vdisk={vdisk} epoch={head.log.epoch} asked={epoch}")
        return head

    async def _drop(self, vdisk: int, offset: int, length: int) -> None:
        """The kernel drops what it holds there; all of it, once, where nobody reads through its cache here."""
        if self.drop_pages is None or vdisk in self._uncached:
            return
        if self._files.has_buffered(vdisk):
            await self.drop_pages(vdisk, offset, length)
            return
        self._uncached.add(vdisk)  # before: a file opened meanwhile takes it back
        await self.drop_pages(vdisk, 0, 0)
