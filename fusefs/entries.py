"""Attributes as pyfuse3 and as the channel tell them to the kernel, out of what the mirrors know."""

import stat

import pyfuse3

from fusefs.fuse_abi import Attributes as KernelAttributes
from metadata.namespace import Inode, Kind
from metadata.snapshots import Snapshot
from metadata.units import BLOCK_BYTES

ATTR_TIMEOUT_S = 1.0
ENTRY_TIMEOUT_S = 300.0
DIRECTORY_BYTES = 4096

_FORMATS = {Kind.FILE: stat.S_IFREG, Kind.DIRECTORY: stat.S_IFDIR, Kind.SYMLINK: stat.S_IFLNK}


def entry_of(number: int, inode: Inode, links: int) -> pyfuse3.EntryAttributes:
    """All attributes that the namespace knows."""
    shown = pyfuse3.EntryAttributes()
    shown.st_ino = number
    shown.attr_timeout = ATTR_TIMEOUT_S
    shown.entry_timeout = ENTRY_TIMEOUT_S
    shown.st_mode = _FORMATS[inode.kind] | inode.mode
    shown.st_nlink = links
    shown.st_uid, shown.st_gid = inode.uid, inode.gid
    shown.st_blksize = BLOCK_BYTES
    shown.st_atime_ns, shown.st_mtime_ns, shown.st_ctime_ns = inode.atime_ns, inode.mtime_ns, inode.ctime_ns
    if inode.kind is Kind.DIRECTORY:
        shown.st_size = DIRECTORY_BYTES
    elif inode.kind is Kind.SYMLINK:
        shown.st_size = len(inode.target)
    return shown


def entry_of_version(version: Snapshot, number: int, inode: Inode, links: int) -> pyfuse3.EntryAttributes:
    """A version of another node's vdisk: the vdisk's attributes, with the version's size and times.

    Its name is looked up each time: it may lead to a newer one then.
    """
    shown = entry_of(number, inode, links)
    shown.entry_timeout = 0
    shown.st_size, shown.st_blocks = version.size, version.own_blocks * BLOCK_BYTES // 512
    if version.mtime_ns > inode.mtime_set_ns:
        shown.st_mtime_ns = version.mtime_ns
        shown.st_ctime_ns = max(shown.st_ctime_ns, version.mtime_ns)
    return shown


def entry_of_frozen(found: KernelAttributes) -> pyfuse3.EntryAttributes:
    """What the tree of snapshots knows.

    Its directories are looked up each time: they come and go, and change places, with others, of which the kernel is
    not told. It is told of snapshots' names that go.
    """
    shown = pyfuse3.EntryAttributes()
    shown.st_ino, shown.st_mode, shown.st_nlink = found.inode, found.mode, found.links
    shown.attr_timeout = found.valid_s
    shown.entry_timeout = 0 if stat.S_ISDIR(found.mode) else ENTRY_TIMEOUT_S
    shown.st_uid, shown.st_gid = found.uid, found.gid
    shown.st_size, shown.st_blocks, shown.st_blksize = found.size, found.blocks, found.block_bytes
    shown.st_atime_ns, shown.st_mtime_ns, shown.st_ctime_ns = found.atime_ns, found.mtime_ns, found.ctime_ns
    return shown


def kernel_attributes(shown: pyfuse3.EntryAttributes) -> KernelAttributes:
    """The same for a reply that the channel makes itself."""
    return KernelAttributes(
        valid_s=int(ATTR_TIMEOUT_S),
        inode=shown.st_ino,
        size=shown.st_size,
        blocks=shown.st_blocks,
        atime_ns=shown.st_atime_ns,
        mtime_ns=shown.st_mtime_ns,
        ctime_ns=shown.st_ctime_ns,
        mode=shown.st_mode,
        links=shown.st_nlink,
        uid=shown.st_uid,
        gid=shown.st_gid,
        block_bytes=shown.st_blksize,
    )
