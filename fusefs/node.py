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
import sys
import time
from contextlib import AsyncExitStack
from typing import Any, NoReturn

import pyfuse3
import trio

from fusefs import adoption
from fusefs.channel import Channel
from fusefs.collection_verb import CollectionVerb
from fusefs.control import ControlServer, Descriptors, Progress, Verb
from fusefs.daemon_process import FINISH_SIGNAL
from fusefs.data_requests import DataRequests
from fusefs.difference_verbs import DifferenceVerbs
from fusefs.finishing import finish_when_asked, make_way
from fusefs.handover import Stage, report_error, report_progress, report_ready, report_stage
from fusefs.inspection import Inspection
from fusefs.invalidation import Invalidation
from fusefs.namespace_store import NamespaceStore
from fusefs.notifications import Notifications
from fusefs.notifier import notifier
from fusefs.operations import Operations
from fusefs.readiness import check_all, check_pool, check_state
from fusefs.resolution import PathResolver
from fusefs.rollback_verbs import RollbackVerbs
from fusefs.settings import NO_FD, NodeSettings
from fusefs.snapshot_tree import SnapshotTree
from fusefs.snapshot_verbs import SnapshotVerbs
from fusefs.start_times import StartTimes
from fusefs.trash import Trash, read_keep_s
from fusefs.tree_verb import TreeVerb
from metadata.catalog_sqlite import open_sqlite_catalog
from metadata.errors import Corrupt, ReadOnly, VdiskfsError
from metadata.ids import VdiskId
from metadata.index import Index
from metadata.namespace_plans import Attributes, plan_setattr
from replication import checking
from replication import scrub as scrubbing
from replication.collection_schedule import CollectionSchedule, LoopUse
from replication.collector import Collector
from replication.comparing import compare
from replication.journal import Journal
from replication.mapping import describe, map_range
from replication.pictures import picture
from replication.pool_directory import CATALOG_NAME, OPEN_FILES_MAX, open_pool
from replication.snapshots import Snapshots
from replication.usage import count_usage
from replication.vdisks import StartOver, Vdisks
from replication.workspace import Workspace

log = logging.getLogger(__name__)

DESCRIPTORS_WANTED = OPEN_FILES_MAX + 3072
"""Group files, RocksDB's, connections."""
THREAD_SWITCH_S = 0.0005
"""A disk thread with a result waits no longer for the interpreter than this; Python's own 5 ms is an fsync's time."""
PYFUSE_TASKS = (8, 32)
"""pyfuse3's workers: least and most. Names and attributes only, so few are enough."""
CHANGING_VERBS = (
    *("snap_create", "snap_rm", "snap_rename", "snap_protect", "snap_rollback"),
    *("clone", "flatten", "rm", "trash_restore", "trash_purge", "gc"),
)
"""What a mount with ``-o ro`` refuses; of all else the kernel sees to it."""
EXIT_INDEX_DAMAGED = 75
"""The keeper starts the next daemon, which builds the index again."""


