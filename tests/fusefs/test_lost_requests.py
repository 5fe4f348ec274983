"""What a dead daemon may have had in hand: each request once, failed with EIO, those in its slots too."""

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from fusefs import lost_requests
from fusefs.fuse_abi import OUT_HEADER
from fusefs.handover import load_init, store_init
from fusefs.lost_requests import LostRequests, map_slots
from fusefs.request_slots import BUFFER_BYTES, SLOT_BYTES, SLOTS


@pytest.fixture
def init_fd() -> Iterator[int]:
    fd = os.memfd_create("init")
    store_init(fd, b"the kernel's INIT request")
    yield fd
    assert load_init(fd) == b"the kernel's INIT request"
    os.close(fd)


def failed(lost: LostRequests) -> dict[int, int]:
    """By request, the errno of its answer; each has one."""
    kernel, fuse = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    count, answers = lost.fail_all(fuse.fileno()), dict[int, int]()
    for _ in range(count):
        length, number, unique = OUT_HEADER.unpack(kernel.recv(100))
        assert length == OUT_HEADER.size
        assert unique not in answers
        answers[unique] = -number
    with pytest.raises(BlockingIOError):
        kernel.recv(100)
    kernel.close()
    fuse.close()
    return answers


def test_the_next_daemon_fails_what_the_last_one_read(init_fd: int) -> None:
    first = LostRequests(init_fd)
    for unique in (2, 4, 6, 4):
        first.note(unique)
    assert failed(LostRequests(init_fd)) == {2: errno.EIO, 4: errno.EIO, 6: errno.EIO}
    assert failed(LostRequests(init_fd)) == {}


def test_one_that_was_read_and_not_yet_noted_is_in_its_slot(init_fd: int) -> None:
    slots = map_slots(init_fd)
    assert len(slots) == BUFFER_BYTES
    for slot, unique in ((0, 8), (SLOTS - 1, 10)):
        at = slot * SLOT_BYTES + 8
        slots[at : at + 8] = unique.to_bytes(8, "little")
    first = LostRequests(init_fd)
    first.note(8)
    assert failed(LostRequests(init_fd)) == {8: errno.EIO, 10: errno.EIO}
    assert failed(LostRequests(init_fd)) == {}


def test_the_oldest_are_forgotten_when_the_ring_is_full(
    init_fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = LostRequests(init_fd)
    for unique in range(1, lost_requests.CAPACITY + 3):
        first.note(unique)
    ring = first._read_uniques()
    assert len(ring) == lost_requests.CAPACITY
    assert (min(ring), max(ring)) == (3, lost_requests.CAPACITY + 2)


def test_what_has_its_answer_already_is_counted_as_none(init_fd: int) -> None:
    first = LostRequests(init_fd)
    first.note(2)
    closed = os.open("/dev/null", os.O_RDONLY)
    assert LostRequests(init_fd).fail_all(closed) == 0
    os.close(closed)
