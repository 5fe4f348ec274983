"""Small histories of a node: every sequence of a few operations, each recorded, and each state of it brought up.

A history begins with a vdisk that has something flushed. Its letters:

    w write   f flush   l flush behind a write   d discard   t truncate, or grow again   s snapshot   b roll back
    c clone   v write the clone and flush   x delete what was made last   X delete the vdisk   g collect
    z rest    k the daemon is killed

Only states of the last operation are brought up: those of the others are the states of a shorter history. Bringing
up is what a daemon does when it starts, without FUSE: journal, recovery, index; then all is read, and compared with what
may be there (tests/crash/worlds.py); of some states life goes on, and is killed once more.
"""

import contextlib
import pathlib
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import pytest
import trio

from metadata.catalog import VDISK_PREFIX, Catalog, decode_value, id_in_key
from metadata.descent import read_descent
from metadata.ids import VdiskId
from metadata.index import Index
from replication import collector, compaction, head_read, head_write, log
from replication.collector import Collector
from replication.commit import begin_nowait
from replication.disk_threads import DiskThreads
from replication.snapshots import Snapshots
from replication.vdisks import Vdisks
from replication.workspace import Workspace
from tests.crash.cut_states import State, states
from tests.crash.recorded_calls import RecordedCatalog, RecordedIndex, Recorder, recorded
from tests.crash.worlds import Content, Disk, Found, World
from tests.replication import rig
from tests.replication.rig import B, Rig, block, close_and_rest, create, handles_of, opened, sound
from tests.replication.snapshotting import clone, delete, rollback, snap, view_content

T = TypeVar("T")

VDISK, CLONE = 20, 21
BLOCKS, FEWER = 264, 130
"""Of the vdisk, before and after a truncation: a little over a vblock, and half of one."""
GROUP_BLOCKS = 33
JOURNAL_ENTRIES = 127
ALPHABET = "wfldtsbcvxXgzk"
_ZEROS = bytes(B)
GOES_ON = 6
"""Of one state in so many life goes on."""


class NoThreads(DiskThreads):
    """Does the work at once: nothing here waits for a disk, and handing over costs more than the work."""

    def submit(self, work: Callable[[], T], done: Callable[[T, Exception | None], None]) -> None:
        result, error = None, None
        try:
            result = work()
        except Exception as exc:
            error = exc
        trio.lowlevel.current_trio_token().run_sync_soon(done, result, error)

    async def run(self, work: Callable[[], T]) -> T:
        await trio.lowlevel.checkpoint()
        return work()


class StateRig(Rig):
    """A rig that is used again and again, for any state; its index stays open."""

    def __init__(self, folder: pathlib.Path) -> None:
        super().__init__(folder, journal_capacity=JOURNAL_ENTRIES)
        self.index = RecordedIndex(str(folder / "index"))
        self.catalog = RecordedCatalog()
        self.groups = pathlib.Path(self.pool_path, "vdisks")
        self.journal_path = self.state_path / "journal"
        self.dying = True

    def open_index(self) -> Index:
        return self.index

    async def _open_catalog(self) -> Catalog:
        return self.catalog

    def _join(self, workspace: Workspace) -> None:
        workspace.threads = NoThreads(1, name="none")
        workspace.commit_threads = NoThreads(1, name="none")

    def _close(self, workspace: Workspace, killed: bool) -> None:
        workspace.journal.close()
        for file in workspace.pool._open:
            file.busy = 0
        workspace.pool.close()

    def lay_out(self, state: State | None = None) -> None:
        """The disk is in this state, or empty."""
        shutil.rmtree(self.groups)
        self.groups.mkdir()
        self.journal_path.unlink(missing_ok=True)
        self.index.recorder = self.catalog.recorder = None
        self.index.load(state.index if state else {})
        self.catalog.load(state.catalog if state else {})  # type: ignore[arg-type]
        if state is None:
            return
        if state.journal:
            self.journal_path.write_bytes(state.journal)
        for path in sorted(state.tree.directories):
            (self.groups / path).mkdir()
        for path, content in state.tree.files.items():
            (self.groups / path).write_bytes(content)


