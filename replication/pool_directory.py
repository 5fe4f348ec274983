"""The pool as a directory: the one home of pool files.

    POOL/vdiskfs.pool                                format, identity, salt (JSON)
    POOL/catalog.sqlite, or POOL/catalog             the embedded catalog, or where another one is (replication/pool_catalog.py)
    POOL/lock                                        held by all nodes together: earlier releases serve a pool alone
    POOL/nodes/NODE.lock                             held by the node of this name
    POOL/vdisks/SH/VDISK/EPOCH-NUMBER.group          extent groups, append only
    POOL/vdisks/SH/VDISK/VERSION.checkpoint          the vdisk's index at a version: an SST file, and 16 bytes:
                                                     "VDFSCKP1", xxh3-64 of the SST file, seeded with its name

SH is the vdisk id's low byte, VDISK its 16 hex digits.
"""

import fcntl
import json
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from metadata.errors import (
    Corrupt,
    Exists,
    InvalidRequest,
    NoSpace,
    NotFound,
    NotOwner,
    VdiskfsError,
)
from metadata.etcd_address import parse_etcd_address
from metadata.ids import GroupId, epoch_of, group_id, number_of
from metadata.namespace_plans import plan_root
from metadata.records import group_seed
from metadata.units import BLOCK_BYTES, TRASH_S_DEFAULT
from replication.pool import GroupFile, Pool, pool_error
from replication.pool_catalog import ADDRESS_NAME, create_catalog, forget_catalog
from replication.pool_checkpoints import pack_checkpoint, unpack_checkpoint

FORMAT = 1
_GROUP_NAME = re.compile(r"([0-9a-f]{6})-([0-9a-f]{7})\.group")
_CHECKPOINT_NAME = re.compile(r"([0-9a-f]{16})\.checkpoint")
SPARE_PART_MIN = 16
"""At most so large a part of the pool's disk is kept free, however small that is."""
SPARE_BYTES = 128 << 20
"""Kept free for what collection moves: two groups; and besides that"""
CHECKPOINT_PART = 128
"""of the disk for a checkpoint of all that the pool can hold, twice over."""


class SharedGroupFile(GroupFile):
    """An extent group on a filesystem that several hosts share, whose caches may hold what was there before.

    Most keep a file's content and size in memory until it is opened again (close-to-open). Another host appends to it
    while it is open here. So a block that does not verify is looked at again through a newly opened file.
    """

    __slots__ = ()

    def renew(self, position: int, block_count: int) -> bool:
        with self._opening:
            if self.fd < 0:
                return False
            try:
                again = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                return False
            try:  # under the number that other threads read through
                os.dup2(again, self.fd, inheritable=False)
                os.posix_fadvise(
                    again, position * BLOCK_BYTES, block_count * BLOCK_BYTES, os.POSIX_FADV_DONTNEED
                )
            finally:
                os.close(again)
        return True


