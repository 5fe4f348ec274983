"""Records what the core itself asks of a disk, in one process: its pool's system calls, its index, its catalog, its journal.

The modules that own pool files get another ``os`` (and ``open``, and ``shutil``) that notes what it passes on, as the
operations of tests/crash/disk_model.py. What the index, the catalog and the mapped journal hold is noted whole,
each time it has changed: they are small here. Time counts operations; each takes one tick, one after the other.
"""

import builtins
import io
import os
import pathlib
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest
from rocksdict import WriteBatch

from metadata.catalog import Row
from metadata.catalog_memory import MemoryCatalog
from metadata.index import Index
from replication import pool, pool_directory
from tests.crash.disk_model import ROOT, Bind, Recording, Resize, Sync, Write

T = TypeVar("T")

Samples = list[tuple[int, Any]]
"""(tick, content) of each change."""


def newest(samples: Samples, at: int) -> int:
    """Which sample is the newest at a tick; -1: none yet."""
    return sum(tick <= at for tick, _ in samples) - 1


class Recorder:
    """What happened so far below one directory, and to the rest of a node's state."""

    def __init__(self, root: pathlib.Path, journal: pathlib.Path) -> None:
        self.root, self._journal = str(root), journal
        self.recording = Recording()
        self.now = 1
        self.moments: list[int] = []
        """Ticks at which the power may fail: each leaves other states than the one before."""
        self.index: Samples = []
        self.catalog: Samples = []
        self.journal: Samples = []
        self._lock = threading.RLock()
        self._inodes = {self.root: ROOT}
        self._by_fd: dict[int, int] = {}
        for path in sorted(root.rglob("*")):
            inode = self._new(str(path))
            self.recording.names[self._inodes[str(path.parent)], path.name] = inode
            if path.is_dir():
                self.recording.directories.add(inode)
            else:
                self.recording.contents[inode] = path.read_bytes()

    def _new(self, path: str) -> int:
        inode = self._inodes[path] = len(self.recording.paths) + 1
        self.recording.paths[inode] = path.removeprefix(self.root + "/")
        return inode

    def inode(self, path: str) -> int | None:
        """Of a path below the root."""
        return self._inodes.get(path)

    def inode_of(self, fd: int) -> int | None:
        """Of an open file."""
        return self._by_fd.get(fd)

    def note(self, make: Callable[[int, int], Any], call: Callable[[], T]) -> T:
        """One call: what it does to the disk, from now till the next tick, and the call itself."""
        with self._lock:
            self.sample_journal()
            result = call()
            operation = make(self.now, self.now + 1)
            self.recording.operations.append(operation)
            self.moments.append(self.now + 1 if isinstance(operation, Sync) else self.now)
            self.now += 2
            return result

    def changed(self, samples: Samples, content: Any) -> None:
        """The index or the catalog is this now."""
        with self._lock:
            self.sample_journal()
            samples.append((self.now, content))
            self.moments.append(self.now)
            self.now += 1

    def sample_journal(self) -> None:
        """The journal's pages as they are now."""
        content = self._journal.read_bytes() if self._journal.exists() else b""
        if not self.journal or self.journal[-1][1] != content:
            self.journal.append((self.now, content))

    def mark(self) -> int:
        """A tick by which all that was noted so far has ended, and nothing else has begun."""
        with self._lock:
            self.sample_journal()
            self.moments.append(self.now)
            self.now += 1
            return self.now - 1

    def opened(self, fd: int, path: str, *, is_new: bool, is_empty: bool) -> None:
        """A file or directory was opened, perhaps made or emptied."""
        if is_new:
            inode, parent = self._new(path), self._inodes[os.path.dirname(path)]
            name = os.path.basename(path)
            self.note(lambda start, end: Bind(start, end, ((parent, name, inode),)), lambda: None)
        elif is_empty:
            self.note(lambda start, end: Resize(start, end, self._inodes[path], 0), lambda: None)
        self._by_fd[fd] = self._inodes[path]

    def made_directories(self, path: str) -> None:
        """A directory, and those above it, are there now."""
        if path in self._inodes:
            return
        self.made_directories(os.path.dirname(path))
        inode, parent = self._new(path), self._inodes[os.path.dirname(path)]
        self.recording.directories.add(inode)
        name = os.path.basename(path)
        self.note(lambda start, end: Bind(start, end, ((parent, name, inode),)), lambda: None)

    def bound(self, *changes: tuple[str, int | None]) -> None:
        """Names have changed, all at once."""
        told = tuple((self._inodes[os.path.dirname(p)], os.path.basename(p), inode) for p, inode in changes)
        self.note(lambda start, end: Bind(start, end, told), lambda: None)
        for path, inode in changes:
            if inode is None:
                del self._inodes[path]
            else:
                self._inodes[path] = inode

    def below(self, path: str) -> list[str]:
        """All names at and below a path, the deepest first."""
        return sorted(
            (p for p in self._inodes if p == path or p.startswith(path + "/")), key=len, reverse=True
        )


