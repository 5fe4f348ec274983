"""Turns strace's log of a program into a recording of what it did to files below some directories.

The log has one file a thread, times in nanoseconds, every string in hexadecimal and in full. What the
recorder cannot follow (O_DSYNC, links, io_uring, msync) is an error, never ignored; ``sync`` and ``syncfs``
count for nothing. It cannot see stores into shared mappings: ``shared_mappings`` names the files that have
some, so that a test can sample them or say why it need not.
"""

import os
import pathlib
import re
from collections.abc import Iterable

from tests.crash.disk_model import ROOT, Bind, Recording, Resize, Sync, Write

SYSCALLS = (
    "open,openat,openat2,creat,write,pwrite64,writev,pwritev,pwritev2,ftruncate,truncate,fallocate,fsync,fdatasync,"
    "msync,sync,syncfs,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,link,linkat,symlink,symlinkat,"
    "sendfile,copy_file_range,splice,lseek,mmap,io_uring_setup"
)
OPTIONS = (
    *("-ff", "-y", "-v", "-xx", "-qq", "-e", "signal=none", "--seccomp-bpf", "-s", "16777216"),
    *("--absolute-timestamps=format:unix,precision:ns", "--syscall-times=ns", "-e", f"trace={SYSCALLS}"),
)

_LINE = re.compile(
    r"(\d+)\.(\d{9}) (\w+)\((.*)\)\s+= (-?\w+)(?:<[^>]*>)?(?:\(deleted\))?(.*)<(\d+)\.(\d{9})>"
)
_DESCRIPTOR = re.compile(r"(\d+|AT_FDCWD)<([^>]*)>(\(deleted\))?")
_STRING = re.compile(r'"((?:\\x[0-9a-f]{2})*)"(\.\.\.)?')
_IGNORED = {"log", "log.1", "lock", "LOG", "LOCK"}
"""Files whose content nobody reads back."""


class Unfollowed(Exception):
    """The program did what the recorder cannot follow."""


