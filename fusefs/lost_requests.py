"""Where the kernel cannot send requests again (before Linux 6.9): which ones a dead daemon may have had in hand.

Their numbers are noted when they are read, in a ring behind the INIT request in its memory file. The next daemon
fails all of them with EIO, so that nobody waits for ever; the kernel knows by itself which were answered already.
"""

import errno
import mmap
import os

from fusefs.fuse_abi import OUT_HEADER

_AT = 8192
CAPACITY = 1 << 16
"""More than can pass while the slowest of a mount's few hundred requests in flight waits for its disk."""


class LostRequests:
    """The ring of one mount.

    Args:
        init_fd: the memory file.
    """

    def __init__(self, init_fd: int) -> None:
        if os.fstat(init_fd).st_size < _AT + 8 * CAPACITY:
            os.ftruncate(init_fd, _AT + 8 * CAPACITY)
        self._ring = memoryview(mmap.mmap(init_fd, _AT + 8 * CAPACITY))[_AT:].cast("Q")
        self._next = 0

    def note(self, unique: int) -> None:
        """A request was read."""
        self._ring[self._next] = unique
        self._next = (self._next + 1) % CAPACITY

    def fail_all(self, fuse_fd: int) -> int:
        """Answers all that were noted with EIO; how many had no answer yet."""
        failed = 0
        for slot, unique in enumerate(self._ring):
            if unique:
                self._ring[slot] = 0
                try:
                    os.write(fuse_fd, OUT_HEADER.pack(OUT_HEADER.size, -errno.EIO, unique))
                    failed += 1
                except OSError:
                    pass  # it has its answer, or needs none
        return failed
