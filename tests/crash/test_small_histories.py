"""Every state of small histories keeps the promises; a sync that is left out, or an order, is found by the search itself."""

from collections.abc import Callable

import pytest

from replication import commit, log, pool_directory
from replication.flight import Flight
from replication.head import Head
from replication.log import Commit
from tests.crash.cut_states import trees
from tests.crash.disk_model import Recording, Sync, Write
from tests.crash.search import look
from tests.crash.small_histories import ALPHABET, sequences

LONGER = ["wf", "wwf", "wsd", "swb", "cvx", "wfg", "wkf", "cX", "tzw", "sxg"]
STRIDE = 12


def test_every_state_of_every_single_operation_keeps_the_promises() -> None:
    searched = look(list(sequences(1)), stride=4)
    assert searched.failures == []
    assert searched.histories >= 10
    assert searched.states > 60


def test_states_of_longer_histories_keep_the_promises() -> None:
    searched = look(LONGER, stride=STRIDE)
    assert searched.failures == []
    assert searched.histories == len(LONGER)


def leave_out_the_sync_of_the_record_s_group(patch: pytest.MonkeyPatch) -> None:
    real = Commit.write

    def write(self: Commit) -> None:
        if self.record.version < 2:  # the vdisk begins soundly
            real(self)
            return
        self.file.ensure_open()
        self.file.write(self.data, self.position)
        for file in self.pending.files.values():
            if file is not self.file:
                file.sync()

    patch.setattr(log.Commit, "write", write)


def leave_out_the_sync_of_other_groups(patch: pytest.MonkeyPatch) -> None:
    def write(self: Commit) -> None:
        self.file.ensure_open()
        self.file.write(self.data, self.position)
        self.file.sync()

    patch.setattr(log.Commit, "write", write)


def leave_out_the_directory_s_sync(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(pool_directory, "sync_directory", lambda path: None)


def write_the_index_before_the_pool(patch: pytest.MonkeyPatch) -> None:
    real = commit._write

    def write(head: Head, flight: Flight) -> None:
        if flight.batch is not None:
            head.index.apply(flight.batch)
        real(head, flight)

    patch.setattr(commit, "_write", write)


@pytest.mark.parametrize(
    ("plant", "histories"),
    [
        (leave_out_the_sync_of_the_record_s_group, [*sequences(1, "wf"), *sequences(2, "wf")]),
        (leave_out_the_sync_of_other_groups, ["wwf"]),
        (leave_out_the_directory_s_sync, ["t"]),
        (write_the_index_before_the_pool, ["wf"]),
    ],
)
def test_a_planted_mistake_is_found_by_the_search(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    plant: Callable[[pytest.MonkeyPatch], None],
    histories: list[str],
) -> None:
    plant(monkeypatch)
    searched = look(histories, stride=3 if len(histories) > 1 else 1)
    caplog.clear()
    assert searched.failures
    assert all(line.partition(":")[0] in histories for line in searched.failures)


def test_of_few_pieces_there_is_every_subset_and_each_torn_page() -> None:
    recording = Recording(contents={1: b""}, names={(0, "a"): 1}, paths={1: "a"})
    recording.operations += [Write(1, 2, 1, 0, b"x" * 8192), Sync(3, 4, 1), Write(5, 6, 1, 4096, b"y" * 8192)]
    found = {tree.files["a"] for _, tree in trees(recording, 6)}
    x, y, half = b"x" * 4096, b"y" * 4096, b"y" * 2048
    assert {x + x, x + y, x + y + y, x + x[:0] + b"x" * 4096 + y} <= found
    assert x + half + b"x" * 2048 + bytes(4096) in found
    assert len({tree.files["a"] for _, tree in trees(recording, 2)}) > 4
    assert set(ALPHABET) == set("wfldtsbcvxXgzk")
