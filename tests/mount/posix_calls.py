"""A small language of system calls: one a line, made as any user; what each answers, as text.

[UID[:GID[,GROUP...]]] CALL ARGUMENT...      root unless told; without a group its number is the user's
watch PATH,PATH CALL ARGUMENT...             which of the paths' mtime and ctime the call has changed
"""

import ctypes
import errno
import fcntl
import functools
import operator
import os
import pathlib
import shlex
import socket
import stat
import time
from collections.abc import Callable

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.utimensat.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_int]
AT_FDCWD, AT_SYMLINK_NOFOLLOW = -100, 0x100
FICLONE = 0x40049409
CLOCK_REALTIME_COARSE = 5
"""What filesystems take times from."""
UTIME = {"now": (1 << 30) - 1, "omit": (1 << 30) - 2}


def checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "a call")


def with_open(path: str, flags: int, act: Callable[[int], object]) -> object:
    descriptor = os.open(path, flags)
    try:
        return act(descriptor)
    finally:
        os.close(descriptor)


def flags_of(text: str) -> int:
    """O_ names without O_, joined by |."""
    return functools.reduce(operator.or_, (getattr(os, f"O_{name}") for name in text.split("|")))


def open_(path: str, flags: str, mode: str = "0644") -> None:
    os.close(os.open(path, flags_of(flags), int(mode, 8)))


def write(path: str, flags: str, length: str, offset: str = "-1") -> object:
    def act(descriptor: int) -> int:
        data = b"x" * int(length)
        return os.write(descriptor, data) if offset == "-1" else os.pwrite(descriptor, data, int(offset))

    return with_open(path, flags_of(flags), act)


def fallocate(path: str, flags: str, mode: str, offset: str, length: str) -> None:
    with_open(
        path,
        flags_of(flags),
        lambda fd: checked(libc.fallocate(fd, int(mode), int(offset), int(length))),
    )


def utimens(path: str, atime: str, mtime: str, flags: str = "0") -> None:
    """Times in ns, or now, or omit."""
    numbers = []
    for text in (atime, mtime):
        numbers += [0, UTIME[text]] if text in UTIME else list(divmod(int(text), 10**9))
    times = (ctypes.c_long * 4)(*numbers)
    checked(libc.utimensat(AT_FDCWD, os.fsencode(path), times, int(flags)))


def rename(path: str, new: str, flags: str = "0") -> None:
    checked(libc.renameat2(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(new), int(flags)))


def shown(path: str) -> str:
    found = os.lstat(path)
    size = found.st_size if not stat.S_ISDIR(found.st_mode) else 0
    return f"{found.st_mode:o} {found.st_uid}:{found.st_gid} {found.st_nlink} {size}"


def times(path: str) -> str:
    """Only those that were set: not those of now."""
    found = os.lstat(path)
    is_old = [abs(time.time_ns() - ns) > 10**12 for ns in (found.st_atime_ns, found.st_mtime_ns)]
    return f"{found.st_atime_ns * is_old[0]} {found.st_mtime_ns * is_old[1]}"


