"""The verbs rm and trash, and the task behind them, with a catalog, vdisks and a kernel in memory."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing

from fusefs.resolution import PathResolver
from fusefs.trash import AT_ONCE, PERIOD_S, Trash
from metadata.catalog import ROOT_ID
from metadata.errors import Busy, Exists, InvalidRequest, NotFound, Unavailable, VdiskfsError
from metadata.snapshots import Snapshot
from replication.vdisks import VdiskStat
from tests.fusefs.mount_in_memory import Mount, on_a_mount
from tests.fusefs.snapshots_in_memory import Kernel


@dataclass
class Bin:
    """A mount with its trash."""

    mount: Mount
    trash: Trash
    kernel: Kernel

    async def ask(self, verb: str, **arguments: object) -> Any:
        return await self.trash.verbs()[verb](arguments, lambda news: None)

    async def rm(self, *paths: str, **flags: bool) -> list[dict[str, Any]]:
        return (await self.ask("rm", paths=list(paths), **flags))["removed"]

    async def ids(self) -> list[int]:
        return [entry["id"] for entry in (await self.ask("trash_ls"))["entries"]]

    async def names(self) -> list[bytes]:
        return (await self.mount.list(ROOT_ID))[2:]

    def freeze(self, vdisk: int, name: str, *, protected: bool = False) -> None:
        family = self.mount.vdisks.family
        family.add_snapshot(Snapshot(vdisk, name, 5000 + len(name), 3, 1, 1, 0, 7, 8, protected))


def with_a_trash(scenario: Callable[[Bin], Awaitable[None]], *, keep_s: int = 100) -> None:
    async def main(mount: Mount) -> None:
        kernel = Kernel()
        trash = Trash(
            mount.store,
            mount.vdisks,
            mount.vdisks.family,
            paths=PathResolver(mount.store.namespace, mountpoint="/mnt"),
            notifications=kernel,  # type: ignore[arg-type]
            drop=mount.orphans.drop,
            keep_s=keep_s,
            node="here",
            clock_ns=mount.vdisks.clock_ns,
        )
        await scenario(Bin(mount, trash, kernel))

    on_a_mount(main)


@asynccontextmanager
async def failing(kind: type[VdiskfsError], said: str) -> AsyncIterator[None]:
    with pytest.raises(kind, match=said) as caught:
        yield
    assert caught.value.number == kind.number
    assert "\n" not in str(caught.value)


async def closed(mount: Mount, name: bytes, *, parent: int = ROOT_ID) -> int:
    inode, handle = await mount.create(name, parent=parent)
    await mount.operations.release(handle)
    return inode


def test_a_deleted_vdisk_comes_back_as_it_was() -> None:
    async def scenario(bin: Bin) -> None:
        folder = await bin.mount.mkdir(b"dir")
        disk = await closed(bin.mount, b"disk", parent=folder)
        bin.mount.vdisks.stats[disk] = VdiskStat(10000, 8192, 0, 3)
        (removed,) = await bin.rm("dir/disk")
        assert (removed["path"], removed["id"]) == ("/dir/disk", disk)
        assert bin.kernel.forgotten == [(folder, b"disk")]
        (entry,) = (await bin.ask("trash_ls"))["entries"]
        assert (entry["id"], entry["path"], entry["size"], entry["own_bytes"]) == (
            disk,
            "/dir/disk",
            10000,
            8192,
        )
        assert entry["until_ns"] == entry["deleted_ns"] + 100 * 10**9
        assert bin.mount.vdisks.forgotten == []
        assert (await bin.ask("trash_restore", path="dir/disk")) == {"id": disk, "path": "/dir/disk"}
        assert await bin.ids() == []
        assert (await bin.mount.operations.lookup(folder, b"disk", bin.mount.ctx)).st_size == 10000

    with_a_trash(scenario)


def test_what_was_deleted_under_one_name_is_told_apart_by_its_id() -> None:
    async def scenario(bin: Bin) -> None:
        first = await closed(bin.mount, b"disk")
        await bin.rm("disk")
        second = await closed(bin.mount, b"disk")
        await bin.rm("disk")
        assert await bin.ids() == [first, second]
        assert (await bin.ask("trash_restore", path="disk"))["id"] == second
        async with failing(Exists, "say --to"):
            await bin.ask("trash_restore", id=first)
        assert (await bin.ask("trash_restore", id=first, to="other"))["path"] == "/other"
        assert await bin.names() == [b"other", b"disk"]

    with_a_trash(scenario)


def test_a_vdisk_whose_directory_is_gone_goes_elsewhere() -> None:
    async def scenario(bin: Bin) -> None:
        folder = await bin.mount.mkdir(b"dir")
        await closed(bin.mount, b"disk", parent=folder)
        await bin.rm("dir/disk")
        await bin.mount.operations.rmdir(ROOT_ID, b"dir", bin.mount.ctx)
        async with failing(NotFound, "its directory is gone: say --to"):
            await bin.ask("trash_restore", path="dir/disk")
        await bin.ask("trash_restore", path="dir/disk", to="disk")
        assert await bin.names() == [b"disk"]

    with_a_trash(scenario)


def test_nothing_is_deleted_if_one_cannot_be() -> None:
    async def scenario(bin: Bin) -> None:
        await bin.mount.mkdir(b"dir")
        disk, locked = await closed(bin.mount, b"disk"), await closed(bin.mount, b"locked")
        plain = await closed(bin.mount, b"plain")
        bin.freeze(disk, "one")
        bin.freeze(disk, "other")
        bin.freeze(locked, "keep", protected=True)
        for victims, flags, kind, said in (
            (["plain", "dir"], {}, InvalidRequest, "dir is a directory"),
            (["plain", "nothing"], {}, NotFound, "nothing does not exist"),
            (["plain", "disk"], {}, Busy, "2 snapshots: say --snapshots .* one, other"),
            (["locked"], {}, Busy, "a snapshot: say --snapshots"),
            (["plain", "locked"], {"snapshots": True}, Busy, "unprotect' first: keep"),
            (["plain", ""], {}, InvalidRequest, "a name is missing"),
            (["plain", "dir/.."], {}, InvalidRequest, "a name is missing"),
        ):
            async with failing(kind, said):
                await bin.rm(*victims, **flags)
        assert (await bin.names(), await bin.ids()) == ([b"dir", b"disk", b"locked", b"plain"], [])
        await bin.rm("disk", "plain", snapshots=True)
        assert await bin.ids() == [disk, plain]
        assert [e["snapshots"] for e in (await bin.ask("trash_ls"))["entries"]] == [2, 0]

    with_a_trash(scenario)


def test_what_is_deleted_now_or_without_a_trash_is_gone() -> None:
    async def now(bin: Bin) -> None:
        disk = await closed(bin.mount, b"disk")
        (removed,) = await bin.rm("disk", now=True)
        assert removed["until_ns"] is None
        assert bin.mount.vdisks.forgotten == [disk]
        assert bin.mount.store.namespace.orphans("here") == []

    async def off(bin: Bin) -> None:
        disk = await closed(bin.mount, b"disk")
        await bin.rm("disk")
        assert bin.mount.vdisks.forgotten == [disk]
        assert (await bin.ask("trash_ls")) == {"keep_s": 0, "entries": []}

    with_a_trash(now)
    with_a_trash(off, keep_s=0)


def test_a_symbolic_link_has_no_need_of_the_trash() -> None:
    async def scenario(bin: Bin) -> None:
        disk = await closed(bin.mount, b"disk")
        birth = bin.mount.operations
        await birth.symlink(ROOT_ID, b"link", b"disk", bin.mount.ctx)
        await bin.rm("link")
        assert (await bin.names(), await bin.ids()) == ([b"disk"], [])
        assert bin.mount.store.namespace.path(disk) == b"disk"

    with_a_trash(scenario)


def test_what_is_open_goes_when_it_is_closed() -> None:
    async def scenario(bin: Bin) -> None:
        disk, handle = await bin.mount.create()
        bin.kernel.known = {disk}
        await bin.rm("disk")
        await bin.ask("trash_purge", all=True)
        assert bin.mount.store.namespace.orphans("here") == [disk]
        assert bin.mount.vdisks.forgotten == []
        await bin.mount.operations.release(handle)
        await bin.mount.operations.forget([(disk, 1)])
        assert bin.mount.vdisks.forgotten == [disk]

    with_a_trash(scenario)


def test_purging_takes_one_or_all() -> None:
    async def scenario(bin: Bin) -> None:
        first, second, third = [await closed(bin.mount, name) for name in (b"a", b"b", b"c")]
        await bin.rm("a", "b", "c")
        answer = await bin.ask("trash_purge", path="/b")
        assert answer == {"purged": [{"id": second, "path": "/b"}]}
        await bin.ask("trash_purge", id=third)
        assert bin.mount.vdisks.forgotten == [second, third]
        for arguments in ({"path": "b"}, {"id": second}, {"id": "x"}, {"path": "never"}):
            async with failing(NotFound, "trash ls"):
                await bin.ask("trash_purge", **arguments)
        await bin.ask("trash_purge", all=True)
        assert bin.mount.vdisks.forgotten == [second, third, first]

    with_a_trash(scenario)


def test_what_is_over_time_is_purged_by_itself() -> None:
    async def scenario(bin: Bin) -> None:
        disk = await closed(bin.mount, b"disk")
        await bin.rm("disk")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bin.trash.run)
            await trio.testing.wait_all_tasks_blocked()
            assert await bin.ids() == [disk]
            bin.mount.now_ns[0] += 101 * 10**9
            with trio.move_on_after(2 * PERIOD_S):
                await trio.sleep_forever()
            nursery.cancel_scope.cancel()
        assert (await bin.ids(), bin.mount.vdisks.forgotten) == ([], [disk])

    with_a_trash(scenario)


def test_the_first_failure_of_many_is_told_and_ends_the_rest() -> None:
    async def scenario(bin: Bin) -> None:
        names = [f"d{number}" for number in range(3 * AT_ONCE)]
        for name in names:
            await closed(bin.mount, name.encode())
        told = bin.kernel.forget_entry

        async def failing_once(parent: int, name: bytes) -> None:
            await told(parent, name)
            if name == b"d5":
                raise Unavailable("the kernel does not listen")

        bin.kernel.forget_entry = failing_once  # type: ignore[method-assign]
        async with failing(Unavailable, "does not listen"):
            await bin.rm(*names)
        left, gone = len(await bin.names()), len(await bin.ids())
        assert left + gone == len(names)
        assert 0 < gone <= 2 * AT_ONCE

    with_a_trash(scenario)


def test_a_pool_that_fills_purges_the_oldest_until_there_is_room(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(bin: Bin) -> None:
        disks = [await closed(bin.mount, name) for name in (b"a", b"b", b"c")]
        await bin.rm("a")
        await bin.rm("b", "c")

        async def statfs() -> os.statvfs_result:
            await trio.lowlevel.checkpoint()
            free = 49 + len(bin.mount.vdisks.forgotten)
            return os.statvfs_result((4096, 4096, 1000, free, free, 0, 0, 0, 0, 255))

        bin.mount.vdisks.statfs = statfs  # type: ignore[method-assign]
        await bin.trash.purge_due()
        assert bin.mount.vdisks.forgotten == disks[:1]
        assert await bin.ids() == disks[1:]

    with_a_trash(scenario)
    assert "purging a from the trash" in caplog.text
