"""``.snapshots``, asked as pyfuse3 asks: what it shows, and that nothing in it can be changed."""

import errno
import os
import stat

from metadata.catalog import ROOT_ID, SYNTHETIC_IDS_FROM
from metadata.snapshots import Snapshot
from replication.vdisks import HANDLE_SHIFT
from tests.fusefs.mount_in_memory import Mount, on_a_mount, refused

TREE = b".snapshots"


def freeze(mount: Mount, vdisk: int, name: str, number: int, *, protected: bool = False) -> Snapshot:
    snapshot = Snapshot(vdisk, name, number, 3, 10000, 2, 0, 70, 80, protected)
    mount.vdisks.family.add_snapshot(snapshot)
    return snapshot


async def walk(mount: Mount, *names: bytes) -> int:
    inode = ROOT_ID
    for name in names:
        inode = (await mount.operations.lookup(inode, name, mount.ctx)).st_ino
    return inode


def test_directories_are_mirrored_where_snapshots_are_below() -> None:
    async def scenario(mount: Mount) -> None:
        folder, _ = await mount.mkdir(b"dir", mode=0o750), await mount.mkdir(b"empty")
        disk, _ = await mount.create(b"disk", parent=folder)
        await mount.create(b"plain", parent=folder)
        freeze(mount, disk, "two", 5001)
        freeze(mount, disk, "one", 5000)
        assert TREE not in await mount.list(ROOT_ID)
        top = await walk(mount, TREE)
        assert top == SYNTHETIC_IDS_FROM | ROOT_ID
        assert await mount.list(top) == [b".", b"..", b"dir"]
        assert await mount.list(await walk(mount, TREE, b"dir")) == [b".", b"..", b"disk"]
        inside = await walk(mount, TREE, b"dir", b"disk")
        assert await mount.list(inside) == [b".", b"..", b"one", b"two"]
        assert [number for _, _, number in mount.listed] == [1, 2, 5000, 5001]
        assert await mount.list(inside, after=5000) == [b"two"]
        mirrored = await mount.operations.lookup(top, b"dir", mount.ctx)
        assert (stat.S_ISDIR(mirrored.st_mode), mirrored.st_mode & 0o777) == (True, 0o750)
        for names in (
            (b"empty",),
            (b"dir", b"plain"),
            (b"dir", b"disk", b"three"),
            (b"dir", b"disk", b"\xff"),
        ):
            async with refused(errno.ENOENT):
                await walk(mount, TREE, *names)

    on_a_mount(scenario)


def test_a_long_listing_goes_on_where_the_kernel_s_buffer_was_full() -> None:
    async def scenario(mount: Mount) -> None:
        disk, _ = await mount.create()
        for number in range(100):
            freeze(mount, disk, f"s{number}", 5000 + number)
        inside, after, names = await walk(mount, TREE, b"disk"), 0, []
        while listed := await mount.list(inside, after=after):
            assert len(listed) <= 7
            names += listed
            after = mount.listed[-1][2]
        assert names == [b".", b"..", *(b"s%d" % number for number in range(100))]

    on_a_mount(scenario, listed_max=7)


def test_a_snapshot_is_a_file_that_nobody_may_write() -> None:
    async def scenario(mount: Mount) -> None:
        disk, _ = await mount.create()
        freeze(mount, disk, "one", 5000)
        inside = await walk(mount, TREE, b"disk")
        found = await mount.operations.lookup(inside, b"one", mount.ctx)
        assert (found.st_ino, found.st_size, found.st_blocks) == (5000, 10000, 16)
        assert found.st_mode == stat.S_IFREG | 0o440  # the vdisk's is 0640
        assert (found.st_uid, found.st_gid, found.st_nlink) == (1000, 1001, 1)
        assert (found.st_mtime_ns, found.st_ctime_ns, found.attr_timeout) == (70, 80, 300)
        assert found.entry_timeout == 300
        mirrored = await mount.operations.lookup(await walk(mount, TREE), b"disk", mount.ctx)
        assert (mirrored.entry_timeout, mirrored.attr_timeout) == (0, 1)
        assert mirrored.st_mode == stat.S_IFDIR | 0o550
        info = await mount.operations.open(5000, os.O_RDONLY, mount.ctx)
        assert (info.keep_cache, info.fh & ((1 << HANDLE_SHIFT) - 1)) == (True, 5000)
        await mount.operations.flush(info.fh)
        await mount.operations.release(info.fh)
        assert mount.vdisks.handles == dict.fromkeys(mount.vdisks.handles, disk)
        for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC):
            async with refused(errno.EROFS):
                await mount.operations.open(5000, flags, mount.ctx)

    on_a_mount(scenario)


