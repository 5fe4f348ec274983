"""``kill -9`` of daemon and keeper together under writers: what was flushed is there, nothing else ever was.

``make crash ROUNDS=50`` goes on for longer.
"""

import pathlib
import random
import time

from tests.crash.history import History, observe
from tests.crash.writing import Writing
from tests.mounted_pool import MountedPool

SHORT_ROUNDS = 5
WRITES_MAX = 1_000_000
NOTED_MAX = 400_000
"""A round's kill comes when the notes have reached a random size up to this."""

DIRECT = [0]
"""The vdisk whose acknowledged writes survive the daemon unflushed: they were in its log before the reply."""


def small_vdisks(history: History) -> set[int]:
    return {vdisk for vdisk, _ in {*history.writes, *history.floors}}


def test_every_flushed_write_survives_the_kill_of_daemon_and_keeper(
    unmounted: MountedPool, tmp_path: pathlib.Path, seed: int, rounds: int | None
) -> None:
    chance, history = random.Random(seed), History()
    for round_no in range(rounds or SHORT_ROUNDS):
        unmounted.mount()
        writing = Writing(
            unmounted.mountpoint,
            tmp_path / f"notes{round_no}",
            seed=chance.randrange(1 << 32),
            writes_max=WRITES_MAX,
            round_no=round_no,
        )
        try:
            writing.wait_noted(chance.randrange(NOTED_MAX))
            unmounted.kill()
            writing.wait_ended()
        finally:
            writing.close()
        writing.add_to(history)
        unmounted.mount()  # over the dead mount
        observed = observe(unmounted.mountpoint, small_vdisks(history))
        history.verify(observed, time.time_ns(), acknowledged_counts=DIRECT)
        unmounted.run("check", unmounted.mountpoint)
        history.settle(observed)
        unmounted.umount()


def test_a_writer_does_not_notice_that_the_daemon_dies(
    mounted: MountedPool, tmp_path: pathlib.Path, seed: int
) -> None:
    history = History()
    writing = Writing(mounted.mountpoint, tmp_path / "notes", seed=seed, writes_max=1500, round_no=0)
    try:
        for size in (20_000, 60_000, 100_000):
            writing.wait_noted(size)
            mounted.kill_daemon()
        writing.wait_ended()
        assert "lost the mount" not in writing.printed()
    finally:
        writing.close()
    writing.add_to(history)
    everything = small_vdisks(history)
    observed = observe(mounted.mountpoint, everything)
    history.verify(observed, time.time_ns(), acknowledged_counts=everything)
    mounted.run("check", mounted.mountpoint)
