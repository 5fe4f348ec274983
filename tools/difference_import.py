"""Reading a difference stream into a vdisk, so that under the vdisk's name there is always one whole content.

    1. a *staging* vdisk beside the target, a clone of the base (or empty), takes the ranges as they come;
    2. the stream has ended as it should: the two names are exchanged, the target's is the new content now;
    3. what the staging clone has of its own is copied into the vdisk it is a clone of, which has the snapshots;
    4. that gets the new snapshot, and a note of what it equals;
    5. the names are exchanged again, and the clone is deleted.

A stream onto nothing needs only 1, 4 and a renaming. Whatever is interrupted, the same command goes on: it finds the staging
vdisk by its name, which is made of the target's and the stream's, compares what is there and writes what is not.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import BinaryIO, Protocol

from metadata.difference_stream import StreamDecoder, StreamHeader, StreamRange
from metadata.differences import HOLE_KIND, ChangedRange
from metadata.errors import Corrupt
from tools.difference_export import PIPE
from tools.file_calls import punch_hole

_PIECE_BYTES = 1 << 20

Applied = Callable[[int], None]
"""Called with the bytes of the stream's ranges applied so far."""


class Ranges(Protocol):
    """Where ranges are applied: a vdisk open for writing."""

    def apply(self, found: StreamRange) -> None:
        """Make the range so."""


class StagedFile:
    """A vdisk that takes ranges; one that was begun before is compared first, so that nothing is written twice."""

    def __init__(self, file: int, *, was_begun: bool) -> None:
        self._file, self._compare = file, was_begun

    def apply(self, found: StreamRange) -> None:
        """Make the range so."""
        if found.data is None:
            punch_hole(self._file, found.offset, found.length)
        elif not self._compare or os.pread(self._file, found.length, found.offset) != found.data:
            write_all(self._file, found.data, found.offset)


def write_all(file: int, data: bytes, offset: int) -> None:
    """Write all of it, however much one call takes."""
    view, done = memoryview(data), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], offset + done)


def staging_name(target: str, header: StreamHeader) -> str:
    """The staging vdisk's name, beside the target: the same for the same stream and target."""
    what = repr((os.path.basename(target), header)).encode("utf-8", "surrogateescape")
    return f".vdiskfs-{hashlib.blake2b(what, digest_size=8).hexdigest()}.part"


@contextmanager
def opened_stream(file: str) -> Iterator[BinaryIO]:
    """The stream's bytes; standard input for ``-``."""
    if file == PIPE:
        yield sys.stdin.buffer
    else:
        with open(file, "rb", buffering=0) as stream:
            yield stream


class StreamReader:
    """A stream as it is read: first its header, then its ranges into something."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream, self._decoder = stream, StreamDecoder()
        self._left: list[StreamRange] = []

    def header(self) -> StreamHeader:
        """What it is about.

        Raises:
            Corrupt: it is no such stream, or cut before it says.
        """
        while self._decoder.header is None:
            self._left += self._read()
        return self._decoder.header

    def apply(self, to: Ranges, *, applied: Applied) -> None:
        """Everything, to its end.

        Raises:
            Corrupt: the stream is damaged or cut; what came before has been applied.
        """
        done, ranges = 0, self._left
        self._left = []
        while True:
            for found in ranges:
                to.apply(found)
                done += found.length
                applied(done)
            if self._decoder.is_complete:
                self._check_at_end()
                return
            ranges = self._read()

    def _read(self) -> list[StreamRange]:
        data = self._stream.read(_PIECE_BYTES)
        if not data:
            self._decoder.close()
            raise Corrupt("the difference stream is cut: its end is missing")
        return [event for event in self._decoder.feed(data) if isinstance(event, StreamRange)]

    def _check_at_end(self) -> None:
        if data := self._stream.read(1):
            list(self._decoder.feed(data))


def copy_ranges(source: int, target: int, ranges: list[ChangedRange], *, applied: Applied) -> None:
    """Copy these ranges of one file into another, holes as holes; the target is compared first.

    Raises:
        Corrupt: the source is shorter than that.
    """
    staged, done = StagedFile(target, was_begun=True), 0
    for offset, length, kind in ranges:
        end = offset + length
        if kind == HOLE_KIND:
            staged.apply(StreamRange(offset, length, None))
        while kind != HOLE_KIND and offset < end:
            data = os.pread(source, min(_PIECE_BYTES, end - offset), offset)
            if not data:
                raise Corrupt(f"what was imported became shorter offset={offset}")
            staged.apply(StreamRange(offset, len(data), data))
            offset += len(data)
        done += length
        applied(done)