class Node:
    """One running node: what the control verbs ask."""

    def __init__(
        self, settings: NodeSettings, workspace: Workspace, vdisks: Vdisks, *, channel: Channel
    ) -> None:
        self.settings, self.workspace, self.vdisks, self.channel = settings, workspace, vdisks, channel
        self.started = time.time()

    async def status(self, _arguments: dict[str, Any], _progress: Progress) -> object:
        """The node's facts; the keeper's come from the registry."""
        space = self.workspace
        heads = list(self.vdisks.heads.values())
        return {
            "pid": os.getpid(),
            "node": self.settings.node,
            "pool": self.settings.pool,
            "pool_id": space.pool.pool_id,
            "mountpoint": self.settings.mountpoint,
            "uptime_s": round(time.time() - self.started, 1),
            "vdisks_loaded": len(heads),
            "vdisks_running": sum(head.running for head in heads),
            "open_handles": len(self.vdisks.handles),
            "dirty_bytes": sum(head.log.pending.data_bytes() for head in heads),
            "failed_commits": sum(head.error_no for head in heads),
            "index_bytes": await space.wait_for(space.index.live_bytes),
            "rows_cached": len(space.row_cache),
            "segments_cached": len(space.segment_cache),
            "journal_entries_free": space.journal.room(),
            "requests": dict(self.channel.counts),
            "requests_to_owners": 0,
            "kernel_resends": self.channel.resends,
            "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    async def take_over(self, _arguments: dict[str, Any], _progress: Progress) -> object:
        """All that a new keeper needs, after this daemon's own was killed; this one reports to it from now on."""
        settings = self.settings
        reports_fd, ready_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.dup2(ready_fd, settings.ready_fd, inheritable=False)
        os.close(ready_fd)
        return Descriptors(
            {"pid": os.getpid()},
            kept=(settings.fuse_fd, settings.init_fd, settings.lock_fd),
            given=(reports_fd,),
        )

    async def drop_caches(self, _arguments: dict[str, Any], _progress: Progress) -> object:
        """Takes decoded rows and checksums out of memory; for measurements."""
        self.workspace.row_cache.shrink(0)
        self.workspace.segment_cache.shrink(0)
        return {}

    async def flush_index(self, _arguments: dict[str, Any], _progress: Progress) -> object:
        """Writes the index's memory to its files; for measurements."""
        await self.workspace.wait_for(self.workspace.index.flush)
        return {"index_bytes": await self.workspace.wait_for(self.workspace.index.live_bytes)}


class _Inspected:
    """The vdisks as the inspection verbs ask them."""

    def __init__(self, vdisks: Vdisks) -> None:
        self._vdisks = vdisks
        self.stat_nowait, self.stat, self.snapshot = vdisks.stat_nowait, vdisks.stat, vdisks.family.snapshot

    async def describe(self, vdisk: VdiskId) -> dict[str, Any]:
        return await describe(self._vdisks, vdisk)

    async def map(
        self, vdisk: VdiskId, offset: int, length: int, *, snapshot: str | None
    ) -> list[dict[str, Any]]:
        return await map_range(self._vdisks, vdisk, offset, length, snapshot=snapshot)


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
        pool = open_pool(settings.pool)
        stack.callback(pool.close)
        check_pool(pool)
        pool.lock(settings.node)
        catalog = await open_sqlite_catalog(pathlib.Path(settings.pool, CATALOG_NAME))
        stack.push_async_callback(catalog.aclose)
        times.note("pool and catalog")
        os.makedirs(settings.state, mode=0o700, exist_ok=True)
        check_state(settings.state, pool)
        index = _open_index(os.path.join(settings.state, "index"))
        stack.callback(_close_index, index)
        times.note("index")
        journal = Journal(os.path.join(settings.state, "journal"), pool.salt)
        stack.callback(journal.close)
        workspace = Workspace(pool, index, journal, catalog, settings.node)
        store = await stack.enter_async_context(NamespaceStore(catalog))
        times.note("names")
        vdisks = await stack.enter_async_context(Vdisks(workspace, start_over=_start_over(index.path)))
        times.note("journal and logs")
        if await _serve(settings, workspace, vdisks, store=store, times=times, notifier_end=notifier_end):
            await make_way(vdisks)
        log.info("the mount is gone; putting vdisks to rest")


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
    operations = Operations(store, vdisks, node=settings.node, tree=tree)

    async def clear_suid(vdisk: VdiskId) -> None:
        wanted, now_ns = Attributes(drop_privileges=True), time.time_ns()
        await store.commit(lambda ns: plan_setattr(ns, vdisk, wanted=wanted, now_ns=now_ns))

    notifications = Notifications(settings.fuse_fd, notifier_end)
    invalidation = Invalidation(store.namespace, notifications)
    store.listen(invalidation)
    requests = DataRequests(vdisks, clear_suid=clear_suid, notifications=notifications)
    channel = _channel(settings, vdisks, requests, operations=operations)
    node = Node(settings, workspace, vdisks, channel=channel)
    paths = PathResolver(store.namespace, mountpoint=settings.mountpoint)
    trash = Trash(
        store,
        vdisks,
        vdisks.family,
        paths=paths,
        notifications=notifications,
        drop=operations.drop,
        keep_s=await read_keep_s(workspace.catalog),
        node=settings.node,
        clock_ns=time.time_ns,
    )
    verbs = {**_verbs(node, store), **trash.verbs(), **_snapshot_verbs(vdisks, store, paths, notifications)}
    if settings.read_only:
        verbs |= dict.fromkeys(CHANGING_VERBS, _refuse)
    pyfuse3.init(
        operations, channel.libfuse_mountpoint(), set(pyfuse3.default_options) - {"default_permissions"}
    )
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.run)
            nursery.start_soon(vdisks.run)
            if vdisks.company is not None:
                nursery.start_soon(vdisks.company.run)
            nursery.start_soon(notifications.run)
            nursery.start_soon(invalidation.run)
            if not settings.read_only:
                nursery.start_soon(trash.run)
                nursery.start_soon(CollectionSchedule(Collector(vdisks), vdisks, LoopUse().is_busy).run)
            nursery.start_soon(pyfuse3.main, *PYFUSE_TASKS)
            is_successor = await channel.resume()
            vdisks.knows_all_handles = not is_successor
            control = ControlServer(verbs, path=settings.control, uid=settings.uid)
            await nursery.start(control.run)
            if is_successor:
                channel.ask_for_unanswered()
                await operations.drop_orphans(kernel_knows=notifications.knows_inode)
            else:
                await operations.drop_orphans()
            report_ready(settings.ready_fd)
            times.note("channel")
            log.info("serving %s after the start", times.describe())
            nursery.start_soon(finish_when_asked, settings.ready_fd, vdisks, channel)
            finished = await channel.serve()
            if not finished:
                await operations.drop_orphans()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=False)
    return finished


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


