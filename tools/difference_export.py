"""Writing a difference stream: what is in a snapshot and was not in an older one, as a file or down a pipe.

A file grows under its name with ``.part`` behind it. If that is cut short, the next export of the same difference
verifies what is there and goes on behind its last whole range; what it goes on from never changes.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from metadata.difference_stream import DATA_BYTES_MAX, StreamDecoder, StreamEncoder, StreamHeader
from metadata.differences import HOLE_KIND, ChangedRange
from metadata.errors import Corrupt, Exists
from tools.file_calls import rename_new, sync

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

PIPE = "-"
PART = ".part"
_PIECE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """What to write: of which content (``source``: a file to read it from, which never changes), which ranges."""

    header: StreamHeader
    source: str
    ranges: Iterable[ChangedRange]


def export_difference(difference: Difference, file: str, *, progress: Progress) -> None:
    """Write a stream to ``file``, or to standard output for ``-``; all of it or, under its own name, nothing.

    Raises:
        Exists: there is something at ``file``.
        Corrupt: the source is shorter than it should be.
        OSError: reading or writing failed.
    """
    if file == PIPE:
        _write(sys.stdout.buffer, difference, decoder=StreamDecoder(), progress=progress)
        sys.stdout.buffer.flush()
        return
    target = os.path.abspath(file)
    if os.path.lexists(target):
        raise Exists(f"{file} exists: choose another name, or delete it first")
    part = target + PART
    with open(os.open(part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b", buffering=0) as growing:
        decoder = _what_is_there(growing, difference.header)
        growing.seek(decoder.whole_bytes)
        growing.truncate()
        with open(growing.fileno(), "wb", buffering=_PIECE_BYTES, closefd=False) as out:
            _write(out, difference, decoder=decoder, progress=progress)
        os.fsync(growing.fileno())
    rename_new(part, target)
    sync(os.path.dirname(target))


def _what_is_there(growing: BinaryIO, header: StreamHeader) -> StreamDecoder:
    """The state behind the last whole range of a stream that was cut; that of an empty one for any other file."""
    decoder = StreamDecoder()
    with contextlib.suppress(Corrupt):
        while data := growing.read(_PIECE_BYTES):
            for _ in decoder.feed(data):
                if decoder.header != header:
                    return StreamDecoder()
        if not decoder.is_complete and decoder.header is not None:
            return decoder
    return StreamDecoder()


def _write(out: BinaryIO, difference: Difference, *, decoder: StreamDecoder, progress: Progress) -> None:
    encoder, ranges = decoder.encoder, list(difference.ranges)
    if decoder.header is None:
        out.write(encoder.header(difference.header))
    total = sum(found.length for found in ranges)
    done = 0
    with open(difference.source, "rb", buffering=0) as source:
        for offset, length, kind in ranges:
            done += length
            skipped = min(length, max(0, decoder.next_offset - offset))
            if skipped == length:
                continue
            for frame in _frames(encoder, source, ChangedRange(offset + skipped, length - skipped, kind)):
                out.write(frame)
            progress(done, total)
    out.write(encoder.end())
    progress(total, total)


def _frames(encoder: StreamEncoder, source: BinaryIO, wanted: ChangedRange) -> Iterator[bytes]:
    if wanted.kind == HOLE_KIND:
        yield encoder.hole(wanted.offset, wanted.length)
        return
    offset, end = wanted.offset, wanted.offset + wanted.length
    while offset < end:
        data = os.pread(source.fileno(), min(DATA_BYTES_MAX, end - offset), offset)
        if not data:
            raise Corrupt(f"the snapshot became shorter while it was read offset={offset}")
        yield encoder.data(offset, data)
        offset += len(data)
