"""A mount passes from daemon to daemon and from keeper to keeper: upgrades, killed keepers, what systemd kept."""

import json
import os
import pathlib
import subprocess
import time
from dataclasses import replace

import pytest

from fusefs import launch, state_directory
from fusefs.settings import UpgradeSettings
from metadata.errors import Exists, InvalidRequest, Unavailable
from tests.fusefs.fake_mount import FakeMount


def is_served(mount: FakeMount) -> bool:
    return os.statvfs(mount.mountpoint).f_blocks == 1000


def test_an_upgrade_puts_another_daemon_in_place_under_the_same_keeper(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    before = fake_mount.record()
    fake_mount.upgrade()
    after = fake_mount.record()
    assert is_served(fake_mount)
    assert (after.keeper, after.upgrades, after.restarts) == (before.keeper, 1, 0)
    assert after.daemon != before.daemon
    assert not before.daemon.is_alive()
    assert after.last_pause_ms is not None
    fake_mount.end()


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [("refuse", "goes on: the pool is not to my taste"), ("vanish", "goes on: it ended before it was ready")],
)
def test_a_successor_that_cannot_serve_is_refused_and_the_daemon_never_notices(
    fake_mount: FakeMount, behaviour: str, reason: str
) -> None:
    fake_mount.launch()
    before = fake_mount.record()
    with pytest.raises(Unavailable, match=reason):
        fake_mount.upgrade(behaviour)
    after = fake_mount.record()
    assert (after.daemon, after.upgrades, after.restarts) == (before.daemon, 0, 0)
    assert is_served(fake_mount)
    fake_mount.upgrade()
    fake_mount.end()


def test_a_successor_that_dies_when_it_is_its_turn_is_followed_by_the_release_before(
    fake_mount: FakeMount,
) -> None:
    fake_mount.launch()
    with pytest.raises(Unavailable, match=r"a daemon of the release before is started: .*exit status 6"):
        fake_mount.upgrade("stumbles")
    assert is_served(fake_mount)
    assert fake_mount.record().upgrades == 0
    fake_mount.end()


def test_later_daemons_are_of_the_release_that_an_upgrade_brought(fake_mount: FakeMount) -> None:
    fake_mount.launch("ends-badly")
    fake_mount.upgrade("serve")
    fake_mount.kill(fake_mount.record().daemon)
    assert is_served(fake_mount)
    fake_mount.end()  # the release before would have ended badly


def test_an_upgrade_replaces_daemons_that_keep_dying(fake_mount: FakeMount) -> None:
    fake_mount.launch("dies-1000")
    fake_mount.kill(fake_mount.record().daemon)
    fake_mount.upgrade("serve")
    assert is_served(fake_mount)
    fake_mount.end()


def test_an_upgrade_that_ends_a_longer_wait_says_how_long_it_was(fake_mount: FakeMount) -> None:
    fake_mount.launch("refuses-later")
    since = time.monotonic()
    fake_mount.kill(fake_mount.record().daemon)
    fake_mount.wait_logged(
        "starting another in 1.0 s"
    )  # the third has been refused, with half a second behind it
    waited_ms = (time.monotonic() - since) * 1000
    with pytest.raises(Unavailable, match="not upgraded, and no daemon serves: the pool is not to my taste"):
        fake_mount.upgrade("refuse")
    fake_mount.upgrade("serve")
    pause_ms = fake_mount.record().last_pause_ms
    assert pause_ms is not None
    assert pause_ms > waited_ms / 2
    fake_mount.end()


