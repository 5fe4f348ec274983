"""The channel without a kernel: requests come, and answers go, by a socket of whole messages in place of /dev/fuse."""

import errno
import os
import pathlib
import socket
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import cast

import pytest
import trio
import trio.testing

from fusefs import fuse_abi as abi
from fusefs.channel import Channel
from fusefs.data_requests import DataRequests
from fusefs.notifications import Notifications
from metadata.ids import VdiskId
from replication.vdisks import Vdisks
from tests.replication.faults import FaultyRig
from tests.replication.rig import B, Rig, block, blocks, content, create, expect_errors, handles_of, run

MIB = 1 << 20
SHOWN = abi.Attributes(1, 20, MIB, 8, 1, 2, 3, 0o100644, 1, 0, 0, B)


@pytest.fixture
def rig(tmp_path: pathlib.Path) -> Rig:
    return Rig(tmp_path)


@pytest.fixture
def faulty(tmp_path: pathlib.Path) -> FaultyRig:
    return FaultyRig(tmp_path)


class Kernel:
    """The other end of /dev/fuse: asks, and takes answers; and what the channel is given beside the vdisks."""

    def __init__(self, vdisks: Vdisks) -> None:
        self.end, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.setblocking(False)
        self.fuse_fd, self.init_fd = theirs.detach(), os.memfd_create("init")
        self.xattrs: dict[bytes, bytes] = {}
        self.times: list[tuple[int, int | None, int | None]] = []
        self.cleared: list[int] = []
        self._unique = 0
        requests = DataRequests(vdisks, clear_suid=self._clear, notifications=cast(Notifications, self))
        self.channel = Channel(
            self.fuse_fd,
            self.init_fd,
            vdisks=vdisks,
            requests=requests,
            set_times=self._set_times,
            get_xattr=lambda inode, name: self.xattrs.get(name),
        )

    async def _clear(self, vdisk: VdiskId) -> None:
        self.cleared.append(vdisk)

    def _set_times(self, inode: int, mtime_ns: int | None, ctime_ns: int | None) -> abi.Attributes | None:
        self.times.append((inode, mtime_ns, ctime_ns))
        return SHOWN

    async def write_back(self, inode: int, offset: int) -> None:
        """As ``Notifications.write_back``."""

    def ask(self, opcode: int, body: bytes) -> int:
        """Sends a request; returns its number."""
        self._unique += 2
        header = abi.IN_HEADER.pack(abi.IN_HEADER_BYTES + len(body), opcode, self._unique, 20, 0, 0, 0, 0, 0)
        self.end.send(header + body)
        return self._unique

    def read(self, fh: int, offset: int, size: int, *, flags: int = os.O_RDONLY) -> int:
        return self.ask(abi.READ, struct.pack("<QQIIQII", fh, offset, size, 0, 0, flags, 0))

    def write(self, fh: int, offset: int, data: bytes, *, flags: int = 0, open_flags: int = os.O_RDWR) -> int:
        fields = struct.pack("<QQIIQII", fh, offset, len(data), flags, 0, open_flags, 0)
        return self.ask(abi.WRITE, fields + data)

    def fsync(self, fh: int) -> int:
        return self.ask(abi.FSYNC, struct.pack("<QII", fh, 0, 0))

    def has_answer(self) -> bool:
        """Whether one waits to be taken."""
        try:
            self.end.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        return True

    async def answer(self) -> tuple[int, int, bytes]:
        """The next one: unique, errno, and what follows the header."""
        await trio.lowlevel.wait_readable(self.end)
        data = self.end.recv(2 * MIB)
        length, error, unique = abi.OUT_HEADER.unpack_from(data)
        assert length == len(data)
        return unique, -error, data[16:]

    async def answers(self, *uniques: int) -> dict[int, tuple[int, bytes]]:
        """Those to all of these, in whatever order they come."""
        found = {}
        for _ in uniques:
            unique, error, body = await self.answer()
            found[unique] = error, body
        assert set(found) == set(uniques)
        return found

    def close(self) -> None:
        for end in (self.channel._ours, self.channel._theirs):
            end.close()
        os.close(self.fuse_fd)
        os.close(self.init_fd)
        self.end.close()


@asynccontextmanager
async def served(vdisks: Vdisks) -> AsyncIterator[Kernel]:
    kernel = Kernel(vdisks)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.channel.serve)
            try:
                yield kernel
            finally:
                kernel.channel.finish()
    finally:
        kernel.close()


def on_a_channel(rig: Rig, scenario: Callable[[Kernel, Vdisks, int], Awaitable[None]]) -> None:
    """``scenario`` gets the handle of an open vdisk, 20, of 1 MiB."""

    async def main() -> None:
        async with rig.node() as vdisks:
            await create(vdisks, 20, MIB)
            async with served(vdisks) as kernel:
                await scenario(kernel, vdisks, handles_of(vdisks, 20)[0])

    run(main)


