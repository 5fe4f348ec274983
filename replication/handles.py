"""The open files of the mount: handles, what each reads, and how many a vdisk or snapshot has.

A handle's number carries the id of its file, a vdisk or a snapshot, so that one which a dead daemon gave out means
the same to its successor.
"""

import os
import secrets
from dataclasses import dataclass

from metadata.ids import VdiskId
from replication.head import Head
from replication.remote import Remote
from replication.view import View

HANDLE_SHIFT = 40
"""A handle's number is serial << 40 | id of the file: a trillion of them, 16 million opens between repeats."""
_SERIALS = 1 << 23


@dataclass(slots=True)
class Handle:
    """One open of a file. Unless it says otherwise it may be a writer's that a dead daemon gave out."""

    vdisk: VdiskId
    """The file's id; a snapshot's for a snapshot."""
    errors_told: int
    buffered_writer: bool = True
    """It may write through the kernel's cache."""
    writer: bool = True
    """It may write."""
    buffered: bool = True
    """It may read through the kernel's cache."""


class Handles:
    """One to a daemon; owned by ``Vdisks``."""

    def __init__(self) -> None:
        self.by_number: dict[int, Handle] = {}
        self.served: dict[int, Head | View | Remote] = {}
        """For the channel's hot path: what a handle reads and writes."""
        self._counts: dict[int, int] = {}
        self._serial = secrets.randbelow(_SERIALS)

    def count(self, file_id: int) -> int:
        """How many handles a file has, those being made included."""
        return self._counts.get(file_id, 0)

    def expect(self, file_id: int) -> None:
        """A handle is being made: before the first await, so that nothing is put to rest meanwhile."""
        self._counts[file_id] = self.count(file_id) + 1

    def give_up(self, file_id: int) -> bool:
        """It was not made, or is closed; says whether it was the last one."""
        self._counts[file_id] -= 1
        if not self._counts[file_id]:
            del self._counts[file_id]
            return True
        return False

    def add(self, served: Head | View | Remote, *, file_id: VdiskId, flags: int) -> int:
        """The number of a new handle that was expected. ``flags``: of open(2)."""
        self._serial += 1
        number = (self._serial & (2 * _SERIALS - 1)) << HANDLE_SHIFT | file_id
        writer = bool(flags & (os.O_WRONLY | os.O_RDWR)) and not isinstance(served, View)
        buffered = not flags & os.O_DIRECT and not isinstance(served, Remote)
        self.by_number[number] = Handle(file_id, served.error_no, writer and buffered, writer, buffered)
        self.served[number] = served
        return number

    def adopt(self, number: int, served: Head | View | Remote, *, writer: bool) -> None:
        """A handle that a dead daemon gave out, expected too; perhaps another request was quicker.

        Args:
            number: its.
            served: what it reads and writes.
            writer: whether it may have been opened for writing.
        """
        file_id = file_of(number)
        if number in self.by_number:
            self.give_up(file_id)
        self.by_number.setdefault(number, Handle(file_id, served.error_no, writer, writer))
        self.served[number] = served

    def serve_writer(self, number: int, served: Head | Remote) -> None:
        """A handle taken for a reader's writes."""
        handle = self.by_number[number]
        handle.writer = handle.buffered_writer = True
        self.served[number] = served

    def close(self, number: int) -> VdiskId | None:
        """Gives a handle back; returns its file's id if that has none left."""
        handle = self.by_number.pop(number, None)
        self.served.pop(number, None)
        return handle.vdisk if handle is not None and self.give_up(handle.vdisk) else None

    def has_writer(self, file_id: int, *, buffered: bool = False) -> bool:
        """Whether a handle may write (``buffered``: through the kernel's cache)."""
        return any(
            handle.vdisk == file_id and (handle.buffered_writer if buffered else handle.writer)
            for handle in self.by_number.values()
        )

    def has_buffered(self, file_id: int) -> bool:
        """Whether a handle may read or write through the kernel's cache."""
        return any(handle.vdisk == file_id and handle.buffered for handle in self.by_number.values())

    def serving(self, served: Head | View | Remote) -> list[int]:
        """The handles behind which this is."""
        return [number for number, found in self.served.items() if found is served]


def file_of(number: int) -> VdiskId:
    """The id of the file that a handle's number carries."""
    return VdiskId(number & (1 << HANDLE_SHIFT) - 1)
