"""What is read of another node's vdisk: frozen from open to close, newest at each open, whoever lives or dies meanwhile."""

import errno
import pathlib
import shutil

import pytest
import trio
import trio.testing

from metadata.errors import InvalidRequest, Unavailable
from metadata.ids import VdiskId
from replication import head_read
from replication.checkpoint import checkpoint
from replication.commit import flush
from replication.head import Head
from replication.vdisks import Vdisks
from replication.versions import FIRST_ID, LOOKUP_PIN_S
from replication.view import View
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import B, block, blocks, create, handles_of, passes, run, write
from tests.replication.sharing import company_of
from tests.replication.snapshotting import clone, rollback, snap, view_content

V, CLONE = 20, 21


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


async def opened(vdisks: Vdisks, vdisk: int = V) -> int:
    """As open(2) does it: looked up, then opened; the handle."""
    return await vdisks.open_version((await company_of(vdisks).versions.look_up(vdisk)).id)


async def content(vdisks: Vdisks, handle: int) -> bytes:
    view = await vdisks.reader_of(handle)
    assert isinstance(view, View)
    return b"".join([await head_read.read(view, at, 1 << 20) for at in range(0, view.size, 1 << 20)])


async def newest_content(vdisks: Vdisks, vdisk: int = V) -> bytes:
    handle = await opened(vdisks, vdisk)
    try:
        return await content(vdisks, handle)
    finally:
        vdisks.close(handle)


async def changed(head: Head, at: int, number: int) -> None:
    await write(head, at * B, block(number))
    await flush(head)


