"""The FUSE requests that the channel answers itself, as bytes; from the kernel's ``fuse.h``. Pure.

Every request begins with IN_HEADER (40 bytes), every reply with OUT_HEADER (16).
"""

import struct
from dataclasses import dataclass

SETATTR, READ, WRITE, FSYNC, GETXATTR, INIT = 4, 15, 16, 20, 22, 26
ASKED_SIZE = (1 << 62) + 0x1664_6973_6B66_7300
"""A size that no vdisk can have: whoever truncates a file to it asks the kernel to learn its size from the daemon."""
FORGET, INTERRUPT, BATCH_FORGET, DESTROY = 2, 36, 42, 38
FALLOCATE, LSEEK, COPY_FILE_RANGE, COPY_FILE_RANGE_64 = 43, 46, 47, 53

IN_HEADER = struct.Struct("<IIQQIIIHH")
"""length, opcode, unique, nodeid, uid, gid, pid, extensions, padding"""
IN_HEADER_BYTES = 40
OUT_HEADER = struct.Struct("<IiQ")
"""length, -errno, unique"""
REQUEST_HEAD = struct.Struct("<4xIQ24xQQII8xI")
"""opcode, unique; of READ and WRITE also: fh, offset, size, read or write flags, open flags"""
WRITE_DATA_AT = 80
FSYNC_IN = struct.Struct("<QI")
"""fh, flags"""
GETXATTR_IN = struct.Struct("<I4x")
"""size of the caller's buffer, 0 to ask for the value's; the name, ended by a zero, follows"""
GETXATTR_OUT = struct.Struct("<I4x")
FALLOCATE_IN = struct.Struct("<QQQI")
"""fh, offset, length, mode"""
LSEEK_IN = struct.Struct("<QQI")
"""fh, offset, whence"""
COPY_IN = struct.Struct("<QQQQQQQ")
"""fh in, offset in, nodeid out, fh out, offset out, length, flags"""
WRITE_REPLY = struct.Struct("<IiQII")
"""OUT_HEADER, bytes written, padding"""
U64_REPLY = struct.Struct("<IiQQ")
"""OUT_HEADER, an offset or a length"""

SETATTR_IN = struct.Struct("<II6Q8I")
"""valid, padding; fh, size, lock owner, atime, mtime, ctime; atime ns, mtime ns, ctime ns, mode, -, uid, gid, -"""
ATTR_REPLY = struct.Struct("<IiQQIIQQQQQQIIIIIIIIII")
"""OUT_HEADER; valid for s, ns, padding; ino, size, blocks, atime, mtime, ctime; atime ns, mtime ns, ctime ns, mode,
links, uid, gid, rdev, block size, flags"""
_SET_SIZE = 1 << 3
_SET_FH, _SET_MTIME, _SET_LOCK_OWNER, _SET_CTIME = 1 << 6, 1 << 5, 1 << 9, 1 << 10

WRITE_KILL_SUIDGID = 1 << 2
O_DIRECT = 0o40000

FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 0x01, 0x02, 0x10

NOTIFY_RESEND = 7
"""As the error of a reply without a request: "send again what my predecessor did not answer"."""

INIT_IN = struct.Struct("<IIIII")
"""major, minor, readahead, flags, flags2"""
INIT_OUT = struct.Struct("<IIIIHHIIHHIIH")
"""major, minor, readahead, flags, max_background, congestion threshold, max_write, time granularity, max_pages,
map alignment, flags2, stack depth, request timeout"""

POSIX_LOCKS, FLOCK_LOCKS = 1 << 1, 1 << 10
AUTO_INVAL_DATA = 1 << 12
ASYNC_DIO, WRITEBACK_CACHE, MAX_PAGES = 1 << 15, 1 << 16, 1 << 22
HANDLE_KILLPRIV, HANDLE_KILLPRIV_V2, INIT_EXT = 1 << 19, 1 << 28, 1 << 30
HAS_RESEND = 1 << 39

REQUEST_PAGES = 256
"""1 MiB a request; the kernel's own limit unless an administrator raised it."""
MAX_BACKGROUND = 256
"""Requests in flight on a mount; the kernel's default of 12 throttles every disk on it together."""

_WANTED = ASYNC_DIO | WRITEBACK_CACHE | MAX_PAGES | HANDLE_KILLPRIV_V2 | INIT_EXT | HAS_RESEND
_UNWANTED = POSIX_LOCKS | FLOCK_LOCKS | HANDLE_KILLPRIV | AUTO_INVAL_DATA


