"""The pool as a directory: the one home of pool files.

    POOL/vdiskfs.pool                                format, identity, salt (JSON)
    POOL/catalog.sqlite                              the embedded catalog (metadata/catalog_sqlite.py)
    POOL/lock                                        held by all nodes together: earlier releases serve a pool alone
    POOL/nodes/NODE.lock                             held by the node of this name
    POOL/vdisks/SH/VDISK/EPOCH-NUMBER.group          extent groups, append only
    POOL/vdisks/SH/VDISK/VERSION.checkpoint          the vdisk's index at a version: an SST file, and 16 bytes:
                                                     "VDFSCKP1", xxh3-64 of the SST file, seeded with its name

SH is the vdisk id's low byte, VDISK its 16 hex digits. The pool closes the group files used longest ago: a
``GroupFile`` outlives its descriptor, ``read_nowait`` then says no, and ``ensure_open`` heals it.
"""

import errno
import fcntl
import json
import os
import pathlib
import re
import secrets
import shutil
import struct
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO

from xxhash import xxh3_64

from metadata.catalog_sqlite import create_sqlite_catalog
from metadata.errors import (
    Corrupt,
    Exists,
    InvalidRequest,
    NoSpace,
    NotFound,
    NotOwner,
    Unavailable,
    VdiskfsError,
)
from metadata.ids import GroupId, epoch_of, group_id, is_compacted, number_of
from metadata.namespace_plans import plan_root
from metadata.records import group_seed
from metadata.units import BLOCK_BYTES, TRASH_S_DEFAULT

FORMAT = 1
CATALOG_NAME = "catalog.sqlite"
OPEN_FILES_MAX = 1024
"""Group files kept open; the daemon raises its descriptor limit to suit (fusefs/node.py)."""

_GROUP_NAME = re.compile(r"([0-9a-f]{6})-([0-9a-f]{7})\.group")
_CHECKPOINT_NAME = re.compile(r"([0-9a-f]{16})\.checkpoint")
_CHECKPOINT_END = struct.Struct("<8sQ")
_CHECKPOINT_MAGIC = b"VDFSCKP1"
_ZEROS = bytes(1 << 20)
SPARE_PART_MIN = 16
"""At most so large a part of the pool's disk is kept free, however small that is."""
SPARE_BYTES = 128 << 20
"""Kept free for what collection moves: two groups; and besides that"""
CHECKPOINT_PART = 128
"""of the disk for a checkpoint of all that the pool can hold, twice over."""
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_NO_PREALLOCATION = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def pool_error(exc: OSError, what: str) -> VdiskfsError:
    """Our error for an operating system's, with what was being done."""
    if exc.errno in _NO_SPACE:
        return NoSpace(f"the pool is full: {what}")
    return Unavailable(f"the pool does not answer: {what}: {exc.strerror}")


class GroupFile:
    """One extent group's file. ``position`` counts blocks; lengths are whole blocks."""

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

    def read(self, view: memoryview, position: int) -> int:
        """Fills ``view`` as far as the file goes, waiting for the disk; returns bytes read."""
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


