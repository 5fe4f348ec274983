"""The owner's half of publication: who may subscribe, what a subscription pins, who is told of a new owner or daemon."""

import pathlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from metadata.errors import InvalidRequest, NotOwner, Unavailable
from replication.cluster import SESSION_S, SUBSCRIPTION_S, Answer
from replication.commit import flush
from replication.head import Head
from replication.publication import MOVED, RENEW, STARTED, SUBSCRIBE, UNSUBSCRIBE
from replication.publisher import GRACE_S, NEAR_VERSIONS, Publisher
from replication.vdisks import Vdisks
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import B, block, close_and_rest, create, expect_errors, run, write
from tests.replication.sharing import company_of, writer

V = 20


class Owner:
    """Node a, which owns a vdisk with one commit, and its peer b, whose calls the test makes itself."""

    def __init__(self, cluster: ClusterRig, vdisks: Vdisks, head: Head) -> None:
        self.cluster, self.vdisks, self.head = cluster, vdisks, head
        self.publisher: Publisher = company_of(vdisks).publisher
        self._peer, self._serial = cluster.switch.join("b"), 0
        self.now_s = vdisks.workspace.clock_s()
        vdisks.workspace.clock_s = lambda: self.now_s
        for verb in (MOVED, STARTED):
            self._peer.serve(verb, self._hear)
        self.heard: list[dict[str, Any]] = []

    async def _hear(self, _node: str, values: Any, _data: bytes) -> Answer:
        await trio.lowlevel.checkpoint()
        self.heard.append(dict(values))
        return {}, b""

    async def ask(self, verb: str, **values: object) -> Any:
        named, _ = await self._peer.call("a", verb, values, deadline_s=10)
        return named

    async def subscribe(self, *, vdisk: int = V, version: int = 0) -> Any:
        self._serial += 1
        return await self.ask(SUBSCRIBE, vdisk=vdisk, version=version, serial=self._serial)

    async def commit(self, count: int = 1) -> None:
        for number in range(count):
            await write(self.head, 0, block(number))
            await flush(self.head)


def with_owner(folder: pathlib.Path, body: Callable[[Owner], Awaitable[None]]) -> None:
    async def scenario() -> None:
        async with ClusterRig(folder).running() as cluster:
            a = await cluster.start("a")
            head = await create(a, V, 4 * B)
            owner = Owner(cluster, a, head)
            await owner.commit()
            await body(owner)
            cluster.switch.leave("b")
            cluster.switch.expire("b")

    run(scenario)


