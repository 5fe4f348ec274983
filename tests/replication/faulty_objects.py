"""A rig over an object pool whose files fail on demand, as tests/replication/faults.py has it for a directory."""

import pathlib

import pytest

from metadata.records import group_seed
from metadata.units import CACHE_BYTES_DEFAULT
from replication.object_files import ObjectGroupFile
from replication.object_lag import Trails
from replication.object_store import RetryingStore
from replication.pool import Pool
from replication.pool_objects import ObjectPool, format_object_pool, open_object_pool
from tests.replication.cluster_rig import NodeRig
from tests.replication.faults import Faults, FaultyFile, FaultyRig
from tests.replication.objects import URL, ObjectRig, StoreInMemory
from tests.replication.rig import Rig


class FaultyObjectFile(FaultyFile, ObjectGroupFile):
    """A group file whose calls may fail, over objects."""

    def read_cached(self, view: memoryview, position: int) -> int:
        self.faults.meet("read", self.path)
        return super().read_cached(view, position)


class FaultyObjectPool(ObjectPool):
    """A pool of such files."""

    faults: Faults

    def file(self, vdisk: int, group: int) -> FaultyObjectFile:
        seed, url = group_seed(self.salt, vdisk, group), self.group_path(vdisk, group)
        file = FaultyObjectFile(self.group(vdisk, group), seed=seed, url=url)
        file.faults = self.faults
        return file

    def create_group(self, vdisk: int, group: int) -> FaultyObjectFile:
        self.faults.meet("create", self.group_path(vdisk, group))
        file = super().create_group(vdisk, group)
        assert isinstance(file, FaultyObjectFile)
        return file


class FaultyObjectRig(FaultyRig):
    """A rig with these; store and faults outlive the nodes."""

    store: StoreInMemory
    cache_bytes = CACHE_BYTES_DEFAULT

    def _make(self) -> None:
        self.store = StoreInMemory()
        format_object_pool(URL, store=self.store).close()
        self.state_path.mkdir()

    def open_pool(self) -> Pool:  # type: ignore[override]
        real = open_object_pool(URL, store=self.store)
        real.close()
        pool = FaultyObjectPool(
            URL,
            store=RetryingStore(self.store, budget_s=5.0),
            pool_id=real.pool_id,
            salt=real.salt,
            folder=str(pathlib.Path(self.state_path, "extents")),
            cache_bytes=self.cache_bytes,
        )
        pool.faults = self.faults
        pool.lock(self.node_name)
        return pool


def put_objects_below(monkeypatch: pytest.MonkeyPatch, *, flush_here: bool = False) -> None:
    """All rigs made from now on have object pools; the nodes of a cluster share one.

    Args:
        monkeypatch: ends it.
        flush_here: with durability ``node`` for all vdisks.
    """
    if flush_here:
        monkeypatch.setattr(Trails, "flushes_here", lambda self, vdisk: vdisk not in self.followed)
    stores: dict[pathlib.Path, StoreInMemory] = {}

    def open_shared(rig: NodeRig) -> Pool:
        folder = rig._cluster.folder
        if folder not in stores:
            stores[folder] = StoreInMemory()
            format_object_pool(URL, store=stores[folder]).close()
        pool = open_object_pool(URL, state=str(rig.state_path), store=stores[folder])
        pool.lock(rig.node_name)
        return pool

    monkeypatch.setattr(Rig, "_make", ObjectRig._make)
    monkeypatch.setattr(Rig, "open_pool", ObjectRig.open_pool)
    monkeypatch.setattr(Rig, "cache_bytes", ObjectRig.cache_bytes, raising=False)
    monkeypatch.setattr(NodeRig, "open_pool", open_shared)
    monkeypatch.setattr(FaultyRig, "open_pool", FaultyObjectRig.open_pool)