_RESENT_UNIQUE = 1 << 63
"""In a request's unique: the kernel sends it again."""
RESENT = 1 << 30
NUMBER_MASK = RESENT - 1
_PID_AT = 32


def number_request(request: bytes) -> bytes:
    """The request with its number, and whether it comes again, for a pid: all of it that libfuse hands on.

    fusefs/operations.py needs them to carry a request out once, and needs no pid.
    """
    (unique,) = struct.unpack_from("<Q", request, 8)
    pid = unique >> 1 & NUMBER_MASK | (RESENT if unique & _RESENT_UNIQUE else 0)
    return request[:_PID_AT] + struct.pack("<I", pid) + request[_PID_AT + 4 :]


@dataclass(frozen=True, slots=True)
class Attributes:
    """What SETATTR's reply says of an inode; times in ns, valid in s, size in bytes, blocks of 512."""

    valid_s: int
    inode: int
    size: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    mode: int
    links: int
    uid: int
    gid: int
    block_bytes: int


def asks_size(request: memoryview) -> bool:
    """Whether a SETATTR is the notifier's: it sets no size, the kernel takes over the one in the reply."""
    fields = SETATTR_IN.unpack_from(request, IN_HEADER_BYTES)
    return bool(fields[0] & _SET_SIZE) and fields[3] == ASKED_SIZE


def parse_times(request: memoryview) -> tuple[int, int | None, int | None] | None:
    """Of a SETATTR that sets nothing but times: inode, mtime and ctime in ns; else None."""
    fields = SETATTR_IN.unpack_from(request, IN_HEADER_BYTES)
    valid = 0 if asks_size(request) else fields[0]
    if valid & ~(_SET_FH | _SET_LOCK_OWNER | _SET_MTIME | _SET_CTIME):
        return None
    (inode,) = struct.unpack_from("<Q", request, 16)
    mtime_ns = fields[6] * 10**9 + fields[9] if valid & _SET_MTIME else None
    ctime_ns = fields[7] * 10**9 + fields[10] if valid & _SET_CTIME else None
    return int(inode), mtime_ns, ctime_ns


def attributes_reply(unique: int, shown: Attributes) -> bytes:
    """The whole reply to a SETATTR."""
    atime, mtime, ctime = (divmod(ns, 10**9) for ns in (shown.atime_ns, shown.mtime_ns, shown.ctime_ns))
    return ATTR_REPLY.pack(
        ATTR_REPLY.size, 0, unique, shown.valid_s, 0, 0,
        shown.inode, shown.size, shown.blocks, atime[0], mtime[0], ctime[0], atime[1], mtime[1], ctime[1],
        shown.mode, shown.links, shown.uid, shown.gid, 0, shown.block_bytes, 0,
    )  # fmt: skip


def parse_getxattr(request: memoryview) -> tuple[int, int, bytes]:
    """Of a GETXATTR: inode, size of the caller's buffer, name."""
    (inode,) = struct.unpack_from("<Q", request, 16)
    (size,) = GETXATTR_IN.unpack_from(request, IN_HEADER_BYTES)
    return int(inode), size, bytes(request[IN_HEADER_BYTES + GETXATTR_IN.size :]).partition(b"\0")[0]


def offered_flags(request: bytes) -> int:
    """The flags, 64 bits, that the kernel offers in an INIT request."""
    fields = INIT_IN.unpack_from(request.ljust(IN_HEADER_BYTES + INIT_IN.size, b"\0"), IN_HEADER_BYTES)
    flags, flags2 = fields[3], fields[4]
    return int(flags | flags2 << 32 if flags & INIT_EXT else flags)


def amend_init_reply(reply: bytes, offered: int) -> bytes:
    """libfuse's INIT reply with what the channel wants of this kernel."""
    if len(reply) < OUT_HEADER.size + INIT_OUT.size or OUT_HEADER.unpack_from(reply)[1] != 0:
        return reply
    fields = list(INIT_OUT.unpack_from(reply, OUT_HEADER.size))
    flags = (fields[3] | fields[10] << 32) & ~_UNWANTED | _WANTED & offered
    fields[3], fields[10] = flags & 0xFFFFFFFF, flags >> 32
    fields[4], fields[5] = MAX_BACKGROUND, MAX_BACKGROUND * 3 // 4
    fields[6], fields[8] = REQUEST_PAGES * 4096, REQUEST_PAGES
    head, tail = reply[: OUT_HEADER.size], reply[OUT_HEADER.size + INIT_OUT.size :]
    return head + INIT_OUT.pack(*fields) + tail
