"""A mount between two daemons, or with one that is asked what it does: what its operator sees."""

import os
import pathlib
import signal
import threading

from tests.mounted_nodes import wait_until
from tests.mounted_pool import MountedPool

LATER_FORMAT = "7\n"
STACK = "(most recent call first)"


def break_state(mounted: MountedPool) -> None:
    """From now on no daemon can start."""
    (mounted.state / "format").write_text(LATER_FORMAT)


def mend_state(mounted: MountedPool) -> None:
    (mounted.state / "format").write_text("1\n")


def is_waiting_and_says_why(mounted: MountedPool) -> bool:
    facts = mounted.json("status", mounted.mountpoint)
    return facts["service"] == "waiting" and "format 7" in str(facts["last_error"])


def test_a_mount_whose_daemon_cannot_start_waits_says_why_and_goes_on_or_goes(mounted: MountedPool) -> None:
    mounted.expects_errors = True
    disk = mounted.create("disk", "1M")
    disk.write_bytes(b"x" * (1 << 20))
    break_state(mounted)
    mounted.kill_daemon()
    found: list[bytes] = []
    guest = threading.Thread(target=lambda: found.append(disk.read_bytes()))
    guest.start()
    wait_until(lambda: is_waiting_and_says_why(mounted), "the mount says that it waits, and why")
    refused = mounted.run("upgrade", mounted.mountpoint, exit_code=1)
    assert "not upgraded, and no daemon serves: the state directory is of format 7" in refused.stderr
    assert not found
    mend_state(mounted)
    mounted.run("upgrade", mounted.mountpoint)  # who does not want to wait for the next attempt
    guest.join()
    assert found == [b"x" * (1 << 20)]
    break_state(mounted)
    mounted.kill_daemon()
    wait_until(lambda: is_waiting_and_says_why(mounted), "the mount says that it waits, and why")
    told = mounted.run("umount", mounted.mountpoint, exit_code=1).stderr
    assert "unmounted, but the state directory is of format 7" in told
    assert mounted.processes() == []
    mend_state(mounted)
    mounted.mount()
    assert disk.read_bytes() == b"x" * (1 << 20)
    mounted.run("check", mounted.mountpoint)


def test_status_says_that_a_keeper_is_gone_and_how_to_get_another(mounted: MountedPool) -> None:
    before = mounted.json("status", mounted.mountpoint)
    assert "keeper" not in before
    os.kill(before["keeper_pid"], signal.SIGKILL)
    wait_until(lambda: "keeper" in mounted.json("status", mounted.mountpoint), "status tells of the keeper")
    told = mounted.json("status", mounted.mountpoint)
    assert (told["service"], told["pid"]) == ("serving", before["pid"])
    assert f"vdiskfs mount {mounted.pool} {mounted.mountpoint}" in told["keeper"]
    mounted.mount()
    assert "keeper" not in mounted.json("status", mounted.mountpoint)


def test_keeper_and_daemon_tell_where_they_are_when_asked_with_a_signal(mounted: MountedPool) -> None:
    before = mounted.json("status", mounted.mountpoint)
    log = pathlib.Path(before["log"])
    stacks = log.read_text().count(STACK)
    assert stacks == 0
    for who, frame in (("pid", "fusefs/node.py"), ("keeper_pid", "fusefs/keeper.py")):
        os.kill(before[who], signal.SIGUSR1)
        wait_until(lambda frame=frame: f'{frame}"' in log.read_text(), f"{frame} is in the log")
    after = mounted.json("status", mounted.mountpoint)
    assert (after["pid"], after["keeper_pid"]) == (before["pid"], before["keeper_pid"])
    assert log.read_text().count(STACK) > 1
