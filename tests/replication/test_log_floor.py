"""The floor of a log: what may be deleted once it stands, and that nothing may while it does not."""

import pytest

from metadata.errors import Unavailable
from metadata.ids import COMPACTED_FROM, group_id
from replication import log_floor
from replication.commit import flush
from replication.log_floor import Settled, seal, settle
from replication.ownership import NO_FLOOR, Floor, read_facts
from tests.replication.rig import B, Rig, block, content, create, run, sound, write


def test_groups_of_the_log_from_the_floor_on_stay_and_those_of_compaction_may_go() -> None:
    settled = Settled(Floor(7, 1), first_group=group_id(2, 5))
    assert settled.may_delete(group_id(1, 9))
    assert settled.may_delete(group_id(2, 4))
    assert not settled.may_delete(group_id(2, 5))
    assert not settled.may_delete(group_id(3, 0))
    assert settled.may_delete(group_id(3, COMPACTED_FROM))


def test_each_floor_has_a_number_of_its_own_and_the_catalog_knows_it(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 64 * B)
            for count in (1, 2):
                await write(head, 0, block(count))
                settled = await settle(head)
                assert settled.floor.collected == count
                assert (await read_facts(vdisks.workspace.catalog, 20)).floor == settled.floor
                assert vdisks.workspace.pool.checkpoints(20) == [settled.floor.version]
                state = vdisks.workspace.index.state(20)
                assert state is not None
                assert state.collected == count

    run(main)


def test_without_a_checkpoint_there_is_no_floor(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def none_is_made(_: object) -> bool:
        return False

    monkeypatch.setattr(log_floor, "checkpoint", none_is_made)

    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 64 * B)
            await write(head, 0, block(1))
            with pytest.raises(Unavailable, match="without a checkpoint"):
                await settle(head)
            assert (await read_facts(vdisks.workspace.catalog, 20)).floor == NO_FLOOR

    run(main)


def test_a_sealed_log_goes_on_in_a_new_group_and_holds_all_it_held(rig: Rig) -> None:
    async def main() -> None:
        async with rig.node() as vdisks:
            head = await create(vdisks, 20, 64 * B)
            await write(head, 0, block(1))
            await flush(head)
            before = rig.group_files(20)
            await seal(head)
            assert len(rig.group_files(20)) == len(before) + 1
            assert (await content(head))[:B] == block(1)
            await sound(vdisks, 20)

    run(main)
