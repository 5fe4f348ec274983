"""What nodes tell of each other: owners, versions, lags, and nodes that are gone or silent."""

from collections.abc import Awaitable, Callable
from typing import Any

import trio
import trio.testing

from fusefs.cluster_status import ClusterStatus, Loaded, Sources
from replication.ownership import Owner
from tests.replication.switch import Switch

OWNERS = {20: Owner("a", 1), 21: Owner("b", 3), 22: Owner("gone", 2), 23: Owner("b", 1)}


def status(switch: Switch, node: str, *loaded: Loaded, peers: dict[int, dict[str, int]]) -> ClusterStatus:
    links = switch.join(node)
    sources = Sources(
        owners=lambda: OWNERS,
        loaded=lambda: list(loaded),
        peers=lambda: peers,
        followed=lambda: {30: 1},
        counters=lambda: {"forwarded": 5, "taken_over": 0},
        path_of=lambda vdisk: f"/{vdisk}.img",
    )
    return ClusterStatus(links, links, sources)


def with_two_nodes(scenario: Callable[[Switch, ClusterStatus], Awaitable[None]]) -> None:
    async def main() -> None:
        switch = Switch()
        asked = status(switch, "a", Loaded(20, 7, 1, 0), peers={20: {"b": 5, "c": 7}})
        status(switch, "b", Loaded(21, 9, 0, 4096), Loaded(23, 1, 2, 0), peers={})
        await scenario(switch, asked)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def by(key: str, rows: list[dict[str, Any]]) -> dict[Any, dict[str, Any]]:
    return {row[key]: row for row in rows}


def test_all_nodes_are_shown_with_what_they_own_and_have_done() -> None:
    async def scenario(_: Switch, asked: ClusterStatus) -> None:
        nodes = by("node", (await asked.whole())["nodes"])
        assert [nodes[node]["session"] for node in ("a", "b", "gone")] == ["live", "live", "no session"]
        assert [nodes[node]["vdisks_owned"] for node in ("a", "b", "gone")] == [1, 2, 1]
        assert nodes["b"]["vdisks_loaded"] == 2
        assert nodes["b"]["forwarded"] == 5
        assert [node for node in nodes if nodes[node]["here"]] == ["a"]

    with_two_nodes(scenario)


def test_a_vdisk_is_shown_at_its_owner_s_version_with_each_peer_s_lag() -> None:
    async def scenario(_: Switch, asked: ClusterStatus) -> None:
        vdisks = by("vdisk", (await asked.whole())["vdisks"])
        assert vdisks[20]["owner"] == "a"
        assert vdisks[20]["path"] == "/20.img"
        assert [(peer["node"], peer["lag"]) for peer in vdisks[20]["peers"]] == [("b", 2), ("c", 0)]
        assert (vdisks[21]["owner"], vdisks[21]["version"], vdisks[21]["dirty_bytes"]) == ("b", 9, 4096)

    with_two_nodes(scenario)


def test_a_node_that_does_not_answer_is_said_to_be_silent_and_the_rest_is_shown() -> None:
    async def scenario(switch: Switch, asked: ClusterStatus) -> None:
        switch.cut.add(("b", "a"))
        with trio.fail_after(5):
            whole = await asked.whole()
        assert by("node", whole["nodes"])["b"]["session"] == "not answering"
        assert [one["vdisk"] for one in whole["vdisks"]] == [20]

    with_two_nodes(scenario)
