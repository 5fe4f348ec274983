"""Power cuts: unsynced writes are dropped, reordered or torn; each state must mount and keep the promises.

Promise 1 (what was flushed is there), 8 (no wrong bytes) and 11 (no half blocks) are checked in each state.
``make powercut ROUNDS=...`` brings up more of them, with a new recording every ``STATES_PER_RECORDING``.
"""

import pathlib
import random
import shutil

import pytest

from tests.crash.disk_model import POLICIES, Bind, build
from tests.crash.power_cut import Recorded, bring_up, cut_power, record

SHORT_STATES = 9
STATES_PER_RECORDING = 40
WRITES_MAX = 120

FORGOTTEN = {
    "the data's fdatasync": lambda path: path.endswith(".group"),
    "the fsync of the folder of groups": lambda path: "/pool/vdisks" in path and not path.endswith(".group"),
    "the catalog's": lambda path: "catalog.sqlite" in path,
}


@pytest.fixture(scope="module", params=["a new pool", "a pool in use"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """A recording for the short tests; what is read from it does not change it."""
    folder = tmp_path_factory.mktemp("recording") / "run"
    return record(folder, seed=1, writes_max=WRITES_MAX, prefilled=request.param == "a pool in use")


def test_only_the_journal_and_sqlite_s_shm_are_mapped(recorded: Recorded) -> None:
    assert {path.rsplit("/", 1)[1] for path in recorded.mappings} == {"journal", "catalog.sqlite-shm"}


def test_every_state_a_power_cut_may_leave_keeps_the_promises(
    recorded: Recorded, tmp_path: pathlib.Path, seed: int, rounds: int | None
) -> None:
    chance = random.Random(seed)
    moments = recorded.moments(chance)
    for number in range(rounds or SHORT_STATES):
        if number and number % STATES_PER_RECORDING == 0:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)
            run, run_seed = tmp_path / "run", chance.randrange(1 << 32)
            recorded = record(run, seed=run_seed, writes_max=WRITES_MAX, prefilled=recorded.prefilled)
            moments = recorded.moments(chance)
        folder = tmp_path / f"state{number}"
        cut_power(recorded, folder, chance, next(moments))
        shutil.rmtree(folder)


@pytest.mark.parametrize("recorded", ["a new pool"], indirect=True)
def test_a_power_cut_during_the_first_mount_spoils_no_later_one(
    recorded: Recorded, tmp_path: pathlib.Path
) -> None:
    """Names and sizes are there, but not what the files held: the hardest for whoever writes small files."""
    moments = [operation.end_ns for operation in recorded.recording.operations if isinstance(operation, Bind)]
    first_write_ns = min(write.issued_ns for writes in recorded.history.writes.values() for write in writes)
    at_ns = max(moment for moment in moments if moment < first_write_ns)
    for name in ("lose data", "keep none"):
        tree = build(recorded.recording, at_ns, keep=POLICIES[name](0, random.Random(0)))
        bring_up(recorded, tree, at_ns=at_ns, folder=tmp_path / name)


@pytest.mark.parametrize("recorded", ["a pool in use"], indirect=True)
@pytest.mark.parametrize("forgotten", sorted(FORGOTTEN))
def test_a_forgotten_sync_is_found(recorded: Recorded, tmp_path: pathlib.Path, forgotten: str) -> None:
    """The same recording as if the program had not synced there: the oracle must object."""
    forgetful = recorded.recording.without_syncs(FORGOTTEN[forgotten])
    assert len(forgetful.operations) < len(recorded.recording.operations)
    at_ns = max(end for flushes in recorded.history.flushes.values() for _, end in flushes)
    for number, vouched in enumerate((recorded.recording, forgetful)):
        tree = build(vouched, at_ns, keep=lambda *_: False)
        if vouched is forgetful:
            with pytest.raises(AssertionError, match="registers are wrong"):
                bring_up(recorded, tree, at_ns=at_ns, folder=tmp_path / str(number))
        else:
            bring_up(recorded, tree, at_ns=at_ns, folder=tmp_path / str(number))
