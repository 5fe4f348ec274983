"""trash ls, restore, purge: what is listed, which one is meant, and what would purge more than was said."""

import json
import time

import pytest

from tests.tools.pretended_daemon import PretendedDaemon
from tools.durations import format_duration

MINUTE_NS = 60 * 10**9
ENTRY = {"path": "/dir/a.img", "id": 20, "size": 1 << 20, "own_bytes": 4096, "snapshots": 2, "deleted_ns": 0}


def test_entries_are_listed_with_what_is_left_of_their_time(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 1000 * MINUTE_NS)
    left = [61 * MINUTE_NS, 1, -MINUTE_NS]
    entries = [ENTRY | {"until_ns": 1000 * MINUTE_NS + each} for each in left]
    entries[1] = entries[1] | {"size": None, "own_bytes": None}
    daemon.says("trash_ls", {"entries": entries, "keep_s": 3600})
    assert daemon.run("trash", "ls", "/") == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    rows = [line.split() for line in lines]
    assert [row[0] for row in rows] == [f"{daemon.mountpoint}/dir/a.img"] * 3
    assert rows[0][1:7] == ["20", "1", "MiB", "4", "KiB", "2"]
    assert rows[1][1:5] == ["20", "?", "?", "2"]
    for line, left_s in zip(lines, (3660, 60, 0), strict=True):
        assert line.endswith(f"  {format_duration(left_s)}")


def test_an_empty_trash_is_silent_and_one_that_is_none_says_so(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("trash_ls", {"entries": [], "keep_s": 60}, {"entries": [], "keep_s": 0})
    assert daemon.run("trash", "ls", "/") == 0
    assert capsys.readouterr().out == ""
    assert daemon.run("trash", "ls", "/") == 0
    assert "formatted with --trash 0" in capsys.readouterr().out


def test_a_vdisk_comes_back_to_where_it_was_or_elsewhere(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("trash_restore", {"path": "/dir/a.img"}, {"path": "/b.img"})
    assert daemon.run("trash", "restore", "/dir/a.img") == 0
    assert capsys.readouterr().out == f"restored {daemon.mountpoint}/dir/a.img\n"
    assert daemon.run("trash", "restore", "/", "--id", "20", "--to", "/b.img", "--json") == 0
    assert json.loads(capsys.readouterr().out)["path"] == "/b.img"
    assert [asked for _, asked in daemon.asked] == [
        {"path": "dir/a.img", "id": None},
        {"path": "", "id": 20, "to": "b.img"},
    ]


@pytest.mark.parametrize("words", [("restore",), ("purge",)])
def test_without_a_path_or_an_id_nothing_is_asked(
    words: tuple[str, ...], daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.run("trash", *words) == 1
    assert "which one?" in capsys.readouterr().err
    assert daemon.asked == []


def test_the_whole_trash_is_purged_only_from_the_mountpoint(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    assert daemon.run("trash", "purge", "--all", "--id", "20") == 1
    assert "exclude each other" in capsys.readouterr().err
    assert daemon.run("trash", "purge", "--all", "/dir") == 1
    assert "--all purges the whole trash" in capsys.readouterr().err
    assert daemon.asked == []
    daemon.says("trash_purge", {"purged": 3}, {"purged": 1})
    assert daemon.run("trash", "purge", "--all", "/") == 0
    assert daemon.run("trash", "purge", "/dir/a.img", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"format": 1, "purged": 1}
    assert [asked for _, asked in daemon.asked] == [
        {"path": "", "id": None, "all": True},
        {"path": "dir/a.img", "id": None, "all": False},
    ]
