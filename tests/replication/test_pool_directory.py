"""The pool's files: what is a pool, group files and their descriptors, checkpoints that prove themselves."""

import fcntl
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator

import pytest

import replication.pool
from metadata.errors import Corrupt, Exists, InvalidRequest, NoSpace, NotFound, NotOwner, Unavailable
from metadata.ids import group_id
from replication.pool import GroupFile, pool_error
from replication.pool_directory import DirectoryPool, format_pool, open_pool
from tests.replication.rig import B, block, blocks, open_descriptors

VDISK = 0x1234
GROUP = group_id(1, 0)


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> Iterator[DirectoryPool]:
    pool = format_pool(str(tmp_path / "pool"))
    yield pool
    pool.close()


def group_with(pool: DirectoryPool, *values: int, group: int = GROUP) -> GroupFile:
    file = pool.create_group(VDISK, group)
    file.write(blocks(*values), 0)
    pool.note_open(file)
    return file


def read(file: GroupFile, position: int, count: int = 1) -> bytes:
    view = memoryview(bytearray(count * B))
    return bytes(view[: file.read(view, position)])


class TestFormat:
    def test_a_pool_is_a_directory_with_a_marker_that_names_format_and_secrets(
        self, pool: DirectoryPool
    ) -> None:
        facts = json.loads(pathlib.Path(pool.path, "vdiskfs.pool").read_text())
        assert facts == {"format": 1, "pool": pool.pool_id, "salt": f"{pool.salt:016x}"}
        again = open_pool(pool.path)
        assert (again.pool_id, again.salt) == (pool.pool_id, pool.salt)
        assert pathlib.Path(pool.path).stat().st_mode & 0o777 == 0o700

    def test_two_pools_share_no_secret(self, tmp_path: pathlib.Path) -> None:
        pools = [format_pool(str(tmp_path / name)) for name in ("a", "b")]
        assert pools[0].pool_id != pools[1].pool_id
        assert pools[0].salt != pools[1].salt

    def test_a_pool_is_not_formatted_again_and_no_other_directory_is_taken(
        self, pool: DirectoryPool, tmp_path: pathlib.Path
    ) -> None:
        with pytest.raises(Exists):
            format_pool(pool.path)
        (tmp_path / "full").mkdir()
        (tmp_path / "full" / "letters").write_text("dear")
        (tmp_path / "file").write_text("")
        for name in ("full", "file"):
            with pytest.raises(InvalidRequest):
                format_pool(str(tmp_path / name))
        assert (tmp_path / "full" / "letters").read_text() == "dear"
        (tmp_path / "new" / "lost+found").mkdir(parents=True)
        format_pool(str(tmp_path / "new"))

    def test_what_is_no_pool_is_not_opened(self, pool: DirectoryPool, tmp_path: pathlib.Path) -> None:
        (tmp_path / "empty").mkdir()
        for name in ("empty", "absent"):
            with pytest.raises(NotFound, match="vdiskfs format"):
                open_pool(str(tmp_path / name))
        marker = pathlib.Path(pool.path, "vdiskfs.pool")
        facts = json.loads(marker.read_text())
        marker.write_text(json.dumps({**facts, "format": 2}))
        with pytest.raises(InvalidRequest, match="format 2"):
            open_pool(pool.path)
        for damage in ("", "{}", "[]", '{"format": 1}', '{"format": 1, "pool": "x", "salt": "?"}', "\0" * 60):
            marker.write_text(damage)
            with pytest.raises(Corrupt):
                open_pool(pool.path)

    def test_nodes_share_the_pool_and_no_two_have_one_name(self, pool: DirectoryPool) -> None:
        pool.lock("first")
        other = open_pool(pool.path)
        with pytest.raises(NotOwner, match="choose another with --node node=first"):
            other.lock("first")
        other.close()
        second = open_pool(pool.path)
        second.lock("second")
        second.close()
        pool.close()
        third = open_pool(pool.path)
        third.lock("first")
        third.close()

    def test_an_earlier_release_that_serves_the_pool_alone_is_respected(self, pool: DirectoryPool) -> None:
        with open(f"{pool.path}/lock", "w") as file:
            file.write("before")
            file.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
            with pytest.raises(NotOwner, match=r"earlier release has the pool mounted.*by=before"):
                pool.lock("now")


