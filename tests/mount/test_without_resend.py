"""A kernel that does not resend requests, as those before 6.9: a killed daemon costs what was in flight, nobody hangs."""

import errno
import os
import pathlib
import sys
import threading
import time

from fusefs import launch, registry
from fusefs.fuse_abi import OUT_HEADER, REQUEST_HEAD, WRITE
from fusefs.lost_requests import CAPACITY, LostRequests, map_slots
from fusefs.request_slots import Slots
from fusefs.settings import KeeperSettings
from tests.mounted_pool import COMMAND_S, MountedPool, wait_gone

DAEMON = """
import sys
from fusefs import fuse_abi
fuse_abi.HAS_RESEND = 0
from fusefs import node
sys.exit(node.main(sys.argv[1:]))
"""
KILLS = 3
WRITERS = 8


def mount_without_resend(pool: MountedPool) -> None:
    """Mount with a daemon that takes the kernel for an older one."""
    settings = KeeperSettings(
        pool=str(pool.pool),
        mountpoint=str(pool.mountpoint),
        node="here",
        state=str(pool.state),
        runtime=registry.runtime_folder(os.geteuid(), os.environ),
        options=(),
        daemon=(sys.executable, "-P", "-c", DAEMON),
    )
    launch.launch(settings, progress=lambda text: None)


class Writer(threading.Thread):
    """Writes and flushes one block after the other, whatever comes of it."""

    def __init__(self, path: pathlib.Path, number: int) -> None:
        super().__init__(daemon=True)
        self.path, self.number = path, number
        self.stopping, self.written, self.errors = False, 0, list[int]()

    def run(self) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_SYNC)
        while not self.stopping:
            try:
                os.pwrite(descriptor, b"x" * 4096, self.number * 4096)
                self.written += 1
            except OSError as problem:
                self.errors.append(problem.errno or 0)
        os.close(descriptor)


def test_requests_in_flight_fail_and_all_later_ones_work(unmounted: MountedPool) -> None:
    mount_without_resend(unmounted)
    disk = unmounted.create("disk", "1M")
    assert unmounted.json("status", unmounted.mountpoint)["kernel_resends"] is False
    writers = [Writer(disk, number) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(KILLS):
            before = [writer.written for writer in writers]
            deadline = time.monotonic() + COMMAND_S
            while any(writer.written == count for writer, count in zip(writers, before, strict=True)):
                wait_gone(
                    unmounted.daemon_pid() + (1 << 30)
                )  # each has written something since the last kill
                assert time.monotonic() < deadline, "somebody waits for an answer that never comes"
            unmounted.kill_daemon()
    finally:
        for writer in writers:
            writer.stopping = True
        for writer in writers:
            writer.join(COMMAND_S)
    assert not any(writer.is_alive() for writer in writers), "somebody waits for an answer that never comes"
    assert {error for writer in writers for error in writer.errors} <= {errno.EIO}
    assert disk.read_bytes()[: WRITERS * 4096] == b"x" * 4096 * WRITERS
    unmounted.run("check", unmounted.mountpoint)


def test_each_request_noted_is_failed_once() -> None:
    init_fd = os.memfd_create("init")
    requests = LostRequests(init_fd)
    for unique in range(2, 2 * CAPACITY + 6, 2):
        requests.note(unique)
    kernel_fd, daemon_fd = os.pipe()
    failures: list[bytes] = []
    kernel = threading.Thread(target=lambda: failures.extend(iter(lambda: os.read(kernel_fd, 16), b"")))
    kernel.start()
    assert LostRequests(init_fd).fail_all(daemon_fd) == CAPACITY
    assert LostRequests(init_fd).fail_all(daemon_fd) == 0
    os.close(daemon_fd)
    kernel.join()
    failed = {OUT_HEADER.unpack(failure) for failure in failures}
    assert failed == {(16, -errno.EIO, unique) for unique in range(6, 2 * CAPACITY + 6, 2)}
    os.close(kernel_fd)
    os.close(init_fd)


def test_a_request_read_and_not_yet_noted_is_failed_too() -> None:
    init_fd = os.memfd_create("init")
    slots = Slots(map_slots(init_fd))
    for waiting, unique in ((0, 2), (1, 4)):
        with open(os.memfd_create("request"), "w+b") as kernel:
            kernel.write(REQUEST_HEAD.pack(WRITE, unique, 0, 0, 4096, 0, 0))
            kernel.seek(0)
            assert os.readv(kernel.fileno(), slots.vectors[waiting]) == REQUEST_HEAD.size
    kernel_fd, daemon_fd = os.pipe()
    assert LostRequests(init_fd).fail_all(daemon_fd) == 2
    assert LostRequests(init_fd).fail_all(daemon_fd) == 0
    failures = [OUT_HEADER.unpack(os.read(kernel_fd, 16)) for _ in range(2)]
    assert sorted(failures) == [(16, -errno.EIO, 2), (16, -errno.EIO, 4)]
    for descriptor in (kernel_fd, daemon_fd, init_fd):
        os.close(descriptor)