def test_nothing_in_the_tree_can_be_changed() -> None:
    async def scenario(mount: Mount) -> None:
        disk, _ = await mount.create()
        freeze(mount, disk, "one", 5000)
        ops, ctx = mount.operations, mount.ctx
        top, inside = await walk(mount, TREE), await walk(mount, TREE, b"disk")
        for parent in (top, inside):
            for change in (
                lambda parent=parent: mount.create(b"x", parent=parent),
                lambda parent=parent: mount.mkdir(b"x", parent=parent),
                lambda parent=parent: ops.mknod(parent, b"x", stat.S_IFREG | 0o600, 0, ctx),
                lambda parent=parent: ops.symlink(parent, b"x", b"y", ctx),
                lambda parent=parent: ops.unlink(parent, b"one", ctx),
                lambda parent=parent: ops.rmdir(parent, b"disk", ctx),
                lambda parent=parent: ops.rename(parent, b"one", ROOT_ID, b"x", 0, ctx),
                lambda parent=parent: ops.rename(ROOT_ID, b"disk", parent, b"x", 0, ctx),
            ):
                async with refused(errno.EROFS):
                    await change()
        for inode in (top, inside, 5000):
            assert await ops.listxattr(inode, ctx) == []
            for change in (
                lambda inode=inode: mount.setattr(inode, mode=0o777),
                lambda inode=inode: mount.setattr(inode, size=0),
                lambda inode=inode: ops.setxattr(inode, b"user.a", b"x", ctx),
                lambda inode=inode: ops.removexattr(inode, b"user.a", ctx),
            ):
                async with refused(errno.EROFS):
                    await change()
            async with refused(errno.ENODATA):
                await ops.getxattr(inode, b"user.a", ctx)
            assert ops.set_times_nowait(inode, 1, 1) is None
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC):
            async with refused(errno.EROFS):
                await ops.open(5000, flags, ctx)
        for call in (
            lambda: ops.rmdir(ROOT_ID, TREE, ctx),
            lambda: ops.unlink(ROOT_ID, TREE, ctx),
        ):
            async with refused(errno.ENOENT):  # it is no entry of the root
                await call()

    on_a_mount(scenario)


def test_the_way_up_leads_out_of_the_tree() -> None:
    async def scenario(mount: Mount) -> None:
        folder = await mount.mkdir(b"dir")
        disk, _ = await mount.create(b"disk", parent=folder)
        freeze(mount, disk, "one", 5000)
        top, mirrored = await walk(mount, TREE), await walk(mount, TREE, b"dir")
        inside = await walk(mount, TREE, b"dir", b"disk")
        for inode, parent in ((5000, inside), (inside, mirrored), (mirrored, top), (top, ROOT_ID)):
            assert (await mount.operations.lookup(inode, b"..", mount.ctx)).st_ino == parent
            assert (await mount.operations.lookup(inode, b".", mount.ctx)).st_ino == inode

    on_a_mount(scenario)


def test_a_removed_snapshot_that_is_open_keeps_its_attributes() -> None:
    async def scenario(mount: Mount) -> None:
        disk, _ = await mount.create()
        snapshot = freeze(mount, disk, "one", 5000)
        await mount.operations.open(5000, os.O_RDONLY, mount.ctx)
        mount.vdisks.family.drop_snapshot(snapshot)
        assert (await mount.operations.getattr(5000, mount.ctx)).st_size == 10000
        async with refused(errno.ENOENT):
            await walk(mount, TREE, b"disk", b"one")
        await mount.operations.forget([(5000, 1)])
        async with refused(errno.ENOENT):
            await mount.operations.getattr(5000, mount.ctx)

    on_a_mount(scenario)


def test_a_vdisk_with_snapshots_is_not_deleted_in_the_mount() -> None:
    async def scenario(mount: Mount) -> None:
        disk, _ = await mount.create()
        other, _ = await mount.create(b"other")
        freeze(mount, disk, "one", 5000)
        ops, ctx = mount.operations, mount.ctx
        async with refused(errno.EBUSY):
            await ops.unlink(ROOT_ID, b"disk", ctx)
        async with refused(errno.EBUSY):
            await ops.rename(ROOT_ID, b"other", ROOT_ID, b"disk", 0, ctx)
        await ops.rename(ROOT_ID, b"disk", ROOT_ID, b"disk", 0, ctx)
        await ops.rename(ROOT_ID, b"disk", ROOT_ID, b"other", 2, ctx)
        assert await walk(mount, b"other") == disk
        await ops.rename(ROOT_ID, b"other", ROOT_ID, b"elsewhere", 0, ctx)
        await ops.unlink(ROOT_ID, b"disk", ctx)
        assert mount.store.namespace.is_orphan(other)

    on_a_mount(scenario)
