"""Several nodes in one process: one pool, one catalog, the switch between them; each with a state directory of its own.

async with ClusterRig(tmp_path).running() as cluster:
    a, b = await cluster.start("a"), await cluster.start("b")
    ...
    await cluster.kill("a")       # no goodbye; its session lives until cluster.switch.expire("a")
    await cluster.stop("b")       # everything put to rest
"""

import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from metadata.catalog_memory import MemoryCatalog
from replication import pool_directory
from replication.company import Company
from replication.vdisks import Vdisks
from replication.workspace import Workspace
from tests.replication.rig import Rig
from tests.replication.switch import Switch


class NodeRig(Rig):
    """One node's own state."""

    def __init__(self, cluster: "ClusterRig", name: str) -> None:
        self._cluster, self._name = cluster, name
        super().__init__(cluster.folder)

    def _make(self) -> None:
        self.node_name = self._name
        self.folder = self._cluster.folder / self._name
        self.state_path = self.folder / "state"
        self.index_path = self.state_path / "index"
        self._memory_catalog = self._cluster.catalog
        self.state_path.mkdir(parents=True)

    def _join(self, workspace: Workspace) -> None:
        links = self._cluster.switch.join(self.node_name)
        workspace.links, workspace.membership = links, links
        workspace.clock_s = trio.current_time


class _Running:
    """A node's life, in a task of its own."""

    def __init__(self, vdisks: Vdisks, scope: trio.CancelScope) -> None:
        self.vdisks, self.scope = vdisks, scope
        self.over = trio.Event()


class ClusterRig:
    """One pool, one catalog, any number of nodes."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.catalog, self.switch = folder, MemoryCatalog(), Switch()
        self.rigs: dict[str, NodeRig] = {}
        self._running: dict[str, _Running] = {}
        self.nursery: trio.Nursery
        pool_directory.format_pool(str(folder / "pool")).close()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["ClusterRig"]:
        """Nodes can be started inside; those that run at the end are stopped."""
        async with trio.open_nursery() as self.nursery:
            try:
                yield self
            except BaseException:
                self.nursery.cancel_scope.cancel()
                raise
            for name in list(self._running):
                await self.stop(name)

    async def start(self, name: str) -> Vdisks:
        """A node comes, with what it kept from earlier lives; its tasks run."""
        rig = self.rigs.get(name) or self.rigs.setdefault(name, self._rig(name))
        rig.dying = False
        vdisks: Vdisks = await self.nursery.start(self._live, rig)
        return vdisks

    def node(self, name: str) -> Vdisks:
        """One that runs."""
        return self._running[name].vdisks

    def is_running(self, name: str) -> bool:
        """Whether a node has come and not gone."""
        return name in self._running

    def _rig(self, name: str) -> NodeRig:
        """For a cluster of other nodes."""
        return NodeRig(self, name)

    async def stop(self, name: str) -> None:
        """A node puts all to rest and goes; its session ends last."""
        await self._end(name)
        self.switch.leave(name)
        self.switch.expire(name)

    async def kill(self, name: str) -> None:
        """A node dies; its session lives on."""
        self.rigs[name].dying = True
        self.switch.leave(name)
        await self._end(name)

    async def _end(self, name: str) -> None:
        running = self._running.pop(name)
        running.scope.cancel()
        await running.over.wait()

    async def _live(self, rig: NodeRig, *, task_status: trio.TaskStatus[Vdisks]) -> None:
        async with rig.node() as vdisks:
            with trio.CancelScope() as scope:
                running = self._running[rig.node_name] = _Running(vdisks, scope)
                async with trio.open_nursery() as nursery:
                    assert vdisks.company is not None
                    nursery.start_soon(vdisks.company.run)
                    nursery.start_soon(self._feed, vdisks.company)
                    task_status.started(vdisks)
        running.over.set()

    async def _feed(self, company: Company) -> None:
        """What the mirror of names does in a daemon: tells of the catalog's changes."""
        rows, revision = await self.catalog.read(b"")
        company.mirror.note_reload(rows, revision)
        async for events in self.catalog.watch(b"", after=revision):
            company.mirror.note_events(events, is_own=False)
