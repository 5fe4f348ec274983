"""The catalog on etcd while members die, stop and lose answers: nothing lost, nothing twice, leases that last."""

import pathlib
from collections.abc import Iterator
from contextlib import aclosing

import pytest
import trio

from metadata import etcd_calls, etcd_watch
from metadata.catalog import Change, Event
from metadata.catalog_etcd import create_etcd_catalog
from metadata.errors import NotFound, Unavailable
from metadata.etcd_address import parse_etcd_address
from tests.etcd_members import EtcdMembers
from tests.metadata.etcd_catalogs import (
    FIRST,
    Counter,
    assert_none_lost_none_twice,
    catalog_at,
    read_count,
    run,
    wait_s,
)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    """One member, for all tests that leave it as it was."""
    with EtcdMembers(tmp_path_factory.mktemp("one")) as members:
        yield members


@pytest.fixture
def three(tmp_path: pathlib.Path) -> Iterator[EtcdMembers]:
    """Three members, to be killed."""
    with EtcdMembers(tmp_path, 3) as members:
        yield members


class TestMembersThatDie:
    def test_counters_are_exact_while_each_member_is_killed_and_started_again(
        self, three: EtcdMembers
    ) -> None:
        address = parse_etcd_address(three.url)
        create_etcd_catalog(address, "pool", first=FIRST)

        async def main() -> None:
            async with catalog_at(three.url) as here, catalog_at(three.url) as there:
                counters = [Counter(catalog) for catalog in (here, there) for _ in range(3)]
                is_over = False

                async def count(counter: Counter) -> None:
                    while not is_over:
                        await counter.count_once()

                async def progress(steps: int) -> None:
                    target = await read_count(here) + steps
                    while await read_count(here) < target:
                        await trio.lowlevel.checkpoint()

                async with trio.open_nursery() as nursery:
                    for counter in counters:
                        nursery.start_soon(count, counter)
                    leader = await trio.to_thread.run_sync(three.leader)
                    for number in (leader, (leader + 1) % 3, (leader + 2) % 3):
                        await progress(10)
                        await trio.to_thread.run_sync(three.kill, number)
                        await progress(10)
                        three.start(number)
                        await trio.to_thread.run_sync(three.wait_ready)
                    await progress(10)
                    is_over = True
                assert_none_lost_none_twice(counters, await read_count(there))
                assert sum(len(counter.counted) for counter in counters) >= 50

        run(main)

    def test_a_stopped_leader_that_wakes_up_does_nothing_twice(self, three: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(three.url), "pool", first=FIRST)

        async def main() -> None:
            async with catalog_at(three.url) as catalog:
                counters = [Counter(catalog) for _ in range(4)]
                for _ in range(2):
                    leader = await trio.to_thread.run_sync(three.leader)
                    three.pause(leader)
                    async with trio.open_nursery() as nursery:
                        for counter in counters:
                            nursery.start_soon(counter.count, len(counter.counted) + 5)
                    three.wake(leader)
                    async with trio.open_nursery() as nursery:
                        for counter in counters:
                            nursery.start_soon(counter.count, len(counter.counted) + 5)
                assert_none_lost_none_twice(counters, await read_count(catalog))

        run(main)

    def test_without_most_members_calls_fail_in_time_and_go_on_by_themselves(
        self, three: EtcdMembers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create_etcd_catalog(parse_etcd_address(three.url), "pool", first=FIRST)
        monkeypatch.setattr(etcd_calls, "CALL_S", 3.0)
        monkeypatch.setattr(etcd_calls.EtcdCalls.call, "__kwdefaults__", {"deadline_s": 3.0})

        async def main() -> None:
            async with catalog_at(three.url) as catalog:
                for number in (1, 2):
                    await trio.to_thread.run_sync(three.kill, number)
                with pytest.raises(Unavailable, match="the catalog does not answer: "):
                    await catalog.read(b"")
                counter = Counter(catalog)
                await counter.count_once()
                with pytest.raises(Unavailable):
                    await catalog.transact(Change(puts=((b"n", b"100"),)))
                three.start(1)
                await trio.to_thread.run_sync(three.wait_ready)
                (row,), _ = await catalog.read(b"n")
                await catalog.transact(Change(((b"n", row.revision),), puts=((b"n", b"200"),)))
                three.start(2)
                await trio.to_thread.run_sync(three.wait_ready)
                assert (
                    await read_count(catalog) == 200
                )  # not what was given up before: that can never be done now

        run(main)

    def test_a_watch_misses_nothing_while_members_die(self, three: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(three.url), "pool", first=FIRST)

        async def main() -> None:
            async with catalog_at(three.url) as writer, catalog_at(three.url) as reader:
                _, start = await reader.read(b"")
                seen: list[Event] = []
                counter = Counter(writer)

                async def follow(until: int) -> None:
                    async with aclosing(reader.watch(b"n", after=start)) as watch:
                        async for events in watch:
                            seen.extend(events)
                            if seen[-1].value == b"%d" % until:
                                return

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(follow, 60)
                    for number in range(3):
                        await counter.count(20 * number + 10)
                        await trio.to_thread.run_sync(three.kill, number)
                        await counter.count(20 * number + 20)
                        three.start(number)
                        await trio.to_thread.run_sync(three.wait_ready)
                assert [event.value for event in seen] == [b"%d" % number for number in range(1, 61)]
                revisions = [event.revision for event in seen]
                assert revisions == sorted(set(revisions))

        run(main)

    def test_a_watch_leaves_a_member_that_says_nothing(
        self, three: EtcdMembers, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        create_etcd_catalog(parse_etcd_address(three.url), "pool", first=FIRST)
        monkeypatch.setattr(etcd_watch, "SILENCE_S", 0.5)

        async def main() -> None:
            async with catalog_at(three.url) as reader:
                _, start = await reader.read(b"")
                watched = (await trio.to_thread.run_sync(three.leader) + 1) % 3
                others = [port for number, port in enumerate(three.client_ports) if number != watched]
                reader._calls._first = watched
                async with (
                    catalog_at("etcd://" + ",".join(f"127.0.0.1:{port}" for port in others)) as writer,
                    aclosing(reader.watch(b"", after=start)) as watch,
                ):
                    await writer.transact(Change(puts=((b"n", b"1"),)))
                    assert [event.value for event in await anext(watch)] == [b"1"]
                    three.pause(watched)
                    await writer.transact(Change(puts=((b"n", b"2"),)))
                    assert [event.value for event in await anext(watch)] == [b"2"]
                    three.wake(watched)

        run(main)


class TestWhatWasNotAnswered:
    def test_a_transaction_that_was_done_without_an_answer_is_done_once(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "lost answers", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "lost answers") as catalog:
                (member,) = catalog._calls._members
                ask, lost = member.call, 0

                async def lose_the_first_answers(verb: str, *words: object, **more: object) -> object:
                    nonlocal lost
                    answer = await ask(verb, *words, **more)  # type: ignore[arg-type]
                    if verb == "kv/txn" and lost < 2:
                        lost += 1
                        raise etcd_calls.Unreachable("lost")
                    return answer

                (row,), _ = await catalog.read(b"n")
                member.call = lose_the_first_answers  # type: ignore[method-assign,assignment]
                revision = await catalog.transact(
                    Change(((b"n", row.revision),), puts=((b"n", b"1"), (b"other", b"")))
                )
                assert lost == 2
                rows, now = await catalog.read(b"")
                assert [(row.key, row.value, row.revision) for row in rows] == [
                    (b"n", b"1", revision),
                    (b"other", b"", revision),
                ]
                assert now == revision

        run(main)

    def test_a_transaction_given_up_is_not_done_after_the_next_one(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "given up", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "given up") as catalog:
                await catalog.transact(Change(puts=((b"m", b""),)))
                (member,) = catalog._calls._members
                ask, held = member.call, list[tuple[str, object]]()

                async def be_late() -> None:
                    with trio.move_on_after(0.05):
                        member.call = never  # type: ignore[method-assign,assignment]
                        await catalog.transact(Change(puts=((b"n", b"late"),)))

                async def never(verb: str, message: object, **more: object) -> object:
                    held.append((verb, message))
                    return await trio.sleep_forever()

                await be_late()
                member.call = ask  # type: ignore[method-assign]
                await catalog.transact(Change(puts=((b"n", b"next"),)))
                ((verb, message),) = held
                answer = await ask(verb, message)  # type: ignore[arg-type]
                assert not answer.get("succeeded")
                assert [row.value for row in (await catalog.read(b"n"))[0]] == [b"next"]

        run(main)

    def test_one_that_was_done_late_does_not_confuse_the_next_one(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "done late", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "done late") as catalog:
                await catalog.transact(Change(puts=((b"m", b""),)))
                (member,) = catalog._calls._members
                ask = member.call

                async def never_answered(verb: str, *words: object, **more: object) -> object:
                    await ask(verb, *words, **more)  # type: ignore[arg-type]
                    return await trio.sleep_forever()

                member.call = never_answered  # type: ignore[method-assign,assignment]
                with trio.move_on_after(0.5):
                    await catalog.transact(Change(puts=((b"n", b"late"),)))
                member.call = ask  # type: ignore[method-assign]
                (row,), _ = await catalog.read(b"n")
                assert row.value == b"late"
                await catalog.transact(Change(((b"n", row.revision),), puts=((b"n", b"next"),)))
                assert [row.value for row in (await catalog.read(b"n"))[0]] == [b"next"]

        run(main)


class TestLeases:
    def test_a_client_that_pauses_finds_its_lease_ended(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "pause", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "pause") as catalog:
                lease = await catalog.grant_lease(2)
                revision = await catalog.transact(Change(puts=((b"session/a", b"x"),)), lease=lease)
                for _ in range(2):
                    await catalog.keep_alive(lease)
                async with aclosing(catalog.watch(b"session/", after=revision)) as watch:
                    while True:
                        events = await anext(watch)
                        if events[-1].value is None:
                            break
                with pytest.raises(NotFound):
                    await catalog.keep_alive(lease)
                with pytest.raises(NotFound):
                    await catalog.transact(Change(puts=((b"session/a", b"x"),)), lease=lease)

        run(main)

    def test_a_lease_stays_its_time_after_the_last_keep_alive_whoever_leads(self, three: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(three.url), "pool", first=FIRST)

        async def main() -> None:
            async with catalog_at(three.url) as catalog:
                lease = await catalog.grant_lease(4)
                await catalog.transact(Change(puts=((b"session/a", b"x"),)), lease=lease)
                for _ in range(2):
                    leader = await trio.to_thread.run_sync(three.leader)
                    three.pause(leader)  # it alone knows when the lease ends
                    asked_s = trio.current_time()
                    await catalog.keep_alive(lease)
                    await wait_s(2.5)
                    three.wake(leader)  # and would have it end by its own reckoning
                    while trio.current_time() < asked_s + 3.5:
                        rows, _ = await catalog.read(b"session/")
                        assert rows or trio.current_time() > asked_s + 4
                    await catalog.keep_alive(lease)
                await catalog.revoke(lease)
                assert (await catalog.read(b"session/"))[0] == []

        run(main)

    def test_a_lease_lives_on_after_a_keep_alive_whose_answer_was_lost(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "lost keep alive", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "lost keep alive") as catalog:
                lease = await catalog.grant_lease(5)
                await catalog.transact(Change(puts=((b"session/a", b"x"), (b"session/b", b"y"))), lease=lease)
                (member,) = catalog._calls._members
                ask = member.call

                async def never_answered(verb: str, *words: object, **more: object) -> object:
                    answer = await ask(verb, *words, **more)  # type: ignore[arg-type]
                    return answer if verb != "kv/txn" else await trio.sleep_forever()

                member.call = never_answered  # type: ignore[method-assign,assignment]
                with trio.move_on_after(0.5):
                    await catalog.keep_alive(lease)
                member.call = ask  # type: ignore[method-assign]
                await catalog.keep_alive(lease)
                assert len((await catalog.read(b"session/"))[0]) == 2
                await catalog.transact(Change(puts=((b"session/b", b"for ever"),)))
                await catalog.keep_alive(lease)
                await catalog.revoke(lease)
                assert [row.key for row in (await catalog.read(b"session/"))[0]] == [b"session/b"]

        run(main)

    def test_rows_written_while_their_lease_is_kept_alive_live_on(self, one: EtcdMembers) -> None:
        create_etcd_catalog(parse_etcd_address(one.url), "rows of a lease", first=FIRST)

        async def main() -> None:
            async with catalog_at(one.url, "rows of a lease") as catalog:
                lease = await catalog.grant_lease(5)
                await catalog.transact(Change(puts=((b"session/a", b"x"),)), lease=lease)

                async def write() -> None:
                    for number in range(20):
                        await catalog.transact(Change(puts=((b"session/%d" % number, b""),)), lease=lease)

                async def keep() -> None:
                    for _ in range(20):
                        await catalog.keep_alive(lease)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(write)
                    nursery.start_soon(keep)
                await catalog.keep_alive(lease)
                assert len((await catalog.read(b"session/"))[0]) == 21
                await catalog.revoke(lease)
                assert (await catalog.read(b"session/"))[0] == []

        run(main)
