"""Files without a name that other nodes have open: they live until the last node's last handle is gone."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
import trio.testing

from fusefs.namespace_store import NamespaceStore
from fusefs.orphans import ASK_S, GRACE_S, PERIOD_S, Orphans
from metadata.catalog import ROOT_ID, Catalog
from metadata.catalog_memory import MemoryCatalog
from metadata.ids import VdiskId
from metadata.namespace_plans import Birth, Deed, Entry, plan_create, plan_root, plan_unlink
from replication.cluster import Links, Membership
from tests.fusefs.mount_in_memory import VdisksInMemory
from tests.replication.switch import Switch, SwitchLinks


@dataclass
class Company:
    """The switch as a node sees it."""

    links: Links
    membership: Membership

    def has_others(self) -> bool:
        return len(self.membership.members()) > 1


@dataclass
class Node:
    """One node's names, vdisks and kernel."""

    name: str
    store: NamespaceStore
    vdisks: VdisksInMemory
    orphans: Orphans
    known: set[int]

    async def unlink(self, name: bytes) -> int:
        inode = self.store.namespace.lookup(ROOT_ID, name)
        deed = Deed(self.name, 7)
        await self.store.commit(lambda ns: plan_unlink(ns, Entry(ROOT_ID, name), deed=deed))
        return inode

    async def close(self, number: int) -> None:
        """The last handle goes, and the kernel forgets."""
        inode = self.vdisks.handles[number]
        self.vdisks.close(number)
        self.known.discard(inode)
        await self.orphans.forgotten(inode)
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def node(name: str, catalog: Catalog, links: SwitchLinks) -> AsyncIterator[Node]:
    company, vdisks, known = Company(links, links), VdisksInMemory(), set[int]()
    store = NamespaceStore(catalog, has_company=company.has_others)
    async with store, trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        orphans = Orphans(store, vdisks, node=name, company=company, is_known=known.__contains__)
        nursery.start_soon(orphans.run)
        yield Node(name, store, vdisks, orphans, known)
        nursery.cancel_scope.cancel()


def on_three_nodes(scenario: Callable[[Switch, int, dict[str, Node]], Awaitable[None]]) -> None:
    async def main() -> None:
        catalog, switch = MemoryCatalog(), Switch()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with (
            node("a", catalog, switch.join("a")) as first,
            node("b", catalog, switch.join("b")) as second,
            node("c", catalog, switch.join("c")) as third,
        ):
            nodes = {one.name: one for one in (first, second, third)}
            birth = Birth(await first.store.new_inode(), 0o644, 1, 1, 5)
            await first.store.commit(lambda ns: plan_create(ns, Entry(ROOT_ID, b"disk"), birth=birth))
            for one in nodes.values():
                await one.store.catch_up()
            await scenario(switch, birth.inode, nodes)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def forgotten(nodes: dict[str, Node]) -> dict[str, list[int]]:
    return {name: one.vdisks.forgotten for name, one in nodes.items() if one.vdisks.forgotten}


def test_a_file_that_nobody_else_uses_goes_at_once() -> None:
    async def scenario(_: Switch, inode: int, nodes: dict[str, Node]) -> None:
        await nodes["a"].unlink(b"disk")
        await nodes["a"].orphans.drop(inode)
        assert forgotten(nodes) == {"a": [inode]}
        assert not nodes["a"].store.namespace.is_orphan(inode)

    on_three_nodes(scenario)


def test_a_file_that_another_node_has_open_lives_until_it_is_closed_there() -> None:
    async def scenario(_: Switch, inode: int, nodes: dict[str, Node]) -> None:
        handle = await nodes["c"].vdisks.open(VdiskId(inode))
        nodes["c"].known.add(inode)
        await nodes["a"].unlink(b"disk")
        await nodes["a"].orphans.forgotten(inode)
        await trio.testing.wait_all_tasks_blocked()
        assert forgotten(nodes) == {}
        assert nodes["b"].store.namespace.orphan_node(inode) == "c"
        await nodes["c"].close(handle)
        assert forgotten(nodes) == {"c": [inode]}
        assert not nodes["b"].store.namespace.is_orphan(inode)

    on_three_nodes(scenario)


