"""What the daemon tells the kernel without being asked: a reply without a request."""

import errno
import os
import struct
from collections.abc import Awaitable, Callable

from fusefs.fuse_abi import OUT_HEADER

_INVALIDATE_INODE = 2
_INVALIDATION = struct.Struct("<Qqq")
"""inode, offset (-1: attributes only), length (0: to the end)"""

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

    def _invalidate(self, inode: int, offset: int) -> bool:
        body = _INVALIDATION.pack(inode, offset, 0)
        try:
            os.write(self._fuse_fd, OUT_HEADER.pack(16 + len(body), _INVALIDATE_INODE, 0) + body)
        except OSError as exc:
            return exc.errno != errno.ENOENT
        return True
