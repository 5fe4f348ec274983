"""Where the kernel cannot send requests again (before Linux 6.9): which ones a dead daemon may have had in hand.

Their numbers are noted when they are read, in a ring behind the INIT request in its memory file; the slots that they
are read to lie behind the ring, for the one that was read and not yet noted. The next daemon fails all of them with
EIO, so that nobody waits for ever; the kernel knows by itself which were answered already.
"""

import errno
import mmap
import os
import sys

from fusefs.fuse_abi import OUT_HEADER
from fusefs.request_slots import BUFFER_BYTES, SLOT_BYTES, SLOTS

_AT = 8192
CAPACITY = 1 << 16
"""More than can pass while the slowest of a mount's few hundred requests in flight waits for its disk."""
_SLOTS_AT = _AT + 8 * CAPACITY
_UNIQUE_AT = 8
"""Of a request's number in its header."""


def map_slots(init_fd: int) -> mmap.mmap:
    """The buffer of a mount's slots, which outlives the daemon."""
    if os.fstat(init_fd).st_size < _SLOTS_AT + BUFFER_BYTES:
        os.ftruncate(init_fd, _SLOTS_AT + BUFFER_BYTES)
    return mmap.mmap(init_fd, BUFFER_BYTES, offset=_SLOTS_AT)


class LostRequests:
    """The ring of one mount.

    Args:
        init_fd: the memory file.
    """

    def __init__(self, init_fd: int) -> None:
        self._slots = map_slots(init_fd)
        self._ring = memoryview(mmap.mmap(init_fd, _SLOTS_AT))[_AT:].cast("Q")
        self._next = 0

    def note(self, unique: int) -> None:
        """A request was read."""
        self._ring[self._next] = unique
        self._next = (self._next + 1) % CAPACITY

    def fail_all(self, fuse_fd: int) -> int:
        """Answers all that were read with EIO, before any other is read; how many had no answer yet."""
        failed = 0
        for unique in self._read_uniques():
            try:
                os.write(fuse_fd, OUT_HEADER.pack(OUT_HEADER.size, -errno.EIO, unique))
                failed += 1
            except OSError:
                pass  # it has its answer, or needs none
        return failed

    def _read_uniques(self) -> set[int]:
        """Each number once; where a large request lay over a slot, guests' data: no number, or one that is due."""
        uniques = set(self._ring)
        self._ring[:] = memoryview(bytes(8 * CAPACITY)).cast("Q")
        for slot in range(SLOTS):
            at = slot * SLOT_BYTES + _UNIQUE_AT
            uniques.add(int.from_bytes(self._slots[at : at + 8], sys.byteorder))
            self._slots[at : at + 8] = bytes(8)
        return uniques - {0}
