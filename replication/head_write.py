"""The slow way to change a head: what needs rows, room or old bytes that memory lacks.

Each function makes ready whatever it needs, awaiting as often as it must, and then changes the head in one
stretch without an await; if the world moved meanwhile it starts over. So changes stay atomic per block, and a
cancelled request has changed nothing or everything.
"""

import errno

from metadata.errors import InvalidRequest, Unavailable
from metadata.ids import HOLE, PARENT
from metadata.units import BLOCK_BYTES, VBLOCK_BLOCKS, VDISK_BYTES_MAX
from replication.commit import flush, ready_to_append
from replication.head import DIRTY_ROWS_MAX, Head
from replication.head_read import first_mapped, load_rows, read

_TRIES = 1000
"""A write starts over when its old blocks changed under it; so often in a row means a bug."""
PUNCH_VBLOCKS = 64
"""Vblocks punched between two yields."""


async def write(head: Head, offset: int, data: bytes) -> None:
    """Takes a write of any alignment.

    Raises:
        InvalidRequest: it would end beyond the largest vdisk.
        NoSpace, Unavailable, Corrupt: nothing of it was taken.
    """
    end = offset + len(data)
    check_size(end)
    if not data:
        return
    first, last = offset >> 12, end - 1 >> 12
    count = last - first + 1
    for _ in range(_TRIES):
        await ready(head, first, count)
        edges = [block for block in {first, last} if not _covers(offset, end, block)]
        places = [_place(head, block) for block in edges]
        size = head.size
        old = {block: await _old_block(head, block) for block in edges}
        await ready(head, first, count)
        if [_place(head, block) for block in edges] != places or head.size != size:
            continue
        whole = bytearray(count * BLOCK_BYTES)
        for block, content in old.items():
            at = (block - first) * BLOCK_BYTES
            whole[at : at + BLOCK_BYTES] = content
        whole[offset - first * BLOCK_BYTES : end - first * BLOCK_BYTES] = data
        head.write_blocks(first, memoryview(whole), count, size=max(head.size, end))
        return
    raise Unavailable(f"a write found no quiet moment vdisk={head.vdisk} offset={offset}")


def check_size(size: int) -> None:
    """Raises InvalidRequest (EFBIG) for a size that no vdisk can have."""
    if size > VDISK_BYTES_MAX:
        raise InvalidRequest(f"a vdisk has at most 1 EiB size={size}", number=errno.EFBIG)


def _covers(offset: int, end: int, block: int) -> bool:
    return offset <= block * BLOCK_BYTES and (block + 1) * BLOCK_BYTES <= end


def _place(head: Head, block: int) -> int:
    return head.rows[block >> 8][block & 255]


async def _old_block(head: Head, block: int) -> bytes:
    return (await read(head, block * BLOCK_BYTES, BLOCK_BYTES)).ljust(BLOCK_BYTES, b"\0")


async def ready(head: Head, block_no: int, count: int, *, for_data: bool = True) -> None:
    """Rows loaded, room in log and journal, room for dirty rows; true when it returns."""
    vblocks = range(block_no >> 8, (block_no + count - 1 >> 8) + 1)
    while True:
        if len(head.dirty) + len(vblocks) > DIRTY_ROWS_MAX:
            await flush(head)
        await ready_to_append(head, count, for_data=for_data)
        await load_rows(head, vblocks)
        log = head.log
        if log.fits(count) and not log.broken and head.journal.room() >= 2 * count + 2:
            return


async def punch(head: Head, offset: int, length: int) -> None:
    """Makes [offset, offset + length) read as zeros and gives its whole blocks back; the size stays.

    Raises:
        NoSpace, Unavailable, Corrupt: part of it may be done, as with any discard.
    """
    end = min(offset + length, head.size)
    if end <= offset:
        return
    first, last = -(-offset // BLOCK_BYTES), end // BLOCK_BYTES
    if end == head.size:
        last = -(-end // BLOCK_BYTES)
    if first > last or (first == last and offset // BLOCK_BYTES == (end - 1) // BLOCK_BYTES):
        await write(head, offset, bytes(end - offset))  # inside one block
        return
    if offset < first * BLOCK_BYTES:
        await write(head, offset, bytes(first * BLOCK_BYTES - offset))
    if end > last * BLOCK_BYTES:
        await write(head, last * BLOCK_BYTES, bytes(end - last * BLOCK_BYTES))
    await share(head, first, last - first, HOLE)


async def share(head: Head, block_no: int, count: int, place: int) -> None:
    """Makes whole blocks HOLE or PARENT, a few vblocks at a time."""
    end = block_no + count
    while block_no < end:
        if place == HOLE:
            block_no = max(block_no, await _next_mapped(head, block_no >> 8, end) << 8)
            if block_no >= end:
                return
        stop = min(end, ((block_no >> 8) + PUNCH_VBLOCKS) << 8)
        await _ready_to_share(head, block_no, stop - block_no)
        head.put_shared(block_no, stop - block_no, place)
        block_no = stop


async def _ready_to_share(head: Head, block_no: int, count: int) -> None:
    vblocks = range(block_no >> 8, (block_no + count - 1 >> 8) + 1)
    while True:
        await ready(head, block_no, 1, for_data=False)
        await load_rows(head, vblocks)
        if not head.log.broken and head.log.fits(1) and head.journal.room() > len(vblocks) + 2:
            return


async def _next_mapped(head: Head, vblock: int, end_block: int) -> int:
    """The first vblock from this one on that may have anything to punch."""
    if vblock in head.rows:
        return vblock
    end = (end_block + VBLOCK_BLOCKS - 1) >> 8
    near = [v for v in head.rows if vblock <= v < end]  # before the index: it gets what they lose
    found = await head.workspace.wait_for(lambda: first_mapped(head, vblock, end))
    return min([*near, end if found is None else found])


async def truncate(head: Head, size: int) -> None:
    """Sets the size. What a larger one adds reads as zeros, whatever was there before.

    Raises:
        InvalidRequest: no vdisk can be so large.
        NoSpace, Unavailable, Corrupt: the size is as it was.
    """
    check_size(size)
    while size != head.size:
        if size > head.size:
            await ready_to_append(head, 1, for_data=False)
            if size > head.size:
                head.grow(size)
            return
        await _cut(head, size)


async def grow_to(head: Head, size: int) -> None:
    """At least this size; as ``truncate``."""
    if size > head.size:
        await truncate(head, size)


async def _cut(head: Head, size: int) -> None:
    old = head.size
    tail_end = min(-(-size // BLOCK_BYTES) * BLOCK_BYTES, old)
    if size % BLOCK_BYTES and tail_end > size:
        await write(head, size, bytes(tail_end - size))
    boundary = -(-size // (BLOCK_BYTES * VBLOCK_BLOCKS)) * VBLOCK_BLOCKS
    first = -(-size // BLOCK_BYTES)
    if first < boundary:
        await share(head, first, boundary - first, HOLE)
    await ready_to_append(head, 1, for_data=False)
    async with head.commit_pause():  # until the cut, what the index says of rows not in memory holds
        lost = await head.workspace.wait_for(
            lambda: head.index.own_block_counts(head.vdisk, boundary >> 8, rollbacks=head.rollbacks)
        )
        if head.size == old and head.log.fits(1) and head.journal.room() > 2:
            head.shrink(size, unloaded=lost)  # else the world moved: truncate looks again


async def adopt_range(head: Head, block_no: int, count: int) -> None:
    """Makes whole blocks those of the parent, and the vdisk long enough to have them."""
    await share(head, block_no, count, PARENT)
