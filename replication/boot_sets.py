"""Boot working sets: what guests read in their first minutes, remembered in the pool and fetched ahead the next time.

    open -> fetch what is remembered (the vdisk's own set, else its nearest ancestor's) into the cache, in the background
    reads that memory and the page cache could not answer, for RECORD_S -> grains of TOUCHED_BLOCKS
    after that, or at the end -> what is new joins the set of the vdisk, and of the parent it is a clone of

So the first clone of a golden image that boots teaches all others, on every node. A set is a hint beside the vdisk in the
pool: one that is lost, old or damaged costs time, nothing else. Only where the pool has a cache on this node.
"""

import functools
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

import msgpack
import trio

from metadata.errors import NotFound, VdiskfsError
from metadata.ids import VdiskId
from replication.object_tables import Ranges
from replication.ownership import read_facts
from replication.reader import TOUCHED_BLOCKS, TOUCHED_MAX, Reader
from replication.vdisks import Vdisks
from replication.warming import fetch_places, places_of, reader_of

log = logging.getLogger(__name__)

RECORD_S = 180.0
"""A boot, and the services that come up after it."""
SHARE_OF_CACHE = 4
"""A set that is fetched ahead takes a quarter of the cache at most."""
TICK_S = 5.0
_FORMAT = 1


@dataclass(slots=True, eq=False)
class _Recording:
    """What one vdisk's readers touch."""

    vdisk: int
    parent: int | None
    until_s: float
    touched: set[int] = field(default_factory=set)
    """Grains."""
    is_over: bool = False
    known: set[int] = field(default_factory=set)
    """Those of the set that was found."""


def encode_set(grains: Iterable[int]) -> bytes:
    """As ranges: (grains skipped, grains in) and so on."""
    ranges, words, end = Ranges(), [], 0
    for grain in grains:
        ranges.add(grain, grain + 1)
    for low, high in ranges:
        words += [low - end, high - low]
        end = high
    packed: bytes = msgpack.packb([_FORMAT, words])
    return packed


def decode_set(data: bytes) -> set[int]:
    """The grains; none of what cannot be read."""
    grains: set[int] = set()
    try:
        kind, words = msgpack.unpackb(data)
        if kind != _FORMAT:
            return set()
        at = 0
        for skipped, count in zip(words[::2], words[1::2], strict=True):
            at += skipped
            if count < 0 or skipped < 0 or len(grains) + count > TOUCHED_MAX:
                return set()
            grains.update(range(at, at + count))
            at += count
    except (ValueError, TypeError, OverflowError):  # it is a hint
        return set()
    return grains


class BootSets:
    """One to a daemon, told by its ``Vdisks`` of what is opened; ``run`` is its task."""

    def __init__(self, vdisks: Vdisks) -> None:
        self._vdisks = vdisks
        self._pool = vdisks.workspace.pool
        self._recordings: dict[int, _Recording] = {}
        self._opened: deque[int] = deque()
        self._more = trio.Event()
        self.fetched_bytes = 0
        vdisks.note_opened = self.note_opened

    def note_opened(self, reader: Reader) -> None:
        """A file of a vdisk is being opened."""
        if not self._pool.cache_limit_bytes:
            return
        recording = self._recordings.get(reader.vdisk)
        if recording is None:
            now_s = self._vdisks.workspace.clock_s()
            generations = reader.ancestry.generations
            parent = generations[0].groups.vdisk if generations else None
            recording = _Recording(reader.vdisk, parent, now_s + RECORD_S)
            self._recordings[reader.vdisk] = recording
            self._opened.append(reader.vdisk)
            self._more.set()
        reader.touched = recording.touched

    async def run(self) -> None:
        """Fetches what is remembered of vdisks that are opened, and stores what is new; until it is cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._opened:
                    nursery.start_soon(self._guarded, self._fetch, self._recordings[self._opened.popleft()])
                self._more = trio.Event()
                with trio.move_on_after(TICK_S):
                    await self._more.wait()
                now_s = self._vdisks.workspace.clock_s()
                for vdisk, recording in list(self._recordings.items()):
                    is_open = self._vdisks.has_handles(VdiskId(vdisk))
                    if not recording.is_over and (recording.until_s < now_s or not is_open):
                        recording.is_over = True
                        nursery.start_soon(self._guarded, self._store, recording)
                    elif not is_open:
                        del self._recordings[vdisk]

    async def _guarded(self, work: Callable[[_Recording], Awaitable[None]], recording: _Recording) -> None:
        try:
            await work(recording)
        except NotFound:
            pass  # deleted meanwhile
        except VdiskfsError as exc:
            log.info("no boot working set this time: %s vdisk=%d", exc, recording.vdisk)

    async def _fetch(self, recording: _Recording) -> None:
        vdisks, vdisk = self._vdisks, VdiskId(recording.vdisk)
        async with reader_of(vdisks, vdisk, None) as reader:
            above = [up.groups.vdisk for up in reader.ancestry.generations]
            for source in (vdisk, *above):
                recording.known = await self._stored(source)
                if recording.known:
                    break
            stretches = [(grain * TOUCHED_BLOCKS, TOUCHED_BLOCKS) for grain in sorted(recording.known)]
            places = await places_of(reader, stretches)
            limit = self._pool.cache_limit_bytes // SHARE_OF_CACHE
            sums = await fetch_places(vdisks, places, lambda _: None, limit_bytes=limit)
            self.fetched_bytes += sums["fetched_bytes"]

    async def _stored(self, vdisk: int) -> set[int]:
        read = functools.partial(self._pool.read_hint, vdisk)
        return decode_set(await self._vdisks.workspace.wait_for(read))

    async def _store(self, recording: _Recording) -> None:
        for reader in list(self._vdisks.workspace.moves.readers):
            if isinstance(reader, Reader) and reader.touched is recording.touched:
                reader.touched = None
        if len(recording.touched) > TOUCHED_MAX or recording.touched <= recording.known:
            return
        for vdisk in (recording.vdisk, recording.parent):
            if vdisk is not None:
                await self._join(vdisk, recording.touched)

    async def _join(self, vdisk: int, touched: set[int]) -> None:
        stored = await self._stored(vdisk)
        if touched <= stored:
            return
        joined = stored | touched
        if len(joined) > TOUCHED_MAX:
            joined = touched
        await read_facts(self._vdisks.workspace.catalog, vdisk)  # one that is deleted gets none
        write = functools.partial(self._pool.write_hint, vdisk, encode_set(joined))
        await self._vdisks.workspace.wait_for(write)
