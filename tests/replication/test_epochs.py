"""The beginning of an epoch: what of before counts, and numbers that nobody else can have given."""

import os
import pathlib

import pytest

from metadata.ids import HOLE, POSITION_BITS, VdiskId, group_id
from metadata.journal_entries import JournalEntry
from replication.commit import flush
from replication.epochs import VERSIONS_SKIPPED, is_begun, of_this_epoch
from replication.head import Head
from replication.ownership import Resting, VdiskFacts
from tests.replication.cluster_rig import ClusterRig
from tests.replication.rig import block, create, run, write

RESTING = Resting(1, 0, 0, 0, 0, 0, 0)


def place(epoch: int) -> int:
    return group_id(epoch, 0) << POSITION_BITS


def entry(where: int) -> JournalEntry:
    return JournalEntry(1, 20, 1, 0, where, 4096, 1, 0)


def test_entries_of_an_earlier_epoch_are_void_and_those_without_bytes_count() -> None:
    old, new, hole = entry(place(2)), entry(place(3)), entry(HOLE)
    assert of_this_epoch([old, new, hole], VdiskFacts(epoch=3)) == [new, hole]
    assert of_this_epoch([old, new, hole], VdiskFacts(epoch=2)) == [old, hole]


def test_what_nobody_owned_was_written_under_the_first_epoch() -> None:
    assert of_this_epoch([entry(place(1))], VdiskFacts()) == [entry(place(1))]


@pytest.mark.parametrize(
    ("facts", "record", "begun"),
    [
        (VdiskFacts(epoch=2), place(2), True),
        (VdiskFacts(epoch=3), place(2), False),
        (VdiskFacts(epoch=3, resting=RESTING), place(2), True),
        (VdiskFacts(epoch=1), 0, True),
        (VdiskFacts(epoch=2), 0, False),
    ],
)
def test_an_epoch_has_begun_with_a_commit_of_its_own_or_from_a_vdisk_at_rest(
    facts: VdiskFacts, record: int, begun: bool
) -> None:
    assert is_begun(facts, record) is begun


def test_after_a_takeover_versions_go_on_behind_all_that_the_old_owner_may_have_given(
    tmp_path: pathlib.Path,
) -> None:
    cluster = ClusterRig(tmp_path)

    async def scenario() -> None:
        async with cluster.running():
            a, b = await cluster.start("a"), await cluster.start("b")
            head = await create(a, 20)
            await write(head, 0, block(1))
            await flush(head)
            last = head.log.version
            await cluster.kill("a")
            cluster.switch.expire("a")
            await b.open(VdiskId(20), flags=os.O_RDWR)
            taken = b.heads[20]
            assert isinstance(taken, Head)
            assert taken.log.version > last + VERSIONS_SKIPPED

    run(scenario)
