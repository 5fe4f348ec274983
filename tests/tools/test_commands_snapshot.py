"""snap, clone, flatten: which snapshots are meant, what is asked of the daemon, and what is refused before."""

import json
from typing import Any

import pytest

from tests.tools.pretended_daemon import PretendedDaemon

FACTS: dict[str, Any] = {
    "path": "/a.img",
    "name": "one",
    "version": 7,
    "size": 1 << 20,
    "own_bytes": 4096,
    "clones": 2,
    "open_handles": 0,
    "protected": False,
    "created_ns": 0,
}


def test_snapshots_of_several_vdisks_are_one_request(daemon: PretendedDaemon) -> None:
    daemon.says("snap_create", {}, {})
    assert daemon.run("snap", "create", "/a.img@one", "/dir/b.img@two") == 0
    assert daemon.run("snap", "create", "--all", "/dir", "@one") == 0
    assert [asked for _, asked in daemon.asked] == [
        {"path": "a.img", "paths": ["a.img", "dir/b.img"], "names": ["one", "two"]},
        {"path": "dir", "directory": "dir", "name": "one"},
    ]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("create", "/a.img"), "names no snapshot"),
        (("create", "/a.img@x/y"), "names no snapshot: write PATH@SNAP, without a '/' behind the '@'"),
        (("create", "/a.img@x@y"), "a snapshot's name cannot hold one"),
        (("rename", "/a.img@one", "x@y"), "a snapshot's name cannot hold '@'"),
        (("create", "/a.img@one", "/b.img"), "names no snapshot"),
        (("rm", "/a.img"), "names no snapshot"),
        (("rollback", "/a.img"), "names no snapshot"),
        (("protect", "/a.img@one", "/b.img"), "names no snapshot"),
    ],
)
def test_a_path_that_names_no_snapshot_is_refused_before_anything_is_done(
    words: tuple[str, ...], reason: str, daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.run("snap", *words) == 1
    assert reason in capsys.readouterr().err
    assert daemon.asked == []


@pytest.mark.parametrize("names", [("one", "two"), ("/a@one",)])
def test_with_all_goes_one_name_and_no_path(
    names: tuple[str, ...], daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.run("snap", "create", "--all", daemon.mountpoint, *names) == 1
    assert "goes one name and no path" in capsys.readouterr().err


def test_snapshots_are_listed_a_line_each(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("snap_ls", {"snapshots": [FACTS, FACTS | {"name": "two", "protected": True}]})
    assert daemon.run("snap", "ls", "/a.img") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    path = f"{daemon.mountpoint}/a.img"
    assert rows[0] == [f"{path}@one", "7", "1", "MiB", "4", "KiB", "2", "0", "-", "-"]
    assert rows[1] == [f"{path}@two", "7", "1", "MiB", "4", "KiB", "2", "0", "yes", "-"]


def test_none_is_deleted_if_one_of_them_is_protected(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("snap_info", FACTS, FACTS | {"protected": True})
    assert daemon.run("snap", "rm", "/a.img@one", "/a.img@two") == 1
    assert "a.img@two is protected" in capsys.readouterr().err
    assert [verb for verb, _ in daemon.asked] == ["snap_info"] * 2
    daemon.says("snap_info", FACTS, FACTS)
    daemon.says("snap_rm", {}, {})
    assert daemon.run("snap", "rm", "/a.img@one", "/a.img@two", "--json") == 0
    path = f"{daemon.mountpoint}/a.img"
    assert json.loads(capsys.readouterr().out)["removed"] == [f"{path}@one", f"{path}@two"]
    assert daemon.asked[-2:] == [
        ("snap_rm", {"path": "a.img", "name": "one"}),
        ("snap_rm", {"path": "a.img", "name": "two"}),
    ]


def test_a_snapshot_that_is_named_twice_is_deleted_once(daemon: PretendedDaemon) -> None:
    daemon.says("snap_info", FACTS)
    daemon.says("snap_rm", {})
    assert daemon.run("snap", "rm", "/a.img@one", "/a.img@one") == 0
    assert [verb for verb, _ in daemon.asked] == ["snap_info", "snap_rm"]


def test_a_rollback_says_where_what_was_there_is_kept(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("snap_rollback", {"path": "/a.img", "kept": {"name": "before"}})
    assert daemon.run("snap", "rollback", "/a.img@one") == 0
    assert capsys.readouterr().out.endswith(f"is kept as {daemon.mountpoint}/a.img@before\n")


def test_a_snapshot_stays_with_its_vdisk_when_it_is_renamed(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.run("snap", "rename", "/a.img@one", "/b.img@two") == 1
    assert "give only the new name, two" in capsys.readouterr().err
    for new_name in ("two", "@two", "/a.img@two"):
        daemon.says("snap_rename", {})
        assert daemon.run("snap", "rename", "/a.img@one", new_name) == 0
    assert daemon.asked == [("snap_rename", {"path": "a.img", "name": "one", "new_name": "two"})] * 3


def test_protection_is_switched_on_and_off(daemon: PretendedDaemon) -> None:
    for verb, on in (("protect", True), ("unprotect", False)):
        daemon.says("snap_protect", {}, {})
        assert daemon.run("snap", verb, "/a.img@one", "/b.img@two") == 0
        assert daemon.asked[-2:] == [
            ("snap_protect", {"path": "a.img", "name": "one", "protected": on}),
            ("snap_protect", {"path": "b.img", "name": "two", "protected": on}),
        ]


def test_a_clone_is_of_a_snapshot_or_of_now_and_a_flattening_says_how_far_it_is(
    daemon: PretendedDaemon,
) -> None:
    daemon.says("clone", {}, {})
    daemon.says("flatten", {})
    daemon.news["flatten"] = [{"done": 0, "total": 0, "copied_bytes": 0}]
    assert daemon.run("clone", "/a.img@one", "/dir/b.img") == 0
    assert daemon.run("clone", "/a.img", "/c.img") == 0
    assert daemon.run("flatten", "/c.img") == 0
    assert daemon.asked == [
        ("clone", {"path": "a.img", "name": "one", "new_path": "dir/b.img"}),
        ("clone", {"path": "a.img", "name": None, "new_path": "c.img"}),
        ("flatten", {"path": "c.img"}),
    ]
