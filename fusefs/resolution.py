"""From a path below the mountpoint to the inode it names, and back, for the control verbs.

Paths come from the command line as text, without the mountpoint; links are followed as the kernel follows
them, as far as the mount goes.
"""

import os
from collections.abc import Mapping
from typing import Any

from metadata.catalog import ROOT_ID
from metadata.errors import InvalidRequest, NotFound
from metadata.ids import VdiskId
from metadata.namespace import Kind, Namespace
from metadata.namespace_plans import SNAPSHOTS_NAME, Entry

LINKS_MAX = 40
"""As the kernel has it."""

KINDS = {Kind.FILE: "vdisk", Kind.DIRECTORY: "directory", Kind.SYMLINK: "symlink"}


class PathResolver:
    """The names of one mount, for who has a path.

    Args:
        mountpoint: where the root appears, to follow absolute links.
    """

    def __init__(self, namespace: Namespace, *, mountpoint: str) -> None:
        self._namespace = namespace
        self._mountpoint = os.fsencode(mountpoint)

    def resolve(self, path: bytes) -> int:
        """The inode at a path below the root, links followed.

        Raises:
            NotFound: there is none.
            InvalidRequest: links go round in circles or out of the mount.
        """
        inode, links = ROOT_ID, 0
        left = _parts(path)
        while left:
            name = left.pop()
            if inode == ROOT_ID and name == SNAPSHOTS_NAME:
                raise NotFound("what is below .snapshots is named PATH@SNAP here: see 'vdiskfs snap ls'")
            child = self._namespace.parent(inode) if name == b".." else self._namespace.lookup(inode, name)
            found = self._namespace.inode(child)
            if found.kind is not Kind.SYMLINK:
                inode = child
                continue
            links += 1
            if links > LINKS_MAX:
                raise InvalidRequest(f"too many symbolic links path={os.fsdecode(path)}")
            target = found.target
            if target.startswith(b"/"):
                inode, target = ROOT_ID, self._inner(target)
            left += _parts(target)
        return inode

    def vdisk(self, path: bytes) -> VdiskId:
        """The vdisk at a path.

        Raises:
            NotFound: there is nothing.
            InvalidRequest: it is something else, or as ``resolve``.
        """
        try:
            inode = self.resolve(path)
        except NotFound:
            raise NotFound(f"no such vdisk: /{os.fsdecode(path)}") from None
        if self._namespace.inode(inode).kind is not Kind.FILE:
            raise InvalidRequest(f"not a vdisk: {self.path_of(inode)!r} is a {self.kind(inode)}")
        return VdiskId(inode)

    def entry(self, path: bytes) -> Entry:
        """The directory and the name that a path ends with, there or not; a link there is not followed.

        Raises:
            NotFound: there is no such directory.
            InvalidRequest: the path is the root's, or ends with ``..``.
        """
        parts = _parts(path)
        if not parts or parts[0] == b"..":
            raise InvalidRequest(f"a name is missing at the path's end: /{os.fsdecode(path)}")
        folder = b"/".join(reversed(parts[1:]))
        try:
            return Entry(self.resolve(folder), parts[0])
        except NotFound:
            raise NotFound(f"no such directory: /{os.fsdecode(folder)}") from None

    def path_of(self, inode: int) -> str | None:
        """Below the mountpoint, with a leading slash; None for what has no name any more."""
        path = self._namespace.path(inode)
        return None if path is None else "/" + os.fsdecode(path)

    def kind(self, inode: int) -> str:
        """What an inode is, as the command line has it."""
        try:
            return KINDS[self._namespace.inode(inode).kind]
        except NotFound:
            return "deleted"

    def _inner(self, target: bytes) -> bytes:
        if target == self._mountpoint or target.startswith(self._mountpoint.rstrip(b"/") + b"/"):
            return target[len(self._mountpoint) :]
        raise InvalidRequest(f"a symbolic link leads out of the mount target={os.fsdecode(target)}")


def _parts(path: bytes) -> list[bytes]:
    """The names of a path, the first one last."""
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def path_in(arguments: Mapping[str, Any], name: str = "path") -> bytes:
    """The path in a verb's arguments; the root's if there is none.

    Raises:
        InvalidRequest: it is no text.
    """
    path = arguments.get(name, "")
    if not isinstance(path, str) or "\0" in path:
        raise InvalidRequest("a path is text")
    return os.fsencode(path)


def text_in(arguments: Mapping[str, Any], name: str) -> str:
    """A text in a verb's arguments.

    Raises:
        InvalidRequest: it is missing, or something else.
    """
    text = arguments.get(name)
    if not isinstance(text, str):
        raise InvalidRequest(f"{name} is missing, or no text")
    return text


def flag_in(arguments: Mapping[str, Any], name: str) -> bool:
    """A yes or no in a verb's arguments; no if it is missing.

    Raises:
        InvalidRequest: it is something else.
    """
    flag = arguments.get(name, False)
    if not isinstance(flag, bool):
        raise InvalidRequest(f"{name} is neither true nor false")
    return flag


def number_in(arguments: Mapping[str, Any], name: str, default: int) -> int:
    """A number in a verb's arguments that is not negative, or the default for None or nothing.

    Raises:
        InvalidRequest: it is something else.
    """
    value = arguments.get(name)
    if value is None:
        return default
    if type(value) is not int or value < 0:
        raise InvalidRequest(f"{name} is not a number of bytes")
    return value
