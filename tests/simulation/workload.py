"""Random clients: each lives on one node, opens, reads and writes a few blocks of a shared vdisk, and notes what it saw."""

import errno
import os
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from metadata.errors import Corrupt, VdiskfsError
from metadata.units import BLOCK_BYTES
from tests.simulation.disks import Disk, Values
from tests.simulation.histories import Opening, Read, Write
from tests.simulation.simulated_threads import pass_time

BLOCKS = 4
"""Few, so that clients meet; in two vblocks."""
OPERATIONS_MAX = (3, 6, 20)
"""Between opening and closing."""
PAUSES_S = (0.01, 0.1, 0.3, 1.0)
"""Between two, at most."""
WRITING = (0.1, 0.5, 0.9)
"""How often a client opens for writing, and then writes."""


REFUSALS = (errno.EIO, errno.ESTALE, errno.EBUSY, errno.ENOSPC)
"""What a guest may be told; the log and the model know why."""


def offset_of(block: int) -> int:
    """Where a block lies."""
    return (block % 2) * (1 << 20) + (block // 2) * BLOCK_BYTES


class ServedFiles(Protocol):
    """One node, as its kernel would use it."""

    name: str

    async def open(self, vdisk: int, flags: int) -> int: ...
    def is_frozen(self, handle: int) -> bool: ...
    def is_still(self, handle: int) -> bool: ...
    def reign(self, vdisk: int) -> tuple[int, int]: ...
    def lease(self) -> int: ...
    def last_lease(self) -> int: ...
    async def open_version(self, snapshot: int) -> int: ...
    async def read(self, handle: int, offset: int, size: int) -> bytes: ...
    async def write(self, handle: int, offset: int, data: bytes) -> None: ...
    async def sync(self, handle: int) -> None: ...
    async def close(self, handle: int) -> None: ...


def block_of(value: int) -> bytes:
    """A block that says which write wrote it, in every word."""
    return value.to_bytes(8, "little") * (BLOCK_BYTES // 8)


class Torn(AssertionError):
    """A block that is not one write's."""


def value_of(data: bytes) -> int:
    """Whose write a block is."""
    if data != data[:8] * (BLOCK_BYTES // 8):
        raise Torn(
            f"a block of more than one write: {sorted({data[at : at + 8] for at in range(0, len(data), 8)})}"
        )
    return int.from_bytes(data[:8], "little")


async def content_of(node: ServedFiles, handle: int) -> dict[int, int]:
    """Every block, through a handle."""
    return {
        block: value_of(await node.read(handle, offset_of(block), BLOCK_BYTES)) for block in range(BLOCKS)
    }


class Client:
    """One user of one vdisk on one node at a time.

    Args:
        node: where.
        disk: which; ``use`` another.
        chance: of its own.
        values: shared by all clients.
    """

    def __init__(self, node: ServedFiles, disk: Disk, *, chance: random.Random, values: Values) -> None:
        self._node, self._chance, self._values = node, chance, values
        self.use(disk)
        self._operations_max, self._pause_s = chance.choice(OPERATIONS_MAX), chance.choice(PAUSES_S)
        self._writing = chance.choice(WRITING)
        self.refused = 0
        """Operations that failed."""
        self.done = 0
        self.failures: list[str] = []
        """What no guest may ever be told."""

    def use(self, disk: Disk) -> None:
        """This vdisk from now on."""
        self._vdisk, self._history = disk.number, disk.history

    async def use_for_a_while(self) -> None:
        """One or the other."""
        await (self.write_for_a_while() if self._chance.random() < self._writing else self.read_for_a_while())

    async def write_for_a_while(self) -> None:
        """Opens for writing; writes and reads; closes."""
        try:
            handle = await self._node.open(self._vdisk, os.O_RDWR | os.O_DIRECT)
        except VdiskfsError:
            self.refused += 1
            return
        assert not self._node.is_frozen(handle), "a writer got a frozen view"
        try:
            for _ in range(self._chance.randrange(1, self._operations_max)):
                block = self._chance.randrange(BLOCKS)
                if self._chance.random() < self._writing:
                    await self._write(handle, block)
                else:
                    await self._read(handle, block, self._history.shared_reads)
                await pass_time(self._chance.random() * self._pause_s)
        finally:
            await self._tried(lambda: self._node.close(handle))

    async def read_for_a_while(self) -> None:
        """Opens for reading; reads again and again; closes."""
        begin = trio.current_time()
        try:
            handle = await self._node.open(self._vdisk, os.O_RDONLY)
        except VdiskfsError:
            self.refused += 1
            return
        noted = self._noted(handle, begin)
        try:
            for _ in range(self._chance.randrange(1, self._operations_max)):
                block = self._chance.randrange(BLOCKS)
                await self._read(handle, block, noted)
                await pass_time(self._chance.random() * self._pause_s)
        finally:
            await self._tried(lambda: self._node.close(handle))

    async def read_all(self) -> None:
        """Opens for reading, and reads every block."""
        begin = trio.current_time()

        async def work() -> None:
            handle = await self._node.open(self._vdisk, os.O_RDONLY)
            noted = self._noted(handle, begin)
            for block in range(BLOCKS):
                await self._read(handle, block, noted)
            await self._node.close(handle)

        await self._tried(work)

    def _noted(self, handle: int, begin: float) -> list[Read]:
        """Where reads through a new handle are noted."""
        if not self._node.is_frozen(handle):
            return self._history.shared_reads
        opening = Opening(self._node.name, begin, trio.current_time())
        self._history.openings.append(opening)
        return opening.reads

    async def _write(self, handle: int, block: int) -> None:
        write = Write(block, self._values.next(), trio.current_time())
        self._history.writes.append(write)
        reign = self._node.reign(self._vdisk)

        async def work() -> None:
            await self._node.write(handle, offset_of(block), block_of(write.value))
            await self._node.sync(handle)
            write.end = trio.current_time()
            write.is_repeated = self._node.reign(self._vdisk) != reign

        await self._tried(work)

    async def _read(self, handle: int, block: int, noted: list[Read]) -> None:
        begin, lease = trio.current_time(), self._node.last_lease()

        async def work() -> None:
            value = value_of(await self._node.read(handle, offset_of(block), BLOCK_BYTES))
            is_newest = not self._node.is_still(handle) and self._node.lease() == lease
            if noted is not self._history.shared_reads or is_newest:
                noted.append(Read(block, value, begin, trio.current_time(), self._node.name))
            # else the vdisk was handed over, or nobody has written it here, or it may have been taken over

        await self._tried(work)

    async def _tried(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
            self.done += 1
        except VdiskfsError as exc:
            if exc.number not in REFUSALS:
                raise
            if isinstance(exc, Corrupt):
                self.failures.append(f"vdisk {self._vdisk}: damaged on {self._node.name}: {exc}")
            self.refused += 1
