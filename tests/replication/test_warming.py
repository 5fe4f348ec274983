"""Filling the cache before anybody reads: all of a vdisk with its ancestors' blocks, no more than fits, and told."""

import pathlib
from collections.abc import Mapping

from metadata.ids import VdiskId
from replication.commit import flush
from replication.warming import warm
from tests.replication.objects import ObjectRig, object_pool
from tests.replication.rig import B, block, content, create, opened, read, run, write

MIB = 1 << 20


def test_what_was_warmed_is_read_without_the_pool(tmp_path: pathlib.Path) -> None:
    rig = ObjectRig(tmp_path)
    data = b"".join(block(number) for number in range(3 * 256))
    told: list[Mapping[str, object]] = []

    async def before() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 8 * MIB)
            await write(head, MIB, data)
            await flush(head)

    async def after() -> None:
        async with rig.node() as vdisks:
            await vdisks.head(VdiskId(20))  # recovery reads the log
            object_pool(vdisks.workspace.pool).cache.shrink(0)
            sums = await warm(vdisks, VdiskId(20), None, told.append)
            assert (sums["wanted_bytes"], sums["missing_bytes"]) == (len(data), 0)
            assert sums["fetched_bytes"] == len(data)
            gets = rig.store.calls["get"]
            head = await opened(vdisks, 20)
            assert (await content(head))[MIB : MIB + len(data)] == data
            assert rig.store.calls["get"] == gets
            await write(head, 0, block(1))
            assert (await warm(vdisks, VdiskId(20), None, told.append))["missing_bytes"] == 0

    run(before)
    rig.lose_state()
    run(after)
    assert told[-1]["done"] == told[-1]["total"] == len(data) + B


def test_what_does_not_fit_is_counted(tmp_path: pathlib.Path) -> None:
    rig = ObjectRig(tmp_path)

    async def before() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 8 * MIB)
            for at in range(8):
                await write(head, at * MIB, block(at) * 256)
                await flush(head)

    async def after() -> None:
        async with rig.node() as vdisks:
            sums = await warm(vdisks, VdiskId(20), None, lambda _: None)
            assert sums["wanted_bytes"] == 8 * MIB
            assert sums["missing_bytes"] > 0
            assert await read(await opened(vdisks, 20), 7 * MIB, B) == block(7)

    run(before)
    rig.lose_state()
    rig.cache_bytes = 3 * MIB
    run(after)
