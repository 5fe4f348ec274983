"""The verbs that a daemon's control socket answers, put together out of all modules; and what tells of the node itself."""

import functools
import os
import resource
import time
from typing import Any

from fusefs import adoption
from fusefs.cache_verbs import CacheVerbs
from fusefs.channel import Channel
from fusefs.cluster_status import ClusterStatus
from fusefs.collection_verb import AskedCollector, CollectionVerb, share_of_time
from fusefs.company_verbs import CompanyVerbs
from fusefs.control import Descriptors, Progress, Verb
from fusefs.difference_verbs import DifferenceVerbs
from fusefs.inspection import Inspection, Scan
from fusefs.namespace_store import NamespaceStore
from fusefs.notifications import Notifications
from fusefs.resolution import PathResolver, flag_in
from fusefs.rollback_verbs import RollbackVerbs
from fusefs.settings import NodeSettings
from fusefs.snapshot_verbs import SnapshotVerbs
from fusefs.trash import Trash
from fusefs.tree_verb import TreeVerb, Usage
from fusefs.verb_jobs import VerbJobs
from fusefs.verbs_everywhere import CHECK, COLLECT, PICTURES, SCRUB, USAGE, VerbsEverywhere
from metadata.errors import ReadOnly
from metadata.ids import VdiskId
from replication import checking
from replication import scrub as scrubbing
from replication.collector import Collector
from replication.comparing import compare
from replication.mapping import describe, map_range
from replication.pictures import picture
from replication.snapshots import Snapshots
from replication.usage import count_usage
from replication.vdisks import Vdisks
from replication.warming import warm
from replication.workspace import Workspace

CHANGING_VERBS = (
    *("snap_create", "snap_rm", "snap_rename", "snap_protect", "snap_rollback"),
    *("clone", "flatten", "rm", "trash_restore", "trash_purge", "gc", "owner_take"),
)
"""What a mount with ``-o ro`` refuses; of all else the kernel sees to it."""


class Node:
    """One running node: what the control verbs ask."""

    def __init__(
        self, settings: NodeSettings, workspace: Workspace, vdisks: Vdisks, *, channel: Channel
    ) -> None:
        self.settings, self.workspace, self.vdisks, self.channel = settings, workspace, vdisks, channel
        self.started = time.time()
        self.cluster: ClusterStatus | None = None
        """What the other nodes tell, if there can be any."""

    async def status(self, arguments: dict[str, Any], _progress: Progress) -> object:
        """The node's facts, with ``cluster`` those of all nodes; the keeper's come from the registry."""
        if self.cluster is not None and flag_in(arguments, "cluster"):
            return {**await self._status(), "cluster": await self.cluster.whole()}
        return await self._status()

    async def _status(self) -> dict[str, Any]:
        space = self.workspace
        heads = list(self.vdisks.heads.values())
        return {
            "pid": os.getpid(),
            "node": self.settings.node,
            "pool": self.settings.pool,
            "pool_id": space.pool.pool_id,
            **space.pool.facts(),
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
            "requests_to_owners": self.requests_to_owners(),
            "kernel_resends": self.channel.resends,
            "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }

    def requests_to_owners(self) -> int:
        """Of files that this node's guests write though another node owns them; reading asks nobody."""
        return self.vdisks.company.transfers.forwarded if self.vdisks.company is not None else 0

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


def all_verbs(
    node: Node, store: NamespaceStore, trash: Trash, notifications: Notifications
) -> tuple[dict[str, Verb], VerbJobs | None]:
    """Every verb, by name; and what serves them to other nodes, if there are any."""
    vdisks = node.vdisks
    paths = PathResolver(store.namespace, mountpoint=node.settings.mountpoint)
    company = None if vdisks.company is None else CompanyVerbs(vdisks.company, vdisks, store, paths)
    everywhere = None if company is None else company.everywhere
    parts: dict[str, Verb] = {}
    verbs = {
        **_verbs(node, store, everywhere, parts),
        **trash.verbs(),
        **_snapshot_verbs(vdisks, store, paths, notifications),
        **CacheVerbs(
            paths, facts=node.workspace.pool.cache_facts, warm=functools.partial(warm, vdisks)
        ).verbs(),
        **_counting_verbs(vdisks, store, paths, everywhere, parts=parts),
        **_difference_verbs(vdisks, paths, notifications, everywhere, parts=parts),
    }
    if company is not None:
        verbs |= company.owners.verbs()
    if node.settings.read_only:
        verbs |= dict.fromkeys(CHANGING_VERBS, _refuse)
    if company is None:
        return verbs, None
    node.cluster = company.status(paths)
    return company.forwarding.wrapped(verbs), company.jobs(verbs, parts)


async def _refuse(_arguments: dict[str, Any], _progress: Progress) -> object:
    raise ReadOnly("the mount is read-only: mount it without '-o ro' to change anything")


def _verbs(
    node: Node, store: NamespaceStore, everywhere: VerbsEverywhere | None, parts: dict[str, Verb]
) -> dict[str, Verb]:
    vdisks = node.vdisks

    async def scrub(ids: Any, progress: Progress) -> list[dict[str, Any]]:
        return await scrubbing.scrub(vdisks, ids, progress)

    async def check(ids: Any, progress: Progress) -> list[dict[str, Any]]:
        return await checking.check(vdisks, ids, progress)

    scans: dict[str, Scan] = {CHECK: check, SCRUB: scrub}
    if everywhere is not None:
        parts |= {name: everywhere.scan_here(scan) for name, scan in scans.items()}
        scans = {name: everywhere.scan(name, scan) for name, scan in scans.items()}
    inspection = Inspection(
        store.namespace,
        _Inspected(vdisks),
        mountpoint=node.settings.mountpoint,
        check=scans[CHECK],
        scrub=scans[SCRUB],
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
    return verbs


def _counting_verbs(
    vdisks: Vdisks,
    store: NamespaceStore,
    paths: PathResolver,
    everywhere: VerbsEverywhere | None,
    *,
    parts: dict[str, Verb],
) -> dict[str, Verb]:
    usage: Usage = functools.partial(count_usage, vdisks)
    collector: AskedCollector = Collector(vdisks)
    if everywhere is not None:
        share = functools.partial(share_of_time, vdisks.handles)
        parts |= {
            USAGE: everywhere.usage_here(usage),
            COLLECT: everywhere.collect_here(collector, share),
        }
        usage, collector = everywhere.usage(usage), everywhere.collector(collector)
    tree = TreeVerb(store.namespace, vdisks, vdisks.family, paths=paths, usage=usage)
    collection = CollectionVerb(store.namespace, paths, collector=collector, handles=vdisks.handles)
    return {**tree.verbs(), **collection.verbs()}


def _difference_verbs(
    vdisks: Vdisks,
    paths: PathResolver,
    notifications: Notifications,
    everywhere: VerbsEverywhere | None,
    *,
    parts: dict[str, Verb],
) -> dict[str, Verb]:
    verbs = DifferenceVerbs(
        vdisks,
        paths,
        compare=functools.partial(compare, vdisks),
        picture=functools.partial(picture, vdisks),
        write_back=notifications.write_back,
    ).verbs()
    if everywhere is not None:
        parts[PICTURES] = verbs["pictures"]
        verbs["pictures"] = everywhere.pictures(verbs["pictures"])
    return verbs
