"""Calls on files that Python has no names for: renaming without replacing, exchanging names, punching holes."""

import ctypes
import errno
import os

from metadata.errors import Exists

_AT_FDCWD = -100
_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def sync(path: str) -> None:
    """What is at ``path`` is durable when it returns: a file's data, a directory's names."""
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def rename_new(source: str, target: str) -> None:
    """Rename, replacing nothing.

    Raises:
        Exists: somebody made ``target`` meanwhile.
        OSError: it cannot be renamed, a name too long for instance.
    """
    number = _rename(source, target, _RENAME_NOREPLACE)
    if not number:
        return
    if number == errno.EEXIST:
        raise Exists(f"{target} exists: choose another name, or delete it first")
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), target)
    os.rename(source, target)  # a filesystem without that flag, checked before as well as can be


def exchange_names(one: str, other: str) -> None:
    """Both names change what they stand for, at one moment.

    Raises:
        OSError: they cannot be exchanged; nothing has changed.
    """
    number = _rename(one, other, _RENAME_EXCHANGE)
    if number:
        raise OSError(number, os.strerror(number), other)


def punch_hole(file: int, offset: int, length: int) -> None:
    """Zeros from ``offset`` on, that take no space; the size stays.

    Raises:
        OSError: it cannot be done.
    """
    if _libc.fallocate(file, _PUNCH_HOLE | _KEEP_SIZE, offset, length):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _rename(source: str, target: str, flags: int) -> int:
    paths = os.fsencode(source), os.fsencode(target)
    if _libc.renameat2(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], flags) == 0:
        return 0
    return ctypes.get_errno()
