"""Who is told of an owner's commits, in which order, for whom a flush waits, and for how long at most."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio
import trio.testing

from metadata.errors import NotOwner, Unavailable
from metadata.records import CommitRecord
from replication.audience import BACKLOG_MAX, LATE_S, RETRY_S, Audience, Subscriber
from replication.cluster import CALL_DATA_BYTES_MAX, SUBSCRIPTION_S, Answer, Links
from replication.log import Commit, Pending
from replication.pool import GroupFile
from replication.publication import PUBLISH, Publication, told_in
from tests.replication.rig import passes, run
from tests.replication.switch import Switch

V = 20
NEVER_S = 60.0


class Peers:
    """Nodes b and c, to which an audience of a's vdisk can publish; each as the test says."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.switch = Switch()
        self.links: Links = self.switch.join("a")
        self.heard: dict[str, list[list[int]]] = {"b": [], "c": []}
        """By node, the versions that came together."""
        self.data: list[bytes] = []
        self.refuses: dict[str, Exception] = {}
        self.audience = Audience(self.links, trio.current_time, nursery, describe)
        for node in self.heard:
            self.switch.join(node).serve(PUBLISH, self._hear(node))

    def _hear(self, node: str) -> Callable[[str, Mapping[str, Any], bytes], Awaitable[Answer]]:
        async def hear(_: str, values: Mapping[str, Any], data: bytes) -> Answer:
            await trio.lowlevel.checkpoint()
            told = told_in(values, data)
            self.heard[node].append([one.version for one, _ in told])
            self.data += [record for _, record in told]
            if node in self.refuses:
                raise self.refuses[node]
            return {}, b""

        return hear

    def follows(self, node: str, version: int = 0, *, serial: int = 1) -> Subscriber:
        subscriber = self.audience.add(node, serial)
        self.audience.activate(subscriber, version)
        return subscriber

    def commit(self, *versions: int, data: bytes = b"record") -> None:
        for version in versions:
            record = CommitRecord(V, version, version - 1, 0, 0, 0, 0, 0, 0)
            file = GroupFile("/", vdisk=V, group=1, seed=0)
            self.audience.publish(Commit(record, data, 7, file, 0, Pending()), 1, generation=1)

    def silence(self, node: str) -> None:
        self.switch.cut.add(("a", node))


def describe(commit: Commit, epoch: int, generation: int) -> Publication:
    return Publication(V, epoch, commit.record.version, 0, check=7, generation=generation, descent=0)


