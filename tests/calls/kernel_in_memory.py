"""The kernel's half of the calls, without a kernel: walks paths, keeps open files, and asks a daemon's handlers.

Only what Linux decides itself stands here (fs/namei.c, fs/read_write.c, fs/open.c); there is no cache and no owner but
root. What the kernel would send goes to the same functions that the channel and pyfuse3 call.
"""

import errno
import os
import stat
import struct
from dataclasses import dataclass
from typing import Any

import pyfuse3

from metadata.catalog import ROOT_ID
from metadata.errors import VdiskfsError
from tests.calls.memory_daemon import Daemon, DaemonThread
from tests.calls.plain_calls import LONG_AGO_NS, data
from tests.fusefs.mount_in_memory import Context, Fields

LINKS_MAX = 40
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
NOREPLACE, EXCHANGE = 1, 2
_WRITTEN = struct.Struct("<II")


@dataclass
class OpenFile:
    """What the kernel keeps of one."""

    inode: int
    number: int
    flags: int
    position: int = 0

    def check(self, *, reads: bool = False, writes: bool = False, error: int = errno.EBADF) -> None:
        access = self.flags & os.O_ACCMODE
        if (reads and access == os.O_WRONLY) or (writes and access == os.O_RDONLY):
            raise OSError(error, "not opened for that")


class KernelInMemory:
    """The calls of ``plain_calls.Files`` by name, on one folder."""

    def __init__(self, thread: DaemonThread, folder: str) -> None:
        self.thread, self.folder = thread, folder
        self.files: dict[int, OpenFile] = {}
        self.trash: dict[int, int] = {}
        self.ctx = Context(uid=os.geteuid(), gid=os.getegid(), pid=1)
        self.umask = os.umask(0)
        os.umask(self.umask)
        self.thread.ask(self._make_folder)

    async def _make_folder(self, daemon: Daemon) -> None:
        mode = stat.S_IFDIR | 0o755
        self.top = (await daemon.operations.mkdir(ROOT_ID, os.fsencode(self.folder), mode, self.ctx)).st_ino

    def call(self, name: str, *arguments: object) -> object:
        """One call's outcome."""
        if name in ("kill", "remount"):
            self.thread.restart(kill=name == "kill")
            return "ok"
        try:
            return self.thread.ask(lambda daemon: getattr(Calls(self, daemon), name)(*arguments))
        except pyfuse3.FUSEError as exc:
            return errno.errorcode[exc.errno]
        except VdiskfsError as exc:
            return errno.errorcode[exc.number]
        except OSError as exc:
            return errno.errorcode[exc.errno or 0]

    def clear(self) -> None:
        """After a failure: what is left is left, in a folder that nobody looks at again."""
        for handle in tuple(self.files):
            self.call("close", handle)


