"""A process that uses vdisks as guests do, for hours, and knows what must be in every block that it reads.

    python -m tests.soak.guest KIND REPORT SEED PATH...

    direct     writes, reads back and syncs past the page cache, one file that stays open
    buffered   the same through it
    wanderer   opens one vdisk for writing on one node after the other (PATHs), verifies, writes, closes
    peer       opens a file that somebody else writes, for reading, again and again: whole blocks, and never an older one

A block says which it is and how often it was written. REPORT is one JSON line, written anew with each round; a wrong byte or
an error ends the process with a line that has ``failed``.
"""

import errno
import json
import mmap
import os
import pathlib
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

BLOCK = 4096
BLOCKS = 4096
"""Of each vdisk: 16 MiB, written over again and again."""
WANDERER_BLOCKS = 256
BATCH = 24
"""Writes, and reads, of a round."""
REST_S = 0.15
"""Between two rounds: hours of this are to show leaks, not speed."""
PEER_READS = 64
TRIES = 3


@dataclass(slots=True)
class Report:
    """What a guest has done so far."""

    kind: str
    rounds: int = 0
    written: int = 0
    verified: int = 0
    refused: int = 0
    """Errors that a peer may see: a version that its node, cut off, could not keep (it opens the file again)."""
    failed: str = ""


def block_of(number: int, count: int) -> bytes:
    """A block's content after so many writes; all zeros before the first."""
    return (
        (number.to_bytes(4, "little") + count.to_bytes(4, "little")) * (BLOCK // 8) if count else bytes(BLOCK)
    )


def count_in(data: bytes, number: int) -> int:
    """How often the block had been written when it was read; insists that it is whole, and this one."""
    count = int.from_bytes(data[4:8], "little")
    assert data == block_of(number, count), (
        f"block {number} holds {data[:32].hex()}, not what was ever written"
    )
    return count


@contextmanager
def opened(path: str, flags: int) -> Iterator[int]:
    """A file; tried again where a daemon has died, or the vdisk moved, in the middle of it (ESTALE)."""
    for left in range(TRIES - 1, -1, -1):
        try:
            fd = os.open(path, flags)
            break
        except OSError as problem:
            if problem.errno != errno.ESTALE or not left:
                raise
    try:
        yield fd
    finally:
        os.close(fd)


class Disk:
    """One vdisk and what must be in it."""

    def __init__(self, blocks: int, seed: int) -> None:
        self.counts = [0] * blocks
        self.chance = random.Random(seed)
        self.room = mmap.mmap(-1, BLOCK)

    def write(self, fd: int, count: int) -> int:
        """So many blocks, anywhere."""
        for number in self.chance.choices(range(len(self.counts)), k=count):
            self.counts[number] += 1
            self.room[:] = block_of(number, self.counts[number])
            assert os.pwritev(fd, [self.room], number * BLOCK) == BLOCK
        return count

    def verify(self, fd: int, count: int) -> int:
        """So many blocks, anywhere."""
        for number in self.chance.choices(range(len(self.counts)), k=count):
            assert os.preadv(fd, [self.room], number * BLOCK) == BLOCK
            found = count_in(self.room[:], number)
            assert found == self.counts[number], (
                f"block {number} was written {self.counts[number]} times and is as it was after {found}"
            )
        return count


def run_writer(report: Report, paths: list[str], seed: int, tell: Callable[[], None]) -> None:
    """Kinds direct and buffered."""
    disk = Disk(BLOCKS, seed)
    flags = os.O_RDWR | (os.O_DIRECT if report.kind == "direct" else 0)
    with opened(paths[0], flags) as fd:
        while True:
            report.written += disk.write(fd, BATCH)
            os.fsync(fd)
            if report.kind == "buffered":
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            report.verified += disk.verify(fd, BATCH)
            tell()


def run_wanderer(report: Report, paths: list[str], seed: int, tell: Callable[[], None]) -> None:
    """Kind wanderer."""
    disk = Disk(WANDERER_BLOCKS, seed)
    while True:
        with opened(disk.chance.choice(paths), os.O_RDWR | os.O_DIRECT) as fd:
            report.verified += disk.verify(fd, BATCH)
            report.written += disk.write(fd, 4)
            os.fsync(fd)
        tell()


def run_peer(report: Report, paths: list[str], seed: int, tell: Callable[[], None]) -> None:
    """Kind peer."""
    newest, chance, room = [0] * BLOCKS, random.Random(seed), mmap.mmap(-1, BLOCK)
    while True:
        try:
            with opened(paths[0], os.O_RDONLY | os.O_DIRECT) as fd:
                for number in chance.choices(range(BLOCKS), k=PEER_READS):
                    assert os.preadv(fd, [room], number * BLOCK) == BLOCK
                    count = count_in(room[:], number)
                    assert count >= newest[number], (
                        f"block {number} goes back from {newest[number]} to {count}"
                    )
                    newest[number] = count
                    report.verified += 1
        except OSError as problem:
            if problem.errno not in (errno.EIO, errno.ESTALE):
                raise
            report.refused += 1
        tell()


KINDS = {"direct": run_writer, "buffered": run_writer, "wanderer": run_wanderer, "peer": run_peer}


def main(arguments: list[str]) -> int:
    kind, place, seed, *paths = arguments
    report, rest = Report(kind), threading.Event()

    def tell() -> None:
        report.rounds += 1
        write_report(pathlib.Path(place), report)
        rest.wait(REST_S)

    try:
        KINDS[kind](report, paths, int(seed), tell)
    except Exception as problem:
        report.failed = f"{type(problem).__name__}: {problem}"
        write_report(pathlib.Path(place), report)
    return 1


def write_report(place: pathlib.Path, report: Report) -> None:
    """Puts it there whole."""
    beside = place.with_suffix(".new")
    beside.write_text(json.dumps(asdict(report)))
    beside.replace(place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
