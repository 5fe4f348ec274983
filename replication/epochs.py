"""The beginning of an epoch: what the new owner of a vdisk commits first, after a takeover.

The owner before was not asked: it may have appended a commit that it never acknowledged, and may do so still, once, to
a group of its own epoch. Recovery goes back from the newest epoch's last record. So one commit of nothing, chained
to the tail that was found, puts whatever comes to older groups later outside the history, for every node alike.
"""

from metadata.ids import PARENT, POSITION_BITS, Version, epoch_of
from metadata.journal_entries import JournalEntry
from replication.commit import flush, start_running
from replication.head import Head
from replication.lag import reach_pool
from replication.ownership import VdiskFacts

VERSIONS_SKIPPED = 1000
"""Numbers that a deposed owner may have given to commits, or to writes in its journal, that do not count."""


def is_begun(facts: VdiskFacts, record_place: int) -> bool:
    """Whether the vdisk's last commit is of its owner's epoch, or the owner before left it at rest.

    If not, this node may have written all the same: it got the vdisk at rest, and its daemon died before a commit.
    """
    last = epoch_of(record_place >> POSITION_BITS) if record_place else 1
    return facts.resting is not None or facts.epoch <= max(1, last)


async def begin(head: Head) -> None:
    """Commits nothing, under the epoch that this node has taken.

    Raises:
        NotOwner, Fenced: it does not have it any more.
        NoSpace, Unavailable: the commit failed; the next one, whatever it holds, does as well.
    """
    head.log.last_version = Version(head.log.last_version + VERSIONS_SKIPPED)
    async with head.room_lock:
        await start_running(head)
    head.change_no += 1
    await flush(head)
    await reach_pool(head)


def of_this_epoch(entries: list[JournalEntry], facts: VdiskFacts) -> list[JournalEntry]:
    """Journal entries that count; those from before this node lost the vdisk and got it back are void."""
    return [
        entry
        for entry in entries
        if entry.place <= PARENT or epoch_of(entry.place >> POSITION_BITS) == max(1, facts.epoch)
    ]
