"""Commits of a node that is not sure of its session: they count if it still owned the vdisk, and never otherwise."""

import os
import pathlib

import pytest

from metadata.errors import Fenced, Unavailable
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
