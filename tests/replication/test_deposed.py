"""What a node that another has deposed, and that does not know it yet, may not say of a vdisk any more."""

import pathlib
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from metadata.catalog_memory import MemoryCatalog
from metadata.errors import Fenced, NotOwner, VdiskfsError
from metadata.ids import VdiskId
from replication.cloning import copy_range
from replication.head import Head
from replication.ownership import Owner, VdiskFacts, find_owner, hand_over, take_over
from replication.recovery import Recovered
from replication.snapshots import Snapshots
from replication.vdisks import Vdisks
from replication.view import View
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import B, blocks, close_and_rest, create, expect_errors, handles_of, run, write
from tests.replication.sharing import company_of, counts_of, put, writer

Deed = Callable[[Vdisks, Snapshots], Awaitable[object]]


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


async def roll_back(vdisks: Vdisks, snapshots: Snapshots) -> object:
    return await snapshots.rollback(VdiskId(20), "kept", keep_as=("before", 901))


async def flatten(vdisks: Vdisks, snapshots: Snapshots) -> object:
    return await snapshots.flatten(VdiskId(21), lambda _: None)


async def delete(vdisks: Vdisks, snapshots: Snapshots) -> object:
    return await vdisks.forget(VdiskId(22))


async def delete_a_parent(vdisks: Vdisks, snapshots: Snapshots) -> object:
    return await vdisks.forget(VdiskId(20))


async def name(vdisks: Vdisks, snapshots: Snapshots) -> object:
    return await snapshots.create([(VdiskId(20), "late", 902)])


async def unname(vdisks: Vdisks, snapshots: Snapshots) -> object:
    return await snapshots.remove(20, "kept")


async def protect(vdisks: Vdisks, snapshots: Snapshots) -> object:
    return await snapshots.protect(20, "kept", True)


async def clone(vdisks: Vdisks, snapshots: Snapshots) -> object:
    async with snapshots.origin(VdiskId(20), "kept") as origin:
        return origin


@pytest.mark.parametrize("deed", [roll_back, flatten, delete, delete_a_parent, name, unname, protect, clone])
def test_a_deposed_owner_changes_nothing_in_the_catalog(
    cluster: ClusterRig, deed: Deed, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a = await cluster.start("a")
            snapshots = Snapshots(a, clock_ns=lambda: 1)
            head = await prepared(a, snapshots)
            company_of(a).mirror.listeners.clear()  # it hears of nothing
            await depose(cluster.catalog)
            before = (await cluster.catalog.read(b""))[0]
            with pytest.raises(VdiskfsError):
                await deed(a, snapshots)
            assert (await cluster.catalog.read(b""))[0] == before
            await company_of(a).transfers.check_owned()
            assert isinstance(head.closed, Fenced)

    run(scenario)
    expect_errors(caplog, "deposed", "a commit does not count")


async def prepared(a: Vdisks, snapshots: Snapshots) -> Head:
    """20 with a snapshot that 21 is a clone of, and 22; all of them this node's, and not written any more."""
    head = await create(a, 20)
    await write(head, 0, blocks(1, 2))
    await snapshots.create([(VdiskId(20), "kept", 900)])
    await write(head, 0, blocks(3))
    await a.flush(VdiskId(20))
    await create(a, 21)
    assert await copy_range(a, await view_of(a), a.heads[21], offset=0, to=0, length=2 * B) == 2 * B
    await a.flush(VdiskId(21))
    await write(await create(a, 22), 0, blocks(4))
    await a.flush(VdiskId(22))
    for vdisk in (20, 21, 22):
        for number in handles_of(a, vdisk):
            a.close(number)
    return head


async def view_of(a: Vdisks) -> View:
    view = a.heads_by_handle[await a.open_version(900)]
    assert isinstance(view, View)
    return view


async def depose(catalog: MemoryCatalog) -> None:
    for vdisk in (20, 21, 22):
        owner = await find_owner(catalog, vdisk)
        assert owner.node == "a"
        await take_over(catalog, vdisk, owner=owner, node="b")


def test_a_head_of_an_earlier_epoch_of_the_same_node_is_deposed(
    cluster: ClusterRig, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a = await cluster.start("a")
            head = await create(a, 20)
            await write(head, 0, blocks(1))
            await a.flush(VdiskId(20))
            company_of(a).mirror.listeners.clear()
            owner = await find_owner(cluster.catalog, 20)
            await take_over(cluster.catalog, 20, owner=owner, node="b")
            theirs = await find_owner(cluster.catalog, 20)
            await hand_over(cluster.catalog, 20, owner=theirs, to="a")
            await company_of(a).transfers.check_owned()
            assert isinstance(head.closed, Fenced)
            assert counts_of(a).deposed == 1
            assert await find_owner(cluster.catalog, 20) == Owner("a", 3)

    run(scenario)
    expect_errors(caplog, "deposed")


def test_a_head_that_takes_long_to_load_is_none_if_another_node_has_taken_the_vdisk_over(
    cluster: ClusterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await write(await create(a, 20), 0, blocks(1))
            await close_and_rest(a, 20)
            begun, may_go_on, recovered = trio.Event(), trio.Event(), a.loading.recovered

            async def slowly(vdisk: int, facts: VdiskFacts) -> Recovered:
                found = await recovered(vdisk, facts)
                begun.set()
                await may_go_on.wait()
                return found

            monkeypatch.setattr(a.loading, "recovered", slowly)
            async with trio.open_nursery() as nursery:

                async def load() -> None:
                    with pytest.raises(NotOwner):
                        await a.head(VdiskId(20))

                nursery.start_soon(load)
                await begun.wait()
                cluster.switch.expire("a")
                number = await writer(b, 20)
                await put(b, number, 0, blocks(2))
                await b.flush_handle(number)
                cluster.switch.live.add("a")
                while company_of(a).mirror.is_mine(20):
                    await trio.testing.wait_all_tasks_blocked(0.01)
                may_go_on.set()
            assert 20 not in a.heads

    run(scenario)
