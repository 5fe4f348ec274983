"""Faults below the pool: its system calls fail, come back short, read what is stale, write nothing, or take their time.

``FailingCalls`` stands for ``os`` in the modules that own pool files. A failed sync takes what it was to make
durable with it, as after a real one that has to be assumed. Nothing here knows how the core deals with any of it.
"""

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

import pytest

from replication import pool, pool_directory

HELD_S = 30
BLOCK = 4096


class Fault(StrEnum):
    """What goes wrong while it is armed."""

    EIO = "every call fails with EIO"
    READ_EIO = "reads fail with EIO"
    WRITE_EIO = "writes fail with EIO"
    ENOSPC = "whatever needs space fails with ENOSPC"
    SHORT = "reads and writes do half of what they are asked"
    STALE = "reads bring another block's bytes"
    ZEROS = "reads bring zeros"
    LOST = "writes do nothing and say they did"
    SYNC = "syncs fail, and what was not durable is gone"
    DIRECTORY_SYNC = "syncs of directories fail"
    LATENCY = "what may wait waits"


class FailingCalls(SimpleNamespace):
    """``os`` for the modules that own pool files."""

    def __init__(self) -> None:
        super().__init__(fault=None, met=0)
        self._durable: dict[str, bytes] = {}
        self.reached, self.released = threading.Event(), threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def _meet(self, *faults: Fault) -> bool:
        if self.fault in faults:
            self.met += 1
            return True
        return False

    def _fail(self, number: int, *faults: Fault) -> None:
        if self._meet(*faults):
            raise OSError(number, os.strerror(number))

    def _wait(self) -> None:
        if self._meet(Fault.LATENCY):
            self.reached.set()
            assert self.released.wait(HELD_S)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        self._fail(errno.EIO, Fault.EIO)
        if flags & os.O_CREAT:
            self._fail(errno.ENOSPC, Fault.ENOSPC)
            self._fail(errno.EIO, Fault.WRITE_EIO)
        fd = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self._durable.setdefault(path, b"")
        return fd

    def preadv(self, fd: int, views: Sequence[memoryview], offset: int, flags: int = 0) -> int:
        self._fail(errno.EIO, Fault.EIO, Fault.READ_EIO)
        if not flags:
            self._wait()
        (view,) = views
        if self._meet(Fault.SHORT):
            return os.preadv(fd, [view[: max(1, len(view) // 2)]], offset, flags)
        got = os.preadv(fd, [view], offset, flags)
        if self._meet(Fault.ZEROS):
            view[:got] = bytes(got)
        if self._meet(Fault.STALE):
            view[:got] = os.pread(fd, got, max(0, offset - BLOCK)).ljust(got, b"\7")
        return got

    def pwrite(self, fd: int, data: Any, offset: int) -> int:
        self._fail(errno.EIO, Fault.EIO, Fault.WRITE_EIO)
        if (offset + len(data)) > os.fstat(fd).st_size:
            self._fail(errno.ENOSPC, Fault.ENOSPC)
        if self._meet(Fault.LOST):
            return len(data)
        if self._meet(Fault.SHORT) and len(data) > 1:
            return os.pwrite(fd, memoryview(data)[: len(data) // 2], offset)
        return os.pwrite(fd, data, offset)

    def pwritev(self, fd: int, pieces: Sequence[Any], offset: int) -> int:
        return self.pwrite(fd, b"".join(pieces), offset)

    def fdatasync(self, fd: int) -> None:
        self._sync(fd)

    def fsync(self, fd: int) -> None:
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        is_directory = os.path.isdir(path)
        self._fail(errno.EIO, Fault.EIO)
        if is_directory:
            self._fail(errno.EIO, Fault.DIRECTORY_SYNC)
            return
        self._wait()
        if self._meet(Fault.SYNC):
            self._revert(path)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        with open(path, "rb") as file:
            self._durable[path] = file.read()

    def _revert(self, path: str) -> None:
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            file.write(self._durable.get(path, b"").ljust(size, b"\0")[:size])

    def ftruncate(self, fd: int, size: int) -> None:
        self._fail(errno.EIO, Fault.EIO, Fault.WRITE_EIO)
        os.ftruncate(fd, size)

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        self._fail(errno.EIO, Fault.EIO, Fault.WRITE_EIO)
        self._fail(errno.ENOSPC, Fault.ENOSPC)
        os.posix_fallocate(fd, offset, length)

    @contextmanager
    def armed(self, fault: Fault) -> Iterator[None]:
        """It goes wrong meanwhile; what waits at the end goes on."""
        self.fault, self.met = fault, 0
        try:
            yield
        finally:
            self.fault = None
            self.released.set()


@contextmanager
def failing_calls() -> Iterator[FailingCalls]:
    """In the place of ``os`` meanwhile; nothing fails yet."""
    calls = FailingCalls()
    with pytest.MonkeyPatch.context() as patch:
        for module in (pool, pool_directory):
            patch.setattr(module, "os", calls)
        yield calls
