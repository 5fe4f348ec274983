"""What makes a forwarded change count once, whoever owned the vdisk when it was done.

A caller whose call is not answered does not know whether it was done. It asks again, and meanwhile the vdisk may have
another owner, or the owner another daemon; and somebody may have written there since, later than the first doing. So
each change that is forwarded has a number, and **the commit that holds the change holds its number** (metadata/records.py),
and so does the journal until then. Whoever owns the vdisk when the call comes again looks for the number:

    in the head      taken since it was loaded, or found in the journal: not done again, perhaps not committed yet
    in the log       from its end back to the version that the caller knew before it asked first
    nowhere          it was not done, and will not be: what an owner before appends now is outside the log (ownership)

So a hand-over need not carry anything, and a takeover learns what a dead owner never told. Where the log is gone that
far back (collected since), nobody knows, and the caller's guest gets an error. After "Implementing Linearizability at
Large Scale and Low Latency", Lee and others, SOSP 2015, whose completion records these numbers are.

A change that a number stands for is made in one stretch, so that no commit cuts it in two: a discard is asked for piece by
piece, and a write waits for room in the journal for itself and its number. Only a file that is cut may lose its end in two
steps; done twice, that is the same as being cut later.
"""

from collections.abc import Iterator

from metadata.errors import Corrupt, NotFound, Unavailable
from metadata.records import CommitRecord
from replication.commit import ready_to_append
from replication.head import Head
from replication.recovery import LogReader

RECORDS_MAX = 1 << 17
"""Looked through for one call: a caller asks for some seconds, an owner commits some thousand times in each."""


async def note_taken(head: Head, call: int) -> None:
    """The commit that holds what was just changed says that it holds this call."""
    if head.log.broken or not head.running or head.journal.room() < 2:  # only if nothing had to be changed
        await ready_to_append(head, 1, for_data=False)
    head.note_call(call)


async def is_committed(head: Head, call: int, *, since: int) -> bool:
    """Whether a commit after version ``since`` holds a call.

    Raises:
        Unavailable: nobody knows.
    """
    place, check, space = head.log.record_place, head.log.record_check, head.workspace

    def look() -> bool:
        with LogReader(space.pool, head.vdisk) as reader:
            back = records_back(reader, place, check)
            return any(call in record.calls() for record in _newer(back, since))

    try:
        return await space.wait_for(look)
    except (Corrupt, NotFound) as exc:
        raise Unavailable(
            f"whether a write was done is not known any more: {exc} vdisk={head.vdisk}"
        ) from exc


def _newer(records: Iterator[CommitRecord], since: int) -> Iterator[CommitRecord]:
    for number, record in enumerate(records):
        if record.version <= since:
            return
        if number == RECORDS_MAX:
            raise Corrupt(f"too many commits since version={since}")
        yield record


def records_back(reader: LogReader, place: int, check: int) -> Iterator[CommitRecord]:
    """Thread: the commits from the one at a place back to the first.

    Raises:
        Corrupt, NotFound: the chain is broken: older ones were collected.
    """
    while place:
        record, actual, _ = reader.record_at(place)
        if actual != check:
            raise Corrupt(f"the log's chain is broken vdisk={reader.vdisk} place={place:#x}")
        yield record
        place, check = record.previous_place, record.previous_check