def test_an_upgrade_changes_settings_for_this_daemon_and_all_later_ones(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    before = fake_mount.told()
    for listen, cache_bytes in (("127.0.0.1:7", 0), ("", 1 << 30)):
        with pytest.raises(Unavailable):
            fake_mount.upgrade("stumbles", listen="127.0.0.1:8", cache_bytes=1 << 20)
        fake_mount.upgrade(listen=listen, cache_bytes=cache_bytes)
    after = fake_mount.told()
    assert (
        (after.listen, after.cache_bytes) == ("127.0.0.1:7", 1 << 30) != (before.listen, before.cache_bytes)
    )
    fake_mount.kill(fake_mount.record().daemon)
    assert is_served(fake_mount)
    assert (fake_mount.told().listen, fake_mount.told().cache_bytes) == ("127.0.0.1:7", 1 << 30)
    fake_mount.end()


def test_an_upgrade_that_changes_no_settings_is_understood_by_earlier_releases() -> None:
    assert set(json.loads(UpgradeSettings(daemon=("python",), pythonpath="/x").to_json())) == {
        "daemon",
        "pythonpath",
    }


def test_a_mount_that_goes_during_an_upgrade_leaves_no_successor(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    path = fake_mount.ask_for_upgrade("dawdles")
    with path:
        assert b"progress" in path.recv(4096)  # the successor was started
        fake_mount.end()
        assert b"unmounted meanwhile" in path.recv(4096)
    assert processes_with(str(fake_mount.state)) == []


def test_a_second_upgrade_at_once_and_nonsense_are_refused(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    with fake_mount.ask_for_upgrade("dawdles") as first:
        assert b"progress" in first.recv(4096)
        with pytest.raises(Unavailable, match="another upgrade goes on"):
            fake_mount.upgrade()
    with fake_mount.keeper_socket() as stranger:
        stranger.sendall(b"open sesame\n")
        assert b"not a request" in stranger.recv(4096)
    assert is_served(fake_mount)
    fake_mount.end()


def test_a_new_keeper_takes_the_mount_over_from_a_daemon_that_lost_its_own(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    before = fake_mount.record()
    fake_mount.kill(before.keeper)
    assert is_served(fake_mount)
    fake_mount.launch()
    after = fake_mount.record()
    assert after.daemon == before.daemon
    assert after.keeper != before.keeper
    assert is_served(fake_mount)
    with pytest.raises(Exists, match="busy"):
        fake_mount.launch()
    fake_mount.end()
    assert not after.is_alive()
    assert not fake_mount.is_registered()


def test_a_keeper_that_took_a_mount_over_restarts_and_upgrades_its_daemon(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    fake_mount.kill(fake_mount.record().keeper)
    fake_mount.launch()
    fake_mount.upgrade()
    fake_mount.kill(fake_mount.record().keeper)
    fake_mount.launch()
    fake_mount.kill(fake_mount.record().daemon)
    assert is_served(fake_mount)
    record = fake_mount.record()
    assert (record.upgrades, record.restarts) == (1, 1)
    fake_mount.end()


def test_a_taken_over_daemon_that_fails_at_the_end_is_reported_by_the_unmount(fake_mount: FakeMount) -> None:
    fake_mount.launch("ends-badly")
    fake_mount.kill(fake_mount.record().keeper)
    fake_mount.launch("ends-badly")
    with pytest.raises(Unavailable, match="unmounted, but the daemon ended with a status unknown"):
        fake_mount.end()


def test_another_pool_does_not_take_a_mount_over(fake_mount: FakeMount) -> None:
    fake_mount.launch()
    fake_mount.kill(fake_mount.record().keeper)
    other = fake_mount.pool.with_name("other")
    other.mkdir()
    with pytest.raises(Exists, match="busy"):
        launch.launch(replace(fake_mount.settings(), pool=str(other)), progress=lambda text: None)
    assert is_served(fake_mount)
    fake_mount.launch()
    fake_mount.end()


def test_one_mount_has_one_keeper(tmp_path: pathlib.Path) -> None:
    first = state_directory.lock_for_keeper(str(tmp_path), "/mnt")
    with pytest.raises(Unavailable, match="in use by the mount on /mnt"):
        state_directory.lock_for_keeper(str(tmp_path), "/mnt")
    os.close(first)


def test_a_request_for_an_upgrade_names_a_command_and_nothing_unknown() -> None:
    wanted = UpgradeSettings(daemon=("python", "-m", "fusefs.node"), pythonpath="/code")
    assert UpgradeSettings.from_json(wanted.to_json()) == wanted
    assert UpgradeSettings.from_json('{"daemon": ["x"]}').pythonpath == ""
    with pytest.raises(InvalidRequest):
        UpgradeSettings.from_json('{"daemon": ["x"], "uid": 0}')


def processes_with(text: str) -> list[int]:
    """The processes that have this in their arguments."""
    found = subprocess.run(["pgrep", "-f", text], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]
