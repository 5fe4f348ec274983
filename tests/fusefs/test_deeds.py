"""What requests about names meant outlives a daemon, and nothing else is taken for it."""

import os

from fusefs.deeds import CAPACITY, Deeds
from fusefs.fuse_abi import RESENT


def test_the_next_daemon_knows_what_a_request_that_comes_again_was_about() -> None:
    init_fd = os.memfd_create("init")
    Deeds(init_fd).note(7, 1000)
    after = Deeds(init_fd)
    assert after.meant(RESENT | 7) == 1000
    assert after.meant(7) is None  # another request, after a billion
    assert after.meant(RESENT | 8) is None
    assert after.meant(RESENT | 7 + CAPACITY) is None
    after.note(7 + CAPACITY, 1001)
    assert after.meant(RESENT | 7) is None
    assert after.meant(RESENT | 7 + CAPACITY) == 1001
    os.close(init_fd)


def test_what_the_memory_file_held_before_stays() -> None:
    init_fd = os.memfd_create("init")
    os.pwrite(init_fd, b"INIT" * 1000, 0)
    Deeds(init_fd).note(CAPACITY - 1, 1)
    assert os.pread(init_fd, 4000, 0) == b"INIT" * 1000
    os.close(init_fd)


def test_number_zero_says_nothing() -> None:
    assert Deeds().meant(RESENT) is None
