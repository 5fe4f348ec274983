"""The registry: what it keeps, whom it believes, and that damage in it is no trouble."""

import json
import os
import pathlib
from dataclasses import asdict, replace

import pytest

from fusefs import registry
from fusefs.processes import ProcessId, process_id
from fusefs.registry import MountRecord
from metadata.errors import Unavailable


def a_record(folder: pathlib.Path, mountpoint: str = "/mnt/vdisks") -> MountRecord:
    me = process_id(os.getpid())
    return MountRecord(
        mountpoint=mountpoint,
        pool="/pool",
        node="node",
        state="/state",
        control=registry.control_path(str(folder), mountpoint),
        log="/state/log",
        uid=os.geteuid(),
        keeper_pid=me.pid,
        keeper_started=me.started_ticks,
    )


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    made = tmp_path / "vdiskfs"
    registry.make_folder(str(made), os.geteuid())
    return made


def test_a_record_is_read_as_it_was_written(folder: pathlib.Path) -> None:
    record = replace(a_record(folder, "/mnt/\udcff odd"), restarts=7, last_error="why", serving=True)
    registry.write(str(folder), record)
    assert registry.read(str(folder), record.mountpoint, os.geteuid()) == record
    registry.remove(str(folder), record.mountpoint)
    assert registry.read(str(folder), record.mountpoint, os.geteuid()) is None
    assert list(folder.iterdir()) == []


def test_all_records_of_a_folder_are_listed_by_mountpoint(folder: pathlib.Path) -> None:
    for mountpoint in ("/b", "/a", "/a/vdisks", "/b/vdisks"):
        registry.write(str(folder), a_record(folder, mountpoint))
    found = [record.mountpoint for record in registry.read_all(str(folder), os.geteuid())]
    assert found == ["/a", "/a/vdisks", "/b", "/b/vdisks"]


def test_only_records_without_mount_and_process_are_swept_away(folder: pathlib.Path) -> None:
    alive, dead = a_record(folder, "/alive"), replace(a_record(folder), keeper_started=0)
    for record in (
        alive,
        replace(dead, mountpoint="/mounted"),
        replace(dead, mountpoint="/tombstone", ended=True),
        replace(dead, mountpoint="/dead"),
    ):
        registry.write(str(folder), record)
    registry.sweep(str(folder), os.geteuid(), {"/mounted"})
    left = [record.mountpoint for record in registry.read_all(str(folder), os.geteuid())]
    assert left == ["/alive", "/mounted", "/tombstone"]
    assert len(list(folder.iterdir())) == 3


def test_damaged_records_are_passed_over(folder: pathlib.Path) -> None:
    good = a_record(folder, "/good")
    registry.write(str(folder), good)
    whole = asdict(a_record(folder))
    damaged = [
        "",
        "{",
        "[]",
        "null",
        json.dumps({key: value for key, value in whole.items() if key != "pool"}),
        json.dumps({**whole, "pid": "1"}),
        json.dumps({**whole, "mountpoint": 1}),
        json.dumps({**whole, "uid": os.geteuid() + 1}),
    ]
    for number, text in enumerate(damaged):
        (folder / f"{number}.json").write_text(text)
    (folder / "binary.json").write_bytes(b"\xff\x00")
    assert registry.read_all(str(folder), os.geteuid()) == [good]


@pytest.mark.root
def test_a_record_about_another_user_s_process_is_not_believed(folder: pathlib.Path) -> None:
    uid = os.geteuid() + 1000
    record = replace(a_record(folder), uid=uid)  # its keeper, this process, is not that user's
    registry.write(str(folder), record)
    os.chown(folder, uid, -1)
    os.chown(next(folder.iterdir()), uid, -1)
    assert registry.read(str(folder), record.mountpoint, uid) is None


def test_a_folder_that_others_can_write_is_refused(folder: pathlib.Path) -> None:
    registry.write(str(folder), a_record(folder))
    folder.chmod(0o777)
    assert registry.read_all(str(folder), os.geteuid()) == []
    with pytest.raises(Unavailable, match="not safe"):
        registry.make_folder(str(folder), os.geteuid())


def test_a_link_in_place_of_the_folder_is_refused(tmp_path: pathlib.Path, folder: pathlib.Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)
    with pytest.raises(Unavailable, match="not safe"):
        registry.make_folder(str(link), os.geteuid())


def test_a_folder_that_cannot_be_made_is_said(tmp_path: pathlib.Path) -> None:
    with pytest.raises(Unavailable, match="No such file or directory"):
        registry.make_folder(str(tmp_path / "absent" / "vdiskfs"), os.geteuid())


def test_users_have_their_own_folders() -> None:
    assert registry.runtime_folder(0, {"XDG_RUNTIME_DIR": "/run/user/0"}) == "/run/vdiskfs"
    assert registry.runtime_folder(1000, {"XDG_RUNTIME_DIR": "/run/user/1000"}) == "/run/user/1000/vdiskfs"
    assert registry.runtime_folder(1000, {}) == "/tmp/vdiskfs-1000"
    assert registry.candidate_folders(4711, {}) == ["/run/user/4711/vdiskfs", "/tmp/vdiskfs-4711"]


def test_socket_paths_are_short_and_differ_for_different_mountpoints() -> None:
    deep = "/" + "/".join(["x" * 200] * 10)
    paths = {
        registry.control_path("/run/user/4294967294/vdiskfs", path) for path in (deep, deep + "/x", "/", "/x")
    }
    assert len(paths) == 4
    assert all(len(path) <= 107 for path in paths)


def test_a_process_number_that_was_given_out_again_is_another_process() -> None:
    me = process_id(os.getpid())
    assert me.is_alive()
    assert not ProcessId(me.pid, me.started_ticks + 1).is_alive()
    assert not ProcessId(0, 0).is_alive()
    assert not process_id(1 << 22).is_alive()
