"""``vdiskfs upgrade`` and a new keeper, under writers, through the kernel."""

import json
import os
import pathlib
import signal
import time

from tests.crash.history import History, observe
from tests.crash.writing import Writing
from tests.mounted_pool import MountedPool, wait_gone

SHORT_ROUNDS = 3
NOTED_BETWEEN = 15_000
"""Bytes of the writer's notes from one event to the next."""


def small_vdisks(history: History) -> set[int]:
    return {vdisk for vdisk, _ in {*history.writes, *history.floors}}


def check_history(mounted: MountedPool, writing: Writing) -> None:
    """Everything acknowledged is there, and the pool is whole."""
    history = History()
    writing.add_to(history)
    everything = small_vdisks(history)
    observed = observe(mounted.mountpoint, everything)
    history.verify(observed, time.time_ns(), acknowledged_counts=everything)
    mounted.run("check", mounted.mountpoint)


def test_upgrades_under_writers_lose_nothing_and_cost_no_error(
    mounted: MountedPool, tmp_path: pathlib.Path, seed: int, rounds: int | None
) -> None:
    count = rounds or SHORT_ROUNDS
    writing = Writing(
        mounted.mountpoint, tmp_path / "notes", seed=seed, writes_max=500 * (count + 1), round_no=0
    )
    pauses = []
    try:
        for number in range(count):
            writing.wait_noted(NOTED_BETWEEN * (number + 1))
            facts = mounted.json("upgrade", mounted.mountpoint)
            assert facts["pid"] != facts["pid_before"]
            pauses.append(facts["pause_ms"])
        writing.wait_ended()
        assert "lost the mount" not in writing.printed()
    finally:
        writing.close()
    print(f"upgrades {count}, pauses in ms {sorted(pauses)}")
    check_history(mounted, writing)
    status = mounted.json("status", mounted.mountpoint)
    assert (status["upgrades"], status["restarts"], status["last_pause_ms"]) == (count, 0, pauses[-1])


def test_an_open_file_without_a_name_outlives_upgrades(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "1M")
    with disk.open("r+b", buffering=0) as file:
        disk.unlink()
        file.write(b"still here")
        mounted.run("upgrade", mounted.mountpoint)
        assert os.pread(file.fileno(), 10, 0) == b"still here"
        os.fsync(file.fileno())
        mounted.run("upgrade", mounted.mountpoint)
        assert os.pread(file.fileno(), 10, 0) == b"still here"
    mounted.run("check", mounted.mountpoint)


def test_a_release_that_cannot_read_pool_or_state_is_refused_and_the_old_one_serves_on(
    mounted: MountedPool,
) -> None:
    disk = mounted.create("disk", "1M")
    pid = mounted.daemon_pid()
    for path, content in (
        (mounted.state / "format", "7\n"),
        (mounted.pool / "vdiskfs.pool", json.dumps({"format": 7, "pool": "p", "salt": "0"})),
    ):
        before = path.read_text()
        path.write_text(content)  # as if a later release had written it
        refused = mounted.run("upgrade", mounted.mountpoint, exit_code=1)
        path.write_text(before)
        assert "the running daemon goes on" in refused.stderr
        assert "format 7" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        assert mounted.daemon_pid() == pid
        assert disk.read_bytes() == bytes(1 << 20)
    assert "not upgraded" in "\n".join(mounted.log_lines())
    mounted.expects_errors = True  # the successors' own words


def test_a_killed_keeper_costs_nothing_and_a_new_one_takes_the_mount_over(
    mounted: MountedPool, tmp_path: pathlib.Path, seed: int
) -> None:
    writing = Writing(mounted.mountpoint, tmp_path / "notes", seed=seed, writes_max=1500, round_no=0)
    try:
        writing.wait_noted(NOTED_BETWEEN)
        before = mounted.json("status", mounted.mountpoint)
        os.kill(before["keeper_pid"], signal.SIGKILL)
        wait_gone(before["keeper_pid"])
        refused = mounted.run("upgrade", mounted.mountpoint, exit_code=1)
        assert "vdiskfs mount" in refused.stderr
        mounted.mount()
        after = mounted.json("status", mounted.mountpoint)
        assert after["pid"] == before["pid"]
        assert after["keeper_pid"] != before["keeper_pid"]
        writing.wait_noted(2 * NOTED_BETWEEN)
        mounted.kill_daemon()
        writing.wait_noted(3 * NOTED_BETWEEN)
        mounted.run("upgrade", mounted.mountpoint)
        writing.wait_ended()
        assert "lost the mount" not in writing.printed()
    finally:
        writing.close()
    check_history(mounted, writing)
    mounted.umount()
