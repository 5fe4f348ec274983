"""An object pool: what a flush stores, what a read fetches, and what must not matter: retries, crashes, a cache that lies."""

import itertools
import os
import pathlib
import shutil
from collections.abc import Callable

import pytest
import trio

from metadata.errors import Corrupt, Exists, Fenced, InvalidRequest, NotFound, Unavailable, VdiskfsError
from metadata.ids import VdiskId
from replication import object_groups, object_merging, object_sending, object_tables
from replication.commit import flush
from replication.head import Head
from replication.object_store import Lost, RetryingStore
from replication.object_tables import parse_span
from replication.pool_objects import MARKER, ObjectPool, format_object_pool, open_object_pool
from replication.vdisks import Vdisks
from tests.replication.objects import URL, ObjectRig, StoreInMemory, object_pool
from tests.replication.rig import (
    B,
    block,
    blocks,
    close_and_rest,
    content,
    create,
    expect_errors,
    opened,
    read,
    run,
    sound,
    write,
)

MIB = 1 << 20


async def committed(vdisks: Vdisks, count: int) -> Head:
    """A new vdisk, written by so many commits of a block each."""
    head = await create(vdisks, 20, MIB)
    for number in range(count):
        await write(head, number % 256 * B, block(number))
        await flush(head)
    return head


async def holds(vdisks: Vdisks, wanted: bytes) -> None:
    """Insist that the vdisk is what it was, and sound."""
    assert await content(await opened(vdisks, 20)) == wanted
    await sound(vdisks, 20)


@pytest.fixture
def rig(tmp_path: pathlib.Path) -> ObjectRig:
    return ObjectRig(tmp_path)


def data_keys(rig: ObjectRig) -> list[str]:
    """Objects that hold blocks."""
    spans = ((key, parse_span(key.rpartition("/")[2])) for key in rig.keys)
    return [key for key, span in spans if span is not None and span.count]


async def merged(vdisks: Vdisks) -> None:
    """Everything that was asked for is merged."""
    pool = object_pool(vdisks.workspace.pool)
    for group in list(pool._groups.values()):
        await vdisks.workspace.wait_for(lambda group=group: pool.merger.merge(group))  # type: ignore[misc]


def local_files(rig: ObjectRig) -> list[pathlib.Path]:
    return [path for path in (rig.state_path / "extents").rglob("*") if path.is_file()]


def scribble(rig: ObjectRig) -> None:
    """The local disk lies about every second block."""
    for path in local_files(rig):
        data = bytearray(path.read_bytes())
        for at in range(0, len(data), 2 * B):
            data[at : at + 64] = os.urandom(64)
        path.write_bytes(data)


