"""Verbs asked on a node that does not own what they are about: two nodes over the switch, verbs that say where they ran."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
import trio
import trio.testing

from fusefs.control import Progress, Verb
from fusefs.namespace_store import NamespaceStore
from fusefs.resolution import PathResolver
from fusefs.verb_forwarding import VerbForwarding
from fusefs.verb_jobs import PIECE_BYTES, RemoteVerbs, VerbJobs
from fusefs.verbs_everywhere import CHECK, COLLECT, VerbsEverywhere
from metadata.catalog import ROOT_ID
from metadata.catalog_memory import MemoryCatalog
from metadata.errors import Busy, Exists, InvalidRequest, NotOwner, Unavailable, VdiskfsError
from metadata.ids import VdiskId
from metadata.namespace_plans import Birth, Entry, plan_create, plan_mkdir, plan_root, plan_symlink
from tests.replication.switch import Switch


@dataclass
class World:
    """Who owns what, and where somebody writes."""

    switch: Switch = field(default_factory=Switch)
    owner: dict[int, str] = field(default_factory=dict)
    written: set[int] = field(default_factory=set)
    nodes: dict[str, "Node"] = field(default_factory=dict)


@dataclass
class Node:
    """One node's verbs; those about vdisks run only where all of them are owned."""

    name: str
    world: World
    store: NamespaceStore
    verbs: dict[str, Verb] = field(default_factory=dict)
    ran: list[dict[str, Any]] = field(default_factory=list)
    gate: trio.Event = field(default_factory=trio.Event)

    def is_mine(self, vdisk: int) -> bool:
        return self.world.owner.get(vdisk, self.name) == self.name

    def is_owned_here(self, vdisk: int) -> bool:
        return self.world.owner.get(vdisk) == self.name

    def live_owner(self, vdisk: int) -> str | None:
        owner = self.world.owner.get(vdisk, self.name)
        return owner if owner != self.name and owner in self.world.switch.live else None

    def others(self) -> list[str]:
        return sorted(self.world.switch.live - {self.name})

    async def acquire(self, vdisk: VdiskId) -> str | None:
        await trio.lowlevel.checkpoint()
        owner = self.live_owner(vdisk)
        if owner is not None and vdisk in self.world.written:
            return owner
        self.world.owner[vdisk] = self.name
        return None

    async def run_here(self, arguments: dict[str, Any], progress: Progress) -> object:
        await trio.lowlevel.checkpoint()
        if "fail" in arguments:
            raise Exists(arguments["fail"], number=99)
        self.ran.append(arguments)
        progress({"done": 1})
        if arguments.get("wait"):
            await self.gate.wait()
        return {"node": self.name, "bulk": "x" * arguments.get("bulk", 0)}

    async def scan(self, vdisks: Any, progress: Progress) -> list[dict[str, Any]]:
        await trio.lowlevel.checkpoint()
        progress({"done": len(vdisks), "total": 10})
        return [{"vdisk": vdisk, "node": self.name} for vdisk in vdisks]

    async def collect(self, progress: Progress, **how: Any) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        return {"vdisks": 1, "asked": -1 if how["vdisks"] is None else len(how["vdisks"])}

    async def ask(self, verb: str, progress: Progress = lambda news: None, **arguments: Any) -> Any:
        return await self.verbs[verb](arguments, progress)


async def start(node: Node, nursery: trio.Nursery) -> None:
    links, numbers = node.world.switch.join(node.name), count()
    remote = RemoteVerbs(links, lambda: f"{node.name}{next(numbers)}")
    paths = PathResolver(node.store.namespace, mountpoint=f"/{node.name}")
    forwarding = VerbForwarding(node.store, paths, owners=node, acquire=node.acquire, run_on=remote.run)
    everywhere = VerbsEverywhere(node, node, acquire=node.acquire, run_on=remote.run)
    own = {"snap_create": node.run_here, "clone": node.run_here, "map": node.run_here, "rm": node.run_here}
    parts = {
        CHECK: everywhere.scan_here(node.scan),
        COLLECT: everywhere.collect_here(node, lambda: 1.0),
    }
    check = everywhere.scan(CHECK, node.scan)

    async def run_check(arguments: Mapping[str, Any], progress: Progress) -> object:
        return await check(arguments["vdisks"], progress)

    async def run_collect(arguments: Mapping[str, Any], progress: Progress) -> object:
        everything = everywhere.collector(node)
        return await everything.collect(
            progress, dry_run=False, vdisks=arguments["vdisks"], share=lambda: 1.0
        )

    node.verbs = {**forwarding.wrapped(own), "check": run_check, "gc": run_collect}
    jobs = VerbJobs(links, {**forwarding.served(own), **parts})
    nursery.start_soon(node.store.run)
    nursery.start_soon(jobs.run)


