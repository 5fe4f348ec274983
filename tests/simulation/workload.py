"""Random clients: each lives on one node, opens, reads and writes a few blocks of shared vdisks, and notes what it saw."""

import errno
import os
import random
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from metadata.errors import VdiskfsError
from metadata.units import BLOCK_BYTES
from tests.simulation.histories import History, Opening, Read, Write
from tests.simulation.simulated_threads import pass_time

BLOCKS = 4
"""Few, so that clients meet; in two vblocks."""
OPERATIONS_MAX = (3, 6, 20)
"""Between opening and closing."""
PAUSES_S = (0.01, 0.1, 0.3, 1.0)
"""Between two, at most."""
WRITING = (0.1, 0.5, 0.9)
"""How often a client opens for writing, and then writes."""


def offset_of(block: int) -> int:
    """Where a block lies."""
    return (block % 2) * (1 << 20) + (block // 2) * BLOCK_BYTES


class ServedFiles(Protocol):
    """One node, as its kernel would use it."""

    name: str

    async def open(self, vdisk: int, flags: int) -> int: ...
    def is_frozen(self, handle: int) -> bool: ...
    def reign(self, vdisk: int) -> tuple[int, int]: ...
    def is_certain(self) -> bool: ...
    async def read(self, handle: int, offset: int, size: int) -> bytes: ...
    async def write(self, handle: int, offset: int, data: bytes) -> None: ...
    async def sync(self, handle: int) -> None: ...
    async def close(self, handle: int) -> None: ...


class Values:
    """Gives each write a value of its own."""

    def __init__(self) -> None:
        self._last = 0

    def next(self) -> int:
        self._last += 1
        return self._last


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


class Client:
    """One user of one vdisk on one node at a time.

    Args:
        node: where.
        history: of the vdisk.
        chance: of its own.
        values: shared by all clients of the vdisk.
    """

    def __init__(
        self, node: ServedFiles, vdisk: int, history: History, *, chance: random.Random, values: Values
    ) -> None:
        self._node, self._vdisk, self._history = node, vdisk, history
        self._chance, self._values = chance, values
        self._operations_max, self._pause_s = chance.choice(OPERATIONS_MAX), chance.choice(PAUSES_S)
        self._writing = chance.choice(WRITING)
        self.refused = 0
        """Operations that failed."""
        self.done = 0

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
        begin = trio.current_time()

        async def work() -> None:
            value = value_of(await self._node.read(handle, offset_of(block), BLOCK_BYTES))
            is_newest = not self._node.is_frozen(handle) and self._node.is_certain()
            if noted is not self._history.shared_reads or is_newest:
                noted.append(Read(block, value, begin, trio.current_time(), self._node.name))
            # else the vdisk was handed over, and what was the head is a view of that moment; or may have been taken over

        await self._tried(work)

    async def _tried(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
            self.done += 1
        except VdiskfsError as exc:
            if exc.number not in (errno.EIO, errno.ESTALE, errno.EBUSY):
                raise
            self.refused += 1
