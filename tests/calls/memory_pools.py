"""The pools and catalogs on which the calls are made without a mount."""

import pathlib
from collections.abc import Callable

from metadata.catalog import Catalog
from metadata.catalog_etcd import create_etcd_catalog, open_etcd_catalog
from metadata.etcd_address import parse_etcd_address
from metadata.namespace_plans import plan_root
from replication import pool_directory
from replication.object_store import connect
from replication.pool_objects import format_object_pool
from tests.etcd_members import EtcdMembers
from tests.replication.objects import URL, ObjectRig
from tests.replication.rados_in_memory import rados_store
from tests.replication.rig import Rig

MakeRig = Callable[[pathlib.Path], Rig]


class ObstoreRig(ObjectRig):
    """An object pool on a store of the library that speaks to S3: in memory, or in files."""

    url = "memory://"

    def _make(self) -> None:
        pool_directory.format_pool(self.pool_path).close()  # for its catalog
        self.store = connect(self.url)  # type: ignore[assignment]
        format_object_pool(URL, store=self.store).close()
        self.state_path.mkdir()


class ObstoreFilesRig(ObstoreRig):
    """The same in files."""

    def _make(self) -> None:
        self.url = f"file://{self.folder}/bucket"
        super()._make()


class RadosRig(ObjectRig):
    """An object pool on what is made of RADOS's objects, in memory."""

    def _make(self) -> None:
        pool_directory.format_pool(self.pool_path).close()  # for its catalog
        self.store = rados_store()  # type: ignore[assignment]
        format_object_pool(URL, store=self.store).close()
        self.state_path.mkdir()


def with_etcd(folder: pathlib.Path, members: EtcdMembers) -> Rig:
    """A directory pool whose names are in etcd."""
    address, pool = parse_etcd_address(members.url), folder.name
    create_etcd_catalog(address, pool, first=plan_root(0, 0, now_ns=1))

    class EtcdRig(Rig):
        async def _open_catalog(self) -> Catalog:
            return await open_etcd_catalog(address, pool)

    return EtcdRig(folder, sqlite=True)  # closed after use, as that one is


RIGS: dict[str, MakeRig] = {
    "directory, memory": Rig,
    "directory, sqlite": lambda folder: Rig(folder, sqlite=True),
    "objects in memory, sqlite": lambda folder: ObstoreRig(folder, sqlite=True),
    "objects in files, memory": ObstoreFilesRig,
    "objects of rados in memory, memory": RadosRig,
}