class DirectoryPool:
    """An opened pool directory; one to a daemon."""

    def __init__(self, path: str, *, pool_id: str, salt: int) -> None:
        self.path, self.pool_id, self.salt = path, pool_id, salt
        self._open: OrderedDict[GroupFile, None] = OrderedDict()
        """Those used longest ago first. A group may have several, one for each ``GroupSet``."""
        self._lock_fds: list[int] = []

    def lock(self, node: str) -> None:
        """Makes this process the one node of this name until ``close``.

        Raises:
            NotOwner: a node of an earlier release has the pool mounted, or another one of this name.
        """
        names = os.path.join(self.path, "nodes")
        with suppress(FileExistsError):
            os.mkdir(names, mode=0o700)
        for path, kind in (
            (os.path.join(self.path, "lock"), fcntl.LOCK_SH),
            (os.path.join(names, f"{node}.lock"), fcntl.LOCK_EX),
        ):
            try:
                lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._lock_fds.append(lock_fd)
                fcntl.flock(lock_fd, kind | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                if kind == fcntl.LOCK_EX:
                    text = "another node of this name has the pool mounted: choose another with --node"
                    raise NotOwner(f"{text} node={node}") from exc
                holder = os.pread(lock_fd, 256, 0).decode(errors="replace")
                raise NotOwner(
                    f"an earlier release has the pool mounted: unmount it there by={holder}"
                ) from exc
            except OSError as exc:
                raise pool_error(exc, f"locking {path}") from exc

    def close(self) -> None:
        """Closes every file and gives the claim back."""
        for file in self._open:
            file.close()
        self._open.clear()
        for lock_fd in self._lock_fds:
            os.close(lock_fd)
        self._lock_fds.clear()

    def vdisk_path(self, vdisk: int) -> str:
        """The directory of a vdisk's groups."""
        return os.path.join(self.path, "vdisks", f"{vdisk & 0xFF:02x}", f"{vdisk:016x}")

    def group_path(self, vdisk: int, group: int) -> str:
        """The file of an extent group."""
        return os.path.join(self.vdisk_path(vdisk), f"{epoch_of(group):06x}-{number_of(group):07x}.group")

    def checkpoint_path(self, vdisk: int, version: int) -> str:
        """The file of a checkpoint."""
        return os.path.join(self.vdisk_path(vdisk), f"{version:016x}.checkpoint")

    def log_groups(self, vdisk: int) -> list[GroupId]:
        """Those of the vdisk's groups that its log wrote, in its order."""
        return [group for group in self.groups(vdisk) if not is_compacted(group)]

    def groups(self, vdisk: int) -> list[GroupId]:
        """All of the vdisk's groups, sorted."""
        matches = (_GROUP_NAME.fullmatch(name) for name in self._names(vdisk))
        return sorted(group_id(int(match[1], 16), int(match[2], 16)) for match in matches if match)

    def group_bytes(self, vdisk: int, group: int) -> int:
        """What a group occupies on the pool's disk; 0 if it went meanwhile."""
        try:
            return os.stat(self.group_path(vdisk, group)).st_blocks * 512
        except FileNotFoundError:
            return 0
        except OSError as exc:
            raise pool_error(exc, f"looking at {self.group_path(vdisk, group)}") from exc

    def checkpoints(self, vdisk: int) -> list[int]:
        """Versions of the vdisk's checkpoints, oldest first."""
        matches = (_CHECKPOINT_NAME.fullmatch(name) for name in self._names(vdisk))
        return sorted(int(match[1], 16) for match in matches if match)

    def _names(self, vdisk: int) -> list[str]:
        try:
            return os.listdir(self.vdisk_path(vdisk))
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise pool_error(exc, f"listing {self.vdisk_path(vdisk)}") from exc

    def vdisks(self) -> list[int]:
        """Ids of all vdisks that have a directory in the pool."""
        found = []
        with suppress(FileNotFoundError):
            for shard in os.scandir(os.path.join(self.path, "vdisks")):
                found += [int(name, 16) for name in os.listdir(shard.path)]
        return sorted(found)

    def file(self, vdisk: int, group: int) -> GroupFile:
        """The group's file, not yet opened."""
        seed = group_seed(self.salt, vdisk, group)
        return GroupFile(self.group_path(vdisk, group), vdisk=vdisk, group=group, seed=seed)

    def create_group(self, vdisk: int, group: int) -> GroupFile:
        """A new, empty group whose name is durable. Waits for the disk."""
        file = self.file(vdisk, group)
        directory = self.vdisk_path(vdisk)
        try:
            if not os.path.isdir(directory):
                os.makedirs(directory, mode=0o700, exist_ok=True)
                sync_directory(os.path.dirname(directory))
                sync_directory(os.path.join(self.path, "vdisks"))
            file.fd = os.open(file.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            sync_directory(directory)
        except FileExistsError as exc:
            raise Exists(f"an extent group of that name is there already file={file.path}") from exc
        except OSError as exc:
            raise pool_error(exc, f"creating {file.path}") from exc
        return file

    def note_open(self, file: GroupFile) -> None:
        """Counts an opened file and closes those beyond the limit. Only on the event loop."""
        self._open[file] = None
        self._open.move_to_end(file)
        while len(self._open) > OPEN_FILES_MAX:
            idle = next((other for other in self._open if not other.busy and other is not file), None)
            if idle is None:
                return
            self._close(idle)

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

    def remove_group(self, vdisk: int, group: int) -> None:
        """Deletes an extent group."""
        with suppress(FileNotFoundError):
            os.unlink(self.group_path(vdisk, group))

    def remove_vdisk(self, vdisk: int) -> None:
        """Deletes all groups and checkpoints of a vdisk."""
        shutil.rmtree(self.vdisk_path(vdisk), ignore_errors=True)

    def publish_checkpoint(self, vdisk: int, version: int, source: str) -> None:
        """Copies a finished checkpoint into place, durably; older ones go."""
        target = self.checkpoint_path(vdisk, version)
        try:
            temporary = target + ".new"
            with open(source, "rb") as sst, open(temporary, "wb") as file:
                check = self._copy_checkpoint(sst, file, seed=(vdisk, version))
                file.write(_CHECKPOINT_END.pack(_CHECKPOINT_MAGIC, check))
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, target)
            sync_directory(self.vdisk_path(vdisk))
            for older in self.checkpoints(vdisk)[:-1]:
                os.unlink(self.checkpoint_path(vdisk, older))
            for name in self._names(vdisk):
                if name.endswith(".checkpoint.new"):  # of a daemon that died writing it
                    os.unlink(os.path.join(self.vdisk_path(vdisk), name))
        except OSError as exc:
            raise pool_error(exc, f"writing {target}") from exc

    def fetch_checkpoint(self, vdisk: int, version: int, target: str) -> None:
        """Copies a checkpoint's SST file out of the pool.

        Raises:
            Corrupt: it is damaged, or another vdisk's.
            Unavailable: the pool, or the target's disk, does not answer.
        """
        path = self.checkpoint_path(vdisk, version)
        try:
            with open(path, "rb") as file, open(target, "wb") as sst:
                length = max(0, os.fstat(file.fileno()).st_size - _CHECKPOINT_END.size)
                check = self._copy_checkpoint(file, sst, seed=(vdisk, version), length=length)
                if file.read() != _CHECKPOINT_END.pack(_CHECKPOINT_MAGIC, check):
                    raise Corrupt(f"a checkpoint fails its checksum file={path}")
        except OSError as exc:
            raise pool_error(exc, f"reading {path}") from exc

    def _copy_checkpoint(
        self, source: BinaryIO, target: BinaryIO, *, seed: tuple[int, int], length: int = -1
    ) -> int:
        """Copies so many bytes, or all, and returns their checksum."""
        digest = xxh3_64(seed=group_seed(self.salt, *seed))
        while length and (piece := source.read(len(_ZEROS) if length < 0 else min(len(_ZEROS), length))):
            digest.update(piece)
            target.write(piece)
            length -= len(piece) if length > 0 else 0
        return digest.intdigest()

    def statistics(self) -> os.statvfs_result:
        """The file system's own."""
        try:
            return os.statvfs(self.path)
        except OSError as exc:
            raise pool_error(exc, "statfs") from exc

    def check_spare(self, byte_count: int) -> None:
        """Called before guests' data takes so much more of the disk: some of it is for giving space back.

        Raises:
            NoSpace: they would take what collection needs.
        """
        disk = self.statistics()
        total, free = disk.f_blocks * disk.f_frsize, disk.f_bavail * disk.f_frsize
        if free - byte_count < spare_bytes(total):
            raise NoSpace(f"the pool is full: what is left is for collection free_bytes={free}")


def spare_bytes(disk_bytes: int) -> int:
    """What guests leave free of a disk of this size."""
    return min(disk_bytes // SPARE_PART_MIN, SPARE_BYTES + disk_bytes // CHECKPOINT_PART)


def write_durably(path: str, content: bytes) -> None:
    """Makes a small file be there whole, name and all, or not at all."""
    with open(path + ".new", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".new", path)
    sync_directory(os.path.dirname(path))


def sync_directory(path: str) -> None:
    """Makes the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _creating(path: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as exc:
        raise InvalidRequest(f"no permission to write here path={path}") from exc
    except OSError as exc:
        raise pool_error(exc, f"creating {path}") from exc


def format_pool(path: str, *, trash_s: int = TRASH_S_DEFAULT) -> DirectoryPool:
    """Makes a directory, which may exist if it is empty, a pool.

    Args:
        trash_s: how long deleted vdisks can be restored; 0: not at all.

    Raises:
        Exists: it is a pool already.
        InvalidRequest: it is something else, or cannot be written.
    """
    path = os.path.abspath(path)
    marker = os.path.join(path, "vdiskfs.pool")
    if os.path.exists(marker):
        raise Exists(f"this is a pool already: choose another directory, or delete it first path={path}")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise InvalidRequest(f"not a directory path={path}")
    if os.path.isdir(path) and set(os.listdir(path)) - {"lost+found"}:
        raise InvalidRequest(f"the directory is not empty: choose an empty or a new one path={path}")
    facts = {"format": FORMAT, "pool": secrets.token_hex(8), "salt": secrets.token_hex(8)}
    with _creating(path):
        os.makedirs(os.path.join(path, "vdisks"), mode=0o700, exist_ok=True)
        os.chmod(path, 0o700)
        root = plan_root(os.getuid(), os.getgid(), now_ns=time.time_ns(), settings={"trash_s": trash_s})
        create_sqlite_catalog(pathlib.Path(path, CATALOG_NAME), first=root)
        write_durably(marker, json.dumps(facts).encode())
    return open_pool(path)


def open_pool(path: str) -> DirectoryPool:
    """The pool in this directory.

    Raises:
        NotFound: there is none.
        InvalidRequest: a newer format, or no permission.
        Corrupt: its marker file cannot be read as one.
    """
    path = os.path.abspath(path)
    marker = os.path.join(path, "vdiskfs.pool")
    try:
        with open(marker, encoding="ascii") as file:
            facts = json.load(file)
        if facts["format"] != FORMAT:
            raise InvalidRequest(
                f"the pool is of format {facts['format']}, this vdiskfs reads format {FORMAT}: "
                f"use the vdiskfs that wrote it path={path}"
            )
        return DirectoryPool(path, pool_id=str(facts["pool"]), salt=int(facts["salt"], 16))
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFound(f"no pool here: make one with 'vdiskfs format {path}'") from exc
    except PermissionError as exc:
        raise InvalidRequest(f"no permission to read this pool path={path}") from exc
    except (ValueError, KeyError, TypeError) as exc:
        raise Corrupt(f"the pool's marker file is damaged file={marker}") from exc
    except OSError as exc:
        raise pool_error(exc, f"opening {marker}") from exc
