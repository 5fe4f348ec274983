"""Sessions: begun, kept alive, doubtful in time, lost and begun anew; who is there; two nodes of one name."""

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from metadata.catalog import Change, session_key
from metadata.catalog_memory import MemoryCatalog
from metadata.errors import Exists, Unavailable
from replication.cluster import SESSION_S, Member
from replication.session import KEEP_ALIVE_S, MARGIN_S, Session


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    trio.run(scenario, clock=trio.testing.MockClock(autojump_threshold=0))


class Reached:
    """One node's way to the catalog; it can be cut, and the daemon behind it can be stopped."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self._catalog = catalog
        self.is_cut = False
        self.stopped_until = 0.0
        self.revoked = 0

    async def _pass(self) -> None:
        await trio.sleep_until(self.stopped_until)
        if self.is_cut:
            raise Unavailable("the catalog does not answer")

    async def read(self, prefix):  # type: ignore[no-untyped-def]
        await self._pass()
        return await self._catalog.read(prefix)

    async def transact(self, change, *, lease=0):  # type: ignore[no-untyped-def]
        await self._pass()
        return await self._catalog.transact(change, lease=lease)

    async def grant_lease(self, ttl_s: float) -> int:
        await self._pass()
        return await self._catalog.grant_lease(ttl_s)

    async def keep_alive(self, lease: int) -> None:
        await self._pass()
        await self._catalog.keep_alive(lease)

    async def revoke(self, lease: int) -> None:
        self.revoked += 1
        await self._catalog.revoke(lease)

    def watch(self, prefix, *, after):  # type: ignore[no-untyped-def]
        return self._catalog.watch(prefix, after=after)


def session_of(catalog: object, node: str, *, identity: str = "", is_alone: bool = False) -> Session:
    member = Member(node, "host", 1, identity or node)
    return Session(catalog, member, is_alone=is_alone, clock_s=trio.current_time)  # type: ignore[arg-type]


@asynccontextmanager
async def alive(session: Session) -> AsyncIterator[Session]:
    """The session, entered and running; it ends by itself, as after a crash."""
    async with session, trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        yield session
        nursery.cancel_scope.cancel()


class TestASession:
    def test_it_is_certain_as_long_as_it_is_kept_alive(self) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            async with alive(session_of(catalog, "one")) as session:
                for _ in range(50):
                    assert session.is_certain()
                    assert session.is_live("one")
                    await trio.lowlevel.checkpoint()
                    with trio.move_on_after(SESSION_S / 3):
                        await trio.sleep_forever()
                rows, _ = await catalog.read(session_key("one"))
                assert len(rows) == 1

        run(scenario)

    def test_it_stops_being_certain_before_anybody_can_take_over(self) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            reached = Reached(catalog)
            async with (
                alive(session_of(reached, "one")) as session,
                alive(session_of(catalog, "two")) as other,
            ):
                reached.is_cut = True
                doubtful_at = gone_at = math.inf
                while gone_at == math.inf:
                    now = trio.current_time()
                    if not session.is_certain():
                        doubtful_at = min(doubtful_at, now)
                    if not other.is_live("one"):
                        gone_at = now
                    with trio.move_on_after(0.05):
                        await trio.sleep_forever()
                assert doubtful_at + MARGIN_S / 2 < gone_at <= SESSION_S + KEEP_ALIVE_S + 0.2

        run(scenario)

    def test_an_answer_that_took_long_makes_it_certain_from_when_it_was_asked_for(self) -> None:
        class Slow(Reached):
            """Answers come late; what is asked is done at once."""

            async def keep_alive(self, lease: int) -> None:
                await super().keep_alive(lease)
                with trio.move_on_after(SESSION_S - MARGIN_S - 0.5):
                    await trio.sleep_forever()

        async def scenario() -> None:
            async with alive(session_of(Slow(MemoryCatalog()), "one")) as session:
                asked_s = KEEP_ALIVE_S
                with trio.move_on_at(asked_s + SESSION_S - MARGIN_S - 0.1):
                    await trio.sleep_forever()
                assert session.is_certain()
                with trio.move_on_at(asked_s + SESSION_S - MARGIN_S + 0.1):
                    await trio.sleep_forever()
                assert not session.is_certain()

        run(scenario)

    def test_a_catalog_that_is_away_for_a_moment_costs_nothing(self) -> None:
        async def scenario() -> None:
            reached = Reached(MemoryCatalog())
            async with alive(session_of(reached, "one")) as session:
                session.on_lost.append(trio.sleep_forever)  # would be noticed
                for _ in range(5):
                    reached.is_cut = True
                    with trio.move_on_after(SESSION_S / 2):
                        await trio.sleep_forever()
                    assert session.is_certain()
                    reached.is_cut = False
                    with trio.move_on_after(SESSION_S / 2):
                        await trio.sleep_forever()
                assert session.is_certain()

        run(scenario)

    def test_who_lost_its_session_looks_at_what_it_owns_before_it_is_certain_again(self) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            reached = Reached(catalog)
            events: list[str] = []
            async with alive(session_of(reached, "one")) as session:

                async def look() -> None:
                    rows, _ = await catalog.read(session_key("one"))
                    assert rows, "nobody may take over while it looks"
                    assert not session.is_certain()
                    events.append("looked")
                    if len(events) == 1:
                        raise Unavailable("try again")

                session.on_lost.append(look)
                reached.stopped_until = trio.current_time() + 3 * SESSION_S
                with trio.move_on_after(2 * SESSION_S):
                    await trio.sleep_forever()
                assert not session.is_certain()
                assert not session.is_live("one")
                with trio.move_on_after(2 * SESSION_S):
                    await trio.sleep_forever()
                assert session.is_certain()
                assert session.is_live("one")
                assert events == ["looked", "looked"]

        run(scenario)

    def test_a_lease_that_ended_too_early_makes_it_doubtful_at_once(self) -> None:
        """Such as when an operator restores the catalog: nobody's clock says so."""

        async def scenario() -> None:
            catalog = MemoryCatalog()
            reached, certain = Reached(catalog), list[bool]()
            async with alive(session_of(reached, "one")) as session:

                async def look() -> None:
                    certain.append(session.is_certain())

                session.on_lost.append(look)
                await catalog.revoke(session._lease)
                with trio.move_on_after(SESSION_S):
                    await trio.sleep_forever()
                assert certain == [False]
                assert session.is_certain()

        run(scenario)

    def test_a_node_that_leaves_ends_its_session_and_one_that_dies_does_not(self) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            reached = Reached(catalog)
            async with alive(session_of(reached, "one")):
                pass
            assert (await catalog.read(session_key("one")))[0]
            async with alive(session_of(reached, "one")) as session:  # the same identity: at once
                session.is_ending = True
            assert not (await catalog.read(session_key("one")))[0]
            assert reached.revoked == 1
            assert trio.current_time() == 0

        run(scenario)