def test_a_subscriber_hears_where_the_vdisk_is_and_is_told_from_there(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        head = owner.head
        assert head.audience is None
        said = await owner.subscribe()
        assert (said["version"], said["epoch"]) == (head.log.version, head.log.epoch)
        assert (said["place"], said["check"]) == (head.log.record_place, head.log.record_check)
        assert said["is_active"]
        assert head.audience is not None
        assert owner.publisher.statistics() == {V: {"b": head.log.version}}
        assert owner.publisher.has_subscribers(V)
        assert not owner.publisher.has_subscribers(V + 1)

    with_owner(tmp_path, body)


@pytest.mark.parametrize(("behind", "active"), [(NEAR_VERSIONS, True), (NEAR_VERSIONS + 1, False)])
def test_one_that_is_far_behind_is_not_waited_for_yet(
    behind: int, active: bool, tmp_path: pathlib.Path
) -> None:
    async def body(owner: Owner) -> None:
        await owner.commit(NEAR_VERSIONS + 1)
        said = await owner.subscribe(version=owner.head.log.version - behind)
        assert said["is_active"] is active
        assert ("b" in owner.publisher.statistics()[V]) is active
        assert owner.publisher.has_subscribers(V)  # it pins all the same

    with_owner(tmp_path, body)


def test_a_vdisk_at_rest_is_followed_without_being_loaded(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        version = owner.head.log.version
        await close_and_rest(owner.vdisks, V)
        assert V not in owner.vdisks.heads
        assert (await owner.subscribe())["version"] == version
        assert V not in owner.vdisks.heads
        await writer(owner.vdisks, V)
        assert owner.vdisks.heads[V].audience is not None

    with_owner(tmp_path, body)


def test_nobody_subscribes_to_what_this_node_does_not_own_or_is_not_sure_of(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        with pytest.raises(NotOwner, match="another node's"):
            await owner.subscribe(vdisk=V + 1)
        for values in ({"vdisk": V, "version": 0}, {"vdisk": -1, "version": 0, "serial": 1}):
            with pytest.raises(InvalidRequest, match="lacks a number"):
                await owner.ask(SUBSCRIBE, **values)
        owner.cluster.switch.expire("a")
        with pytest.raises(Unavailable, match="not sure of its session"):
            await owner.subscribe()
        with pytest.raises(Unavailable, match="not sure of its session"):
            await owner.ask(RENEW, vdisks=[V], terms=[1])
        owner.cluster.switch.live.add("a")
        assert owner.head.audience is None

    with_owner(tmp_path, body)


def test_a_renewal_says_what_is_lost(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        term = (await owner.subscribe())["term"]
        assert await owner.ask(RENEW, vdisks=[V, V + 1], terms=[term, 1]) == {"lost": [V + 1]}
        owner.now_s += SUBSCRIPTION_S - 0.1
        assert await owner.ask(RENEW, vdisks=[V], terms=[term]) == {"lost": []}
        assert await owner.ask(RENEW, vdisks=[V], terms=[term + 1]) == {"lost": [V]}
        owner.now_s += SUBSCRIPTION_S
        assert await owner.ask(RENEW, vdisks=[V], terms=[term]) == {"lost": [V]}
        assert not owner.publisher.has_subscribers(V)

    with_owner(tmp_path, body)


def test_who_unsubscribes_is_forgotten_unless_the_call_is_an_old_one(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        await owner.subscribe()
        await owner.subscribe()
        await owner.ask(UNSUBSCRIBE, vdisks=[V, V + 1], serial=1)
        assert owner.publisher.has_subscribers(V)
        await owner.ask(UNSUBSCRIBE, vdisks=[V], serial=2)
        assert not owner.publisher.has_subscribers(V)
        assert owner.head.audience is None
        assert owner.publisher.statistics() == {}

    with_owner(tmp_path, body)


def test_after_a_takeover_subscribers_are_expected_for_as_long_as_a_session(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        owner.publisher.note_taken_over(V)
        owner.now_s += SESSION_S - 0.1
        assert owner.publisher.has_subscribers(V)
        assert not owner.publisher.has_subscribers(V + 1)
        owner.now_s += 0.1
        assert not owner.publisher.has_subscribers(V)

    with_owner(tmp_path, body)


def test_a_new_daemon_tells_all_and_collects_nothing_until_they_are_back(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        assert not owner.publisher.has_subscribers(V)
        await owner.publisher.announce_start()
        assert owner.heard == [{}]
        owner.now_s += GRACE_S - 0.1
        assert owner.publisher.has_subscribers(V)
        owner.now_s += 0.1
        assert not owner.publisher.has_subscribers(V)

    with_owner(tmp_path, body)


def test_a_new_owner_is_announced_to_all_others_that_are_live(tmp_path: pathlib.Path) -> None:
    async def body(owner: Owner) -> None:
        await owner.publisher.announce(V, 7)
        assert owner.heard == [{"vdisk": V, "epoch": 7}]
        owner.cluster.switch.leave("b")
        owner.cluster.switch.expire("b")
        await owner.publisher.announce(V, 8)
        assert len(owner.heard) == 1

    with_owner(tmp_path, body)


def test_a_silent_node_is_announced_to_for_as_long_as_it_may_trust_and_no_longer(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("replication.publisher.SUBSCRIPTION_S", 0.2)

    async def body(owner: Owner) -> None:
        owner.cluster.switch.leave("b")
        await owner.publisher.announce(V, 7)
        asked = [verb for source, _, verb in owner.cluster.switch.calls if source == "a"]
        assert asked.count(MOVED) > 1

    with_owner(tmp_path, body)


def test_a_vdisk_that_gets_another_owner_has_no_subscribers_here(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def body(owner: Owner) -> None:
        await owner.subscribe()
        mirror = company_of(owner.vdisks).mirror
        now = mirror.owners[V]
        mirror.note_owner(V, type(now)("b", now.epoch + 1))
        assert owner.publisher.statistics() == {}
        assert owner.head.audience is None

    with_owner(tmp_path, body)
    expect_errors(caplog, "deposed")
