"""cache stats, cache warm: figures, sentences, and an exit code that says whether all is in the cache."""

import json

import pytest

from tests.tools.pretended_daemon import PretendedDaemon
from tools.commands_cache import NO_CACHE

MIB = 1 << 20
WARMED = {
    "has_cache": True,
    "path": "/a.img",
    "name": None,
    "wanted_bytes": 10 * MIB,
    "fetched_bytes": 4 * MIB,
    "missing_bytes": 0,
    "limit_bytes": 64 * MIB,
}


def test_figures_are_shown_of_the_whole_mount(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.says("cache_stats", {"has_cache": True, "used_bytes": 4 * MIB, "hits": 7})
    assert daemon.run("cache", "stats", "/dir") == 0
    assert capsys.readouterr().out.splitlines() == ["used  4 MiB (4194304 bytes)", "hits  7"]
    assert daemon.asked == [("cache_stats", {"path": ""})]


def test_a_directory_pool_has_no_cache(daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.says("cache_stats", {"has_cache": False}, {"has_cache": False})
    daemon.says("cache_warm", {"path": "/a.img", "name": None, "has_cache": False})
    assert daemon.run("cache", "stats", "/") == 0
    assert daemon.run("cache", "warm", "/a.img") == 0
    assert capsys.readouterr().out == f"{NO_CACHE}\n" * 2
    assert daemon.run("cache", "stats", "/", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"format": 1, "has_cache": False}


@pytest.mark.parametrize(
    ("missing", "code", "words"),
    [
        (0, 0, "10 MiB in the cache, 4 MiB of it fetched now"),
        (
            MIB,
            1,
            "1 MiB of 10 MiB did not fit in the cache, which holds 64 MiB: mount with a larger --cache; 4 MiB fetched now",
        ),
    ],
)
def test_what_did_not_fit_is_said_and_is_a_failure(
    missing: int, code: int, words: str, daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.news["cache_warm"] = [{"done": 1, "total": 2}]
    daemon.says("cache_warm", WARMED | {"missing_bytes": missing}, WARMED | {"missing_bytes": missing})
    assert daemon.run("cache", "warm", "/a.img@one") == code
    assert capsys.readouterr().out == f"{words}\n"
    assert daemon.run("cache", "warm", "/a.img@one", "--json") == code
    assert json.loads(capsys.readouterr().out)["path"] == f"{daemon.mountpoint}/a.img"
    assert daemon.asked == [("cache_warm", {"path": "a.img", "name": "one"})] * 2
