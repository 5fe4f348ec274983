"""Every error vdiskfs raises on purpose, and the errno each becomes at the mount.

A class exists only where a caller does something different. Messages are lowercase, without a full
stop, facts last as ``key=value``; the command line prints them as one line.
"""

import errno


class VdiskfsError(Exception):
    """The root of the tree.

    Args:
        message: what happened and what to do next, one line.
        number: the errno the kernel gets, where it is more precise than the class's own.
    """

    number = errno.EIO

    def __init__(self, message: str, *, number: int | None = None) -> None:
        super().__init__(message)
        if number is not None:
            self.number = number


class NotFound(VdiskfsError):
    """A name, vdisk, version or group that does not exist."""

    number = errno.ENOENT


class Exists(VdiskfsError):
    """The name is taken."""

    number = errno.EEXIST


class InvalidRequest(VdiskfsError):
    """The caller asked for what cannot be; asking again will not help."""

    number = errno.EINVAL


class Busy(VdiskfsError):
    """In use: somebody depends on it, or it is open; the message says who or what to do first."""

    number = errno.EBUSY


class ReadOnly(VdiskfsError):
    """A write to what never changes."""

    number = errno.EROFS


class NotOwner(VdiskfsError):
    """Another node owns the vdisk; retry there."""

    number = errno.EBUSY


class Fenced(VdiskfsError):
    """This node acted under an epoch that has ended."""

    number = errno.EIO


class Unavailable(VdiskfsError):
    """An engine did not answer within its deadline, or answered with an I/O error."""

    number = errno.EIO


class NoSpace(VdiskfsError):
    """The pool (or a quota) is full; heals when space returns."""

    number = errno.ENOSPC


class Corrupt(VdiskfsError):
    """Bytes from disk or network that fail their check; never served."""

    number = errno.EIO


class IndexDamaged(Corrupt):
    """The node's own snapshot index cannot be read: build it again from the pool; no user need see it."""


class Conflict(VdiskfsError):
    """A catalog transaction's comparison failed: read again, plan again, retry."""

    number = errno.EAGAIN