async def _refuse(_arguments: dict[str, Any], _progress: Progress) -> object:
    raise ReadOnly("the mount is read-only: mount it without '-o ro' to change anything")


def _verbs(node: Node, store: NamespaceStore) -> dict[str, Verb]:
    vdisks = node.vdisks

    async def scrub(ids: Any, progress: Progress) -> list[dict[str, Any]]:
        return await scrubbing.scrub(vdisks, ids, progress)

    async def check(ids: Any, progress: Progress) -> list[dict[str, Any]]:
        return await checking.check(vdisks, ids, progress)

    inspection = Inspection(
        store.namespace, _Inspected(vdisks), mountpoint=node.settings.mountpoint, check=check, scrub=scrub
    )
    own = {"status": node.status, "drop_caches": node.drop_caches, "flush_index": node.flush_index}
    own[adoption.VERB] = node.take_over
    return {**inspection.verbs(), **own}


def _snapshot_verbs(
    vdisks: Vdisks, store: NamespaceStore, paths: PathResolver, notifications: Notifications
) -> dict[str, Verb]:
    verbs: dict[str, Verb] = {}
    for kind in (SnapshotVerbs, RollbackVerbs):
        verbs |= kind(
            store,
            vdisks,
            Snapshots(vdisks),
            family=vdisks.family,
            paths=paths,
            notifications=notifications,
            clock_ns=time.time_ns,
        ).verbs()
    usage = functools.partial(count_usage, vdisks)
    tree = TreeVerb(store.namespace, vdisks, vdisks.family, paths=paths, usage=usage)
    differences = DifferenceVerbs(
        vdisks,
        paths,
        compare=functools.partial(compare, vdisks),
        picture=functools.partial(picture, vdisks),
        write_back=notifications.write_back,
    )
    collection = CollectionVerb(store.namespace, paths, collector=Collector(vdisks), handles=vdisks.handles)
    return {**verbs, **tree.verbs(), **differences.verbs(), **collection.verbs()}


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
    gc.freeze()


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
