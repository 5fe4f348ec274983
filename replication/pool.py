"""The pool, as everybody else sees it: groups to append to and read, and checkpoints.

``GroupFile`` is an extent group as a local file: a directory's (replication/pool_directory.py) is just that. A pool that is
elsewhere keeps such a file for what is appended and for what was read, and overrides what waits; so the hot paths
(``write``, ``read_nowait``, ``preadv`` on ``fd``) are the same for every pool, and know of none.

The pool closes the group files used longest ago: a ``GroupFile`` outlives its descriptor, ``read_nowait`` then says no,
and ``ensure_open`` heals it.
"""

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress

from metadata.errors import NoSpace, NotFound, Unavailable, VdiskfsError
from metadata.ids import GroupId, is_compacted
from metadata.units import BLOCK_BYTES

OPEN_FILES_MAX = 1024
"""Group files kept open; the daemon raises its descriptor limit to suit (fusefs/node.py)."""

_ZEROS = bytes(1 << 20)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_PREALLOCATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def pool_error(exc: OSError, what: str) -> VdiskfsError:
    """Our error for an operating system's, with what was being done."""
    if exc.errno in _NO_SPACE:
        return NoSpace(f"the pool is full: {what}")
    return Unavailable(f"the pool does not answer: {what}: {exc.strerror}")


