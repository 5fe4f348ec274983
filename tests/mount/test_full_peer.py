"""A peer whose state directory's disk is full: it holds the others up once, shows nothing wrong, and comes back."""

import errno
import pathlib
import subprocess
import time
from collections.abc import Iterator

import pytest

from replication.cluster import SUBSCRIPTION_S
from tests.mount.test_takeover import BLOCK, Disk, block
from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool

pytestmark = pytest.mark.root


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def full(small_disk: pathlib.Path, nodes: MountedNodes) -> MountedPool:
    """A node b with its state on the small disk."""
    node = nodes.node("b", is_mounted=False)
    node.state = small_disk / "state"
    node.expects_errors = True
    node.mount()
    return node


def fill(folder: pathlib.Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(65536))
        except OSError:
            pass


def shows(path: pathlib.Path, at: int) -> bytes | None:
    """A block of the newest version; None: it says that it cannot read it."""
    try:
        return path.read_bytes()[at * BLOCK :][:BLOCK]
    except OSError as problem:
        if problem.errno in (errno.EIO, errno.ENOSPC):
            return None
        raise


def test_a_full_peer_holds_up_a_flush_now_and_then_and_shows_nothing_wrong(
    full: MountedPool, small_disk: pathlib.Path, nodes: MountedNodes
) -> None:
    disk = Disk(nodes.node("a").mountpoint / "disk")
    disk.put(0, 1)
    disk.sync()
    seen = full.mountpoint / "disk"
    assert shows(seen, 0) == block(1)
    fill(small_disk)
    slow = 0
    for number in range(2, 600):
        disk.put(number % 200, number)
        began = time.monotonic()
        disk.sync()
        slow += time.monotonic() - began > SUBSCRIPTION_S / 2
        if number % 50 == 0:
            assert shows(seen, number % 200) in (block(number), None)
    assert slow <= 12, "once for each time it was opened there"
    (small_disk / "filler").unlink()
    wait_until(lambda: shows(seen, 0) == block(400), "the peer reads again")
    disk.close()
