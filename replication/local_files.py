"""Holes of a local file: which blocks it has, and giving some back."""

import ctypes
import os

from metadata.units import BLOCK_BYTES

_PUNCH = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)


def data_ranges(fd: int) -> list[tuple[int, int]]:
    """Whole blocks of a file that are no hole."""
    found, at, size = [], 0, os.fstat(fd).st_size
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # nothing but a hole from here on
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        if at // BLOCK_BYTES > -(-start // BLOCK_BYTES):
            found.append((-(-start // BLOCK_BYTES), at // BLOCK_BYTES))
    return found


def punch_hole(fd: int, start: int, end: int) -> None:
    """Gives back what whole blocks occupy; they read as zeros then.

    Raises:
        OSError: the file system cannot.
    """
    length = (end - start) * BLOCK_BYTES
    offset = ctypes.c_long(start * BLOCK_BYTES)
    if _libc.fallocate(fd, _PUNCH, offset, ctypes.c_long(length)):
        raise OSError(ctypes.get_errno(), "no hole can be made")
