"""What outlives a name, a request or a daemon: orphans, requests that come twice, numbers, failures."""

import errno
import os
from collections.abc import Awaitable, Callable

import pyfuse3
import pytest
import trio
import trio.testing

from fusefs.fuse_abi import NUMBER_MASK, RESENT
from metadata.catalog import ROOT_ID, Change
from metadata.catalog_memory import MemoryCatalog
from metadata.errors import Unavailable
from metadata.namespace_plans import RENAME_EXCHANGE, RENAME_NOREPLACE, plan_root
from replication.vdisks import HANDLE_SHIFT
from tests.fusefs.mount_in_memory import (
    NAME,
    Context,
    Mount,
    VdisksInMemory,
    mounted,
    on_a_mount,
    refused,
)


def test_an_unlinked_vdisk_lives_until_the_kernel_forgets_it() -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()
        await mount.operations.unlink(ROOT_ID, NAME, mount.ctx)
        async with refused(errno.ENOENT):
            await mount.operations.lookup(ROOT_ID, NAME, mount.ctx)
        assert (await mount.operations.getattr(inode, mount.ctx)).st_nlink == 0
        assert (await mount.setattr(inode, fh=fh, size=100)).st_size == 100
        await mount.operations.forget([(inode, 1)])  # a late one, of an earlier life of the kernel's inode
        assert mount.vdisks.forgotten == []
        await mount.operations.flush(fh)
        assert mount.vdisks.flushed == []
        await mount.operations.release(fh)
        await mount.operations.forget([(inode, 1), (ROOT_ID, 5), (777, 1)])
        assert mount.vdisks.forgotten == [inode]
        async with refused(errno.ENOENT):
            await mount.operations.getattr(inode, mount.ctx)
        rows, _ = await mount.catalog.read(b"")
        assert [row.key for row in rows if b"%016x" % inode in row.key and row.key[:6] != b"vdisk/"] == []

    on_a_mount(scenario)


def test_a_replaced_vdisk_lives_until_the_kernel_forgets_it() -> None:
    async def scenario(mount: Mount) -> None:
        old, old_fh = await mount.create(b"old")
        new, _ = await mount.create(b"new")
        await mount.operations.rename(ROOT_ID, b"new", ROOT_ID, b"old", 0, mount.ctx)
        assert (await mount.operations.lookup(ROOT_ID, b"old", mount.ctx)).st_ino == new
        assert (await mount.operations.getattr(old, mount.ctx)).st_nlink == 0
        await mount.operations.release(old_fh)
        await mount.operations.forget([(old, 3)])
        assert mount.vdisks.forgotten == [old]

    on_a_mount(scenario)


def test_forgetting_what_has_a_name_drops_nothing() -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()
        await mount.operations.release(fh)
        await mount.operations.forget([(inode, 1)])
        assert mount.vdisks.forgotten == []
        assert (await mount.operations.getattr(inode, mount.ctx)).st_ino == inode

    on_a_mount(scenario)


