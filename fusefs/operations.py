"""What pyfuse3 asks of the filesystem: names, attributes, opening, listing. Translates, and decides nothing.

Reading, writing and syncing never come here (fusefs/channel.py answers them). A handler looks into the mirror
of the namespace, commits a plan, or asks the vdisks, and turns the outcome into the kernel's words.

**Numbers outlive the daemon.** An inode's number is its id in the catalog, a directory's handle is its id,
and a vdisk's handle carries its id, so a successor understands what the kernel kept from its predecessor.

**Requests that come twice.** The kernel sends what a dead daemon left unanswered again, done or not. The
channel puts a request's number into its ``pid``, with ``RESENT`` added the second time; then "already so" is
success (fusefs/deeds.py). Renames that exchange could be done twice, so each leaves its number in the catalog.

**Other nodes.** A name that is not there, and a listing, are answered from a mirror that has caught up with the catalog.

**Sizes.** With its write-back cache the kernel believes its own size of a file for as long as it knows the
inode, so no entry may show a wrong size. A vdisk that cannot be read is shown as an inode of another
generation, which the kernel drops when the vdisk can be read again; so it can be looked up, and deleted.
"""

import errno
import functools
import logging
import os
import stat
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3

from fusefs.deeds import Deeds, is_resent, number_of
from fusefs.entries import entry_of, entry_of_frozen, entry_of_version, kernel_attributes
from fusefs.fuse_abi import Attributes as KernelAttributes
from fusefs.namespace_store import NamespaceStore, Plan
from fusefs.orphans import Orphans
from fusefs.peer_inodes import PeerInodes
from fusefs.served_vdisks import ServedVdisks
from fusefs.snapshot_tree import SnapshotTree
from metadata.catalog import Change, exchange_key
from metadata.errors import Exists, InvalidRequest, NotFound, VdiskfsError
from metadata.ids import VdiskId
from metadata.namespace import Kind, Namespace
from metadata.namespace_plans import (
    RENAME_EXCHANGE,
    Attributes,
    Birth,
    Deed,
    Entry,
    check_name_length,
    is_moved,
    plan_create,
    plan_mkdir,
    plan_removexattr,
    plan_rename,
    plan_rmdir,
    plan_setattr,
    plan_setxattr,
    plan_symlink,
    plan_unlink,
)
from metadata.snapshots import Snapshot
from metadata.units import BLOCK_BYTES, NAME_BYTES_MAX
from replication.vdisks import HANDLE_SHIFT, VdiskStat

SELF_POSITION, PARENT_POSITION = 1, 2
"""Of ``.`` and ``..`` in a listing; every other entry's is its inode number, which is higher."""
LISTED_AT_ONCE = 64
SECTOR_BYTES = 512
FREE_INODES = 1 << 32
"""What statfs says: there is no limit but the pool's space."""
_DAMAGED_GENERATION = 1 << 62

_log = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")
_Handler = Callable[Concatenate["Operations", _P], Coroutine[Any, Any, _T]]
ReaddirReply = Callable[[pyfuse3.ReaddirToken, bytes, pyfuse3.EntryAttributes, int], bool]


