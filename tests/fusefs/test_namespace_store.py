"""Carrying changes out: batches, conflicts, failures, and two nodes that end up with the same names."""

import pathlib
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial

import pytest
import trio
import trio.testing

from fusefs import namespace_store
from fusefs.namespace_store import BATCH_MAX, STORE_TIMES_S, NamespaceStore
from metadata.catalog import ROOT_ID, Catalog, Change, name_key, owner_key
from metadata.catalog_memory import MemoryCatalog
from metadata.catalog_sqlite import create_sqlite_catalog, open_sqlite_catalog
from metadata.errors import (
    Conflict,
    Corrupt,
    Exists,
    InvalidRequest,
    NoSpace,
    NotFound,
    Unavailable,
    VdiskfsError,
)
from metadata.namespace import Kind, Namespace
from metadata.namespace_plans import (
    RENAME_EXCHANGE,
    Birth,
    Deed,
    Entry,
    plan_create,
    plan_forget,
    plan_mkdir,
    plan_rename,
    plan_rmdir,
    plan_root,
    plan_unlink,
)
from tests.metadata.rows_in_a_dict import facts


class WatchedMemoryCatalog(MemoryCatalog):
    """Counts transactions, holds them back, and fails them on request."""

    def __init__(self, *, history_max: int = 1000) -> None:
        super().__init__(history_max=history_max)
        self.changes: list[Change] = []
        self.gate = trio.Event()
        self.gate.set()
        self.fail: Callable[[Change], VdiskfsError | None] = lambda change: None

    async def transact(self, change: Change, *, lease: int = 0) -> int:
        await self.gate.wait()
        error = self.fail(change)
        if error is not None:
            raise error
        self.changes.append(change)
        return await super().transact(change, lease=lease)


@asynccontextmanager
async def running(catalog: Catalog) -> AsyncIterator[NamespaceStore]:
    async with NamespaceStore(catalog) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        yield store
        nursery.cancel_scope.cancel()


async def create(store: NamespaceStore, parent: int, name: bytes, *, directory: bool = False) -> int:
    birth = Birth(await store.new_inode(), 0o644, 1, 1, 5)
    plan = plan_mkdir if directory else plan_create
    await store.commit(lambda ns: plan(ns, Entry(parent, name), birth=birth))
    return birth.inode


def in_memory(scenario: Callable[[WatchedMemoryCatalog], Awaitable[None]]) -> None:
    async def main() -> None:
        catalog = WatchedMemoryCatalog()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        with trio.fail_after(1000):
            await scenario(catalog)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


async def queue(nursery: trio.Nursery, *calls: Callable[[], Awaitable[object]]) -> None:
    """Start calls one after the other, each when the one before waits; the first one's plan is taken alone."""
    for call in calls:
        nursery.start_soon(call)
        await trio.testing.wait_all_tasks_blocked()


def test_what_is_committed_is_in_the_mirror_and_in_the_catalog() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as store:
            folder = await create(store, ROOT_ID, b"folder", directory=True)
            disk = await create(store, folder, b"disk")
            assert store.namespace.resolve(b"folder/disk") == disk
            assert [row.key for row in (await catalog.read(name_key(folder, b"")))[0]] == [
                name_key(folder, b"disk")
            ]
        async with running(catalog) as successor:
            assert facts(successor.namespace) == facts(store.namespace)

    in_memory(scenario)


def test_a_catalog_without_a_root_is_refused() -> None:
    async def main() -> None:
        with pytest.raises(Corrupt):
            async with NamespaceStore(MemoryCatalog()):
                pass

    trio.run(main)


def test_nobody_sees_what_is_not_durable_yet() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as store, trio.open_nursery() as nursery:
            await store.new_inode()
            before = facts(store.namespace)
            catalog.gate = trio.Event()
            await queue(nursery, *(partial(create, store, ROOT_ID, name) for name in (b"a", b"b", b"c")))
            assert facts(store.namespace) == before
            catalog.gate.set()
        assert {name for name, _ in store.namespace.children(ROOT_ID)} == {b"a", b"b", b"c"}

    in_memory(scenario)


