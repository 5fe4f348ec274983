"""A name that is taken away is over everywhere when the call returns, whatever state the other nodes are in."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from functools import partial

import trio
import trio.testing

from fusefs.announcing import ANSWER_S, KERNEL_S, SILENT_S, Announcer, answer_announcements, introduce
from fusefs.invalidation import Invalidation
from fusefs.namespace_store import NamespaceStore
from metadata.catalog import ROOT_ID, Catalog, Change, Row
from metadata.catalog_memory import MemoryCatalog
from metadata.namespace_plans import (
    Birth,
    Deed,
    Entry,
    plan_create,
    plan_rename,
    plan_root,
    plan_unlink,
)
from tests.fusefs.snapshots_in_memory import Kernel
from tests.fusefs.test_orphans import Company
from tests.replication.switch import Switch


class SlowToTell(MemoryCatalog):
    """Its watch is late, as that of a file that is looked at now and then; who reads is told the truth."""

    async def watch(self, prefix: bytes, *, after: int):
        async with aclosing(super().watch(prefix, after=after)) as looked:
            async for events in looked:
                with trio.move_on_after(0.2):
                    await self.read_since.wait()
                yield events

    async def read(self, prefix: bytes) -> tuple[list[Row], int]:
        found = await super().read(prefix)
        self.read_since.set()
        self.read_since = trio.Event()
        return found

    read_since = trio.Event()


class StuckKernel(Kernel):
    """Waits for a lock that is not given."""

    async def forget_entry(self, parent: int, name: bytes) -> None:
        await trio.sleep_forever()


@dataclass
class Node:
    """A store whose changes are announced, and its kernel."""

    name: str
    store: NamespaceStore
    kernel: Kernel

    async def create(self, name: bytes) -> None:
        birth = Birth(await self.store.new_inode(), 0o644, 1, 1, 5)
        await self.store.commit(lambda ns: plan_create(ns, Entry(ROOT_ID, name), birth=birth))

    async def unlink(self, name: bytes) -> None:
        deed = Deed(self.name, 7)
        await self.store.commit(lambda ns: plan_unlink(ns, Entry(ROOT_ID, name), deed=deed))

    async def rename(self, name: bytes, new_name: bytes) -> None:
        source, target, deed = Entry(ROOT_ID, name), Entry(ROOT_ID, new_name), Deed(self.name, 7)
        await self.store.commit(lambda ns: plan_rename(ns, source, target=target, flags=0, deed=deed))

    def shows(self, name: bytes) -> bool:
        return self.store.namespace.find(ROOT_ID, name) is not None


@asynccontextmanager
async def node(name: str, catalog: Catalog, switch: Switch, kernel: Kernel) -> AsyncIterator[Node]:
    links = switch.join(name)

    def has_company() -> bool:
        return len(links.members()) > 1

    store = NamespaceStore(catalog, has_company=has_company, announce=Announcer(links, links).announce)
    async with store, trio.open_nursery() as nursery:
        invalidation = Invalidation(store.namespace, kernel)
        store.listen(invalidation)
        answer_announcements(
            links,
            links,
            catch_up=partial(store.catch_up, always=True),
            settled=invalidation.settled,
        )
        nursery.start_soon(store.run)
        nursery.start_soon(invalidation.run)
        yield Node(name, store, kernel)
        nursery.cancel_scope.cancel()


def on_two_nodes(
    scenario: Callable[[Switch, Node, Node], Awaitable[None]], *, kernel: Callable[[], Kernel] = Kernel
) -> None:
    async def main() -> None:
        catalog, switch = SlowToTell(), Switch()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with (
            node("a", catalog, switch, Kernel()) as first,
            node("b", catalog, switch, kernel()) as second,
        ):
            await first.create(b"disk")
            await second.store.catch_up()
            await trio.testing.wait_all_tasks_blocked()
            await scenario(switch, first, second)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_removed_name_is_gone_on_the_other_node_and_in_its_kernel_when_the_call_returns() -> None:
    async def scenario(_: Switch, a: Node, b: Node) -> None:
        await a.unlink(b"disk")
        assert not b.shows(b"disk")
        assert b.kernel.forgotten == [(ROOT_ID, b"disk")]

    on_two_nodes(scenario)


def test_so_is_a_name_that_stands_for_something_else() -> None:
    async def scenario(_: Switch, a: Node, b: Node) -> None:
        await a.create(b"new")
        await a.rename(b"new", b"disk")
        assert not b.shows(b"new")
        assert b.store.namespace.lookup(ROOT_ID, b"disk") == a.store.namespace.lookup(ROOT_ID, b"disk")

    on_two_nodes(scenario)


def test_a_new_name_is_announced_to_nobody() -> None:
    async def scenario(switch: Switch, a: Node, b: Node) -> None:
        switch.calls.clear()
        await a.create(b"new")
        await a.store.commit(lambda ns: Change())
        assert switch.calls == []

    on_two_nodes(scenario)


def test_changes_that_come_together_share_a_call() -> None:
    async def scenario(switch: Switch, a: Node, b: Node) -> None:
        for number in range(20):
            await a.create(b"%d" % number)
        switch.calls.clear()
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(a.unlink, b"%d" % number)
        assert len(switch.calls) <= 3
        assert not any(b.shows(b"%d" % number) for number in range(20))

    on_two_nodes(scenario)


def test_a_silent_node_holds_a_change_up_once_and_not_for_long() -> None:
    async def scenario(switch: Switch, a: Node, b: Node) -> None:
        await a.create(b"more")
        switch.cut.add(("b", "a"))
        began = trio.current_time()
        await a.unlink(b"disk")
        assert trio.current_time() - began <= ANSWER_S + 0.1
        await a.unlink(b"more")
        assert trio.current_time() - began <= ANSWER_S + 0.2
        switch.cut.clear()
        with trio.move_on_after(SILENT_S):
            await trio.sleep_forever()
        await a.create(b"more")
        await b.store.catch_up()
        await a.unlink(b"more")
        assert not b.shows(b"more")

    on_two_nodes(scenario)


def test_a_kernel_that_waits_for_a_lock_holds_a_change_up_only_for_a_moment() -> None:
    async def scenario(_: Switch, a: Node, b: Node) -> None:
        began = trio.current_time()
        await a.unlink(b"disk")
        assert trio.current_time() - began <= KERNEL_S + 0.1
        assert not b.shows(b"disk")

    on_two_nodes(scenario, kernel=StuckKernel)


def test_a_node_that_comes_is_known_to_the_others_before_it_shows_anything() -> None:
    async def main() -> None:
        catalog, switch = SlowToTell(), Switch()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with node("a", catalog, switch, Kernel()) as alone:
            links = switch.join("b")
            switch.live.discard("b")  # its session is in the catalog, and nobody has been told of it

            async def learn() -> None:
                await trio.lowlevel.checkpoint()
                switch.live.add("b")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(learn)
                await introduce(Company(links, links))
                assert not await alone.store.catch_up() or "b" in switch.live
            assert [call for call in switch.calls if call[:2] == ("b", "a")]

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