class RecordedOs(SimpleNamespace):
    """``os`` for the modules that own pool files."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__(_recorder=recorder)

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: str, flags: int, mode: int = 0o777) -> int:
        recorder = self._recorder
        fd = os.open(path, flags, mode)
        if recorder.inode(path) is not None or flags & os.O_CREAT:
            is_new = recorder.inode(path) is None
            recorder.opened(fd, path, is_new=is_new, is_empty=bool(flags & os.O_TRUNC))
        return fd

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return self._write(fd, bytes(data), offset)

    def pwritev(self, fd: int, pieces: list[bytes], offset: int) -> int:
        return self._write(fd, b"".join(pieces), offset)

    def _write(self, fd: int, data: bytes, offset: int) -> int:
        inode = self._recorder.inode_of(fd)
        written: int = self._recorder.note(
            lambda start, end: Write(start, end, inode, offset, data), lambda: os.pwrite(fd, data, offset)
        )
        assert written == len(data)
        return written

    def fdatasync(self, fd: int) -> None:
        self._sync(fd)

    def fsync(self, fd: int) -> None:
        self._sync(fd)

    def _sync(self, fd: int) -> None:
        inode = self._recorder.inode_of(fd)
        self._recorder.note(lambda start, end: Sync(start, end, inode), lambda: None)

    def ftruncate(self, fd: int, size: int) -> None:
        inode = self._recorder.inode_of(fd)
        self._recorder.note(
            lambda start, end: Resize(start, end, inode, size), lambda: os.ftruncate(fd, size)
        )

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        inode, size = self._recorder.inode_of(fd), offset + length
        self._recorder.note(
            lambda start, end: Resize(start, end, inode, size, only_grows=True),
            lambda: os.posix_fallocate(fd, offset, length),
        )

    def makedirs(self, path: str, mode: int = 0o777, exist_ok: bool = False) -> None:
        os.makedirs(path, mode, exist_ok)
        self._recorder.made_directories(path)

    def unlink(self, path: str) -> None:
        os.unlink(path)
        self._recorder.bound((path, None))

    def rename(self, source: str, target: str) -> None:
        os.rename(source, target)
        self._recorder.bound((source, None), (target, self._recorder.inode(source)))


class _RecordedFile(io.FileIO):
    """A file that is written from its beginning to its end."""

    def __init__(self, calls: RecordedOs, path: str) -> None:
        self._calls, self._position = calls, 0
        super().__init__(path, "wb", opener=lambda name, flags: calls.open(name, flags, 0o666))

    def write(self, data: Any) -> int:
        count: int = self._calls.pwrite(self.fileno(), bytes(data), self._position)
        self._position += count
        return count


@contextmanager
def recorded(recorder: Recorder) -> Iterator[None]:
    """The core's pool files are recorded meanwhile."""
    calls = RecordedOs(recorder)

    def open_file(path: Any, mode: str = "r", **arguments: Any) -> Any:
        if mode == "wb" and str(path).startswith(recorder.root + "/"):
            return io.BufferedWriter(_RecordedFile(calls, str(path)))
        return builtins.open(path, mode, **arguments)

    def rmtree(path: str, ignore_errors: bool = False) -> None:
        shutil.rmtree(path, ignore_errors)
        for each in recorder.below(path):
            recorder.bound((each, None))

    with pytest.MonkeyPatch.context() as patch:
        for module in (pool, pool_directory):
            patch.setattr(module, "os", calls)
        patch.setattr(pool_directory, "open", open_file, raising=False)
        patch.setattr(pool_directory, "shutil", SimpleNamespace(rmtree=rmtree))
        yield


class RecordedCatalog(MemoryCatalog):
    """Tells of each transaction."""

    def __init__(self, recorder: Recorder | None = None) -> None:
        super().__init__()
        self.recorder = recorder

    def load(self, rows: dict[bytes, Row]) -> None:
        """Holds these from now on."""
        self._rows = dict(rows)
        self._history.restart(max((row.revision for row in rows.values()), default=0))

    def _write(self, change: Any, lease: int) -> int:
        revision = super()._write(change, lease)
        if self.recorder is not None:
            self.recorder.changed(self.recorder.catalog, dict(self._rows))
        return revision


class RecordedIndex(Index):
    """Tells of each change; can be made to hold what it held once. Outlives the nodes that use it."""

    recorder: Recorder | None = None

    def _write(self, writes: WriteBatch) -> None:
        super()._write(writes)
        self._tell()

    def ingest(self, path: str) -> None:
        super().ingest(path)
        self._tell()

    def _tell(self) -> None:
        if self.recorder is not None:
            self.recorder.changed(self.recorder.index, self.content())

    def content(self) -> dict[bytes, bytes]:
        """All of it."""
        return {bytes(key): bytes(value) for key, value in self._db.items()}

    def load(self, content: dict[bytes, bytes]) -> None:
        """Holds this from now on."""
        writes = WriteBatch(raw_mode=True)
        for key in self.content():
            if key not in content:
                writes.delete(key)
        for key, value in content.items():
            writes.put(key, value)
        self._db.write(writes)

    def close(self) -> None:
        """Nodes close it at their end; see ``end``."""

    def end(self) -> None:
        """Closes it."""
        super().close()
