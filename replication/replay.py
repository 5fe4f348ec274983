"""Replaying the journal: what a dead daemon had acknowledged and not committed comes back into the head.

An entry counts if no commit holds it (its version is newer than the log's last) and if the bytes it names are
there: after a kill they are, in the page cache; after a power cut they may not be, and then the write is void,
as an unflushed write may be. Entries are applied in the order they were acknowledged. Nothing is written here:
the caller commits at once, and a death before that only means another replay.
"""

import functools
import logging
from array import array

from metadata.boot_clock import this_start
from metadata.errors import VdiskfsError
from metadata.ids import CUT, PARENT, Version
from metadata.index import VdiskState
from metadata.journal_entries import JournalEntry, digest_of
from replication.head import Head
from replication.head_read import load_rows
from replication.recovery import LogReader
from replication.workspace import Workspace

log = logging.getLogger(__name__)

_Verified = list[tuple[JournalEntry, "array[int]"]]


def verify_entries(workspace: Workspace, entries: list[JournalEntry]) -> _Verified:
    """Thread: the entries whose bytes are there, with the blocks' checksums."""
    verified: _Verified = []
    with LogReader(workspace.pool, entries[0].vdisk) as reader:
        for entry in entries:
            checksums = array("I")
            if entry.place > PARENT:
                try:
                    checksums = reader.checksums(entry.place, entry.block_count)
                except VdiskfsError:
                    continue
                if len(checksums) != entry.block_count or digest_of(checksums) != entry.digest:
                    continue
            verified.append((entry, checksums))
    return verified


async def replay(head: Head, state: VdiskState, entries: list[JournalEntry]) -> int:
    """Applies the entries newer than the head's last commit; returns how many counted."""
    wanted = [entry for entry in entries if entry.version > state.version]
    if not wanted:
        return 0
    for entry in wanted:
        if entry.place > PARENT:
            head.log.resume_behind(entry.place, entry.block_count)
    verified = await head.workspace.wait_for(lambda: verify_entries(head.workspace, wanted))
    void = len(wanted) - len(verified)
    if void:
        log.warning("%d unflushed writes did not survive vdisk=%d", void, head.vdisk)
    for entry, checksums in verified:
        await _apply(head, entry, checksums)
    # The commit that holds them is no older than any of them, or the next daemon would apply them once more.
    newest = max(entry.version for entry in wanted)
    head.log.last_version = Version(max(head.log.last_version, newest - 1))
    return len(verified)


async def _apply(head: Head, entry: JournalEntry, checksums: "array[int]") -> None:
    pending = head.log.pending
    if not pending.first_sequence:
        pending.first_sequence = entry.sequence
    if entry.place == CUT and entry.block_count > 1:
        if entry.digest == this_start():  # else a power cut may have taken what it stands for
            pending.note(entry.block_no, entry.block_count, CUT)
            head.remember_call(entry.block_no << 16 | entry.block_count - 1)
    elif entry.place == CUT:
        lost = await head.workspace.wait_for(
            lambda: head.index.own_block_counts(head.vdisk, entry.block_no >> 8, rollbacks=head.rollbacks)
        )
        head.cut(entry.block_no >> 8, unloaded=lost)
        head.overlap = min(head.overlap, entry.size)
        pending.note(entry.block_no, 1, CUT)
    elif entry.block_count:
        last = entry.block_no + entry.block_count - 1
        await load_rows(head, range(entry.block_no >> 8, (last >> 8) + 1))
        if entry.place > PARENT:
            await _load_segments(head, entry)
            head.groups.note_checksums(entry.place, checksums)
            head.put_own(entry.block_no, entry.block_count, entry.place)
            pending.note(entry.block_no, entry.block_count, entry.place)
            pending.checksums.extend(checksums)
            pending.files[entry.place >> 16] = head.groups.file(entry.place >> 16)
        else:
            head.share_loaded(entry.block_no, entry.block_count, entry.place)
            pending.note(entry.block_no, entry.block_count, entry.place)
    head.size = entry.size
    head.change_no += 1


async def _load_segments(head: Head, entry: JournalEntry) -> None:
    """The rest of these segments may be in the index only."""
    groups = head.groups
    for key in range(entry.place >> 8, (entry.place + entry.block_count - 1 >> 8) + 1):
        if key not in groups.segments:
            look = functools.partial(head.index.segment, head.vdisk, key)
            segment = await head.workspace.wait_for(look)
            if segment is not None:
                groups.install_segment(key, segment)