class StraceLog:
    """A recording in the making."""

    def __init__(self, roots: Iterable[pathlib.Path]) -> None:
        """Take in the directories as they are now: that is the durable beginning."""
        self.recording = Recording()
        self.shared_mappings: set[str] = set()
        self._roots = [str(root) for root in roots]
        self._live: dict[str, int] = {}
        """The inode of each path, as the log goes on."""
        self._positions: dict[tuple[int, str], int] = {}
        self._mapped: set[int] = set()
        for root in self._roots:
            self._add(root, is_directory=True)
            for folder, folders, files in os.walk(root):
                for name in folders:
                    self._add(f"{folder}/{name}", is_directory=True)
                for name in files:
                    inode = self._add(f"{folder}/{name}", is_directory=False)
                    self.recording.contents[inode] = pathlib.Path(folder, name).read_bytes()
        self.recording.names = {self._key(path): inode for path, inode in self._live.items()}

    def read(self, logs: Iterable[pathlib.Path]) -> None:
        """Take in a program's whole log."""
        lines = [line for log in logs for line in log.read_text().splitlines() if "+++" not in line]
        for line in sorted(lines, key=lambda line: line.partition(" ")[0]):
            match = _LINE.fullmatch(line)
            if match is None:
                raise Unfollowed(line[:200])
            seconds, fraction, name, arguments, result, _, taken, taken_fraction = match.groups()
            if name == "io_uring_setup" or (
                name == "msync" and int(arguments.split(",")[0], 0) in self._mapped
            ):
                raise Unfollowed(name)
            start_ns = int(seconds + fraction)
            times = start_ns, start_ns + int(taken + taken_fraction)
            if not result.startswith("-") and any(root in _plain(arguments) for root in self._roots):
                getattr(self, f"_{name}", self._unfollowed)(times, arguments, int(result, 0))
        self.recording.operations.sort(key=lambda operation: operation.start_ns)

    def sampled(self, path: str, samples: Iterable[tuple[int, int, bytes]]) -> None:
        """Take in what a mapping was seen to hold (time, offset, bytes): written then, never synced."""
        inode = self._live[path]
        for time_ns, offset, data in samples:
            self.recording.operations.append(Write(time_ns, time_ns, inode, offset, data, grows=False))
        self.recording.operations.sort(key=lambda operation: operation.start_ns)

    # One method a system call: (its times, its arguments as printed, its result).

    def _openat(self, times: tuple[int, int], text: str, result: int) -> None:
        path, flags = self._path(text), text.rsplit('"', 1)[1]
        if not self._followed(path):
            return
        if "O_DSYNC" in flags or "O_SYNC" in flags or "O_TMPFILE" in flags:
            raise Unfollowed(f"{flags} {path}")
        if path not in self._live and "O_CREAT" in flags:
            inode = self._add(path, is_directory=False)
            self.recording.operations.append(Bind(*times, ((*self._key(path), inode),)))
        elif path in self._live and "O_TRUNC" in flags:
            self.recording.operations.append(Resize(*times, self._live[path], 0))
        self._positions[result, path] = 0

    def _lseek(self, times: tuple[int, int], text: str, result: int) -> None:
        descriptor, path = self._descriptor(text)
        self._positions[descriptor, path] = result

    def _write(self, times: tuple[int, int], text: str, result: int) -> None:
        key = self._descriptor(text)
        position = self._positions.get(key, 0)
        self._positions[key] = position + result
        self._written(times, key[1], offset=position, data=_strings(text)[:result])

    _writev = _write

    def _pwrite64(self, times: tuple[int, int], text: str, result: int) -> None:
        offset = int(text.rsplit(", ", 1)[1])
        self._written(times, self._descriptor(text)[1], offset=offset, data=_strings(text)[:result])

    _pwritev = _pwrite64

    def _pwritev2(self, times: tuple[int, int], text: str, result: int) -> None:
        text, flags = text.rsplit(", ", 1)
        if flags != "0":
            raise Unfollowed(f"pwritev2 with {flags}")
        self._pwrite64(times, text, result)

    def _sendfile(self, times: tuple[int, int], text: str, result: int) -> None:
        target, source = _DESCRIPTOR.finditer(text)
        begin = re.search(r"\[(\d+)\]", text)
        if begin is None:
            raise Unfollowed(f"sendfile without an offset: {text[:200]}")
        data = self._now(_plain(source[2]))[int(begin[1]) : int(begin[1]) + result]
        key = int(target[1]), _plain(target[2])
        position = self._positions.get(key, 0)
        self._positions[key] = position + result
        self._written(times, key[1], offset=position, data=data)

    def _ftruncate(self, times: tuple[int, int], text: str, result: int) -> None:
        inode = self._live.get(self._descriptor(text)[1])
        if inode is not None:
            self.recording.operations.append(Resize(*times, inode, int(text.rsplit(", ", 1)[1])))

    def _fallocate(self, times: tuple[int, int], text: str, result: int) -> None:
        inode = self._live.get(self._descriptor(text)[1])
        mode, offset, length = text.rsplit(", ", 3)[1:]
        if inode is None:
            return
        if "PUNCH_HOLE" in mode or "ZERO_RANGE" in mode:
            zeros = bytes(int(length))
            self.recording.operations.append(
                Write(*times, inode, int(offset), zeros, "KEEP_SIZE" not in mode)
            )
        elif mode == "0":
            self.recording.operations.append(Resize(*times, inode, int(offset) + int(length), True))
        elif mode != "FALLOC_FL_KEEP_SIZE":
            raise Unfollowed(f"fallocate with {mode}")

    def _fsync(self, times: tuple[int, int], text: str, result: int) -> None:
        inode = self._live.get(self._descriptor(text)[1])
        if inode is not None:
            self.recording.operations.append(Sync(*times, inode))

    _fdatasync = _fsync

    def _mkdir(self, times: tuple[int, int], text: str, result: int) -> None:
        path = self._path(text)
        inode = self._add(path, is_directory=True)
        self.recording.operations.append(Bind(*times, ((*self._key(path), inode),)))

    _mkdirat = _mkdir

    def _unlink(self, times: tuple[int, int], text: str, result: int) -> None:
        path = self._path(text)
        self._live.pop(path)
        self.recording.operations.append(Bind(*times, ((*self._key(path), None),)))

    _unlinkat = _rmdir = _unlink

    def _rename(self, times: tuple[int, int], text: str, result: int) -> None:
        old, new = self._paths(text)
        moved = {
            path: path.replace(old, new, 1)
            for path in self._live
            if path == old or path.startswith(old + "/")
        }
        if "RENAME_" in text or not moved or not self._followed(new):
            raise Unfollowed(f"rename {text[:200]}")
        for path, target in moved.items():
            inode = self._live[target] = self._live.pop(path)
            self.recording.paths[inode] = target
        changes = ((*self._key(old), None), (*self._key(new), self._live[new]))
        self.recording.operations.append(Bind(*times, changes))

    _renameat = _renameat2 = _rename

    def _mmap(self, times: tuple[int, int], text: str, result: int) -> None:
        if "MAP_SHARED" in text and "PROT_WRITE" in text:
            self.shared_mappings.add(self._descriptor(text)[1])
            self._mapped.add(result)

    def _unfollowed(self, times: tuple[int, int], text: str, result: int) -> None:
        raise Unfollowed(_plain(text)[:200])

    # The pieces they share.

    def _written(self, times: tuple[int, int], path: str, *, offset: int, data: bytes) -> None:
        if path in self._live and path.rsplit("/", 1)[1] not in _IGNORED:
            self.recording.operations.append(Write(*times, self._live[path], offset, data))

    def _now(self, path: str) -> bytes:
        """What a file holds by now."""
        inode = self._live[path]
        content = bytearray(self.recording.contents.get(inode, b""))
        for operation in self.recording.operations:
            if isinstance(operation, Write) and operation.inode == inode:
                end = operation.offset + len(operation.data)
                content += bytes(max(0, end - len(content)))
                content[operation.offset : end] = operation.data
            elif isinstance(operation, Resize) and operation.inode == inode:
                content = content[: operation.size] if not operation.only_grows else content
                content += bytes(max(0, operation.size - len(content)))
        return bytes(content)

    def _add(self, path: str, *, is_directory: bool) -> int:
        inode = len(self.recording.paths) + 1
        self._live[path] = inode
        self.recording.paths[inode] = path
        if is_directory:
            self.recording.directories.add(inode)
        return inode

    def _key(self, path: str) -> tuple[int, str]:
        if path in self._roots:
            return ROOT, path.rsplit("/", 1)[1]
        folder, name = path.rsplit("/", 1)
        return self._live[folder], name

    def _followed(self, path: str) -> bool:
        return any(path == root or path.startswith(root + "/") for root in self._roots)

    def _paths(self, text: str) -> list[str]:
        """The paths among the arguments, made absolute by the directory descriptors before them."""
        found, folder = [], ""
        for match in re.finditer(f"{_DESCRIPTOR.pattern}|{_STRING.pattern}", text):
            if match[2] is not None:
                folder = _plain(match[2])
            else:
                found.append(os.path.normpath(os.path.join(folder, _plain(match[4]))))
        return found

    def _path(self, text: str) -> str:
        return self._paths(text)[0]

    def _descriptor(self, text: str) -> tuple[int, str]:
        """The first descriptor's number and path ('' when its file has no name any more)."""
        match = _DESCRIPTOR.search(text)
        assert match is not None, text[:200]
        return int(match[1]), "" if match[3] else _plain(match[2])


def _plain(text: str) -> str:
    """Hexadecimal escapes undone, for paths."""
    return re.sub(r"(?:\\x[0-9a-f]{2})+", lambda m: os.fsdecode(_bytes(m[0])), text[:4096])


def _bytes(escaped: str) -> bytes:
    return bytes.fromhex(escaped.replace("\\x", ""))


def _strings(text: str) -> bytes:
    """All strings among the arguments, one behind the other; ``text`` must hold them in full."""
    found = []
    for match in _STRING.finditer(text):
        if match[2]:
            raise Unfollowed("strace cut a string short")
        found.append(_bytes(match[1]))
    return b"".join(found)
