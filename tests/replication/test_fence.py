"""Commits of a node that is not sure of its session: they count if it still owned the vdisk, and never otherwise."""

import os
import pathlib

import pytest
import trio
import trio.testing

from metadata.catalog import Change, encode_value, owner_key
from metadata.catalog_memory import MemoryCatalog
from metadata.errors import Fenced, Unavailable, VdiskfsError
from metadata.ids import VdiskId
from replication import fence
from replication.commit import flush
from replication.ownership import find_owner, take_over
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import block, create, expect_errors, handles_of, read, run, write


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


def test_a_commit_in_doubt_counts_if_the_node_still_owns_the_vdisk(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a = await cluster.start("a")
            head = await create(a, 20)
            for number in range(3):
                cluster.switch.live ^= {"a"}
                await write(head, 0, block(number))
                await a.flush_handle(handles_of(a, 20)[0])
                assert not head.is_dirty
                assert await read(head, 0, 4096) == block(number)
            assert a.company is not None
            assert a.company.fence.questions == 2

    run(scenario)


@pytest.mark.parametrize(("node", "epoch", "counts"), [("a", 3, True), ("a", 2, False), ("b", 3, False)])
def test_a_commit_counts_for_the_owner_s_own_epoch_alone(node: str, epoch: int, counts: bool) -> None:
    async def scenario() -> None:
        catalog, found, over = MemoryCatalog(), list[VdiskfsError | None](), trio.Event()
        owner = encode_value({"node": "a", "epoch": 3})
        await catalog.transact(Change(puts=((owner_key(20), owner),)))
        deposed: list[int] = []

        def note(error: VdiskfsError | None) -> None:
            found.append(error)
            over.set()

        judging = fence.Fence(
            catalog, node, is_certain=lambda: False, note_deposed=lambda vdisk, _: deposed.append(vdisk)
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(judging.run)
            judging.ask(20, epoch, note)
            await over.wait()
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert [type(error) for error in found] == [type(None) if counts else Fenced]
        assert deposed == ([] if counts else [20])

    run(scenario)


def test_a_commit_that_is_durable_after_a_takeover_is_never_acknowledged(
    cluster: ClusterRig, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a = await cluster.start("a")
            head = await create(a, 20)
            writer = await a.open(VdiskId(20), flags=os.O_RDWR)
            await write(head, 0, block(1))
            await flush(head)
            await write(head, 0, block(2))
            cluster.switch.expire("a")
            await take_over(cluster.catalog, 20, owner=await find_owner(cluster.catalog, 20), node="b")
            for _ in range(2):
                with pytest.raises(Fenced):
                    await a.flush_handle(writer)
            with pytest.raises(Fenced):
                await write(head, 0, block(3))
            cluster.switch.live.add("a")
            with pytest.raises(Fenced):
                await flush(head)
            await cluster.kill("a")

    run(scenario)
    expect_errors(caplog, "a commit does not count", "deposed")


def test_without_an_answer_of_the_catalog_a_commit_fails_and_is_tried_again(
    cluster: ClusterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a = await cluster.start("a")
            head = await create(a, 20)
            await write(head, 0, block(1))
            await flush(head)
            await write(head, 0, block(2))
            cluster.switch.expire("a")
            with monkeypatch.context() as patched:

                async def silent(prefix: bytes) -> None:
                    raise Unavailable("the catalog does not answer")

                patched.setattr(cluster.catalog, "read", silent)
                patched.setattr(fence, "ASK_S", 0.5)
                with pytest.raises(Unavailable):
                    await a.flush_handle(handles_of(a, 20)[0])
                assert head.is_dirty
            await a.flush_handle(handles_of(a, 20)[0])
            assert await read(head, 0, 4096) == block(2)

    run(scenario)
