"""Making and ending the kernel's side of a mount: /dev/fuse, mount(2), fusermount3.

Root calls mount(2) and umount2(2). Anybody else goes through the setuid program fusermount3, which opens
/dev/fuse, mounts, and sends the descriptor back over the socket named in ``_FUSE_COMMFD``.
"""

import ctypes
import errno
import os
import shutil
import socket
import subprocess
from dataclasses import dataclass

from fusefs.mount_table import FILESYSTEM_TYPE
from metadata.errors import InvalidRequest, Unavailable

FUSE_DEVICE = "/dev/fuse"
FUSERMOUNT = "fusermount3"
CONNECTIONS = "/sys/fs/fuse/connections"

_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8
_S_IFDIR_OCTAL = "40000"

# word: (bits to set, bits to clear), linux/mount.h
_FLAG_WORDS = {
    "ro": (1, 0),
    "rw": (0, 1),
    "nosuid": (2, 0),
    "suid": (0, 2),
    "nodev": (4, 0),
    "dev": (0, 4),
    "noexec": (8, 0),
    "exec": (0, 8),
    "noatime": (1024, 0),
    "atime": (0, 1024),
    "nodiratime": (2048, 0),
    "relatime": (1 << 21, 0),
    "strictatime": (1 << 24, 0),
}
_KERNEL_WORDS = ("allow_other", "default_permissions")
_FSTAB_WORDS = ("defaults", "auto", "noauto", "user", "users", "nofail", "_netdev")
_READ_ONLY, _NOSUID, _NODEV = 1, 2, 4


@dataclass(frozen=True, slots=True)
class MountOptions:
    """The words of ``-o``, sorted into those mount(2) takes as bits and those the filesystem takes."""

    flags: int
    flag_words: tuple[str, ...]
    kernel_words: tuple[str, ...]

    @property
    def read_only(self) -> bool:
        """Whether the mount refuses writes."""
        return bool(self.flags & _READ_ONLY)


def parse_options(words: tuple[str, ...], *, uid: int) -> MountOptions:
    """What ``-o`` asked for, completed with what every mount of ``uid`` has.

    Permissions are always the kernel's to check; root's mounts are open to every user whom the modes allow.

    Raises:
        InvalidRequest: a word we do not know.
    """
    flags, flag_words = _NOSUID | _NODEV, []
    kernel_words = ["default_permissions"] + (["allow_other"] if uid == 0 else [])
    for word in words:
        if word in _FLAG_WORDS:
            to_set, to_clear = _FLAG_WORDS[word]
            flags = (flags | to_set) & ~to_clear
            flag_words.append(word)
        elif word in _KERNEL_WORDS:
            kernel_words.append(word)
        elif word not in _FSTAB_WORDS and not word.startswith("x-"):
            known = ", ".join([*_FLAG_WORDS, *_KERNEL_WORDS])
            raise InvalidRequest(f"unknown mount option {word!r}; known: {known}")
    return MountOptions(flags, tuple(flag_words), tuple(dict.fromkeys(kernel_words)))


def check_device() -> None:
    """See that this machine can do FUSE at all.

    Raises:
        Unavailable: with what to do about it.
    """
    if not os.path.exists(FUSE_DEVICE):
        raise Unavailable(
            f"{FUSE_DEVICE} is missing: load the module (modprobe fuse), or give this container the device"
        )
    if not os.access(FUSE_DEVICE, os.R_OK | os.W_OK):
        raise Unavailable(f"no permission to open {FUSE_DEVICE}: ask root for chmod 666 {FUSE_DEVICE}")
    if os.geteuid() != 0 and shutil.which(FUSERMOUNT) is None:
        raise Unavailable(f"{FUSERMOUNT} is missing, and only root mounts without it: apt install fuse3")


