"""Random changes of names and attributes through the kernel, against the same ones in an ordinary folder.

Whatever the kernel makes of a call, both must answer alike, and be alike in the end; the daemon is killed
meanwhile, so that requests come twice.
"""

import ctypes
import errno
import os
import pathlib
import random
import signal
import stat
import threading
import time
from collections.abc import Callable

from tests.mounted_pool import MountedPool

AT_FDCWD = -100
SHORT_S = 6.0
STEPS_BETWEEN_LOOKS = 400
HISTORY = 20
"""How many of the last calls a failure shows."""

libc = ctypes.CDLL(None, use_errno=True)

Call = tuple[str, Callable[[pathlib.Path], object]]


def renameat2(old: pathlib.Path, new: pathlib.Path, flags: int) -> None:
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags):
        raise OSError(ctypes.get_errno(), "renameat2")


def create(path: pathlib.Path, flags: int) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | flags, 0o640))


def write(path: pathlib.Path, data: bytes, flags: int) -> None:
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def attributes(path: pathlib.Path) -> tuple[object, ...]:
    found = path.lstat()
    size = found.st_size if stat.S_ISREG(found.st_mode) else 0
    return oct(found.st_mode), found.st_uid, found.st_gid, size


def outcome(call: Callable[[pathlib.Path], object], folder: pathlib.Path) -> object:
    try:
        return call(folder)
    except OSError as exc:
        return errno.errorcode.get(exc.errno or 0, repr(exc))


def tree(folder: pathlib.Path) -> dict[str, object]:
    """Everything below a folder that must be alike."""
    found: dict[str, object] = {}
    for path in [folder, *folder.rglob("*")]:
        facts = path.lstat()
        more: object = None
        if stat.S_ISREG(facts.st_mode):
            more = path.read_bytes()
        elif stat.S_ISLNK(facts.st_mode):
            more = os.readlink(path)
        xattrs = [] if path.is_symlink() else [(name, os.getxattr(path, name)) for name in os.listxattr(path)]
        found[str(path.relative_to(folder))] = (*attributes(path), facts.st_nlink, more, sorted(xattrs))
    return found


class Chance:
    """Draws calls; the same one for both folders."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def path(self) -> str:
        return "/".join(self.random.choice("abcd") for _ in range(self.random.choice([1, 1, 2, 2, 3])))

    def call(self) -> Call:
        choose, one, other = self.random.choice, self.path(), self.path()
        kind = choose([self.making, self.making, self.moving, self.moving, self.changing, self.looking])
        label, call = kind(one, other)
        return f"{label} {one} {other}", call

    def making(self, one: str, other: str) -> Call:
        choose = self.random.choice
        flags, mode = choose([0, os.O_EXCL, os.O_TRUNC]), choose([0o755, 0o700, 0o2775])
        data = bytes([self.random.randrange(256)]) * choose([1, 5000])
        how = choose([0, os.O_APPEND, os.O_TRUNC])
        calls: list[Call] = [
            (f"create {flags:#x}", lambda at: create(at / one, flags)),
            ("mknod", lambda at: os.mknod(at / one, stat.S_IFREG | 0o600)),
            (f"mkdir {mode:o}", lambda at: os.mkdir(at / one, mode)),
            (f"mkdir {mode:o}", lambda at: os.mkdir(at / one, mode)),
            ("symlink", lambda at: os.symlink(other, at / one)),
            (f"write {how:#x} {len(data)}", lambda at: write(at / one, data, how)),
        ]
        return choose(calls)

    def moving(self, one: str, other: str) -> Call:
        flags = self.random.choice([0, 0, 0, 1, 2])
        calls: list[Call] = [
            ("rmdir", lambda at: os.rmdir(at / one)),
            ("unlink", lambda at: os.unlink(at / one)),
            (f"rename {flags}", lambda at: renameat2(at / one, at / other, flags)),
            (f"rename {flags}", lambda at: renameat2(at / one, at / other, flags)),
        ]
        return self.random.choice(calls)

    def changing(self, one: str, other: str) -> Call:
        choose = self.random.choice
        mode, size = choose([0o640, 0o4755, 0o2755, 0o777]), choose([0, 1, 4096, 100_000])
        times = (self.random.randrange(10**18), self.random.randrange(10**18))
        owner = choose([(5, 6), (5, -1), (-1, 6)]) if os.geteuid() == 0 else (os.geteuid(), -1)
        xattr, how = choose(["user.x", "user.y"]), choose([0, os.XATTR_CREATE, os.XATTR_REPLACE])
        calls: list[Call] = [
            (f"chmod {mode:o}", lambda at: os.chmod(at / one, mode)),
            (f"chown {owner}", lambda at: os.chown(at / one, *owner, follow_symlinks=False)),
            (f"utime {times}", lambda at: os.utime(at / one, ns=times)),
            (f"truncate {size}", lambda at: os.truncate(at / one, size)),
            (f"setxattr {xattr} {how}", lambda at: os.setxattr(at / one, xattr, other.encode(), how)),
            (f"removexattr {xattr}", lambda at: os.removexattr(at / one, xattr)),
        ]
        return choose(calls)

    def looking(self, one: str, other: str) -> Call:
        calls: list[Call] = [
            ("list", lambda at: sorted(os.listdir(at / one))),
            ("stat", lambda at: attributes(at / one)),
            ("read", lambda at: (at / one).read_bytes()),
            ("readlink", lambda at: os.readlink(at / one)),
            ("getxattr", lambda at: os.getxattr(at / one, "user.x")),
        ]
        return self.random.choice(calls)


def test_names_behave_as_in_an_ordinary_folder_while_the_daemon_dies(
    mounted: MountedPool, tmp_path: pathlib.Path, seed: int, seconds: float | None
) -> None:
    chance = Chance(seed)
    ours, plain = mounted.mountpoint / "names", tmp_path / "names"
    ours.mkdir()
    plain.mkdir()
    ends = time.monotonic() + (seconds or SHORT_S)
    history: list[str] = []
    kills = 0
    while time.monotonic() < ends:
        kill_at = chance.random.randrange(STEPS_BETWEEN_LOOKS) if kills < 3 or seconds else -1
        for step in range(STEPS_BETWEEN_LOOKS):
            label, call = chance.call()
            if step == kill_at:
                killing = threading.Thread(target=os.kill, args=(mounted.daemon_pid(), signal.SIGKILL))
                killing.start()  # so that it dies during the next calls
                kills += 1
            outcomes = outcome(call, ours), outcome(call, plain)
            history = [*history[1 - HISTORY :], f"{label}: {outcomes[0]!r:.60}"]
            assert outcomes[0] == outcomes[1], (history, kills)
        assert tree(ours) == tree(plain), (history, kills)
    mounted.umount()
    mounted.mount()
    assert tree(ours) == tree(plain)