class DirectoryPool(Pool):
    """An opened pool directory; one to a daemon.

    Args:
        is_shared: among hosts, by a filesystem that does that.
    """

    tells_names = True

    def __init__(self, path: str, *, pool_id: str, salt: int, is_shared: bool = False) -> None:
        super().__init__(path, pool_id=pool_id, salt=salt)
        self.path = path
        self._file_class = SharedGroupFile if is_shared else GroupFile
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
        super().close()
        for lock_fd in self._lock_fds:
            os.close(lock_fd)
        self._lock_fds.clear()

    def check_writable(self) -> None:
        """
        Raises:
            InvalidRequest: it cannot be written.
        """
        if not os.access(self.path, os.W_OK) or os.statvfs(self.path).f_flag & os.ST_RDONLY:
            text = "the pool is read-only: make it writable for this user first"
            raise InvalidRequest(f"{text} path={self.path}")

    def vdisk_path(self, vdisk: int) -> str:
        """The directory of a vdisk's groups."""
        return os.path.join(self.path, "vdisks", f"{vdisk & 0xFF:02x}", f"{vdisk:016x}")

    def group_path(self, vdisk: int, group: int) -> str:
        """The file of an extent group."""
        return os.path.join(self.vdisk_path(vdisk), f"{epoch_of(group):06x}-{number_of(group):07x}.group")

    def checkpoint_path(self, vdisk: int, version: int) -> str:
        """The file of a checkpoint."""
        return os.path.join(self.vdisk_path(vdisk), f"{version:016x}.checkpoint")

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
        with suppress(FileNotFoundError), os.scandir(os.path.join(self.path, "vdisks")) as shards:
            for shard in shards:
                with suppress(FileNotFoundError):
                    found += [int(name, 16) for name in os.listdir(shard.path)]
        return sorted(found)

    def file(self, vdisk: int, group: int) -> GroupFile:
        """The group's file, not yet opened."""
        seed = group_seed(self.salt, vdisk, group)
        return self._file_class(self.group_path(vdisk, group), vdisk=vdisk, group=group, seed=seed)

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
                pack_checkpoint(sst, file, seed=group_seed(self.salt, vdisk, version))
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
                unpack_checkpoint(file, sst, seed=group_seed(self.salt, vdisk, version), name=path)
        except OSError as exc:
            raise pool_error(exc, f"reading {path}") from exc

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


def format_pool(path: str, *, trash_s: int = TRASH_S_DEFAULT, catalog: str = "") -> DirectoryPool:
    """Makes a directory, which may exist if it is empty, a pool.

    Args:
        trash_s: how long deleted vdisks can be restored; 0: not at all.
        catalog: where its catalog is to be; in the directory unless told.

    Raises:
        Exists: it is a pool already.
        InvalidRequest: it is something else, or cannot be written.
        Unavailable: the catalog does not answer.
    """
    path = os.path.abspath(path)
    address = parse_etcd_address(catalog) if catalog else None
    marker = os.path.join(path, "vdiskfs.pool")
    if os.path.exists(marker):
        raise Exists(f"this is a pool already: choose another directory, or delete it first path={path}")
    if os.path.lexists(path) and not os.path.isdir(path):
        raise InvalidRequest(f"not a directory path={path}")
    if os.path.isdir(path) and set(os.listdir(path)) - {"lost+found"}:
        raise InvalidRequest(f"the directory is not empty: choose an empty or a new one path={path}")
    pool_id = secrets.token_hex(8)
    facts = {"format": FORMAT, "pool": pool_id, "salt": secrets.token_hex(8)}
    root = plan_root(os.getuid(), os.getgid(), now_ns=time.time_ns(), settings={"trash_s": trash_s})
    if address is not None:  # first: if it does not answer, nothing was begun here
        create_catalog(path, pool_id, address=address, first=root)
    try:
        with _creating(path):
            os.makedirs(os.path.join(path, "vdisks"), mode=0o700, exist_ok=True)
            os.chmod(path, 0o700)
            if address is None:
                create_catalog(path, pool_id, address=None, first=root)
            else:
                write_durably(os.path.join(path, ADDRESS_NAME), catalog.encode() + b"\n")
            write_durably(marker, json.dumps(facts).encode())
    except VdiskfsError:
        if address is not None:
            forget_catalog(pool_id, address)
        raise
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
        is_shared = os.path.exists(os.path.join(path, ADDRESS_NAME))
        pool_id, salt = str(facts["pool"]), int(facts["salt"], 16)
        return DirectoryPool(path, pool_id=pool_id, salt=salt, is_shared=is_shared)
    except (FileNotFoundError, NotADirectoryError) as exc:
        raise NotFound(
            f"no pool here: is its filesystem mounted? A new one: 'vdiskfs format {path}'"
        ) from exc
    except PermissionError as exc:
        raise InvalidRequest(f"no permission to read this pool path={path}") from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise Corrupt(f"the pool's marker file is damaged file={marker}") from exc
    except OSError as exc:
        raise pool_error(exc, f"opening {marker}") from exc
