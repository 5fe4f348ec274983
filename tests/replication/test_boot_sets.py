"""Boot working sets: what one boot read, the next one, a clone's and another node's too, finds in the cache."""

import pathlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from metadata.ids import VdiskId
from replication import boot_sets, head_read
from replication.boot_sets import BootSets, decode_set, encode_set
from replication.commit import flush
from replication.head import Head
from replication.reader import TOUCHED_MAX
from replication.vdisks import Vdisks
from tests.replication.objects import ObjectRig, object_pool
from tests.replication.rig import B, block, create, handles_of, opened, run, write
from tests.replication.snapshotting import clone

MIB = 1 << 20
READ = (3, 700, 701, 1500)
"""Blocks that a guest reads in its first minutes."""


@pytest.fixture
def rig(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> ObjectRig:
    monkeypatch.setattr(boot_sets, "TICK_S", 0.1)
    return ObjectRig(tmp_path)


@asynccontextmanager
async def recording(rig: ObjectRig) -> AsyncIterator[Vdisks]:
    """A node with an empty cache that remembers."""
    async with rig.node() as vdisks, trio.open_nursery() as nursery:
        nursery.start_soon(BootSets(vdisks).run)
        yield vdisks
        nursery.cancel_scope.cancel()


async def made(rig: ObjectRig) -> None:
    async with rig.node() as vdisks:
        head = await create(vdisks, 20, 8 * MIB)
        await write(head, 0, b"".join(block(number) for number in range(256)))
        for number in range(256, 2048, 256):
            await write(head, number * B, b"".join(block(each) for each in range(number, number + 256)))
        await flush(head)


async def booted(head: Head) -> None:
    """As a guest whose reads neither memory nor the page cache answers."""
    for number in READ:
        assert await head_read.read(head, number * B, B) == block(number)


async def close(vdisks: Vdisks, vdisk: int) -> None:
    for number in handles_of(vdisks, vdisk):
        vdisks.close(number)


async def stored(rig: ObjectRig, vdisk: int) -> None:
    """Returns when a set is there."""
    with trio.fail_after(10):
        while not any(key.endswith(f"{vdisk:016x}/boot") for key in rig.store.objects):
            await trio.testing.wait_all_tasks_blocked(0.01)


def grains() -> set[int]:
    return {number // 32 for number in READ}


def test_what_a_boot_reads_is_remembered_and_fetched_ahead_for_a_clone_elsewhere(rig: ObjectRig) -> None:
    async def first() -> None:
        async with recording(rig) as vdisks:
            await booted(await opened(vdisks, 20))
            await close(vdisks, 20)
            await stored(rig, 20)
            found = next(data for key, data in rig.store.objects.items() if key.endswith("/boot"))
            assert decode_set(found) == grains()

    async def second() -> None:
        async with recording(rig) as vdisks:
            pool = object_pool(vdisks.workspace.pool)
            await vdisks.head(VdiskId(20))  # recovery reads the log
            pool.cache.shrink(0)
            before = pool.space.fetched_bytes
            child = await clone(vdisks, 20, None, 21)
            with trio.fail_after(10):
                while pool.space.fetched_bytes - before < len(grains()) * 32 * B or any(
                    group._fetching for group in pool._groups.values()
                ):
                    await trio.testing.wait_all_tasks_blocked(0.01)
            gets = rig.store.calls["get"]
            await booted(child)
            assert rig.store.calls["get"] == gets
            assert pool.space.fetched_bytes - before == len(grains()) * 32 * B
            assert await head_read.read(child, 1000 * B, B) == block(1000)
            await close(vdisks, 21)
            await stored(rig, 21)

    run(lambda: made(rig))
    rig.lose_state()
    run(first)
    rig.lose_state()
    run(second)


def test_sets_are_compact_and_what_is_no_set_counts_for_nothing() -> None:
    chance = random.Random(4)
    for _ in range(50):
        grains = {chance.randrange(100_000) for _ in range(chance.randrange(300))}
        assert decode_set(encode_set(grains)) == grains
    assert len(encode_set(range(TOUCHED_MAX))) < 20
    for data in (
        b"",
        b"\xc1",
        b"\x92\x02\x90",
        encode_set(range(TOUCHED_MAX + 1)),
        encode_set([5])[:-1],
        b"\x92\x01\x91\x05",
    ):
        assert decode_set(data) == set()
