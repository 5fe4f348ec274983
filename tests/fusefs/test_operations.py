"""The handlers, called as pyfuse3 calls them: names, attributes, opening, listing."""

import errno
import os
import stat

import pytest
import trio
import trio.testing

from metadata.catalog import ROOT_ID, inode_key
from metadata.errors import Corrupt, NoSpace, NotFound
from metadata.ids import VdiskId
from metadata.namespace_plans import RENAME_EXCHANGE, RENAME_NOREPLACE
from replication.vdisks import HANDLE_SHIFT, VdiskStat
from tests.fusefs.mount_in_memory import (
    NAME,
    SIZE_MAX,
    Context,
    Mount,
    on_a_mount,
    refused,
)


def test_a_created_vdisk_is_looked_up_with_its_attributes() -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()
        mount.vdisks.stats[inode] = VdiskStat(10000, 8192, 0, 3)
        found = await mount.operations.lookup(ROOT_ID, NAME, mount.ctx)
        assert (found.st_ino, found.st_size, found.st_blocks, found.st_blksize) == (inode, 10000, 16, 4096)
        assert found.st_mode == stat.S_IFREG | 0o640
        assert (found.st_uid, found.st_gid, found.st_nlink) == (1000, 1001, 1)
        assert (found.attr_timeout, found.entry_timeout, found.generation) == (1, 300, 0)
        assert fh & ((1 << HANDLE_SHIFT) - 1) == inode
        assert (await mount.operations.getattr(inode, mount.ctx)).st_size == 10000
        async with refused(errno.ENOENT):
            await mount.operations.lookup(ROOT_ID, b"other", mount.ctx)
        async with refused(errno.ENOENT):
            await mount.operations.getattr(99999, mount.ctx)
        async with refused(errno.ENAMETOOLONG):
            await mount.operations.lookup(ROOT_ID, b"x" * 256, mount.ctx)

    on_a_mount(scenario)


def test_dots_are_looked_up_for_exports() -> None:
    async def scenario(mount: Mount) -> None:
        folder = await mount.mkdir(b"folder")
        disk, _ = await mount.create(parent=folder)
        for inode, name, expected in [
            (disk, b".", disk), (folder, b".", folder), (folder, b"..", ROOT_ID), (ROOT_ID, b"..", ROOT_ID),
        ]:  # fmt: skip
            assert (await mount.operations.lookup(inode, name, mount.ctx)).st_ino == expected

    on_a_mount(scenario)


def test_a_vdisk_s_time_is_the_later_of_written_and_set() -> None:
    async def scenario(mount: Mount) -> None:
        inode, _ = await mount.create()
        written = mount.now_ns[0] + 50
        mount.vdisks.stats[inode] = VdiskStat(1, 0, written, 1)
        found = await mount.operations.getattr(inode, mount.ctx)
        assert (found.st_mtime_ns, found.st_ctime_ns) == (written, written)
        mount.now_ns[0] += 100
        found = await mount.setattr(inode, mtime=7, atime=8)
        assert (found.st_mtime_ns, found.st_atime_ns) == (7, 8)
        await mount.setattr(inode, mode=0o600)
        assert (await mount.operations.getattr(inode, mount.ctx)).st_mtime_ns == 7
        mount.now_ns[0] += 100
        mount.vdisks.stats[inode] = VdiskStat(1, 0, mount.now_ns[0], 2)
        assert (await mount.operations.getattr(inode, mount.ctx)).st_mtime_ns == mount.now_ns[0]

    on_a_mount(scenario)


def test_times_of_written_vdisks_do_not_go_to_the_catalog_each_time() -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()
        before, _ = await mount.catalog.read(inode_key(inode))
        found = await mount.setattr(inode, fh=fh, mtime=70, ctime=80)
        assert (found.st_mtime_ns, found.st_ctime_ns) == (70, 80)
        found = await mount.setattr(inode, ctime=90)
        assert (found.st_mtime_ns, found.st_ctime_ns) == (70, 90)
        assert (await mount.catalog.read(inode_key(inode)))[0] == before
        await mount.setattr(inode, mode=0o600)
        (stored,), _ = await mount.catalog.read(inode_key(inode))
        assert stored != before[0]
        assert mount.store.namespace.recent_inodes() == []
        assert (await mount.operations.getattr(inode, mount.ctx)).st_mtime_ns == 70

    on_a_mount(scenario)


