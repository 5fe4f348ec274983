"""The floor of a vdisk's log: what collection may delete, and how nobody ever comes to need it again.

A group may be deleted when no row names it. But an index comes back from the past: a crash takes what RocksDB had in
memory, a lost one starts from a checkpoint, and either goes on by replaying records. So before anything is deleted,

    1. the index's state gets the number of this collection, with no commit running
    2. the index is flushed: no crash takes it behind that
    3. a checkpoint with that state is published: a lost index comes back to no older one
    4. the catalog notes the number: an index or a checkpoint that has a lower one is no starting point

and only groups before the one that holds that state's record are deleted: the records behind it stay, and these name
no earlier group, because a commit holds what was appended after the last one.
"""

from dataclasses import dataclass, replace

from metadata.errors import Unavailable
from metadata.ids import COMPACTED_FROM, is_compacted, number_of
from metadata.index import VdiskState
from replication.checkpoint import checkpoint
from replication.commit import flush, start_running
from replication.head import Head
from replication.lag import reach_pool
from replication.ownership import Floor, read_facts, set_floor
from replication.pool import GroupFile


@dataclass(frozen=True, slots=True)
class Settled:
    """A floor that is in place everywhere."""

    floor: Floor
    first_group: int
    """The log from here on stays."""

    def may_delete(self, group: int) -> bool:
        """Whether nobody can come to need a group that no row names now."""
        return is_compacted(group) or group < self.first_group


async def settle(head: Head) -> Settled:
    """Makes what the index knows now the floor.

    Raises:
        VdiskfsError: it is not, and nothing may be deleted.
    """
    space = head.workspace
    async with head.room_lock:
        await start_running(head)
    await flush(head)
    floor = (await read_facts(space.catalog, head.vdisk)).floor
    number = 1 + max(floor.collected, head.collected)
    state = await _number_state(head, number)
    await reach_pool(head)
    await space.wait_for(space.index.flush)
    if not await checkpoint(head):
        raise Unavailable(f"nothing is deleted without a checkpoint vdisk={head.vdisk}")
    published = await space.wait_for(lambda: space.pool.checkpoints(head.vdisk))
    if not published or published[-1] < state.version:
        raise Unavailable(f"the checkpoint just published is not there vdisk={head.vdisk}")
    groups = await space.wait_for(lambda: space.pool.groups(head.vdisk))
    compacted = [number_of(group) - COMPACTED_FROM + 1 for group in groups if is_compacted(group)]
    new = Floor(state.version, number, max(compacted + [floor.compacted]))
    await set_floor(space.catalog, head.vdisk, new, owner=head.owner)
    return Settled(new, state.record_place >> 16)


async def _number_state(head: Head, number: int) -> VdiskState:
    """Gives the index's state the number of a collection; returns the state."""
    index = head.index

    def give() -> VdiskState:
        state = index.state(head.vdisk)
        if state is None or not state.version:
            raise Unavailable(f"the index knows nothing of the vdisk vdisk={head.vdisk}")
        state = replace(state, collected=number)
        index.change_rows(head.vdisk, state=state)
        return state

    async with head.commit_pause():
        if head.gone:
            raise Unavailable(f"the vdisk is deleted vdisk={head.vdisk}")
        state = await head.workspace.wait_for(give)
        head.collected = number
    return state


async def seal(head: Head) -> None:
    """Makes the log go on in a new group, so that the one it fills now can be collected.

    Raises:
        NoSpace, Unavailable: it goes on where it was, or the commit failed as any may.
    """
    await flush(head)
    owner_log, space = head.log, head.workspace
    async with head.room_lock:
        await start_running(head)
        room = await space.wait_for(owner_log.next_room)
        if (
            owner_log.broken or head.gone or head.closed is not None
        ):  # what is pending must be moved out of the group that failed first
            await space.wait_for(lambda: owner_log.give_back(room))
            raise Unavailable(f"a commit failed meanwhile vdisk={head.vdisk}")
        file, end = owner_log.file, owner_log.tail
        owner_log.use_room(room)
    head.change_no += 1  # a commit of nothing: its record is the new group's first
    await flush(head)
    if file is not None and not head.gone:
        space.pool.hold((file,))
        try:
            await space.wait_for(lambda: _trim(file, end))
        finally:
            space.pool.release((file,))


def _trim(file: GroupFile, end: int) -> None:
    """Thread: gives back what was preallocated."""
    file.ensure_open()
    file.trim(end)
