"""Under which generation the kernel knows heads' inodes, and which are open for writing, in a file for the next daemon.

It would show the kernel another generation, and files that are open would fail. An inode that the kernel knows and of which
the file says nothing has generation 0, that of a vdisk that was always this node's, and nobody writes it.
"""

import logging
import os
import struct
from collections.abc import Callable

from xxhash import xxh3_64_intdigest

log = logging.getLogger(__name__)

_RECORD = struct.Struct("<QQ")
"""inode, generation (and WRITTEN); a checksum follows. The last record about an inode counts."""
_RECORD_BYTES = _RECORD.size + 8
_WRITTEN = 1 << 63
_WASTE_MAX = 4096
"""Records that count for nothing before the file is written anew."""


class Generations:
    """One to a mount that has other nodes beside it; owned by its ``PeerInodes``.

    Args:
        path: of the file.
        kernel_knows: whether the kernel holds an inode.
    """

    def __init__(self, path: str, kernel_knows: Callable[[int], bool]) -> None:
        self._path, self._kernel_knows = path, kernel_knows
        self._known: dict[int, int] = {}
        self._written: set[int] = set()
        self._inherited: dict[int, int] = {}
        self._has_heritage = False
        self._fd, self._records = -1, 0

    def begin(self, is_successor: bool) -> set[int]:
        """At a daemon's start; returns inodes of which files may be open for writing since before it."""
        self._has_heritage = is_successor
        found = self._read() if is_successor else {}
        found = {inode: word for inode, word in found.items() if word and self._kernel_knows(inode)}
        self._inherited = {inode: word & ~_WRITTEN for inode, word in found.items()}
        self._written = {inode for inode, word in found.items() if word & _WRITTEN}
        self._rewrite()
        return set(self._written)

    def close(self) -> None:
        """At the daemon's end."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def get(self, inode: int) -> int | None:
        """As the kernel was told last; None: it was not, or has forgotten it."""
        known = self._known.get(inode)
        if known is None and self._has_heritage and self._kernel_knows(inode):
            known = self._known[inode] = self._inherited.get(inode, 0)
        return known

    def note(self, inode: int, generation: int) -> None:
        """The kernel is being told."""
        before = self._word(inode)
        self._known[inode] = generation
        self._note_change(inode, before)

    def note_written(self, inode: int, is_written: bool) -> None:
        """Whether a file of it is open for writing now."""
        if is_written != (inode in self._written):
            before = self._word(inode)
            self._written ^= {inode}
            self._note_change(inode, before)

    def forget(self, inode: int) -> None:
        """The kernel has forgotten the inode."""
        before = self._word(inode)
        self._inherited.pop(inode, None)
        self._known.pop(inode, None)
        self._written.discard(inode)
        self._note_change(inode, before)

    def _word(self, inode: int) -> int:
        generation = self._known.get(inode, self._inherited.get(inode, 0))
        return generation | _WRITTEN * (inode in self._written)

    def _note_change(self, inode: int, before: int) -> None:
        if self._word(inode) == before:
            return
        self._records += 1
        if self._records > 2 * len(self._known) + _WASTE_MAX:
            self._rewrite()
        else:
            self._write(_encoded(inode, self._word(inode)))

    # ---- the file

    def _read(self) -> dict[int, int]:
        found: dict[int, int] = {}
        try:
            with open(self._path, "rb") as file:
                data = file.read()
        except FileNotFoundError:
            return found
        for at in range(0, len(data), _RECORD_BYTES):
            record = data[at : at + _RECORD_BYTES]
            if len(record) < _RECORD_BYTES or record != _encoded(*_RECORD.unpack_from(record)):
                log.warning("the list of inodes' generations is cut short: %s", self._path)
                break
            inode, word = _RECORD.unpack_from(record)
            found[inode] = word
        return found

    def _rewrite(self) -> None:
        inodes = {*self._inherited, *self._known, *self._written}
        records = [_encoded(inode, self._word(inode)) for inode in inodes if self._word(inode)]
        self._records = len(records)
        self.close()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
            self._fd = os.open(self._path + ".new", flags, 0o600)
            self._write(b"".join(records))
            os.rename(self._path + ".new", self._path)
        except OSError as exc:
            log.warning("inodes' generations are not noted for the next daemon: %s", exc)

    def _write(self, data: bytes) -> None:
        """A full disk costs the next daemon what is not written, and nobody anything else."""
        try:
            if self._fd >= 0:
                os.write(self._fd, data)
        except OSError as exc:
            log.warning("an inode's generation is not noted for the next daemon: %s", exc)


def _encoded(inode: int, word: int) -> bytes:
    body = _RECORD.pack(inode, word)
    return body + xxh3_64_intdigest(body).to_bytes(8, "little")