def _answering(handler: _Handler[_P, _T]) -> _Handler[_P, _T]:
    """Turn our errors into the kernel's, and anything unexpected into a logged EIO; Cancelled passes."""

    @functools.wraps(handler)
    async def answer(self: "Operations", /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return await handler(self, *args, **kwargs)
        except VdiskfsError as exc:
            if exc.number in (errno.EIO, errno.ENOSPC, errno.EROFS):  # the others are the caller's own
                _log.warning("%s failed: %s", handler.__name__, exc)
            raise pyfuse3.FUSEError(exc.number) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            _log.exception("unexpected error in %s", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return answer


class Operations(pyfuse3.Operations):
    """The handlers of one mount. Built once by the daemon, used by pyfuse3's tasks, many at a time."""

    supports_dot_lookup = True
    enable_writeback_cache = True

    def __init__(
        self,
        store: NamespaceStore,
        vdisks: ServedVdisks,
        *,
        node: str,
        tree: SnapshotTree,
        orphans: Orphans,
        peers: PeerInodes | None = None,
        deeds: Deeds | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
        readdir_reply: ReaddirReply = pyfuse3.readdir_reply,
    ) -> None:
        super().__init__()
        self._store = store
        self._namespace: Namespace = store.namespace
        self._vdisks = vdisks
        self._node = node
        self._tree = tree
        self._orphans = orphans
        self._peers = peers
        self._deeds = deeds or Deeds()
        self._clock_ns = clock_ns
        self._readdir_reply = readdir_reply

    # Names and attributes.

    @_answering
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        check_name_length(name)
        if name == b".":
            return await self._entry(parent_inode)
        if name == b"..":
            return await self._entry(self._parent(parent_inode))
        try:
            found = self._find(parent_inode, name)
        except NotFound:
            if not await self._store.catch_up():
                raise
            found = self._find(parent_inode, name)
        return await self._looked_up(found)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """The kernel knows these inodes no more. How often it looked them up is of no interest: it says so
        once it has dropped an inode, and one without a name cannot be looked up again."""
        for inode, lookups in inode_list:
            self._tree.forget(inode)
            if self._peers is not None:
                self._peers.forget(inode, lookups)
            await self._orphans.forgotten(inode)

    @_answering
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return await self._attributes(inode)

    @_answering
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        self._tree.check_writable(inode)
        asked, inode = inode, self._behind(inode)
        drop_privileges = False
        if fields.update_size and fh is None and self._peers is not None:
            await self._peers.check_writing(asked)
        if fields.update_size:
            drop_privileges = await self._truncate(inode, attr.st_size, ctx)
        now_ns = self._clock_ns()  # later than the cut, whose own time must not count
        wanted = Attributes(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else now_ns if fields.update_size else None,
            ctime_ns=attr.st_ctime_ns if fields.update_ctime else None,
            drop_privileges=drop_privileges,
        )
        lasting = (wanted.mode, wanted.uid, wanted.gid, wanted.atime_ns)
        is_vdisk = self._namespace.inode(inode).kind is Kind.FILE
        if is_vdisk and lasting == (None, None, None, None) and not drop_privileges:
            # The kernel tells the times of what it has written at every fsync: too often for the catalog.
            ctime_ns = now_ns if wanted.ctime_ns is None else wanted.ctime_ns
            self._store.note_times(inode, mtime_ns=wanted.mtime_ns, ctime_ns=ctime_ns, now_ns=now_ns)
        else:
            await self._store.commit(lambda ns: plan_setattr(ns, inode, wanted=wanted, now_ns=now_ns))
        return await self._attributes(asked)

    def set_times_nowait(
        self, inode: int, mtime_ns: int | None, ctime_ns: int | None
    ) -> KernelAttributes | None:
        """``setattr`` for the times of a vdisk at hand, as the channel does it without pyfuse3: the kernel tells
        them at every fsync of what it wrote."""
        try:
            if self._namespace.inode(inode).kind is not Kind.FILE:
                return None
        except NotFound:
            return None
        facts = self._vdisks.stat_nowait(VdiskId(inode))
        if facts is None:
            return None
        now_ns = self._clock_ns()
        ctime_ns = now_ns if ctime_ns is None else ctime_ns
        self._store.note_times(inode, mtime_ns=mtime_ns, ctime_ns=ctime_ns, now_ns=now_ns)
        return kernel_attributes(self._show(inode, facts))

    @_answering
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        found = self._namespace.inode(inode)
        if found.kind is not Kind.SYMLINK:
            raise InvalidRequest(f"it is no symbolic link inode={inode}")
        return found.target

    @_answering
    async def access(self, inode: int, mode: int, ctx: pyfuse3.RequestContext) -> bool:
        return True  # the kernel has checked: default_permissions

    @_answering
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        pool = await self._vdisks.statfs()
        shown = pyfuse3.StatvfsData()
        shown.f_bsize, shown.f_frsize = BLOCK_BYTES, pool.f_frsize
        shown.f_blocks, shown.f_bfree, shown.f_bavail = pool.f_blocks, pool.f_bfree, pool.f_bavail
        shown.f_files = self._namespace.inode_count() + FREE_INODES
        shown.f_ffree = shown.f_favail = FREE_INODES
        shown.f_namemax = NAME_BYTES_MAX
        return shown

    # Making and taking away.

    @_answering
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG):
            raise InvalidRequest("only vdisks, directories and links live here", number=errno.EPERM)
        inode = await self._make(plan_create, self._place(parent_inode, name), mode=mode, ctx=ctx)
        return await self._entry(inode)

    @_answering
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        inode = await self._make(plan_mkdir, self._place(parent_inode, name), mode=mode, ctx=ctx)
        return await self._entry(inode)

    @_answering
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        plan = functools.partial(plan_symlink, target=target)
        return await self._entry(await self._make(plan, self._place(parent_inode, name), mode=0o777, ctx=ctx))

    @_answering
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        entry = self._place(parent_inode, name)
        try:
            inode = await self._make(plan_create, entry, mode=mode, ctx=ctx)
        except Exists:  # made by another node since the kernel looked
            inode = self._namespace.lookup(parent_inode, name)
            if flags & os.O_EXCL or self._namespace.inode(inode).kind is not Kind.FILE:
                raise
        number = await self._open(inode, flags, ctx)
        try:
            return self._file(number, inode), await self._entry(inode)
        except BaseException:
            self._vdisks.close(number)
            raise

    @_answering
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        entry, deed = self._place(parent_inode, name), self._deed(ctx)

        def plan(namespace: Namespace) -> Change:
            self._tree.check_removable(namespace.lookup(entry.parent, entry.name))
            return plan_unlink(namespace, entry, deed=deed)

        await self._take_away(self._deeds.once(ctx.pid, entry, plan), ctx)

    @_answering
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        entry, deed = self._place(parent_inode, name), self._deed(ctx)
        plan = functools.partial(plan_rmdir, entry=entry, deed=deed)
        await self._take_away(self._deeds.once(ctx.pid, entry, plan), ctx)

    @_answering
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        source = self._place(parent_inode_old, name_old)
        target = self._place(parent_inode_new, name_new)
        deed, resent, meant = self._deed(ctx), is_resent(ctx.pid), self._deeds.meant(ctx.pid)

        def plan(namespace: Namespace) -> Change:
            moved = namespace.find(source.parent, source.name)
            if resent and flags == RENAME_EXCHANGE:
                if namespace.number(exchange_key(deed.node))[0] == deed.number:
                    return Change()
            elif resent and (is_moved(namespace, source, target) or (moved and meant not in (None, moved))):
                return Change()
            self._deeds.note(ctx.pid, moved or 0)
            change = plan_rename(namespace, source, target=target, flags=flags, deed=deed)
            replaced = namespace.find(target.parent, target.name)
            if change.puts and replaced is not None and flags != RENAME_EXCHANGE:
                self._tree.check_removable(replaced)
            return change

        await self._store.commit(plan)

    @_answering
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        raise InvalidRequest("there are no hard links here", number=errno.EPERM)

    # Files.

    @_answering
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return self._file(await self._open(inode, flags, ctx), inode)

    def _file(self, number: int, inode: int) -> pyfuse3.FileInfo:
        """What the kernel is told of a new handle: it caches nothing of what another node writes, or another inode has."""
        is_remote = self._vdisks.is_remote(number) or _vdisk_of(number) != inode
        is_remote, keep = (is_remote, True) if self._peers is None else self._peers.cached(inode, is_remote)
        return pyfuse3.FileInfo(fh=number, keep_cache=keep and not is_remote, direct_io=is_remote)

    @_answering
    async def flush(self, fh: int) -> None:
        vdisk = _vdisk_of(fh)
        if not self._namespace.is_orphan(vdisk):  # nobody will ever open that one again
            await self._vdisks.flush(vdisk)

    @_answering
    async def release(self, fh: int) -> None:
        self._vdisks.close(fh)
        if self._peers is not None:
            self._peers.note_files(_vdisk_of(fh))

    # Directories.

    @_answering
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        await self._store.catch_up()
        if self._tree.is_directory(inode):
            return inode
        if self._namespace.inode(inode).kind is not Kind.DIRECTORY:
            raise InvalidRequest(f"it is no directory inode={inode}", number=errno.ENOTDIR)
        return inode

    @_answering
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        namespace, reply = self._namespace, self._readdir_reply
        dots = ((SELF_POSITION, b".", fh), (PARENT_POSITION, b"..", self._parent(fh)))
        for position, name, inode in dots:
            if position > start_id and not reply(token, name, await self._entry(inode), position):
                return
        position = max(start_id, PARENT_POSITION)
        if self._tree.is_directory(fh):
            await self._list_snapshots(fh, position, token)
            return
        while children := namespace.children_after(fh, position=position, count=LISTED_AT_ONCE):
            for _, child in children:
                try:
                    shown = self._listed(child) or await self._entry(child)
                except NotFound:
                    continue
                place = namespace.place(child)  # looked up again: there may have been a wait
                if place is None or place.parent != fh:
                    continue
                if not reply(token, place.name, shown, child):
                    return
            position = children[-1][1]

    async def _list_snapshots(self, fh: int, position: int, token: pyfuse3.ReaddirToken) -> None:
        while children := self._tree.children_after(fh, position=position, count=LISTED_AT_ONCE):
            for name, child in children:
                if not self._readdir_reply(token, name, await self._entry(child), child):
                    return
            position = children[-1][1]

    @_answering
    async def releasedir(self, fh: int) -> None:
        return

    @_answering
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        return  # every change of names is durable when it is answered

    # Extended attributes.

    @_answering
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        value = self.xattr_nowait(inode, name)
        if value is None:
            raise NotFound(f"no such attribute xattr={name!r} inode={inode}", number=errno.ENODATA)
        return value

    def xattr_nowait(self, inode: int, name: bytes) -> bytes | None:
        """An attribute's value, None if there is none of that name; for the channel: `ls -l` asks twice a file.

        Raises:
            NotFound: no such inode.
        """
        return next((value for known, value in self._xattrs(inode) if known == name), None)

    @_answering
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        is_root = ctx.uid == 0  # nobody else can read those, and other filesystems do not show them
        return [name for name, _ in self._xattrs(inode) if is_root or not name.startswith(b"trusted.")]

    @_answering
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._tree.check_writable(inode)
        inode, now_ns = self._behind(inode), self._clock_ns()
        await self._store.commit(lambda ns: plan_setxattr(ns, inode, name=name, value=value, now_ns=now_ns))

    @_answering
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._tree.check_writable(inode)
        inode, now_ns = self._behind(inode), self._clock_ns()
        await self._take_away(lambda ns: plan_removexattr(ns, inode, name=name, now_ns=now_ns), ctx)

    # What the handlers share.

    def _place(self, parent: int, name: bytes) -> Entry:
        """A name that is to be changed, in a directory that can be."""
        self._tree.check_writable(parent)
        return Entry(parent, name)

    def _find(self, parent: int, name: bytes) -> int:
        found = self._tree.find(parent, name)
        return self._namespace.lookup(parent, name) if found is None else found

    def _parent(self, inode: int) -> int:
        parent = self._tree.parent(inode)
        return self._namespace.parent(inode) if parent is None else parent

    def _xattrs(self, inode: int) -> tuple[tuple[bytes, bytes], ...]:
        return () if self._tree.owns(inode) else self._namespace.inode(self._behind(inode)).xattrs

    def _behind(self, inode: int) -> int:
        """The vdisk of which another node's version is shown as this inode; any other inode is itself."""
        return inode if self._peers is None else self._peers.vdisk_of(inode)

    def _deed(self, ctx: pyfuse3.RequestContext) -> Deed:
        return Deed(self._node, self._clock_ns(), number_of(ctx.pid))

    async def _make(
        self, plan: Callable[..., Change], entry: Entry, *, mode: int, ctx: pyfuse3.RequestContext
    ) -> int:
        """Add an inode by ``plan_create`` or one like it; returns it, or the one made the first time."""
        meant = self._deeds.meant(ctx.pid)
        birth = Birth(await self._store.new_inode(), mode, ctx.uid, ctx.gid, self._clock_ns())
        self._deeds.note(ctx.pid, birth.inode)
        try:
            await self._store.commit(lambda ns: plan(ns, entry, birth=birth))
        except Exists:
            found = self._namespace.find(entry.parent, entry.name)
            if not is_resent(ctx.pid) or found is None or meant not in (None, found):
                raise
            return found
        return birth.inode

    async def _take_away(self, plan: Plan, ctx: pyfuse3.RequestContext) -> None:
        """Commit a removal; what is gone already was removed the first time."""
        try:
            await self._store.commit(plan)
        except NotFound:
            if not is_resent(ctx.pid):
                raise

    async def _open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> int:
        if self._tree.snapshot(inode) is not None:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
                self._tree.check_writable(inode)
            self._tree.note_open(inode)
            return await self._vdisks.open_version(inode)
        version = None if self._peers is None else await self._peers.version_to_open(inode, flags)
        if version is not None:
            return await self._vdisks.open_version(version)
        kind = self._namespace.inode(inode).kind
        if kind is not Kind.FILE:
            number = errno.EISDIR if kind is Kind.DIRECTORY else errno.ELOOP
            raise InvalidRequest(f"it is no vdisk inode={inode}", number=number)
        handle = await self._vdisks.open(VdiskId(inode), flags=flags)
        if not flags & os.O_TRUNC:
            return handle
        try:
            drop_privileges = await self._truncate(inode, 0, ctx)
            now_ns = self._clock_ns()
            self._store.note_times(inode, mtime_ns=now_ns, ctime_ns=now_ns, now_ns=now_ns)
            if drop_privileges:
                wanted = Attributes(drop_privileges=True)
                await self._store.commit(lambda ns: plan_setattr(ns, inode, wanted=wanted, now_ns=now_ns))
        except BaseException:
            self._vdisks.close(handle)
            raise
        return handle

    async def _truncate(self, inode: int, size: int, ctx: pyfuse3.RequestContext) -> bool:
        """Set a vdisk's size; returns whether its set-id bits must go, which the kernel leaves to us."""
        found = self._namespace.inode(inode)
        if found.kind is not Kind.FILE:
            number = errno.EISDIR if found.kind is Kind.DIRECTORY else errno.EINVAL
            raise InvalidRequest(f"it is no vdisk inode={inode}", number=number)
        await self._vdisks.truncate(VdiskId(inode), size)
        return ctx.uid != 0 and bool(found.mode & (stat.S_ISUID | stat.S_ISGID))

    async def _entry(self, inode: int) -> pyfuse3.EntryAttributes:
        """An inode's attributes for a directory entry: there are some even when the vdisk cannot be read."""
        try:
            shown = await self._attributes(inode)
            return shown if self._peers is None else self._peers.shown(inode, shown)
        except NotFound:
            raise
        except VdiskfsError as exc:
            _log.warning("a vdisk's size is unknown: %s inode=%d", exc, inode)
        shown = entry_of(inode, self._namespace.inode(inode), self._namespace.link_count(inode))
        shown.generation = _DAMAGED_GENERATION
        shown.attr_timeout = shown.entry_timeout = 0
        return shown

    async def _looked_up(self, inode: int) -> pyfuse3.EntryAttributes:
        """The entry of a name that stands for this inode: of another node's vdisk, the newest version."""
        if self._peers is None or not await self._peers.is_foreign_now(inode):
            return await self._entry(inode)
        try:
            version = await self._peers.look_up(inode)
        except VdiskfsError as exc:
            _log.warning("a vdisk of another node cannot be read: %s inode=%d", exc, inode)
            return self._listed(inode) or await self._entry(inode)
        if version is not None:
            return self._show_version(version.id, version)
        shown = await self._entry(inode)
        shown.entry_timeout = shown.attr_timeout = 0
        return shown

    def _listed(self, inode: int) -> pyfuse3.EntryAttributes | None:
        """The entry of another node's vdisk in a listing, which asks nobody; None for any other inode."""
        if self._peers is None or not self._peers.is_foreign(inode):
            return None
        shown = self._show(inode, self._vdisks.stat_nowait(VdiskId(inode)))
        shown.st_ino = self._peers.listed(inode)
        shown.entry_timeout = shown.attr_timeout = 0
        return shown

    def _show_version(self, number: int, version: Snapshot) -> pyfuse3.EntryAttributes:
        inode = self._namespace.inode(version.vdisk)
        return entry_of_version(version, number, inode, self._namespace.link_count(version.vdisk))

    async def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        behind = self._behind(inode)
        if self._peers is not None and behind != inode:
            version = self._peers.version(inode) or await self._peers.look_up(behind)
            if version is not None:
                return self._show_version(inode, version)
            inode = behind
        frozen = self._tree.attributes(inode)
        if frozen is not None:
            return entry_of_frozen(frozen)
        facts: VdiskStat | None = None
        if self._namespace.inode(inode).kind is Kind.FILE:
            vdisk = VdiskId(inode)
            facts = self._vdisks.stat_nowait(vdisk) or await self._vdisks.stat(vdisk)
        return self._show(inode, facts)

    def _show(self, inode: int, facts: VdiskStat | None) -> pyfuse3.EntryAttributes:
        shown = entry_of(inode, self._namespace.inode(inode), self._namespace.link_count(inode))
        if self._peers is not None:
            shown.generation = self._peers.generation(inode)
        if facts is not None:
            shown.st_size = facts.size
            shown.st_blocks = facts.allocated_bytes // SECTOR_BYTES
            if facts.mtime_ns > self._namespace.inode(inode).mtime_set_ns:
                shown.st_mtime_ns = facts.mtime_ns
                shown.st_ctime_ns = max(shown.st_ctime_ns, facts.mtime_ns)
        return shown


def _vdisk_of(fh: int) -> VdiskId:
    return VdiskId(fh & ((1 << HANDLE_SHIFT) - 1))