def with_peers(body: Callable[[Peers], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with trio.open_nursery() as nursery:
            await body(Peers(nursery))
            nursery.cancel_scope.cancel()

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


async def took(what: Callable[[], Awaitable[object]]) -> float:
    """How long it took on the node's clock."""
    begun_s = trio.current_time()
    with trio.move_on_after(NEVER_S):
        await what()
    return trio.current_time() - begun_s


def test_a_flush_waits_until_all_that_follow_have_acknowledged() -> None:
    async def body(peers: Peers) -> None:
        b, c = peers.follows("b"), peers.follows("c")
        peers.switch.delay_s = lambda source, target: 0.1 if target == "c" else 0.02
        peers.commit(1)
        assert await took(lambda: peers.audience.wait(1)) == pytest.approx(0.12)
        assert (b.acknowledged, c.acknowledged) == (1, 1)
        assert peers.heard == {"b": [[1]], "c": [[1]]}

    with_peers(body)


def test_nobody_is_waited_for_who_has_the_version_already_or_only_pins() -> None:
    async def body(peers: Peers) -> None:
        peers.follows("b", 5)
        pinning = peers.audience.add("c", 1)
        peers.silence("b")
        assert await took(lambda: peers.audience.wait(5)) == 0
        peers.commit(6)
        assert not pinning.backlog
        assert await took(lambda: peers.audience.wait(6, besides="b")) == 0
        assert await took(lambda: peers.audience.wait(6)) >= SUBSCRIPTION_S

    with_peers(body)


def test_one_that_is_silent_is_waited_for_until_its_subscription_is_over() -> None:
    async def body(peers: Peers) -> None:
        b = peers.follows("b")
        peers.silence("b")
        await passes(0.5)
        assert peers.audience.renew("b", b.term)
        peers.commit(1)
        waited_s = await took(lambda: peers.audience.wait(1))
        assert SUBSCRIPTION_S <= waited_s < SUBSCRIPTION_S + 0.1
        assert b.gone
        assert not peers.audience.renew("b", b.term)

    with_peers(body)


def test_a_renewal_while_a_flush_waits_is_waited_for_longer() -> None:
    async def body(peers: Peers) -> None:
        b = peers.follows("b")
        peers.silence("b")
        peers.commit(1)

        async def renew() -> None:
            await passes(SUBSCRIPTION_S - 0.1)
            assert peers.audience.renew("b", b.term)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(renew)
            waited_s = await took(lambda: peers.audience.wait(1))
        assert 2 * SUBSCRIPTION_S - 0.1 <= waited_s < 2 * SUBSCRIPTION_S

    with_peers(body)


def test_a_renewal_of_another_subscription_is_none() -> None:
    async def body(peers: Peers) -> None:
        first = peers.follows("b", serial=1)
        second = peers.follows("b", serial=2)
        assert first.gone
        assert not second.gone
        assert first.term != second.term
        assert not peers.audience.renew("b", first.term)
        assert not peers.audience.renew("c", second.term)
        assert peers.audience.renew("b", second.term)

    with_peers(body)


@pytest.mark.parametrize("serial", [1, 2])
def test_a_subscription_that_came_late_or_twice_is_refused(serial: int) -> None:
    async def body(peers: Peers) -> None:
        b = peers.follows("b", serial=2)
        with pytest.raises(Unavailable, match="has subscribed anew since"):
            peers.audience.add("b", serial)
        assert peers.audience.subscribers == {"b": b}

    with_peers(body)


@pytest.mark.parametrize(("serial", "is_gone"), [(1, False), (2, True), (3, True)])
def test_only_the_newest_subscription_can_be_left(serial: int, is_gone: bool) -> None:
    async def body(peers: Peers) -> None:
        b = peers.follows("b", serial=2)
        peers.audience.leave("b", serial)
        peers.audience.leave("c", serial)
        assert b.gone is is_gone
        assert ("b" in peers.audience.subscribers) is not is_gone

    with_peers(body)


def test_whoever_leaves_is_waited_for_no_more() -> None:
    async def body(peers: Peers) -> None:
        peers.follows("b")
        peers.silence("b")
        peers.commit(1)

        async def leave() -> None:
            await passes(0.3)
            peers.audience.end_all()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            assert await took(lambda: peers.audience.wait(1)) == pytest.approx(0.3)

    with_peers(body)


def test_commits_made_while_one_is_told_go_together_and_in_order() -> None:
    async def body(peers: Peers) -> None:
        b = peers.follows("b")
        peers.switch.delay_s = lambda source, target: 0.05
        peers.commit(1)
        await passes(0.01)
        peers.commit(2, 3, 4)
        await peers.audience.wait(4)
        assert peers.heard["b"] == [[1], [2, 3, 4]]
        assert not b.backlog

    with_peers(body)


def test_records_that_do_not_fit_into_one_call_go_into_several_and_a_huge_one_stays_behind() -> None:
    half = bytes(CALL_DATA_BYTES_MAX // 2)

    async def body(peers: Peers) -> None:
        peers.follows("b")
        peers.commit(1, 2, 3, data=half)
        peers.commit(4, data=half * 2 + b"1")
        await peers.audience.wait(4)
        assert peers.heard["b"] == [[1, 2], [3, 4]]
        assert [len(record) for record in peers.data] == [len(half)] * 3 + [
            0
        ]  # the last is read from the pool

    with_peers(body)


@pytest.mark.parametrize(("behind", "told"), [(BACKLOG_MAX, BACKLOG_MAX), (BACKLOG_MAX + 1, 1)])
def test_one_that_is_too_far_behind_is_told_of_the_newest(behind: int, told: int) -> None:
    async def body(peers: Peers) -> None:
        b = peers.follows("b")
        peers.commit(*range(1, behind + 1), data=b"")
        await peers.audience.wait(behind)
        assert [len(lot) for lot in peers.heard["b"]] == [told]
        assert b.acknowledged == behind

    with_peers(body)


def test_one_that_cannot_be_reached_is_told_again() -> None:
    async def body(peers: Peers) -> None:
        b = peers.follows("b")
        peers.refuses["b"] = Unavailable("it is just starting")
        peers.commit(1)
        await passes(2.5 * RETRY_S)
        assert peers.heard["b"] == [[1]] * 3
        assert b.acknowledged == 0
        peers.refuses.clear()
        await peers.audience.wait(1)
        assert (b.acknowledged, b.gone, len(b.backlog)) == (1, False, 0)

    with_peers(body)


def test_one_that_says_that_it_does_not_follow_is_gone() -> None:
    async def body(peers: Peers) -> None:
        b, c = peers.follows("b"), peers.follows("c")
        peers.refuses["b"] = NotOwner("it follows somebody else")
        peers.commit(1)
        assert await took(lambda: peers.audience.wait(1)) < 0.1
        assert (b.gone, c.gone) == (True, False)
        peers.commit(2)
        await peers.audience.wait(2)
        assert peers.heard == {"b": [[1]], "c": [[1], [2]]}

    with_peers(body)


def test_a_node_is_told_later_of_what_it_forwarded_itself() -> None:
    async def body(peers: Peers) -> None:
        peers.follows("b")
        peers.follows("c")
        with peers.audience.forwarding("b"):
            with peers.audience.forwarding("b"):
                peers.commit(1)
            peers.commit(2)
            await peers.audience.wait(2, besides="b")
        assert peers.heard["b"] == []
        await passes(LATE_S * 1.1)
        assert peers.heard["b"] == [[1, 2]]
        peers.commit(3)  # no request of its own any more: at once
        await passes(LATE_S / 2)
        assert peers.heard["b"] == [[1, 2], [3]]

    with_peers(body)


def test_whoever_waits_for_that_node_has_it_told_at_once() -> None:
    async def body(peers: Peers) -> None:
        peers.follows("b")
        with peers.audience.forwarding("b"):
            peers.commit(1)
            assert await took(lambda: peers.audience.wait(1)) < LATE_S

    with_peers(body)
