"""One process of many that work on one vdisk: threads with sectors of their own, written and read by every way there is.

What Linux defines: who touches bytes that nobody else touches meanwhile reads what was written last, whichever way it
was written (O_DIRECT, write, a mapping) and whatever goes on around them. The unit of that is a page for
mappings and for pages that are written both directly and through the cache; direct writers alone, and buffered ones
alone, may share pages. Called as: io_worker FILE WORKER WORKERS SEED STEPS.
"""

import mmap
import os
import random
import sys
import threading
from collections.abc import Callable

BLOCK, SECTOR = 4096, 512
THREADS = 3
OWN_BLOCKS = 12
"""Of each thread: every so many-th block of the first part, so that its neighbours are others'."""
SHARED_BLOCKS = 4
"""Behind them: of these blocks each thread has a sector, written with O_DIRECT; of as many it has some bytes, buffered."""


class Worker:
    """One thread: where its bytes are, and what they hold."""

    def __init__(self, path: str, number: int, count: int, seed: int) -> None:
        self.number, self.count, self.chance = number, count, random.Random(seed * 1000 + number)
        self.buffered = os.open(path, os.O_RDWR)
        self.direct = os.open(path, os.O_RDWR | os.O_DIRECT)
        self.size = file_size(count)
        self.mapping = mmap.mmap(self.buffered, self.size)
        self.memory = mmap.mmap(-1, BLOCK)
        self.known: dict[tuple[int, int], bytes] = {}
        """By offset and length."""

    def own(self) -> tuple[int, int]:
        block = self.chance.randrange(OWN_BLOCKS) * self.count + self.number
        return block * BLOCK, BLOCK

    def sector(self) -> tuple[int, int]:
        """Needs no more threads than a block has sectors."""
        first = OWN_BLOCKS * self.count + self.chance.randrange(SHARED_BLOCKS)
        return first * BLOCK + self.number * SECTOR, SECTOR

    def piece(self) -> tuple[int, int]:
        length = BLOCK // self.count
        first = OWN_BLOCKS * self.count + SHARED_BLOCKS + self.chance.randrange(SHARED_BLOCKS)
        return first * BLOCK + self.number * length, length

    def write_buffered(self, offset: int, data: bytes) -> None:
        assert os.pwrite(self.buffered, data, offset) == len(data)

    def write_direct(self, offset: int, data: bytes) -> None:
        self.memory[: len(data)] = data
        assert os.pwrite(self.direct, memoryview(self.memory)[: len(data)], offset) == len(data)

    def write_mapped(self, offset: int, data: bytes) -> None:
        self.mapping[offset : offset + len(data)] = data
        if self.chance.random() < 0.3:
            self.mapping.flush(offset // BLOCK * BLOCK, BLOCK)

    def read_buffered(self, offset: int, length: int) -> bytes:
        return os.pread(self.buffered, length, offset)

    def read_direct(self, offset: int, length: int) -> bytes:
        with memoryview(self.memory) as memory:
            got = os.preadv(self.direct, [memory[:length]], offset)
            return bytes(memory[:got])

    def read_mapped(self, offset: int, length: int) -> bytes:
        return self.mapping[offset : offset + length]

    def step(self) -> None:
        place, writes, reads = self.chance.choice(self.ways())
        offset, length = place()
        if self.chance.random() < 0.5:
            data = self.chance.randbytes(length)
            self.chance.choice(writes)(offset, data)
            self.known[offset, length] = data
        elif self.chance.random() < 0.1:
            self.chance.choice((os.fsync, os.fdatasync))(self.buffered)
        for read in self.chance.sample(reads, self.chance.randint(1, len(reads))):
            found, wanted = read(offset, length), self.known.get((offset, length), bytes(length))
            assert found == wanted, (
                f"worker {self.number}, {read.__name__} at {offset}: {found[:8]!r}, not {wanted[:8]!r}"
            )

    def ways(self) -> list[tuple[Callable[[], tuple[int, int]], list, list]]:
        every = [self.write_buffered, self.write_direct, self.write_mapped]
        return [
            (self.own, every, [self.read_buffered, self.read_direct, self.read_mapped]),
            (self.own, every, [self.read_buffered, self.read_direct, self.read_mapped]),
            (self.sector, [self.write_direct], [self.read_direct]),
            (self.piece, [self.write_buffered, self.write_mapped], [self.read_buffered, self.read_mapped]),
        ]

    def finish(self) -> None:
        """All that it knows is there, by every way."""
        for (offset, length), wanted in self.known.items():
            assert self.read_buffered(offset, length) == wanted, f"worker {self.number} at {offset}"


def file_size(count: int) -> int:
    """Of the vdisk, for so many threads."""
    return (OWN_BLOCKS * count + 2 * SHARED_BLOCKS) * BLOCK


def main(path: str, worker: int, workers: int, seed: int, steps: int) -> int:
    """Runs this process' threads; returns how many failed."""
    count, failures = workers * THREADS, []

    def run(number: int) -> None:
        try:
            one = Worker(path, number, count, seed)
            for _ in range(steps):
                one.step()
            one.finish()
        except BaseException as exc:
            failures.append(exc)
            print(repr(exc), flush=True)

    threads = [threading.Thread(target=run, args=(worker * THREADS + one,)) for one in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:])))