def test_changes_that_come_together_share_a_transaction() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as store:
            await store.new_inode()
            catalog.changes.clear()
            catalog.gate = trio.Event()
            async with trio.open_nursery() as nursery:
                await queue(nursery, partial(create, store, ROOT_ID, b"first"))
                for number in range(BATCH_MAX):
                    nursery.start_soon(create, store, ROOT_ID, b"%d" % number)
                await trio.testing.wait_all_tasks_blocked()
                catalog.gate.set()
            assert len(catalog.changes) == 2
            assert len(list(store.namespace.children(ROOT_ID))) == BATCH_MAX + 1

    in_memory(scenario)


def test_each_of_a_batch_gets_its_own_outcome() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        outcomes: dict[str, str] = {}

        async def attempt(label: str, what: Callable[[], Awaitable[object]]) -> None:
            try:
                await what()
                outcomes[label] = "done"
            except (VdiskfsError, ZeroDivisionError) as exc:
                outcomes[label] = type(exc).__name__

        async with running(catalog) as store:
            folder = await create(store, ROOT_ID, b"folder", directory=True)
            deed = Deed("here", 9)

            async def remove() -> None:
                await store.commit(lambda ns: plan_rmdir(ns, Entry(ROOT_ID, b"folder"), deed=deed))

            async def broken() -> None:
                await store.commit(lambda ns: Change(deletes=(b"%d" % (1 // 0),)))

            async def nothing() -> None:
                await store.commit(lambda ns: Change())

            catalog.gate = trio.Event()
            async with trio.open_nursery() as nursery:
                calls: dict[str, Callable[[], Awaitable[object]]] = {
                    "first": partial(create, store, ROOT_ID, b"x"),
                    "remove": remove,
                    "late": partial(create, store, folder, b"late"),
                    "again": partial(create, store, ROOT_ID, b"x"),
                    "reuse": partial(create, store, ROOT_ID, b"folder"),
                    "broken": broken,
                    "nothing": nothing,
                }
                await queue(nursery, *(partial(attempt, label, what) for label, what in calls.items()))
                catalog.gate.set()
            assert outcomes == {
                "first": "done",
                "remove": "done",
                "late": "NotFound",
                "again": "Exists",
                "reuse": "done",
                "broken": "ZeroDivisionError",
                "nothing": "done",
            }
            assert store.namespace.inode(store.namespace.lookup(ROOT_ID, b"folder")).kind is Kind.FILE

    in_memory(scenario)


def test_a_batch_that_is_too_much_is_carried_out_one_by_one() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        def full(change: Change) -> VdiskfsError | None:
            big = name_key(ROOT_ID, b"big")
            return NoSpace("the pool is full") if any(key == big for key, _ in change.puts) else None

        failed: list[bytes] = []

        async def attempt(store: NamespaceStore, name: bytes) -> None:
            try:
                await create(store, ROOT_ID, name)
            except NoSpace:
                failed.append(name)

        async with running(catalog) as store:
            await store.new_inode()
            catalog.fail = full
            catalog.gate = trio.Event()
            async with trio.open_nursery() as nursery:
                names = (b"first", b"small", b"big", b"tiny")
                await queue(nursery, *(partial(attempt, store, name) for name in names))
                catalog.gate.set()
            assert failed == [b"big"]
            assert {name for name, _ in store.namespace.children(ROOT_ID)} == {b"first", b"small", b"tiny"}

    in_memory(scenario)


def test_two_nodes_that_take_the_same_name_agree_who_got_it() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        won: list[int] = []

        async def attempt(store: NamespaceStore) -> None:
            try:
                won.append(await create(store, ROOT_ID, b"disk"))
            except Exists:
                pass

        async with running(catalog) as here, running(catalog) as there:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(attempt, here)
                nursery.start_soon(attempt, there)
            await here.commit(lambda ns: Change())
            assert [here.namespace.find(ROOT_ID, b"disk"), there.namespace.find(ROOT_ID, b"disk")] == 2 * won

    in_memory(scenario)


def test_what_is_made_in_a_directory_and_its_removal_exclude_each_other() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as here, running(catalog) as there:
            for round_no in range(20):
                name = b"folder%d" % round_no
                folder = await create(here, ROOT_ID, name, directory=True)
                done: list[str] = []

                async def fill(folder: int = folder, done: list[str] = done) -> None:
                    try:
                        await create(there, folder, b"disk")
                        done.append("filled")
                    except NotFound:
                        pass

                async def remove(name: bytes = name, done: list[str] = done) -> None:
                    try:
                        await here.commit(lambda ns: plan_rmdir(ns, Entry(ROOT_ID, name), deed=Deed("a", 1)))
                        done.append("removed")
                    except VdiskfsError:
                        pass

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(fill)
                    nursery.start_soon(remove)
                assert len(done) == 1

    in_memory(scenario)


def reaches_root(store: NamespaceStore, inode: int) -> bool:
    """Whether an inode has a path; one in a loop has none, however far it is followed."""
    for _ in range(10):
        place = store.namespace.place(inode)
        if place is None:
            return inode == ROOT_ID
        inode = place.parent
    return False


def test_two_directories_moved_into_each_other_at_once_tie_no_loop() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as here, running(catalog) as there:
            for round_no in range(10):
                names = b"one%d" % round_no, b"two%d" % round_no
                homes = [await create(here, ROOT_ID, b"of " + name, directory=True) for name in names]
                one, two = [await create(here, home, b"it", directory=True) for home in homes]
                below = [await create(here, it, b"below", directory=True) for it in (one, two)]
                await there.catch_up()
                moves = (here, homes[0], below[1]), (there, homes[1], below[0])

                async def move(store: NamespaceStore, home: int, into: int) -> None:
                    source, target = Entry(home, b"it"), Entry(into, b"in")
                    try:
                        await store.commit(
                            lambda ns: plan_rename(ns, source, target=target, flags=0, deed=Deed("a", 1))
                        )
                    except VdiskfsError:
                        pass

                async with trio.open_nursery() as nursery:
                    for what in moves:
                        nursery.start_soon(move, *what)
                await here.catch_up()
                assert reaches_root(here, one)
                assert reaches_root(here, two)

    in_memory(scenario)


def test_ids_are_given_out_once() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        seen: list[int] = []

        async def take(store: NamespaceStore) -> None:
            for _ in range(700):
                seen.append(await store.new_inode())

        async with running(catalog) as here, running(catalog) as there, trio.open_nursery() as nursery:
            for store in (here, there, here, there):
                nursery.start_soon(take, store)
        assert len(set(seen)) == 2800
        assert min(seen) >= 16

    in_memory(scenario)


async def storm(store: NamespaceStore, node: str, *, seed: int, steps: int) -> None:
    """Random changes on few names."""
    choose = random.Random(seed)
    for step in range(steps):
        namespace, deed = store.namespace, Deed(node, step)
        source = Entry(choose.choice(namespace.inodes(Kind.DIRECTORY)), choose.choice([b"a", b"b", b"c"]))
        target = Entry(choose.choice(namespace.inodes(Kind.DIRECTORY)), choose.choice([b"a", b"b", b"c"]))
        birth = Birth(await store.new_inode(), 0o644, 1, 1, step)
        orphans = namespace.orphans(node)
        plans: list[Callable[[Namespace], Change]] = [
            lambda ns, s=source, b=birth: plan_create(ns, s, birth=b),
            lambda ns, s=source, b=birth: plan_mkdir(ns, s, birth=b),
            lambda ns, s=source, d=deed: plan_unlink(ns, s, deed=d),
            lambda ns, s=source, d=deed: plan_rmdir(ns, s, deed=d),
            lambda ns, s=source, t=target, d=deed: plan_rename(ns, s, target=t, flags=0, deed=d),
            lambda ns, s=source, t=target, d=deed: plan_rename(
                ns, s, target=t, flags=RENAME_EXCHANGE, deed=d
            ),
            lambda ns, o=orphans: plan_forget(ns, o[0]) if o else Change(),
        ]
        try:
            await store.commit(choose.choice(plans))
        except (NotFound, Exists, InvalidRequest):
            continue


async def assert_sound(catalog: Catalog, *stores: NamespaceStore) -> None:
    """Mirrors and rows agree, and the names are a tree."""
    rows, revision = await catalog.read(b"")
    fresh = Namespace()
    fresh.reload(rows, revision)
    for store in stores:
        while store.namespace.revision < revision:
            await trio.lowlevel.checkpoint()
        assert facts(store.namespace) == facts(fresh)
    for kind in Kind:
        for inode in fresh.inodes(kind):
            path = fresh.path(inode)
            assert (path is None) == fresh.is_orphan(inode) == (fresh.link_count(inode) == 0)
            if path is not None:
                assert fresh.resolve(path) == inode
            else:
                assert fresh.is_empty(inode)


def test_two_nodes_in_a_storm_keep_one_sound_tree(seed: int) -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as here, running(catalog) as there:
            async with trio.open_nursery() as nursery:
                for number, store in enumerate((here, there, here, there)):
                    nursery.start_soon(
                        lambda s=store, n=number: storm(s, "ab"[n % 2], seed=seed + n, steps=60)
                    )
            await assert_sound(catalog, here, there)

    in_memory(scenario)


def test_two_processes_on_one_file_keep_one_sound_tree(tmp_path: pathlib.Path, seed: int) -> None:
    path = tmp_path / "catalog.sqlite"
    create_sqlite_catalog(path, first=plan_root(0, 0, now_ns=1))

    async def main() -> None:
        with trio.fail_after(60):
            catalogs = [await open_sqlite_catalog(path), await open_sqlite_catalog(path)]
            async with running(catalogs[0]) as here, running(catalogs[1]) as there:
                async with trio.open_nursery() as nursery:
                    for number, store in enumerate((here, there, here, there)):
                        nursery.start_soon(
                            lambda s=store, n=number: storm(s, "ab"[n % 2], seed=seed + n, steps=25)
                        )
                await assert_sound(catalogs[0], here, there)
            for catalog in catalogs:
                await catalog.aclose()

    trio.run(main)


def test_other_rows_of_the_catalog_may_change_meanwhile() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as store:

            async def others() -> None:
                for number in range(50):
                    await catalog.transact(Change(puts=((owner_key(number), b""),)))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(others)
                for number in range(50):
                    await create(store, ROOT_ID, b"%d" % number)
            await assert_sound(catalog, store)

    in_memory(scenario)


def test_a_watch_that_fell_too_far_behind_reads_everything() -> None:
    async def main() -> None:
        catalog = WatchedMemoryCatalog(history_max=4)
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with running(catalog) as here, running(catalog) as there:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: storm(here, "a", seed=1, steps=50))
                nursery.start_soon(lambda: storm(there, "b", seed=2, steps=50))
            await assert_sound(catalog, here, there)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_a_catalog_that_fails_is_followed_again_when_it_answers(caplog: pytest.LogCaptureFixture) -> None:
    class Flaky(WatchedMemoryCatalog):
        down = False

        async def read(self, prefix: bytes) -> object:  # type: ignore[override]
            if self.down:
                raise Unavailable("no answer")
            return await super().read(prefix)

        async def watch(self, prefix: bytes, *, after: int) -> AsyncIterator[object]:  # type: ignore[override]
            async with aclosing(super().watch(prefix, after=after)) as watch:
                async for events in watch:
                    if self.down:
                        raise Unavailable("no answer")
                    yield events

    async def main() -> None:
        catalog = Flaky()
        await catalog.transact(plan_root(0, 0, now_ns=1))
        async with running(catalog) as here, running(catalog) as there:
            catalog.down = True
            disk = await create(here, ROOT_ID, b"disk")
            await trio.sleep_until(trio.current_time() + 10)
            assert there.namespace.find(ROOT_ID, b"disk") is None
            catalog.down = False
            await trio.sleep_until(trio.current_time() + 2 * namespace_store.RETRY_S_MAX)
            assert there.namespace.find(ROOT_ID, b"disk") == disk

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert any("cannot follow the catalog" in record.getMessage() for record in caplog.records)


def test_a_name_that_others_keep_changing_is_given_up() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as store:
            await store.new_inode()
            tries: list[Change] = []

            def conflict(change: Change) -> VdiskfsError:
                tries.append(change)
                return Conflict("the catalog has changed")

            catalog.fail = conflict
            with pytest.raises(Unavailable):
                await create(store, ROOT_ID, b"disk")
            assert len(tries) == namespace_store.TRIES_MAX

    in_memory(scenario)


def test_times_are_stored_after_a_while() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as store:
            disks = [await create(store, ROOT_ID, b"%d" % number) for number in range(100)]
            catalog.changes.clear()
            for disk in disks:
                for mtime_ns in range(7, 10):
                    store.note_times(disk, mtime_ns=mtime_ns, ctime_ns=8, now_ns=mtime_ns)
            assert store.namespace.inode(disks[0]).mtime_ns == 9
            assert catalog.changes == []
            await trio.sleep_until(trio.current_time() + STORE_TIMES_S + 1)
            assert len(catalog.changes) == 2
            assert store.namespace.recent_inodes() == []
            await assert_sound(catalog, store)
            assert store.namespace.inode(disks[99]).mtime_ns == 9

    in_memory(scenario)


def test_times_that_cannot_be_stored_are_kept_for_later() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as store:
            disk = await create(store, ROOT_ID, b"disk")
            catalog.fail = lambda change: NoSpace("the pool is full")
            store.note_times(disk, mtime_ns=7, ctime_ns=8, now_ns=9)
            await trio.sleep_until(trio.current_time() + 3 * STORE_TIMES_S)
            assert store.namespace.recent_inodes() == [disk]
            catalog.fail = lambda change: None
            await trio.sleep_until(trio.current_time() + 2 * STORE_TIMES_S)
            assert store.namespace.recent_inodes() == []

    in_memory(scenario)


def test_times_are_stored_at_the_end() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with running(catalog) as store:
            disks = [await create(store, ROOT_ID, b"%d" % number) for number in range(100)]
            for disk in disks:
                store.note_times(disk, mtime_ns=7, ctime_ns=8, now_ns=9)
            await catalog.transact(Change(puts=((owner_key(1), b""),)))
        async with running(catalog) as successor:
            assert {successor.namespace.inode(disk).mtime_ns for disk in disks} == {7}

    in_memory(scenario)


def test_whoever_waits_when_the_store_ends_is_told() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        told: list[str] = []

        async def attempt(store: NamespaceStore, name: bytes) -> None:
            try:
                await create(store, ROOT_ID, name)
            except Unavailable as exc:
                told.append(str(exc))

        async with (
            NamespaceStore(catalog) as store,
            trio.open_nursery() as nursery,
            trio.open_nursery() as inner,
        ):
            inner.start_soon(store.run)
            await store.new_inode()
            catalog.gate = trio.Event()
            await queue(nursery, *(partial(attempt, store, name) for name in (b"a", b"b", b"c")))
            inner.cancel_scope.cancel()
        await attempt(store, b"late")
        assert len(told) == 4

    in_memory(scenario)


def test_a_store_that_ended_can_be_run_again() -> None:
    async def scenario(catalog: WatchedMemoryCatalog) -> None:
        async with NamespaceStore(catalog) as store:
            for name in (b"first", b"second"):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(store.run)
                    await create(store, ROOT_ID, name)
                    nursery.cancel_scope.cancel()
            assert [name for name, _ in store.namespace.children(ROOT_ID)] == [b"first", b"second"]

    in_memory(scenario)
