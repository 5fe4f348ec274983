"""A commit on its way: whoever waits for it is answered once, by whichever thread is there first."""

import threading

from replication.flight import Flight


def flight() -> Flight:
    return Flight(None, None, 7)


class Asker:
    """Counts what it is told."""

    def __init__(self, on: Flight) -> None:
        self.durable = self.failed = 0
        on.answer(self._durable, when_failed=self._failed)

    def _durable(self) -> None:
        self.durable += 1

    def _failed(self) -> None:
        self.failed += 1


def test_those_who_wait_are_answered_when_it_is_durable_and_later_ones_at_once() -> None:
    one = flight()
    first, second = Asker(one), Asker(one)
    assert first.durable == second.durable == 0
    one.note_durable()
    third = Asker(one)
    assert (first.durable, second.durable, third.durable) == (1, 1, 1)
    one.note_durable()
    assert one.take_failed() == []
    assert (first.durable, first.failed) == (1, 0)


def test_a_failure_concerns_those_who_have_no_answer_in_their_order() -> None:
    one, told = flight(), list[int]()
    for number in range(3):
        one.answer(lambda: told.append(-1), when_failed=lambda number=number: told.append(number))
    for tell in one.take_failed():
        tell()
    assert told == [0, 1, 2]
    assert one.take_failed() == []
    assert not one.durable


def test_nobody_is_answered_twice_or_never_by_two_threads() -> None:
    for _ in range(50):
        one, begin = flight(), threading.Barrier(2)

        def note(one: Flight = one, begin: threading.Barrier = begin) -> None:
            begin.wait()
            one.note_durable()

        thread = threading.Thread(target=note)
        thread.start()
        askers = [Asker(one) for _ in range(5)]
        begin.wait()
        askers += [Asker(one) for _ in range(50)]
        thread.join()
        assert {asker.durable for asker in askers} == {1}
