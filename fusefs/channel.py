"""The channel: reads /dev/fuse, answers data requests at once, hands all others to pyfuse3.

    kernel --/dev/fuse--> serve_kernel --READ, WRITE--> the head's nowait calls --> reply, in one go
                              |  |------FSYNC, FALLOCATE, LSEEK, COPY_FILE_RANGE, misses--> a task each
                              |--everything else--> socket pair --> libfuse, pyfuse3, fusefs/operations.py
    kernel <--/dev/fuse-- serve_replies <-------------- socket pair <--+   (INIT's reply is amended)

libfuse believes that its end of the SEQPACKET pair is /dev/fuse. This module is written for speed: per 4 KiB
request at queue depth 16 it spends about 3 us of its own, a head's nowait call 4, the two system calls the rest.
Nothing on this path waits for a disk: a head says None or False instead, and the request becomes a task.
"""

import errno
import functools
import logging
import os
import socket
import struct
from collections import deque
from collections.abc import Awaitable, Callable

import trio

from fusefs import fuse_abi as abi
from fusefs.data_requests import DataRequests
from fusefs.handover import load_init, store_init
from fusefs.lost_requests import LostRequests, map_slots
from fusefs.request_slots import REQUEST_BYTES_MAX, SLOT_BYTES, SLOTS, WRITE_BYTES_MAX, Slots, Waiting
from metadata.errors import IndexDamaged, VdiskfsError
from metadata.ids import VdiskId
from metadata.units import BLOCK_BYTES
from replication.commit import begin_nowait, grow_ahead, note_sync
from replication.head import SYNC_STREAK, Head
from replication.reader import BLOCK, BLOCK_ANSWER
from replication.remote import Remote
from replication.vdisks import Vdisks
from replication.view import View

log = logging.getLogger(__name__)

_DATA = (abi.READ, abi.WRITE)
_pack_header = abi.OUT_HEADER.pack_into
STREAM_BYTES = 256 << 10
"""Writes of this size and more come in streams."""
BURST = 32
"""Requests taken before other tasks get a turn."""
IN_HAND_S = 0.2
"""How long a daemon that finishes waits for the requests in hand: guests wait for its successor meanwhile."""
SPIN_READS = 12
"""Further looks for a request before sleeping: the next one of a queue-depth-1 user comes within 20 us or so."""


GetXattr = Callable[[int, bytes], bytes | None]
SetTimes = Callable[[int, int | None, int | None], abi.Attributes | None]


