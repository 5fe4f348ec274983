"""Attributes as the kernel gets them: of names, of versions of others' vdisks, of the tree of snapshots."""

import stat
from dataclasses import replace

import pytest

from fusefs.entries import (
    ATTR_TIMEOUT_S,
    DIRECTORY_BYTES,
    ENTRY_TIMEOUT_S,
    entry_of,
    entry_of_frozen,
    entry_of_version,
    kernel_attributes,
)
from fusefs.fuse_abi import Attributes
from metadata.namespace import Inode, Kind
from metadata.snapshots import Snapshot

INODE = Inode(Kind.FILE, 0o640, 7, 8, 100, 200, 300, mtime_set_ns=200)
VERSION = Snapshot(20, "", 1 << 62, 5, size=1 << 20, own_blocks=3, overlap=0, mtime_ns=250, created_ns=0)
FROZEN = Attributes(1, 99, 4096, 8, 1, 2, 3, stat.S_IFREG | 0o444, 1, 7, 8, 4096)


@pytest.mark.parametrize(
    ("kind", "target", "mode", "size"),
    [
        (Kind.FILE, b"", stat.S_IFREG, 0),
        (Kind.DIRECTORY, b"", stat.S_IFDIR, DIRECTORY_BYTES),
        (Kind.SYMLINK, b"../x", stat.S_IFLNK, 4),
    ],
)
def test_a_name_s_attributes_are_the_namespace_s(kind: Kind, target: bytes, mode: int, size: int) -> None:
    shown = entry_of(20, replace(INODE, kind=kind, target=target), 2)
    assert (shown.st_ino, shown.st_mode, shown.st_nlink) == (20, mode | 0o640, 2)
    assert (shown.st_uid, shown.st_gid, shown.st_size) == (7, 8, size)
    assert (shown.st_atime_ns, shown.st_mtime_ns, shown.st_ctime_ns) == (100, 200, 300)
    assert (shown.attr_timeout, shown.entry_timeout) == (ATTR_TIMEOUT_S, ENTRY_TIMEOUT_S)


@pytest.mark.parametrize(
    ("written_ns", "set_ns", "mtime_ns", "ctime_ns"),
    [(250, 200, 250, 300), (350, 200, 350, 350), (200, 200, 200, 300), (150, 200, 200, 300)],
)
def test_a_version_has_its_own_size_and_the_later_of_two_times(
    written_ns: int, set_ns: int, mtime_ns: int, ctime_ns: int
) -> None:
    version = replace(VERSION, mtime_ns=written_ns)
    shown = entry_of_version(version, version.id, replace(INODE, mtime_set_ns=set_ns), 1)
    assert (shown.st_ino, shown.st_size, shown.st_blocks) == (1 << 62, 1 << 20, 24)
    assert (shown.st_mtime_ns, shown.st_ctime_ns) == (mtime_ns, ctime_ns)
    assert shown.entry_timeout == 0  # its name may lead to a newer one


@pytest.mark.parametrize(("kind", "timeout_s"), [(stat.S_IFREG, ENTRY_TIMEOUT_S), (stat.S_IFDIR, 0)])
def test_a_snapshot_s_name_is_kept_and_its_directories_are_looked_up(kind: int, timeout_s: float) -> None:
    shown = entry_of_frozen(replace(FROZEN, mode=kind | 0o555))
    assert shown.entry_timeout == timeout_s
    assert (shown.st_ino, shown.st_mode, shown.st_size, shown.st_blocks) == (99, kind | 0o555, 4096, 8)
    assert (shown.st_atime_ns, shown.st_mtime_ns, shown.st_ctime_ns) == (1, 2, 3)


def test_the_channel_tells_the_same() -> None:
    assert kernel_attributes(entry_of_frozen(FROZEN)) == FROZEN
