"""What other nodes read is not collected; who could not say that it reads is told so, and never gets wrong bytes."""

import errno
import pathlib

import pytest
import trio
import trio.testing

from metadata.errors import Unavailable, VdiskfsError
from metadata.ids import VdiskId
from replication.cluster import SUBSCRIPTION_S
from replication.collector import Collector
from replication.commit import flush
from replication.vdisks import Vdisks
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import B, block, blocks, create, passes, run, write
from tests.replication.sharing import company_of
from tests.replication.snapshotting import clone, snap, view_content
from tests.replication.test_versions import content, newest_content, opened

V, CLONE = 20, 21
BLOCKS = 2048
MIB = 1 << 20


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


def pattern(number: int) -> bytes:
    return blocks(*range(number, number + MIB // B))


async def filled(vdisks: Vdisks, number: int, *, vdisk: int = V) -> None:
    """All of the vdisk written anew."""
    head = await vdisks.head(VdiskId(vdisk))
    for at in range(0, BLOCKS * B, MIB):
        await write(head, at, pattern(number + at))
    await flush(head)


def whole(number: int) -> bytes:
    return b"".join(pattern(number + at) for at in range(0, BLOCKS * B, MIB))


async def collected(vdisks: Vdisks) -> int:
    """How many groups went."""
    done = await Collector(vdisks).collect(lambda _: None, vdisks=(V,))
    return int(done["deleted_groups"])


def isolate(cluster: ClusterRig) -> None:
    cluster.switch.cut |= {("a", "b"), ("b", "a")}


def test_what_a_peer_follows_is_collected_only_after_it_has_gone(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, V)
            await filled(a, 1)
            handle = await opened(b)
            for number in range(2, 6):
                await filled(a, number)
                assert await collected(a) == 0
            assert await content(b, handle) == whole(1)
            b.close(handle)
            await passes(25)
            assert await collected(a) > 0
            assert await newest_content(b) == whole(5)

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_new_daemon_of_an_owner_collects_nothing_before_those_who_read_have_said_so(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, V)
            await filled(a, 1)
            await a.flush(VdiskId(V))
            handle = await opened(b)
            for number in range(2, 5):
                await filled(a, number)
            cluster.switch.cut |= {("b", "a")}  # for a moment, about its start
            await cluster.kill("a")
            a = await cluster.start("a")
            assert await collected(a) == 0
            cluster.switch.cut.clear()
            await passes(SUBSCRIPTION_S)
            assert await collected(a) == 0
            b.workspace.row_cache.shrink(0)
            assert await content(b, handle) == whole(1)
            b.close(handle)
            await passes(25)
            assert await collected(a) > 0

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_reader_whose_version_was_collected_while_it_was_cut_off_is_told_so(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, V)
            await filled(a, 1)
            await snap(a, V, "kept", 900)
            await filled(a, 2)
            old = await opened(b)
            await trio.testing.wait_all_tasks_blocked(0.01)
            kept = await b.open_version(900)
            assert await content(b, kept) == whole(1)
            isolate(cluster)
            await passes(SUBSCRIPTION_S)
            for number in range(3, 6):
                await filled(a, number)
                await collected(a)
            b.workspace.row_cache.shrink(0)
            cluster.switch.cut.clear()
            assert await newest_content(b) == whole(5)
            with pytest.raises(Unavailable, match="open the file again"):
                await content(b, old)
            assert await content(b, kept) == whole(1)
            assert await view_content(b, 900) == whole(1)

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_reader_cut_off_reads_what_is_right_or_nothing(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, V)
            await filled(a, 1)
            old = await opened(b)
            isolate(cluster)
            await passes(SUBSCRIPTION_S)
            refused = []
            for number in range(2, 6):
                await filled(a, number)
                await collected(a)
                b.workspace.row_cache.shrink(0)
                try:
                    assert await content(b, old) == whole(1)
                except VdiskfsError as exc:
                    refused.append(exc.number)
                assert await newest_content(b) == whole(number)
            assert set(refused) == {errno.EIO}

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_clone_is_read_through_its_parent_that_another_node_has_compacted_meanwhile(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await create(a, V)
            await filled(a, 1)
            await snap(a, V, "base", 900)
            child = await clone(a, V, "base", CLONE)
            await write(child, 0, block(7))
            await flush(child)
            expected = block(7) + whole(1)[B:]
            handle = await opened(b, CLONE)
            assert await content(b, handle) == expected
            isolate(cluster)
            await passes(SUBSCRIPTION_S)
            for number in range(2, 6):
                await filled(a, number)
                await collected(a)
            cluster.switch.cut.clear()
            await passes(2)  # b follows again, by itself
            assert await content(b, handle) == expected
            assert company_of(b).follower.newest_nowait(V) is not None

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))