def on_two_nodes(scenario: Callable[[World, Node, Node], Awaitable[None]]) -> None:
    async def main() -> None:
        catalog, world = MemoryCatalog(), World()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with AsyncExitStack() as stack:
            nursery = await stack.enter_async_context(trio.open_nursery())
            for name in ("a", "b"):
                store = NamespaceStore(catalog, has_company=lambda: True)
                await stack.enter_async_context(store)
                world.nodes[name] = Node(name, world, store)
                await start(world.nodes[name], nursery)
            await scenario(world, world.nodes["a"], world.nodes["b"])
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def disk(node: Node, path: bytes, *, owner: str = "", written: bool = False) -> int:
    """A vdisk, in a directory that is made for it."""
    folder, _, name = path.rpartition(b"/")
    parent = ROOT_ID
    if folder:
        birth = Birth(await node.store.new_inode(), 0o755, 1, 1, 5)
        parent = birth.inode
        await node.store.commit(lambda ns: plan_mkdir(ns, Entry(ROOT_ID, folder), birth=birth))
    made = Birth(await node.store.new_inode(), 0o644, 1, 1, 5)
    await node.store.commit(lambda ns: plan_create(ns, Entry(parent, name), birth=made))
    if owner:
        node.world.owner[made.inode] = owner
    if written:
        node.world.written.add(made.inode)
    return made.inode


def test_a_verb_about_what_nobody_else_owns_runs_here() -> None:
    async def scenario(world: World, a: Node, b: Node) -> None:
        inode = await disk(a, b"disk")
        assert (await b.ask("map", path="disk"))["node"] == "b"
        assert inode not in world.owner
        assert (await b.ask("snap_create", paths=["disk"]))["node"] == "b"
        assert world.owner[inode] == "b"

    on_two_nodes(scenario)


def test_an_idle_vdisk_of_another_node_is_acquired_first() -> None:
    async def scenario(world: World, a: Node, b: Node) -> None:
        inode = await disk(a, b"disk", owner="a")
        assert (await b.ask("snap_create", paths=["disk"]))["node"] == "b"
        assert world.owner[inode] == "b"

    on_two_nodes(scenario)


def test_a_vdisk_that_is_written_elsewhere_is_dealt_with_there() -> None:
    async def scenario(world: World, a: Node, b: Node) -> None:
        inode = await disk(a, b"disk", owner="a", written=True)
        news: list[object] = []
        assert (await b.ask("snap_create", news.append, paths=["disk"], name="x"))["node"] == "a"
        assert a.ran == [{"paths": ["disk"], "name": "x"}]
        assert world.owner[inode] == "a"

    on_two_nodes(scenario)


def test_who_only_looks_takes_nothing_away_from_the_owner() -> None:
    async def scenario(world: World, a: Node, b: Node) -> None:
        inode = await disk(a, b"disk", owner="a")
        assert (await b.ask("map", path="disk"))["node"] == "a"
        assert world.owner[inode] == "a"
        world.switch.leave("a")
        world.switch.expire("a")
        assert (await b.ask("map", path="disk"))["node"] == "b"

    on_two_nodes(scenario)


def test_paths_arrive_as_the_names_have_them() -> None:
    async def scenario(_: World, a: Node, b: Node) -> None:
        await disk(a, b"vms/disk", owner="a", written=True)
        birth = Birth(await a.store.new_inode(), 0o777, 1, 1, 5)
        target = b"/b/vms/disk"  # through the mountpoint of the node that is asked
        await a.store.commit(lambda ns: plan_symlink(ns, Entry(ROOT_ID, b"link"), birth=birth, target=target))
        await b.ask("clone", path="link", new_path="vms/../vms/new")
        assert a.ran == [{"path": "vms/disk", "new_path": "vms/new"}]

    on_two_nodes(scenario)


def test_a_group_that_is_written_on_two_nodes_is_refused_and_they_are_named() -> None:
    async def scenario(_: World, a: Node, b: Node) -> None:
        await disk(a, b"mine", owner="a", written=True)
        await disk(a, b"yours", owner="b", written=True)
        with pytest.raises(Busy, match=r"/mine on a|/yours on b"):
            await b.ask("snap_create", paths=["mine", "yours"])
        assert a.ran == b.ran == []

    on_two_nodes(scenario)


def test_errors_and_large_answers_come_back_whole() -> None:
    async def scenario(_: World, a: Node, b: Node) -> None:
        await disk(a, b"disk", owner="a", written=True)
        with pytest.raises(VdiskfsError, match="taken"):
            await b.ask("clone", path="disk", new_path="new", fail="taken")
        answer = await b.ask("map", path="disk", bulk=3 * PIECE_BYTES + 7)
        assert len(answer["bulk"]) == 3 * PIECE_BYTES + 7

    on_two_nodes(scenario)


