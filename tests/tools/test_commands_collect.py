"""gc: what was found, what was freed, and a failure where some vdisk could not be collected."""

import json

import pytest

from tests.tools.pretended_daemon import PretendedDaemon

MIB = 1 << 20
COLLECTED = {
    "dry_run": False,
    "pool_bytes": 10 * MIB,
    "live_bytes": 6 * MIB,
    "garbage_bytes": 4 * MIB,
    "freed_bytes": 3 * MIB,
    "failed": 0,
}


@pytest.mark.parametrize(
    ("change", "code", "words"),
    [
        ({}, 0, "3 MiB freed"),
        ({"failed": 2}, 1, "3 MiB freed; 2 vdisks could not be collected, see the log"),
        ({"dry_run": True}, 0, "4 MiB could be collected"),
    ],
)
def test_the_outcome_is_one_sentence(
    change: dict[str, object],
    code: int,
    words: str,
    daemon: PretendedDaemon,
    capsys: pytest.CaptureFixture[str],
) -> None:
    daemon.news["gc"] = [{"vdisks": 1, "of": 2, "done": 1, "total": 2}]
    daemon.says("gc", COLLECTED | change)
    assert daemon.run("gc", "/dir", *["--dry-run"] * bool(change.get("dry_run"))) == code
    assert capsys.readouterr().out == f"10 MiB in the pool, 6 MiB in use, {words}\n"
    assert daemon.asked == [("gc", {"path": "dir", "dry_run": bool(change.get("dry_run"))})]


def test_without_a_path_the_whole_mount_is_meant(
    daemon: PretendedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(daemon.mountpoint)
    daemon.says("gc", COLLECTED)
    assert daemon.run("gc", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"format": 1, **COLLECTED, "path": daemon.mountpoint}
    assert daemon.asked == [("gc", {"path": "", "dry_run": False})]