class Paths:
    """Walks through directories and links, asking one daemon."""

    def __init__(self, kernel: KernelInMemory, daemon: Daemon) -> None:
        self.kernel, self.daemon, self.operations = kernel, daemon, daemon.operations
        self.ctx: Any = kernel.ctx

    async def find(self, parent: int, name: str) -> pyfuse3.EntryAttributes | None:
        try:
            return await self.operations.lookup(parent, os.fsencode(name), self.ctx)
        except pyfuse3.FUSEError as exc:
            if exc.errno == errno.ENOENT:
                return None
            raise

    async def place(self, path: str, *, links: int = LINKS_MAX) -> tuple[int, str]:
        """The directory and the last name."""
        names = [name for name in path.partition("/")[2].split("/") if name]
        if not names:
            return self.kernel.top, "."
        return await self._walk(self.kernel.top, names, links)

    async def _walk(self, at: int, names: list[str], links: int) -> tuple[int, str]:
        for name in names[:-1]:
            at, _ = await self._follow(at, name, links)
            if not stat.S_ISDIR((await self.operations.getattr(at, self.ctx)).st_mode):
                raise OSError(errno.ENOTDIR, name)
        return at, names[-1]

    async def _follow(self, parent: int, name: str, links: int) -> tuple[int, pyfuse3.EntryAttributes]:
        """What a name stands for, through links."""
        found = await self.find(parent, name)
        if found is None:
            raise OSError(errno.ENOENT, name)
        if not stat.S_ISLNK(found.st_mode):
            return found.st_ino, found
        if not links:
            raise OSError(errno.ELOOP, name)
        target = os.fsdecode(await self.operations.readlink(found.st_ino, self.ctx))
        parent, last = await self._walk(parent, target.split("/"), links - 1)
        if not stat.S_ISDIR((await self.operations.getattr(parent, self.ctx)).st_mode):
            raise OSError(errno.ENOTDIR, last)
        return await self._follow(parent, last, links - 1)

    async def resolve(self, path: str, *, follow: bool = True) -> pyfuse3.EntryAttributes:
        parent, name = await self.place(path)
        if follow:
            return (await self._follow(parent, name, LINKS_MAX))[1]
        found = await self.find(parent, name)
        if found is None:
            raise OSError(errno.ENOENT, path)
        return found

    async def new(self, path: str) -> tuple[int, bytes]:
        """A place where nothing is."""
        parent, name = await self.place(path)
        if await self.find(parent, name) is not None:
            raise OSError(errno.EEXIST, path)
        return parent, os.fsencode(name)

    async def end_of_link(self, path: str) -> tuple[int, str]:
        """Where a file is made that is named through links that lead to nothing."""
        parent, name = await self.place(path)
        for _ in range(LINKS_MAX + 1):
            found = await self.find(parent, name)
            if found is None or not stat.S_ISLNK(found.st_mode):
                return parent, name
            target = os.fsdecode(await self.operations.readlink(found.st_ino, self.ctx))
            parent, name = await self._walk(parent, target.split("/"), LINKS_MAX)
        raise OSError(errno.ELOOP, path)

    async def path_of(self, path: str) -> str:
        """From the mount's root, as the command line says it: without links on the way."""
        parent, name = await self.place(path)
        names = [name]
        while parent != self.kernel.top:
            place = self.operations._namespace.place(parent)
            assert place is not None
            names.append(os.fsdecode(place.name))
            parent = place.parent
        return "/".join([self.kernel.folder, *reversed(names)])


