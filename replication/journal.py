"""The journal: acknowledged changes that no commit holds yet, so that they outlive the daemon.

A memory-mapped ring of 64-byte entries in the node's state directory. An entry is copied into the mapping
before the kernel gets its reply: no system call, no sync. The page cache keeps it when the process dies; a
power cut may take it, and nothing in it was flushed. An entry may be overwritten once a commit of its vdisk
holds it, which is why the ring never turns past the oldest entry still needed (``room``).
"""

import errno
import mmap
import os
import struct

from xxhash import xxh3_64_intdigest

from metadata.errors import NoSpace, Unavailable
from metadata.journal_entries import BODY, CHECK, ENTRY_BYTES, JournalEntry, decode_entry

CAPACITY = 1 << 18
"""Entries: 16 MiB, a gigabyte of unflushed 4 KiB writes."""

_HINT = struct.Struct("<Q")
"""Behind the ring: entries before this sequence are needed no more. A hint: versions decide."""

_PAGE_SLOTS = 4096 // ENTRY_BYTES
"""Entries that reach the disk together."""

_pack_body, _pack_check = BODY.pack, CHECK.pack


class Journal:
    """The mapped ring; one to a daemon, open as long as it runs."""

    def __init__(self, path: str, salt: int, *, capacity: int = CAPACITY) -> None:
        """Opens or creates the file. A longer one keeps its capacity.

        Raises:
            NoSpace: the state directory's disk cannot hold it.
            Unavailable: it cannot be opened.
        """
        self.path, self._salt = path, salt
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                size = max((capacity + 1) * ENTRY_BYTES, os.fstat(fd).st_size // ENTRY_BYTES * ENTRY_BYTES)
                os.posix_fallocate(fd, 0, size)
                capacity = size // ENTRY_BYTES - 1
                self._map = mmap.mmap(fd, size)
            finally:
                os.close(fd)
        except OSError as exc:
            error = NoSpace if exc.errno == errno.ENOSPC else Unavailable
            raise error(f"the journal cannot be opened: {exc.strerror} path={path}") from exc
        self.capacity = capacity
        self.sequence = 1
        """Of the next entry."""
        self.limit = 1 + capacity
        """The sequence that would overwrite an entry still needed."""

    def append(self, *entry: int) -> None:
        """Notes one change: vdisk, version, block number, place, size, block count, digest (``JournalEntry``).

        The caller has seen to it that there is room.
        """
        sequence = self.sequence
        body = _pack_body(sequence, *entry)
        at = sequence % self.capacity * ENTRY_BYTES
        self._map[at : at + ENTRY_BYTES] = body + _pack_check(xxh3_64_intdigest(body, self._salt))
        self.sequence = sequence + 1

    def room(self) -> int:
        """Entries that fit before the oldest one needed would be overwritten."""
        return self.limit - self.sequence

    def keep_from(self, oldest: int) -> None:
        """Says that entries before this sequence are needed no more."""
        self.limit = oldest + self.capacity
        _HINT.pack_into(self._map, self.capacity * ENTRY_BYTES, oldest)

    def replay(self) -> dict[int, list[JournalEntry]]:
        """All whole entries still needed by vdisk, oldest first; the next sequence is set behind them."""
        (needed_from,) = _HINT.unpack_from(self._map, self.capacity * ENTRY_BYTES)
        if not self._is_plausible(needed_from):
            needed_from = 0  # no such hint was ever given
        slots = self._slots_from(max(1, needed_from))
        found = (
            decode_entry(self._map[at * ENTRY_BYTES : (at + 1) * ENTRY_BYTES], self._salt) for at in slots
        )
        entries = sorted((entry for entry in found if entry), key=lambda entry: entry.sequence)
        self.sequence = max(needed_from, 1 + max((entry.sequence for entry in entries), default=0))
        # A hint that was void must not become plausible again when the ring has turned to it.
        self.keep_from(entries[0].sequence if entries else self.sequence)
        by_vdisk: dict[int, list[JournalEntry]] = {}
        for entry in entries:
            by_vdisk.setdefault(entry.vdisk, []).append(entry)
        return by_vdisk

    def _sequence_in(self, slot: int) -> int:
        """What stands there for a sequence number: 0 if nothing, anything if it is damaged."""
        sequence: int = _HINT.unpack_from(self._map, slot * ENTRY_BYTES)[0]
        return sequence

    def _slots_from(self, needed: int) -> list[int]:
        """The slots with an entry of this sequence or a later one.

        Guests wait for this after a kill, so pages are judged by their ends first: entries were written in order.
        """
        capacity, sequence_in, found = self.capacity, self._sequence_in, []
        page_of_needed = needed % capacity // _PAGE_SLOTS * _PAGE_SLOTS
        for first in range(0, capacity, _PAGE_SLOTS):
            end = min(first + _PAGE_SLOTS, capacity)
            if first == page_of_needed or sequence_in(first) >= needed or sequence_in(end - 1) >= needed:
                for slot in range(first, end):
                    sequence = sequence_in(slot)
                    if sequence >= needed and sequence % capacity == slot:
                        found.append(slot)
        return found

    def _is_plausible(self, hint: int) -> bool:
        """Whether the ring has turned far enough for this hint to have been given."""
        before = max(0, hint - 1)
        last = self._sequence_in(before % self.capacity)
        if not before or (last >= before and not (last - before) % self.capacity):
            return True
        return hint <= 1 + max(map(self._sequence_of_whole, range(self.capacity)))

    def _sequence_of_whole(self, slot: int) -> int:
        sequence = self._sequence_in(slot)
        return sequence if sequence % self.capacity == slot else 0

    def close(self) -> None:
        """Unmaps the file."""
        self._map.close()