class TestNames:
    def test_group_and_checkpoint_files_have_these_names(self, pool: DirectoryPool) -> None:
        folder = f"{pool.path}/vdisks/34/0000000000001234"
        assert pool.group_path(VDISK, group_id(0x2A, 0x1F)) == f"{folder}/00002a-000001f.group"
        assert pool.checkpoint_path(VDISK, 0x99) == f"{folder}/0000000000000099.checkpoint"

    def test_groups_are_listed_in_log_order_and_strange_files_are_none(self, pool: DirectoryPool) -> None:
        wanted = [group_id(1, 0), group_id(1, 9), group_id(1, 10), group_id(2, 0)]
        for group in reversed(wanted):
            pool.create_group(VDISK, group).close()
        for name in ("x.group", "000001-0000000.group.bak", "lost", "0000000000000099.checkpoint.new"):
            pathlib.Path(pool.vdisk_path(VDISK), name).touch()
        assert pool.groups(VDISK) == wanted
        assert pool.checkpoints(VDISK) == []
        assert pool.groups(VDISK + 1) == []
        assert pool.vdisks() == [VDISK]

    def test_a_removed_vdisk_leaves_nothing(self, pool: DirectoryPool) -> None:
        pool.create_group(VDISK, GROUP).close()
        pool.remove_group(VDISK, group_id(1, 5))
        pool.remove_vdisk(VDISK)
        pool.remove_vdisk(VDISK)
        assert (pool.vdisks(), pool.groups(VDISK), pool.group_bytes(VDISK, GROUP)) == ([], [], 0)


