"""The embedded catalog's leases: what a clock that is set, a machine that restarts and a busy disk do to them."""

import pathlib
import sqlite3

import pytest
import trio

from metadata import boot_clock, catalog_sqlite, local_disk
from metadata.catalog import Change
from metadata.catalog_sqlite import SqliteCatalog, create_sqlite_catalog, open_sqlite_catalog
from metadata.errors import NoSpace, NotFound


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "catalog.sqlite"
    create_sqlite_catalog(path)
    return path


async def is_there(catalog: SqliteCatalog, key: bytes) -> bool:
    await catalog.transact(Change(puts=((b"any", b""),)))  # which ends the leases that are over
    return bool((await catalog.read(key))[0])


def test_leases_go_by_a_clock_that_nobody_sets(path: pathlib.Path) -> None:
    async def main() -> None:
        catalog = await open_sqlite_catalog(path)
        before_ns = boot_clock.boot_time_ns()
        await catalog.grant_lease(60)
        ((ends_ns,),) = catalog._db.execute("SELECT ends_ns FROM lease").fetchall()
        assert before_ns <= ends_ns - 60 * 10**9 <= boot_clock.boot_time_ns()
        await catalog.aclose()

    trio.run(main)


def test_rows_of_a_lease_that_is_over_are_gone(path: pathlib.Path) -> None:
    async def main() -> None:
        now_ns = 10**15
        catalog = await open_sqlite_catalog(path, clock_ns=lambda: now_ns)
        lease = await catalog.grant_lease(60)
        await catalog.transact(Change(puts=((b"session", b""),)), lease=lease)
        now_ns += 59 * 10**9
        await catalog.transact(Change(puts=((b"other", b""),)))
        assert await is_there(catalog, b"session")
        now_ns += 2 * 10**9
        await catalog.transact(Change(puts=((b"other", b"2"),)))
        assert not await is_there(catalog, b"session")
        await catalog.aclose()

    trio.run(main)


def test_no_lease_survives_the_machine_s_restart(path: pathlib.Path) -> None:
    async def main() -> None:
        before = await open_sqlite_catalog(path, clock_ns=lambda: 10**15)
        lease = await before.grant_lease(60)
        await before.transact(Change(puts=((b"key", b""),)), lease=lease)
        second = await open_sqlite_catalog(path, clock_ns=lambda: 10**15)  # of the same start: it stays
        assert await is_there(second, b"key")
        await before.keep_alive(lease)
        await before.aclose()
        await second.aclose()
        after = await open_sqlite_catalog(path, clock_ns=lambda: 10**9, boot=lambda: 4711)
        assert not await is_there(after, b"key")
        with pytest.raises(NotFound):
            await after.keep_alive(lease)
        lease = await after.grant_lease(60)
        await after.keep_alive(lease)
        await after.aclose()

    trio.run(main)


def test_keeping_alive_waits_for_no_sync_and_everything_else_does(path: pathlib.Path) -> None:
    async def main() -> None:
        catalog = await open_sqlite_catalog(path)
        lease = await catalog.grant_lease(60)
        levels: list[tuple[str, int]] = []

        def note(statement: str) -> None:
            if statement.startswith(("UPDATE", "INSERT")):
                words = statement.split()
                ((level,),) = reader.execute("PRAGMA synchronous")
                levels.append((words[0] if words[0] == "INSERT" else words[1], level))

        reader = catalog._db
        catalog._db.set_trace_callback(note)
        await catalog.keep_alive(lease)
        await catalog.transact(Change(puts=((b"key", b""),)))
        catalog._db.set_trace_callback(None)
        await catalog.aclose()
        normal, full = 1, 2
        assert ("lease", normal) in levels
        assert {level for what, level in levels if what != "lease"} == {full}

    trio.run(main)


def test_a_catalog_of_before_there_were_boots_is_taken_over(path: pathlib.Path) -> None:
    db = sqlite3.connect(path)
    db.execute("INSERT INTO lease (ttl_ns, ends_ns) VALUES (1000000000, 4000000000000000000)")
    db.commit()
    db.close()

    async def main() -> None:
        catalog = await open_sqlite_catalog(path)
        with pytest.raises(NotFound):
            await catalog.keep_alive(1)
        await catalog.aclose()

    trio.run(main)


def test_a_full_disk_keeps_no_node_from_having_a_session(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        catalog = await open_sqlite_catalog(path)
        await catalog.transact(Change(puts=((b"any", b""),)))
        monkeypatch.setattr(local_disk, "free_bytes", lambda folder: 0)
        db, give_up = catalog._db, local_disk.Reserve.give_up
        ((pages,),) = db.execute("PRAGMA page_count").fetchall()
        db.execute(f"PRAGMA max_page_count = {pages}")

        def give_up_and_make_room(self: local_disk.Reserve) -> bool:
            db.execute(f"PRAGMA max_page_count = {pages + 100}")
            return give_up(self)

        monkeypatch.setattr(local_disk.Reserve, "give_up", give_up_and_make_room)
        lease = await catalog.grant_lease(60)
        with pytest.raises(NoSpace):
            await catalog.transact(Change(puts=((b"big", bytes(100_000)),)))
        await catalog.transact(Change(puts=((b"session/one", bytes(100_000)),)), lease=lease)
        await catalog.keep_alive(lease)
        await catalog.aclose()

    trio.run(main)


def test_a_catalog_on_a_full_disk_is_opened_all_the_same(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect, refused = catalog_sqlite._connect, list[bool]()
    path.with_name("catalog.reserve").write_bytes(bytes(local_disk.RESERVE_BYTES))

    def no_room_at_first(where: pathlib.Path) -> sqlite3.Connection:
        if path.with_name("catalog.reserve").stat().st_size:
            refused.append(True)
            raise NoSpace("the pool is full")
        return connect(where)

    async def main() -> None:
        monkeypatch.setattr(catalog_sqlite, "_connect", no_room_at_first)
        catalog = await open_sqlite_catalog(path)
        await catalog.aclose()
        assert refused == [True]
        path.with_name("catalog.reserve").unlink()
        monkeypatch.setattr(catalog_sqlite, "_connect", _refuse)
        with pytest.raises(NoSpace):
            await open_sqlite_catalog(path)

    trio.run(main)


def _refuse(_path: pathlib.Path) -> sqlite3.Connection:
    raise NoSpace("the pool is full")
