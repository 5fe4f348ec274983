"""What the kernel is told without asking: the bytes it gets, who waits for its answers, and what a refusal means."""

import errno
import os
import socket
import struct
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from fusefs.fuse_abi import OUT_HEADER
from fusefs.notifications import Notifications
from fusefs.notifier import LEARN_SIZE, MESSAGE_BYTES_MAX, NUMBER
from metadata.errors import Unavailable
from tests.replication.rig import run


class Ends:
    """The other ends: the notifier's, and /dev/fuse's."""

    def __init__(self) -> None:
        self.notifier, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel, fuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, self.notifier, self.kernel):
            end.setblocking(False)
        self._ours, self._fuse = ours, fuse
        self.notifications = Notifications(fuse.fileno(), ours)

    def told(self) -> tuple[int, bytes]:
        """The number of the next message, and what it says."""
        message = self.notifier.recv(MESSAGE_BYTES_MAX)
        return NUMBER.unpack(message[: NUMBER.size])[0], message[NUMBER.size :]

    def answer(self, number: int) -> None:
        self.notifier.send(NUMBER.pack(number))

    def close(self) -> None:
        for end in (self.notifier, self.kernel, self._ours, self._fuse):
            end.close()


def with_ends(body: Callable[[Ends, trio.Nursery], Awaitable[None]]) -> None:
    async def scenario() -> None:
        ends = Ends()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ends.notifications.run)
            try:
                await body(ends, nursery)
            finally:
                nursery.cancel_scope.cancel()
        ends.close()

    run(scenario)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked(0.01)


def body_of(message: bytes, kind: int) -> bytes:
    """Of a notification, after its header."""
    length, code, unique = OUT_HEADER.unpack(message[: OUT_HEADER.size])
    assert (length, code, unique) == (len(message), kind, 0)
    return message[OUT_HEADER.size :]


def test_pages_and_names_are_dropped_by_these_bytes() -> None:
    async def body(ends: Ends, nursery: trio.Nursery) -> None:
        told = ends.notifications
        for say, kind, expected in (
            (lambda: told.write_back(20, 4096), 2, struct.pack("<Qqq", 20, 4096, 0)),
            (lambda: told.drop_pages(20, 4096, 8192), 2, struct.pack("<Qqq", 20, 4096, 8192)),
            (lambda: told.forget_entry(1, b"name"), 3, struct.pack("<QII", 1, 4, 0) + b"name\0"),
        ):
            nursery.start_soon(say)
            await settle()
            number, message = ends.told()
            assert body_of(message, kind) == expected
            ends.answer(number)
            await settle()

    with_ends(body)


def test_each_waits_for_its_own_answer() -> None:
    async def body(ends: Ends, nursery: trio.Nursery) -> None:
        done = []

        async def drop(inode: int) -> None:
            await ends.notifications.drop_pages(inode, 0, 0)
            done.append(inode)

        for inode in (20, 21, 22):
            nursery.start_soon(drop, inode)
            await settle()
        numbers = [ends.told()[0] for _ in range(3)]
        assert len(set(numbers)) == 3
        assert done == []
        for number in (numbers[1], 12345, numbers[0]):  # one of them nobody's
            ends.answer(number)
        await settle()
        assert sorted(done) == [20, 21]
        ends.answer(numbers[2])
        await settle()
        assert len(done) == 3

    with_ends(body)


def test_an_answer_to_one_who_has_given_up_is_nobody_s() -> None:
    async def body(ends: Ends, nursery: trio.Nursery) -> None:
        with trio.move_on_after(0.01):
            await ends.notifications.drop_pages(20, 0, 0)
        ends.answer(ends.told()[0])
        await settle()
        assert ends.notifications._told == {}

    with_ends(body)


def test_a_name_s_going_is_told_before_and_after() -> None:
    async def body(ends: Ends, nursery: trio.Nursery) -> None:
        steps = []

        async def go() -> None:
            async with ends.notifications.entry_going(1, b"x"):
                steps.append("inside")
            steps.append("after")

        nursery.start_soon(go)
        for expected in ([], ["inside"]):
            await settle()
            assert steps == expected
            number, message = ends.told()
            assert body_of(message, 3).endswith(b"x\0")
            ends.answer(number)
        await settle()
        assert steps == ["inside", "after"]

    with_ends(body)


def test_a_size_is_learnt_by_path_unless_that_is_too_long() -> None:
    async def body(ends: Ends, nursery: trio.Nursery) -> None:
        nursery.start_soon(ends.notifications.learn_size, "/mnt", "/dir/a")
        await settle()
        number, message = ends.told()
        assert message == LEARN_SIZE + b"/mnt\0/dir/a"
        ends.answer(number)
        await ends.notifications.learn_size("/mnt", "/" + "x" * MESSAGE_BYTES_MAX)
        with pytest.raises(BlockingIOError):
            ends.told()

    with_ends(body)


def test_the_kernel_is_asked_for_an_inode_and_only_enoent_means_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def body(ends: Ends, nursery: trio.Nursery) -> None:
        assert ends.notifications.knows_inode(20)
        assert body_of(ends.kernel.recv(100), 2) == struct.pack("<Qqq", 20, -1, 0)
        for number, knows in ((errno.ENOENT, False), (errno.ENODEV, True)):

            def refuse(fd: int, data: bytes, number: int = number) -> int:
                raise OSError(number, os.strerror(number))

            with monkeypatch.context() as patched:
                patched.setattr(os, "write", refuse)
                assert ends.notifications.knows_inode(20) is knows

    with_ends(body)


def test_more_than_the_notifier_takes_at_once_waits_for_it() -> None:
    async def body(ends: Ends, nursery: trio.Nursery) -> None:
        for inode in range(1000):
            nursery.start_soon(ends.notifications.drop_pages, inode, 0, 0)
        await settle()
        answered = 0
        while answered < 1000:
            try:
                number, _ = ends.told()
            except BlockingIOError:
                await settle()
                continue
            ends.answer(number)
            answered += 1
            if answered % 50 == 0:
                await settle()  # else the answers have no room
        await settle()
        assert ends.notifications._told == {}

    with_ends(body)


def test_without_its_notifier_a_daemon_ends() -> None:
    async def scenario() -> None:
        ends = Ends()
        ends.notifier.close()
        with pytest.raises(Unavailable, match="the notifier has ended"):
            await ends.notifications.run()
        ends.close()

    run(scenario)