class TestWhoIsThere:
    def test_members_come_and_go(self) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            async with alive(session_of(catalog, "one")) as one:
                async with alive(session_of(catalog, "two")) as two:
                    while not one.is_live("two"):
                        await one.wait_moved()
                    assert dict(one.members()) == dict(two.members())
                    assert one.members()["two"] == Member("two", "host", 1, "two")
                    two.is_ending = True
                while one.is_live("two"):
                    await one.wait_moved()
                assert set(one.members()) == {"one"}

        run(scenario)

    def test_a_row_that_cannot_be_read_is_nobody(self, caplog: pytest.LogCaptureFixture) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            async with alive(session_of(catalog, "one")) as one:
                await catalog.transact(Change(puts=((session_key("bad"), b"\xc1"),)))
                async with alive(session_of(catalog, "two")):
                    while not one.is_live("two"):
                        await one.wait_moved()
                assert set(one.members()) == {"one", "two"}

        run(scenario)
        assert "unreadable row" in caplog.text


class TestOneName:
    def test_a_second_node_of_a_live_one_s_name_is_refused(self) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            async with alive(session_of(catalog, "one")) as first:
                with pytest.raises(Exists, match=r"another node of this name .*--node host=host port=1"):
                    async with session_of(catalog, "one", identity="other"):
                        pass
                assert trio.current_time() > SESSION_S
                assert first.is_certain()

        run(scenario)

    def test_a_name_is_free_when_its_session_has_ended(self) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            async with session_of(catalog, "one"):
                pass
            async with session_of(catalog, "one", identity="other") as other:
                assert SESSION_S <= trio.current_time() < SESSION_S + 1
                assert other.is_certain()

        run(scenario)

    def test_who_holds_the_name_s_lock_need_not_wait(self) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            async with session_of(catalog, "one"):
                pass
            async with session_of(catalog, "one", identity="other", is_alone=True):
                assert trio.current_time() == 0

        run(scenario)

    def test_a_daemon_whose_name_was_taken_ends(self) -> None:
        async def scenario() -> None:
            catalog = MemoryCatalog()
            async with session_of(catalog, "one") as first, session_of(catalog, "one") as copy:
                with trio.fail_after(1):
                    with pytest.RaisesGroup(Exists):
                        await first.run()
                assert not first.is_certain()
                assert copy.is_certain()
                first.is_ending = True  # and does not end the session of the other
            assert (await catalog.read(session_key("one")))[0]

        run(scenario)