@dataclass
class History:
    """One run of some letters: what was recorded, and between which ticks the last one ran, in which worlds."""

    letters: str
    recorder: Recorder
    world: World = field(default_factory=World)
    during: list[World] = field(default_factory=list)
    begun: int = 0
    ended: int = 0
    value: int = 0

    def next_value(self) -> int:
        self.value += 1
        return self.value


Act = Callable[[Vdisks], Awaitable[object]]


def plan(letter: str, history: History) -> tuple[World, Act] | None:
    """The world after a letter, and how it is done; None if there is nothing to do."""
    world, value = history.world.copy(), history.value
    disk, name = world.disks.get(VDISK), f"s{value}"
    if disk is None or (letter == "v") > (CLONE in world.disks):
        return None
    if letter == "w":
        history.next_value()
        for block_no in (3, 4, 255, 256):
            disk.put(block_no, history.value)
        if disk.sizes[-1] < 257:
            disk.sizes += [256, 257]  # as the pieces of the write come back
        return world, lambda vdisks: _write(vdisks, VDISK, {3: 2, 255: 2}, history.value)
    if letter in "flz":
        disk.settle()
        return world, {"f": _flush, "l": _flush_lightly, "z": _rest}[letter]
    if letter == "d":
        for block_no in range(4, 200):
            if disk.now().get(block_no):
                disk.put(block_no, 0)
        return world, lambda vdisks: head_write.punch(vdisks.heads[VDISK], 4 * B, 196 * B)
    if letter == "t":
        size = FEWER if disk.sizes[-1] == BLOCKS else BLOCKS
        disk.resize(size)
        return world, lambda vdisks: head_write.truncate(vdisks.heads[VDISK], size * B)
    return _plan_in_the_tree(letter, history, world, name)


def _plan_in_the_tree(letter: str, history: History, world: World, name: str) -> tuple[World, Act] | None:
    disk, names = world.disks[VDISK], world.names(VDISK)
    if letter == "s":
        history.next_value()
        disk.settle()
        world.keep(VDISK, name)
        return world, lambda vdisks: snap(vdisks, VDISK, name, 1000 + history.value)
    if letter == "c" and CLONE not in world.disks:
        disk.settle()
        world.disks[CLONE] = world.copy().disks[VDISK]
        return world, lambda vdisks: clone(vdisks, VDISK, None, CLONE)
    if letter == "v":
        history.next_value()
        world.disks[CLONE].put(3, history.value)
        return world, lambda vdisks: _write_and_flush(vdisks, CLONE, history.value)
    if letter == "b" and names:
        history.next_value()
        world.keep(VDISK, name)
        size, content = world.kept[VDISK, names[-1]]
        disk.flushed, disk.since, disk.sizes = dict(content), {}, [size]
        return world, lambda vdisks: _roll_back(vdisks, names[-1], (name, 1000 + history.value))
    if letter == "x" and (names or CLONE in world.disks):
        if CLONE in world.disks:
            world.drop(CLONE)
            return world, lambda vdisks: delete(vdisks, CLONE)
        del world.kept[VDISK, names[-1]]
        return world, lambda vdisks: Snapshots(vdisks).remove(VDISK, names[-1])
    if letter == "X":
        world.drop(VDISK)
        return world, lambda vdisks: delete(vdisks, VDISK)
    if letter == "g":
        return world, lambda vdisks: Collector(vdisks).collect(lambda _: None, strays=True)
    return (world, _nothing) if letter == "k" else None


async def _nothing(vdisks: Vdisks) -> None:
    """The daemon is killed by whoever runs the history."""


async def _write(vdisks: Vdisks, vdisk: int, runs: dict[int, int], value: int) -> None:
    for first, count in runs.items():
        await rig.write(vdisks.heads[vdisk], first * B, block(value) * count)


async def _write_and_flush(vdisks: Vdisks, vdisk: int, value: int) -> None:
    await _write(vdisks, vdisk, {3: 1}, value)
    await vdisks.flush(VdiskId(vdisk))


