"""Data requests that are worth a task: what they ask, and the bytes to answer.

READ and WRITE come here when memory could not serve them at once; FSYNC, FALLOCATE, LSEEK and
COPY_FILE_RANGE always. Each returns the reply's body or raises an error of ours.
"""

import errno
import functools
import os
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

from fusefs import fuse_abi as abi
from fusefs.notifications import Notifications
from metadata.errors import InvalidRequest, NotOwner, Unavailable
from metadata.ids import VdiskId
from replication import head_read, head_write
from replication.cloning import COPY_BYTES_MAX, copy_bytes, copy_range
from replication.head import Head
from replication.remote import Remote
from replication.vdisks import HANDLE_SHIFT, Vdisks

ClearSuid = Callable[[VdiskId], Awaitable[None]]

_U64 = struct.Struct("<Q")
_WRITTEN = struct.Struct("<II")
_OWNERS_MAX = 10
"""Owners that a vdisk may have while one request waits; so many in a row mean a bug."""
_UNSUPPORTED = "this kind of fallocate or lseek is not supported"


class DataRequests:
    """One to a channel.

    Args:
        vdisks: where the heads are.
        notifications: to ask the kernel for what it has not written back.
        clear_suid: takes the set-user-id and set-group-id bits off a vdisk's file.
    """

    def __init__(self, vdisks: Vdisks, *, clear_suid: ClearSuid, notifications: Notifications) -> None:
        self._vdisks, self._clear_suid, self._notifications = vdisks, clear_suid, notifications

    def parse(self, opcode: int, request: bytes) -> Awaitable[bytes] | None:
        """The work a request asks for; None if it is not one of these."""
        body = memoryview(request)[abi.IN_HEADER_BYTES :]
        match opcode:
            case abi.FSYNC:
                return self.fsync(abi.FSYNC_IN.unpack_from(body)[0])
            case abi.FALLOCATE:
                asked = abi.FALLOCATE_IN.unpack_from(body)
                return self.fallocate(*asked, kill_suid=_is_by_others(request))
            case abi.LSEEK:
                return self.lseek(*abi.LSEEK_IN.unpack_from(body))
            case abi.COPY_FILE_RANGE | abi.COPY_FILE_RANGE_64:
                source, at, _, target, to, length, _ = abi.COPY_IN.unpack_from(body)
                reply = _U64 if opcode == abi.COPY_FILE_RANGE_64 else _WRITTEN
                kill_suid = _is_by_others(request)
                return self.copy(
                    source, at, target=target, to=to, length=length, reply=reply, kill_suid=kill_suid
                )
            case _:
                return None

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        """READ."""
        served = await self._vdisks.reader_of(fh)
        if isinstance(served, Remote):
            return await served.read(offset, size)
        return await head_read.read(served, offset, size)

    async def write(self, fh: int, offset: int, data: bytes, *, kill_suid: bool) -> bytes:
        """WRITE."""
        if kill_suid:
            await self._clear_suid(_vdisk_of(fh))
        await self._change(
            fh,
            lambda head: head_write.write(head, offset, data),
            lambda remote: remote.write(offset, data),
        )
        return _WRITTEN.pack(len(data), 0)

    async def _change(
        self,
        fh: int,
        here: Callable[[Head], Awaitable[None]],
        there: Callable[[Remote], Awaitable[None]],
    ) -> None:
        """Changes what a handle stands for, here or at its owner; again if the owner changes before it is done."""
        for _ in range(_OWNERS_MAX):
            served = await self._vdisks.head_of(fh)
            if isinstance(served, Remote):
                await there(served)
                return
            try:
                await here(served)
                return
            except NotOwner:  # nothing is done
                await self._vdisks.follow_owner(VdiskId(served.vdisk))
        raise Unavailable(f"the vdisk's owner keeps changing vdisk={_vdisk_of(fh)}")

    async def fsync(self, fh: int) -> bytes:
        """FSYNC: the durability point."""
        await self._vdisks.flush_handle(fh)
        return b""

    async def fallocate(
        self, fh: int, offset: int, length: int, mode: int, *, kill_suid: bool = False
    ) -> bytes:
        """FALLOCATE: plain reserves nothing and grows the size; punch and zero make holes."""
        end = offset + length
        head_write.check_size(end)
        if kill_suid:
            await self._clear_suid(_vdisk_of(fh))
        if (
            mode & abi.FALLOC_PUNCH_HOLE and mode == abi.FALLOC_PUNCH_HOLE | abi.FALLOC_KEEP_SIZE
        ) or mode & ~abi.FALLOC_KEEP_SIZE == abi.FALLOC_ZERO_RANGE:
            await self._change(
                fh,
                lambda head: head_write.punch(head, offset, length),
                lambda remote: remote.punch(offset, length),
            )
        elif mode & ~abi.FALLOC_KEEP_SIZE:
            raise InvalidRequest(_UNSUPPORTED, number=errno.EOPNOTSUPP)
        if not mode & abi.FALLOC_KEEP_SIZE:
            await self._change(
                fh, lambda head: head_write.grow_to(head, end), lambda remote: remote.grow(end)
            )
        return b""

    async def lseek(self, fh: int, offset: int, whence: int) -> bytes:
        """LSEEK: SEEK_DATA and SEEK_HOLE; the kernel does the others."""
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            raise InvalidRequest(_UNSUPPORTED)
        head = await self._vdisks.reader_of(fh)
        if isinstance(head, Head) and self._vdisks.has_buffered_writer(VdiskId(head.vdisk)):
            # The kernel may hold data we have never seen.
            await self._notifications.write_back(head.vdisk, offset)
        is_data = whence == os.SEEK_DATA
        if isinstance(head, Remote):
            found = await head.seek(offset, data=is_data)
        else:
            found = await head_read.seek(head, offset, data=is_data)
        if found is None:
            raise InvalidRequest("nothing behind this offset", number=errno.ENXIO)
        return _U64.pack(found)

    async def copy(
        self,
        source: int,
        at: int,
        *,
        target: int,
        to: int,
        length: int,
        reply: struct.Struct,
        kill_suid: bool = False,
    ) -> bytes:
        """COPY_FILE_RANGE; may copy less than asked, and is then asked again."""
        reader, writer = await self._vdisks.reader_of(source), await self._vdisks.head_of(target)
        if kill_suid:
            await self._clear_suid(_vdisk_of(target))
        copied = None
        if not isinstance(reader, Remote) and not isinstance(writer, Remote):
            some = min(length, COPY_BYTES_MAX)
            with suppress(NotOwner):  # it has just been given away
                copied = await copy_range(self._vdisks, reader, writer, offset=at, to=to, length=some)
        if copied is None:
            # The kernel's own way would refuse what is not aligned on files past its cache.
            copied = await copy_bytes(
                functools.partial(self.read, source),
                lambda at, data: self.write(target, at, data, kill_suid=False),
                offset=at,
                to=to,
                length=length,
            )
        return reply.pack(copied) if reply is _U64 else reply.pack(copied, 0)


def _vdisk_of(fh: int) -> VdiskId:
    return VdiskId(fh & (1 << HANDLE_SHIFT) - 1)


def _is_by_others(request: bytes) -> bool:
    """Whether the caller may not keep set-id bits: of WRITE the kernel says it, of these requests it leaves it to us."""
    return bool(abi.IN_HEADER.unpack_from(request)[4])
