"""The daemon: puts a node together, serves one mount, takes it apart again. Started by the keeper.

    pool, index, journal, catalog -> Workspace -> Vdisks ----+-> DataRequests -> Channel <-> /dev/fuse
                             catalog -> NamespaceStore ------+-> Operations -> pyfuse3 <-> Channel
                                                             +-> Inspection -> ControlServer <-> vdiskfs ...

Long-lived tasks are started here and nowhere else. The daemon ends when the mount is gone: it puts every vdisk
to rest and exits 0. If it dies instead, the keeper starts the next one, which finds the same descriptor.
"""

import faulthandler
import functools
import gc
import logging
import os
import pathlib
import resource
import signal
import socket
import stat
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NoReturn

import pyfuse3
import trio

from fusefs.announcing import KERNEL_S, Announcer, answer_announcements, introduce
from fusefs.belonging import among_nodes
from fusefs.channel import Channel
from fusefs.company_verbs import abandoned, own
from fusefs.control import ControlServer
from fusefs.daemon_process import FINISH_SIGNAL
from fusefs.data_requests import DataRequests
from fusefs.deeds import Deeds
from fusefs.finishing import finish_when_asked, make_way
from fusefs.handover import Stage, report_error, report_progress, report_ready, report_stage
from fusefs.invalidation import Invalidation
from fusefs.kernel_sizes import KernelSizes
from fusefs.namespace_store import NamespaceStore
from fusefs.node_verbs import Node, all_verbs
from fusefs.notifications import Notifications
from fusefs.notifier import notifier
from fusefs.operations import Operations
from fusefs.orphans import Orphans
from fusefs.peer_inodes import PeerInodes
from fusefs.readiness import check_all, check_pool, check_state
from fusefs.resolution import PathResolver
from fusefs.settings import NO_FD, NodeSettings
from fusefs.snapshot_tree import SnapshotTree
from fusefs.start_times import StartTimes
from fusefs.trash import Trash, read_keep_s
from metadata.durability import flushes_here
from metadata.errors import Corrupt, VdiskfsError
from metadata.ids import VdiskId
from metadata.index import Index
from metadata.namespace_plans import Attributes, plan_setattr
from replication.boot_sets import BootSets
from replication.collection_schedule import CollectionSchedule, LoopUse
from replication.collector import Collector
from replication.journal import Journal
from replication.pool import OPEN_FILES_MAX
from replication.pool_catalog import open_catalog, read_address
from replication.pools import open_pool
from replication.vdisks import StartOver, Vdisks
from replication.workspace import Workspace

log = logging.getLogger(__name__)

DESCRIPTORS_WANTED = OPEN_FILES_MAX + 3072
"""Group files, RocksDB's, connections."""
THREAD_SWITCH_S = 0.0005
"""A disk thread with a result waits no longer for the interpreter than this; Python's own 5 ms is an fsync's time."""
PYFUSE_TASKS = (8, 32)
"""pyfuse3's workers: least and most. Names and attributes only, so few are enough."""
EXIT_INDEX_DAMAGED = 75
"""The keeper starts the next daemon, which builds the index again."""


def _open_index(path: str) -> Index:
    """The index, made anew if it cannot be opened: the pool has all that was in it."""
    marker = pathlib.Path(path + ".damaged")
    if not marker.exists():
        try:
            return Index(path)
        except Corrupt as exc:
            log.warning("making the snapshot index anew: %s", exc)
    Index.destroy(path)
    index = Index(path)
    marker.unlink(missing_ok=True)
    return index


def _close_index(index: Index) -> None:
    try:
        index.close()
    except VdiskfsError as exc:
        log.warning("%s", exc)


def _start_over(index_path: str) -> StartOver:
    def start_over(exc: VdiskfsError) -> NoReturn:
        log.error("ending, for the next daemon to build the index again: %s", exc)
        pathlib.Path(index_path + ".damaged").touch()
        logging.shutdown()
        os._exit(EXIT_INDEX_DAMAGED)

    return start_over


