"""A file that is read goes on at the version it had when its vdisk went to another node, through the daemon's death too."""

import os
import pathlib

import pytest

from metadata.errors import Fenced
from metadata.ids import VdiskId
from replication.frozen_files import FrozenFiles
from replication.head import Head
from replication.ownership import find_owner
from replication.remote import Remote
from replication.vdisks import Vdisks
from replication.view import View
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import B, block, blocks, create, expect_errors, handles_of, run
from tests.replication.sharing import company_of, get, put, writer

V = 20


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


async def reader(vdisks: Vdisks) -> int:
    return await vdisks.open(VdiskId(V), flags=os.O_RDONLY)


async def begun(cluster: ClusterRig, *values: int) -> Vdisks:
    """Node a, which owns the vdisk; nothing is open."""
    a = await cluster.start("a")
    await create(a, V)
    number = await writer(a, V)
    await put(a, number, 0, blocks(*values))
    await a.flush_handle(number)
    for number in handles_of(a, V):
        a.close(number)
    return a


async def written(vdisks: Vdisks, *values: int) -> None:
    """Opened for writing, each block written, flushed and written over, closed."""
    number = await writer(vdisks, V)
    for value in (*range(100, 110), None):
        for at, last in enumerate(values):
            await put(vdisks, number, at * B, block(last if value is None else value))
        await vdisks.flush_handle(number)
    vdisks.close(number)


async def reborn(cluster: ClusterRig, *, written: bool = False) -> Vdisks:
    """Node a's next daemon; ``written``: files may have been open for writing."""
    await cluster.kill("a")
    a = await cluster.start("a")
    company_of(a).may_be_written = lambda _: written
    return a


def test_a_frozen_reader_goes_on_at_its_version_when_the_daemon_dies(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await begun(cluster, 1, 2), await cluster.start("b")
            number, other = await reader(a), await reader(a)
            await written(b, 3, 4)
            for _ in range(2):
                a = await reborn(cluster)
                await written(b, 5, 6)
                assert await get(a, number, 0, 2 * B) == blocks(1, 2)
                assert isinstance(a.heads_by_handle[number], View)
                assert (await find_owner(cluster.catalog, V)).node == "b"
                await written(b, 7, 8)
                assert await get(a, number, B, B) == block(2)
                assert not a.has_writer(VdiskId(V))
            a.close(number)
            assert a.family.pin_count(V) > 0
            a.close(other)  # of which this daemon has heard nothing before
            assert a.family.pin_count(V) == 0
            a = await reborn(cluster)
            assert a.family.pin_count(V) == 0

    run(scenario)


def test_each_frozen_reader_has_the_version_at_which_its_own_head_went(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await begun(cluster, 1, 2), await cluster.start("b")
            first = await reader(a)
            await written(b, 3, 4)
            await written(a, 5, 6)
            second = await reader(a)
            await written(b, 7, 8)
            await written(a, 9, 10)
            third = await reader(a)
            a = await reborn(cluster)
            assert await get(a, second, 0, 2 * B) == blocks(5, 6)
            assert await get(a, first, 0, 2 * B) == blocks(1, 2)
            assert await get(a, third, 0, 2 * B) == blocks(9, 10)
            assert isinstance(a.heads_by_handle[third], Head)
            assert not a.has_writer(VdiskId(V))
            await written(b, 11, 12)
            for number, expected in ((first, (1, 2)), (second, (5, 6)), (third, (9, 10))):
                assert await get(a, number, 0, 2 * B) == blocks(*expected)
                a.close(number)
            assert a.family.pin_count(V) == 0

    run(scenario)


def test_a_reader_of_a_deposed_owner_is_told_at_its_fsync_when_the_daemon_died_meanwhile(
    cluster: ClusterRig, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await begun(cluster, 1, 2), await cluster.start("b")
            mine, number = await writer(a, V), await reader(a)
            await put(a, mine, 0, block(3))  # void
            cluster.switch.expire("a")
            await written(b, 5, 6)
            with pytest.raises(Fenced):
                await a.flush_handle(mine)
            cluster.switch.live.add("a")
            assert await get(a, number, 0, 2 * B) == blocks(1, 2)
            a = await reborn(cluster)
            await written(b, 7, 8)
            assert await get(a, number, 0, 2 * B) == blocks(1, 2)
            with pytest.raises(Fenced):
                await a.flush_handle(number)
            a.close(number)
            assert a.family.pin_count(V) == 0

    run(scenario)
    expect_errors(caplog, "deposed", "a commit does not count")


def test_a_reader_whose_vdisk_went_while_there_was_no_daemon_freezes_at_what_it_finds_and_asks_for_nothing(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await begun(cluster, 1, 2), await cluster.start("b")
            number = await reader(a)
            await cluster.kill("a")
            cluster.switch.expire("a")
            await written(b, 3, 4)
            a = await cluster.start("a")
            company_of(a).may_be_written = lambda _: False
            assert await get(a, number, 0, 2 * B) == blocks(3, 4)
            await written(b, 5, 6)
            assert await get(a, number, 0, 2 * B) == blocks(3, 4)
            a = await reborn(cluster)
            await written(b, 7, 8)
            assert await get(a, number, 0, 2 * B) == blocks(3, 4)
            assert (await find_owner(cluster.catalog, V)).node == "b"
            await put(a, number, 0, block(9))  # a writer's after all
            assert isinstance(a.heads_by_handle[number], Head | Remote)
            assert await get(a, number, 0, 2 * B) == blocks(9, 8)

    run(scenario)


def test_a_mount_that_is_not_the_one_of_before_keeps_nothing(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await begun(cluster, 1, 2), await cluster.start("b")
            await reader(a)
            await written(b, 3, 4)
            a = await reborn(cluster)
            assert a.family.pin_count(V) == 1
            company_of(a).frozen.keep_only(lambda _: False)
            assert a.family.pin_count(V) == 0
            a = await reborn(cluster)
            assert a.family.pin_count(V) == 0

    run(scenario)


def test_a_list_that_is_cut_short_counts_as_far_as_it_goes(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await begun(cluster, 1, 2), await cluster.start("b")
            numbers = [await reader(a) for _ in range(3)]
            await written(b, 3, 4)
            path = cluster.folder / "a" / "state" / "frozen"
            await cluster.kill("a")
            path.write_bytes(path.read_bytes()[:-1])
            a = await cluster.start("a")
            frozen: FrozenFiles = company_of(a).frozen
            assert len([number for number in numbers if await frozen.view(number) is not None]) == 2

    run(scenario)