def test_what_could_not_be_dropped_is_dropped_with_the_next_mount(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        catalog = MemoryCatalog()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with mounted(catalog) as mount:
            inode, fh = await mount.create()
            folder = await mount.mkdir(b"folder")
            await mount.operations.unlink(ROOT_ID, NAME, mount.ctx)
            await mount.operations.rmdir(ROOT_ID, b"folder", mount.ctx)
            await mount.operations.release(fh)
            mount.vdisks.broken[inode] = Unavailable("no answer")
            await mount.operations.forget([(inode, 1)])
            assert mount.store.namespace.orphans("here") == [inode, folder]
        async with mounted(catalog) as mount:
            assert (await mount.operations.getattr(inode, mount.ctx)).st_nlink == 0
            await mount.orphans.drop_all()
            assert mount.vdisks.forgotten == [inode]
            assert mount.store.namespace.orphans("here") == []
            async with refused(errno.ENOENT):
                await mount.operations.getattr(folder, mount.ctx)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert "space is not free yet" in caplog.text


def test_after_a_daemon_s_death_what_the_kernel_still_knows_is_kept() -> None:
    async def scenario(mount: Mount) -> None:
        inodes = [(await mount.create(name))[0] for name in (b"open", b"forgotten")]
        mount.vdisks.handles.clear()  # as a successor finds them
        for name in (b"open", b"forgotten"):
            await mount.operations.unlink(ROOT_ID, name, mount.ctx)
        await mount.orphans.drop_all(kernel_knows=lambda inode: inode == inodes[0])
        assert mount.vdisks.forgotten == inodes[1:]
        assert mount.store.namespace.orphans("here") == inodes[:1]

    on_a_mount(scenario)


def test_a_removed_directory_can_still_be_looked_at() -> None:
    async def scenario(mount: Mount) -> None:
        folder = await mount.mkdir(b"folder")
        await mount.create(parent=folder)
        async with refused(errno.ENOTEMPTY):
            await mount.operations.rmdir(ROOT_ID, b"folder", mount.ctx)
        await mount.operations.unlink(folder, NAME, mount.ctx)
        await mount.operations.rmdir(ROOT_ID, b"folder", mount.ctx)
        assert (await mount.operations.getattr(folder, mount.ctx)).st_nlink == 0
        assert await mount.list(folder) == [b".", b".."]
        async with refused(errno.ENOENT):
            await mount.create(parent=folder)
        await mount.operations.forget([(folder, 1)])
        async with refused(errno.ENOENT):
            await mount.operations.getattr(folder, mount.ctx)
        async with refused(errno.ENOENT):
            await mount.operations.readdir(folder, 0, None)
        assert mount.vdisks.forgotten == []

    on_a_mount(scenario)


def test_requests_that_come_twice_are_done_once() -> None:
    async def scenario(mount: Mount) -> None:
        operations, again = mount.operations, mount.resent
        inode, _ = await mount.create(flags=os.O_RDWR | os.O_EXCL)
        info, entry = await operations.create(ROOT_ID, NAME, 0o640, os.O_RDWR | os.O_EXCL, again())
        assert entry.st_ino == inode == info.fh & ((1 << HANDLE_SHIFT) - 1)
        folder = await mount.mkdir(b"folder")
        assert (await operations.mkdir(ROOT_ID, b"folder", 0o755, again())).st_ino == folder
        link = await operations.symlink(ROOT_ID, b"link", b"x", mount.ctx)
        assert (await operations.symlink(ROOT_ID, b"link", b"x", again())).st_ino == link.st_ino
        for flags in (0, RENAME_NOREPLACE):
            await operations.rename(ROOT_ID, b"link", folder, b"moved", flags, mount.ctx)
            await operations.rename(ROOT_ID, b"link", folder, b"moved", flags, again())
            await operations.rename(folder, b"moved", ROOT_ID, b"link", flags, mount.ctx)
        await operations.setxattr(inode, b"user.a", b"1", mount.ctx)
        await operations.removexattr(inode, b"user.a", mount.ctx)
        await operations.removexattr(inode, b"user.a", again())
        await operations.rmdir(ROOT_ID, b"folder", mount.ctx)
        await operations.rmdir(ROOT_ID, b"folder", again())
        await operations.unlink(ROOT_ID, b"link", mount.ctx)
        await operations.unlink(ROOT_ID, b"link", again())
        async with refused(errno.ENOENT):
            await operations.rename(ROOT_ID, b"link", ROOT_ID, b"nowhere", 0, again())

    on_a_mount(scenario)


def test_requests_that_come_twice_are_done_if_they_were_not() -> None:
    async def scenario(mount: Mount) -> None:
        operations, again = mount.operations, mount.resent
        await operations.create(ROOT_ID, b"a", 0o640, os.O_RDWR, again())
        await operations.mkdir(ROOT_ID, b"folder", 0o755, again())
        await operations.rename(ROOT_ID, b"a", ROOT_ID, b"b", 0, again())
        await operations.rmdir(ROOT_ID, b"folder", again())
        await operations.unlink(ROOT_ID, b"b", again())
        assert await mount.list(ROOT_ID) == [b".", b".."]

    on_a_mount(scenario)


def test_a_name_that_another_node_took_meanwhile_is_not_taken_away_by_a_request_that_comes_twice() -> None:
    async def scenario(mount: Mount) -> None:
        operations, number = mount.operations, iter(range(1000, 2000))

        def twice() -> tuple[Context, Context]:
            now = next(number)
            return Context(pid=now), Context(pid=RESENT | now)

        await mount.create(b"a")
        first, again = twice()
        await operations.unlink(ROOT_ID, b"a", first)
        theirs, _ = await mount.create(b"a")  # on the other node, before the kernel has sent it again
        await operations.unlink(ROOT_ID, b"a", again)
        assert (await operations.lookup(ROOT_ID, b"a", mount.ctx)).st_ino == theirs
        await mount.mkdir(b"folder")
        first, again = twice()
        await operations.rmdir(ROOT_ID, b"folder", first)
        folder = await mount.mkdir(b"folder")
        await operations.rmdir(ROOT_ID, b"folder", again)
        assert (await operations.lookup(ROOT_ID, b"folder", mount.ctx)).st_ino == folder
        new, _ = await mount.create(b"new")
        first, again = twice()
        await operations.rename(ROOT_ID, b"new", ROOT_ID, b"final", 0, first)
        theirs, _ = await mount.create(b"new")
        await operations.rename(ROOT_ID, b"new", ROOT_ID, b"final", 0, again)
        assert (await operations.lookup(ROOT_ID, b"final", mount.ctx)).st_ino == new
        assert (await operations.lookup(ROOT_ID, b"new", mount.ctx)).st_ino == theirs

    on_a_mount(scenario)


def test_a_lock_file_that_another_node_made_first_is_not_ours_though_the_request_comes_twice() -> None:
    async def scenario(mount: Mount) -> None:
        flags = os.O_RDWR | os.O_EXCL
        first, again = Context(pid=1000), Context(pid=RESENT | 1000)
        await mount.create(b"lock")  # by the other node, since our kernel has looked
        async with refused(errno.EEXIST):
            await mount.operations.create(ROOT_ID, b"lock", 0o640, flags, first)  # and died before the answer
        async with refused(errno.EEXIST):
            await mount.operations.create(ROOT_ID, b"lock", 0o640, flags, again)

    on_a_mount(scenario)


def test_an_exchange_that_comes_twice_is_not_undone() -> None:
    async def scenario(mount: Mount) -> None:
        one, _ = await mount.create(b"one")
        two, _ = await mount.create(b"two")

        async def exchange(ctx: Context) -> int:
            await mount.operations.rename(ROOT_ID, b"one", ROOT_ID, b"two", RENAME_EXCHANGE, ctx)
            return (await mount.operations.lookup(ROOT_ID, b"one", ctx)).st_ino

        assert await exchange(Context(pid=500)) == two
        assert await exchange(Context(pid=RESENT | 500)) == two
        assert await exchange(Context(pid=501)) == one
        assert await exchange(Context(pid=RESENT | 502)) == two  # was not done before
        assert await exchange(Context(pid=RESENT | NUMBER_MASK)) == one

    on_a_mount(scenario)


def test_numbers_mean_the_same_to_the_next_daemon() -> None:
    async def main() -> None:
        catalog, vdisks = MemoryCatalog(), VdisksInMemory()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with mounted(catalog, vdisks=vdisks, listed_max=5) as mount:
            folder = await mount.mkdir(b"folder")
            inode, fh = await mount.create(parent=folder)
            for number in range(20):
                await mount.create(b"%d" % number, parent=folder)
            names = await mount.list(folder)
            position, before = mount.listed[-1][2], await mount.operations.getattr(inode, mount.ctx)
            await mount.operations.unlink(folder, NAME, mount.ctx)
        vdisks.handles.clear()
        async with mounted(catalog, vdisks=vdisks) as mount:
            await mount.operations.readdir(folder, position, None)
            assert len({*names, *(name for name, _, _ in mount.listed)}) == 23
            after = await mount.operations.getattr(inode, mount.ctx)
            assert (after.st_ino, after.st_nlink, after.st_mtime_ns) == (inode, 0, before.st_mtime_ns)
            await mount.operations.release(fh)
            await mount.operations.forget([(inode, 2)])
            assert vdisks.forgotten == [inode]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_the_unexpected_is_logged_and_answered(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()

        async def surprise(*_: object) -> None:
            raise RuntimeError("a bug")

        mount.vdisks.flush = surprise  # type: ignore[method-assign]
        async with refused(errno.EIO):
            await mount.operations.flush(fh)
        mount.vdisks.forget = surprise  # type: ignore[method-assign]
        await mount.operations.release(fh)
        await mount.operations.unlink(ROOT_ID, NAME, mount.ctx)
        await mount.operations.forget([(inode, 1)])

    on_a_mount(scenario)
    messages = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(messages) == 2
    assert messages[0] == "unexpected error in flush"
    caplog.clear()


def test_a_cancelled_request_is_not_an_error() -> None:
    async def scenario(mount: Mount) -> None:
        _, fh = await mount.create()
        never = trio.Event()

        async def wait(*_: object) -> None:
            await never.wait()

        mount.vdisks.flush = wait  # type: ignore[method-assign]
        with trio.move_on_after(1) as scope:
            await mount.operations.flush(fh)
        assert scope.cancelled_caught

    on_a_mount(scenario)


def test_handlers_side_by_side_leave_a_sound_tree() -> None:
    async def scenario(mount: Mount) -> None:
        folder = await mount.mkdir(b"folder")
        outcomes: list[int] = []

        async def attempt(call: Callable[[], Awaitable[object]]) -> None:
            try:
                await call()
                outcomes.append(0)
            except pyfuse3.FUSEError as exc:
                outcomes.append(exc.errno)

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(attempt, lambda: mount.create(flags=os.O_RDWR | os.O_EXCL))
                nursery.start_soon(attempt, lambda: mount.create(parent=folder))
                nursery.start_soon(attempt, lambda: mount.operations.rmdir(ROOT_ID, b"folder", mount.ctx))
        assert len(outcomes) == 60
        assert set(outcomes) <= {0, errno.EEXIST, errno.ENOENT, errno.ENOTEMPTY}
        listed = await mount.list(ROOT_ID)
        assert listed.count(NAME) == 1
        if b"folder" in listed:
            assert await mount.list(folder) == [b".", b"..", NAME]
        else:
            assert mount.store.namespace.is_empty(folder)

    on_a_mount(scenario)


def test_another_node_s_orphans_are_not_ours_to_drop() -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()
        await mount.operations.release(fh)
        await mount.operations.unlink(ROOT_ID, NAME, mount.ctx)
        (row,), _ = await mount.catalog.read(b"orphan/")
        await mount.catalog.transact(Change(puts=((row.key, b"\xa5there"),)))
        await mount.store.commit(lambda ns: Change())
        while mount.store.namespace.orphan_node(inode) != "there":
            await trio.lowlevel.checkpoint()
        await mount.operations.forget([(inode, 1)])
        await mount.orphans.drop_all()
        assert mount.vdisks.forgotten == []

    on_a_mount(scenario)
