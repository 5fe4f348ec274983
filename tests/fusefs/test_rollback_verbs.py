"""The verbs snap rollback and flatten on mirrors in memory: what they refuse, and tell the kernel."""

import errno
import os

import pytest

from metadata.catalog import ROOT_ID
from metadata.errors import Busy, VdiskfsError
from replication.vdisks import VdiskStat
from tests.fusefs.asked_snapshots import Asked, asking


def test_a_rollback_keeps_what_was_there_and_tells_the_kernel() -> None:
    async def scenario(asked: Asked) -> None:
        disk = await asked.disk("a")
        await asked.ask("snap_create", paths=["a"], name="one")
        answer = await asked.ask("snap_rollback", path="a", name="one")
        assert answer["kept"]["name"] == "before-rollback-20010909-014640"
        assert (await asked.ask("snap_rollback", path="a", name="one"))["kept"]["name"].endswith("-014640-2")
        assert asked.kernel.written_back == [disk, disk]
        assert asked.kernel.forgotten == [(ROOT_ID, b"a")] * 4

    asking(scenario)


def test_an_open_file_does_not_change_its_size_under_its_reader() -> None:
    async def scenario(asked: Asked) -> None:
        disk = await asked.disk("a")
        await asked.ask("snap_create", paths=["a"], name="one")
        info = await asked.mount.operations.open(disk, os.O_RDONLY, asked.mount.ctx)
        asked.mount.vdisks.stats[disk] = VdiskStat(20000, 8192, 9, 4)
        with pytest.raises(VdiskfsError, match="its size would change: close it first") as caught:
            await asked.ask("snap_rollback", path="a", name="one")
        assert caught.value.number == errno.EBUSY
        await asked.mount.operations.release(info.fh)
        await asked.ask("snap_rollback", path="a", name="one")

    asking(scenario)


def test_what_may_be_open_since_before_a_restart_is_not_rolled_back() -> None:
    async def scenario(asked: Asked) -> None:
        disk = await asked.disk("a")
        await asked.ask("snap_create", paths=["a"], name="one")
        asked.mount.vdisks.knows_all_handles = False
        asked.kernel.known = {disk}
        with pytest.raises(Busy, match="nobody knows whether for writing"):
            await asked.ask("snap_rollback", path="a", name="one")
        asked.kernel.known = set()
        await asked.ask("snap_rollback", path="a", name="one")

    asking(scenario)


def test_flatten_names_a_vdisk_and_tells_how_far_it_is() -> None:
    async def scenario(asked: Asked) -> None:
        disk = await asked.disk("a")
        news: list[object] = []
        answer = await asked.verbs["flatten"]({"path": "a"}, news.append)
        assert (answer, asked.snapshots.flattened) == ({"path": "/a"}, [disk])
        assert news == [{"done": 1, "total": 2}]

    asking(scenario)