class GroupFile:
    """One extent group as a local file. ``position`` counts blocks; lengths are whole blocks."""

    __slots__ = ("_opening", "allocated_blocks", "base", "busy", "fd", "group", "path", "seed", "vdisk")

    def __init__(self, path: str, *, vdisk: int, group: int, seed: int) -> None:
        self.path, self.vdisk, self.group, self.seed = path, vdisk, group, seed
        self.base = group << 16
        """The place of the group's first block."""
        self.fd = -1
        self.allocated_blocks = 0
        self.busy = 0
        """Threads that use the descriptor now; it is not closed meanwhile."""
        self._opening = threading.Lock()

    def ensure_open(self) -> None:
        """Opens the file if it is not. Any thread; the pool counts it open when it is released.

        Raises:
            NotFound: there is no such group file.
            Unavailable: the pool does not answer.
        """
        if self.fd >= 0:
            return
        try:
            with self._opening:  # several reads may want it at once: none may open it over the other's head
                if self.fd < 0:
                    self.allocated_blocks = os.stat(self.path).st_size // BLOCK_BYTES
                    self.fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError as exc:
            missing = f"an extent group is missing from the pool file={self.path}"
            raise NotFound(missing, number=errno.EIO) from exc  # no name that a guest has asked for
        except OSError as exc:
            raise pool_error(exc, f"opening {self.path}") from exc

    def close(self) -> None:
        """Gives the descriptor back; not while busy."""
        assert not self.busy
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def read_nowait(self, view: memoryview, position: int) -> bool:
        """Fills ``view`` if that needs no disk."""
        try:
            return os.preadv(self.fd, (view,), position << 12, os.RWF_NOWAIT) == len(view)
        except OSError:  # would wait, closed meanwhile, or a real error that the slow way will tell
            return False

    def read_cached(self, view: memoryview, position: int) -> int:
        """As ``read``, for who verifies each block: a cache may answer; if that was wrong, ``renew`` tells."""
        return self.read(view, position)

    def renew(self, position: int, block_count: int) -> bool:
        """Drops what a cache has of these blocks, which did not verify; whether reading again may find others."""
        return False

    def read(self, view: memoryview, position: int) -> int:
        """Fills ``view`` as far as the group goes with what the pool has, waiting for it; returns bytes read."""
        done = 0
        try:
            while done < len(view):
                got = os.preadv(self.fd, (view[done:],), (position << 12) + done)
                if not got:
                    break
                done += got
        except OSError as exc:
            raise pool_error(exc, f"reading {self.path}") from exc
        return done

    def read_ahead(self, position: int, count: int) -> None:
        """Has the disk begin to read these blocks into the page cache, and does not wait: a ``read`` of them follows."""
        with suppress(OSError):  # the read will tell
            os.posix_fadvise(self.fd, position << 12, count << 12, os.POSIX_FADV_WILLNEED)

    def write(self, data: bytes | bytearray | memoryview, position: int) -> None:
        """Writes behind what is there; the page cache takes it, ``sync`` makes it durable."""
        try:
            written = os.pwrite(self.fd, data, position << 12)
            while written < len(data):
                written += os.pwrite(self.fd, memoryview(data)[written:], (position << 12) + written)
        except OSError as exc:
            raise pool_error(exc, f"writing {self.path}") from exc

    def write_many(self, blocks: Sequence[memoryview], position: int) -> None:
        """Writes pieces behind each other, as ``write`` does one."""
        try:
            written = os.pwritev(self.fd, blocks, position << 12)
        except OSError as exc:
            raise pool_error(exc, f"writing {self.path}") from exc
        if written < sum(map(len, blocks)):
            self.write(b"".join(blocks), position)

    def sync(self) -> None:
        """Returns when all that was written is durable."""
        try:
            os.fdatasync(self.fd)
        except OSError as exc:
            raise pool_error(exc, f"syncing {self.path}") from exc

    def preallocate(self, end: int, *, written: bool = False) -> None:
        """Reserves blocks up to ``end``.

        Args:
            end: position.
            written: fill with zeros, so that a later sync need not change the file's own metadata.
        """
        start = self.allocated_blocks
        if end <= start:
            return
        try:
            os.posix_fallocate(self.fd, start * BLOCK_BYTES, (end - start) * BLOCK_BYTES)
        except OSError as exc:
            if exc.errno not in _NO_PREALLOCATION:
                raise pool_error(exc, f"growing {self.path}") from exc
        if written:
            for position in range(start, end, len(_ZEROS) // BLOCK_BYTES):
                self.write(_ZEROS[: (end - position) * BLOCK_BYTES], position)
            self.sync()
        self.allocated_blocks = end

    def trim(self, end: int) -> None:
        """Gives back what is preallocated behind ``end``, and whatever lies there."""
        try:
            os.ftruncate(self.fd, end * BLOCK_BYTES)
        except OSError as exc:
            raise pool_error(exc, f"trimming {self.path}") from exc
        self.allocated_blocks = end


class Pool(ABC):
    """An opened pool; one to a daemon. What is abstract waits, and belongs in a thread; the rest is the event loop's.

    Args:
        url: where it is, for messages; what ``vdiskfs mount`` takes.
        pool_id: its identity.
        salt: seeds the checksums of its blocks and records.
    """

    url: str
    pool_id: str
    salt: int
    tells_names = False
    """Whether ``lock`` refuses a second node of one name; else only the session does."""
    cache_limit_bytes = 0
    """How much of it a cache on this node may hold; 0: there is none, and no need of one."""

    def __init__(self, url: str, *, pool_id: str, salt: int) -> None:
        self.url, self.pool_id, self.salt = url, pool_id, salt
        self._open: OrderedDict[GroupFile, None] = OrderedDict()
        """Those used longest ago first. A group may have several, one for each ``GroupSet``."""
        self._abandoned: deque[GroupFile] = deque()

    @abstractmethod
    def lock(self, node: str) -> None:
        """Makes this process the one node of this name until ``close``.

        Raises:
            NotOwner: there is another one.
        """

    @abstractmethod
    def check_writable(self) -> None:
        """
        Raises:
            InvalidRequest: it cannot be written.
        """

    @abstractmethod
    def vdisk_path(self, vdisk: int) -> str:
        """Where a vdisk's groups are, for messages."""

    @abstractmethod
    def group_path(self, vdisk: int, group: int) -> str:
        """Where an extent group is, for messages."""

    def log_groups(self, vdisk: int) -> list[GroupId]:
        """Those of the vdisk's groups that its log wrote, in its order."""
        return [group for group in self.groups(vdisk) if not is_compacted(group)]

    @abstractmethod
    def groups(self, vdisk: int) -> list[GroupId]:
        """All of the vdisk's groups, sorted."""

    @abstractmethod
    def group_bytes(self, vdisk: int, group: int) -> int:
        """What a group occupies in the pool; 0 if it went meanwhile."""

    @abstractmethod
    def checkpoints(self, vdisk: int) -> list[int]:
        """Versions of the vdisk's checkpoints, oldest first."""

    @abstractmethod
    def vdisks(self) -> list[int]:
        """Ids of all vdisks that have anything in the pool."""

    @abstractmethod
    def file(self, vdisk: int, group: int) -> GroupFile:
        """The group's file, not yet opened."""

    @abstractmethod
    def create_group(self, vdisk: int, group: int) -> GroupFile:
        """A new, empty group whose name is durable.

        Raises:
            Exists: it is there.
        """

    def may_go_on(self, vdisk: int, group: int, end: int) -> bool:
        """Whether a log that was recovered may append to the group it ended in, behind ``end``."""
        return True

    def fence(self, vdisk: int, epoch: int) -> None:
        """Has the pool itself refuse what comes under older epochs, where it can (replication/fence.py does without).

        Raises:
            Unavailable: the pool does not answer.
        """
        return

    def count_staged(self, vdisk: int) -> None:
        """The vdisk is this node's: what its log brought here and not yet into the pool counts from now on."""
        return

    @abstractmethod
    def remove_group(self, vdisk: int, group: int) -> None:
        """Deletes an extent group."""

    @abstractmethod
    def remove_vdisk(self, vdisk: int) -> None:
        """Deletes all groups and checkpoints of a vdisk."""

    @abstractmethod
    def publish_checkpoint(self, vdisk: int, version: int, source: str) -> None:
        """Copies a finished checkpoint into place, durably; older ones go."""

    @abstractmethod
    def fetch_checkpoint(self, vdisk: int, version: int, target: str) -> None:
        """Copies a checkpoint's SST file out of the pool.

        Raises:
            Corrupt: it is damaged, or another vdisk's.
            Unavailable: the pool, or the target's disk, does not answer.
        """

    @abstractmethod
    def statistics(self) -> os.statvfs_result:
        """Room for guests' data, and how much is taken, as of a file system."""

    @abstractmethod
    def check_spare(self, byte_count: int) -> None:
        """Called before guests' data takes so much more room: some of it is for giving space back.

        Raises:
            NoSpace: they would take what collection needs.
        """

    def flush_here(self, is_local: Callable[[int], bool]) -> None:
        """Flushes of vdisks that this says of return when the node's own disk has it, where the pool is elsewhere.

        Args:
            is_local: called from any thread.
        """
        return

    def may_lag(self, vdisk: int) -> bool:
        """Whether the pool may lack what was flushed here, before ``settle``."""
        return False

    def has_flushed_here(self, vdisk: int) -> bool:
        """Whether this process has acknowledged flushes of the vdisk before the pool had them."""
        return False

    def was_refused(self, vdisk: int) -> bool:
        """Whether something flushed here never came into the pool, though the index may know it."""
        return False

    def settle(self, vdisk: int) -> None:
        """Returns when the pool has all that was flushed before.

        Raises:
            Fenced, Unavailable: it has not.
        """
        return

    def note_followed(self, vdisk: int, followed: bool) -> None:
        """Whether other nodes are told of each version: from now on a flush returns when the pool has it."""
        return

    def left_behind(self) -> list[int]:
        """Vdisks of which an earlier daemon flushed what the pool may lack."""
        return []

    def refuse(self, vdisk: int) -> None:
        """Another node has taken the vdisk over: what the pool lacks is kept aside, and told to the administrator."""
        return

    def lag_facts(self, vdisk: int) -> dict[str, object]:
        """What ``info`` shows of how far the pool is behind."""
        return {}

    def read_hint(self, vdisk: int) -> bytes:
        """What ``write_hint`` has stored; empty: nothing, or it is gone."""
        return b""

    def write_hint(self, vdisk: int, data: bytes) -> None:
        """Stores some bytes beside the vdisk, which nothing depends on, for every node to read."""
        return

    def warm(self, vdisk: int, group: int, start: int, end: int) -> None:
        """Has the cache hold these blocks, if there is one and it takes them."""
        return

    def count_lacking(self, vdisk: int, group: int, start: int, end: int) -> int:
        """How many of these blocks the cache does not hold."""
        return 0

    def cache_facts(self) -> dict[str, object]:
        """What ``cache stats`` shows; empty without a cache."""
        return {}

    def facts(self) -> dict[str, object]:
        """What ``status`` shows of it, besides its name."""
        return {}

    def close(self) -> None:
        """Closes every file and gives the claim back."""
        for file in self._open:
            file.close()
        self._open.clear()

    def note_open(self, file: GroupFile) -> None:
        """Counts an opened file and closes those beyond the limit. Only on the event loop."""
        while self._abandoned:
            unread = self._abandoned.popleft()
            if unread in self._open and not unread.busy and unread is not file:
                self._close(unread)
        self._open[file] = None
        self._open.move_to_end(file)
        while len(self._open) > OPEN_FILES_MAX:
            idle = next((other for other in self._open if not other.busy and other is not file), None)
            if idle is None:
                return
            self._close(idle)

    def abandon(self, files: Mapping[int, GroupFile]) -> None:
        """Nobody reads through these any more: they are closed before another one is opened. Any thread."""
        self._abandoned.extend(files.values())

    def hold(self, files: Iterable[GroupFile]) -> None:
        """Keeps files open, or closed, for a thread that will use them. Only on the event loop."""
        for file in files:
            file.busy += 1

    def release(self, files: Iterable[GroupFile]) -> None:
        """Undoes ``hold``; counts those open that the thread opened."""
        for file in files:
            file.busy -= 1
            if file.fd >= 0:
                self.note_open(file)

    def forget_open(self, vdisk: int) -> None:
        """Closes a vdisk's files, those in use by a thread excepted."""
        for file in [file for file in self._open if file.vdisk == vdisk and not file.busy]:
            self._close(file)

    def forget_group(self, vdisk: int, group: int) -> bool:
        """Closes every file of a group; False if a thread uses one."""
        files = [file for file in self._open if file.group == group and file.vdisk == vdisk]
        if any(file.busy for file in files):
            return False
        for file in files:
            self._close(file)
        return True

    def _close(self, file: GroupFile) -> None:
        del self._open[file]
        file.close()