async def _flush(vdisks: Vdisks) -> None:
    await vdisks.flush(VdiskId(VDISK))


async def _flush_lightly(vdisks: Vdisks) -> None:
    head = vdisks.heads[VDISK]
    if begin_nowait(head, light=True) and head.commit_done is not None:
        await head.commit_done.wait()
    await vdisks.flush(VdiskId(VDISK))


async def _rest(vdisks: Vdisks) -> None:
    await close_and_rest(vdisks, VDISK)
    await opened(vdisks, VDISK)


async def _roll_back(vdisks: Vdisks, name: str, keep_as: tuple[str, int]) -> None:
    await rollback(vdisks, VDISK, name, keep_as)
    await opened(vdisks, VDISK)


async def record(place: StateRig, letters: str) -> History | None:
    """Runs a history; None if one of its letters has nothing to do."""
    place.lay_out()
    recorder = Recorder(place.groups, place.journal_path)
    history = History(letters, recorder)
    place.index.recorder = place.catalog.recorder = recorder
    recorder.changed(recorder.catalog, {})
    recorder.changed(recorder.index, {})
    with recorded(recorder):
        async with _lives(place) as lives:
            await _begin(lives.vdisks, history)
            for letter in letters:
                planned = plan(letter, history)
                if planned is None:
                    return None
                world, act = planned
                history.begun = recorder.mark()
                history.during, history.world = _during(letter, history.world, world), world
                if letter == "k":
                    await lives.restart()
                    await _see_all(lives.vdisks, world)
                else:
                    await act(lives.vdisks)
                if letter == "v":
                    history.world.disks[CLONE].settle()
                history.ended = recorder.mark()
    return history


def _during(letter: str, before: World, after: World) -> list[World]:
    """The worlds one of which must fit while the operation is under way."""
    return [after.copy()] if letter in "wdtv" else [before, after]


async def _begin(vdisks: Vdisks, history: History) -> None:
    head, disk = await create(vdisks, VDISK), Disk(sizes=[BLOCKS])
    history.world = World({VDISK: disk})
    await head_write.truncate(head, BLOCKS * B)
    for runs in (
        {0: 8, 240: 12},
        {0: 6},
    ):  # overwritten, so that there is something to collect from the beginning
        await _write(vdisks, VDISK, runs, history.next_value())
        for first, count in runs.items():
            for block_no in range(first, first + count):
                disk.put(block_no, history.value)
        await _flush(vdisks)
        disk.settle()


async def _see_all(vdisks: Vdisks, world: World) -> None:
    """After a kill all that was acknowledged is there: the page cache and the journal have it."""
    for vdisk, disk in world.disks.items():
        size, found = await _observe_head(vdisks, vdisk)
        assert (size, found) == (disk.sizes[-1], disk.now()), f"after a kill vdisk {vdisk} holds {found}"


class _Lives:
    """Nodes one after the other."""

    def __init__(self, place: StateRig) -> None:
        self._place = place
        self._stack = contextlib.AsyncExitStack()
        self.vdisks: Vdisks

    async def begin(self) -> None:
        """The first."""
        self.vdisks = await self._stack.enter_async_context(self._place.node(kill=True))

    async def restart(self) -> None:
        """The daemon is killed, and the next one starts; files that were open are open."""
        files = list(self.vdisks.heads)
        await self._stack.aclose()
        await self.begin()
        for vdisk in files:
            await opened(self.vdisks, vdisk)

    async def end(self) -> None:
        await self._stack.aclose()


@asynccontextmanager
async def _lives(place: StateRig) -> AsyncIterator[_Lives]:
    lives = _Lives(place)
    await lives.begin()
    try:
        yield lives
    finally:
        await lives.end()


