"""Known-bad changes of the code that keeps several nodes right, for the checker to find: each breaks one promise.

A mutant replaces something for as long as it is entered. ``run.py`` runs seeds until each is found.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import trio

from metadata.catalog import Change
from metadata.errors import Conflict, NotOwner
from metadata.ids import Epoch
from replication import audience, commit, fence, follower, forwarding, ownership, rollback, transfers, vdisks
from replication.family import Family
from replication.session import Session

Planting = Callable[[pytest.MonkeyPatch], None]
MUTANTS: dict[str, Planting] = {}


def mutant(plant: Planting) -> Planting:
    """Registers a mutant under its name."""
    MUTANTS[plant.__name__] = plant
    return plant


@contextmanager
def planted(name: str) -> Iterator[None]:
    """The code with this mutant in it."""
    with pytest.MonkeyPatch.context() as patch:
        MUTANTS[name](patch)
        yield


@mutant
def no_fence(patch: pytest.MonkeyPatch) -> None:
    """A commit counts whoever owns the vdisk by now."""
    before = fence.Fence.__init__

    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        before(self, *args, **{**kwargs, "is_certain": lambda: True})

    patch.setattr(fence.Fence, "__init__", make)


@mutant
def acknowledged_before_durable(patch: pytest.MonkeyPatch) -> None:
    """fsync returns at once."""

    async def at_once(head: Any, **_: Any) -> None:
        commit.begin_nowait(head)
        await trio.lowlevel.checkpoint()

    for name in ("flush", "commit_light"):
        patch.setattr(vdisks, name, at_once)


@mutant
def no_waiting_for_subscribers(patch: pytest.MonkeyPatch) -> None:
    """A flush returns though subscribers have not heard of it."""

    async def at_once(self: Any, version: int, **_: Any) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(audience.Audience, "wait", at_once)


@mutant
def subscriptions_for_ever(patch: pytest.MonkeyPatch) -> None:
    """A peer trusts what it has though it was not heard of for long."""
    patch.setattr(follower.Follower, "_is_trusted", lambda self, following: True)


@mutant
def gaps_are_not_noticed(patch: pytest.MonkeyPatch) -> None:
    """A publication is applied on top of whatever there is."""
    before = follower.decode_record

    class Fitting:
        """A record that follows anything."""

        def __init__(self, record: Any) -> None:
            self._record = record

        def __getattr__(self, name: str) -> Any:
            return ANYTHING if name in ("previous_place", "previous_check") else getattr(self._record, name)

    class Anything:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    ANYTHING = Anything()

    def decode(*args: Any) -> Any:
        record, check = before(*args)
        return Fitting(record), check

    patch.setattr(follower, "decode_record", decode)


@mutant
def pins_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """What a reader keeps is overwritten."""
    patch.setattr(Family, "read_versions", lambda self, vdisk: ())
    patch.setattr(Family, "kept_versions", lambda self, vdisk: ())


@mutant
def epochs_are_used_again(patch: pytest.MonkeyPatch) -> None:
    """Who takes over goes on under the epoch of before: two nodes append to one group.

    It takes an owner that falls asleep in the middle of a commit, which ``test_killed_moves.py`` sees to.
    """

    async def take_over(catalog: Any, vdisk: int, *, owner: Any, node: str) -> Epoch:
        put = (ownership.owner_key(vdisk), ownership._encode_owner(node, owner.epoch))
        compares = ((ownership.owner_key(vdisk), owner.revision), (ownership.session_key(owner.node), 0))
        try:
            await catalog.transact(Change(compares=compares, puts=(put,)))
        except Conflict:
            raise NotOwner(f"another node owns the vdisk vdisk={vdisk}") from None
        return Epoch(owner.epoch)

    patch.setattr(transfers, "take_over", take_over)


@mutant
def sessions_are_not_looked_at(patch: pytest.MonkeyPatch) -> None:
    """A vdisk is taken from an owner that lives."""

    async def take_over(catalog: Any, vdisk: int, *, owner: Any, node: str) -> Epoch:
        put = (ownership.owner_key(vdisk), ownership._encode_owner(node, owner.epoch + 1))
        try:
            await catalog.transact(
                Change(compares=((ownership.owner_key(vdisk), owner.revision),), puts=(put,))
            )
        except Conflict:
            raise NotOwner(f"another node owns the vdisk vdisk={vdisk}") from None
        return Epoch(owner.epoch + 1)

    patch.setattr(transfers, "take_over", take_over)
    patch.setattr(Session, "is_live", lambda self, node: node == self.node)


@mutant
def forwarded_writes_are_not_committed(patch: pytest.MonkeyPatch) -> None:
    """A forwarded write is acknowledged when it is in the owner's memory."""

    async def not_at_all(head: Any, **_: Any) -> None:
        await trio.lowlevel.checkpoint()

    patch.setattr(forwarding, "commit_light", not_at_all)


@mutant
def the_newest_publication_first(patch: pytest.MonkeyPatch) -> None:
    """A peer acknowledges what it has not applied."""
    before = follower.Follower._applied
    skipped: list[int] = []

    async def applied(self: Any, lot: Any, state: Any) -> Any:
        skipped.append(len(lot))
        return await before(self, lot, state) if len(skipped) % 2 else state

    patch.setattr(follower.Follower, "_applied", applied)


@mutant
def subscribers_do_not_keep_groups(patch: pytest.MonkeyPatch) -> None:
    """Collection deletes what other nodes read."""
    patch.setattr(vdisks.Vdisks, "is_followed", lambda self, vdisk: False)


@mutant
def snapshots_of_the_version_before(patch: pytest.MonkeyPatch) -> None:
    """A snapshot lacks what was not committed when it was asked for."""
    before = rollback.NameNow.__call__

    def make(self: Any, moment: Any) -> Any:
        made = before(self, moment)
        return replace(made, version=max(0, made.version - 1))

    patch.setattr(rollback.NameNow, "__call__", make)


@mutant
def named_versions_are_not_waited_for(patch: pytest.MonkeyPatch) -> None:
    """A peer reads a snapshot, or a clone's parent, of which it has not heard yet."""

    async def hold(self: Any, vdisk: int) -> None:
        await self.newest(vdisk)

    patch.setattr(follower.Follower, "hold", hold)


@mutant
def parents_go_before_their_children(patch: pytest.MonkeyPatch) -> None:
    """A vdisk is deleted though a clone reads it."""
    patch.setattr(Family, "children", lambda self, vdisk: {})


@mutant
def rolled_back_in_the_catalog_alone(patch: pytest.MonkeyPatch) -> None:
    """A head goes on with the rows of before."""
    patch.setattr(rollback, "_restore", lambda head, snapshot, descent: None)