def test_progress_is_told_and_a_lost_answer_does_not_run_the_verb_twice() -> None:
    async def scenario(world: World, a: Node, b: Node) -> None:
        await disk(a, b"disk", owner="a", written=True)
        news: list[Mapping[str, object]] = []
        world.switch.cut.add(("a", "b"))  # the answers

        async def heal() -> None:
            with trio.move_on_after(7):
                await trio.sleep_forever()
            world.switch.cut.clear()
            with trio.move_on_after(7):
                await trio.sleep_forever()
            a.gate.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(heal)
            answer = await b.ask("clone", news.append, path="disk", new_path="new", wait=True)
        assert answer["node"] == "a"
        assert len(a.ran) == 1
        assert {"done": 1} in news

    on_two_nodes(scenario)


def test_a_node_that_never_answers_is_told_of() -> None:
    async def scenario(world: World, a: Node, b: Node) -> None:
        await disk(a, b"disk", owner="a", written=True)
        world.switch.cut.add(("b", "a"))
        with pytest.raises(Unavailable):
            await b.ask("clone", path="disk", new_path="new")

    on_two_nodes(scenario)


def test_a_verb_whose_asker_has_gone_is_cut_off() -> None:
    async def scenario(world: World, a: Node, b: Node) -> None:
        await disk(a, b"disk", owner="a", written=True)
        with trio.move_on_after(1):
            await b.ask("clone", path="disk", new_path="new", wait=True)
        await trio.testing.wait_all_tasks_blocked()
        assert len(a.ran) == 1
        with pytest.raises(Unavailable, match="cut off"):
            await world.switch.nodes["b"].call("a", "verb_more", {"job": "b0", "position": 0}, deadline_s=1)

    on_two_nodes(scenario)


def test_ownership_that_moves_on_the_way_is_followed() -> None:
    async def scenario(world: World, a: Node, b: Node) -> None:
        inode = await disk(a, b"disk", owner="a")
        begun: list[int] = []

        async def moves(arguments: dict[str, Any], progress: Progress) -> object:
            await trio.lowlevel.checkpoint()
            begun.append(inode)
            if len(begun) == 1:
                world.owner[inode] = "a"
                raise NotOwner("it has just gone", number=16)
            return {"node": "b"}

        paths = PathResolver(b.store.namespace, mountpoint="/b")
        forwarding = VerbForwarding(b.store, paths, owners=b, acquire=b.acquire, run_on=no_node)
        verbs = forwarding.wrapped({"flatten": moves})
        assert await verbs["flatten"]({"path": "disk"}, lambda news: None) == {"node": "b"}
        assert len(begun) == 2

    on_two_nodes(scenario)


async def no_node(*_: object) -> Any:
    raise AssertionError("nothing was to be forwarded")


def test_a_verb_that_another_release_does_not_know_is_refused() -> None:
    async def scenario(world: World, _a: Node, _b: Node) -> None:
        with pytest.raises(InvalidRequest, match="another release"):
            await world.switch.nodes["b"].call("a", "verb", {"job": "1", "verb": "new"}, b"{}", deadline_s=1)

    on_two_nodes(scenario)


def test_each_node_checks_what_it_owns_and_a_lost_node_s_vdisks_are_checked_here() -> None:
    async def scenario(world: World, a: Node, b: Node) -> None:
        mine, yours, nobody_s = (
            await disk(a, b"1", owner="a"),
            await disk(a, b"2", owner="b"),
            await disk(a, b"3"),
        )
        vdisks = [mine, yours, nobody_s]
        found = await b.ask("check", vdisks=vdisks)
        assert {one["vdisk"]: one["node"] for one in found} == {mine: "a", yours: "b", nobody_s: "b"}
        world.switch.leave("a")
        found = await b.ask("check", vdisks=vdisks)
        assert [one["vdisk"] for one in found if "did not look" in one.get("problem", "")] == [mine]
        world.switch.expire("a")
        found = await b.ask("check", vdisks=vdisks)
        assert {one["node"] for one in found} == {"b"}

    on_two_nodes(scenario)


def test_every_node_collects_its_own_and_the_sums_are_added() -> None:
    async def scenario(_: World, a: Node, b: Node) -> None:
        assert await b.ask("gc", vdisks=None) == {"vdisks": 2, "asked": -2}
        mine = await disk(a, b"1", owner="a")
        assert (await b.ask("gc", vdisks=[mine]))["asked"] == 1

    on_two_nodes(scenario)
