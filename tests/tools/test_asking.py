"""Asking the daemon behind a path: which one, what goes along, what a dead or a foreign mount says."""

from dataclasses import replace

import pytest

from fusefs.mount_table import MountEntry
from metadata.errors import Busy, InvalidRequest, Unavailable
from tests.tools.pretended_daemon import PretendedDaemon
from tools.asking import ask, check_same_mount
from tools.paths import Located, locate


def test_the_path_below_the_mount_goes_along_unless_another_is_given(daemon: PretendedDaemon) -> None:
    located = locate(f"{daemon.mountpoint}/dir/a.img")
    daemon.says("info", {"size": 1}, {"size": 2})
    assert ask(located, "info", {"name": "x"}) == {"size": 1}
    assert ask(located, "info", {"path": "other"}) == {"size": 2}
    assert daemon.asked == [("info", {"path": "dir/a.img", "name": "x"}), ("info", {"path": "other"})]


def test_its_errors_and_its_news_come_through(daemon: PretendedDaemon) -> None:
    heard: list[dict[str, object]] = []
    daemon.news["gc"] = [{"done": 1}]
    daemon.says("gc", Busy("in use"))
    with pytest.raises(Busy, match="in use"):
        ask(locate(daemon.mountpoint), "gc", {}, progress=heard.append)
    assert heard == [{"done": 1}]


def test_a_mount_that_nobody_serves_is_not_asked(daemon: PretendedDaemon) -> None:
    assert daemon.record is not None
    daemon.record = replace(daemon.record, keeper_started=daemon.record.keeper_started - 1)
    with pytest.raises(Unavailable, match=r"has lost its daemon: mount it again with 'vdiskfs mount /pool"):
        ask(locate(daemon.mountpoint), "info", {})
    daemon.record = None
    with pytest.raises(Unavailable, match=r"nothing is registered about the mount.*uid=0"):
        ask(locate(daemon.mountpoint), "info", {})
    assert daemon.asked == []


def test_paths_of_two_mounts_are_none_of_one() -> None:
    one, other = (
        Located(f"/{name}/a", "a", MountEntry(f"/{name}", "fuse.vdiskfs", "/pool", 1, 0), None)
        for name in ("one", "other")
    )
    check_same_mount(one, one)
    with pytest.raises(InvalidRequest, match="/one/a and /other/a lie under different mounts"):
        check_same_mount(one, other)
