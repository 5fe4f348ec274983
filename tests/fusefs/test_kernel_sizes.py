"""Sizes that other nodes set: whose files' the kernel is told, and whose it keeps."""

from dataclasses import dataclass, field
from typing import cast

import pytest
import trio
import trio.testing

from fusefs import kernel_sizes
from fusefs.kernel_sizes import KernelSizes
from fusefs.notifications import Notifications
from fusefs.resolution import PathResolver
from replication.vdisks import Vdisks


@dataclass
class Mount:
    """What is open, where it is, and what the kernel was told."""

    opened: set[int] = field(default_factory=set)
    buffered: set[int] = field(default_factory=set)
    paths: dict[int, str] = field(default_factory=dict)
    told: list[tuple[str, str]] = field(default_factory=list)

    def has_handles(self, vdisk: int) -> bool:
        return vdisk in self.opened

    def has_buffered_writer(self, vdisk: int) -> bool:
        return vdisk in self.buffered

    def path_of(self, vdisk: int) -> str | None:
        return self.paths.get(vdisk)

    async def learn_size(self, mountpoint: str, path: str) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append((mountpoint, path))

    def sizes(self) -> KernelSizes:
        return KernelSizes(
            cast(Vdisks, self), cast(Notifications, self), cast(PathResolver, self), mountpoint="/mnt"
        )


def test_an_open_file_s_size_is_told() -> None:
    mount = Mount(opened={20}, paths={20: "/a"})
    trio.run(mount.sizes().tell, 20)
    assert mount.told == [("/mnt", "/a")]


@pytest.mark.parametrize(
    "mount",
    [
        Mount(paths={20: "/a"}),
        Mount(opened={20}),
        Mount(opened={20}, buffered={20}, paths={20: "/a"}),
    ],
    ids=["not open", "without a name", "with a writer that goes through the cache"],
)
def test_the_kernel_keeps_its_own_size_of_others(mount: Mount) -> None:
    trio.run(mount.sizes().tell, 20)
    assert mount.told == []


def test_what_is_noted_is_told_once_and_no_more_waits_than_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_sizes, "VDISKS_MAX", 2)

    async def main() -> None:
        mount = Mount(opened={1, 2, 3}, paths={1: "/1", 2: "/2", 3: "/3"})
        sizes = mount.sizes()
        for vdisk in (1, 1, 2, 3):
            sizes.note(vdisk)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sizes.run)
            await trio.testing.wait_all_tasks_blocked()
            assert mount.told == [("/mnt", "/1"), ("/mnt", "/2")]
            sizes.note(3)
            await trio.testing.wait_all_tasks_blocked()
            assert mount.told[-1] == ("/mnt", "/3")
            nursery.cancel_scope.cancel()

    trio.run(main)
