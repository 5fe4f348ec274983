"""Three nodes on hosts of their own, over real TCP: what is on the wire, and what a cut network does."""

import os
import pathlib
import time
from collections.abc import Iterator

import pytest

from replication.cluster import SUBSCRIPTION_S
from tests.mount.test_takeover import BLOCK, Disk, block
from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool
from tests.network_lab import NetworkLab

pytestmark = pytest.mark.root


@pytest.fixture
def lab() -> Iterator[NetworkLab]:
    with NetworkLab(3) as made:
        yield made


@pytest.fixture
def three(nodes: MountedNodes, lab: NetworkLab) -> list[MountedPool]:
    """Nodes a, b and c on hosts 1, 2 and 3."""
    found = []
    for host, name in enumerate("abc", start=1):
        node = nodes.node(name, is_mounted=False)
        node.prefix = lab.entrance(host)
        node.options = ("--listen", f"{lab.address(host)}:0")
        node.mount()
        found.append(node)
    return found


def first_block(node: MountedPool) -> bytes:
    return (node.mountpoint / "disk").read_bytes()[:BLOCK]


def test_all_see_what_one_flushes_and_nothing_is_on_the_wire_in_clear(
    three: list[MountedPool], lab: NetworkLab, tmp_path: pathlib.Path
) -> None:
    a, b, c = three
    marker = b"no eye but ours shall read this: 0123456789 abcdefghijklmnopqrst"
    heard = tmp_path / "heard"
    with lab.captured(heard):
        with (a.mountpoint / "secret-name-of-a-vdisk").open("w+b", buffering=0) as file:
            file.write(marker * 64)
            os.fsync(file.fileno())
            for node in (b, c):
                assert (node.mountpoint / "secret-name-of-a-vdisk").read_bytes() == marker * 64
            fd = os.open(b.mountpoint / "secret-name-of-a-vdisk", os.O_RDWR)  # forwards: a writes it
            os.pwrite(fd, marker * 64, 8192)
            os.fsync(fd)
            os.close(fd)
            b.run("snap", "create", f"{b.mountpoint / 'secret-name-of-a-vdisk'}@secret-name-of-a-snapshot")
        assert (c.mountpoint / "secret-name-of-a-vdisk").read_bytes()[8192:] == marker * 64
    captured = heard.read_bytes()
    assert len(captured) > 8192, "they talk"
    for secret in (marker[:16], b"secret-name", b"publish", b"acquire"):
        assert secret not in captured


def test_a_cut_between_owner_and_peer_costs_flushes_one_lease_and_hides_nothing(
    three: list[MountedPool], lab: NetworkLab
) -> None:
    a, b, c = three
    disk = Disk(a.mountpoint / "disk")
    disk.put(0, 1)
    disk.sync()
    for node in (b, c):
        assert first_block(node) == block(1)
    lab.cut(1, 2)
    began = time.monotonic()
    disk.put(0, 2)
    disk.sync()
    assert time.monotonic() - began < SUBSCRIPTION_S + 2
    assert first_block(b) == block(2), "the pool has it"
    assert first_block(c) == block(2)
    for number in range(3, 20):
        disk.put(0, number)
        disk.sync()
        assert first_block(c) == block(number)
    assert first_block(b) == block(19)
    lab.heal()
    disk.put(0, 20)
    disk.sync()
    assert first_block(b) == first_block(c) == block(20)
    disk.close()


@pytest.mark.parametrize("deaf", [1, 2], ids=["the owner hears nothing", "the peer hears nothing"])
def test_a_network_that_carries_only_one_way_hides_nothing_either(
    three: list[MountedPool], lab: NetworkLab, deaf: int
) -> None:
    a, b, _ = three
    disk = Disk(a.mountpoint / "disk")
    disk.put(0, 1)
    disk.sync()
    assert first_block(b) == block(1)
    lab.drop(3 - deaf, deaf)
    for number in range(2, 8):
        disk.put(0, number)
        disk.sync()
        assert first_block(b) == block(number)
    lab.heal()
    for number in range(8, 12):
        disk.put(0, number)
        disk.sync()
        assert first_block(b) == block(number)
    disk.close()


def test_who_is_cut_off_from_the_owner_cannot_write_and_can_again_afterwards(
    three: list[MountedPool], lab: NetworkLab
) -> None:
    a, b, c = three
    disk = Disk(a.mountpoint / "disk")
    disk.put(0, 1)
    disk.sync()
    lab.cut(1, 2)
    with pytest.raises(OSError):
        Disk(b.mountpoint / "disk")
    shared = Disk(c.mountpoint / "disk")
    shared.put(0, 2)
    assert disk.get(0) == block(2)
    shared.close()
    lab.heal()
    again = Disk(b.mountpoint / "disk")
    again.put(0, 3)
    assert disk.get(0) == block(3)
    again.close()
    disk.close()


def test_all_nodes_restart_one_after_the_other_under_a_reader(three: list[MountedPool]) -> None:
    a, b, c = three
    disk = Disk(a.mountpoint / "disk")
    disk.put(0, 1)
    disk.close()
    for number, node in enumerate((c, b, a), start=2):
        node.umount()
        others = [other for other in three if other is not node]
        disk = Disk(others[0].mountpoint / "disk")
        disk.put(0, number)
        disk.close()
        assert first_block(others[1]) == block(number)
        node.mount()
        assert first_block(node) == block(number)
    wait_until(
        lambda: (
            [one["session"] for one in a.json("status", a.mountpoint)["cluster"]["nodes"]] == ["live"] * 3
        ),
        "all are live",
    )