def test_times_of_vdisks_at_hand_are_set_without_pyfuse3() -> None:
    async def scenario(mount: Mount) -> None:
        inode, _ = await mount.create()
        told = mount.operations.set_times_nowait(inode, 70, 80)
        assert told is not None
        shown = await mount.operations.getattr(inode, mount.ctx)
        assert (told.mtime_ns, told.ctime_ns) == (shown.st_mtime_ns, shown.st_ctime_ns) == (70, 80)
        assert (told.inode, told.mode, told.links) == (inode, shown.st_mode, 1)
        told = mount.operations.set_times_nowait(inode, None, None)
        assert told is not None
        assert (told.mtime_ns, told.ctime_ns) == (70, mount.now_ns[0])
        mount.vdisks.resting.add(inode)
        assert mount.operations.set_times_nowait(inode, 71, 81) is None
        assert mount.operations.set_times_nowait(ROOT_ID, 71, 81) is None
        assert mount.operations.set_times_nowait(99999, 71, 81) is None

    on_a_mount(scenario)


def test_setattr_changes_sizes_modes_owners_and_times() -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()
        created = await mount.operations.getattr(inode, mount.ctx)
        found = await mount.setattr(inode, fh=fh, size=1 << 40)
        assert found.st_size == 1 << 40
        assert found.st_mtime_ns > created.st_mtime_ns
        found = await mount.setattr(inode, uid=5, gid=6)
        assert (found.st_uid, found.st_gid) == (5, 6)
        async with refused(errno.EFBIG):
            await mount.setattr(inode, size=SIZE_MAX + 1)
        folder = await mount.mkdir(b"folder")
        async with refused(errno.EISDIR):
            await mount.setattr(folder, size=0)
        found = await mount.setattr(folder, mtime=3, atime=4, ctime=5)
        assert (found.st_mtime_ns, found.st_atime_ns, found.st_ctime_ns) == (3, 4, 5)

    on_a_mount(scenario)


def test_the_kernel_s_time_of_a_truncation_counts() -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()
        found = await mount.setattr(inode, fh=fh, size=100, mtime=70, ctime=80)
        assert (found.st_mtime_ns, found.st_ctime_ns) == (70, 80)
        await mount.setattr(inode, mode=0o600)
        assert (await mount.operations.getattr(inode, mount.ctx)).st_mtime_ns == 70

    on_a_mount(scenario)


def test_a_stranger_s_truncation_takes_the_set_id_bits() -> None:
    async def scenario(mount: Mount) -> None:
        inode, _ = await mount.create()
        await mount.setattr(inode, mode=0o6755)
        mount.ctx = Context(uid=0)
        assert (await mount.setattr(inode, size=5)).st_mode & 0o7777 == 0o6755
        mount.ctx = Context(uid=1000)
        assert (await mount.setattr(inode, size=6)).st_mode & 0o7777 == 0o755
        await mount.setattr(inode, mode=0o4755)
        await mount.operations.open(inode, os.O_RDWR | os.O_TRUNC, mount.ctx)
        assert (await mount.operations.getattr(inode, mount.ctx)).st_mode & 0o7777 == 0o755

    on_a_mount(scenario)


def test_opening_truncates_when_asked_and_gives_back_what_failed() -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()
        mount.vdisks.stats[inode] = VdiskStat(10000, 8192, 0, 3)
        info = await mount.operations.open(inode, os.O_RDWR, mount.ctx)
        assert info.keep_cache
        assert not info.direct_io
        assert (await mount.operations.getattr(inode, mount.ctx)).st_size == 10000
        other = await mount.operations.open(inode, os.O_WRONLY | os.O_TRUNC, mount.ctx)
        assert (await mount.operations.getattr(inode, mount.ctx)).st_size == 0
        await mount.operations.flush(other.fh)
        assert mount.vdisks.flushed == [inode]
        for number in (fh, info.fh, other.fh):
            await mount.operations.release(number)
        await mount.operations.release(fh)
        assert mount.vdisks.handles == {}
        mount.vdisks.broken[inode] = NoSpace("the pool is full")
        async with refused(errno.ENOSPC):
            await mount.operations.open(inode, os.O_RDWR | os.O_TRUNC, mount.ctx)
        assert mount.vdisks.handles == {}

    on_a_mount(scenario)


