"""The calls that are drawn at random, each as plain system calls and command lines; scripts that replay a failure copy from here.

Hence nothing of ours is imported, and every method stands by itself. A path begins with the number of the node
whose mount it goes through: "1/a/b". Every outcome is a plain value: "ok", a number, bytes, or an error's name.
"""

import ctypes
import errno
import json
import mmap
import os
import random
import signal
import stat
import subprocess
import zlib

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_uint]

LONG_AGO_NS = 10**18
"""Times before this (2001) were set by utimensat; those of now are no business of a comparison."""


def data(fill: int, length: int) -> bytes:
    """The bytes that a write of this number writes; 0: zeros."""
    return random.Random(fill).randbytes(length) if fill else bytes(length)


def digest(value: object) -> object:
    """An outcome, short enough to be printed."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes {zlib.crc32(value):08x}"
    if isinstance(value, dict):
        return {key: digest(one) for key, one in value.items()}
    if isinstance(value, tuple | list):
        return [digest(one) for one in value]
    return value


class Files:
    """One folder, as seen through each node's mount, and the files open in it."""

    def __init__(self, roots: list[str], folder: str) -> None:
        self.roots, self.folder = roots, folder
        self.fds: dict[int, int] = {}
        self.trash: dict[int, int] = {}

    def call(self, name: str, *arguments: object) -> object:
        """One call's outcome."""
        try:
            return getattr(self, name)(*arguments)
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]

    def at(self, path: str) -> str:
        """The path to give to the system."""
        node, _, inner = path.partition("/")
        return os.path.join(self.roots[int(node)], self.folder, inner)

    # Files.

    def open(self, path: str, handle: int, flags: int, mode: int) -> str:
        self.fds[handle] = os.open(self.at(path), flags, mode)
        return "ok"

    def close(self, handle: int) -> str:
        os.close(self.fds.pop(handle))
        return "ok"

    def pread(self, handle: int, offset: int, length: int, into: int) -> bytes:
        """``into``: how far behind the beginning of a page the memory begins."""
        with (
            mmap.mmap(-1, into + length + 1) as memory,
            memoryview(memory) as whole,
            whole[into : into + length] as part,
        ):
            got = os.preadv(self.fds[handle], [part], offset)
            return bytes(part[:got])

    def pwrite(self, handle: int, offset: int, length: int, fill: int, into: int) -> int:
        with (
            mmap.mmap(-1, into + length + 1) as memory,
            memoryview(memory) as whole,
            whole[into : into + length] as part,
        ):
            part[:] = data(fill, length)
            return os.pwrite(self.fds[handle], part, offset)

    def read(self, handle: int, length: int) -> bytes:
        return os.read(self.fds[handle], length)

    def write(self, handle: int, length: int, fill: int) -> int:
        return os.write(self.fds[handle], data(fill, length))

    def lseek(self, handle: int, offset: int, whence: int) -> int:
        return os.lseek(self.fds[handle], offset, whence)

    def holes(self, handle: int) -> object:
        """Where SEEK_DATA skips there is nothing but zeros, and both ways lead to the end."""
        size, end, position = (
            os.fstat(self.fds[handle]).st_size,
            0,
            os.lseek(self.fds[handle], 0, os.SEEK_CUR),
        )
        while end < size:
            try:
                start = os.lseek(self.fds[handle], end, os.SEEK_DATA)
            except OSError as exc:
                if exc.errno != errno.ENXIO:
                    raise
                start = size
            skipped = os.pread(self.fds[handle], start - end, end)
            if any(skipped) or len(skipped) != start - end:
                return f"a hole with data in it, {end}..{start}"
            end = os.lseek(self.fds[handle], start, os.SEEK_HOLE) if start < size else size
        os.lseek(self.fds[handle], position, os.SEEK_SET)
        return "zeros"

    def seek_past_the_end(self, handle: int, beyond: int, whence: int) -> object:
        return os.lseek(self.fds[handle], os.fstat(self.fds[handle]).st_size + beyond, whence)

    def mmap_read(self, handle: int, offset: int, length: int) -> bytes:
        with mmap.mmap(self.fds[handle], offset + length, prot=mmap.PROT_READ) as mapping:
            return mapping[offset : offset + length]

    def mmap_write(self, handle: int, offset: int, length: int, fill: int, flush: bool) -> str:
        with mmap.mmap(self.fds[handle], offset + length) as mapping:
            mapping[offset : offset + length] = data(fill, length)
            if flush:
                mapping.flush()
        return "ok"

    def ftruncate(self, handle: int, size: int) -> str:
        os.ftruncate(self.fds[handle], size)
        return "ok"

    def truncate(self, path: str, size: int) -> str:
        os.truncate(self.at(path), size)
        return "ok"

    def fallocate(self, handle: int, mode: int, offset: int, length: int) -> str:
        if libc.fallocate(self.fds[handle], mode, offset, length):
            raise OSError(ctypes.get_errno(), "fallocate")
        return "ok"

    def copy(self, source: int, offset: int, target: int, to: int, length: int) -> int:
        """copy_file_range until all is copied: it may do less than it was asked for."""
        done = 0
        while done < length:
            some = os.copy_file_range(
                self.fds[source], self.fds[target], length - done, offset + done, to + done
            )
            if not some:
                break
            done += some
        return done

    def fsync(self, handle: int) -> str:
        os.fsync(self.fds[handle])
        return "ok"

    def fdatasync(self, handle: int) -> str:
        os.fdatasync(self.fds[handle])
        return "ok"

    def sync_file_range(self, handle: int, offset: int, length: int, flags: int) -> str:
        if libc.sync_file_range(self.fds[handle], offset, length, flags):
            raise OSError(ctypes.get_errno(), "sync_file_range")
        return "ok"

    def uncache(self, handle: int) -> str:
        """What is read next comes from the filesystem, not from the page cache."""
        os.fsync(self.fds[handle])
        os.posix_fadvise(self.fds[handle], 0, 0, os.POSIX_FADV_DONTNEED)
        return "ok"

    def fstat(self, handle: int) -> tuple:
        found = os.fstat(self.fds[handle])
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        return oct(found.st_mode), found.st_uid, found.st_gid, size, found.st_nlink

    # Names.

    def mkdir(self, path: str, mode: int) -> str:
        os.mkdir(self.at(path), mode)
        return "ok"

    def mknod(self, path: str, mode: int) -> str:
        os.mknod(self.at(path), stat.S_IFREG | mode)
        return "ok"

    def rmdir(self, path: str) -> str:
        os.rmdir(self.at(path))
        return "ok"

    def unlink(self, path: str) -> str:
        os.unlink(self.at(path))
        return "ok"

    def symlink(self, path: str, target: str) -> str:
        os.symlink(target, self.at(path))
        return "ok"

    def readlink(self, path: str) -> str:
        return os.readlink(self.at(path))

    def rename(self, path: str, new: str, flags: int) -> str:
        if libc.renameat2(-100, os.fsencode(self.at(path)), -100, os.fsencode(self.at(new)), flags):
            raise OSError(ctypes.get_errno(), "renameat2")
        return "ok"

    def listdir(self, path: str) -> list:
        return sorted(os.listdir(self.at(path)))

    # Attributes.

    def stat(self, path: str) -> tuple:
        """Type and mode, owner, size, names; times only where they were set to long ago."""
        found = os.lstat(self.at(path))
        size = found.st_size if stat.S_ISREG(found.st_mode) else 0
        times = found.st_mtime_ns if found.st_mtime_ns < LONG_AGO_NS else 0
        return oct(found.st_mode), found.st_uid, found.st_gid, size, found.st_nlink, times

    def chmod(self, path: str, mode: int) -> str:
        os.chmod(self.at(path), mode)
        return "ok"

    def fchmod(self, handle: int, mode: int) -> str:
        os.fchmod(self.fds[handle], mode)
        return "ok"

    def chown(self, path: str, uid: int, gid: int) -> str:
        os.chown(self.at(path), uid, gid, follow_symlinks=False)
        return "ok"

    def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> tuple:
        os.utime(self.at(path), ns=(atime_ns, mtime_ns))
        found = os.stat(self.at(path))
        return found.st_atime_ns, found.st_mtime_ns

    def setxattr(self, path: str, name: str, length: int, fill: int, flags: int) -> str:
        os.setxattr(self.at(path), name, data(fill, length), flags)
        return "ok"

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self.at(path), name)

    def listxattr(self, path: str) -> list:
        return sorted(name for name in os.listxattr(self.at(path)) if name.startswith("user."))

    def removexattr(self, path: str, name: str) -> str:
        os.removexattr(self.at(path), name)
        return "ok"

    def statvfs(self, path: str) -> int:
        return os.statvfs(self.at(path)).f_namemax

    def tree(self, path: str) -> dict:
        """Everything below a folder: attributes, contents, targets, extended attributes."""
        found, waiting = {}, [path]
        while waiting:
            path = waiting.pop()
            facts, more = self.call("stat", path), b""
            kind = stat.S_IFMT(int(str(facts[0]), 8)) if isinstance(facts, tuple) else 0
            if kind == stat.S_IFDIR:
                waiting += [f"{path.rstrip('/')}/{name}" for name in self.listdir(path)]
            elif kind == stat.S_IFLNK:
                more = os.fsencode(self.readlink(path))
            elif kind:
                with open(self.at(path), "rb") as file:
                    more = file.read()
            names = self.listxattr(path) if kind in (stat.S_IFDIR, stat.S_IFREG) else []
            found[path.partition("/")[2]] = facts, more, [(name, self.getxattr(path, name)) for name in names]
        return found

    # The command line.

    def vdiskfs(self, *arguments: str) -> dict | None:
        """Its answer; None if it refuses."""
        done = subprocess.run(
            ["vdiskfs", *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode:
            return None
        return json.loads(done.stdout) if "--json" in arguments else {}

    def verb(self, *arguments: str) -> str:
        return "refused" if self.vdiskfs(*arguments) is None else "ok"

    def snapshot(self, paths: list, name: str) -> str:
        return self.verb("snap", "create", *(f"{self.at(path)}@{name}" for path in paths))

    def remove_snapshot(self, path: str, name: str) -> str:
        return self.verb("snap", "rm", f"{self.at(path)}@{name}")

    def rename_snapshot(self, path: str, name: str, new: str) -> str:
        return self.verb("snap", "rename", f"{self.at(path)}@{name}", new)

    def read_snapshot(self, path: str, name: str) -> bytes:
        node, _, inner = path.partition("/")
        with open(os.path.join(self.roots[int(node)], ".snapshots", self.folder, inner, name), "rb") as file:
            return file.read()

    def rollback(self, path: str, name: str, keep_as: str) -> str:
        """What was there becomes a snapshot: ``keep_as``, or none."""
        answer = self.vdiskfs("snap", "rollback", "--json", f"{self.at(path)}@{name}")
        if answer is None:
            return "refused"
        kept = f"{self.at(path)}@{answer['kept']['name']}"
        return self.verb("snap", "rename", kept, keep_as) if keep_as else self.verb("snap", "rm", kept)

    def clone(self, path: str, name: str, new: str) -> str:
        """Of a snapshot, or of what it is now."""
        return self.verb("clone", self.at(path) + (f"@{name}" if name else ""), self.at(new))

    def flatten(self, path: str) -> str:
        return self.verb("flatten", self.at(path))

    def collect(self, path: str) -> str:
        return self.verb("gc", self.at(path))

    def remove(self, path: str, number: int) -> str:
        """With its snapshots, into the trash; for good if it gets no number there."""
        if not number:
            return self.verb("rm", "--snapshots", "--now", self.at(path))
        answer = self.vdiskfs("rm", "--snapshots", "--json", self.at(path))
        if answer is None:
            return "refused"
        self.trash[number] = answer["removed"][0]["id"]
        return "ok"

    def restore(self, path: str, number: int) -> str:
        """Out of the trash, to this path."""
        here = self.roots[int(path.partition("/")[0])]
        which = str(self.trash[number])
        return self.verb("trash", "restore", "--id", which, "--to", self.at(path), here)

    def purge(self, path: str, number: int) -> str:
        return self.verb(
            "trash", "purge", "--id", str(self.trash[number]), self.roots[int(path.partition("/")[0])]
        )

    def kill(self, path: str) -> str:
        """The daemon dies while what comes next is under way; the keeper starts another."""
        facts = self.vdiskfs("status", "--json", self.roots[int(path.partition("/")[0])])
        os.kill(facts["pid"] if facts and facts["pid"] else os.getpid(), signal.SIGKILL)
        return "ok"

    def remount(self, path: str) -> str:
        node = int(path.partition("/")[0])
        self.vdiskfs("umount", self.roots[node])
        top = os.path.dirname(self.roots[node])
        pool, state = os.path.join(top, "pool"), os.path.join(top, f"state{node}")
        return self.verb("mount", "--node", f"n{node}", "--state", state, pool, self.roots[node])
