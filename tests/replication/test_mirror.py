"""What the catalog's changes by one node are to the others."""

import pathlib

import pytest
import trio

from metadata.ids import VdiskId
from replication.ownership import Owner
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import block, close_and_rest, create, run, write
from tests.replication.sharing import company_of
from tests.replication.snapshotting import clone, delete, snap


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


async def settled() -> None:
    """The watches have told all there is to tell."""
    await trio.testing.wait_all_tasks_blocked(0.01)


def test_a_first_write_makes_a_vdisk_foreign_to_the_others(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, 20)
            assert a.is_mine(20)
            assert b.is_mine(20)
            await write(head, 0, block(1))
            await settled()
            assert a.is_mine(20)
            assert not b.is_mine(20)
            assert company_of(b).mirror.owners[20] == Owner("a", 1)

    run(scenario)


def test_snapshots_clones_and_summaries_of_others_are_followed(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await write(await create(a, 20), 0, block(1))
            taken = await snap(a, 20, "one", 900)
            await write(await clone(a, 20, "one", 21), 4096, block(2))
            await close_and_rest(a, 20)
            await settled()
            assert b.family.snapshots(20) == [taken]
            assert b.family.children(20) == {21: taken.version}
            stat = b.stat_nowait(VdiskId(20))
            assert stat is not None
            assert (stat.size, stat.version) == (4096, taken.version)
            await delete(a, 21)
            await settled()
            assert b.family.children(20) == {}

    run(scenario)


def test_a_node_that_comes_later_knows_the_owners(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a = await cluster.start("a")
            await write(await create(a, 20), 0, block(1))
            b = await cluster.start("b")
            assert not b.is_mine(20)
            await cluster.kill("a")
            assert (await cluster.start("a")).is_mine(20)

    run(scenario)
