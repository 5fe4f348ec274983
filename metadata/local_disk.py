"""What the embedded catalog needs of the disk it is on: that it is local, and some space set aside."""

import ctypes
import os
import pathlib

from metadata.errors import InvalidRequest, Unavailable

RESERVE_BYTES = 1 << 20
"""Enough for SQLite to delete some names and to copy its log into the file."""

_NETWORK_FILESYSTEMS = {
    0x6969: "nfs",
    0xFF534D42: "cifs",
    0xFE534D42: "smb2",
    0x517B: "smb",
    0x00C36400: "ceph",
    0x5346414F: "afs",
    0x01021997: "9p",
    0x01161970: "gfs2",
    0x7461636F: "ocfs2",
    0x0BD00BD0: "lustre",
    0x47504653: "gpfs",
    0x19830326: "beegfs",
    0x73757245: "coda",
    0x564C: "ncp",
}
"""By statfs(2)'s f_type: where file locks or shared memory of several hosts cannot be relied on."""


def filesystem_magic(path: pathlib.Path) -> int:
    """The f_type that statfs(2) gives for the filesystem ``path`` is on."""
    libc = ctypes.CDLL(None, use_errno=True)
    answer = (ctypes.c_long * 64)()  # struct statfs begins with a long, f_type, and is smaller than this
    if libc.statfs(os.fsencode(path), ctypes.byref(answer)) != 0:
        raise Unavailable(f"cannot look at {path}: {os.strerror(ctypes.get_errno())}")
    return answer[0] & 0xFFFFFFFF


def refuse_network_filesystem(path: pathlib.Path, *, magic: int) -> None:
    """SQLite's locks do not reach across hosts.

    Raises:
        InvalidRequest: the path is on a filesystem that hosts share.
    """
    name = _NETWORK_FILESYSTEMS.get(magic)
    if name is not None:
        raise InvalidRequest(
            f"{path} is on a network filesystem ({name}), where the embedded catalog is not safe; "
            "use a local directory or a catalog server"
        )


def free_bytes(folder: pathlib.Path) -> int:
    """What an ordinary user may still write there; 0 if it cannot be said."""
    try:
        space = os.statvfs(folder)
    except OSError:
        return 0
    return space.f_bavail * space.f_frsize


class Reserve:
    """Space set aside on the pool's disk. Used by the catalog's thread only."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._whole = False

    def fill(self) -> None:
        """Have the space, unless the disk is nearly full; then some later call will."""
        if self._whole or free_bytes(self._path.parent) < 4 * RESERVE_BYTES:
            return
        try:
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, RESERVE_BYTES)
                self._whole = True
            finally:
                if not self._whole:
                    os.ftruncate(fd, 0)  # a part of it would only be missed elsewhere
                os.close(fd)
        except OSError:
            return

    def give_up(self) -> bool:
        """Free the space, which an earlier process may have set aside; False if there was none."""
        self._whole = False
        try:
            held = self._path.stat().st_size
            os.truncate(self._path, 0)
        except OSError:
            return False
        return held > 0
