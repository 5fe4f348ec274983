"""The FUSE requests that the channel answers itself, as bytes; from the kernel's ``fuse.h``. Pure.

Every request begins with IN_HEADER (40 bytes), every reply with OUT_HEADER (16).
"""

import struct

READ, WRITE, FSYNC, INIT = 15, 16, 20, 26
FORGET, INTERRUPT, BATCH_FORGET, DESTROY = 2, 36, 42, 38
FALLOCATE, LSEEK, COPY_FILE_RANGE, COPY_FILE_RANGE_64 = 43, 46, 47, 53

IN_HEADER = struct.Struct("<IIQQIIIHH")
"""length, opcode, unique, nodeid, uid, gid, pid, extensions, padding"""
IN_HEADER_BYTES = 40
OUT_HEADER = struct.Struct("<IiQ")
"""length, -errno, unique"""
REQUEST_HEAD = struct.Struct("<IIQQIIIHHQQIIQI")
"""IN_HEADER, then of READ and WRITE: fh, offset, size, read or write flags, lock owner, open flags"""
WRITE_DATA_AT = 80
FSYNC_IN = struct.Struct("<QI")
"""fh, flags"""
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
