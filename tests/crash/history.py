"""What a crash may leave: the writer's notes, and which values each block, size and name may have afterwards.

Everything that can be written is a *register* of a vdisk: each block, its size, its name. A register holds
one value at a time; a writer notes when it issued a write, when that was acknowledged, and when a flush began
and ended. After a crash a register holds the last value acknowledged before a flush that has ended, or any
later one (I2).

A block's value is a number that stands 256 times in it, with the vdisk and the block it was meant for: so a
torn block, a misplaced one and one that nobody wrote are told apart. Value 0 is a block of zeros.
"""

import os
import pathlib
import stat
import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

BLOCK = 4096
SIZE = -1
NAME = -2
NAMELESS, FIRST_NAME, SECOND_NAME = 0, 1, 2
STAMP = struct.Struct("<QII")

Register = tuple[int, int]
"""(vdisk, block number or SIZE or NAME)."""


def block_bytes(vdisk: int, block_no: int, value: int) -> bytes:
    """The 4 KiB that say this value."""
    return STAMP.pack(value, vdisk, block_no) * (BLOCK // STAMP.size) if value else bytes(BLOCK)


def block_value(vdisk: int, block_no: int, data: bytes) -> int:
    """The value that a block read back says; what it never can be is an error."""
    value, stamped_vdisk, stamped_block = STAMP.unpack_from(data)
    if data != block_bytes(stamped_vdisk, stamped_block, value):
        kinds = {data[i : i + STAMP.size].hex() for i in range(0, len(data), STAMP.size)}
        raise AssertionError(f"torn: vdisk {vdisk} block {block_no} holds {sorted(kinds)[:4]}")
    if value and (stamped_vdisk, stamped_block) != (vdisk, block_no):
        raise AssertionError(
            f"misplaced: vdisk {vdisk} block {block_no} holds {stamped_vdisk}, {stamped_block}"
        )
    return value


def file_name(vdisk: int, name: int) -> str:
    """The vdisk's name in the mount before and after its rename."""
    return f"vdisk{vdisk}" + ("-renamed" if name == SECOND_NAME else "")


@dataclass(slots=True)
class Write:
    """One value on its way into one register."""

    value: int
    issued_ns: int
    acknowledged_ns: int | None = None


@dataclass(slots=True)
class History:
    """Everything the writers noted, over one run or several."""

    writes: dict[Register, list[Write]] = field(default_factory=lambda: defaultdict(list))
    flushes: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    floors: dict[Register, int] = field(default_factory=dict)
    """Values that an earlier crash settled: what is older cannot come back."""

    def note(self, lines: Iterable[str]) -> None:
        """Take in a writer's notes: ``time action vdisk register value``, a line each."""
        flushing: dict[tuple[int, int], int] = {}
        for line in lines:
            time_ns, action, vdisk, what, value = (
                word if word.isalpha() else int(word) for word in line.split()
            )
            assert isinstance(time_ns, int)
            assert isinstance(vdisk, int)
            assert isinstance(what, int)
            assert isinstance(value, int)
            if action == "write":
                self.writes[vdisk, what].append(Write(value, time_ns))
            elif action == "wrote":
                self.writes[vdisk, what][-1].acknowledged_ns = time_ns
            elif action == "flush":
                flushing[vdisk, value] = time_ns
            else:
                assert action == "flushed"
                self.flushes[vdisk].append((flushing.pop((vdisk, value)), time_ns))

    def legal(self, register: Register, at_ns: int, *, acknowledged_counts: bool = False) -> set[int]:
        """The values that the register may hold after a crash at that time.

        Args:
            acknowledged_counts: no flush is needed: the crash took processes, not memory.
        """
        writes = [write for write in self.writes[register] if write.issued_ns <= at_ns]
        flushed = [begin for begin, end in self.flushes[register[0]] if end <= at_ns]
        until_ns = at_ns if acknowledged_counts else max(flushed, default=-1)
        values = [self.floors.get(register, 0)]
        for write in writes:
            if write.acknowledged_ns is not None and write.acknowledged_ns <= until_ns:
                values.clear()
            values.append(write.value)
        return set(values)

    def settle(self, observed: Mapping[Register, int]) -> None:
        """After a crash that was checked: go on from what is there."""
        self.floors = dict(observed)
        self.writes.clear()
        self.flushes.clear()

    def verify(
        self,
        observed: Mapping[Register, int],
        at_ns: int,
        *,
        acknowledged_counts: Iterable[int] = (),
    ) -> None:
        """Insist that every register holds what it may.

        Args:
            acknowledged_counts: the vdisks whose acknowledged writes survive this kind of crash unflushed.
        """
        durable = set(acknowledged_counts)
        wrong = []
        for register in {*self.writes, *self.floors}:
            counts = register[0] in durable
            legal = self.legal(register, at_ns, acknowledged_counts=counts)
            value = observed.get(register, 0)
            if value not in legal:
                wrong.append(
                    f"vdisk {register[0]} register {register[1]}: {value}, not of {sorted(legal)[:8]}"
                )
        assert wrong == [], f"{len(wrong)} registers are wrong: " + "; ".join(wrong[:8])


def observe(mountpoint: pathlib.Path, vdisks: Iterable[int]) -> dict[Register, int]:
    """Read every register of the vdisks back through the mount."""
    found: dict[Register, int] = {}
    for vdisk in vdisks:
        names = [name for name in (FIRST_NAME, SECOND_NAME) if (mountpoint / file_name(vdisk, name)).exists()]
        assert len(names) <= 1, f"vdisk {vdisk} has two names"
        found[vdisk, NAME] = names[0] if names else NAMELESS
        if names:
            found.update(_observe_file(mountpoint / file_name(vdisk, names[0]), vdisk))
    return found


def _observe_file(path: pathlib.Path, vdisk: int) -> dict[Register, int]:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        status = os.fstat(descriptor)
        assert stat.S_ISREG(status.st_mode)
        found = {(vdisk, SIZE): status.st_size}
        for block_no in range(status.st_size // BLOCK):
            found[vdisk, block_no] = block_value(
                vdisk, block_no, os.pread(descriptor, BLOCK, block_no * BLOCK)
            )
        return found
    finally:
        os.close(descriptor)
