"""What watchers are told from memory: all of it, in order, or that some of it is gone."""

import trio
import trio.testing

from metadata.catalog import Event
from metadata.catalog_history import RecentEvents


def event(revision: int, key: bytes = b"a/1") -> Event:
    return Event(key, b"", revision)


def filled(*revisions: int, events_max: int = 100) -> RecentEvents:
    history = RecentEvents(10, events_max=events_max)
    for revision in revisions:
        history.publish([event(revision), event(revision, b"b/1")], revision)
    return history


def test_events_above_a_position_come_in_order_and_of_the_prefix_alone() -> None:
    history = filled(11, 12, 13)
    assert history.events_after(11, b"a/") == [event(12), event(13)]
    assert history.events_after(13, b"") == []
    assert history.events_after(9, b"a/") is None


def test_what_comes_twice_counts_once() -> None:
    history = filled(11, 11, 11)
    assert history.events_after(10, b"a/") == [event(11)]


def test_of_too_many_the_oldest_go_a_revision_at_a_time() -> None:
    history = filled(11, 12, 13, events_max=3)
    assert history.floor == 12  # one of its two events is gone, so none of it can be told
    assert history.events_after(11, b"") is None
    assert history.events_after(12, b"a/") == [event(13)]


def test_a_new_beginning_forgets_and_wakes() -> None:
    async def main() -> None:
        history, woken = filled(11), list[int]()

        async def wait(position: int) -> None:
            await history.wait_for_more(position)
            woken.append(position)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, 11)
            await trio.testing.wait_all_tasks_blocked()
            assert woken == []
            history.restart(20)
        assert woken == [11]
        assert history.events_after(15, b"") is None
        assert history.events_after(20, b"") == []

    trio.run(main)