def values_in(data: bytes) -> Content:
    """The value of each block that is not zeros."""
    found = {}
    for number in range(len(data) // B):
        piece = data[number * B : (number + 1) * B]
        if piece != _ZEROS:
            value = int.from_bytes(piece[:8], "little") - 1
            found[number] = value if value >= 0 and piece == block(value) else -1
    return found


async def _observe_head(vdisks: Vdisks, vdisk: int) -> tuple[int, Content]:
    head = (
        vdisks.heads[vdisk]
        if vdisk in vdisks.heads and handles_of(vdisks, vdisk)
        else await opened(vdisks, vdisk)
    )
    data = await head_read.read(head, 0, head.size)
    return head.size // B, values_in(bytes(data))


async def observe(vdisks: Vdisks) -> Found:
    """All vdisks that have a name, and all snapshots."""
    rows, _ = await vdisks.workspace.catalog.read(VDISK_PREFIX)
    records = {id_in_key(row.key, VDISK_PREFIX): decode_value(row.key, row.value) for row in rows}
    ids = [vdisk for vdisk, value in records.items() if not read_descent(value).nameless]  # type: ignore[arg-type]
    disks = {vdisk: await _observe_head(vdisks, vdisk) for vdisk in ids}
    kept = {}
    for snapshot in Snapshots(vdisks).all():
        data = await view_content(vdisks, snapshot.id)
        kept[snapshot.vdisk, snapshot.name] = (len(data) // B, values_in(data))
    return Found(disks, kept)


async def bring_up(place: StateRig, state: State, worlds: list[World], *, goes_on: bool) -> None:
    """What a daemon finds fits one of the worlds; asserts it."""
    place.lay_out(state)
    async with place.node(kill=True) as vdisks:
        found = await observe(vdisks)
        wrong = [world.wrong(found) for world in worlds]
        assert "" in wrong, "; ".join(wrong)
        if not goes_on or VDISK not in found.disks:
            return
        await sound(vdisks, *found.disks)
        await _write(vdisks, VDISK, {3: 1}, 1 << 20)
        await vdisks.flush(VdiskId(VDISK))
    async with place.node(kill=True) as vdisks:
        again = await observe(vdisks)
        size, content = found.disks[VDISK]
        expected = {**found.disks, VDISK: (size, {**content, 3: 1 << 20})}
        assert again == Found(expected, found.kept), "what was there changed when life went on"


@dataclass
class Searched:
    """What a search has looked at."""

    histories: int = 0
    states: int = 0
    failures: list[str] = field(default_factory=list)


async def search(place: StateRig, letters: str, searched: Searched, *, stride: int = 1) -> bool:
    """Brings up the states of a history's last operation; returns whether there is such a history.

    Args:
        place: where.
        letters: of the history.
        searched: is counted up.
        stride: of so many states one is brought up.
    """
    history = await record(place, letters)
    if history is None:
        return False
    searched.histories += 1
    seen: set[tuple[int, bool]] = set()
    for at in sorted(set(history.recorder.moments)):
        if not history.begun < at <= history.ended:
            continue
        is_done = at == history.ended
        worlds = [history.world] if is_done else [*history.during, history.world]
        for state in states(history.recorder, at):
            key = state.key(), is_done
            if key in seen:
                continue
            seen.add(key)
            if len(seen) % stride:
                continue
            searched.states += 1
            try:
                await bring_up(place, state, worlds, goes_on=searched.states % GOES_ON == 0)
            except Exception as exc:
                searched.failures.append(f"{letters}: tick {at} of {history.ended}: {state.what}: {exc!r}")
                return True
    return True


def sequences(length: int, alphabet: str = ALPHABET) -> Iterator[str]:
    """All of this length."""
    if not length:
        yield ""
        return
    for before in sequences(length - 1, alphabet):
        for letter in alphabet:
            yield before + letter


@contextlib.contextmanager
def small_limits() -> Iterator[None]:
    """Groups that fill within a history."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "GROUP_BLOCKS", GROUP_BLOCKS)
        patch.setattr(log, "STEP_BLOCKS_MIN", 8)
        patch.setattr(log, "STEP_BLOCKS_MAX", 16)
        patch.setattr(compaction, "GROUP_BLOCKS", GROUP_BLOCKS)
        patch.setattr(compaction, "MOVE_BLOCKS", 6)
        patch.setattr(collector, "SEAL_BYTES_MIN", 4096)
        yield