class TestGroupFiles:
    def test_blocks_are_written_and_read_by_position(self, pool: DirectoryPool) -> None:
        file = group_with(pool, 1, 2, 3)
        assert read(file, 1, 2) == blocks(2, 3)
        assert read(file, 2, 5) == block(3)
        assert read(file, 9) == b""
        view = memoryview(bytearray(B))
        assert file.read_nowait(view, 1)
        assert bytes(view) == block(2)
        assert not file.read_nowait(memoryview(bytearray(2 * B)), 2)

    def test_a_group_is_created_once(self, pool: DirectoryPool) -> None:
        group_with(pool, 1)
        with pytest.raises(Exists):
            pool.create_group(VDISK, GROUP)

    def test_a_missing_group_says_so(self, pool: DirectoryPool) -> None:
        with pytest.raises(NotFound, match="file="):
            pool.file(VDISK, GROUP).ensure_open()

    def test_space_is_reserved_and_given_back(self, pool: DirectoryPool) -> None:
        file = group_with(pool, 1)
        file.preallocate(100)
        assert (file.allocated_blocks, pool.group_bytes(VDISK, GROUP) >= 100 * B) == (100, True)
        file.preallocate(50)
        assert file.allocated_blocks == 100
        file.trim(1)
        assert (file.allocated_blocks, os.stat(file.path).st_size) == (1, B)
        assert read(file, 0) == block(1)

    def test_space_can_be_reserved_as_written_zeros(self, pool: DirectoryPool) -> None:
        file = group_with(pool, 1)
        file.allocated_blocks = 1
        file.preallocate(600, written=True)
        assert read(file, 0, 700) == block(1) + bytes(599 * B)

    def test_no_descriptor_is_lost_when_many_threads_open_one_file(self, pool: DirectoryPool) -> None:
        group_with(pool, 1)
        pool.forget_open(VDISK)
        file, before = pool.file(VDISK, GROUP), open_descriptors()
        ready = threading.Barrier(8)

        def open_it() -> None:
            ready.wait()
            file.ensure_open()

        threads = [threading.Thread(target=open_it) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert open_descriptors() == before + 1
        file.close()

    def test_the_files_used_longest_ago_are_closed_beyond_the_limit(
        self, pool: DirectoryPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replication.pool, "OPEN_FILES_MAX", 3)
        files = [group_with(pool, n, group=group_id(1, n)) for n in range(3)]
        pool.note_open(files[0])
        files.append(group_with(pool, 3, group=group_id(1, 3)))
        assert [file.fd >= 0 for file in files] == [True, False, True, True]
        assert not files[1].read_nowait(memoryview(bytearray(B)), 0)
        files[1].ensure_open()
        assert read(files[1], 0) == block(1)
        pool.note_open(files[1])
        assert [file.fd >= 0 for file in files] == [True, True, False, True]

    def test_a_file_that_a_thread_uses_stays_open_and_one_that_it_opened_is_counted(
        self, pool: DirectoryPool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(replication.pool, "OPEN_FILES_MAX", 1)
        held, other = group_with(pool, 0), pool.file(VDISK, GROUP)
        pool.hold([held, other])
        other.ensure_open()
        pool.forget_open(VDISK)
        assert held.fd >= 0
        pool.release([held, other])
        assert (held.fd >= 0, other.fd >= 0) == (False, True)

    def test_two_files_of_one_group_are_both_closed(self, pool: DirectoryPool) -> None:
        before = open_descriptors()
        files = [group_with(pool, 1), pool.file(VDISK, GROUP)]
        files[1].ensure_open()
        pool.note_open(files[1])
        pool.forget_open(VDISK)
        assert open_descriptors() == before


class TestCheckpoints:
    def publish(self, pool: DirectoryPool, tmp_path: pathlib.Path, version: int, content: bytes) -> None:
        os.makedirs(pool.vdisk_path(VDISK), exist_ok=True)
        (tmp_path / "export").write_bytes(content)
        pool.publish_checkpoint(VDISK, version, str(tmp_path / "export"))

    @pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 5000, (1 << 20) - 16, (1 << 20) + 1, 3 << 20])
    def test_what_was_published_is_fetched(
        self, pool: DirectoryPool, tmp_path: pathlib.Path, length: int
    ) -> None:
        content = os.urandom(length)
        self.publish(pool, tmp_path, 7, content)
        assert pool.checkpoints(VDISK) == [7]
        pool.fetch_checkpoint(VDISK, 7, str(tmp_path / "fetched"))
        assert (tmp_path / "fetched").read_bytes() == content

    def test_a_newer_one_replaces_the_older(self, pool: DirectoryPool, tmp_path: pathlib.Path) -> None:
        for version in (7, 300, 4096):
            self.publish(pool, tmp_path, version, b"content")
        assert pool.checkpoints(VDISK) == [4096]
        assert os.listdir(pool.vdisk_path(VDISK)) == ["0000000000001000.checkpoint"]

    def test_no_damaged_byte_goes_unseen(self, pool: DirectoryPool, tmp_path: pathlib.Path) -> None:
        self.publish(pool, tmp_path, 7, os.urandom(100))
        path = pathlib.Path(pool.checkpoint_path(VDISK, 7))
        whole = path.read_bytes()
        damaged = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
        damaged += [whole[:length] for length in range(len(whole))] + [whole + b"\0"]
        for content in damaged:
            path.write_bytes(content)
            with pytest.raises(Corrupt):
                pool.fetch_checkpoint(VDISK, 7, str(tmp_path / "fetched"))

    def test_another_vdisk_s_or_version_s_is_refused(
        self, pool: DirectoryPool, tmp_path: pathlib.Path
    ) -> None:
        self.publish(pool, tmp_path, 7, b"content")
        os.makedirs(pool.vdisk_path(VDISK + 1))
        for vdisk, version in ((VDISK, 8), (VDISK + 1, 7)):
            shutil.copy(pool.checkpoint_path(VDISK, 7), pool.checkpoint_path(vdisk, version))
            with pytest.raises(Corrupt):
                pool.fetch_checkpoint(vdisk, version, str(tmp_path / "fetched"))
        with pytest.raises(Unavailable):
            pool.fetch_checkpoint(VDISK, 9, str(tmp_path / "fetched"))


def test_a_full_disk_or_quota_is_no_space_and_everything_else_unavailable() -> None:
    assert isinstance(pool_error(OSError(28, "No space left on device"), "x"), NoSpace)
    assert isinstance(pool_error(OSError(122, "Disk quota exceeded"), "x"), NoSpace)
    assert isinstance(pool_error(OSError(5, "Input/output error"), "x"), Unavailable)
