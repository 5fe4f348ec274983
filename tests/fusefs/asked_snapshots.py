"""The verbs about snapshots on a mount in memory, for asking them as the control server does."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from fusefs.control import Verb
from fusefs.resolution import PathResolver
from fusefs.rollback_verbs import RollbackVerbs
from fusefs.snapshot_verbs import SnapshotVerbs
from metadata.catalog import ROOT_ID
from metadata.errors import VdiskfsError
from replication.vdisks import VdiskStat
from tests.fusefs.mount_in_memory import Mount, on_a_mount
from tests.fusefs.snapshots_in_memory import Kernel, SnapshotsInMemory


@dataclass
class Asked:
    """A mount with its snapshots."""

    mount: Mount
    verbs: dict[str, Verb]
    snapshots: SnapshotsInMemory
    kernel: Kernel

    async def ask(self, verb: str, **arguments: object) -> Any:
        return await self.verbs[verb](arguments, lambda news: None)

    async def disk(self, path: str, *, parent: int = ROOT_ID, size: int = 10000) -> int:
        inode, handle = await self.mount.create(path.encode(), parent=parent)
        await self.mount.operations.release(handle)
        self.mount.vdisks.stats[inode] = VdiskStat(size, 8192, 7, 3)
        return inode

    async def names(self, path: str = "") -> list[str]:
        listed = (await self.ask("snap_ls", path=path))["snapshots"]
        return [f"{one['path']}@{one['name']}" for one in listed]


def asking(scenario: Callable[[Asked], Awaitable[None]]) -> None:
    async def main(mount: Mount) -> None:
        kernel, snapshots = Kernel(), SnapshotsInMemory(mount.vdisks)
        verbs: dict[str, Verb] = {}
        for kind in (SnapshotVerbs, RollbackVerbs):
            verbs |= kind(
                mount.store,
                mount.vdisks,
                snapshots,
                family=mount.vdisks.family,
                paths=PathResolver(mount.store.namespace, mountpoint="/mnt"),
                notifications=kernel,  # type: ignore[arg-type]
                clock_ns=lambda: 1_000_000_000 * 10**9,
            ).verbs()
        await scenario(Asked(mount, verbs, snapshots, kernel))

    on_a_mount(main)


@asynccontextmanager
async def failing(kind: type[VdiskfsError], said: str) -> AsyncIterator[None]:
    with pytest.raises(kind, match=said) as caught:
        yield
    assert "\n" not in str(caught.value)
