"""What a daemon notes for the next one: a file of small, checked records, appended, and now and then written anew.

A record is a few numbers and xxh3-64 of them. One that was torn ends the list: what follows it was never acknowledged to
anybody. The page cache keeps the file over the daemon's death; over the machine's nothing in it means anything.
"""

import errno
import logging
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from xxhash import xxh3_64_intdigest

log = logging.getLogger(__name__)

WASTE_MAX = 4096
"""Records that may count for nothing before the file is written anew, besides as many as count."""


class RecordFile:
    """One file; owned by whoever knows what its records mean.

    Args:
        path: of the file.
        layout: of a record, without its checksum.
        what: the list, for messages.
        current: all records that count now.
        is_needed: whether failing to write is an error; else it costs the next daemon what is not written.
    """

    def __init__(
        self,
        path: str,
        layout: str,
        *,
        what: str,
        current: Callable[[], Iterable[tuple[Any, ...]]],
        is_needed: bool = False,
    ) -> None:
        self._path, self._what, self._current, self._is_needed = path, what, current, is_needed
        self._body = struct.Struct(layout)
        self._fd, self._count, self._counting = -1, 0, 0
        self._has_begun, self._is_torn = False, False

    def read(self) -> Iterator[tuple[Any, ...]]:
        """What an earlier daemon left, in the order of writing."""
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return
        size = self._body.size
        for at in range(0, len(data) - size - 7, size + 8):
            if xxh3_64_intdigest(data[at : at + size]) != int.from_bytes(
                data[at + size : at + size + 8], "little"
            ):
                log.warning("%s: the list is cut short: %s", self._what, self._path)
                return
            yield self._body.unpack_from(data, at)

    def rewrite(self) -> None:
        """Writes the records that count, alone.

        Raises:
            OSError: it cannot be, and is needed; the file is as it was.
        """
        self._has_begun = True
        records = [self._encoded(record) for record in self._current()]
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        try:
            fd = os.open(self._path + ".new", flags, 0o600)
            try:
                _write(fd, b"".join(records))
                os.rename(self._path + ".new", self._path)
            except OSError:
                os.close(fd)
                raise
        except OSError as exc:
            self._fail(exc)
            return
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._count, self._counting, self._is_torn = fd, len(records), len(records), False

    def add(self, *records: tuple[Any, ...]) -> None:
        """Appends records; before the first ``rewrite``, which will write them, nothing.

        Raises:
            OSError: they cannot be, and are needed.
        """
        if not self._has_begun:
            return
        self._count += len(records)
        if self._is_torn or self._fd < 0 or self._count > 2 * self._counting + WASTE_MAX:
            self.rewrite()
            return
        try:
            _write(self._fd, b"".join(map(self._encoded, records)))
        except OSError as exc:
            self._is_torn = True  # what would follow would not be read
            self._fail(exc)

    def close(self) -> None:
        """At the daemon's end; nothing more is noted."""
        self._has_begun = False
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _encoded(self, record: tuple[Any, ...]) -> bytes:
        body = self._body.pack(*record)
        return body + xxh3_64_intdigest(body).to_bytes(8, "little")

    def _fail(self, exc: OSError) -> None:
        if self._is_needed:
            raise exc
        log.warning("%s: not noted for the next daemon: %s", self._what, exc)


def _write(fd: int, data: bytes) -> None:
    if os.write(fd, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
