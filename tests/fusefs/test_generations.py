"""What a daemon notes for the next one of the inodes that the kernel knows."""

import pathlib

from fusefs.generations import Generations


def generations(
    path: pathlib.Path, known: set[int], *, is_successor: bool = True
) -> tuple[Generations, set[int]]:
    made = Generations(str(path / "generations"), known.__contains__)
    return made, made.begin(is_successor)


def test_a_new_daemon_knows_what_the_kernel_was_told(tmp_path: pathlib.Path) -> None:
    kernel = {20, 21, 22, 23, 24}
    first, written = generations(tmp_path, kernel, is_successor=False)
    assert (written, first.get(20)) == (set(), None)
    for inode, generation in ((20, 0), (21, 1), (21, 3), (22, 5), (23, 7), (24, 0)):
        first.note(inode, generation)
    first.note_written(21, True)
    first.note_written(22, True)
    first.note_written(22, False)
    first.note_written(24, True)
    first.forget(23)
    first.close()
    kernel -= {22, 23}
    second, written = generations(tmp_path, kernel)
    assert written == {21, 24}
    assert [second.get(inode) for inode in range(20, 25)] == [0, 3, None, None, 0]
    second.note_written(24, False)
    second.close()
    third, written = generations(tmp_path, kernel)
    assert (written, third.get(21)) == ({21}, 3)
    third.close()


def test_a_mount_begins_with_nothing(tmp_path: pathlib.Path) -> None:
    first, _ = generations(tmp_path, {20}, is_successor=False)
    first.note(20, 4)
    first.note_written(20, True)
    first.close()
    second, written = generations(tmp_path, {20}, is_successor=False)
    assert (written, second.get(20)) == (set(), None)
    second.close()


def test_a_torn_end_and_many_records_do_no_harm(tmp_path: pathlib.Path) -> None:
    first, _ = generations(tmp_path, {20, 21}, is_successor=False)
    for number in range(10_000):
        first.note(20, number)
    first.note(21, 1)
    first.close()
    path = tmp_path / "generations"
    assert path.stat().st_size < 200_000
    path.write_bytes(path.read_bytes()[:-5])
    second, _ = generations(tmp_path, {20, 21})
    assert (second.get(20), second.get(21)) == (9999, 0)
    second.close()