class Calls(Paths):
    """Each call, answered by one daemon."""

    # Files.

    async def open(self, path: str, handle: int, flags: int, mode: int) -> str:
        file = await (self._create if flags & os.O_CREAT else self._open)(path, flags, mode)
        self.kernel.files[handle] = file
        self.kernel.thread.kernel.known.add(file.inode)
        return "ok"

    async def _create(self, path: str, flags: int, mode: int) -> OpenFile:
        parent, name = await self.place(path) if flags & os.O_EXCL else await self.end_of_link(path)
        found = await self.find(parent, name)
        if found is not None:
            if flags & os.O_EXCL:
                raise OSError(errno.EEXIST, path)
            if stat.S_ISDIR(found.st_mode):
                raise OSError(errno.EISDIR, path)
            return await self._opened(found, flags)
        mode &= ~self.kernel.umask
        info, made = await self.operations.create(parent, os.fsencode(name), mode, flags, self.ctx)
        return OpenFile(made.st_ino, info.fh, flags)

    async def _open(self, path: str, flags: int, mode: int) -> OpenFile:
        found = await self.resolve(path, follow=not flags & os.O_NOFOLLOW)
        if flags & os.O_DIRECTORY and not stat.S_ISDIR(found.st_mode):
            raise OSError(errno.ENOTDIR, path)
        if stat.S_ISLNK(found.st_mode):
            raise OSError(errno.ELOOP, path)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, path)
        return await self._opened(found, flags)

    async def _opened(self, found: pyfuse3.EntryAttributes, flags: int) -> OpenFile:
        info = await self.operations.open(found.st_ino, flags & ~(os.O_CREAT | os.O_EXCL), self.ctx)
        return OpenFile(found.st_ino, info.fh, flags)

    async def close(self, handle: int) -> str:
        file = self.kernel.files.pop(handle)
        await self.operations.flush(file.number)
        await self.operations.release(file.number)
        if all(other.inode != file.inode for other in self.kernel.files.values()):
            self.kernel.thread.kernel.known.discard(file.inode)
            await self.operations.forget([(file.inode, 1)])
        return "ok"

    async def _read(self, file: OpenFile, offset: int, length: int) -> bytes:
        file.check(reads=True)
        found = self.daemon.vdisks.heads_by_handle.get(file.number)
        at_once = None if found is None or length > 1 << 20 else found.read_nowait(offset, length)  # type: ignore[union-attr]
        return bytes(
            await self.daemon.requests.read(file.number, offset, length) if at_once is None else at_once
        )

    async def _write(self, file: OpenFile, offset: int, content: bytes) -> int:
        file.check(writes=True)
        if file.flags & os.O_APPEND:
            offset = (await self.operations.getattr(file.inode, self.ctx)).st_size
        if content:
            head = self.daemon.vdisks.heads_by_handle.get(file.number)
            if head is None or not head.write_nowait(offset, memoryview(content)):  # type: ignore[union-attr]
                await self.daemon.requests.write(file.number, offset, content, kill_suid=False)
        return offset

    async def pread(self, handle: int, offset: int, length: int, into: int) -> bytes:
        return await self._read(self.kernel.files[handle], offset, length)

    async def pwrite(self, handle: int, offset: int, length: int, fill: int, into: int) -> int:
        await self._write(self.kernel.files[handle], offset, data(fill, length))
        return length

    async def read(self, handle: int, length: int) -> bytes:
        file = self.kernel.files[handle]
        found = await self._read(file, file.position, length)
        file.position += len(found)
        return found

    async def write(self, handle: int, length: int, fill: int) -> int:
        file = self.kernel.files[handle]
        at = await self._write(file, file.position, data(fill, length))
        file.position = at + length if length else file.position
        return length

    async def lseek(self, handle: int, offset: int, whence: int) -> int:
        file = self.kernel.files[handle]
        size = (await self.operations.getattr(file.inode, self.ctx)).st_size if whence == os.SEEK_END else 0
        file.position = offset + size
        return file.position

    async def _seek(self, file: OpenFile, offset: int, whence: int) -> int:
        return int.from_bytes(await self.daemon.requests.lseek(file.number, offset, whence), "little")

    async def holes(self, handle: int) -> str:
        file = self.kernel.files[handle]
        size, end = (await self.operations.getattr(file.inode, self.ctx)).st_size, 0
        while end < size:
            try:
                start = await self._seek(file, end, os.SEEK_DATA)
            except VdiskfsError as exc:
                if exc.number != errno.ENXIO:
                    raise
                start = size
            if any(await self._read(file, end, start - end)):
                return f"a hole with data in it, {end}..{start}"
            end = await self._seek(file, start, os.SEEK_HOLE) if start < size else size
        return "zeros"

    async def seek_past_the_end(self, handle: int, beyond: int, whence: int) -> int:
        file = self.kernel.files[handle]
        size = (await self.operations.getattr(file.inode, self.ctx)).st_size
        return await self._seek(file, size + beyond, whence)

    async def mmap_read(self, handle: int, offset: int, length: int) -> bytes:
        self.kernel.files[handle].check(reads=True, error=errno.EACCES)
        return await self.pread(handle, offset, length, 0)

    async def mmap_write(self, handle: int, offset: int, length: int, fill: int, flush: bool) -> str:
        self.kernel.files[handle].check(reads=True, writes=True, error=errno.EACCES)
        file = self.kernel.files[handle]
        await self.daemon.requests.write(file.number, offset, data(fill, length), kill_suid=False)
        return "ok"

    async def ftruncate(self, handle: int, size: int) -> str:
        file = self.kernel.files[handle]
        file.check(writes=True, error=errno.EINVAL)
        await self._setattr(file.inode, fh=file.number, size=size)
        return "ok"

    async def truncate(self, path: str, size: int) -> str:
        found = await self.resolve(path)
        if stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EISDIR, path)
        await self._setattr(found.st_ino, size=size)
        return "ok"

    async def fallocate(self, handle: int, mode: int, offset: int, length: int) -> str:
        file = self.kernel.files[handle]
        if length <= 0:
            raise OSError(errno.EINVAL, "nothing")
        file.check(writes=True)
        await self.daemon.requests.fallocate(file.number, offset, length, mode)
        return "ok"

    async def copy(self, source: int, offset: int, target: int, to: int, length: int) -> int:
        if not length:
            return 0
        one, other = self.kernel.files[source], self.kernel.files[target]
        one.check(reads=True)
        other.check(writes=True)
        if other.flags & os.O_APPEND:
            raise OSError(errno.EBADF, "appends")
        done = 0
        while done < length:
            size = (await self.operations.getattr(one.inode, self.ctx)).st_size
            source_at, target_at = offset + done, to + done
            some = max(0, min(length - done, size - source_at))
            if one.inode == other.inode and target_at < source_at + some and source_at < target_at + some:
                raise OSError(errno.EINVAL, "overlaps")
            if not some:
                break
            reply = await self.daemon.requests.copy(
                one.number, source_at, target=other.number, to=target_at, length=some, reply=_WRITTEN
            )
            done += _WRITTEN.unpack(reply)[0]
        return done

    async def fsync(self, handle: int) -> str:
        await self.daemon.requests.fsync(self.kernel.files[handle].number)
        return "ok"

    fdatasync = fsync

    async def uncache(self, handle: int) -> str:
        space = self.daemon.vdisks.workspace
        space.row_cache.shrink(0)
        space.segment_cache.shrink(0)
        return await self.fsync(handle)

    async def sync_file_range(self, handle: int, offset: int, length: int, flags: int) -> str:
        return "ok"

    async def fstat(self, handle: int) -> tuple[object, ...]:
        found = await self.operations.getattr(self.kernel.files[handle].inode, self.ctx)
        return oct(found.st_mode), found.st_uid, found.st_gid, found.st_size, found.st_nlink

    async def fchmod(self, handle: int, mode: int) -> str:
        await self._setattr(self.kernel.files[handle].inode, mode=mode)
        return "ok"

    # Names.

    async def mkdir(self, path: str, mode: int) -> str:
        place = await self.new(path)
        await self.operations.mkdir(*place, stat.S_IFDIR | (mode & 0o1777 & ~self.kernel.umask), self.ctx)
        return "ok"

    async def mknod(self, path: str, mode: int) -> str:
        place = await self.new(path)
        await self.operations.mknod(*place, stat.S_IFREG | (mode & ~self.kernel.umask), 0, self.ctx)
        return "ok"

    async def symlink(self, path: str, target: str) -> str:
        await self.operations.symlink(*await self.new(path), os.fsencode(target), self.ctx)
        return "ok"

    async def readlink(self, path: str) -> str:
        found = await self.resolve(path, follow=False)
        return os.fsdecode(await self.operations.readlink(found.st_ino, self.ctx))

    async def rmdir(self, path: str) -> str:
        parent, name = await self.place(path)
        await self.operations.rmdir(parent, os.fsencode(name), self.ctx)
        return "ok"

    async def unlink(self, path: str) -> str:
        parent, name = await self.place(path)
        found = await self.find(parent, name)
        await self.operations.unlink(parent, os.fsencode(name), self.ctx)
        assert found is not None
        await self._gone(found.st_ino)
        return "ok"

    async def _gone(self, inode: int) -> None:
        if all(file.inode != inode for file in self.kernel.files.values()):
            await self.operations.forget([(inode, 1)])

    async def rename(self, path: str, new: str, flags: int) -> str:
        source, target = await self.place(path), await self.place(new)
        moved, replaced = await self.find(*source), await self.find(*target)
        if moved is None:
            raise OSError(errno.ENOENT, path)
        if flags == NOREPLACE and replaced is not None:
            raise OSError(errno.EEXIST, new)
        places = [os.fsencode(name) for name in (source[1], target[1])]
        await self.operations.rename(source[0], places[0], target[0], places[1], flags, self.ctx)
        if replaced is not None and flags != EXCHANGE and replaced.st_ino != moved.st_ino:
            await self._gone(replaced.st_ino)
        return "ok"

    async def listdir(self, path: str) -> list[str]:
        found = await self.resolve(path)
        number = await self.operations.opendir(found.st_ino, self.ctx)
        self.daemon.listed.clear()
        await self.operations.readdir(number, 0, None)  # type: ignore[arg-type]
        return sorted(os.fsdecode(name) for name in self.daemon.listed if name not in (b".", b".."))

    # Attributes.

    async def _setattr(self, inode: int, *, fh: int | None = None, **wanted: int) -> None:
        attributes, fields = pyfuse3.EntryAttributes(), Fields()
        for name, value in wanted.items():
            setattr(attributes, f"st_{name}", value)
            setattr(fields, f"update_{name.removesuffix('_ns')}", True)
        await self.operations.setattr(inode, attributes, fields, fh, self.ctx)  # type: ignore[arg-type]

    async def stat(self, path: str) -> tuple[object, ...]:
        return shown(await self.resolve(path, follow=False))

    async def chmod(self, path: str, mode: int) -> str:
        await self._setattr((await self.resolve(path)).st_ino, mode=mode)
        return "ok"

    async def chown(self, path: str, uid: int, gid: int) -> str:
        found = await self.resolve(path, follow=False)
        wanted = {name: value for name, value in (("uid", uid), ("gid", gid)) if value != -1}
        await self._setattr(found.st_ino, **wanted)
        return "ok"

    async def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> tuple[int, int]:
        found = await self.resolve(path)
        await self._setattr(found.st_ino, atime_ns=atime_ns, mtime_ns=mtime_ns)
        found = await self.operations.getattr(found.st_ino, self.ctx)
        return found.st_atime_ns, found.st_mtime_ns

    async def setxattr(self, path: str, name: str, length: int, fill: int, flags: int) -> str:
        inode = (await self.resolve(path)).st_ino
        is_there = os.fsencode(name) in await self.operations.listxattr(inode, self.ctx)
        if flags == os.XATTR_CREATE and is_there:
            raise OSError(errno.EEXIST, name)
        if flags == os.XATTR_REPLACE and not is_there:
            raise OSError(errno.ENODATA, name)
        await self.operations.setxattr(inode, os.fsencode(name), data(fill, length), self.ctx)
        return "ok"

    async def getxattr(self, path: str, name: str) -> bytes:
        return await self.operations.getxattr((await self.resolve(path)).st_ino, os.fsencode(name), self.ctx)

    async def listxattr(self, path: str) -> list[str]:
        found = await self.operations.listxattr((await self.resolve(path)).st_ino, self.ctx)
        return sorted(os.fsdecode(name) for name in found)

    async def removexattr(self, path: str, name: str) -> str:
        await self.operations.removexattr((await self.resolve(path)).st_ino, os.fsencode(name), self.ctx)
        return "ok"

    async def statvfs(self, path: str) -> int:
        return (await self.operations.statfs(self.ctx)).f_namemax

    async def tree(self, path: str) -> dict[str, object]:
        found: dict[str, object] = {}
        waiting = [path]
        while waiting:
            path = waiting.pop()
            entry, more = await self.resolve(path, follow=False), b""
            if stat.S_ISDIR(entry.st_mode):
                waiting += [f"{path.rstrip('/')}/{name}" for name in await self.listdir(path)]
            elif stat.S_ISLNK(entry.st_mode):
                more = os.fsencode(await self.readlink(path))
            else:
                file = await self._opened(entry, os.O_RDONLY)
                more = await self.daemon.requests.read(file.number, 0, entry.st_size)
                await self.operations.release(file.number)
            names = [] if stat.S_ISLNK(entry.st_mode) else await self.listxattr(path)
            xattrs = [(name, await self.getxattr(path, name)) for name in names]
            found[path.partition("/")[2]] = shown(entry), more, xattrs
        return found

    # Verbs.

    async def _ask(self, verb: str, **arguments: object) -> Any:
        return await self.daemon.verbs[verb](arguments, lambda _: None)

    async def _verb(self, verb: str, **arguments: object) -> str:
        try:
            await self._ask(verb, **arguments)
        except VdiskfsError:
            return "refused"
        return "ok"

    async def _paths(self, paths: list[str]) -> list[str] | None:
        try:
            return [await self.path_of(path) for path in paths]
        except OSError:
            return None

    async def _about(self, verb: str, path: str, **arguments: object) -> str:
        found = await self._paths([path])
        return "refused" if found is None else await self._verb(verb, path=found[0], **arguments)

    async def snapshot(self, paths: list[str], name: str) -> str:
        found = await self._paths(paths)
        return "refused" if found is None else await self._verb("snap_create", paths=found, name=name)

    async def remove_snapshot(self, path: str, name: str) -> str:
        return await self._about("snap_rm", path, name=name)

    async def rename_snapshot(self, path: str, name: str, new: str) -> str:
        return await self._about("snap_rename", path, name=name, new_name=new)

    async def read_snapshot(self, path: str, name: str) -> bytes:
        at = ROOT_ID
        for part in [".snapshots", *(await self.path_of(path)).split("/"), name]:
            found = await self.find(at, part)
            if found is None:
                raise OSError(errno.ENOENT, path)
            at = found.st_ino
        assert found is not None
        info = await self.operations.open(at, os.O_RDONLY, self.ctx)
        content = await self.daemon.requests.read(info.fh, 0, found.st_size)
        await self.operations.release(info.fh)
        return content

    async def rollback(self, path: str, name: str, keep_as: str) -> str:
        at = await self._paths([path])
        if at is None:
            return "refused"
        try:
            kept = (await self._ask("snap_rollback", path=at[0], name=name))["kept"]["name"]
        except VdiskfsError:
            return "refused"
        if keep_as:
            return await self._verb("snap_rename", path=at[0], name=kept, new_name=keep_as)
        return await self._verb("snap_rm", path=at[0], name=kept)

    async def clone(self, path: str, name: str, new: str) -> str:
        found = await self._paths([path, new])
        if found is None:
            return "refused"
        return await self._verb("clone", path=found[0], name=name or None, new_path=found[1])

    async def flatten(self, path: str) -> str:
        return await self._about("flatten", path)

    async def collect(self, path: str) -> str:
        await self.daemon.collector.collect(lambda _: None)
        return "ok"

    async def remove(self, path: str, number: int) -> str:
        found = await self._paths([path])
        if found is None:
            return "refused"
        try:
            answer = await self._ask("rm", paths=found, now=not number, snapshots=True)
        except VdiskfsError:
            return "refused"
        if number:
            self.kernel.trash[number] = answer["removed"][0]["id"]
        return "ok"

    async def restore(self, path: str, number: int) -> str:
        found = await self._paths([path])
        if found is None:
            return "refused"
        return await self._verb("trash_restore", id=self.kernel.trash[number], to=found[0])

    async def purge(self, path: str, number: int) -> str:
        return await self._verb("trash_purge", id=self.kernel.trash[number])


def shown(found: pyfuse3.EntryAttributes) -> tuple[object, ...]:
    """As ``plain_calls.Files.stat`` has it."""
    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    times = found.st_mtime_ns if found.st_mtime_ns < LONG_AGO_NS else 0
    return oct(found.st_mode), found.st_uid, found.st_gid, size, found.st_nlink, times