def test_opening_again_and_again_leaves_no_files_open(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            for number in range(20):
                await changed(head, 0, number)
                b.workspace.row_cache.shrink(0)
                assert await newest_content(b) == block(number)
                assert len(b.workspace.pool._open) <= 2

    run(scenario)


def test_an_open_file_is_frozen_and_a_new_open_sees_the_newest(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            handles = []
            for number in range(20):
                await changed(head, number % 4, number)
                handles.append(await opened(b))
                await content(b, handles[-1])  # half of the rows are in memory, as of then
            for number, handle in enumerate(handles):
                expected = [
                    max(n for n in range(number + 1) if n % 4 == at) for at in range(min(4, number + 1))
                ]
                assert await content(b, handle) == blocks(*expected)
            b.workspace.row_cache.shrink(0)
            assert await content(b, handles[5]) == blocks(4, 5, 2, 3)
            asked = [verb for node, _, verb in cluster.switch.calls if node == "b" and verb != "renew"]
            assert asked == ["subscribe"]

    run(scenario)


def test_the_same_version_has_the_same_inode_and_a_new_one_another(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            versions = company_of(b).versions
            first = await versions.look_up(V)
            assert first.id >= FIRST_ID
            assert await versions.look_up(V) == first
            await changed(head, 0, 2)
            assert (await versions.look_up(V)).id > first.id

    run(scenario)


def test_a_tail_of_a_segment_that_was_cached_is_read_when_it_has_grown(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            for number in range(60):
                await changed(head, number, number)
                assert await newest_content(b) == blocks(*range(number + 1))

    run(scenario)


def test_a_clone_and_its_parents_are_read_from_another_node(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await write(head, 0, blocks(1, 2, 3))
            taken = await snap(a, V, "one", 900)
            child = await clone(a, V, "one", CLONE)
            await changed(child, 1, 8)
            await changed(head, 0, 9)
            assert await newest_content(b, CLONE) == blocks(1, 8, 3)
            assert await newest_content(b) == blocks(9, 2, 3)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert await view_content(b, taken.id) == blocks(1, 2, 3)

    run(scenario)


def test_a_snapshot_made_while_the_vdisk_is_followed_keeps_its_rows_here_too(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            assert await newest_content(b) == blocks(1)
            for number in range(2, 12):
                await write(head, 0, block(number))
                taken = await snap(a, V, f"s{number}", 900 + number)
                await changed(head, 0, 100 + number)
                assert taken.id == 900 + number
            assert await newest_content(b) == blocks(111)
            await trio.testing.wait_all_tasks_blocked(0.01)
            for number in range(2, 12):
                assert await view_content(b, 900 + number) == blocks(number)

    run(scenario)


def test_a_snapshot_is_read_as_it_is_though_its_commit_was_not_heard_of_yet(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            assert await newest_content(b) == block(1)
            cluster.switch.cut.add(("a", "b"))
            await write(head, 0, block(2))
            made = await snap(a, V, "s", 1000)  # which waits for nobody
            while b.family.by_id(made.id) is None:
                await passes(0.01)
            assert await view_content(b, made.id) == block(2)

    run(scenario)


def test_a_rollback_is_seen(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await write(head, 0, blocks(1, 2))
            await snap(a, V, "one", 900)
            await write(head, 0, blocks(3, 4, 5))
            await flush(head)
            before = await opened(b)
            await rollback(a, V, "one", ("undo", 901))
            assert await newest_content(b) == blocks(1, 2)
            head = await a.head(VdiskId(V))
            await changed(head, 1, 9)
            assert await newest_content(b) == blocks(1, 9)
            assert await content(b, before) == blocks(3, 4, 5)

    run(scenario)


def test_with_the_owner_dead_what_is_open_is_read_on_and_a_new_open_sees_what_was_durable(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            handle = await opened(b)
            cluster.switch.cut |= {("a", "b"), ("b", "a")}
            await changed(head, 0, 2)
            await write(head, 0, block(3))  # acknowledged, not flushed
            await cluster.kill("a")
            cluster.switch.expire("a")
            assert await content(b, handle) == blocks(1)
            assert await newest_content(b) == blocks(2)
            assert await content(b, handle) == blocks(1)

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_handles_and_inodes_outlive_the_daemon(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            handle = await opened(b)
            looked_up = await company_of(b).versions.look_up(V)
            await cluster.kill("b")
            await changed(head, 0, 2)
            b = await cluster.start("b")
            assert await newest_content(b) == blocks(2)
            assert await content(b, handle) == blocks(1)
            assert company_of(b).versions.by_id(looked_up.id) == looked_up
            company_of(b).versions.keep_only(lambda inode: False)
            assert company_of(b).versions.by_id(looked_up.id) is None

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_version_pinned_again_through_the_vdisks_own_inode_outlives_the_daemon(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            versions = company_of(b).versions
            first = await versions.look_up(V)  # so it stays known when its pin has ended
            assert (await versions.newest(V)).id == first.id
            await passes(LOOKUP_PIN_S + 2)
            assert not b.family.pinned_versions(V)
            handle = await b.open_version((await versions.newest(V)).id)
            await changed(head, 0, 2)
            await cluster.kill("b")
            b = await cluster.start("b")
            company_of(b).versions.keep_only(lambda inode: inode == V)
            assert await content(b, handle) == block(1)

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_version_looked_up_long_ago_is_stale_once_it_was_overwritten(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            versions = company_of(b).versions
            old = await versions.look_up(V)
            await passes(LOOKUP_PIN_S + 2)
            handle = await b.open_version(old.id)  # nothing newer was applied
            b.close(handle)
            await passes(LOOKUP_PIN_S + 2)
            await changed(head, 0, 2)
            assert await newest_content(b) == blocks(2)
            with pytest.raises(InvalidRequest) as caught:
                await b.open_version(old.id)
            assert caught.value.number == errno.ESTALE
            versions.forget(old.id, 1, kernel_knows=lambda inode: True)
            assert versions.by_id(old.id) is None

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_versions_made_under_another_owner_are_read_when_the_vdisk_is_back_and_nobody_has_opened_it(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await changed(await create(a, V), 0, 1)
            for handle in handles_of(a, V):
                a.close(handle)
            await company_of(b).transfers.acquire(V)
            await changed(await b.head(VdiskId(V)), 0, 2)
            named = await snap(b, V, "s", 100)
            await company_of(a).transfers.acquire(V)
            assert await view_content(a, named.id) == block(2)
            assert V not in a.heads

    run(scenario)


def test_a_rollback_that_cannot_be_committed_is_seen_by_who_followed_the_vdisk_all_the_same(
    cluster: ClusterRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(head: Head) -> None:
        raise Unavailable("the pool is away")

    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            await snap(a, V, "s", 100)
            await changed(head, 0, 2)
            assert await newest_content(b) == block(2)
            with monkeypatch.context() as patch:
                patch.setattr(company_of(b).mirror, "note_events", lambda *_, **__: None)  # it is slow
                patch.setattr("replication.rollback.flush", fails)
                await rollback(a, V, "s", keep_as=("before", 101))
                assert await newest_content(b) == block(1)

    run(scenario)


def test_a_version_read_through_the_vdisks_own_inode_outlives_the_daemon(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            handle = await b.open_version((await company_of(b).versions.newest(V)).id)
            assert await content(b, handle) == block(1)
            await changed(head, 0, 2)
            await cluster.kill("b")
            b = await cluster.start("b")
            versions = company_of(b).versions
            versions.keep_only(lambda inode: inode == V)  # the kernel was told of the vdisk's inode alone
            assert await content(b, handle) == block(1)
            b.close(handle)
            assert b.family.pinned_versions(V)
            versions.forget_read(V, kernel_knows=lambda inode: False)
            await passes(2 * LOOKUP_PIN_S)
            versions.end_pins()
            assert not b.family.pinned_versions(V)

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_what_a_checkpoint_lacks_of_an_open_version_comes_from_the_log(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            handle = await opened(b)
            for number in range(2, 9):
                await changed(head, 0, number)
            assert await checkpoint(head)  # it knows the newest alone
            assert a.workspace.pool.checkpoints(V)
            await cluster.kill("b")
            shutil.rmtree(cluster.rigs["b"].index_path)
            b = await cluster.start("b")
            company_of(b).versions.keep_only(lambda inode: True)
            assert await content(b, handle) == block(1)
            assert await newest_content(b) == block(8)

    run(scenario)


def test_a_version_that_was_lost_is_not_believed_by_the_next_daemon(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 0, 1)
            handle = await opened(b)
            await changed(head, 0, 2)
            company_of(b).versions.note_rebuilt(V, lambda version: False)
            await cluster.kill("b")
            b = await cluster.start("b")
            company_of(b).versions.keep_only(lambda inode: True)
            with pytest.raises((InvalidRequest, Unavailable)):
                await content(b, handle)
            assert await newest_content(b) == block(2)

    run(scenario)
