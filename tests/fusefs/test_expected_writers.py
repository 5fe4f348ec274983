"""An open for writing whose user was told to look the name up again succeeds, though a daemon dies in the middle of it."""

import errno
import os
import pathlib

import pytest
import trio
import trio.testing

from fusefs.peer_inodes import PeerInodes
from metadata.errors import InvalidRequest
from metadata.ids import VdiskId
from replication.ownership import find_owner
from replication.vdisks import Vdisks
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import block, create, handles_of, run
from tests.replication.sharing import company_of, put, writer

V = 20


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


def peers_of(vdisks: Vdisks, *, is_successor: bool) -> PeerInodes:
    """What a mount has; its kernel knows every inode."""

    async def catch_up() -> None:
        await trio.lowlevel.checkpoint()

    made = PeerInodes(company_of(vdisks), kernel_knows=lambda inode: True, catch_up=catch_up)
    made.begin(is_successor)
    return made


async def told_to_look_again(peers: PeerInodes) -> None:
    shown = await peers.look_up(V)
    assert shown is not None
    with pytest.raises(InvalidRequest) as told:
        await peers.version_to_open(shown.id, os.O_RDWR)
    assert told.value.number == errno.ESTALE


class _Entry:
    generation = 0


def look_at_head(peers: PeerInodes) -> None:
    """The kernel is shown the head's inode."""
    entry = _Entry()
    entry.generation = peers.generation(V)
    peers.shown(V, entry)


@pytest.mark.parametrize("is_shared", [True, False])
@pytest.mark.parametrize("looked_up", [True, False])
def test_a_daemon_that_dies_before_the_open_comes_again(
    cluster: ClusterRig, is_shared: bool, looked_up: bool
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            b = await cluster.start("b")
            await create(b, V)
            theirs = await writer(b, V)
            await put(b, theirs, 0, block(1))
            await b.flush_handle(theirs)
            for number in handles_of(b, V):
                if number != theirs or not is_shared:
                    b.close(number)
            a = await cluster.start("a")
            peers = peers_of(a, is_successor=False)
            await told_to_look_again(peers)
            if looked_up:
                look_at_head(peers)
            peers.close()
            await cluster.kill("a")
            a = await cluster.start("a")
            peers = peers_of(a, is_successor=True)
            if not is_shared:  # wanted by others meanwhile
                await writer(b, V)
                assert (await find_owner(cluster.catalog, V)).node == "a"
            if not looked_up:
                assert not peers.is_foreign(V) or await peers.look_up(V) is None
                look_at_head(peers)
            assert await peers.version_to_open(V, os.O_RDWR) is None
            number = await a.open(VdiskId(V), flags=os.O_RDWR)
            await put(a, number, 0, block(2))
            peers.close()

    run(scenario)