def test_only_vdisks_are_opened_and_only_directories_listed() -> None:
    async def scenario(mount: Mount) -> None:
        folder = await mount.mkdir(b"folder")
        link = await mount.operations.symlink(ROOT_ID, b"link", b"folder/x", mount.ctx)
        assert (link.st_mode, link.st_size) == (stat.S_IFLNK | 0o777, 8)
        assert await mount.operations.readlink(link.st_ino, mount.ctx) == b"folder/x"
        inode, _ = await mount.create()
        async with refused(errno.EISDIR):
            await mount.operations.open(folder, os.O_RDONLY, mount.ctx)
        async with refused(errno.ELOOP):
            await mount.operations.open(link.st_ino, os.O_RDONLY, mount.ctx)
        async with refused(errno.ENOTDIR):
            await mount.operations.opendir(inode, mount.ctx)
        async with refused(errno.EINVAL):
            await mount.operations.readlink(inode, mount.ctx)
        async with refused(errno.EEXIST):
            await mount.create(b"folder", flags=os.O_RDWR)

    on_a_mount(scenario)


def test_creating_what_exists_opens_it_unless_exclusively() -> None:
    async def scenario(mount: Mount) -> None:
        inode, _ = await mount.create()
        mount.vdisks.stats[inode] = VdiskStat(10000, 8192, 0, 3)
        assert (await mount.create())[0] == inode
        async with refused(errno.EEXIST):
            await mount.create(flags=os.O_RDWR | os.O_EXCL)
        assert mount.vdisks.stats[inode].size == 10000
        await mount.create(flags=os.O_RDWR | os.O_TRUNC)
        assert mount.vdisks.stats[inode].size == 0

    on_a_mount(scenario)


