"""Two nodes on two clients of one CephFS, the names in etcd: a shared directory as it is in earnest. `make test-ceph`."""

import pathlib
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from replication.cluster import SESSION_S
from tests.ceph_cluster import CephCluster
from tests.etcd_members import EtcdMembers
from tests.mount.test_etcd_nodes import (
    Guest,
    assert_holds,
    guest,
    test_two_hosts_write_read_hand_over_and_take_over,
)
from tests.mount.test_takeover import Disk, block, owned
from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool

__all__ = ["guest", "test_two_hosts_write_read_hand_over_and_take_over"]

CLIENT_GONE_S = 60.0
"""A client that is lost keeps its rights so long (``session_timeout``); whoever wants them waits."""


@pytest.fixture(scope="module")
def clients(cluster: CephCluster, tmp_path_factory: pytest.TempPathFactory) -> list[pathlib.Path]:
    """Mountpoints of one file system."""
    cluster.make_filesystem()
    folder = tmp_path_factory.mktemp("clients")
    for name in "ab":
        cluster.mount(folder / name)
    return [folder / "a", folder / "b"]


@pytest.fixture
def nodes(clients: list[pathlib.Path], tmp_path: pathlib.Path) -> Iterator[MountedNodes]:
    with EtcdMembers(tmp_path) as etcd:
        found = MountedNodes(tmp_path, catalog=etcd.url, pool=clients[0] / tmp_path.name)
        try:
            yield found
        finally:
            found.tear_down()
        assert found.stray_errors() == []


@pytest.fixture
def both(nodes: MountedNodes, clients: list[pathlib.Path]) -> tuple[MountedPool, MountedPool]:
    """Each node through a client of its own."""
    nodes.node("format", is_mounted=False).run("cluster", "init", nodes.pool)
    found = []
    for client, name in zip(clients, "ab", strict=True):
        node = nodes.node(name, is_mounted=False)
        node.pool, node.options = client / nodes.pool.name, ("--listen", "127.0.0.1")
        node.mount()
        found.append(node)
    return found[0], found[1]


def test_a_node_that_stops_and_wakes_up_acknowledges_nothing_that_is_lost(
    both: tuple[MountedPool, MountedPool], nodes: MountedNodes, guest: Guest
) -> None:
    a, b = both
    a.expects_errors = True  # it says that it was deposed
    nodes.pause(a)
    taken = Disk(b.mountpoint / "disk")  # waits for the end of a's session
    synced = guest.synced()
    for at, number in synced.items():
        assert taken.get(at) in (block(number), block(number + 64))
    taken.put(0, 9000)
    taken.sync()
    nodes.wake(a)
    wait_until(lambda: guest.failed, "the deposed owner's guest hears of it", within_s=60)
    assert guest.synced() == synced
    assert taken.get(0) == block(9000)
    taken.close()
    wait_until(lambda: owned(b) == {"a": 0, "b": 1}, "a has a session again")
    assert (a.mountpoint / "disk").read_bytes()[:4096] == block(9000)
    assert b.json("check", b.mountpoint)["findings"] == []


def test_guests_stall_while_osds_and_the_metadata_server_are_away(
    both: tuple[MountedPool, MountedPool], cluster: CephCluster, guest: Guest
) -> None:
    a, b = both
    cluster.kill_osd(0)
    guest.goes_on()
    cluster.start_osd(0)
    cluster.wait_up(3)
    cluster.kill_mds()
    until = time.monotonic() + SESSION_S
    wait_until(lambda: time.monotonic() > until, "nobody answers for a while")
    cluster.start_mds()
    (a.mountpoint / "file").touch()
    assert (b.mountpoint / "file").exists()
    guest.goes_on()
    guest.stop()
    print(f"{guest.steps()} synced writes, the longest took {guest.pause_s_max:.1f} s")
    assert_holds(b, "disk", guest.synced())
    assert a.json("check", a.mountpoint)["findings"] == []


def test_a_lost_host_is_taken_over_when_ceph_gives_its_rights_away(
    both: tuple[MountedPool, MountedPool], cluster: CephCluster, clients: list[pathlib.Path]
) -> None:
    a, b = both
    disk = Disk(a.mountpoint / "disk")
    for number in range(64):
        disk.put(number, number)
        disk.sync()
    cluster.kill_client(clients[0])
    a.kill()
    began = time.monotonic()
    taken = Disk(b.mountpoint / "disk")
    for number in range(64):
        assert taken.get(number) == block(number)
    taken.put(0, 9000)
    taken.sync()
    print(f"taken over {time.monotonic() - began:.1f} s after the host was lost")
    assert time.monotonic() - began < SESSION_S + 2 * CLIENT_GONE_S
    taken.close()
    with suppress(OSError):  # its mount is dead
        disk.close()
    assert b.json("check", b.mountpoint)["findings"] == []
