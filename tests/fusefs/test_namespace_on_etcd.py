"""Names over a real etcd: many at once, by several nodes, each seen by all."""

from collections.abc import Iterator

import pytest
import trio

from fusefs.namespace_store import NamespaceStore
from metadata.catalog import ROOT_ID, Change
from metadata.catalog_etcd import create_etcd_catalog, open_etcd_catalog
from metadata.errors import Exists, InvalidRequest
from metadata.etcd_address import parse_etcd_address
from metadata.namespace import Namespace
from metadata.namespace_plans import plan_root
from tests.etcd_members import EtcdMembers
from tests.fusefs.test_namespace_store import create


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    with EtcdMembers(tmp_path_factory.mktemp("etcd")) as members:
        yield members


def on_two_nodes(etcd: EtcdMembers, pool: str, scenario) -> None:  # type: ignore[no-untyped-def]
    address = parse_etcd_address(etcd.url)
    create_etcd_catalog(address, pool, first=plan_root(0, 0, now_ns=1))

    async def main() -> None:
        catalogs = [await open_etcd_catalog(address, pool) for _ in range(2)]
        with trio.fail_after(60):
            async with (
                NamespaceStore(catalogs[0], has_company=lambda: True) as here,
                NamespaceStore(catalogs[1], has_company=lambda: True) as there,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(here.run)
                nursery.start_soon(there.run)
                await scenario(here, there)
                nursery.cancel_scope.cancel()
        for catalog in catalogs:
            await catalog.aclose()

    trio.run(main)


def test_hundreds_of_names_made_at_once_are_there_on_both_nodes(etcd: EtcdMembers) -> None:
    names = [b"disk%03d" % number for number in range(300)]

    async def scenario(here: NamespaceStore, there: NamespaceStore) -> None:
        async with trio.open_nursery() as makers:  # more of them in a batch than one transaction compares
            for number, name in enumerate(names):
                makers.start_soon(create, (here, there)[number % 2], ROOT_ID, name)
        for store in (here, there):
            await store.catch_up()
            assert sorted(name for name, _ in store.namespace.children(ROOT_ID)) == names

    on_two_nodes(etcd, "hundreds", scenario)


def test_one_of_two_nodes_gets_a_name(etcd: EtcdMembers) -> None:
    async def scenario(here: NamespaceStore, there: NamespaceStore) -> None:
        won: list[bytes] = []

        async def try_it(store: NamespaceStore, name: bytes) -> None:
            try:
                await create(store, ROOT_ID, name)
                won.append(name)
            except Exists:
                pass

        names = [b"%d" % number for number in range(20)]
        async with trio.open_nursery() as makers:
            for name in names:
                for store in (here, there):
                    makers.start_soon(try_it, store, name)
        assert sorted(won) == sorted(names)

    on_two_nodes(etcd, "races", scenario)


def test_one_who_asks_for_too_much_spoils_nobody_s_change(etcd: EtcdMembers) -> None:
    async def scenario(here: NamespaceStore, there: NamespaceStore) -> None:
        def too_much(namespace: Namespace) -> Change:
            return Change(puts=((b"setting/large", bytes(2 << 20)),))

        async def refused() -> None:
            with pytest.raises(InvalidRequest, match="in smaller steps"):
                await here.commit(too_much)

        async with trio.open_nursery() as makers:
            for number in range(10):
                makers.start_soon(create, here, ROOT_ID, b"%d" % number)
            makers.start_soon(refused)
        await there.catch_up()
        assert len(list(there.namespace.children(ROOT_ID))) == 10

    on_two_nodes(etcd, "too much", scenario)
