"""What requests about names were about to do, known to the next daemon: so that one sent again is done once.

Between a change's commit and its answer the daemon may die. The kernel then sends the request again, and meanwhile
another node may have given the name to something else: taking that away, or moving it, would be a second deed. So the
inode that a request means is noted before its commit, in a ring of the mount's memory file, which outlives daemons.
The request's number comes in its ``pid`` (fusefs/fuse_abi.py); one whose note is gone is judged by what is there.
"""

import mmap
import os

from fusefs.fuse_abi import NUMBER_MASK, RESENT
from fusefs.namespace_store import Plan
from fusefs.settings import NO_FD
from metadata.catalog import Change
from metadata.namespace import Namespace
from metadata.namespace_plans import Entry

CAPACITY = 4096
"""Far more than the requests about names that wait for an answer at once; one that finds its note gone has none."""
_ENTRY_WORDS, _WORD_BYTES = 2, 8
_AT = 1 << 24
"""Behind the INIT request, the ring of lost requests and the slots (fusefs/lost_requests.py), with room to grow."""
_BYTES = CAPACITY * _ENTRY_WORDS * _WORD_BYTES


def is_resent(pid: int) -> bool:
    """Whether a daemon that is dead may have carried out the request that has this for its ``pid``."""
    return bool(pid & RESENT)


def number_of(pid: int) -> int:
    """A number that no other request of the last billion has."""
    return pid & NUMBER_MASK


class Deeds:
    """The ring of one mount.

    Args:
        init_fd: the memory file; without one the notes end with this process.
    """

    def __init__(self, init_fd: int = NO_FD) -> None:
        if init_fd == NO_FD:
            self._ring = memoryview(mmap.mmap(-1, _BYTES)).cast("Q")
            return
        if os.fstat(init_fd).st_size < _AT + _BYTES:
            os.ftruncate(init_fd, _AT + _BYTES)
        self._ring = memoryview(mmap.mmap(init_fd, _BYTES, offset=_AT)).cast("Q")

    def note(self, pid: int, inode: int) -> None:
        """This request is about to make, move or take away this inode."""
        number = number_of(pid)
        at = number % CAPACITY * _ENTRY_WORDS
        self._ring[at] = 0  # a kill in between leaves no note
        self._ring[at + 1] = inode
        self._ring[at] = number

    def once(self, pid: int, entry: Entry, plan: Plan) -> Plan:
        """A plan that takes a name away, but from no other inode than the first time."""
        meant = self.meant(pid)

        def plan_once(namespace: Namespace) -> Change:
            victim = namespace.lookup(entry.parent, entry.name)
            if meant not in (None, victim):
                return Change()
            self.note(pid, victim)
            return plan(namespace)

        return plan_once

    def meant(self, pid: int) -> int | None:
        """The inode that this request, sent again, was about; None: it is new, or was not begun."""
        number = number_of(pid)
        at = number % CAPACITY * _ENTRY_WORDS
        if not is_resent(pid) or not number or self._ring[at] != number:
            return None
        return self._ring[at + 1]