class TestFlushing:
    def test_a_flush_is_one_object_with_data_and_record(self, rig: ObjectRig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await flush(head)
                before = set(data_keys(rig))
                await write(head, 0, blocks(1, 2, 3))
                await flush(head)
                (new,) = set(data_keys(rig)) - before
                assert rig.store.objects[new][: 3 * B] == blocks(1, 2, 3)
                assert len(rig.store.objects[new]) == 4 * B

        run(main)

    def test_much_goes_up_in_parts_and_comes_back_on_a_node_that_knows_nothing(
        self, rig: ObjectRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(object_sending, "PART_BLOCKS", 64)

        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, 4 * MIB)
                await write(head, 0, blocks(*range(1000)))
                await flush(head)
                assert len(data_keys(rig)) >= 16
            rig.lose_state()
            async with rig.node() as vdisks:
                assert (await content(await opened(vdisks, 20)))[: 1000 * B] == blocks(*range(1000))
                await sound(vdisks, 20)

        run(main)

    def test_throttling_and_lost_answers_cost_time_and_nothing_else(self, rig: ObjectRig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                rig.store.failing["put"], rig.store.forgetting["put"] = 2, 3
                await write(head, 0, blocks(1, 2))
                await flush(head)
                await write(head, 5 * B, block(3))
                await flush(head)
            rig.lose_state()
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                assert await read(head, 0, 6 * B) == blocks(1, 2) + bytes(3 * B) + block(3)

        run(main)

    def test_a_store_that_stays_away_fails_the_flush_and_the_next_one_stores_all(
        self, rig: ObjectRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(RetryingStore, "_try", _try_once)

        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await flush(head)
                await write(head, 0, blocks(1, 2))
                rig.store.failing["put"] = 1
                with pytest.raises(Unavailable):
                    await flush(head)
                assert await read(head, 0, 2 * B) == blocks(1, 2)
                await flush(head)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await read(await opened(vdisks, 20), 0, 2 * B) == blocks(1, 2)

        run(main)

    def test_something_else_under_its_name_fails_the_flush_loudly_and_is_not_read(
        self, rig: ObjectRig, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await flush(head)
                group = head_group(head, object_pool(vdisks.workspace.pool))
                at = group.uploaded_end
                for count in range(1, 9):
                    rig.store.objects[f"{group.prefix}{at:05x}-{count:05x}"] = b"another's"
                await write(head, 0, blocks(1, 2))
                with pytest.raises(Fenced, match="another process"):
                    await flush(head)
                await flush(head)  # it goes on in a new group
                assert await read(head, 0, 2 * B) == blocks(1, 2)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await read(await opened(vdisks, 20), 0, 2 * B) == blocks(1, 2)

        run(main)
        expect_errors(caplog, "another process stored")

    def test_a_group_is_begun_once(self, rig: ObjectRig) -> None:
        pool, other = rig.open_pool(), rig.open_pool()
        pool.create_group(7, 1 << 28).close()
        with pytest.raises(Exists):
            other.create_group(7, 1 << 28)
        assert other.groups(7) == [1 << 28]
        pool.close()
        other.close()


def _try_once(store: RetryingStore, call: Callable[[], object], key: str) -> object:
    try:
        return call()
    except Lost as exc:
        raise Unavailable(f"the object store does not answer key={key}: {exc}") from exc


class TestAfterACrash:
    @pytest.mark.parametrize("lost", ["nothing", "index", "state"])
    def test_what_was_flushed_is_there_and_what_was_only_acknowledged_if_the_node_is(
        self, rig: ObjectRig, lost: str
    ) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, blocks(1, 2, 3))
                await flush(head)
                await write(head, 1 * B, block(9))
            if lost == "index":
                rig.lose_index()
            elif lost == "state":
                rig.lose_state()
            expected = blocks(1, 2 if lost == "state" else 9, 3)
            for _ in range(2):
                async with rig.node(kill=True) as vdisks:
                    head = await opened(vdisks, 20)
                    assert await read(head, 0, 3 * B) == expected
                    await sound(vdisks, 20)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await read(await opened(vdisks, 20), 0, 3 * B) == expected

        run(main)

    def test_the_log_goes_on_in_a_group_of_its_own(self, rig: ObjectRig) -> None:
        """What the dead daemon sent may arrive now: nothing may lie where that would."""

        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, block(1))
                await flush(head)
                file = head.log.file
                assert file is not None
                first, at = file.group, head.log.tail
                prefix = object_pool(vdisks.workspace.pool).group(20, first).prefix
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                await write(head, 0, block(2))
                await flush(head)
                rig.store.objects[f"{prefix}{at:05x}-00002"] = os.urandom(2 * B)  # late
                assert head.log.file is not None
                assert head.log.file.group > first
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await read(await opened(vdisks, 20), 0, B) == block(2)

        run(main)

    def test_a_rest_in_one_life_begins_no_new_group(self, rig: ObjectRig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await create(vdisks, 20, MIB)
                for number in range(5):
                    head = await opened(vdisks, 20)
                    await write(head, number * B, block(number))
                    await close_and_rest(vdisks, 20)
                assert len(vdisks.workspace.pool.groups(20)) == 1

        run(main)


class TestTheCache:
    def test_what_is_read_twice_is_fetched_once_and_stays_for_the_next_daemon(self, rig: ObjectRig) -> None:
        async def main() -> None:
            wanted = await filled(rig)
            for expected_fetches in (True, False, False):
                async with rig.node() as vdisks:
                    head = await opened(vdisks, 20)
                    before = rig.store.calls["get"]
                    assert await content(head) == wanted
                    fetched = object_pool(vdisks.workspace.pool).space.fetched_bytes
                    assert (fetched > 0, rig.store.calls["get"] > before) == (expected_fetches,) * 2
                    assert fetched < len(wanted) * 1.2

        run(main)

    def test_many_who_want_the_same_fetch_it_once(self, rig: ObjectRig) -> None:
        async def main() -> None:
            wanted = await filled(rig)
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                found: list[bytes] = []

                async def reader() -> None:
                    found.append(await read(head, 0, 256 * 1024))

                async with trio.open_nursery() as nursery:
                    for _ in range(12):
                        nursery.start_soon(reader)
                assert found == [wanted[: 256 * 1024]] * 12
                assert object_pool(vdisks.workspace.pool).space.fetched_bytes <= len(wanted) + MIB

        run(main)

    def test_a_local_disk_that_lies_is_noticed_and_mended(self, rig: ObjectRig) -> None:
        async def main() -> None:
            wanted = await filled(rig)
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == wanted
            scribble(rig)
            for renewed in (True, False):
                async with rig.node() as vdisks:
                    head = await opened(vdisks, 20)
                    assert await content(head) == wanted
                    assert (object_pool(vdisks.workspace.pool).space.renewed_blocks > 0) == renewed
                    await sound(vdisks, 20)

        run(main)

    @pytest.mark.parametrize("kill", [False, True])
    def test_recovery_believes_the_pool_and_not_a_local_file_from_before(
        self, rig: ObjectRig, kill: bool
    ) -> None:
        async def main() -> None:
            async with rig.node(kill=kill) as vdisks:
                head = await committed(vdisks, 20)
                wanted = await content(head)
            for path in local_files(rig):
                path.write_bytes(bytes(path.stat().st_size))  # what a power cut may leave
            rig.lose_index()
            async with rig.node() as vdisks:
                await holds(vdisks, wanted)

        run(main)

    def test_no_more_is_here_than_the_limit_and_reading_goes_on(self, rig: ObjectRig) -> None:
        async def main() -> None:
            wanted = await filled(rig)
            rig.cache_bytes = 2 * MIB
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                for _ in range(2):
                    assert await content(head) == wanted
                pool = object_pool(vdisks.workspace.pool)
                assert pool.cache.bytes <= 2 * MIB
                occupied = sum(path.stat().st_blocks * 512 for path in local_files(rig))
                assert occupied < 4 * MIB

        run(main)

    def test_what_the_pool_has_not_yet_is_never_dropped(self, rig: ObjectRig) -> None:
        rig.cache_bytes = 0

        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await create(vdisks, 20, 4 * MIB)
                await write(head, 0, blocks(*range(500)))
                object_pool(vdisks.workspace.pool).cache.shrink(0)
                assert await read(head, 0, 500 * B) == blocks(*range(500))
            async with rig.node() as vdisks:
                assert await read(await opened(vdisks, 20), 0, 500 * B) == blocks(*range(500))

        run(main)

    def test_a_full_local_disk_keeps_nothing_and_reading_goes_on(
        self, rig: ObjectRig, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        async def main() -> None:
            wanted = await filled(rig)
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                with monkeypatch.context() as patch:
                    patch.setattr(object_groups.os, "pwrite", full)
                    assert await read(head, MIB, MIB) == wanted[MIB : 2 * MIB]
                    assert object_pool(vdisks.workspace.pool).space.uncached_bytes >= MIB
                assert await content(head) == wanted

        run(main)


async def filled(rig: ObjectRig) -> bytes:
    """Vdisk 20, of 6 MiB, is in the pool; nothing of it is here."""
    async with rig.node() as vdisks:
        head = await create(vdisks, 20, 6 * MIB)
        for first in range(0, 1536, 256):
            await write(head, first * B, blocks(*range(first, first + 256)))
        await flush(head)
        wanted = await content(head)
    shutil.rmtree(rig.state_path / "extents")
    return wanted


class TestMerging:
    def test_many_small_commits_become_few_objects_that_hold_the_same(self, rig: ObjectRig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await committed(vdisks, 200)
                await merged(vdisks)
                assert len(data_keys(rig)) <= object_tables.OPEN_SPANS_MAX
                wanted = await content(head)
                await close_and_rest(vdisks, 20)
                await merged(vdisks)
                assert len(data_keys(rig)) == 1
                await holds(vdisks, wanted)
            rig.lose_state()
            async with rig.node() as vdisks:
                await holds(vdisks, wanted)

        run(main)

    def test_what_a_dead_daemon_left_unmerged_is_merged_by_the_next(self, rig: ObjectRig) -> None:
        async def main() -> None:
            async with rig.node(kill=True) as vdisks:
                head = await committed(vdisks, 30)
                wanted = await content(head)
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == wanted
                await merged(vdisks)
                assert len(data_keys(rig)) <= 2
                await holds(vdisks, wanted)

        run(main)

    def test_a_local_file_that_lies_is_not_merged_into_the_pool(self, rig: ObjectRig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await committed(vdisks, 30)
                wanted = await content(head)
                scribble(rig)
                await close_and_rest(vdisks, 20)
                await merged(vdisks)
            rig.lose_state()
            async with rig.node() as vdisks:
                assert await content(await opened(vdisks, 20)) == wanted

        run(main)

    def test_a_reader_whose_objects_were_merged_away_lists_again(
        self, rig: ObjectRig, tmp_path: pathlib.Path
    ) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                await committed(vdisks, 30)
                wanted = bytearray(30 * B)
                other = open_object_pool(URL, state=str(tmp_path / "other"), store=rig.store)
                (group,) = other.groups(20)
                other.group(20, group).load()  # lists
                await close_and_rest(vdisks, 20)
                await merged(vdisks)
                file = other.file(20, group)
                file.ensure_open()
                found = file.read_cached(memoryview(wanted), 0)
                assert found == 30 * B
                first = next(
                    data for key, data in rig.store.objects.items() if "/00000-" in key and len(data) > 16
                )
                assert bytes(wanted) == first[: 30 * B]
                file.close()
                other.close()

        run(main)

    @pytest.mark.parametrize("what", ["put", "delete"])
    def test_a_merge_that_is_cut_short_is_finished_by_the_next(
        self, rig: ObjectRig, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await committed(vdisks, 30)
                wanted, calls = await content(head), itertools.count()

                def cut(call: str, key: str) -> None:
                    if call == what and next(calls) == 3 * (what == "delete"):
                        raise InvalidRequest("cut short")

                pool = object_pool(vdisks.workspace.pool)
                (group,) = [group for group in pool._groups.values() if group.vdisk == 20]
                group.is_open = False
                rig.store.on_call = cut
                with pytest.raises(InvalidRequest):
                    await vdisks.workspace.wait_for(lambda: pool.merger.merge(group))
                rig.store.on_call = None
                assert await content(head) == wanted
                await close_and_rest(vdisks, 20)
            rig.lose_state()
            async with rig.node() as vdisks:
                await holds(vdisks, wanted)

        run(main)


class TestDamage:
    def test_a_lost_object_costs_its_blocks_and_is_told(
        self, rig: ObjectRig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(object_sending, "PART_BLOCKS", 64)
        monkeypatch.setattr(object_merging, "plan_merge", lambda spans, is_sealed: None)

        async def main() -> None:
            wanted = await filled(rig)
            lost = next(key for key in data_keys(rig) if parse_span(key.rpartition("/")[2]).position == 512)  # type: ignore[union-attr]
            del rig.store.objects[lost]
            async with rig.node() as vdisks:
                head, bad = await opened(vdisks, 20), dict[int, str]()
                for at in range(0, len(wanted), B):
                    try:
                        assert await read(head, at, B) == wanted[at : at + B]
                    except Corrupt as exc:
                        bad[at // B] = str(exc)
                assert list(bad) == list(range(512, 576))
                assert "a block is missing" in bad[512]
                assert "file=memory://tests/vdisks/14/" in bad[512]

        run(main)

    def test_a_lost_group_is_told(self, rig: ObjectRig) -> None:
        async def main() -> None:
            await filled(rig)
            for key in data_keys(rig):
                del rig.store.objects[key]
            async with rig.node() as vdisks:
                head = await opened(vdisks, 20)
                with pytest.raises(Corrupt, match="missing"):
                    await read(head, 0, B)
            rig.lose_index()
            async with rig.node() as vdisks:
                with pytest.raises(VdiskfsError, match="the pool lost commits that were durable"):
                    await opened(vdisks, 20)

        run(main)


class TestThePool:
    def test_it_is_formatted_once_and_known_by_its_marker(self) -> None:
        store = StoreInMemory()
        made = format_object_pool(URL, store=store)
        again = open_object_pool(URL, store=store)
        assert (made.pool_id, made.salt) == (again.pool_id, again.salt)
        with pytest.raises(Exists, match="a pool already"):
            format_object_pool(URL, store=store)
        store.objects[MARKER] = b'{"format": 2}'
        with pytest.raises(InvalidRequest, match="format 2"):
            open_object_pool(URL, store=store)
        store.objects[MARKER] = b"garbage"
        with pytest.raises(Corrupt):
            open_object_pool(URL, store=store)
        with pytest.raises(NotFound, match="no pool here"):
            open_object_pool(URL, store=StoreInMemory())
        for pool in (made, again):
            pool.close()

    def test_a_removed_vdisk_leaves_nothing(self, rig: ObjectRig) -> None:
        async def main() -> None:
            async with rig.node() as vdisks:
                head = await create(vdisks, 20, MIB)
                await write(head, 0, blocks(*range(100)))
                await flush(head)
                await close_and_rest(vdisks, 20)
                await vdisks.forget(VdiskId(20))
                assert rig.keys == []
                assert local_files(rig) == []

        run(main)

    def test_its_checkpoints_are_whole_or_none(self, rig: ObjectRig, tmp_path: pathlib.Path) -> None:
        pool = rig.open_pool()
        (tmp_path / "sst").write_bytes(os.urandom(100_000))
        for version in (3, 9):
            pool.publish_checkpoint(7, version, str(tmp_path / "sst"))
        assert pool.checkpoints(7) == [9]
        pool.fetch_checkpoint(7, 9, str(tmp_path / "copy"))
        assert (tmp_path / "copy").read_bytes() == (tmp_path / "sst").read_bytes()
        (key,) = rig.keys
        rig.store.objects[key] = rig.store.objects[key][:-20] + b"x" + rig.store.objects[key][-19:]
        with pytest.raises(Corrupt):
            pool.fetch_checkpoint(7, 9, str(tmp_path / "copy"))
        assert pool.vdisks() == [7]
        pool.close()


def head_group(head: Head, pool: ObjectPool) -> object_groups.ObjectGroup:
    """The group that is appended to."""
    assert head.log.file is not None
    return pool.group(head.vdisk, head.log.file.group)
