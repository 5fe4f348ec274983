"""Which inode the kernel is shown of a vdisk, through a change of owner and of the daemon."""

import os
import pathlib
from collections.abc import Awaitable, Callable

import pytest
import trio

from fusefs.peer_inodes import PeerInodes
from metadata.errors import InvalidRequest
from metadata.ids import VdiskId
from replication.vdisks import Vdisks
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import block, create, handles_of, run
from tests.replication.sharing import company_of, put, writer

V = 20


class Entry:
    """What is told of an inode."""

    generation = 0


class Kernel:
    """What one knows of the vdisk's own inode: objects of different generations, of which the last one counts."""

    def __init__(self) -> None:
        self.objects: dict[int, int] = {}
        """How often it was told of each generation that it has not forgotten."""

    def knows(self, inode: int) -> bool:
        """Whether an inode is known."""
        return inode == V and bool(self.objects)

    def look_up(self, peers: PeerInodes) -> None:
        """It is shown the head."""
        entry = Entry()
        entry.generation = peers.generation(V)
        peers.shown(V, entry)
        self.objects[entry.generation] = self.objects.get(entry.generation, 0) + 1

    def forget(self, peers: PeerInodes, generation: int) -> None:
        """It forgets one of the objects."""
        lookups = self.objects.pop(generation)
        peers.forget(V, lookups)

    def mount(self, vdisks: Vdisks, *, is_successor: bool) -> PeerInodes:
        """A daemon begins."""

        async def catch_up() -> None:
            await trio.lowlevel.checkpoint()

        peers = PeerInodes(company_of(vdisks), kernel_knows=self.knows, catch_up=catch_up)
        peers.begin(is_successor)
        return peers


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


async def moved(taker: Vdisks, value: int) -> None:
    """Somebody there opens the vdisk, writes and closes it."""
    number = await writer(taker, V)
    await put(taker, number, 0, block(value))
    await taker.flush_handle(number)
    taker.close(number)


async def was_here_and_went(cluster: ClusterRig, kernel: Kernel) -> PeerInodes:
    """Node a had the vdisk, and told the kernel so; its daemon died; b has it now."""
    a, b = await cluster.start("a"), await cluster.start("b")
    await create(a, V)
    for number in handles_of(a, V):
        a.close(number)
    await moved(b, 1)
    await moved(a, 2)
    peers = kernel.mount(a, is_successor=False)
    for _ in range(3):
        kernel.look_up(peers)
    await moved(b, 3)
    peers.close()
    await cluster.kill("a")
    return kernel.mount(await cluster.start("a"), is_successor=True)


Scenario = Callable[[ClusterRig, Kernel], Awaitable[None]]


def play(cluster: ClusterRig, scenario: Scenario) -> None:
    async def main() -> None:
        async with cluster.running():
            await scenario(cluster, Kernel())

    run(main)


def test_an_old_inode_that_the_kernel_forgets_late_is_not_the_one_it_was_just_shown(
    cluster: ClusterRig,
) -> None:
    async def scenario(cluster: ClusterRig, kernel: Kernel) -> None:
        peers = await was_here_and_went(cluster, kernel)
        (old,) = kernel.objects
        shown = await peers.look_up(V)
        assert shown is not None
        with pytest.raises(InvalidRequest):
            await peers.version_to_open(shown.id, os.O_RDWR)
        kernel.look_up(peers)
        (new,) = kernel.objects.keys() - {old}
        kernel.forget(peers, old)
        assert await peers.version_to_open(V, os.O_RDWR) is None
        await cluster.node("a").open(VdiskId(V), flags=os.O_RDWR)
        kernel.look_up(peers)
        assert kernel.objects == {new: 2}
        peers.close()

    play(cluster, scenario)


def test_an_inode_told_of_by_an_earlier_daemon_is_forgotten_with_all_its_lookups(cluster: ClusterRig) -> None:
    async def scenario(cluster: ClusterRig, kernel: Kernel) -> None:
        peers = await was_here_and_went(cluster, kernel)
        (old,) = kernel.objects
        assert peers._generations.get(V) == old
        kernel.forget(peers, old)
        assert peers._generations.get(V) is None
        peers.close()

    play(cluster, scenario)
