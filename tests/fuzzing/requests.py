"""A fuzz target for FUSE requests: the channel over a real core, with a socket for /dev/fuse, against plain bytes.

The channel runs in a thread of its own as long as the process; each input empties two vdisks and asks for
some things one after the other. Each request must be answered once, with the number it came with, or handed on;
what reads return is what was written. Besides, requests may hold anything, as far as the kernel's own length goes.
"""

import errno
import functools
import logging
import os
import select
import socket
import struct
import threading
from dataclasses import dataclass, field

import trio

from fusefs import fuse_abi as abi
from fusefs.channel import Channel
from fusefs.data_requests import DataRequests
from metadata.ids import VdiskId
from metadata.units import BLOCK_BYTES
from replication import head_write
from replication.vdisks import Vdisks
from tests.fuzzing.source import Source
from tests.fuzzing.stored import folder
from tests.replication.rig import Rig, create, handles_of

VDISKS = (21, 22)
SPAN = 96 * BLOCK_BYTES
"""Most requests stay below this offset."""
FAR = 1 << 22
"""What is written behind this is not compared: the model is plain bytes."""
ANSWER_S = 20
NO_HANDLE = 99
FORWARDED = (1, 3, 14, 18, 22, 26, 36, 38, 52)


class Alarm(logging.Handler):
    """Keeps what was logged as an error: the channel survives the unexpected, and says so."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


class _NoWriteBack:
    async def write_back(self, vdisk: int, offset: int) -> None:
        raise AssertionError("no handle is buffered")


@dataclass
class _Kernel:
    """The other end of /dev/fuse."""

    device: socket.socket
    libfuse: socket.socket
    handles: dict[int, int]
    token: trio.lowlevel.TrioToken
    vdisks: Vdisks
    alarm: Alarm
    scope: trio.CancelScope
    thread: threading.Thread | None = None
    last_unique: int = 0
    contents: dict[int, bytearray] = field(default_factory=dict)

    def empty(self) -> None:
        """Both vdisks hold nothing."""

        async def truncate() -> None:
            for handle in self.handles:
                head = self.vdisks.heads_by_handle[handle]
                await head_write.truncate(head, 0)  # type: ignore[arg-type]

        trio.from_thread.run(truncate, trio_token=self.token)
        self.contents = {handle: bytearray() for handle in self.handles}

    def ask(self, opcode: int, body: bytes, *, inode: int = 0) -> tuple[int, bytes] | None:
        """Errno and body of the answer; None if the request was handed to libfuse."""
        self.last_unique += 2
        unique = self.last_unique
        request = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, unique, inode, 0, 0, 4242, 0, 0) + body
        self.device.send(request)
        ready, _, _ = select.select([self.device, self.libfuse], [], [], ANSWER_S)
        assert ready, f"no answer opcode={opcode}"
        if self.libfuse in ready:
            assert self.libfuse.recv(2 << 20) == abi.number_request(request)
            return None
        answer = self.device.recv(2 << 20)
        length, error, told = abi.OUT_HEADER.unpack_from(answer)
        assert (length, told) == (len(answer), unique)
        assert -4096 < error <= 0
        assert not error or length == 16
        return -error, answer[16:]

    def check(self) -> None:
        """Nothing was logged that should not be, and nobody answers unasked."""
        lines, self.alarm.lines = self.alarm.lines, []
        assert lines == []
        assert select.select([self.device, self.libfuse], [], [], 0)[0] == []


@functools.cache
def kernel() -> _Kernel:
    """The one of this process, with a channel that serves it."""
    made: list[_Kernel] = []
    ready = threading.Event()
    thread = threading.Thread(target=trio.run, args=(_serve, made, ready), daemon=True)
    thread.start()
    assert ready.wait(ANSWER_S)
    made[0].thread = thread
    return made[0]


def stop() -> None:
    """Ends the channel; the next input begins another one."""
    if kernel.cache_info().currsize:
        mount = kernel()
        mount.token.run_sync_soon(mount.scope.cancel)
        assert mount.thread is not None
        mount.thread.join()
        kernel.cache_clear()


async def _serve(made: list[_Kernel], ready: threading.Event) -> None:
    path = folder() / "rig"
    path.mkdir()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    alarm = Alarm()
    logging.getLogger().addHandler(alarm)
    async with Rig(path).node(kill=True) as vdisks:
        for vdisk in VDISKS:
            await create(vdisks, vdisk)
        handles = {handles_of(vdisks, vdisk)[0]: vdisk for vdisk in VDISKS}
        init_fd = os.memfd_create("init")
        channel = Channel(
            theirs.fileno(),
            init_fd,
            vdisks=vdisks,
            requests=DataRequests(vdisks, clear_suid=_clear_suid, notifications=_NoWriteBack()),  # type: ignore[arg-type]
            set_times=_set_times,
            get_xattr=_get_xattr,
        )
        token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()
        made.append(_Kernel(ours, channel._theirs, handles, token, vdisks, alarm, scope))
        ready.set()
        with scope:
            await channel.serve()
    logging.getLogger().removeHandler(alarm)
    os.close(init_fd)
    for end in (ours, theirs, channel._ours, channel._theirs):
        end.close()


async def _clear_suid(vdisk: VdiskId) -> None:
    await trio.lowlevel.checkpoint()


def _set_times(inode: int, mtime_ns: int | None, ctime_ns: int | None) -> abi.Attributes | None:
    if inode not in VDISKS:
        return None
    return abi.Attributes(
        1, inode, 0, 0, 0, (mtime_ns or 0) % (1 << 62), (ctime_ns or 0) % (1 << 62), 0o644, 1, 0, 0, 512
    )


def _get_xattr(inode: int, name: bytes) -> bytes | None:
    return name * 2 if inode in VDISKS else None


def fuzz_requests(data: bytes) -> None:
    """Some requests one after the other, each answered, and reads what was written."""
    source, mount = Source(data), kernel()
    mount.empty()
    for _ in range(1 + source.below(12)):
        if not source:
            break
        _ACTIONS[source.below(len(_ACTIONS))](source, mount)
    for handle in mount.handles:
        _compare(mount, handle, 0, SPAN)
    mount.check()


def _handle(source: Source, mount: _Kernel) -> int:
    among = list(mount.handles)
    return source.choice((among[0], among[0], among[1], NO_HANDLE))


def _offset(source: Source) -> int:
    kind = source.below(8)
    if kind == 0:
        return source.number()
    offset = source.below(65536) * 6 % SPAN
    return offset if kind < 4 else offset - offset % (512 if kind == 4 else BLOCK_BYTES)


def _write(source: Source, mount: _Kernel) -> None:
    handle, offset, pattern = _handle(source, mount), _offset(source), source.take(2)
    size = 1 + source.below(9000) if source.below(2) else BLOCK_BYTES * (1 + source.below(5))
    payload = (pattern.ljust(2, b"\7") * size)[:size]
    flags = source.choice((0, 0, 0, abi.O_DIRECT))
    answer = mount.ask(abi.WRITE, struct.pack("<QQIIQII", handle, offset, size, 0, 0, flags, 0) + payload)
    assert answer is not None
    number, body = answer
    if flags and (offset | size) & 511:
        assert number == errno.EINVAL
    elif handle == NO_HANDLE:
        assert number
    elif number:
        assert offset + size > 1 << 40, f"a write failed errno={number}"
    else:
        assert struct.unpack_from("<I", body) == (size,)
        if offset < FAR:
            _put(mount.contents[handle], offset, payload)
    if offset + size >= FAR and not number:
        mount.empty()


def _put(content: bytearray, offset: int, payload: bytes) -> None:
    content.extend(bytes(max(0, offset + len(payload) - len(content))))
    content[offset : offset + len(payload)] = payload


def _read(source: Source, mount: _Kernel) -> None:
    handle, offset, size = _handle(source, mount), _offset(source), 1 + source.below(20000)
    if handle != NO_HANDLE and offset < 1 << 62:
        _compare(mount, handle, offset, size)
    else:
        answer = mount.ask(abi.READ, struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0))
        assert answer is not None
        assert answer[0] or not answer[1]


def _compare(mount: _Kernel, handle: int, offset: int, size: int) -> None:
    answer = mount.ask(abi.READ, struct.pack("<QQIIQII", handle, offset, size, 0, 0, 0, 0))
    assert answer == (0, bytes(mount.contents[handle][offset : offset + size])), "a read returned other bytes"


def _fsync(source: Source, mount: _Kernel) -> None:
    handle = _handle(source, mount)
    answer = mount.ask(abi.FSYNC, struct.pack("<QII", handle, source.below(2), 0))
    assert answer is not None
    assert bool(answer[0]) == (handle == NO_HANDLE)


def _fallocate(source: Source, mount: _Kernel) -> None:
    handle, offset, length = _handle(source, mount), _offset(source), source.below(65536)
    mode = source.choice((0, 1, 3, 0x10, 0x11, 0x20, source.below(256)))
    answer = mount.ask(abi.FALLOCATE, struct.pack("<QQQII", handle, offset, length, mode, 0))
    assert answer is not None
    if answer[0] or handle == NO_HANDLE:
        assert answer[0] or mode == abi.FALLOC_KEEP_SIZE  # which asks for nothing
        return
    content, end = mount.contents[handle], offset + length
    if offset >= FAR:
        mount.empty()
        return
    if mode & ~1:
        held = content[offset:end]
        content[offset : offset + len(held)] = bytes(len(held))
    if not mode & 1:
        content.extend(bytes(max(0, end - len(content))))


def _lseek(source: Source, mount: _Kernel) -> None:
    handle, offset, whence = _handle(source, mount), _offset(source), source.below(6)
    answer = mount.ask(abi.LSEEK, struct.pack("<QQII", handle, offset, whence, 0))
    assert answer is not None
    number, body = answer
    if whence not in (os.SEEK_DATA, os.SEEK_HOLE) or handle == NO_HANDLE:
        assert number
        return
    content = mount.contents[handle]
    if number:
        assert number == errno.ENXIO
        assert whence == os.SEEK_DATA or offset >= len(content)
        assert not content[offset:].strip(b"\0")
        return
    (found,) = struct.unpack("<Q", body)
    assert offset <= found <= len(content)
    if whence == os.SEEK_DATA:
        assert not content[offset:found].strip(b"\0")
    else:
        assert found == len(content) or not content[found : found + 1].strip(b"\0")


def _copy(source: Source, mount: _Kernel) -> None:
    one, other = _handle(source, mount), _handle(source, mount)
    at, to, length = _offset(source), _offset(source), source.below(65536)
    opcode = source.choice((abi.COPY_FILE_RANGE, abi.COPY_FILE_RANGE_64))
    if one == other and abs(at - to) < length:  # the kernel refuses these itself
        return
    answer = mount.ask(opcode, abi.COPY_IN.pack(one, at, mount.handles.get(other, 1), other, to, length, 0))
    assert answer is not None
    number, body = answer
    if number or NO_HANDLE in (one, other):
        assert number
        return
    copied = int.from_bytes(body[:8] if opcode == abi.COPY_FILE_RANGE_64 else body[:4], "little")
    assert copied <= length
    piece = bytes(mount.contents[one][at : at + copied])
    assert len(piece) == copied
    if copied and to < FAR:
        _put(mount.contents[other], to, piece)
    elif copied:
        mount.empty()


def _anything(source: Source, mount: _Kernel) -> None:
    """Any body under an opcode that carries none of the data: answered, or handed on."""
    opcode = source.choice((*FORWARDED, abi.SETATTR, abi.GETXATTR, abi.FSYNC, abi.LSEEK, source.below(256)))
    if opcode in (
        abi.READ,
        abi.WRITE,
        abi.FALLOCATE,
        abi.COPY_FILE_RANGE,
        abi.COPY_FILE_RANGE_64,
        abi.INTERRUPT,
    ):
        return
    inode = source.choice((*VDISKS, source.number()))
    body = source.piece()
    if opcode == abi.GETXATTR:
        body = abi.GETXATTR_IN.pack(source.below(300)) + body
    if opcode == abi.SETATTR:
        body = (
            struct.pack("<I", source.choice((1 << 5, 1 << 10, 3 << 9 | 1 << 5, source.below(65536)))) + body
        )
        body = body.ljust(abi.SETATTR_IN.size, b"\0")
    mount.ask(opcode, body, inode=inode)


_ACTIONS = (_write, _write, _write, _read, _fsync, _fallocate, _lseek, _copy, _anything, _anything)
