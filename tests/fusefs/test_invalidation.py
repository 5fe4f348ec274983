"""What other nodes change of the names: two stores on one catalog, a kernel that must not believe what is over."""

import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from fusefs.invalidation import Invalidation
from fusefs.namespace_store import NamespaceStore
from metadata.catalog import ROOT_ID, SYNTHETIC_IDS_FROM, Catalog, Change, snap_key
from metadata.catalog_memory import MemoryCatalog
from metadata.catalog_sqlite import create_sqlite_catalog, open_sqlite_catalog
from metadata.errors import Unavailable
from metadata.namespace_plans import (
    Attributes,
    Birth,
    Deed,
    Entry,
    plan_create,
    plan_rename,
    plan_root,
    plan_setattr,
    plan_unlink,
)
from tests.fusefs.snapshots_in_memory import Kernel


@dataclass
class Node:
    """A store that has company, and the kernel above it."""

    store: NamespaceStore
    kernel: Kernel
    name: str

    async def create(self, name: bytes) -> int:
        birth = Birth(await self.store.new_inode(), 0o644, 1, 1, 5)
        await self.store.commit(lambda ns: plan_create(ns, Entry(ROOT_ID, name), birth=birth))
        return birth.inode

    async def unlink(self, name: bytes) -> None:
        deed = Deed(self.name, 7)
        await self.store.commit(lambda ns: plan_unlink(ns, Entry(ROOT_ID, name), deed=deed))

    async def rename(self, name: bytes, new_name: bytes) -> None:
        deed, target = Deed(self.name, 7), Entry(ROOT_ID, new_name)
        source = Entry(ROOT_ID, name)
        await self.store.commit(lambda ns: plan_rename(ns, source, target=target, flags=0, deed=deed))

    async def caught_up(self) -> None:
        """Until the kernel, too, has been told."""
        await self.store.catch_up()
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def node(catalog: Catalog, name: str) -> AsyncIterator[Node]:
    store, kernel = NamespaceStore(catalog, has_company=lambda: True), Kernel()
    invalidation = Invalidation(store.namespace, kernel)
    store.listen(invalidation)
    async with store, trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        nursery.start_soon(invalidation.run)
        await trio.testing.wait_all_tasks_blocked()
        kernel.looked_at.clear()
        yield Node(store, kernel, name)
        nursery.cancel_scope.cancel()


def on_two_nodes(scenario: Callable[[Node, Node], Awaitable[None]], *, history_max: int = 1000) -> None:
    async def main() -> None:
        catalog = MemoryCatalog(history_max=history_max)
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with node(catalog, "a") as first, node(catalog, "b") as second:
            await scenario(first, second)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_name_that_another_node_takes_away_is_dropped_by_the_kernel() -> None:
    async def scenario(first: Node, second: Node) -> None:
        await first.create(b"disk")
        await second.caught_up()
        assert second.kernel.forgotten == []  # it cannot know a name that was not there
        await first.unlink(b"disk")
        await second.caught_up()
        assert second.kernel.forgotten == [(ROOT_ID, b"disk")]
        assert first.kernel.forgotten == []

    on_two_nodes(scenario)


def test_both_names_of_a_rename_over_a_file_are_dropped() -> None:
    async def scenario(first: Node, second: Node) -> None:
        await first.create(b"old")
        await first.create(b"new")
        await first.rename(b"old", b"new")
        await second.caught_up()
        assert sorted(second.kernel.forgotten) == [(ROOT_ID, b"new"), (ROOT_ID, b"old")]

    on_two_nodes(scenario)


def test_attributes_that_another_node_changes_are_looked_at_again() -> None:
    async def scenario(first: Node, second: Node) -> None:
        inode = await first.create(b"disk")
        await second.caught_up()
        second.kernel.looked_at.clear()
        wanted = Attributes(mode=0o600)
        await first.store.commit(lambda ns: plan_setattr(ns, inode, wanted=wanted, now_ns=8))
        await second.caught_up()
        assert second.kernel.looked_at == [inode]

    on_two_nodes(scenario)


def test_the_name_of_a_snapshot_that_another_node_removes_is_dropped() -> None:
    async def main() -> None:
        catalog = MemoryCatalog()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        await catalog.transact(Change(puts=((snap_key(20, "before"), b"\x00"),)))
        async with node(catalog, "a") as first:
            await catalog.transact(Change(deletes=(snap_key(20, "before"),)))
            await first.caught_up()
            assert first.kernel.forgotten == [(SYNTHETIC_IDS_FROM | 20, b"before")]

    trio.run(main)


def test_what_changed_while_the_history_was_lost_is_dropped_too() -> None:
    async def main() -> None:
        catalog = MemoryCatalog(history_max=4)
        await catalog.transact(plan_root(0, 0, now_ns=1))
        kernel, store = Kernel(), NamespaceStore(catalog, has_company=lambda: True)
        store.listen(Invalidation(store.namespace, kernel))
        async with node(catalog, "a") as first:
            await first.create(b"stays")
            await first.create(b"goes")
            async with store:
                told = Invalidation(store.namespace, kernel)
                store.listen(told)
                await first.unlink(b"goes")
                for number in range(6):
                    await first.create(b"%d" % number)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(told.run)
                    nursery.start_soon(store.run)
                    await store.catch_up()
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.cancel_scope.cancel()
        assert kernel.forgotten == [(ROOT_ID, b"goes")]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_name_made_by_another_process_is_found_at_once_after_catching_up(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        path = tmp_path / "catalog.sqlite"
        create_sqlite_catalog(path, first=plan_root(0, 0, now_ns=1))
        catalogs = [await open_sqlite_catalog(path) for _ in range(2)]
        async with node(catalogs[0], "a") as first, node(catalogs[1], "b") as second:
            for number in range(20):
                inode = await first.create(b"%d" % number)
                await second.store.catch_up()
                assert second.store.namespace.find(ROOT_ID, b"%d" % number) == inode
        for catalog in catalogs:
            await catalog.aclose()

    with_limit(main)


def with_limit(main: Callable[[], Awaitable[None]]) -> None:
    """Twenty times the watch's period would be longer than this."""

    async def limited() -> None:
        with trio.fail_after(2):
            await main()

    trio.run(limited)


def test_nobody_asks_the_catalog_while_no_other_node_is_live() -> None:
    class Silent(MemoryCatalog):
        reads = 0

        async def read(self, prefix: bytes):
            self.reads += 1
            return await super().read(prefix)

    async def main() -> None:
        catalog = Silent()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with NamespaceStore(catalog) as store:
            before = catalog.reads
            await store.catch_up()
            assert catalog.reads == before

    trio.run(main)


def test_a_catalog_that_does_not_answer_is_told_of() -> None:
    class Failing(MemoryCatalog):
        fails = False

        async def read(self, prefix: bytes):
            if self.fails:
                raise Unavailable("no answer")
            return await super().read(prefix)

    async def main() -> None:
        catalog = Failing()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with NamespaceStore(catalog, has_company=lambda: True) as store:
            catalog.fails = True
            with pytest.raises(Unavailable):
                await store.catch_up()
            catalog.fails = False

    trio.run(main)
