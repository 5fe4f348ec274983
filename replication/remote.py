"""A vdisk that another node owns, as a file open for writing here serves it: every request goes to the owner.

Each request finds the owner, asks it, and tries again when the owner has changed or is silent: it may have become this
node, by a hand-over or because the other is dead; then the head here does it. A change keeps its number over all tries,
so that it is done once, whoever owned the vdisk when it was (replication/calls.py).
"""

import itertools
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from metadata.errors import Fenced, NotOwner, Unavailable, VdiskfsError
from metadata.ids import VdiskId
from metadata.records import call_number
from metadata.units import BLOCK_BYTES, VBLOCK_BYTES
from replication.cluster import SESSION_S, Links
from replication.head_write import PUNCH_VBLOCKS
from replication.ownership import Owner

CALL_S = 5.0
"""One try: a commit may wait for a silent subscriber, and for a slow disk."""
REQUEST_S = 3 * SESSION_S
"""All tries: an owner's session may have to end first."""
RETRY_S = 0.05

_PIECE_BYTES = PUNCH_VBLOCKS * VBLOCK_BYTES

Perform = Callable[[str, dict[str, Any], bytes], Awaitable[bytes]]
"""Does it on this node's head."""


class Remote:
    """One to a vdisk that is open for writing here and owned elsewhere; owned by ``Transfers``.

    Args:
        vdisk: which.
        links: the way to the owner.
        node: this one.
        find: makes this node the owner if it can, and says who is.
        perform: does a request here, once this node is the owner; raises NotOwner if it is not after all.
        note_version: told of each version that an answer names.
    """

    error_no = 0
    """Each request hears of its own failure."""

    def __init__(
        self,
        vdisk: VdiskId,
        links: Links,
        *,
        node: str,
        find: Callable[[VdiskId], Awaitable[Owner]],
        perform: Perform,
        note_version: Callable[[int, int], None],
    ) -> None:
        self.vdisk, self._links, self._node = vdisk, links, node
        self._find, self._perform, self._note_version = find, perform, note_version
        self._origin, self._numbers = secrets.randbits(64), itertools.count(1)
        self.owner: Owner | None = None
        """Whom to ask; None: to be found."""
        self.fenced: VdiskfsError | None = None
        """Why nothing works any more: writes that a guest believes in are lost."""
        self.size, self.own_blocks, self.mtime_ns, self.version = 0, 0, 0, 0
        """As of the last answer."""
        self.forwarded = 0
        """Counts requests that another node has answered."""
        self.note_resized: Callable[[int], None] | None = None
        """Told of the vdisk when it has a size that nobody here has given it."""

    def read_nowait(self, offset: int, size: int) -> None:
        """As ``Reader.read_nowait``: nothing is ever at hand."""

    async def read(self, offset: int, size: int) -> bytes:
        """The bytes at [offset, offset + size), as far as the vdisk goes: what was last acknowledged there."""
        return await self.ask("read", {"offset": offset, "size": size})

    async def write(self, offset: int, data: bytes) -> None:
        """Durable and published when it returns."""
        await self.ask("write", {"offset": offset}, data)

    async def punch(self, offset: int, size: int) -> None:
        """Zeros; durable and published.

        Asked for piece by piece: what one commit holds. Of a discard that commits cut in two, the first part could be
        done twice, the second time over what somebody has written meanwhile.
        """
        end = offset + size
        if piece_end(offset, end) < end:
            await self.look()
            end = min(end, self.size)
        while offset < end:
            stop = piece_end(offset, end)
            await self.ask("punch", {"offset": offset, "size": stop - offset})
            offset = stop
            if offset < end:
                found = await self.seek(offset, data=True)
                offset = end if found is None else max(offset, found - found % BLOCK_BYTES)

    async def truncate(self, size: int) -> None:
        """Sets the size; durable and published."""
        await self.ask("truncate", {"size": size})

    async def grow(self, size: int) -> None:
        """At least this size; durable and published."""
        await self.ask("grow", {"size": size})

    async def seek(self, offset: int, *, data: bool) -> int | None:
        """As ``head_read.seek``."""
        found = await self.ask("seek", {"offset": offset, "data": data})
        return int.from_bytes(found, "little") if found else None

    async def flush(self) -> None:
        """Whatever the owner has acknowledged is durable and published."""
        await self.ask("flush", {})

    async def look(self) -> None:
        """Learns size and times."""
        await self.ask("look", {})

    async def ask(self, deed: str, arguments: dict[str, Any], data: bytes = b"") -> bytes:
        """Has one request done, by whoever owns the vdisk.

        Raises:
            Unavailable: nobody has done it in time, or it is not known.
            Fenced: see ``fenced``.
            VdiskfsError: what it failed with.
        """
        call = call_number(self._origin, next(self._numbers))
        named = {"vdisk": self.vdisk, "call": call, "since": self.version, "again": False, **arguments}
        failure: VdiskfsError = Unavailable(f"the owner does not answer vdisk={self.vdisk}")
        with trio.move_on_after(REQUEST_S):
            while True:
                if self.fenced is not None:
                    raise type(self.fenced)(str(self.fenced))
                owner = self.owner = self.owner or await self._find(self.vdisk)
                try:
                    return await self._try(owner, deed, named, data=data)
                except (NotOwner, Fenced, Unavailable) as exc:
                    failure, named["again"] = exc, True
                if self.owner is owner:  # nobody has found another one meanwhile
                    self.owner = None
                await trio.sleep(RETRY_S)
        raise Unavailable(f"not done in time: {failure} vdisk={self.vdisk}")

    async def _try(self, owner: Owner, deed: str, arguments: dict[str, Any], *, data: bytes) -> bytes:
        if owner.node == self._node:
            return await self._perform(deed, arguments, data)
        facts, answer = await self._links.call(
            owner.node, f"remote_{deed}", {**arguments, "epoch": owner.epoch}, data, deadline_s=CALL_S
        )
        self.forwarded += 1
        self._note_version(self.vdisk, facts["version"])
        before, known = self.size, self.version
        self.note_facts(facts)
        end = arguments.get("offset", 0) + len(data) if deed == "write" else arguments.get("size", 0)
        expected = {"write": max(before, end), "grow": max(before, end), "truncate": end}.get(deed, before)
        if known and self.size != expected and self.note_resized is not None:
            self.note_resized(self.vdisk)
        return answer

    def note_facts(self, facts: Any) -> None:
        """What the owner says of the vdisk; answers overtake each other."""
        if facts["version"] >= self.version:
            self.size, self.own_blocks = facts["size"], facts["own_blocks"]
            self.mtime_ns, self.version = facts["mtime_ns"], facts["version"]


def piece_end(offset: int, end: int) -> int:
    """Where the first part of a discard ends that the owner does in one stretch: in a block, or of whole ones."""
    if offset % BLOCK_BYTES:
        return min(end, offset - offset % BLOCK_BYTES + BLOCK_BYTES)
    whole = end - end % BLOCK_BYTES
    return end if offset >= whole else min(whole, (offset // _PIECE_BYTES + 1) * _PIECE_BYTES)
