"""How a node knows the newest version of another's vdisk: subscriptions, gaps, lost messages, silence, deaths."""

import pathlib
from contextlib import suppress

import pytest
import trio
import trio.testing

from metadata.errors import NotOwner, Unavailable
from metadata.ids import VdiskId
from replication.cluster import SUBSCRIPTION_S, Answer
from replication.commit import flush
from replication.follower import ASK_S, TRUSTED_S, Newest
from replication.head import Head
from replication.publication import SUBSCRIBE, UNSUBSCRIBE
from replication.vdisks import Vdisks
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import block, close_and_rest, create, passes, run, write
from tests.replication.sharing import company_of

V = 20


@pytest.fixture
def cluster(tmp_path: pathlib.Path) -> ClusterRig:
    return ClusterRig(tmp_path)


async def newest(vdisks: Vdisks) -> Newest:
    return await company_of(vdisks).follower.newest(V)


async def changed(head: Head, number: int) -> int:
    """A block written and flushed; the version then."""
    await write(head, (number % 64) * 4096, block(number))
    await flush(head)
    return head.log.version


def verbs(cluster: ClusterRig, source: str) -> list[str]:
    return [verb for node, _, verb in cluster.switch.calls if node == source and verb != "renew"]


def test_what_a_flush_has_published_is_known_without_asking(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            first = await changed(head, 1)
            found = await newest(b)
            assert (found.version, found.size) == (first, head.size)
            for number in range(2, 40):
                version = await changed(head, number)
                found = await newest(b)
                assert (found.version, found.size, found.own_blocks) == (version, head.size, head.own_blocks)
            assert verbs(cluster, "b") == ["subscribe"]
            assert verbs(cluster, "a") == ["publish"] * 38
            assert company_of(b).follower.gaps == 0
            assert b.workspace.index.state(V) == a.workspace.index.state(V)

    run(scenario)


def test_a_size_that_was_set_by_name_is_seen_elsewhere_at_once(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await changed(await create(a, V), 1)
            await newest(b)
            for size in (5 << 20, 5075, 0, 1 << 30):
                await a.truncate(VdiskId(V), size)
                assert (await newest(b)).size == size

    run(scenario)


def test_a_vdisk_that_nobody_follows_is_told_to_nobody(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, _ = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 1)
            assert head.audience is None
            assert cluster.switch.calls == []

    run(scenario)


def test_a_subscription_is_trusted_from_when_it_was_asked_for(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            await changed(await create(a, V), 1)
            answer_s = ASK_S * 0.9
            cluster.switch.delay_s = lambda source, target: (
                answer_s if (source, target) == ("a", "b") else 0.0
            )
            await newest(b)
            assert company_of(b).follower.newest_nowait(V) is not None
            cluster.switch.cut |= {("a", "b"), ("b", "a")}
            await passes(TRUSTED_S - answer_s + 0.2)
            assert company_of(b).follower.newest_nowait(V) is None

    run(scenario)


def test_a_call_that_comes_late_ends_no_newer_subscription(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 1)
            await newest(b)
            links, late = cluster.switch.nodes["b"], {"serial": 1}
            with pytest.raises(Unavailable):
                await links.call("a", SUBSCRIBE, {"vdisk": V, "version": 0, **late}, deadline_s=1.0)
            await links.call("a", UNSUBSCRIBE, {"vdisks": [V], **late}, deadline_s=1.0)
            version = await changed(head, 2)
            assert company_of(a).publisher.statistics()[V] == {"b": version}

    run(scenario)


def test_a_subscription_that_comes_twice_is_still_told_all(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 1)
            links, sent = cluster.switch.nodes["b"], list[tuple[str, str, dict[str, int]]]()
            call = links.call

            async def noted(
                node: str, verb: str, values: dict[str, int], data: bytes = b"", **how: float
            ) -> Answer:
                sent.append((node, verb, dict(values)))
                return await call(node, verb, values, data, **how)

            links.call = noted  # type: ignore[method-assign, assignment]
            await newest(b)
            (first,) = [values for _, verb, values in sent if verb == SUBSCRIBE]
            cluster.switch.cut.add(("a", "b"))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(changed, head, 2)  # b is not told
                while head.log.version == 1:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                with suppress(Unavailable):
                    await call("a", SUBSCRIBE, first, deadline_s=0.2)
                assert company_of(a).publisher.statistics()[V] == {"b": 1}
                cluster.switch.cut.clear()
            assert (await newest(b)).version == 2

    run(scenario)


def test_a_subscription_that_is_over_is_not_revived_by_a_call_that_comes_twice(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 1)
            await newest(b)
            follower, audience = company_of(b).follower, head.audience
            assert audience is not None
            again = {"vdisk": V, "version": 0, "serial": audience.subscribers["b"].serial}
            audience.remove("b")  # as if it had not been heard of for long
            await changed(head, 2)
            await cluster.switch.nodes["b"].call("a", SUBSCRIBE, again, deadline_s=1.0)
            await follower._renew("a", [V])
            assert (await newest(b)).version == 2

    run(scenario)


def test_one_far_behind_comes_close_before_it_is_waited_for(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            for number in range(100):
                await changed(head, number)
            found = await newest(b)
            assert found.version == head.log.version
            assert verbs(cluster, "b") == ["subscribe", "subscribe"]
            later = await changed(head, 7)
            assert (await newest(b)).version == later

    run(scenario)


def test_a_lost_publication_is_told_again(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 1)
            await newest(b)
            cluster.switch.cut.add(("b", "a"))  # it arrives, its acknowledgement does not
            async with trio.open_nursery() as nursery:
                nursery.start_soon(changed, head, 2)
                await passes(0.7)
                cluster.switch.cut.clear()
            assert (await newest(b)).version == head.log.version
            assert verbs(cluster, "a").count("publish") > 1
            assert company_of(b).follower.gaps == 0

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_gap_is_filled_from_the_pool(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 1)
            await newest(b)
            assert head.audience is not None
            subscriber = head.audience.subscribers["b"]
            head.audience = None
            await changed(head, 2)  # nobody is told of this one
            company_of(a).publisher.attach(head)
            assert subscriber is head.audience.subscribers["b"]
            version = await changed(head, 3)
            assert (await newest(b)).version == version
            assert company_of(b).follower.gaps == 1

    run(scenario)


def test_a_flush_waits_for_a_silent_peer_until_its_subscription_is_over_and_it_knows(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 1)
            old = await newest(b)
            cluster.switch.cut |= {("a", "b"), ("b", "a")}
            began = trio.current_time()
            await write(head, 0, block(9))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(flush, head)
                while head.audience is not None and head.audience.subscribers:
                    known = company_of(b).follower.newest_nowait(V)
                    assert known is None or known == old
                    await passes(0.1)
                assert (
                    company_of(b).follower.newest_nowait(V) is None
                )  # no longer trusted, before a stopped waiting
            assert trio.current_time() - began <= SUBSCRIPTION_S + 0.2
            assert (await newest(b)).version == head.log.version  # from the pool
            cluster.switch.cut.clear()
            await newest(b)
            later = await changed(head, 10)
            assert (await newest(b)).version == later
            assert verbs(cluster, "b")[-1] == "subscribe"

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_with_the_owner_dead_the_pool_says_what_is_newest(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 1)
            await newest(b)
            version = await changed(head, 2)
            await cluster.kill("a")
            assert (await newest(b)).version == version  # still trusted
            cluster.switch.expire("a")
            await passes(SUBSCRIPTION_S)
            assert company_of(b).follower.newest_nowait(V) is None
            assert (await newest(b)).version == version
            a = await cluster.start("a")
            later = await changed(await a.head(VdiskId(V)), 3)
            assert (await newest(b)).version == later

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_an_owner_whose_daemon_is_a_new_one_acknowledges_nothing_that_its_subscribers_miss(
    cluster: ClusterRig,
) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            await changed(head, 1)
            await newest(b)
            await changed(head, 2)
            await cluster.kill("a")
            a = await cluster.start("a")
            version = await changed(await a.head(VdiskId(V)), 3)
            assert (await newest(b)).version == version

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_a_resting_vdisk_can_be_followed_and_is_collected_only_when_nobody_does(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, V)
            version = await changed(head, 1)
            await close_and_rest(a, V)
            assert a.heads == {}
            assert (await newest(b)).version == version
            assert a.heads == {}  # not loaded for this
            assert a.is_followed(V)
            head = await a.head(VdiskId(V))
            assert (await newest(b)).version == version
            later = await changed(head, 2)
            assert (await newest(b)).version == later
            await passes(15)
            assert not a.is_followed(V)  # b has not used it for long

    run(scenario, clock=trio.testing.MockClock(autojump_threshold=0.05))


def test_one_does_not_follow_oneself(cluster: ClusterRig) -> None:
    async def scenario() -> None:
        async with cluster.running():
            a = await cluster.start("a")
            await changed(await create(a, V), 1)
            with pytest.raises(NotOwner):
                await newest(a)

    run(scenario)