def test_it_goes_from_user_to_user_until_the_last_one_closes_it() -> None:
    async def scenario(_: Switch, inode: int, nodes: dict[str, Node]) -> None:
        handles = {name: await nodes[name].vdisks.open(VdiskId(inode)) for name in "bc"}
        await nodes["a"].unlink(b"disk")
        await nodes["a"].orphans.drop(inode)
        await nodes["b"].close(handles["b"])
        assert forgotten(nodes) == {}
        await nodes["c"].close(handles["c"])
        assert forgotten(nodes) == {"c": [inode]}

    on_three_nodes(scenario)


def test_a_node_that_forgot_it_while_it_was_handed_over_drops_it_then() -> None:
    async def scenario(_: Switch, inode: int, nodes: dict[str, Node]) -> None:
        nodes["b"].known.add(inode)
        await nodes["a"].unlink(b"disk")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(nodes["a"].orphans.drop, inode)
            await trio.lowlevel.checkpoint()
            while nodes["a"].store.namespace.orphan_node(inode) == "a":
                await trio.lowlevel.checkpoint()
            nodes["b"].known.clear()
            await nodes["b"].orphans.forgotten(inode)
        await trio.testing.wait_all_tasks_blocked()
        assert forgotten(nodes) == {"b": [inode]}

    on_three_nodes(scenario)


def test_the_nodes_that_have_a_file_open_are_named() -> None:
    async def scenario(_: Switch, inode: int, nodes: dict[str, Node]) -> None:
        await nodes["c"].vdisks.open(VdiskId(inode))
        nodes["b"].known.add(inode)
        assert await nodes["a"].orphans.openers(inode) == ["c"]
        assert [name for name in nodes if nodes[name].orphans.is_first()] == ["a"]

    on_three_nodes(scenario)


def test_a_silent_node_keeps_the_data_where_it_is(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(switch: Switch, inode: int, nodes: dict[str, Node]) -> None:
        switch.cut.add(("b", "a"))
        await nodes["a"].unlink(b"disk")
        await nodes["a"].orphans.drop(inode)
        assert forgotten(nodes) == {}
        switch.cut.clear()
        with trio.move_on_after(PERIOD_S + ASK_S):
            await trio.sleep_forever()
        assert forgotten(nodes) == {"a": [inode]}

    on_three_nodes(scenario)
    assert "space is not free yet" in caplog.text


def test_a_lost_node_s_orphans_are_adopted_when_it_has_been_gone_for_long() -> None:
    async def scenario(switch: Switch, inode: int, nodes: dict[str, Node]) -> None:
        nodes["c"].known.add(inode)
        await nodes["c"].unlink(b"disk")
        await nodes["a"].store.catch_up()
        switch.leave("c")
        switch.expire("c")
        with trio.move_on_after(GRACE_S - PERIOD_S):
            await trio.sleep_forever()
        assert forgotten(nodes) == {}
        with trio.move_on_after(3 * PERIOD_S):
            await trio.sleep_forever()
        assert forgotten(nodes) == {"a": [inode]}

    on_three_nodes(scenario)


def test_a_node_that_comes_back_in_time_keeps_its_orphans() -> None:
    async def scenario(switch: Switch, inode: int, nodes: dict[str, Node]) -> None:
        nodes["c"].known.add(inode)
        await nodes["c"].unlink(b"disk")
        for _ in range(3):
            switch.expire("c")
            with trio.move_on_after(GRACE_S - 2 * PERIOD_S):
                await trio.sleep_forever()
            switch.live.add("c")
            with trio.move_on_after(2 * PERIOD_S):
                await trio.sleep_forever()
        assert forgotten(nodes) == {}

    on_three_nodes(scenario)