def test_what_is_written_is_read_back_in_whatever_pieces(rig: Rig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        sent = [
            kernel.write(fh, 0, blocks(1, 2, 3)),
            kernel.write(fh, 5000, b"part"),
            kernel.write(fh, B, block(9)),
        ]
        for unique, (error, body) in (await kernel.answers(*sent)).items():
            assert (error, struct.unpack("<II", body)[1]) == (0, 0), unique
        wanted = bytearray(await content(vdisks.heads[20]))  # type: ignore[arg-type]
        assert wanted[: 3 * B] == block(1) + block(9) + block(3)
        for offset, size in ((0, B), (0, 3 * B), (4000, 200), (MIB - 100, 4096), (MIB, B)):
            unique = kernel.read(fh, offset, size)
            assert await kernel.answer() == (unique, 0, bytes(wanted[offset : offset + size]))

    on_a_channel(rig, scenario)


def test_single_blocks_that_wait_together_are_written_together_and_each_is_answered(rig: Rig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        unique = kernel.write(fh, 0, block(0))
        await kernel.answers(unique)  # the row is in memory now
        sent = [kernel.write(fh, number * B, block(number)) for number in range(12)]
        for error, body in (await kernel.answers(*sent)).values():
            assert (error, body) == (0, struct.pack("<II", B, 0))
        assert (await content(vdisks.heads[20]))[: 12 * B] == blocks(*range(12))  # type: ignore[arg-type]

    on_a_channel(rig, scenario)


@pytest.mark.parametrize(("offset", "size"), [(1, 512), (0, 100), (513, 511)])
def test_direct_requests_that_are_not_aligned_are_refused(rig: Rig, offset: int, size: int) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        direct = os.O_RDWR | os.O_DIRECT
        sent = (
            kernel.read(fh, offset, size, flags=direct),
            kernel.write(fh, offset, b"x" * size, open_flags=direct),
        )
        assert {error for error, _ in (await kernel.answers(*sent)).values()} == {errno.EINVAL}
        unique = kernel.read(fh, 512, 1024, flags=direct)
        assert await kernel.answer() == (unique, 0, bytes(1024))

    on_a_channel(rig, scenario)


def test_an_fsync_is_answered_when_the_commit_that_holds_it_is_durable(faulty: FaultyRig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        await kernel.answers(kernel.write(fh, 0, block(1)))
        async with faulty.faults.held("sync") as hold:
            unique = kernel.fsync(fh)
            await hold.wait_reached()
            assert not kernel.has_answer()
        assert await kernel.answer() == (unique, 0, b"")
        unique = kernel.fsync(fh)  # nothing is left to be done
        assert await kernel.answer() == (unique, 0, b"")

    on_a_channel(faulty, scenario)


def test_a_commit_under_way_answers_no_fsync_of_what_was_written_since(faulty: FaultyRig) -> None:
    syncs, release = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]
    meet = faulty.faults.meet

    def hold_each(what: str, path: str) -> None:
        if what == "sync" and not all(reached.is_set() for reached in syncs):
            number = [reached.is_set() for reached in syncs].index(False)
            syncs[number].set()
            assert release[number].wait(30)
        meet(what, path)

    async def reached(kernel: Kernel, number: int) -> None:
        while not syncs[number].is_set():
            assert not kernel.has_answer()
            await trio.lowlevel.checkpoint()
        assert not kernel.has_answer()

    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        await kernel.answers(kernel.write(fh, 0, block(1)))
        faulty.faults.meet = hold_each
        first = kernel.fsync(fh)
        await reached(kernel, 0)
        await kernel.answers(kernel.write(fh, B, block(2)))
        second = kernel.fsync(fh)
        await trio.testing.wait_all_tasks_blocked()
        release[0].set()
        assert await kernel.answer() == (first, 0, b"")
        await reached(kernel, 1)
        release[1].set()
        assert await kernel.answer() == (second, 0, b"")

    try:
        on_a_channel(faulty, scenario)
    finally:
        for one in release:
            one.set()


def test_a_failed_commit_is_told_once_and_the_next_fsync_works(faulty: FaultyRig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        await kernel.answers(kernel.write(fh, 0, block(1)))
        faulty.faults.failing["sync"] = 1
        for error in (errno.EIO, 0):
            unique = kernel.fsync(fh)
            assert await kernel.answer() == (unique, error, b"")

    on_a_channel(faulty, scenario)


def test_holes_are_made_found_and_refused(rig: Rig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        await kernel.answers(kernel.write(fh, 0, blocks(1, 2, 3, 4)))

        async def done(opcode: int, fields: bytes) -> tuple[int, bytes]:
            unique = kernel.ask(opcode, fields)
            return (await kernel.answers(unique))[unique]

        def fallocate(offset: int, length: int, mode: int) -> bytes:
            return abi.FALLOCATE_IN.pack(fh, offset, length, mode) + bytes(4)

        punch = abi.FALLOC_PUNCH_HOLE | abi.FALLOC_KEEP_SIZE
        assert await done(abi.FALLOCATE, fallocate(B, B, punch)) == (0, b"")
        for whence, offset, found in (
            (os.SEEK_HOLE, 0, B),
            (os.SEEK_DATA, B, 2 * B),
            (os.SEEK_HOLE, 2 * B, 4 * B),
        ):
            answer = await done(abi.LSEEK, abi.LSEEK_IN.pack(fh, offset, whence) + bytes(4))
            assert answer == (0, found.to_bytes(8, "little"))
        assert (await done(abi.LSEEK, abi.LSEEK_IN.pack(fh, MIB // 2, os.SEEK_DATA) + bytes(4)))[
            0
        ] == errno.ENXIO
        assert (await done(abi.FALLOCATE, fallocate(0, B, 0x08)))[
            0
        ] == errno.EOPNOTSUPP  # FALLOC_FL_COLLAPSE_RANGE
        assert await done(abi.FALLOCATE, fallocate(MIB, B, 0)) == (0, b"")
        assert vdisks.heads[20].size == MIB + B

    on_a_channel(rig, scenario)


def test_a_stranger_s_write_takes_the_set_id_bits(rig: Rig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        await kernel.answers(kernel.write(fh, 0, block(1), flags=abi.WRITE_KILL_SUIDGID))
        assert kernel.cleared == [20]

    on_a_channel(rig, scenario)


def test_extended_attributes_are_answered_as_getxattr_wants(rig: Rig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        kernel.xattrs[b"user.a"] = b"value"
        for size, name, wanted in (
            (0, b"user.a", (0, abi.GETXATTR_OUT.pack(5))),
            (5, b"user.a", (0, b"value")),
            (4, b"user.a", (errno.ERANGE, b"")),
            (64, b"user.b", (errno.ENODATA, b"")),
        ):
            unique = kernel.ask(abi.GETXATTR, abi.GETXATTR_IN.pack(size) + name + b"\0")
            assert (await kernel.answers(unique))[unique] == wanted

    on_a_channel(rig, scenario)


def test_times_are_set_at_once_and_a_size_is_told_unless_the_kernel_may_know_better(rig: Rig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        def setattr_of(valid: int, size: int = 0) -> bytes:
            return abi.SETATTR_IN.pack(valid, 0, fh, size, 0, 1, 5, 7, 2, 6, 8, 0, 0, 0, 0, 0)

        unique = kernel.ask(abi.SETATTR, setattr_of(1 << 5 | 1 << 10))
        assert (await kernel.answers(unique))[unique] == (0, abi.attributes_reply(unique, SHOWN)[16:])
        assert kernel.times == [(20, 5 * 10**9 + 6, 7 * 10**9 + 8)]
        unique = kernel.ask(abi.SETATTR, setattr_of(1 << 3, abi.ASKED_SIZE))
        assert (await kernel.answers(unique))[unique][0] == 0
        buffered = await vdisks.open(VdiskId(20), flags=os.O_RDWR)
        unique = kernel.ask(abi.SETATTR, setattr_of(1 << 3, abi.ASKED_SIZE))
        assert (await kernel.answers(unique))[unique] == (errno.EBUSY, b"")
        vdisks.close(buffered)

    on_a_channel(rig, scenario)


def test_everything_else_goes_to_libfuse_and_its_replies_to_the_kernel(rig: Rig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        libfuse = kernel.channel._theirs
        libfuse.setblocking(False)
        unique = kernel.ask(1, b"name\0")
        await trio.lowlevel.wait_readable(libfuse)
        assert libfuse.recv(4096)[40:] == b"name\0"
        libfuse.send(abi.OUT_HEADER.pack(16, -errno.ENOENT, unique))
        assert await kernel.answer() == (unique, errno.ENOENT, b"")

    on_a_channel(rig, scenario)


def test_what_no_daemon_answered_is_asked_for_where_the_kernel_can(rig: Rig) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        assert kernel.channel.resends is None
        flags = abi.HAS_RESEND | abi.INIT_EXT
        kernel.ask(abi.INIT, abi.INIT_IN.pack(7, 41, 65536, flags & 0xFFFFFFFF, flags >> 32))
        await trio.testing.wait_all_tasks_blocked()
        assert kernel.channel.resends
        kernel.channel.ask_for_unanswered()
        assert kernel.end.recv(4096) == abi.OUT_HEADER.pack(16, abi.NOTIFY_RESEND, 0)

    on_a_channel(rig, scenario)


def test_the_unexpected_is_logged_and_answered(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(kernel: Kernel, vdisks: Vdisks, fh: int) -> None:
        await kernel.answers(kernel.write(fh, 0, block(1)))

        def fails(*_: object) -> None:
            raise ZeroDivisionError

        with monkeypatch.context() as patched:
            patched.setattr(type(vdisks.heads[20]), "read_nowait", fails)
            patched.setattr(type(vdisks.heads[20]), "write_nowait", fails)
            sent = kernel.read(fh, 0, B), kernel.write(fh, 0, blocks(1, 2))
            assert {error for error, _ in (await kernel.answers(*sent)).values()} == {errno.EIO}
        unique = kernel.read(fh, 0, B)
        assert await kernel.answer() == (unique, 0, block(1))

    on_a_channel(rig, scenario)
    expect_errors(caplog, "unexpected")
