"""Many processes and threads on one vdisk at once: direct, mapped and buffered, as far as Linux defines what they see."""

import mmap
import os
import pathlib
import subprocess
import sys
import threading

import pytest

from tests.mount.io_worker import BLOCK, THREADS, file_size
from tests.mounted_pool import COMMAND_S, MountedPool

PROCESSES = 2
SHORT_STEPS, STEPS_A_ROUND = 400, 2000
WORKER = pathlib.Path(__file__).with_name("io_worker.py")


def workers(path: pathlib.Path, *, seed: int, steps: int) -> list[subprocess.Popen[str]]:
    command = [sys.executable, str(WORKER), str(path)]
    return [
        subprocess.Popen(
            [*command, str(number), str(PROCESSES), str(seed), str(steps)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(PROCESSES)
    ]


@pytest.mark.parametrize("dies", [False, True], ids=["alone", "while the daemon dies"])
def test_whoever_has_bytes_of_its_own_reads_what_it_wrote_by_whatever_way(
    mounted: MountedPool, seed: int, rounds: int | None, dies: bool
) -> None:
    disk = mounted.create("disk", file_size(PROCESSES * THREADS))
    steps = SHORT_STEPS if rounds is None else rounds * STEPS_A_ROUND
    running = workers(disk, seed=seed, steps=steps)
    if dies:
        mounted.kill_daemon()
    for process in running:
        said, _ = process.communicate(timeout=None if rounds else COMMAND_S)
        assert process.returncode == 0, said
    before = disk.read_bytes()
    mounted.umount()
    mounted.mount()
    assert disk.read_bytes() == before
    assert mounted.json("check", mounted.mountpoint)["findings"] == []


def test_blocks_that_many_write_directly_are_never_seen_half_written(mounted: MountedPool) -> None:
    disk, blocks, torn = mounted.create("disk", 8 * BLOCK), 8, []
    fd = os.open(disk, os.O_RDWR | os.O_DIRECT)
    writing = threading.Semaphore(0)

    def write(stamp: int) -> None:
        with mmap.mmap(-1, blocks * BLOCK) as memory:
            for number in range(150):
                count = 1 + (number + stamp) % 4
                at = (number * 3 + stamp) % (blocks - count + 1)
                memory[: count * BLOCK] = bytes([stamp * 50 + number % 50 + 1]) * (count * BLOCK)
                with memoryview(memory) as whole, whole[: count * BLOCK] as part:
                    os.pwrite(fd, part, at * BLOCK)
        writing.release()

    def read() -> None:
        with mmap.mmap(-1, blocks * BLOCK) as memory:
            while not writing.acquire(blocking=False):
                os.preadv(fd, [memory], 0)
                found = memory[:]
                torn.extend(
                    block
                    for block in range(blocks)
                    if len(set(found[block * BLOCK : (block + 1) * BLOCK])) != 1
                )

    threads = [threading.Thread(target=write, args=(stamp,)) for stamp in range(4)]
    threads += [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(fd)
    assert torn == []


def test_records_that_many_append_are_all_there_whole_and_once(mounted: MountedPool) -> None:
    log, per_writer, writers = mounted.mountpoint / "log", 200, 4

    def append(writer: int) -> None:
        fd = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for number in range(per_writer):
            record = f"{writer} {number} ".ljust(10 + (number * 37) % 3000, ".") + "\n"
            assert os.write(fd, record.encode()) == len(record)
        os.close(fd)

    threads = [threading.Thread(target=append, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = [line.split()[:2] for line in log.read_text().splitlines()]
    for writer in range(writers):
        assert [int(number) for who, number in found if int(who) == writer] == list(range(per_writer))
