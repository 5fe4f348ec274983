"""Where requests are read to: single-block writes wait in slots side by side, to be carried out together.

A busy guest's writes lie in the kernel's queue one behind the other. Read into slots and appended by one system
call they share large pages of the page cache, and cost two thirds of what they cost alone. Nothing waits for more to
come: any other request, or an empty queue, ends the lot.
"""

import mmap

from fusefs import fuse_abi as abi
from metadata.units import BLOCK_BYTES
from replication.groups import keep_split
from replication.head import Head
from replication.remote import Remote
from replication.view import View

WRITE_BYTES_MAX = abi.REQUEST_PAGES << 12
REQUEST_BYTES_MAX = WRITE_BYTES_MAX + 8192
SLOTS = 16
"""A usual queue depth: at 16, randwrite did 80 k IOPS, with 8 slots 66 k, with 4 56 k, one by one 45 k."""
SLOT_BYTES = abi.WRITE_DATA_AT + BLOCK_BYTES
BUFFER_BYTES = (SLOTS - 1) * SLOT_BYTES + REQUEST_BYTES_MAX

Waiting = tuple[int, int, int, memoryview]
"""Of a write: unique, file handle, offset, data."""


class Slots:
    """One channel's buffer. A request is read to slot ``waiting``, with room for the largest.

    Args:
        buffer: ``BUFFER_BYTES`` long.
    """

    def __init__(self, buffer: mmap.mmap) -> None:
        self.buffer = buffer
        whole = memoryview(buffer)
        starts = [number * SLOT_BYTES for number in range(SLOTS)]
        self.vectors = [[whole[at : at + REQUEST_BYTES_MAX]] for at in starts]
        self.largest = [
            keep_split(vector[0][abi.WRITE_DATA_AT :][:WRITE_BYTES_MAX]) for vector in self.vectors
        ]
        """The data of a write as large as can be."""
        self._blocks = [vector[0][abi.WRITE_DATA_AT : SLOT_BYTES] for vector in self.vectors]
        self.waiting = 0
        """How many writes wait, all for one head."""
        self._writes: list[Waiting] = []
        self._head: Head | None = None

    def take(
        self, head: Head | View | Remote | None, unique: int, *, fh: int, offset: int, flags: int
    ) -> bool:
        """Lets the write of one block in the next slot wait, if it is of the kind and for the head that may."""
        if offset & (BLOCK_BYTES - 1) or flags & abi.WRITE_KILL_SUIDGID:
            return False
        if not self.waiting:
            if not isinstance(head, Head) or head.syncs.streak:  # who syncs behind each write must not wait
                return False
            self._head = head
        elif head is not self._head:
            return False
        self._writes.append((unique, fh, offset, self._blocks[self.waiting]))
        self.waiting += 1
        return True

    def give(self) -> tuple[Head, list[Waiting]]:
        """The writes that wait, at least one; their slots are free again once they are carried out."""
        head, writes = self._head, self._writes
        assert head is not None
        self._writes, self.waiting = [], 0
        return head, writes
