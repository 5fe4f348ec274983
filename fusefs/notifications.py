"""What the daemon tells the kernel without being asked: a reply without a request."""

import errno
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from fusefs.fuse_abi import OUT_HEADER
from fusefs.notifier import LEARN_SIZE, MESSAGE_BYTES_MAX, NUMBER
from metadata.errors import Unavailable

_INVALIDATE_INODE, _INVALIDATE_ENTRY = 2, 3
_INVALIDATION = struct.Struct("<Qqq")
"""inode, offset (-1: attributes only), length (0: to the end)"""
_ENTRY_INVALIDATION = struct.Struct("<QII")
"""inode of the directory, bytes of the name, flags; the name and a zero follow"""


class Notifications:
    """One to a mount; ``run`` is its task.

    Args:
        fuse_fd: /dev/fuse, mounted.
        notifier: the way to the process that may wait for us (fusefs/notifier.py).
    """

    def __init__(self, fuse_fd: int, notifier: socket.socket) -> None:
        self._fuse_fd, self._notifier = fuse_fd, notifier
        self._asked = 0
        self._told: dict[int, trio.Event] = {}
        self._waiting_for_room = trio.Lock()
        """One task at a time may wait for a socket."""

    async def run(self) -> None:
        """Takes the notifier's answers, for as long as it runs."""
        while True:
            await trio.lowlevel.wait_readable(self._notifier)
            answer = self._notifier.recv(NUMBER.size)
            if not answer:
                raise Unavailable(
                    "the notifier has ended"
                )  # and so does this daemon; the next one has another
            told = self._told.pop(NUMBER.unpack(answer)[0], None)
            if told is not None:
                told.set()

    def knows_inode(self, inode: int) -> bool:
        """Whether the kernel holds this inode. It looks at its attributes again then, nothing else happens."""
        body = _INVALIDATION.pack(inode, -1, 0)  # of attributes only: the kernel waits for nobody
        try:
            os.write(self._fuse_fd, OUT_HEADER.pack(16 + len(body), _INVALIDATE_INODE, 0) + body)
        except OSError as exc:
            return exc.errno != errno.ENOENT
        return True

    async def write_back(self, inode: int, offset: int) -> None:
        """Lets the kernel send what it has not written yet from ``offset`` on, and drop those pages.

        It waits for our answers to those writes.
        """
        await self._tell(_INVALIDATE_INODE, _INVALIDATION.pack(inode, offset, 0))

    async def drop_pages(self, inode: int, offset: int, length: int) -> None:
        """The same for [offset, offset + length); length 0: to the end."""
        await self._tell(_INVALIDATE_INODE, _INVALIDATION.pack(inode, offset, length))

    async def forget_entry(self, parent: int, name: bytes) -> None:
        """Lets the kernel look a name up anew, and drop the inode behind it, with its pages, unless it is open.

        The kernel may hold the directory's lock while it waits for an answer of ours.
        """
        await self._tell(_INVALIDATE_ENTRY, _ENTRY_INVALIDATION.pack(parent, len(name), 0) + name + b"\0")

    async def learn_size(self, mountpoint: str, path: str) -> None:
        """Lets the kernel take a file's size, which another node has changed, from us.

        Only what has no writer that goes through its cache: else it knows better, and keeps its own.
        """
        names = os.fsencode(mountpoint) + b"\0" + os.fsencode(path)
        if NUMBER.size + len(LEARN_SIZE) + len(names) <= MESSAGE_BYTES_MAX:
            await self._send(LEARN_SIZE + names)

    async def _tell(self, what: int, body: bytes) -> None:
        """Returns when the kernel has done it, or refused: then it knows no such inode or name, which is as good."""
        await self._send(OUT_HEADER.pack(16 + len(body), what, 0) + body)

    async def _send(self, body: bytes) -> None:
        self._asked = number = (self._asked + 1) & 0xFFFFFFFF
        message = NUMBER.pack(number) + body
        self._told[number] = told = trio.Event()
        try:
            while True:
                try:
                    self._notifier.send(message)
                    break
                except BlockingIOError:
                    async with self._waiting_for_room:
                        await trio.lowlevel.wait_writable(self._notifier)
            await told.wait()
        finally:
            self._told.pop(number, None)

    @asynccontextmanager
    async def entry_going(self, parent: int, name: bytes) -> AsyncIterator[None]:
        """Inside, a name is taken away; the kernel is told before, in case the daemon dies on the way, and after."""
        await self.forget_entry(parent, name)
        yield
        await self.forget_entry(parent, name)