def mount(source: str, mountpoint: str, options: MountOptions) -> int:
    """Mount and return the descriptor on which the kernel will send its requests; the caller's to close.

    Raises:
        Unavailable: the kernel or fusermount3 said no.
    """
    if os.geteuid() == 0:
        return _mount_as_root(source, mountpoint, options)
    return _mount_through_fusermount(source, mountpoint, options)


def _mount_as_root(source: str, mountpoint: str, options: MountOptions) -> int:
    try:
        fuse_fd = os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as problem:
        raise Unavailable(f"cannot open {FUSE_DEVICE}: {problem.strerror}") from problem
    words = [f"fd={fuse_fd}", f"rootmode={_S_IFDIR_OCTAL}", "user_id=0", "group_id=0", *options.kernel_words]
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (
        os.fsencode(source),
        os.fsencode(mountpoint),
        FILESYSTEM_TYPE.encode(),
        ctypes.c_ulong(options.flags),
        ",".join(words).encode(),
    )
    if libc.mount(*arguments) == 0:
        return fuse_fd
    number = ctypes.get_errno()
    os.close(fuse_fd)
    hint = ": it takes CAP_SYS_ADMIN, which this container lacks" if number == errno.EPERM else ""
    raise Unavailable(f"cannot mount on {mountpoint}: {os.strerror(number)}{hint}")


def _mount_through_fusermount(source: str, mountpoint: str, options: MountOptions) -> int:
    escaped = source.replace("\\", "\\\\").replace(",", "\\,")
    words = [*options.flag_words, *options.kernel_words, f"subtype={FILESYSTEM_TYPE.partition('.')[2]}"]
    command = [FUSERMOUNT, "-o", ",".join([*words, f"fsname={escaped}"]), "--", mountpoint]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            try:
                helper = subprocess.Popen(
                    command,
                    env={**os.environ, "_FUSE_COMMFD": str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    stderr=subprocess.PIPE,
                )
            except OSError as problem:
                raise Unavailable(f"cannot run {FUSERMOUNT}: {problem.strerror}") from problem
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        _, complaint = helper.communicate()
    if helper.returncode != 0 or not descriptors:
        for descriptor in descriptors:
            os.close(descriptor)
        raise Unavailable(f"cannot mount on {mountpoint}: {_last_line(complaint)}")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _last_line(complaint: bytes) -> str:
    lines = os.fsdecode(complaint).strip().splitlines()
    return lines[-1].removeprefix(f"{FUSERMOUNT}: ") if lines else f"{FUSERMOUNT} failed without a word"


def unmount(mountpoint: str, *, lazy: bool = False, force: bool = False) -> None:
    """Take the mount away; returns before its daemon has ended.

    Args:
        lazy: detach at once, even from those who still use it.
        force: break the connection first, so that nobody waits for the daemon (root only).

    Raises:
        OSError: EBUSY while somebody uses it (and not lazy), EINVAL if nothing is mounted there.
    """
    if os.geteuid() == 0:
        flags = _UMOUNT_NOFOLLOW | (_MNT_DETACH if lazy else 0) | (_MNT_FORCE if force and not lazy else 0)
        if ctypes.CDLL(None, use_errno=True).umount2(os.fsencode(mountpoint), flags) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), mountpoint)
        return
    command = [FUSERMOUNT, "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, stderr=subprocess.PIPE, env={**os.environ, "LC_ALL": "C"}, check=False)
    if done.returncode != 0:
        reason = _last_line(done.stderr)
        raise OSError(errno.EBUSY if "busy" in reason else errno.EINVAL, reason, mountpoint)


def abort_connection(device_minor: int) -> None:
    """Break a mount's connection: everybody who waits for it gets an error, its daemon ENODEV.

    Raises:
        OSError: the kernel refused, or there is no such connection.
    """
    abort_fd = os.open(f"{CONNECTIONS}/{device_minor}/abort", os.O_WRONLY)
    try:
        os.write(abort_fd, b"1")
    finally:
        os.close(abort_fd)