async def _run(settings: NodeSettings, times: StartTimes, notifier_end: socket.socket) -> None:
    async with AsyncExitStack() as stack:
        opening = functools.partial(
            open_pool, settings.pool, state=settings.state, cache_bytes=settings.cache_bytes
        )
        pool = await trio.to_thread.run_sync(opening)
        stack.callback(pool.close)
        check_pool(pool)
        is_embedded = await trio.to_thread.run_sync(read_address, settings.pool) is None
        # Where locks do not reach all nodes, the session alone tells those of one name apart.
        is_alone = is_embedded and pool.tells_names
        if is_alone or not pool.tells_names:
            pool.lock(settings.node)
        catalog = await open_catalog(settings.pool, pool.pool_id)
        stack.push_async_callback(catalog.aclose)
        times.note("pool and catalog")
        os.makedirs(settings.state, mode=0o700, exist_ok=True)
        check_state(settings.state, pool)
        index = _open_index(os.path.join(settings.state, "index"))
        stack.callback(_close_index, index)
        times.note("index")
        journal = Journal(os.path.join(settings.state, "journal"), pool.salt)
        stack.callback(journal.close)
        links, session = await stack.enter_async_context(among_nodes(settings, catalog, is_alone=is_alone))
        times.note("session")
        workspace = Workspace(pool, index, journal, catalog, settings.node, links=links, membership=session)
        announce = Announcer(links, session).announce
        store = await stack.enter_async_context(
            NamespaceStore(catalog, has_company=workspace.has_others, announce=announce)
        )
        pool.flush_here(functools.partial(flushes_here, store.namespace))
        times.note("names")
        vdisks = Vdisks(workspace, start_over=_start_over(index.path))
        if vdisks.company is not None:
            vdisks.company.may_be_open = lambda _: True  # until the kernel can be asked
        if vdisks.company is not None:
            await stack.enter_async_context(_meanwhile(vdisks.company.run))  # to the last commit
        await stack.enter_async_context(vdisks)
        times.note("journal and logs")
        gc.freeze()
        gc.enable()
        if await _serve(settings, workspace, vdisks, store=store, times=times, notifier_end=notifier_end):
            await make_way(vdisks)
        session.is_ending = True
        log.info("the mount is gone; putting vdisks to rest")


def _make_operations(
    settings: NodeSettings,
    store: NamespaceStore,
    vdisks: Vdisks,
    *,
    tree: SnapshotTree,
    orphans: Orphans,
    peers: PeerInodes | None,
) -> Operations:
    deeds = Deeds(settings.init_fd)
    return Operations(store, vdisks, node=settings.node, tree=tree, orphans=orphans, peers=peers, deeds=deeds)


async def _serve(
    settings: NodeSettings,
    workspace: Workspace,
    vdisks: Vdisks,
    *,
    store: NamespaceStore,
    times: StartTimes,
    notifier_end: socket.socket,
) -> bool:
    """Returns whether a successor is to go on; else the mount is gone."""
    tree = SnapshotTree(store.namespace, vdisks.family)
    notifications = Notifications(settings.fuse_fd, notifier_end)
    orphans = _make_orphans(settings, vdisks, store, notifications)
    peers = _make_peers(vdisks, notifications, store)
    operations = _make_operations(settings, store, vdisks, tree=tree, orphans=orphans, peers=peers)
    paths = PathResolver(store.namespace, mountpoint=settings.mountpoint)
    sizes = KernelSizes(vdisks, notifications, paths, mountpoint=settings.mountpoint)
    invalidation = _listen(store, vdisks, notifications, sizes)
    requests = DataRequests(vdisks, clear_suid=_clear_suid(store), notifications=notifications)
    channel = _channel(settings, vdisks, requests, operations=operations)
    node = Node(settings, workspace, vdisks, channel=channel)
    trash = await _make_trash(settings, vdisks, store, orphans, notifications=notifications)
    verbs, jobs = all_verbs(node, store, trash, notifications)
    pyfuse3.init(
        operations, channel.libfuse_mountpoint(), set(pyfuse3.default_options) - {"default_permissions"}
    )
    try:
        async with trio.open_nursery() as nursery:
            for task in (store.run, vdisks.run, BootSets(vdisks).run):
                nursery.start_soon(task)
            if vdisks.company is not None:
                nursery.start_soon(orphans.run)
            if jobs is not None:
                nursery.start_soon(jobs.run)
            nursery.start_soon(notifications.run)
            nursery.start_soon(invalidation.run)
            nursery.start_soon(sizes.run)
            if not settings.read_only:
                nursery.start_soon(trash.run)
                nursery.start_soon(CollectionSchedule(Collector(vdisks), vdisks, LoopUse().is_busy).run)
            nursery.start_soon(pyfuse3.main, *PYFUSE_TASKS)
            is_successor = await channel.resume()
            vdisks.knows_all_handles = not is_successor
            control = ControlServer(verbs, path=settings.control, uid=settings.uid)
            await nursery.start(control.run)
            if vdisks.company is not None:
                known = notifications.knows_inode if is_successor else _knows_none
                vdisks.company.keep_only(known)
            if peers is not None:
                peers.begin(is_successor)
                nursery.start_soon(peers.settle, invalidation.forget_now)
            if is_successor:
                channel.ask_for_unanswered()
                await orphans.drop_all(kernel_knows=notifications.knows_inode)
            else:
                await introduce(vdisks.company)
                await orphans.drop_all()
            report_ready(settings.ready_fd)
            times.note("channel")
            log.info("serving %s after the start", times.describe())
            nursery.start_soon(finish_when_asked, settings.ready_fd, vdisks, channel)
            finished = await channel.serve()
            if not finished:
                await orphans.drop_all()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=False)
        if peers is not None:
            peers.close()
    return finished


