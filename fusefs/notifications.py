"""What the daemon tells the kernel without being asked: a reply without a request."""

import errno
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fusefs.fuse_abi import OUT_HEADER

_INVALIDATE_INODE, _INVALIDATE_ENTRY = 2, 3
_INVALIDATION = struct.Struct("<Qqq")
"""inode, offset (-1: attributes only), length (0: to the end)"""
_ENTRY_INVALIDATION = struct.Struct("<QII")
"""inode of the directory, bytes of the name, flags; the name and a zero follow"""

WaitFor = Callable[[Callable[[], None]], Awaitable[None]]


class Notifications:
    """One to a mount.

    Args:
        fuse_fd: /dev/fuse, mounted.
        wait_for: runs what may wait in a thread.
    """

    def __init__(self, fuse_fd: int, wait_for: WaitFor) -> None:
        self._fuse_fd, self._wait_for = fuse_fd, wait_for

    def knows_inode(self, inode: int) -> bool:
        """Whether the kernel holds this inode. It looks at its attributes again then, nothing else happens."""
        return self._invalidate(inode, -1)

    async def write_back(self, inode: int, offset: int) -> None:
        """Lets the kernel send what it has not written yet from ``offset`` on, and drop those pages.

        It waits for our answers to those writes, so it waits in a thread.
        """

        def invalidate() -> None:
            self._invalidate(inode, offset)

        await self._wait_for(invalidate)

    async def forget_entry(self, parent: int, name: bytes) -> None:
        """Lets the kernel look a name up anew, and drop the inode behind it, with its pages, unless it is open.

        The kernel may hold the directory's lock while it waits for an answer of ours, so this waits in a thread.
        """
        body = _ENTRY_INVALIDATION.pack(parent, len(name), 0) + name + b"\0"

        def invalidate() -> None:
            self._notify(_INVALIDATE_ENTRY, body)

        await self._wait_for(invalidate)

    @asynccontextmanager
    async def entry_going(self, parent: int, name: bytes) -> AsyncIterator[None]:
        """Inside, a name is taken away; the kernel is told before, in case the daemon dies on the way, and after."""
        await self.forget_entry(parent, name)
        yield
        await self.forget_entry(parent, name)

    def _invalidate(self, inode: int, offset: int) -> bool:
        return self._notify(_INVALIDATE_INODE, _INVALIDATION.pack(inode, offset, 0))

    def _notify(self, what: int, body: bytes) -> bool:
        """Whether the kernel knows what this is about."""
        try:
            os.write(self._fuse_fd, OUT_HEADER.pack(16 + len(body), what, 0) + body)
        except OSError as exc:
            return exc.errno != errno.ENOENT
        return True
