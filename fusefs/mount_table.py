"""Which mounts there are and under which one a path lies, found without touching any of them.

A mount whose daemon hangs must not hang the command that would unmount it, so nothing here calls stat on
a path inside or at a vdiskfs mount: paths are compared as text with ``/proc/self/mountinfo``.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

FILESYSTEM_TYPE = "fuse.vdiskfs"
MOUNTINFO = "/proc/self/mountinfo"
LINKS_MAX = 40
"""As the kernel has it (MAXSYMLINKS); what lies behind a longer chain stays unresolved."""

_MINOR = re.compile(rb"\d{1,10}:(\d{1,10})")
_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of mountinfo, as far as we need it."""

    mountpoint: str
    filesystem_type: str
    source: str
    device_minor: int
    """Names the connection in /sys/fs/fuse/connections."""
    owner_uid: int | None
    """Who mounted it (the super option ``user_id``); None for other filesystems."""

    @property
    def is_vdiskfs(self) -> bool:
        """Whether it is one of ours."""
        return self.filesystem_type == FILESYSTEM_TYPE


def _unescape(field: bytes) -> str:
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field))


def parse_mountinfo(content: bytes) -> list[MountEntry]:
    """The mounts in ``content`` (proc(5)), oldest first; the last one at a mountpoint is the visible one."""
    entries = []
    for line in content.splitlines():
        before, separator, after = line.partition(b" - ")
        head, tail = before.split(b" "), after.split(b" ")
        if not separator or len(head) < 6 or len(tail) < 3 or not (minor := _MINOR.fullmatch(head[2])):
            continue
        owner = re.search(rb"(?:^|,)user_id=(\d{1,10})(?:,|$)", tail[2])
        entries.append(
            MountEntry(
                mountpoint=_unescape(head[4]),
                filesystem_type=_unescape(tail[0]),
                source=_unescape(tail[1]),
                device_minor=int(minor[1]),
                owner_uid=int(owner[1]) if owner else None,
            )
        )
    return entries


def read_mounts() -> list[MountEntry]:
    """The mounts this process sees now."""
    with open(MOUNTINFO, "rb") as file:
        return parse_mountinfo(file.read())


def mount_at(mountpoint: str, mounts: Iterable[MountEntry]) -> MountEntry | None:
    """The visible mount exactly at ``mountpoint`` (an absolute path without links)."""
    found = None
    for entry in mounts:
        if entry.mountpoint == mountpoint:
            found = entry
    return found


def mount_above(path: str, mounts: Iterable[MountEntry]) -> MountEntry | None:
    """The visible mount that ``path`` (absolute, without links) lies under."""
    found = None
    for entry in mounts:
        above = is_under(path, entry.mountpoint)
        if above and (found is None or is_under(entry.mountpoint, found.mountpoint)):
            found = entry
    return found


def is_under(path: str, folder: str) -> bool:
    """Whether ``path`` is ``folder`` or lies in it, as text."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def resolve(path: str, mounts: Iterable[MountEntry]) -> str:
    """``path`` made absolute and free of links, down to the first vdiskfs mount on the way.

    From there on it stays as given: following links inside would ask the daemon.
    """
    left = [part for part in os.path.abspath(path).split("/") if part]
    ours = {entry.mountpoint for entry in mounts if entry.is_vdiskfs}
    done, links = "/", 0
    while left:
        step = os.path.normpath(os.path.join(done, left.pop(0)))
        if any(is_under(step, mountpoint) for mountpoint in ours):
            return os.path.join(step, *left)
        target = _link_target(step) if links < LINKS_MAX else None
        if target is None:
            done = step
            continue
        links += 1
        done = "/" if target.startswith("/") else done
        left = [part for part in target.split("/") if part] + left
    return done


def _link_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:  # no link, or nothing there: whoever opens it will say so
        return None
