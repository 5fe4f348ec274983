"""The reference: the same calls on an ordinary folder, with copies for snapshots. Its outcome is what ours must be.

Where Linux, or what this filesystem promises, leaves freedom, the calls are drawn or read so that it does not show:

* what copy_file_range copies at once, and where SEEK_HOLE finds holes: the caller asks until all is done, and holes
  must read as zeros, that is all;
* O_DIRECT: offsets and lengths are multiples of 512 (anything else is EINVAL here, and taken by some others);
* times of now, sizes and places of directories, the order of a listing, what statfs counts: not compared;
* a rollback of a file that is open: allowed to be refused, and to be done.

What is ours beside POSIX: who has snapshots is not unlinked and not replaced (EBUSY).
"""

import errno
import os
import shutil
import stat

from tests.calls.plain_calls import Files, libc

HIDDEN = ".of-the-reference"


class Reference(Files):
    """An ordinary folder; every node sees the same."""

    def __init__(self, root: str, folder: str, *, node_count: int = 1) -> None:
        super().__init__([root] * node_count, folder)
        self.hidden = os.path.join(root, f"{folder}{HIDDEN}")
        os.mkdir(self.hidden)
        self.snapshots: dict[int, dict[str, bytes]] = {}
        """By inode: numbers of files with snapshots are not used again, these cannot be unlinked."""
        self.trash_of: dict[int, str] = {}
        self._copies = 0

    # What the harness asks to draw calls that make sense.

    def names(self) -> list[str]:
        """Everything below the folder."""
        top, found = self.at("0/"), []
        for where, folders, files in os.walk(top):
            found += [os.path.relpath(os.path.join(where, name), top) for name in (*folders, *files)]
        return sorted(found)

    def vdisks(self) -> list[str]:
        """The regular ones of them."""
        return [name for name in self.names() if stat.S_ISREG(os.lstat(self.at(f"0/{name}")).st_mode)]

    def snapshots_of(self, path: str) -> dict[str, bytes]:
        try:
            found = os.lstat(self.at(path))
        except OSError:
            return {}
        return self.snapshots.get(found.st_ino, {}) if stat.S_ISREG(found.st_mode) else {}

    def inode(self, path: str) -> int:
        """Of a regular file, through links; 0 if it is none."""
        try:
            found = os.stat(self.at(path))
        except OSError:
            return 0
        return found.st_ino if stat.S_ISREG(found.st_mode) else 0

    def size(self, handle: int) -> int:
        return os.fstat(self.fds[handle]).st_size

    def is_file_open(self, path: str) -> bool:
        inode = self.inode(path)
        return any(os.fstat(fd).st_ino == inode for fd in self.fds.values())

    # What is ours beside POSIX.

    def open(self, path: str, handle: int, flags: int, mode: int) -> str:
        if not os.path.isdir(self.at(path)):
            flags &= ~os.O_DIRECT
        return super().open(path, handle, flags, mode)

    def unlink(self, path: str) -> str:
        if self.snapshots_of(path):
            raise OSError(errno.EBUSY, "it has snapshots")
        return super().unlink(path)

    def rename(self, path: str, new: str, flags: int) -> str:
        if not flags and self.snapshots_of(new):
            source, target = os.lstat(self.at(path)), os.lstat(self.at(new))
            if source.st_ino != target.st_ino and not stat.S_ISDIR(source.st_mode):
                raise OSError(errno.EBUSY, "it has snapshots")
        return super().rename(path, new, flags)

    def remount(self, path: str) -> str:
        return "ok"

    def kill(self, path: str) -> str:
        return "ok"

    # Snapshots are copies.

    def _vdisk(self, path: str) -> dict[str, bytes] | None:
        """Its snapshots; None if it is none."""
        try:
            found = os.lstat(self.at(path))
        except OSError:
            return None
        return self.snapshots.setdefault(found.st_ino, {}) if stat.S_ISREG(found.st_mode) else None

    def _content(self, path: str) -> bytes:
        with open(self.at(path), "rb") as file:
            return file.read()

    def snapshot(self, paths: list, name: str) -> str:
        members = [self._vdisk(path) for path in paths]
        if any(member is None or name in member for member in members):
            return "refused"
        for path, member in zip(paths, members, strict=True):
            assert member is not None
            member[name] = self._content(path)
        return "ok"

    def remove_snapshot(self, path: str, name: str) -> str:
        member = self._vdisk(path)
        return "refused" if member is None or member.pop(name, None) is None else "ok"

    def rename_snapshot(self, path: str, name: str, new: str) -> str:
        member = self._vdisk(path)
        if member is None or name not in member or (new in member and new != name):
            return "refused"
        member[new] = member.pop(name)
        return "ok"

    def read_snapshot(self, path: str, name: str) -> bytes:
        member = self._vdisk(path)
        if member is None or name not in member:
            raise OSError(errno.ENOENT, "no such snapshot")
        return member[name]

    def rollback(self, path: str, name: str, keep_as: str) -> str:
        member = self._vdisk(path)
        if member is None or name not in member:
            return "refused"
        was, content = self._content(path), member[name]
        with open(self.at(path), "r+b") as file:
            file.truncate(0)
            file.write(content)
        if keep_as in member:  # it goes by the name that the filesystem gave it
            return "refused"
        if keep_as:
            member[keep_as] = was
        return "ok"

    def clone(self, path: str, name: str, new: str) -> str:
        member = self._vdisk(path)
        content = None if member is None else member.get(name) if name else self._content(path)
        if content is None or os.path.lexists(self.at(new)):
            return "refused"
        try:
            with open(self.at(new), "xb") as file:
                file.write(content)
        except OSError:
            return "refused"
        facts = os.stat(self.at(path))
        os.chown(self.at(new), facts.st_uid, facts.st_gid)
        os.chmod(self.at(new), facts.st_mode & 0o777)
        return "ok"

    def flatten(self, path: str) -> str:
        return "ok" if self._vdisk(path) is not None else "refused"

    def collect(self, path: str) -> str:
        return "ok"

    # The trash is another folder.

    def remove(self, path: str, number: int) -> str:
        if self._vdisk(path) is None:
            return "refused"
        if number:
            self.trash_of[number] = os.path.join(self.hidden, str(number))
            os.rename(self.at(path), self.trash_of[number])
        else:
            self.snapshots.pop(os.lstat(self.at(path)).st_ino)
            os.unlink(self.at(path))
        return "ok"

    def restore(self, path: str, number: int) -> str:
        flags_noreplace = 1
        if libc.renameat2(
            -100, os.fsencode(self.trash_of[number]), -100, os.fsencode(self.at(path)), flags_noreplace
        ):
            return "refused"
        del self.trash_of[number]
        return "ok"

    def purge(self, path: str, number: int) -> str:
        gone = self.trash_of.pop(number)
        self.snapshots.pop(os.stat(gone).st_ino, None)
        os.unlink(gone)
        return "ok"

    def clear(self) -> None:
        """Close and delete all."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()
        shutil.rmtree(self.at("0/"))
        shutil.rmtree(self.hidden)
