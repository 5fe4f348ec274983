"""ls, info, du, map, check, scrub: answers in pages put together, tables, and an exit code for what is wrong."""

import json

import pytest

from tests.tools.pretended_daemon import PretendedDaemon


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_a_directory_that_is_told_in_pages_is_one_sorted_list(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    disk = {"kind": "file", "size": 1 << 20, "allocated_bytes": 4096, "version": 3, "mtime_ns": 0}
    daemon.says(
        "ls",
        {"entries": [disk | {"name": "b"}, {"kind": "directory", "name": "dir", "mtime_ns": 0}], "next": 17},
        {"entries": [disk | {"name": "a"}, disk | {"name": "c", "problem": "its log is damaged"}], "next": 5},
        {"entries": [{"kind": "symlink", "name": "d", "target": "a", "mtime_ns": 0}], "next": None},
    )
    assert daemon.run("ls", "/") == 0
    assert [line.split()[:4] for line in lines(capsys)[1:]] == [
        ["a", "1", "MiB", "4"],
        ["b", "1", "MiB", "4"],
        ["c", "?", "?", "?"],
        ["d", "->", "a", "-"],
        ["dir/", "-", "-", "-"],
    ]
    assert [asked["after"] for _, asked in daemon.asked] == [0, 17, 5]


def test_an_empty_directory_is_silent(daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.says("ls", {"entries": [], "next": None})
    assert daemon.run("ls", "/") == 0
    assert lines(capsys) == []


def test_facts_are_asked_of_a_vdisk_or_of_its_snapshot(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("info", {"size": 4096})
    daemon.says("snap_info", {"version": 7})
    assert daemon.run("info", "/a.img") == 0
    assert daemon.run("info", "/a.img@one") == 0
    assert lines(capsys) == ["size  4 KiB (4096 bytes)", "version  7"]
    assert [verb for verb, _ in daemon.asked] == ["info", "snap_info"]


def test_what_a_directory_occupies_ends_with_the_sum(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    sums = {"vdisks": 1, "size": 1 << 20, "allocated_bytes": 4096}
    entries = [sums | {"name": "dir", "kind": "directory"}, sums | {"name": "a", "kind": "file"}]
    daemon.says("du", {"entries": entries, "total": {"vdisks": 2, "size": 2 << 20, "allocated_bytes": 8192}})
    daemon.news["du"] = [{"done": 1, "total": 2}]
    assert daemon.run("du", "/") == 0
    assert [line.split() for line in lines(capsys)[1:]] == [
        ["dir/", "1", "1", "MiB", "4", "KiB"],
        ["a", "1", "1", "MiB", "4", "KiB"],
        ["total", "2", "2", "MiB", "8", "KiB"],
    ]


@pytest.mark.parametrize(
    ("words", "lengths"), [((), [None, None]), (("--offset", "4096", "--length", "10000"), [10000, 9000])]
)
def test_a_map_is_asked_for_until_its_end(
    words: tuple[str, ...],
    lengths: list[int | None],
    daemon: PretendedDaemon,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = 4096 if words else 0
    extent = {"offset": start, "length": 1000, "kind": "data", "group": 1, "position": 0, "version": None}
    daemon.says(
        "map",
        {"extents": [extent], "next_offset": start + 1000, "size": 1 << 20},
        {"extents": [{"offset": start + 1000, "length": 5, "kind": "hole"}], "next_offset": None, "size": 9},
    )
    assert daemon.run("map", "/a.img@one", "--json", *words) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["kind"] for each in told["extents"]] == ["data", "hole"]
    assert "next_offset" not in told
    assert [(asked["offset"], asked["length"]) for _, asked in daemon.asked] == [
        (start, lengths[0]),
        (start + 1000, lengths[1]),
    ]


def test_what_is_not_known_of_an_extent_is_a_dash(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("map", {"extents": [{"offset": 0, "length": 5, "kind": "hole"}], "next_offset": None})
    assert daemon.run("map", "/a.img") == 0
    assert lines(capsys)[1].split() == ["0", "5", "hole", "-", "-", "-", "-", "-"]


@pytest.mark.parametrize("verb", ["check", "scrub"])
def test_a_finding_is_a_line_and_a_failure(
    verb: str, daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.news[verb] = [{"done": 1, "total": 2}, {"vdisk": 20}]
    findings = [
        {"path": "/a\x1b.img", "problem": "checksum does not match", "offset": 4096},
        {"vdisk": 21},
    ]
    daemon.says(verb, {"vdisks": 2, "findings": []}, {"vdisks": 2, "findings": findings})
    assert daemon.run(verb, "/") == 0
    assert lines(capsys) == ["2 vdisks, no problems"]
    assert daemon.run(verb, "/") == 1
    assert lines(capsys) == [
        r"/a\x1b.img: checksum does not match offset=4096",
        "vdisk 21: damaged vdisk=21",
        "2 vdisks, 2 problems",
    ]
