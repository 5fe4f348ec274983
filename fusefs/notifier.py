"""A process beside the daemon that tells the kernel what may make it wait for the daemon itself.

"Write back and drop these pages" returns when the daemon has answered the writes. A thread that waits so cannot be
killed, and keeps its whole process from ending: were it the daemon's, the keeper would wait for ever for the end of a
killed daemon, and the kernel for the next one. This process may wait as long as it takes: for the next daemon's answer.

    daemon --number, bytes for /dev/fuse--> notifier --number--> daemon

It also makes the kernel learn a file's size, which with a write-back cache it takes from nobody but from the answer to
its own truncation: it truncates the file to a size that the daemon knows for a question (``fuse_abi.ASKED_SIZE``).
"""

import ctypes
import os
import signal
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from fusefs.fuse_abi import ASKED_SIZE
from fusefs.mount_table import mount_at, read_mounts

MESSAGE_BYTES_MAX = 8192
NUMBER = struct.Struct("<I")
LEARN_SIZE = bytes(4)
"""In place of the bytes for /dev/fuse; the mountpoint, a zero and a path below it follow."""
_PR_SET_PDEATHSIG = 1


@contextmanager
def notifier(fuse_fd: int) -> Iterator[socket.socket]:
    """Forks the notifier and gives the daemon's end; used while there is one thread.

    It ends with the daemon, or, when the mount is gone, before it.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    daemon, pid = os.getpid(), os.fork()
    if pid == 0:
        try:
            _serve(fuse_fd, theirs, daemon)
        finally:
            os._exit(0)
    theirs.close()
    ours.setblocking(False)
    with ours:
        yield ours
    os.waitpid(pid, 0)  # not after an error: it may still wait for the next daemon's answer


def _serve(fuse_fd: int, daemon: socket.socket, daemon_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != daemon_pid:
        return
    low, high = sorted((fuse_fd, daemon.fileno()))
    for first, end in ((3, low), (low + 1, high), (high + 1, os.sysconf("SC_OPEN_MAX"))):
        os.closerange(first, end)
    while message := daemon.recv(MESSAGE_BYTES_MAX):
        # A thread each: one that waits for an answer must not keep others from being told.
        threading.Thread(target=_tell, args=(fuse_fd, daemon, message), daemon=True).start()


def _tell(fuse_fd: int, daemon: socket.socket, message: bytes) -> None:
    body = message[NUMBER.size :]
    with suppress(OSError):  # the kernel knows no such inode or name, or the mount is gone
        if body.startswith(LEARN_SIZE):
            _learn_size(*body[len(LEARN_SIZE) :].split(b"\0"))
        else:
            os.write(fuse_fd, body)
    with suppress(OSError):  # the daemon is gone
        daemon.send(message[: NUMBER.size])


def _learn_size(mountpoint: bytes, path: bytes) -> None:
    """Only below one of our mounts: elsewhere it would be a truncation."""
    folder = os.open(mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(folder).st_dev
        mount = mount_at(os.fsdecode(mountpoint), read_mounts())
        if (
            mount is not None
            and mount.is_vdiskfs
            and (0, mount.device_minor) == (os.major(device), os.minor(device))
        ):
            os.truncate(b"/proc/self/fd/%d/%b" % (folder, path.lstrip(b"/")), ASKED_SIZE)
    finally:
        os.close(folder)
