"""One contract for every kind of catalog, and what only the embedded one promises."""

import os
import pathlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing

import pytest
import trio
import trio.testing

from metadata import catalog_sqlite, local_disk
from metadata.catalog import (
    Catalog,
    Change,
    Compacted,
    Event,
    Row,
    decode_value,
    encode_value,
    exchange_key,
    id_in_key,
    inode_key,
    name_key,
    orphan_key,
    owner_key,
    session_key,
    vdisk_key,
)
from metadata.catalog_history import RecentEvents
from metadata.catalog_sqlite import (
    create_sqlite_catalog,
    open_sqlite_catalog,
)
from metadata.errors import Conflict, Corrupt, Exists, InvalidRequest, NoSpace, NotFound, Unavailable
from metadata.local_disk import filesystem_magic, refuse_network_filesystem
from tests.etcd_members import EtcdMembers
from tests.metadata.catalog_places import Place, etcd_place, memory_place, sqlite_place

Scenario = Callable[[Place], Awaitable[None]]


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdMembers]:
    """One member, for all tests of this module."""
    with EtcdMembers(tmp_path_factory.mktemp("etcd")) as members:
        yield members


@pytest.fixture(params=["sqlite", "memory", "etcd"])
def run(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Callable[[Scenario], None]:
    """Runs a scenario against one kind of catalog."""

    def run(scenario: Scenario) -> None:
        clock = trio.testing.MockClock()

        async def main() -> None:
            with trio.fail_after(60):
                if request.param == "sqlite":
                    async with sqlite_place(tmp_path) as place:
                        await scenario(place)
                elif request.param == "etcd":
                    members = request.getfixturevalue("etcd")
                    async with etcd_place(members, tmp_path.name) as place:
                        await scenario(place)
                else:
                    async with memory_place(clock) as place:
                        await scenario(place)

        trio.run(main, clock=clock if request.param == "memory" else None)

    return run


def put(*pairs: tuple[bytes, bytes]) -> Change:
    return Change(puts=pairs)


def newest(events: list[Event]) -> dict[bytes, bytes | None]:
    return {event.key: event.value for event in events}


class TestEveryCatalog:
    def test_rows_are_read_by_prefix_in_order_of_key(self, run: Callable[[Scenario], None]) -> None:
        async def scenario(place: Place) -> None:
            catalog = await place.node()
            first = await catalog.transact(put((b"name/2", b"two"), (b"name/1", b"one")))
            second = await catalog.transact(put((b"name/1", b"uno"), (b"other", b"")))
            assert second > first
            assert await catalog.read(b"name/") == (
                [Row(b"name/1", b"uno", second), Row(b"name/2", b"two", first)],
                second,
            )
            assert [row.key for row in (await catalog.read(b""))[0]] == [b"name/1", b"name/2", b"other"]
            assert await catalog.read(b"nothing") == ([], second)

        run(scenario)

    def test_names_may_hold_any_byte(self, run: Callable[[Scenario], None]) -> None:
        async def scenario(place: Place) -> None:
            catalog = await place.node()
            names = [b"\xff\xff", b"\x01", b"%", b"_", b"'", "\u00e9".encode()]
            await catalog.transact(put(*((name_key(7, name), b"") for name in names)))
            rows, _ = await catalog.read(name_key(7, b"\xff"))
            assert [row.key for row in rows] == [name_key(7, b"\xff\xff")]
            assert len((await catalog.read(name_key(7, b"")))[0]) == len(names)

        run(scenario)

    def test_a_failed_compare_changes_nothing(self, run: Callable[[Scenario], None]) -> None:
        async def scenario(place: Place) -> None:
            catalog = await place.node()
            revision = await catalog.transact(put((b"a", b"1")))
            for compares in [((b"a", 0),), ((b"a", revision + 1),), ((b"a", revision), (b"b", 1))]:
                with pytest.raises(Conflict):
                    await catalog.transact(Change(compares, puts=((b"b", b"2"),), deletes=(b"a",)))
            assert await catalog.read(b"") == ([Row(b"a", b"1", revision)], revision)

        run(scenario)

    def test_compares_that_hold_let_the_change_through(self, run: Callable[[Scenario], None]) -> None:
        async def scenario(place: Place) -> None:
            catalog = await place.node()
            revision = await catalog.transact(Change(((b"a", 0),), puts=((b"a", b"1"),)))
            after = await catalog.transact(
                Change(((b"a", revision), (b"b", 0)), puts=((b"b", b"2"),), deletes=(b"a",))
            )
            assert await catalog.read(b"") == ([Row(b"b", b"2", after)], after)
            with pytest.raises(Conflict):
                await catalog.transact(Change(((b"a", revision),)))
            again = await catalog.transact(Change(((b"a", 0),), puts=((b"a", b"3"),)))
            assert (await catalog.read(b"a"))[0] == [Row(b"a", b"3", again)]

        run(scenario)

    def test_a_change_that_writes_nothing_has_no_revision_of_its_own(
        self, run: Callable[[Scenario], None]
    ) -> None:
        async def scenario(place: Place) -> None:
            catalog = await place.node()
            revision = await catalog.transact(put((b"a", b"1")))
            assert await catalog.transact(Change(((b"a", revision),), deletes=(b"missing",))) == revision

        run(scenario)

    def test_of_two_nodes_that_compare_the_same_revision_one_wins(
        self, run: Callable[[Scenario], None]
    ) -> None:
        async def scenario(place: Place) -> None:
            nodes = [await place.node() for _ in range(4)]
            revision = await nodes[0].transact(put((b"n", b"0")))
            outcomes: list[bool] = []

            async def try_it(node: Catalog) -> None:
                try:
                    await node.transact(Change(((b"n", revision),), puts=((b"n", b"1"),)))
                    outcomes.append(True)
                except Conflict:
                    outcomes.append(False)

            async with trio.open_nursery() as nursery:
                for node in nodes:
                    nursery.start_soon(try_it, node)
            assert sorted(outcomes) == [False, False, False, True]

        run(scenario)

    def test_a_watch_sees_what_this_and_other_nodes_do(self, run: Callable[[Scenario], None]) -> None:
        async def scenario(place: Place) -> None:
            here, there = await place.node(), await place.node()
            start = await here.transact(put((b"name/a", b"0")))
            async with aclosing(here.watch(b"name/", after=start)) as watch:
                own = await here.transact(put((b"name/b", b"1"), (b"other", b"")))
                assert await anext(watch) == [Event(b"name/b", b"1", own)]
                await there.transact(Change(puts=((b"name/c", b"2"),), deletes=(b"name/a",)))
                assert newest(await anext(watch)) == {b"name/c": b"2", b"name/a": None}
                await there.transact(put((b"name/c", b"3")))
                last = await here.transact(Change(deletes=(b"name/b",)))
                seen: list[Event] = []
                while not seen or seen[-1].revision < last:
                    seen += await anext(watch)
                assert newest(seen) == {b"name/c": b"3", b"name/b": None}
                assert seen == sorted(seen, key=lambda event: event.revision)

        run(scenario)

    def test_a_watch_begins_in_the_past(self, run: Callable[[Scenario], None]) -> None:
        async def scenario(place: Place) -> None:
            here, there = await place.node(), await place.node()
            await here.transact(put((b"a", b"0")))
            start = await here.transact(put((b"b", b"0")))
            for number in range(5):
                await there.transact(put((b"c%d" % number, b"")))
            await there.transact(Change(deletes=(b"a",)))
            late = await place.node()
            for node in (here, late):
                seen: dict[bytes, bytes | None] = {}
                async with aclosing(node.watch(b"", after=start)) as watch:
                    while b"a" not in seen:
                        seen.update(newest(await anext(watch)))
                assert seen == {**{b"c%d" % number: b"" for number in range(5)}, b"a": None}

        run(scenario)

    def test_a_watch_from_too_long_ago_says_so(
        self, run: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(catalog_sqlite, "HISTORY_REVISIONS", 16)
        monkeypatch.setattr(catalog_sqlite, "PRUNE_EVERY", 8)

        async def scenario(place: Place) -> None:
            writer = await place.node()
            await writer.transact(put((b"a", b"0")))
            await writer.transact(Change(deletes=(b"a",)))
            for number in range(150):
                await writer.transact(put((b"b", b"%d" % number)))
            await place.forget_history()
            reader = await place.node()
            with pytest.raises(Compacted):
                async with aclosing(reader.watch(b"", after=1)) as watch:
                    await anext(watch)
            _, revision = await reader.read(b"")
            async with aclosing(reader.watch(b"", after=revision)) as watch:
                await writer.transact(put((b"b", b"last")))
                assert newest(await anext(watch)) == {b"b": b"last"}

        run(scenario)

    def test_many_tasks_lose_no_update(self, run: Callable[[Scenario], None]) -> None:
        async def scenario(place: Place) -> None:
            nodes = [await place.node(), await place.node()]
            await nodes[0].transact(put((b"n", b"0")))

            async def count(node: Catalog) -> None:
                for _ in range(5):
                    while True:
                        (row,), _ = await node.read(b"n")
                        value = b"%d" % (int(row.value) + 1)
                        try:
                            await node.transact(Change(((b"n", row.revision),), puts=((b"n", value),)))
                            break
                        except Conflict:
                            continue

            async with trio.open_nursery() as nursery:
                for number in range(6):
                    nursery.start_soon(count, nodes[number % 2])
            (row,), _ = await nodes[1].read(b"n")
            assert row.value == b"30"

        run(scenario)

    def test_rows_under_a_lease_end_with_it(self, run: Callable[[Scenario], None]) -> None:
        async def scenario(place: Place) -> None:
            here, there = await place.node(), await place.node()
            lease = await here.grant_lease(10)
            start = await here.transact(put((b"session/n", b"here")), lease=lease)
            await here.transact(put((b"kept", b"")))
            await place.let_pass(6)
            await here.keep_alive(lease)
            await place.let_pass(6)
            assert len((await there.read(b"session/"))[0]) == 1
            async with aclosing(there.watch(b"session/", after=start)) as watch:
                await place.let_pass(6)
                assert newest(await anext(watch)) == {b"session/n": None}
            with pytest.raises(NotFound):
                await here.keep_alive(lease)
            with pytest.raises(NotFound):
                await here.transact(put((b"session/n", b"here")), lease=lease)
            assert [row.key for row in (await here.read(b""))[0]] == [b"kept"]

        run(scenario)

    def test_a_revoked_lease_takes_its_rows_along(self, run: Callable[[Scenario], None]) -> None:
        async def scenario(place: Place) -> None:
            catalog = await place.node()
            lease, other = await catalog.grant_lease(10), await catalog.grant_lease(10)
            await catalog.transact(put((b"a", b""), (b"b", b"")), lease=lease)
            await catalog.transact(put((b"b", b"1")), lease=other)
            await catalog.transact(put((b"c", b"")), lease=lease)
            await catalog.transact(put((b"c", b"for ever")))
            await catalog.revoke(lease)
            await catalog.revoke(lease)
            assert [row.key for row in (await catalog.read(b""))[0]] == [b"b", b"c"]

        run(scenario)


def in_sqlite(folder: pathlib.Path, scenario: Scenario) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with sqlite_place(folder) as place:
                await scenario(place)

    trio.run(main)


def test_the_embedded_catalog_is_there_after_it_was_closed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "catalog.sqlite"
    create_sqlite_catalog(path)

    async def main() -> None:
        catalog = await open_sqlite_catalog(path)
        revision = await catalog.transact(put((b"a", b"1")))
        await catalog.aclose()
        catalog = await open_sqlite_catalog(path)
        assert await catalog.read(b"") == ([Row(b"a", b"1", revision)], revision)
        assert await catalog.damage() == []
        await catalog.aclose()

    trio.run(main)


def test_formatting_never_overwrites_a_catalog(tmp_path: pathlib.Path) -> None:
    create_sqlite_catalog(tmp_path / "catalog.sqlite")
    with pytest.raises(Exists):
        create_sqlite_catalog(tmp_path / "catalog.sqlite")


def opening(path: pathlib.Path) -> None:
    async def main() -> None:
        catalog = await open_sqlite_catalog(path)
        await catalog.aclose()

    trio.run(main)


def test_what_is_no_catalog_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotFound):
        opening(tmp_path / "missing.sqlite")
    (tmp_path / "garbage.sqlite").write_bytes(os.urandom(8192))
    with pytest.raises(Corrupt):
        opening(tmp_path / "garbage.sqlite")
    sqlite3.connect(tmp_path / "foreign.sqlite").close()
    (tmp_path / "foreign.sqlite").touch()
    with pytest.raises(Corrupt):
        opening(tmp_path / "foreign.sqlite")


def test_a_newer_catalog_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "catalog.sqlite"
    create_sqlite_catalog(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2")
    db.close()
    with pytest.raises(InvalidRequest, match="newer"):
        opening(path)


def test_the_embedded_catalog_is_refused_on_a_network_filesystem(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "catalog.sqlite"
    create_sqlite_catalog(path)

    async def main() -> None:
        with pytest.raises(InvalidRequest, match="nfs"):
            await open_sqlite_catalog(path, magic_of=lambda path: 0x6969)

    trio.run(main)
    refuse_network_filesystem(path, magic=0xEF53)


def test_the_filesystem_magic_is_the_kernel_s() -> None:
    assert filesystem_magic(pathlib.Path("/proc")) == 0x9FA0
    with pytest.raises(Unavailable):
        filesystem_magic(pathlib.Path("/proc/no such thing"))


@pytest.mark.parametrize("reopened", [False, True])
def test_a_full_disk_refuses_new_names_and_lets_old_ones_go(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, reopened: bool
) -> None:
    reserve = tmp_path / "catalog.reserve"

    async def scenario(place: Place) -> None:
        catalog = await place.connect()
        assert isinstance(catalog, catalog_sqlite.SqliteCatalog)
        await catalog.transact(put(*((b"name/%d" % number, bytes(3000)) for number in range(40))))
        assert reserve.stat().st_blocks * 512 == local_disk.RESERVE_BYTES
        with monkeypatch.context() as disk:
            disk.setattr(local_disk, "free_bytes", lambda folder: 0)
            if reopened:
                await catalog.aclose()
                catalog = await place.connect()
                assert isinstance(catalog, catalog_sqlite.SqliteCatalog)
            db = catalog._db
            (pages,) = db.execute("PRAGMA page_count").fetchone()
            db.execute(f"PRAGMA max_page_count = {pages}")
            with pytest.raises(NoSpace):
                await catalog.transact(put(*((b"more/%d" % number, bytes(3000)) for number in range(40))))
            assert (await catalog.read(b"more/"))[0] == []
            assert reserve.stat().st_size == local_disk.RESERVE_BYTES
            give_up = local_disk.Reserve.give_up

            def give_up_and_make_room(self: local_disk.Reserve) -> bool:
                db.execute(f"PRAGMA max_page_count = {pages + 100}")
                return give_up(self)

            disk.setattr(local_disk.Reserve, "give_up", give_up_and_make_room)
            await catalog.transact(Change(puts=((b"orphan/1", bytes(200_000)),), deletes=(b"name/1",)))
            assert reserve.stat().st_size == 0
            assert (await catalog.read(b"name/1"))[0][0].key == b"name/10"
            await catalog.transact(put((b"small", b"")))
            assert reserve.stat().st_size == 0
        await catalog.transact(put((b"small", b"")))
        assert reserve.stat().st_blocks * 512 == local_disk.RESERVE_BYTES
        await catalog.aclose()

    in_sqlite(tmp_path, scenario)


def test_a_damaged_file_is_told_apart_from_one_that_does_not_answer(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "catalog.sqlite"
    create_sqlite_catalog(path)

    async def main() -> None:
        catalog = await open_sqlite_catalog(path)
        await catalog.transact(put(*((b"%04d" % number, bytes(1000)) for number in range(200))))
        await catalog.aclose()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
        with pytest.raises(Corrupt):
            await open_sqlite_catalog(path)

    trio.run(main)


def test_another_connection_that_does_not_let_go_is_reported(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_sqlite, "BUSY_S", 0.01)

    async def scenario(place: Place) -> None:
        catalog = await place.node()
        other = sqlite3.connect(tmp_path / "catalog.sqlite", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Unavailable):
            await catalog.transact(put((b"a", b"")))
        other.execute("ROLLBACK")
        other.close()
        await catalog.transact(put((b"a", b"")))

    in_sqlite(tmp_path, scenario)


def test_tombstones_are_dropped_after_a_while(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog_sqlite, "HISTORY_REVISIONS", 16)
    monkeypatch.setattr(catalog_sqlite, "PRUNE_EVERY", 8)

    async def scenario(place: Place) -> None:
        catalog = await place.node()
        for number in range(100):
            await catalog.transact(put((b"%d" % number, b"")))
            await catalog.transact(Change(deletes=(b"%d" % number,)))
        assert isinstance(catalog, catalog_sqlite.SqliteCatalog)
        (rows,) = catalog._db.execute("SELECT count(*) FROM row").fetchone()
        assert rows <= 16

    in_sqlite(tmp_path, scenario)


def test_the_recent_events_are_bounded_and_whole() -> None:
    recent = RecentEvents(0, events_max=4)
    for revision in range(1, 5):
        recent.publish([Event(b"a", b"", revision), Event(b"b", b"", revision)], revision)
    assert recent.floor == 2
    assert recent.events_after(1, b"") is None
    found = recent.events_after(2, b"a")
    assert found is not None
    assert [event.revision for event in found] == [3, 4]
    recent.publish([Event(b"c", b"", 5)] * 6, 5)
    assert recent.events_after(4, b"") is None
    assert recent.events_after(5, b"") == []
    recent.restart(9)
    assert recent.events_after(8, b"") is None


def test_the_keys_are_these_bytes() -> None:
    assert inode_key(0x2A) == b"inode/000000000000002a"
    assert name_key(1, b"disk\xff") == b"name/0000000000000001/disk\xff"
    assert orphan_key(42) == b"orphan/000000000000002a"
    assert vdisk_key(42) == b"vdisk/000000000000002a"
    assert owner_key(42) == b"owner/000000000000002a"
    assert session_key("n\u00f6de") == b"session/n\xc3\xb6de"
    assert exchange_key("a") == b"exchange/a"
    assert id_in_key(b"inode/000000000000002a", b"inode/") == 42
    with pytest.raises(Corrupt):
        id_in_key(b"inode/", b"inode/")


def test_values_are_msgpack() -> None:
    assert encode_value({"kind": "f", "mtime": 1}) == b"\x82\xa4kind\xa1f\xa5mtime\x01"
    assert decode_value(b"key", encode_value([1, b"\xff", "x", None])) == [1, b"\xff", "x", None]
    with pytest.raises(Corrupt):
        decode_value(b"key", b"\xc1")


def test_no_statement_reads_all_rows_to_find_a_few(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "catalog.sqlite"
    create_sqlite_catalog(path, first=put(*((b"%d" % number, b"") for number in range(1000))))
    db = sqlite3.connect(path)
    statements = [
        catalog_sqlite._DELETE,
        catalog_sqlite._COMPARE,
        catalog_sqlite._KEYS_OF_LEASE,
        catalog_sqlite._READ,
        catalog_sqlite._SINCE,
        catalog_sqlite._PRUNE,
    ]
    for statement in statements:
        plan = db.execute(f"EXPLAIN QUERY PLAN {statement}", [1] * statement.count("?")).fetchall()
        assert plan
        assert not [step for *_, step in plan if "SCAN" in step or "TEMP" in step], statement
    db.close()
