"""The snapshot tree as a list of nodes, on mirrors in memory."""

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fusefs.resolution import PathResolver
from fusefs.tree_verb import TreeVerb
from metadata.catalog import ROOT_ID
from metadata.descent import Descent
from metadata.errors import Corrupt
from metadata.ids import PARENT, VdiskId
from metadata.namespace_plans import Deed, Entry, plan_trash
from metadata.snapshots import Snapshot
from replication.usage import HEAD
from replication.vdisks import VdiskStat
from tests.fusefs.mount_in_memory import Mount, on_a_mount
from tests.fusefs.snapshots_in_memory import adopt

NODES = 5000


async def usage(vdisk: VdiskId) -> Mapping[int, tuple[int, int]]:
    return {HEAD: (1, 2), 3: (4, 5), 9: (6, 7)}


def on_a_tree(scenario: Callable[[Mount, Callable[..., Awaitable[Any]]], Awaitable[None]]) -> None:
    async def main(mount: Mount) -> None:
        tree = TreeVerb(
            mount.store.namespace,
            mount.vdisks,
            mount.vdisks.family,
            paths=PathResolver(mount.store.namespace, mountpoint="/mnt"),
            usage=usage,
        )

        async def ask(**arguments: object) -> Any:
            return await tree.verbs()["tree"](arguments, lambda news: None)

        await scenario(mount, ask)

    on_a_mount(main)


async def disk(mount: Mount, name: bytes, *, parent: int = ROOT_ID) -> int:
    inode, handle = await mount.create(name, parent=parent)
    await mount.operations.release(handle)
    mount.vdisks.stats[inode] = VdiskStat(10000, 8192, 7, 5)
    return inode


def test_snapshots_clones_trash_and_the_nameless_are_nodes() -> None:
    async def scenario(mount: Mount, ask: Callable[..., Awaitable[Any]]) -> None:
        family = mount.vdisks.family
        base, clone, plain, gone = [
            await disk(mount, name) for name in (b"base", b"clone", b"plain", b"gone")
        ]
        family.add_snapshot(Snapshot(base, "one", 5000, 3, 9000, 1, 0, 7, 8, True))
        adopt(mount.vdisks, clone, (base, 3))
        family.set_descent(7000, Descent(nameless=True))
        adopt(mount.vdisks, plain, (7000, 4))
        deed = Deed("here", 50)
        await mount.store.commit(lambda ns: plan_trash(ns, Entry(ROOT_ID, b"gone"), deed=deed, until_ns=90))
        handle = await mount.vdisks.open(VdiskId(clone))
        answer = await ask()
        nodes = {node["id"]: node for node in answer["nodes"]}
        assert list(nodes) == [base, 5000, clone, plain, gone, 7000]
        kinds = [(node["kind"], node["path"], node["name"], node["parent"]) for node in nodes.values()]
        assert kinds == [
            ("vdisk", "/base", "base", None),
            ("snapshot", "/base@one", "one", base),
            ("vdisk", "/clone", "clone", 5000),
            ("vdisk", "/plain", "plain", 7000),
            ("trash", "/gone", "gone", None),
            ("nameless", None, None, None),
        ]
        assert (nodes[clone]["parent_version"], nodes[plain]["parent_version"]) == (3, 4)
        assert [node["children"] for node in nodes.values()] == [1, 1, 0, 0, 0, 1]
        assert (nodes[clone]["open_handles"], nodes[base]["open_handles"]) == (1, 0)
        assert (nodes[5000]["protected"], nodes[5000]["own_bytes"], nodes[5000]["size"]) == (True, 4096, 9000)
        alone = {number: (node["exclusive_bytes"], node["shared_bytes"]) for number, node in nodes.items()}
        assert alone[base] == alone[5000] == (None, None)  # who sees which blocks takes a look at the index
        assert (alone[clone], alone[gone]) == ((8192, None), (8192, 0))
        assert (nodes[gone]["deleted_ns"], nodes[gone]["until_ns"]) == (50, 90)
        mount.vdisks.close(handle)

    on_a_tree(scenario)


def test_a_path_shows_what_is_below_it_with_its_relatives() -> None:
    async def scenario(mount: Mount, ask: Callable[..., Awaitable[Any]]) -> None:
        folder = await mount.mkdir(b"dir")
        base, inside = await disk(mount, b"base"), await disk(mount, b"x", parent=folder)
        child, _stranger = await disk(mount, b"child"), await disk(mount, b"stranger")
        sibling = await disk(mount, b"sibling")
        adopt(mount.vdisks, inside, (base, 3))
        adopt(mount.vdisks, child, (inside, 4))
        adopt(mount.vdisks, sibling, (base, 3))
        answer = await ask(path="dir")
        assert (answer["path"], [node["id"] for node in answer["nodes"]]) == (
            "/dir",
            [base, inside, child, sibling],
        )
        assert len((await ask(path=""))["nodes"]) == 5

    on_a_tree(scenario)


def test_exact_counts_are_made_on_request() -> None:
    async def scenario(mount: Mount, ask: Callable[..., Awaitable[Any]]) -> None:
        base, other = await disk(mount, b"base"), await disk(mount, b"other")
        for name, number, version in (("one", 5000, 3), ("two", 5001, 9), ("same", 5002, 9)):
            mount.vdisks.family.add_snapshot(Snapshot(base, name, number, version, 1, 1, 0, 7, 8))
        answer = await ask(exact=True)
        counts = {node["id"]: (node["exclusive_bytes"], node["shared_bytes"]) for node in answer["nodes"]}
        block = 4096
        assert counts[base] == counts[other] == (block, 2 * block)
        assert counts[5000] == (4 * block, 5 * block)
        assert counts[5001] == counts[5002] == (0, 13 * block)

    on_a_tree(scenario)


def test_a_vdisk_that_cannot_be_read_is_shown_with_its_problem() -> None:
    async def scenario(mount: Mount, ask: Callable[..., Awaitable[Any]]) -> None:
        bad, good = await disk(mount, b"bad"), await disk(mount, b"good")
        mount.vdisks.broken[bad] = Corrupt("its log cannot be read")
        nodes = {node["id"]: node for node in (await ask())["nodes"]}
        assert (nodes[bad]["problem"], nodes[bad]["size"]) == ("its log cannot be read", None)
        assert "problem" not in nodes[good]

    on_a_tree(scenario)


def test_thousands_of_nodes_take_no_time_to_speak_of() -> None:
    async def scenario(mount: Mount, ask: Callable[..., Awaitable[Any]]) -> None:
        family, base = mount.vdisks.family, await disk(mount, b"base")
        for number in range(NODES // 2):
            family.add_snapshot(Snapshot(base, f"s{number}", 100_000 + number, number + 1, 1, 1, 0, 7, 8))
            family.set_descent(
                200_000 + number, Descent(parent=(base, number + 1), absent=PARENT, nameless=True)
            )
        began = time.process_time()
        answer = await ask()
        assert len(answer["nodes"]) == NODES + 1
        assert time.process_time() - began < 5  # a square of the count would take minutes

    on_a_tree(scenario)
