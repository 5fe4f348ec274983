"""A whole daemon without a mount: handlers, data requests and verbs over real vdisks, in a thread, killed and begun anew."""

import os
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import pyfuse3
import trio

from fusefs.control import Verb
from fusefs.data_requests import DataRequests
from fusefs.namespace_store import NamespaceStore
from fusefs.operations import Operations
from fusefs.orphans import Orphans
from fusefs.resolution import PathResolver
from fusefs.rollback_verbs import RollbackVerbs
from fusefs.snapshot_tree import SnapshotTree
from fusefs.snapshot_verbs import SnapshotVerbs
from fusefs.trash import Trash
from metadata.errors import Conflict
from metadata.ids import VdiskId
from metadata.namespace_plans import Attributes, plan_root, plan_setattr
from replication.collector import Collector
from replication.snapshots import Snapshots
from replication.vdisks import Vdisks
from tests.fusefs.snapshots_in_memory import Kernel
from tests.replication.rig import Rig

T = TypeVar("T")
KEEP_S = 86_400


@dataclass
class Daemon:
    """What the kernel and the command line ask."""

    operations: Operations
    requests: DataRequests
    vdisks: Vdisks
    verbs: dict[str, Verb]
    listed: list[bytes]
    collector: Collector


@asynccontextmanager
async def daemon(vdisks: Vdisks, kernel: Kernel, *, is_successor: bool) -> AsyncIterator[Daemon]:
    """Everything above the vdisks that fusefs.node puts together, but the channel."""
    with suppress(Conflict):
        await vdisks.workspace.catalog.transact(plan_root(os.geteuid(), os.getegid(), now_ns=1))
    listed: list[bytes] = []
    clock_ns = time.time_ns

    def reply(_: object, name: bytes, _attributes: pyfuse3.EntryAttributes, _position: int) -> bool:
        listed.append(name)
        return True

    async with NamespaceStore(vdisks.workspace.catalog) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        nursery.start_soon(vdisks.run)
        tree = SnapshotTree(store.namespace, vdisks.family)
        orphans = Orphans(store, vdisks, node="here")
        operations = Operations(
            store, vdisks, node="here", tree=tree, orphans=orphans, clock_ns=clock_ns, readdir_reply=reply
        )

        async def clear_suid(vdisk: VdiskId) -> None:
            wanted = Attributes(drop_privileges=True)
            await store.commit(lambda ns: plan_setattr(ns, vdisk, wanted=wanted, now_ns=clock_ns()))

        paths = PathResolver(store.namespace, mountpoint="/mnt")
        verbs: dict[str, Verb] = {}
        for kind in (SnapshotVerbs, RollbackVerbs):
            verbs |= kind(
                store,
                vdisks,
                Snapshots(vdisks),
                family=vdisks.family,
                paths=paths,
                notifications=kernel,  # type: ignore[arg-type]
                clock_ns=clock_ns,
            ).verbs()
        trash = Trash(
            store,
            vdisks,
            vdisks.family,
            paths=paths,
            notifications=kernel,  # type: ignore[arg-type]
            drop=orphans.drop,
            keep_s=KEEP_S,
            node="here",
            clock_ns=clock_ns,
        )
        requests = DataRequests(vdisks, clear_suid=clear_suid, notifications=kernel)  # type: ignore[arg-type]
        vdisks.knows_all_handles = not is_successor
        await orphans.drop_all(kernel_knows=kernel.knows_inode)
        yield Daemon(operations, requests, vdisks, verbs | trash.verbs(), listed, Collector(vdisks))
        if not kernel.known:
            await orphans.drop_all()
        nursery.cancel_scope.cancel()


class DaemonThread:
    """Runs one daemon after the other on a rig; ``ask`` from the test's thread."""

    def __init__(self, rig: Rig) -> None:
        self.rig, self.kernel = rig, Kernel()
        self.daemon: Daemon | None = None
        self.failure: BaseException | None = None
        self._ready = threading.Semaphore(0)
        self._is_over = False
        self._token: trio.lowlevel.TrioToken | None = None
        self._end = trio.Event()
        self._thread = threading.Thread(target=self._main)

    def __enter__(self) -> "DaemonThread":
        self._thread.start()
        self._wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over = True
        if self._thread.is_alive():
            self._finish(kill=False)
        self._thread.join()

    def ask(self, work: Callable[[Daemon], Awaitable[T]]) -> T:
        """Do something in the daemon's thread, and wait."""
        daemon, token = self.daemon, self._token
        assert daemon is not None
        assert token is not None

        async def main() -> T:
            return await work(daemon)

        return trio.from_thread.run(main, trio_token=token)

    def restart(self, *, kill: bool) -> None:
        """The daemon ends, well or not; the next one serves when this returns."""
        self._finish(kill=kill)
        self._wait()

    def _finish(self, *, kill: bool) -> None:
        assert self._token is not None
        self.rig.dying = kill
        self._token.run_sync_soon(self._end.set)

    def _wait(self) -> None:
        self._ready.acquire()
        if self.failure is not None:
            raise self.failure

    def _main(self) -> None:
        try:
            trio.run(self._lives)
        except BaseException as exc:
            self.failure = exc
        self._ready.release()

    async def _lives(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        is_successor = False
        while not self._is_over:
            self._end, self.rig.dying = trio.Event(), False
            async with (
                self.rig.node() as vdisks,
                daemon(vdisks, self.kernel, is_successor=is_successor) as self.daemon,
            ):
                self._ready.release()
                await self._end.wait()
            is_successor = self.rig.dying
