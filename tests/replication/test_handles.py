"""Handles: numbers that say whose they are, who may write, and which close was the last."""

import os
from types import SimpleNamespace
from typing import cast

import pytest

from metadata.ids import VdiskId
from replication.handles import HANDLE_SHIFT, Handles, file_of
from replication.head import Head

V = VdiskId(20)
HEAD = cast(Head, SimpleNamespace(error_no=3))


def opened(handles: Handles, flags: int) -> int:
    handles.expect(V)
    return handles.add(HEAD, file_id=V, flags=flags)


def test_a_number_carries_its_file_and_no_two_are_alike() -> None:
    handles = Handles()
    numbers = [opened(handles, os.O_RDONLY) for _ in range(100)]
    assert len(set(numbers)) == 100
    assert {file_of(number) for number in numbers} == {V}
    assert all(number >> HANDLE_SHIFT for number in numbers)
    assert handles.serving(HEAD) == numbers


@pytest.mark.parametrize(
    ("flags", "writes", "through_the_cache", "reads_through_it"),
    [
        (os.O_RDONLY, False, False, True),
        (os.O_RDWR, True, True, True),
        (os.O_WRONLY | os.O_DIRECT, True, False, False),
        (os.O_RDONLY | os.O_DIRECT, False, False, False),
    ],
)
def test_who_may_write_and_how_goes_by_the_flags_of_open(
    flags: int, writes: bool, through_the_cache: bool, reads_through_it: bool
) -> None:
    handles = Handles()
    number = opened(handles, flags)
    assert handles.has_writer(V) is writes
    assert handles.has_writer(V, buffered=True) is through_the_cache
    assert handles.has_buffered(V) is reads_through_it
    assert handles.by_number[number].errors_told == 3
    assert handles.close(number) == V
    assert not handles.has_writer(V)


def test_the_last_close_says_whose_it_was_and_a_second_one_nothing() -> None:
    handles = Handles()
    one, two = opened(handles, os.O_RDWR), opened(handles, os.O_RDWR)
    assert handles.count(V) == 2
    assert handles.close(one) is None
    assert handles.close(one) is None
    assert handles.close(two) == V
    assert handles.count(V) == 0


def test_a_handle_that_is_being_made_counts_and_may_be_given_up() -> None:
    handles = Handles()
    handles.expect(V)
    number = opened(handles, os.O_RDWR)
    assert handles.close(number) is None
    assert handles.give_up(V)


def test_a_dead_daemon_s_handle_may_be_a_writer_s_and_counts_once() -> None:
    handles = Handles()
    number = 5 << HANDLE_SHIFT | V
    for _ in range(2):  # two requests find it missing at once
        handles.expect(V)
        handles.adopt(number, HEAD, writer=True)
    assert handles.count(V) == 1
    assert handles.has_writer(V, buffered=True)
    assert handles.close(number) == V