def test_there_are_no_devices_and_no_hard_links() -> None:
    async def scenario(mount: Mount) -> None:
        for kind in (stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
            async with refused(errno.EPERM):
                await mount.operations.mknod(ROOT_ID, b"node", kind | 0o600, 0, mount.ctx)
        made = await mount.operations.mknod(ROOT_ID, b"file", stat.S_IFREG | 0o600, 0, mount.ctx)
        assert made.st_mode == stat.S_IFREG | 0o600
        async with refused(errno.EPERM):
            await mount.operations.link(made.st_ino, ROOT_ID, b"second", mount.ctx)

    on_a_mount(scenario)


def test_renames_answer_as_the_system_call_does() -> None:
    async def scenario(mount: Mount) -> None:
        one, _ = await mount.create(b"one")
        two, _ = await mount.create(b"two")
        rename = mount.operations.rename
        async with refused(errno.EEXIST):
            await rename(ROOT_ID, b"one", ROOT_ID, b"two", RENAME_NOREPLACE, mount.ctx)
        await rename(ROOT_ID, b"one", ROOT_ID, b"two", RENAME_EXCHANGE, mount.ctx)
        assert (await mount.operations.lookup(ROOT_ID, b"one", mount.ctx)).st_ino == two
        async with refused(errno.ENOENT):
            await rename(ROOT_ID, b"none", ROOT_ID, b"two", 0, mount.ctx)
        async with refused(errno.EINVAL):
            await rename(ROOT_ID, b"one", ROOT_ID, b"two", 8, mount.ctx)
        folder = await mount.mkdir(b"folder")
        async with refused(errno.EINVAL):
            await rename(ROOT_ID, b"folder", folder, b"x", 0, mount.ctx)
        await rename(ROOT_ID, b"two", folder, b"two", 0, mount.ctx)
        assert (await mount.operations.lookup(folder, b"two", mount.ctx)).st_ino == one

    on_a_mount(scenario)


def test_a_directory_is_listed_whole_in_pieces_while_it_changes() -> None:
    async def scenario(mount: Mount) -> None:
        inodes = {}
        for number in range(200):
            name = b"%d" % number
            inodes[name] = (await mount.create(name))[0]
        mount.vdisks.resting = set(list(inodes.values())[::3])
        seen = await mount.list(ROOT_ID)
        pieces = 1
        while seen_now := await mount.list(ROOT_ID, after=mount.listed[-1][2]):
            if pieces == 3:
                await mount.operations.unlink(ROOT_ID, seen[-1], mount.ctx)  # where the listing stands
                await mount.operations.unlink(ROOT_ID, b"199", mount.ctx)
                await mount.operations.rename(ROOT_ID, seen[5], ROOT_ID, b"renamed", 0, mount.ctx)
                seen_now = await mount.list(ROOT_ID, after=inodes[seen[-1]])
            seen += seen_now
            pieces += 1
        assert pieces > 10
        assert seen == [b".", b"..", *(b"%d" % number for number in range(199))]
        assert all(entry.st_ino == position for name, entry, position in mount.listed if name[:1] != b".")

    on_a_mount(scenario, listed_max=17)


def test_what_vanishes_during_a_listing_is_left_out() -> None:
    async def scenario(mount: Mount) -> None:
        inodes = [(await mount.create(b"%d" % number))[0] for number in range(10)]
        folder = await mount.mkdir(b"folder")
        for name in (b"7", b"8"):
            mount.vdisks.resting.add(inodes[int(name)])

        async def stat_while_it_goes(vdisk: VdiskId) -> VdiskStat:
            mount.vdisks.resting.discard(vdisk)
            if vdisk == inodes[7]:
                await mount.operations.rename(ROOT_ID, b"7", folder, b"7", 0, mount.ctx)
                return VdiskStat(0, 0, 0, 0)
            raise NotFound("no such vdisk")

        mount.vdisks.stat = stat_while_it_goes  # type: ignore[method-assign]
        assert await mount.list(ROOT_ID) == [
            b".", b"..", *(b"%d" % number for number in range(7)), b"9", b"folder",
        ]  # fmt: skip

    on_a_mount(scenario)


def test_listing_known_vdisks_waits_for_nothing() -> None:
    async def scenario(mount: Mount) -> None:
        for number in range(300):
            await mount.create(b"%d" % number)
        with trio.testing.assert_no_checkpoints():
            listing = mount.operations.readdir(ROOT_ID, 0, None)
            with pytest.raises(StopIteration):
                listing.send(None)
            lookup = mount.operations.lookup(ROOT_ID, b"5", mount.ctx)
            with pytest.raises(StopIteration):
                lookup.send(None)
        assert len(mount.listed) == 302
        assert mount.vdisks.waits == 0

    on_a_mount(scenario)


def test_a_vdisk_that_cannot_be_read_can_be_seen_and_deleted(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(mount: Mount) -> None:
        inode, fh = await mount.create()
        await mount.operations.release(fh)
        mount.vdisks.broken[inode] = Corrupt("its log cannot be read")
        shown = await mount.operations.lookup(ROOT_ID, NAME, mount.ctx)
        assert (shown.st_ino, shown.attr_timeout, shown.entry_timeout) == (inode, 0, 0)
        assert shown.generation != (await mount.operations.lookup(ROOT_ID, b".", mount.ctx)).generation
        assert NAME in await mount.list(ROOT_ID)
        async with refused(errno.EIO):
            await mount.operations.getattr(inode, mount.ctx)
        async with refused(errno.EIO):
            await mount.operations.open(inode, os.O_RDONLY, mount.ctx)
        await mount.operations.unlink(ROOT_ID, NAME, mount.ctx)
        del mount.vdisks.broken[inode]
        await mount.operations.forget([(inode, 1)])
        assert mount.vdisks.forgotten == [inode]

    on_a_mount(scenario)
    assert "a vdisk's size is unknown" in caplog.text


def test_extended_attributes_are_kept() -> None:
    async def scenario(mount: Mount) -> None:
        inode, _ = await mount.create()
        operations, ctx = mount.operations, mount.ctx
        async with refused(errno.ENODATA):
            await operations.getxattr(inode, b"user.a", ctx)
        async with refused(errno.ENODATA):
            await operations.getxattr(inode, b"system.posix_acl_access", ctx)
        assert list(await operations.listxattr(inode, ctx)) == []
        await operations.setxattr(inode, b"user.a", b"1", ctx)
        await operations.setxattr(inode, b"trusted.libvirt.security.ref_dac", b"2", ctx)
        assert await operations.getxattr(inode, b"user.a", ctx) == b"1"
        assert list(await operations.listxattr(inode, ctx)) == [b"user.a"], "others are only root's"
        assert sorted(await operations.listxattr(inode, Context(uid=0))) == [
            b"trusted.libvirt.security.ref_dac",
            b"user.a",
        ]
        await operations.removexattr(inode, b"user.a", ctx)
        async with refused(errno.ENODATA):
            await operations.removexattr(inode, b"user.a", ctx)
        async with refused(errno.EOPNOTSUPP):
            await operations.setxattr(inode, b"system.posix_acl_access", b"x", ctx)

    on_a_mount(scenario)


def test_the_pool_s_space_is_shown() -> None:
    async def scenario(mount: Mount) -> None:
        shown = await mount.operations.statfs(mount.ctx)
        assert (shown.f_frsize, shown.f_blocks, shown.f_bfree, shown.f_bavail) == (512, 1000, 600, 500)
        assert shown.f_namemax == 255
        assert shown.f_files > shown.f_ffree > 0
        assert await mount.operations.access(ROOT_ID, os.W_OK, mount.ctx)
        await mount.operations.fsyncdir(ROOT_ID, False)
        await mount.operations.releasedir(ROOT_ID)

    on_a_mount(scenario)