def _make_orphans(
    settings: NodeSettings, vdisks: Vdisks, store: NamespaceStore, notifications: Notifications
) -> Orphans:
    company = vdisks.company
    if company is None:
        return Orphans(store, vdisks, node=settings.node)
    return Orphans(
        store,
        vdisks,
        node=settings.node,
        company=company,
        is_known=notifications.knows_inode,
        own=functools.partial(own, company),
        abandoned=functools.partial(abandoned, company, vdisks.family),
    )


async def _make_trash(
    settings: NodeSettings,
    vdisks: Vdisks,
    store: NamespaceStore,
    orphans: Orphans,
    *,
    notifications: Notifications,
) -> Trash:
    return Trash(
        store,
        vdisks,
        vdisks.family,
        paths=PathResolver(store.namespace, mountpoint=settings.mountpoint),
        notifications=notifications,
        drop=orphans.drop,
        keep_s=await read_keep_s(vdisks.workspace.catalog),
        node=settings.node,
        clock_ns=time.time_ns,
        is_purger=orphans.is_first,
        users=orphans.openers,
    )


def _make_peers(vdisks: Vdisks, notifications: Notifications, store: NamespaceStore) -> PeerInodes | None:
    if vdisks.company is None:
        return None
    return PeerInodes(vdisks.company, kernel_knows=notifications.knows_inode, catch_up=store.catch_up)


def _knows_none(_: int) -> bool:
    return False


def _listen(
    store: NamespaceStore, vdisks: Vdisks, notifications: Notifications, sizes: KernelSizes
) -> Invalidation:
    """What other nodes change reaches the kernel, and the mirror of their vdisks."""
    invalidation = Invalidation(store.namespace, notifications)
    store.listen(invalidation)
    if vdisks.company is not None:
        mirror = vdisks.company.mirror
        store.listen(mirror)

        def note_owner(vdisk: int, _: object) -> None:
            if not mirror.is_mine(vdisk):
                invalidation.note_owner(vdisk)

        mirror.listeners.append(note_owner)

        async def note_resized(vdisk: int) -> None:
            invalidation.note_owner(vdisk)
            with trio.move_on_after(KERNEL_S):
                await invalidation.settled()
            with trio.move_on_after(KERNEL_S):
                await sizes.tell(vdisk)

        vdisks.company.forwarding.drop_pages = notifications.drop_pages
        vdisks.company.transfers.deposed.drop_pages = notifications.drop_pages
        vdisks.company.forwarding.note_resized = note_resized
        vdisks.company.transfers.note_resized = sizes.note
        answer_announcements(
            vdisks.company.links,
            vdisks.company.membership,
            catch_up=functools.partial(store.catch_up, always=True),
            settled=invalidation.settled,
        )
    return invalidation


@asynccontextmanager
async def _meanwhile(task: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """A task that runs until the end of the context."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(task)
        yield
        nursery.cancel_scope.cancel()


def _clear_suid(store: NamespaceStore) -> Callable[[VdiskId], Awaitable[None]]:
    async def clear_suid(vdisk: VdiskId) -> None:
        if not store.namespace.inode(vdisk).mode & (stat.S_ISUID | stat.S_ISGID):
            return
        wanted, now_ns = Attributes(drop_privileges=True), time.time_ns()
        await store.commit(lambda ns: plan_setattr(ns, vdisk, wanted=wanted, now_ns=now_ns))

    return clear_suid


def _channel(
    settings: NodeSettings, vdisks: Vdisks, requests: DataRequests, *, operations: Operations
) -> Channel:
    return Channel(
        settings.fuse_fd,
        settings.init_fd,
        vdisks=vdisks,
        requests=requests,
        set_times=operations.set_times_nowait,
        get_xattr=operations.xattr_nowait,
    )


def _prepare_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_WANTED if hard == resource.RLIM_INFINITY else min(DESCRIPTORS_WANTED, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the keeper unmounts, and then this daemon ends
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(FINISH_SIGNAL, signal.SIG_IGN)  # until it serves
    sys.setswitchinterval(THREAD_SWITCH_S)
    gc.disable()  # until what is there is in memory, to stay


def main(arguments: list[str]) -> int:
    """Runs a daemon until its mount is gone; ``arguments`` is one NodeSettings as JSON."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = NodeSettings.from_json(arguments[0])
    times = StartTimes()
    times.note("imports")
    _prepare_process()
    try:
        if settings.standby_fd != NO_FD:
            check_all(settings)
            report_stage(settings.ready_fd, Stage.STANDING_BY)
            if not os.read(settings.standby_fd, 1):
                return 0  # not needed: the keeper has changed its mind, or is gone
            times.restart()
        report_progress(settings.ready_fd, "opening the pool")
        with notifier(settings.fuse_fd) as notifier_end:
            trio.run(_run, settings, times, notifier_end)
    except VdiskfsError as exc:
        log.error("ended: %s", exc)
        report_error(settings.ready_fd, str(exc))
        return 1
    except Exception as exc:
        log.exception("ended by an unexpected error")
        report_error(settings.ready_fd, f"unexpected: {exc!r}; see the log in {settings.state}")
        return 1
    report_stage(settings.ready_fd, Stage.ENDED)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
