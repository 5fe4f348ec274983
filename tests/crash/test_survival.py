"""fio, operations and guests under kills at random moments: no error, nothing lost, pauses in a table.

``make survive ROUNDS=200`` goes on for longer.
"""

import contextlib
import hashlib
import os
import pathlib
import signal
import subprocess
import threading
import time

from tests.calls.drawing import PlainChance
from tests.calls.mounted_files import run_on
from tests.crash.assault import Assault
from tests.mounted_pool import COMMAND_S, END_S, MountedPool

SHORT_ROUNDS, SHORT_SEED = 6, 7
VERIFY = (
    "--verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --fallocate=none --group_reporting"
)
JOBS = {
    "direct": "--direct=1 --ioengine=libaio --iodepth=16 --bs=4k --rw=randwrite",
    "buffered": "--ioengine=psync --bs=4k --rw=randwrite --fdatasync=64",
}
DISK = "16M"


def verify_again_and_again(disk: pathlib.Path, options: str, until: threading.Event) -> int:
    """fio writes the whole vdisk and reads it back, at least once; how many times it did."""
    rounds = 0
    while not rounds or not until.is_set():
        command = f"fio --name=job --filename={disk} --size={DISK} {VERIFY} {options} --randseed={rounds + 1}"
        done = subprocess.run(command.split(), capture_output=True, text=True, timeout=COMMAND_S)
        assert done.returncode == 0, f"{disk.name}: {done.stdout}{done.stderr}"
        rounds += 1
    return rounds


def test_fio_verifies_all_it_wrote_while_daemons_and_keepers_die(
    mounted: MountedPool, seed: int, rounds: int | None
) -> None:
    disks = {name: mounted.create(name, DISK) for name in JOBS}
    assault = Assault(mounted, seed=seed, count=rounds or SHORT_ROUNDS)
    failures: list[BaseException] = []

    def run(name: str) -> None:
        try:
            print(name, verify_again_and_again(disks[name], JOBS[name], assault.finished), "rounds of fio")
        except BaseException as problem:
            failures.append(problem)

    threads = [threading.Thread(target=run, args=(name,)) for name in JOBS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assault.stop()
    print(assault.describe())
    assert failures == []
    mounted.run("check", mounted.mountpoint)
    mounted.umount()


def test_random_calls_do_not_notice_that_daemons_and_keepers_die(
    mounted: MountedPool, tmp_path: pathlib.Path, seed: int, rounds: int | None
) -> None:
    run = run_on([mounted], tmp_path / "reference")
    chance = PlainChance(seed if rounds else SHORT_SEED)
    session = run.begin()
    session.drawing.chance = chance
    session.begin()
    assault = Assault(mounted, seed=seed, count=rounds or SHORT_ROUNDS)
    try:
        while not assault.finished.is_set():
            for _ in range(100):
                session.draw(chance.choice(("bytes", "bytes", "bytes", "names")))
            session.compare()
    finally:
        assault.stop()
        print(assault.describe())
    session.finish()
    run.clear(session)
    mounted.run("check", mounted.mountpoint)


def umount_somehow(mounted: MountedPool) -> None:
    """Unmount, whether the daemon ended well or not."""
    with contextlib.suppress(AssertionError):
        mounted.run("umount", mounted.mountpoint)


def test_a_daemon_killed_while_it_puts_vdisks_to_rest_loses_nothing(mounted: MountedPool, seed: int) -> None:
    for number in range(2):
        data = hashlib.shake_128(f"{seed} {number}".encode()).digest(4 << 20)
        disk = mounted.create(f"disk{number}", "4M")
        disk.write_bytes(data)
        pid = mounted.daemon_pid()
        ending = threading.Thread(target=umount_somehow, args=(mounted,))
        ending.start()
        deadline = time.monotonic() + END_S
        while sum("putting vdisks to rest" in line for line in mounted.log_lines()) <= number:
            assert time.monotonic() < deadline
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.kill(pid, signal.SIGKILL)
        ending.join()
        mounted.mount()
        assert disk.read_bytes() == data
        mounted.run("check", mounted.mountpoint)
