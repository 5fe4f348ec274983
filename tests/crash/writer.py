"""A process that writes to vdisks in every way and notes what it did, until it is done or the mount is lost.

    python writer.py MOUNTPOINT NOTES SEED WRITES_MAX ROUND

Its notes go to a file outside the mount, each with one ``write`` before or after the fact, never buffered.
Vdisk 0 is written directly, vdisk 1 through the page cache, each by two threads; small vdisks numbered from
``ROUND * 1000 + 10`` are created, written, renamed.
"""

import ctypes
import functools
import mmap
import os
import pathlib
import random
import sys
import threading
import time
from collections.abc import Callable

from tests.crash.history import BLOCK, FIRST_NAME, NAME, SECOND_NAME, SIZE, block_bytes, file_name

DISK_BLOCKS = 512
DISK_BYTES = DISK_BLOCKS * BLOCK
WRITE_BLOCKS_MAX = 24
SMALL_BLOCKS = 4
SMALL_FIRST = 10
SMALL_PER_ROUND = 1000
KEEP_SIZE_PUNCH_HOLE = 3

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Notes:
    """The file of notes; one line a fact, written at once."""

    def __init__(self, path: pathlib.Path) -> None:
        self.descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, action: str, vdisk: int, registers: range | tuple[int, ...], value: int) -> None:
        now = time.clock_gettime_ns(time.CLOCK_REALTIME)
        lines = "".join(f"{now} {action} {vdisk} {register} {value}\n" for register in registers)
        os.write(self.descriptor, lines.encode())

    def flush(self, vdisk: int, descriptor: int, *, datasync: bool = False) -> None:
        worker = threading.get_ident()
        self.note("flush", vdisk, (0,), worker)
        (os.fdatasync if datasync else os.fsync)(descriptor)
        self.note("flushed", vdisk, (0,), worker)


class Writer:
    """One thread: half the blocks of one vdisk are its own, so that their order is known."""

    def __init__(
        self, notes: Notes, chance: random.Random, *, vdisk: int, path: pathlib.Path, blocks: range
    ) -> None:
        self.notes, self.chance, self.vdisk, self.blocks = notes, chance, vdisk, blocks
        self.descriptor = os.open(path, os.O_RDWR | (os.O_DIRECT if vdisk == 0 else 0))
        self.buffer = mmap.mmap(-1, WRITE_BLOCKS_MAX * BLOCK)

    def run(self, writes_max: int) -> None:
        for _ in range(writes_max):
            dice = self.chance.random()
            if dice < 0.15:
                self.notes.flush(self.vdisk, self.descriptor, datasync=self.chance.random() < 0.5)
            elif dice < 0.2:
                self.punch()
            else:
                self.write()

    def span(self) -> range:
        count = self.chance.choice((1, 1, 1, 2, 5, WRITE_BLOCKS_MAX))
        first = self.chance.randrange(self.blocks.start, self.blocks.stop - count + 1)
        return range(first, first + count)

    def write(self) -> None:
        span, value = self.span(), time.time_ns()
        length = len(span) * BLOCK
        self.buffer[:length] = b"".join(block_bytes(self.vdisk, block_no, value) for block_no in span)
        self.notes.note("write", self.vdisk, span, value)
        view = memoryview(self.buffer)[:length]
        assert os.pwritev(self.descriptor, [view], span.start * BLOCK) == length
        self.notes.note("wrote", self.vdisk, span, value)

    def punch(self) -> None:
        span = self.span()
        self.notes.note("write", self.vdisk, span, 0)
        if libc.fallocate(self.descriptor, KEEP_SIZE_PUNCH_HOLE, span.start * BLOCK, len(span) * BLOCK):
            raise OSError(ctypes.get_errno(), "fallocate")
        self.notes.note("wrote", self.vdisk, span, 0)


def make_small_vdisks(
    notes: Notes, mountpoint: pathlib.Path, *, numbers: range, chance: random.Random
) -> None:
    """Create, write, resize, flush and rename one small vdisk after the other."""
    folder = os.open(mountpoint, os.O_RDONLY)
    for vdisk in numbers:
        first, second = (mountpoint / file_name(vdisk, name) for name in (FIRST_NAME, SECOND_NAME))
        notes.note("write", vdisk, (NAME,), FIRST_NAME)
        descriptor = os.open(first, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        notes.note("wrote", vdisk, (NAME,), FIRST_NAME)
        for size in (SMALL_BLOCKS * BLOCK, chance.randrange(3) * BLOCK, SMALL_BLOCKS * BLOCK):
            cut = range(size // BLOCK, SMALL_BLOCKS)
            notes.note("write", vdisk, (SIZE,), size)
            notes.note("write", vdisk, cut, 0)
            os.ftruncate(descriptor, size)
            notes.note("wrote", vdisk, (SIZE, *cut), size)
            for block_no in range(size // BLOCK):
                value = time.time_ns()
                notes.note("write", vdisk, (block_no,), value)
                os.pwrite(descriptor, block_bytes(vdisk, block_no, value), block_no * BLOCK)
                notes.note("wrote", vdisk, (block_no,), value)
            if chance.random() < 0.5:
                notes.flush(vdisk, descriptor)
        if chance.random() < 0.5:
            notes.note("write", vdisk, (NAME,), SECOND_NAME)
            os.rename(first, second)
            notes.note("wrote", vdisk, (NAME,), SECOND_NAME)
            notes.flush(vdisk, descriptor)
            os.fsync(folder)
        os.close(descriptor)
    os.close(folder)


def prepare(mountpoint: pathlib.Path, notes: Notes) -> None:
    """Make sure the two large vdisks are there, flushed."""
    for vdisk in (0, 1):
        path = mountpoint / file_name(vdisk, FIRST_NAME)
        if not path.exists():
            notes.note("write", vdisk, (SIZE,), DISK_BYTES)
            notes.note("write", vdisk, (NAME,), FIRST_NAME)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
            os.ftruncate(descriptor, DISK_BYTES)
            notes.note("wrote", vdisk, (SIZE, NAME), 0)
            notes.flush(vdisk, descriptor)
            os.close(descriptor)


def main() -> None:
    mountpoint, notes = pathlib.Path(sys.argv[1]), Notes(pathlib.Path(sys.argv[2]))
    chance, writes_max, round_no = random.Random(int(sys.argv[3])), int(sys.argv[4]), int(sys.argv[5])
    prepare(mountpoint, notes)
    threads = []
    for number in range(4):
        vdisk, half = divmod(number, 2)
        blocks = range(half * DISK_BLOCKS // 2, (half + 1) * DISK_BLOCKS // 2)
        path = mountpoint / file_name(vdisk, FIRST_NAME)
        writer = Writer(notes, random.Random(chance.random()), vdisk=vdisk, path=path, blocks=blocks)
        threads.append(threading.Thread(target=until_lost, args=(writer.run, writes_max)))
    first = round_no * SMALL_PER_ROUND + SMALL_FIRST
    numbers = range(first, first + min(writes_max // 20, SMALL_PER_ROUND - SMALL_FIRST))
    small = functools.partial(make_small_vdisks, notes, mountpoint, numbers=numbers, chance=chance)
    threads.append(threading.Thread(target=until_lost, args=(small,)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def until_lost(work: Callable[..., None], *arguments: int) -> None:
    """Do the work until it is done or the mount is gone under it."""
    try:
        work(*arguments)
    except OSError as error:
        print(f"lost the mount: {error}")


if __name__ == "__main__":
    until_lost(main)  # the mount may go while the first vdisks are made
