"""Who is expected to open for writing: how many, for how long, by the next daemon too."""

import pathlib

from replication.expected_writers import RESTART_S, WRITING_S, ExpectedWriters

V = 20


def expected(folder: pathlib.Path, now_s: list[float], over: list[int]) -> ExpectedWriters:
    made = ExpectedWriters(str(folder / "writers"), clock_s=lambda: now_s[0], note_over=over.append)
    made.open()
    return made


def test_as_many_are_expected_as_were_told_and_for_as_long(tmp_path: pathlib.Path) -> None:
    now_s, over = [1000.0], list[int]()
    first = expected(tmp_path, now_s, over)
    assert not first.is_expected(V)
    for _ in range(2):
        first.expect(V)
    first.note_come(V)
    assert first.is_expected(V)
    first.note_come(V)
    assert not first.is_expected(V)
    first.expect(V + 1)
    now_s[0] += WRITING_S
    assert not first.is_expected(V + 1)
    first.expect(V + 2)
    assert over == [V + 1]


def test_the_next_daemon_expects_them_anew_unless_they_are_of_long_ago(tmp_path: pathlib.Path) -> None:
    now_s, over = [1000.0], list[int]()
    expected(tmp_path, now_s, over).expect(V)
    now_s[0] += RESTART_S
    second = expected(tmp_path, now_s, over)
    assert second.is_expected(V)
    now_s[0] += RESTART_S + WRITING_S
    assert not expected(tmp_path, now_s, over).is_expected(V)
    second.expect(V)
    now_s[0] = 1.0  # another boot's clock
    assert not expected(tmp_path, now_s, over).is_expected(V)


def test_a_list_that_is_cut_short_counts_as_far_as_it_goes(tmp_path: pathlib.Path) -> None:
    now_s, path = [1000.0], tmp_path / "writers"
    first = expected(tmp_path, now_s, [])
    first.expect(V)
    first.expect(V + 1)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + b"?")
    second = expected(tmp_path, now_s, [])
    assert second.is_expected(V)
    assert not second.is_expected(V + 1)
