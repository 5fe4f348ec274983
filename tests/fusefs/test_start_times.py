"""A line for the log about a start's steps."""

import re

from fusefs.start_times import StartTimes


def test_each_step_is_named_with_its_time_and_the_sum_counts_from_the_process_s_beginning() -> None:
    times = StartTimes()
    times.note("imports")
    times.note("index")
    said = re.fullmatch(r"(\d+) ms \(imports (\d+), index (\d+)\)", times.describe())
    assert said is not None
    total, *steps = map(int, said.groups())
    assert abs(total - sum(steps)) <= len(steps)


def test_who_stood_by_counts_from_its_turn_on() -> None:
    times = StartTimes()
    times.note("imports")
    times.restart()
    times.note("index")
    assert re.fullmatch(r"\d+ ms \(index \d+\)", times.describe())