def socket_at(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        here = os.open(os.path.dirname(path), os.O_RDONLY)
        try:
            made.bind(f"/proc/self/fd/{here}/{os.path.basename(path)}")
        finally:
            os.close(here)


def reflink(path: str, source: str) -> object:
    def act(descriptor: int) -> object:
        return with_open(source, os.O_RDONLY, lambda fd: fcntl.ioctl(descriptor, FICLONE, fd))

    return with_open(path, os.O_RDWR | os.O_CREAT, act)


def copy(path: str, target: str, length: str) -> object:
    def act(descriptor: int) -> object:
        return with_open(path, os.O_RDONLY, lambda fd: os.copy_file_range(fd, descriptor, int(length)))

    return with_open(target, os.O_WRONLY, act)


CALLS: dict[str, tuple[int, Callable[..., object]]] = {
    "create": (1, lambda path, mode: open_(path, "CREAT|EXCL|RDWR", mode)),
    "open": (1, open_),
    "mkdir": (1, lambda path, mode: os.mkdir(path, int(mode, 8))),
    "rmdir": (1, os.rmdir),
    "unlink": (1, os.unlink),
    "symlink": (1, lambda path, target: os.symlink(target, path)),
    "readlink": (1, os.readlink),
    "link": (2, os.link),
    "rename": (2, rename),
    "mkfifo": (1, lambda path, mode: os.mkfifo(path, int(mode, 8))),
    "mknod": (1, lambda path, kind: os.mknod(path, getattr(stat, f"S_IF{kind}") | 0o644, 0x103)),
    "bind": (1, socket_at),
    "chmod": (1, lambda path, mode: os.chmod(path, int(mode, 8))),
    "chown": (1, lambda path, uid, gid: os.chown(path, int(uid), int(gid))),
    "lchown": (1, lambda path, uid, gid: os.lchown(path, int(uid), int(gid))),
    "truncate": (1, lambda path, size: os.truncate(path, int(size))),
    "ftruncate": (
        1,
        lambda path, flags, size: with_open(path, flags_of(flags), lambda fd: os.ftruncate(fd, int(size))),
    ),
    "write": (1, write),
    "read": (1, lambda path, length: with_open(path, os.O_RDONLY, lambda fd: os.read(fd, int(length)))),
    "fallocate": (1, fallocate),
    "utimens": (1, utimens),
    "times": (1, times),
    "stat": (1, shown),
    "access": (1, lambda path, mode: os.access(path, int(mode))),
    "list": (1, lambda path: sorted(os.listdir(path))),
    "setxattr": (
        1,
        lambda path, name, value, flags="0": os.setxattr(
            path, name, value.encode(), int(flags), follow_symlinks=False
        ),
    ),
    "getxattr": (1, lambda path, name: os.getxattr(path, name, follow_symlinks=False)),
    "listxattr": (1, lambda path: sorted(os.listxattr(path, follow_symlinks=False))),
    "removexattr": (1, lambda path, name: os.removexattr(path, name, follow_symlinks=False)),
    "reflink": (2, reflink),
    "copy": (2, copy),
}
"""By name: how many of the arguments are paths, and what does it."""


def answer(folder: pathlib.Path, words: list[str]) -> str:
    """What one call says, in this process."""
    name, *arguments = words
    count, call = CALLS[name]
    paths = [f"{folder}/{argument}" for argument in arguments[:count]]
    try:
        found = call(*paths, *arguments[count:])
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "ok" if found is None else str(found)


def watched(folder: pathlib.Path, paths: list[str], words: list[str], who: str) -> str:
    """A call's answer, and which times it changed."""
    before = {path: os.lstat(f"{folder}/{path}") for path in paths}
    newest = max(facts.st_ctime_ns for facts in before.values())
    while time.clock_gettime_ns(CLOCK_REALTIME_COARSE) <= newest + 10**6:
        os.sched_yield()
    said = as_user(folder, words, who)
    for path, old in before.items():
        new = os.lstat(f"{folder}/{path}")
        changed = "m" * (new.st_mtime_ns != old.st_mtime_ns) + "c" * (new.st_ctime_ns != old.st_ctime_ns)
        said += f" {path}:{changed}"
    return said


def as_user(folder: pathlib.Path, words: list[str], who: str) -> str:
    """What one call says to a user: this process is nobody else meanwhile."""
    user, _, rest = who.partition(":")
    groups = [int(group) for group in rest.split(",")] if rest else [int(user)]
    before = os.getgroups()
    os.setgroups(groups[1:])
    os.setresgid(groups[0], groups[0], 0)
    os.setresuid(int(user), int(user), 0)
    try:
        return answer(folder, words)
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups(before)


def run(folder: pathlib.Path, line: str) -> str:
    """What one line says."""
    words = shlex.split(line)
    who = words.pop(0) if words[0][0].isdigit() else "0"
    if words[0] == "watch":
        return watched(folder, words[1].split(","), words[2:], who)
    return as_user(folder, words, who)
