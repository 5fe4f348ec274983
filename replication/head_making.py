"""A head, made of what recovery found in index and log, and of what the catalog says."""

from metadata.descent import Descent
from replication.family import Family
from replication.head import Head
from replication.loading import Loading
from replication.log import OwnerLog
from replication.ownership import VdiskFacts
from replication.recovery import Recovered
from replication.workspace import Workspace


async def make_head(
    workspace: Workspace,
    loading: Loading,
    family: Family,
    recovered: Recovered,
    *,
    vdisk: int,
    facts: VdiskFacts,
) -> Head:
    """The head of a vdisk that nobody has loaded; its journal is not replayed yet."""
    state = recovered.state
    groups = loading.groups(vdisk)
    groups.begin_appending()
    owner_log = OwnerLog(groups, epoch=max(1, facts.epoch))
    owner_log.resume(
        version=state.version,
        last_version=recovered.last_version,
        record_place=state.record_place,
        record_check=state.record_check,
        end=state.record_end,
    )
    ancestry = await loading.ancestry(vdisk)
    head = Head(workspace, groups, log=owner_log, ancestry=ancestry)
    head.rollbacks = facts.descent.rollbacks
    head.size, head.own_blocks, head.overlap = state.size, state.own_blocks, state.overlap
    head.mtime_ns, head.collected = state.time_ns, state.collected
    # Never an older one than rows have been written under, though nobody may keep a version any more.
    head.generation = max(state.generation, 1 + max(family.kept_versions(vdisk), default=0))
    head.owned = facts.node == workspace.node
    _finish_rollback(head, facts.descent)
    return head


def _finish_rollback(head: Head, descent: Descent) -> None:
    """A head just loaded that no commit since the newest rollback has: it begins as what that restored."""
    if descent.rolled_back is not None and head.log.version == descent.rollbacks[-1][1]:
        head.size, head.own_blocks, head.overlap = descent.rolled_back
        head.change_no += 1