class Channel:
    """One mount's channel; ``serve`` runs until the mount is gone.

    Args:
        fuse_fd: /dev/fuse, mounted.
        init_fd: where the INIT request is kept for a successor.
        vdisks: whose heads serve.
        requests: what tasks do.
        get_xattr: an inode's extended attribute by name, None if it has none of it.
        set_times: notes a vdisk's modification and change time (ns) and returns its attributes; None if it cannot
            at once.
    """

    def __init__(
        self,
        fuse_fd: int,
        init_fd: int,
        *,
        vdisks: Vdisks,
        requests: DataRequests,
        set_times: SetTimes,
        get_xattr: GetXattr,
    ) -> None:
        self._fuse_fd, self._init_fd = fuse_fd, init_fd
        self._vdisks, self._requests = vdisks, requests
        self._set_times, self._get_xattr = set_times, get_xattr
        os.set_blocking(fuse_fd, False)
        self._ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self._ours, self._theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        self._ours.setblocking(False)
        self._backlog: deque[bytes] = deque()
        self._backlog_grew = trio.Event()
        self._ended = False
        self._slots = Slots(map_slots(init_fd))
        self._taking = trio.CancelScope()
        self._init_unique = -1
        self._offered = 0
        self._lost: LostRequests | None = None
        self.counts = {"slow": 0, "forwarded": 0}

    def libfuse_mountpoint(self) -> str:
        """What to give ``pyfuse3.init`` for a mountpoint."""
        return f"/dev/fd/{self._theirs.fileno()}"

    async def resume(self) -> bool:
        """Takes over from a dead daemon, if there was one: replays INIT, asks for what was not answered.

        pyfuse3 is initialised and its main loop runs. Returns whether there was one.
        """
        request = load_init(self._init_fd)
        if request is None:
            return False
        self._introduced(request)
        self._ours.send(request)
        await trio.lowlevel.wait_readable(self._ours)
        self._ours.recv(1 << 16)  # the kernel had its reply from the first daemon
        return True

    def _introduced(self, request: bytes) -> None:
        """The kernel has said in its INIT request what it can do."""
        self._offered = abi.offered_flags(request)
        self._lost = None if self.resends else LostRequests(self._init_fd)

    @property
    def resends(self) -> bool | None:
        """Whether this kernel sends again what a dead daemon did not answer; None before it has introduced itself."""
        return bool(self._offered & abi.HAS_RESEND) if self._offered else None

    def ask_for_unanswered(self) -> None:
        """Asks the kernel to send again what no daemon answered; where it cannot, that fails with EIO."""
        if not self._offered & abi.HAS_RESEND:
            failed = self._lost.fail_all(self._fuse_fd) if self._lost else 0
            log.warning("this kernel cannot resend requests: %d in flight failed with EIO", failed)
            return
        os.write(self._fuse_fd, abi.OUT_HEADER.pack(16, abi.NOTIFY_RESEND, 0))

    async def serve(self) -> bool:
        """Serves requests until the mount is gone (False), or a successor is to go on (True, see ``finish``)."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve_replies)
            nursery.start_soon(self._send_backlog)
            async with trio.open_nursery() as tasks:
                with self._taking:
                    await self._serve_kernel(tasks)
                self._ended = True
                if self._taking.cancelled_caught:
                    tasks.cancel_scope.deadline = trio.current_time() + IN_HAND_S
                else:
                    tasks.cancel_scope.cancel()
            nursery.cancel_scope.cancel()
        return self._taking.cancelled_caught

    def finish(self) -> None:
        """Takes no more requests; ``serve`` returns when those in hand are answered.

        What is not answered then, the kernel gives to the successor, which asks for it.
        """
        # Requests are taken and dealt with, or handed on, without an await: nothing is lost between the two.
        self._taking.cancel()

    async def _serve_kernel(self, nursery: trio.Nursery) -> None:
        fuse_fd, readv, unpack = self._fuse_fd, os.readv, abi.REQUEST_HEAD.unpack_from
        slots = self._slots
        buffer, vectors, largest = slots.buffer, slots.vectors, slots.largest
        heads = self._vdisks.heads_by_handle
        spins = burst = 0
        while True:
            waiting = slots.waiting
            try:
                length = readv(fuse_fd, vectors[waiting])
            except BlockingIOError:
                if waiting:
                    self._write_waiting(nursery)
                    continue
                spins += 1
                if spins > SPIN_READS:
                    spins = burst = 0
                    await trio.lowlevel.wait_readable(fuse_fd)
                continue
            except OSError as exc:
                if exc.errno == errno.ENODEV:
                    return
                if exc.errno in (errno.ENOENT, errno.EINTR):  # the request was interrupted meanwhile
                    continue
                raise
            spins = 0
            opcode, unique, fh, offset, size, flags, open_flags = unpack(buffer, waiting * SLOT_BYTES)
            if self._lost is not None:
                self._lost.note(unique)
            head = heads.get(fh) if opcode in _DATA else None
            if (
                size == BLOCK_BYTES
                and opcode == abi.WRITE
                and slots.take(head, unique, fh=fh, offset=offset, flags=flags)
            ):
                if waiting + 1 == SLOTS:
                    self._write_waiting(nursery)
            else:
                if waiting:
                    self._write_waiting(nursery)
                request = vectors[waiting][0]
                if opcode == abi.READ:
                    if (offset | size) & 511 and open_flags & abi.O_DIRECT:
                        self._reply(unique, errno.EINVAL)
                    elif head is None or not self._read_nowait(head, unique, offset, size):
                        nursery.start_soon(self._answer, unique, self._requests.read(fh, offset, size))
                elif opcode == abi.WRITE:
                    data = (
                        largest[waiting]
                        if size == WRITE_BYTES_MAX
                        else request[abi.WRITE_DATA_AT : abi.WRITE_DATA_AT + size]
                    )
                    if (offset | size) & 511 and open_flags & abi.O_DIRECT:
                        self._reply(unique, errno.EINVAL)
                    else:
                        kill = bool(flags & abi.WRITE_KILL_SUIDGID)
                        self._write(nursery, fh, unique, offset=offset, data=data, kill_suid=kill)
                elif not self._small_nowait(nursery, opcode, unique, request[:length]):
                    self._dispatch(nursery, opcode, unique, bytes(request[:length]))
                    spins = SPIN_READS  # a task waits for its turn
            burst += 1
            if burst >= BURST:
                burst = 0
                if slots.waiting:
                    self._write_waiting(nursery)
                await trio.lowlevel.checkpoint()

    def _write_waiting(self, nursery: trio.Nursery) -> None:
        """Carries out the writes that wait in their slots: together, or else one by one."""
        head, waiting = self._slots.give()
        if len(waiting) > 1 and self._write_many_nowait(head, waiting):
            return
        for unique, fh, offset, data in waiting:
            self._write(nursery, fh, unique, offset=offset, data=data)

    def _write_many_nowait(self, head: Head, waiting: "list[Waiting]") -> bool:
        try:
            if not head.write_many_nowait([write[2] for write in waiting], [write[3] for write in waiting]):
                return False
        except IndexDamaged as exc:
            self._vdisks.start_over(exc)
        except Exception:  # none was taken; one by one each gets its own answer
            return False
        for unique, _, _, data in waiting:
            try:
                os.write(self._fuse_fd, abi.WRITE_REPLY.pack(24, 0, unique, len(data), 0))
            except OSError as exc:
                self._reply_failed(exc)
        return True

    def _write(
        self,
        nursery: trio.Nursery,
        fh: int,
        unique: int,
        *,
        offset: int,
        data: memoryview,
        kill_suid: bool = False,
    ) -> None:
        head, size = self._vdisks.heads_by_handle.get(fh), len(data)
        if not isinstance(head, Head) or kill_suid or not self._write_nowait(head, unique, offset, data):
            work = self._requests.write(fh, offset, bytes(data), kill_suid=kill_suid)
            nursery.start_soon(self._answer, unique, work)
        elif head.syncs.streak and head.syncs.wants_commit():
            begin_nowait(head, light=True)  # the fsync that will ask for it is on its way
        elif size >= STREAM_BYTES and head.log.wants_room_ahead() and not head.room_lock.locked():
            nursery.start_soon(grow_ahead, head)

    def _read_nowait(self, head: Head | View | Remote, unique: int, offset: int, size: int) -> bool:
        """Answers a read if memory can; False: it needs a task."""
        try:
            data = head.read_nowait(offset, size)
            if data is None:
                return False
            if data is BLOCK:
                _pack_header(BLOCK_ANSWER, 0, 16 + BLOCK_BYTES, 0, unique)
                os.write(self._fuse_fd, BLOCK_ANSWER)
            else:
                os.writev(self._fuse_fd, (abi.OUT_HEADER.pack(16 + len(data), 0, unique), data))
        except IndexDamaged as exc:
            self._vdisks.start_over(exc)
        except OSError as exc:
            self._reply_failed(exc)
        except Exception:
            self._unexpected(unique)
        return True

    def _write_nowait(self, head: Head, unique: int, offset: int, data: memoryview) -> bool:
        """Carries a write out if memory can; False: it needs a task."""
        try:
            if not head.write_nowait(offset, data):
                return False
            os.write(self._fuse_fd, abi.WRITE_REPLY.pack(24, 0, unique, len(data), 0))
        except IndexDamaged as exc:
            self._vdisks.start_over(exc)
        except VdiskfsError as exc:
            log.warning("a write failed: %s vdisk=%d offset=%d", exc, head.vdisk, offset)
            self._reply(unique, exc.number)
        except OSError as exc:
            self._reply_failed(exc)
        except Exception:
            self._unexpected(unique)
        return True

    def _small_nowait(self, nursery: trio.Nursery, opcode: int, unique: int, request: memoryview) -> bool:
        """Answers what a guest's flush and a long listing are made of, if it can without a task."""
        try:
            if opcode == abi.FSYNC:
                return self._sync_nowait(
                    nursery, abi.FSYNC_IN.unpack_from(request, abi.IN_HEADER_BYTES)[0], unique
                )
            if opcode == abi.GETXATTR:
                self._get_xattr_now(unique, request)
                return True
            return opcode == abi.SETATTR and self._set_times_nowait(unique, request)
        except struct.error:
            return self._reply_to_short(opcode, unique)

    def _sync_nowait(self, nursery: trio.Nursery, fh: int, unique: int) -> bool:
        """Answers an fsync now, or lets the end of the commit that holds it do so; False: it needs a task."""
        head, handle = self._vdisks.heads_by_handle.get(fh), self._vdisks.handles.get(fh)
        if isinstance(head, View) and head.fenced is None:
            self._reply(unique, 0)
            return True
        if not isinstance(head, Head) or handle is None or handle.errors_told != head.error_no:
            return False
        if head.audience is not None:  # durable is not all then: others must have it too
            return False
        flight = head.flight
        if (flight is None or flight.finished) and head.is_dirty:
            begin_nowait(head, light=head.syncs.streak >= SYNC_STREAK)
            if head.commit_done is None:
                return False
        note_sync(head)
        self._answer_sync(nursery, fh, unique, target=head.change_no)
        return True

    def _answer_sync(self, nursery: trio.Nursery, fh: int, unique: int, *, target: int) -> None:
        head, handle = self._vdisks.heads_by_handle.get(fh), self._vdisks.handles.get(fh)
        if self._ended:
            return
        told = handle is not None and head is not None and handle.errors_told == head.error_no
        if not isinstance(head, Head) or not told or head.audience is not None:
            nursery.start_soon(self._answer, unique, self._requests.fsync(fh))
            return
        if head.committed_no >= target:
            self._reply(unique, 0)
            return
        if head.commit_done is None and not begin_nowait(head, light=head.syncs.streak >= SYNC_STREAK):
            nursery.start_soon(self._answer, unique, self._requests.fsync(fh))
            return
        again = functools.partial(self._answer_sync, nursery, fh, unique, target=target)
        flight = head.flight
        if flight is not None and flight.change_no >= target:
            flight.answer(functools.partial(self._reply, unique, 0), when_failed=again)
        else:  # a commit that began before this fsync does not hold all of it: wait for it, then for the next
            head.sync_waiters.append(again)

    def _set_times_nowait(self, unique: int, request: memoryview) -> bool:
        """Answers what a kernel with a write-back cache sends before each fsync: the times of what was written."""
        times = abi.parse_times(request)
        if times is None:
            return False
        if abi.asks_size(request) and self._vdisks.has_buffered_writer(VdiskId(times[0])):
            self._reply(unique, errno.EBUSY)  # the kernel may know better: of what is in its cache
            return True
        try:
            shown = self._set_times(*times)
            if shown is None:
                return False
            os.write(self._fuse_fd, abi.attributes_reply(unique, shown))
        except OSError as exc:
            self._reply_failed(exc)
        except Exception:
            self._unexpected(unique)
        return True

    def _get_xattr_now(self, unique: int, request: memoryview) -> None:
        inode, size, name = abi.parse_getxattr(request)
        try:
            value = self._get_xattr(inode, name)
        except VdiskfsError as exc:
            self._reply(unique, exc.number)
            return
        except Exception:
            self._unexpected(unique)
            return
        if value is None:
            self._reply(unique, errno.ENODATA)
        elif size and len(value) > size:
            self._reply(unique, errno.ERANGE)
        else:
            self._reply_with(unique, value if size else abi.GETXATTR_OUT.pack(len(value)))

    def _dispatch(self, nursery: trio.Nursery, opcode: int, unique: int, request: bytes) -> None:
        """Everything but READ and WRITE: a task, or libfuse."""
        try:
            work = self._requests.parse(opcode, request)
        except struct.error:
            self._reply_to_short(opcode, unique)
            return
        if work is not None:
            nursery.start_soon(self._answer, unique, work)
        elif opcode != abi.INTERRUPT:  # every request is answered in bounded time: nothing to interrupt
            if opcode == abi.INIT:
                self._init_unique = unique
                self._introduced(request)
                store_init(self._init_fd, request)
            self.counts["forwarded"] += 1
            self._backlog.append(abi.number_request(request))
            self._backlog_grew.set()

    async def _send_backlog(self) -> None:
        while True:
            while self._backlog:
                try:
                    self._ours.send(self._backlog[0])
                    self._backlog.popleft()
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._ours)
            self._backlog_grew = trio.Event()
            await self._backlog_grew.wait()

    async def _serve_replies(self) -> None:
        while True:
            await trio.lowlevel.wait_readable(self._ours)
            for _ in range(BURST):
                try:
                    reply = self._ours.recv(REQUEST_BYTES_MAX)
                except BlockingIOError:
                    break
                if not reply:
                    return
                if len(reply) >= 16 and abi.OUT_HEADER.unpack_from(reply)[2] == self._init_unique:
                    reply, self._init_unique = abi.amend_init_reply(reply, self._offered), -1
                try:
                    os.write(self._fuse_fd, reply)
                except OSError as exc:
                    self._reply_failed(exc)

    async def _answer(self, unique: int, work: Awaitable[bytes]) -> None:
        """Replies with what ``work`` returns: the bytes behind the header."""
        self.counts["slow"] += 1
        try:
            body = await work
            os.writev(self._fuse_fd, (abi.OUT_HEADER.pack(16 + len(body), 0, unique), body))
        except (
            IndexDamaged
        ) as exc:  # unanswered, the kernel gives it to the next daemon: nobody sees an error
            self._vdisks.start_over(exc)
        except VdiskfsError as exc:
            if exc.number not in (errno.ENXIO, errno.EOPNOTSUPP, errno.EINVAL, errno.EFBIG):
                log.warning("a request failed: %s", exc)
            self._reply(unique, exc.number)
        except OSError as exc:
            self._reply_failed(exc)
        except trio.Cancelled:
            raise
        except Exception:
            self._unexpected(unique)

    def _reply_with(self, unique: int, body: bytes) -> None:
        try:
            os.writev(self._fuse_fd, (abi.OUT_HEADER.pack(16 + len(body), 0, unique), body))
        except OSError as exc:
            self._reply_failed(exc)

    def _reply(self, unique: int, number: int) -> None:
        try:
            os.write(self._fuse_fd, abi.OUT_HEADER.pack(16, -number, unique))
        except OSError as exc:
            self._reply_failed(exc)

    def _reply_to_short(self, opcode: int, unique: int) -> bool:
        """No kernel sends a request that is shorter than its kind; one that does must not end the daemon."""
        log.warning("a request is too short opcode=%d", opcode)
        self._reply(unique, errno.EIO)
        return True

    def _unexpected(self, unique: int) -> None:
        log.exception("unexpected; the request fails with EIO")
        self._reply(unique, errno.EIO)

    def _reply_failed(self, exc: OSError) -> None:
        if exc.errno not in (errno.ENOENT, errno.ENODEV):  # the caller, or the mount, is gone
            log.error("the kernel refused a reply: %s", exc)
