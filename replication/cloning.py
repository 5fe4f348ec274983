"""Copying inside the node: by sharing blocks where the parent rule allows it, by bytes elsewhere.

A range copied at equal offsets into a vdisk that has no blocks of its own yet, from one source at one version,
becomes PARENT places: no data moves. So `cp`, which asks piece by piece, makes a clone. The source's version
is kept from then on (its generation moves), because the child reads it. Of a vdisk that another node owns bytes are copied.
"""

from collections.abc import Awaitable, Callable

from metadata.ids import HOLE
from metadata.units import BLOCK_BYTES
from replication.commit import flush
from replication.head import Head
from replication.head_read import read
from replication.head_write import adopt_range, truncate, write
from replication.lag import reach_pool
from replication.ownership import adopt
from replication.vdisks import Vdisks
from replication.view import View

COPY_BYTES_MAX = 1 << 30
"""Shared in one request; then the caller, and others, get a turn."""
_PIECE_BYTES = 1 << 20
_PIECES_MAX = 16
"""Copied by bytes in one request: 16 MiB."""
_TRIES = 20


async def copy_range(
    vdisks: Vdisks, source: Head | View, target: Head, *, offset: int, to: int, length: int
) -> int:
    """Copies from ``offset`` of the source to ``to`` of the target; returns how many bytes, perhaps fewer.

    Raises:
        NoSpace, Unavailable, Corrupt: nothing, or a first part, was copied.
    """
    length = min(length, max(0, source.size - offset))
    if not length:
        return 0
    if (
        source is not target
        and offset == to
        and await _share(vdisks, source, target, offset=offset, length=length)
    ):
        return length
    return await copy_bytes(
        lambda at, count: read(source, at, count),
        lambda at, data: write(target, at, data),
        offset=offset,
        to=to,
        length=length,
    )


async def copy_bytes(
    read_at: Callable[[int, int], Awaitable[bytes]],
    write_at: Callable[[int, bytes], Awaitable[object]],
    *,
    offset: int,
    to: int,
    length: int,
) -> int:
    """Copies piece by piece; returns how many bytes: until nothing more is read, or so many as one request may."""
    done = 0
    for _ in range(_PIECES_MAX):
        piece = min(_PIECE_BYTES, length - done)
        if not piece:
            break
        data = await read_at(offset + done, piece)
        if not data:
            break
        await write_at(to + done, data)
        done += len(data)
    return done


async def _share(vdisks: Vdisks, source: Head | View, target: Head, *, offset: int, length: int) -> bool:
    """Shares the range if it can; False: copy bytes."""
    end = offset + length
    reaches_end = end == source.size and end >= target.size
    if offset % BLOCK_BYTES or (end % BLOCK_BYTES and not reaches_end):
        return False
    size = await _make_child(vdisks, source, target)
    if size is None or (end % BLOCK_BYTES and end != size):  # grown meanwhile, perhaps in the last block
        return False
    if target.size < end:  # first: blocks that lie behind the end must never be the parent's
        await truncate(target, end)
    first = offset // BLOCK_BYTES
    await adopt_range(target, first, -(-end // BLOCK_BYTES) - first)
    return True


async def _make_child(vdisks: Vdisks, source: Head | View, target: Head) -> int | None:
    """The source's size at the version of which the target is, or now becomes, a child; None: it cannot."""
    for _ in range(_TRIES):
        if isinstance(source, Head):
            await flush(source)  # not inside the lock: somebody may be copying the other way round
        async with target.room_lock:
            if isinstance(source, Head) and (source.is_dirty or source.commit_done is not None):
                continue
            version = source.log.version if isinstance(source, Head) else source.version
            parent, size, overlap = (source.vdisk, version), source.size, source.overlap
            if target.vdisk in vdisks.flattening or not vdisks.may_be_parent(source.vdisk):
                return None
            if target.ancestry.generations:
                nearest = target.ancestry.generations[0]
                return size if (nearest.groups.vdisk, nearest.version) == parent else None
            descent = vdisks.family.descent(target.vdisk)
            if target.own_blocks or target.generation > 1 or descent.parent or descent.absent != HOLE:
                return None  # what was a clone once may have rows that say PARENT and mean a hole
            if isinstance(source, Head):
                if source.index_lags:
                    return None
                # No await since the look at the source: its next commit leaves these rows alone.
                source.keep(version)
            with vdisks.pinned(*parent):
                if isinstance(source, Head):
                    await reach_pool(source)
                await _adopt(vdisks, target, parent=parent, overlap=overlap)
            return size
    return None


async def _adopt(vdisks: Vdisks, target: Head, *, parent: tuple[int, int], overlap: int) -> None:
    catalog = target.workspace.catalog
    compares = await target.workspace.as_owner(target.vdisk) + await target.workspace.as_owner(parent[0])
    descent = await adopt(catalog, target.vdisk, parent=parent, parent_overlap=overlap, compares=compares)
    vdisks.family.set_descent(target.vdisk, descent)
    target.ancestry = await vdisks.loading.ancestry(target.vdisk)
