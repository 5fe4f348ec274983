"""A pass over a vdisk's rows: blocks counted by group, each once, rows that nobody sees taken away, the others kept."""

import pathlib
from collections.abc import Awaitable, Callable

import pytest

from metadata.liveness import live_blocks
from metadata.units import VBLOCK_BYTES
from replication import marking
from replication.commit import flush
from replication.head import Head
from replication.marking import Mark, mark, mark_stored, visibility
from replication.pacing import Pace
from replication.vdisks import Vdisks
from tests.replication.rig import B, Rig, blocks, create, run, sound, write
from tests.replication.snapshotting import snap, view_content

V = 20
VBLOCKS = 5


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marking, "ROWS_AT_ONCE", 2)


def with_a_snapshot(
    folder: pathlib.Path, body: Callable[[Vdisks, Head, Callable[..., Awaitable[Mark]]], Awaitable[None]]
) -> None:
    """Of each vblock two blocks are written, then a snapshot is made, then one is written over."""

    async def scenario() -> None:
        async with Rig(folder).node() as vdisks:
            head = await create(vdisks, V, VBLOCKS * VBLOCK_BYTES)
            for vblock in range(VBLOCKS):
                await write(head, vblock * VBLOCK_BYTES, blocks(1, 2))
            await flush(head)
            await snap(vdisks, V, "one", 1)
            for vblock in range(VBLOCKS):
                await write(head, vblock * VBLOCK_BYTES, blocks(3))
            await flush(head)
            pace = Pace(vdisks.workspace, lambda: 1.0)

            async def marked(*, prune: bool = False, **more: Callable[[int], None]) -> Mark:
                return await mark(vdisks, V, pace, prune=prune, **more)

            await body(vdisks, head, marked)
            assert live_blocks((await mark_stored(vdisks, V, pace)).live) >= 2 * VBLOCKS
            await sound(vdisks, V)

    run(scenario)


def test_what_a_snapshot_or_the_head_sees_is_live_and_each_block_counts_once(tmp_path: pathlib.Path) -> None:
    async def body(vdisks: Vdisks, head: Head, marked: Callable[..., Awaitable[Mark]]) -> None:
        told: list[int] = []
        found = await marked(prune=True, progress=told.append)
        assert (live_blocks(found.live), found.rows, found.pruned) == (3 * VBLOCKS, 2 * VBLOCKS, 0)
        assert sum(told) == 2 * VBLOCKS
        assert len(told) > 1  # in pieces
        assert await view_content(vdisks, 1) == (blocks(1, 2) + bytes(VBLOCK_BYTES - 2 * B)) * VBLOCKS

    with_a_snapshot(tmp_path, body)


def test_rows_that_nobody_sees_are_counted_out_and_go_only_when_told(tmp_path: pathlib.Path) -> None:
    async def body(vdisks: Vdisks, head: Head, marked: Callable[..., Awaitable[Mark]]) -> None:
        (snapshot,) = vdisks.family.snapshots(V)
        vdisks.family.drop_snapshot(snapshot)
        looked = await marked()
        assert (live_blocks(looked.live), looked.rows, looked.pruned) == (2 * VBLOCKS, 2 * VBLOCKS, 0)
        assert (await marked()).rows == 2 * VBLOCKS
        pruned = await marked(prune=True)
        assert (live_blocks(pruned.live), pruned.rows, pruned.pruned) == (2 * VBLOCKS, 2 * VBLOCKS, VBLOCKS)
        again = await marked(prune=True)
        assert (live_blocks(again.live), again.rows, again.pruned) == (2 * VBLOCKS, VBLOCKS, 0)

    with_a_snapshot(tmp_path, body)


def test_a_pinned_version_is_seen_until_it_is_unpinned(tmp_path: pathlib.Path) -> None:
    async def body(vdisks: Vdisks, head: Head, marked: Callable[..., Awaitable[Mark]]) -> None:
        (snapshot,) = vdisks.family.snapshots(V)
        with vdisks.family.pinned(V, snapshot.version):
            vdisks.family.drop_snapshot(snapshot)
            assert (await marked(prune=True)).pruned == 0
            assert list(visibility(vdisks, V).seen([snapshot.version])) == [snapshot.version]
        assert (await marked(prune=True)).pruned == VBLOCKS

    with_a_snapshot(tmp_path, body)
