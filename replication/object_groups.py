"""An extent group of an object pool: its objects, and a local file that holds what is appended and what was read.

    write (loop)  -> local file -> sync (thread) -> objects POSITION-COUNT, put only if absent -> durable
    read (loop)   <- local file <- fetch (thread) <- ranges of objects

A group is appended to by the one process that created it, and by no later one (``may_go_on``). So a position of a
group has one content for ever, whatever arrives late or twice, objects may overlap and be merged, and what is
here in a local file is either that content or damaged. Who verifies what he reads (``read_cached``) may be given what a
file has from before; if it does not verify it is fetched again, once (``renew``). Who decides by what he reads (recovery:
``read``) is given what this process fetched itself, or appended; what an earlier process of this node appended and the pool has
not counts only once ``count_staged`` has said that the vdisk is still this node's.

The event loop appends, and takes ``lock`` for that: nobody holds it while he waits for anything.
"""

import errno
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from metadata.errors import NotFound, Unavailable, VdiskfsError
from metadata.ids import epoch_of, is_compacted, number_of
from metadata.units import BLOCK_BYTES
from replication.extent_cache import ExtentCache
from replication.local_files import data_ranges, punch_hole
from replication.object_lag import Trails
from replication.object_sending import short_parts, upload
from replication.object_store import RetryingStore
from replication.object_tables import OPEN_SPANS_MAX, ObjectTable, Ranges, Span, parse_span, span_name
from replication.pool import pool_error

log = logging.getLogger(__name__)

FETCH_BLOCKS = 256
"""One request asks for 1 MiB at most: a stream has many under way."""
GRAIN_BLOCKS = 32
"""A read of 4 KiB somewhere fetches 128 KiB: what the request costs anyway."""
AHEAD_BLOCKS_MIN, AHEAD_BLOCKS_MAX = 256, 8192
"""A stream is read ahead of by 1 MiB at first, by 32 MiB when it goes on."""
_ROUNDS_MAX = 8
"""Merging may take objects away under a reader, who lists again; so often in a row means that they are lost."""


@dataclass(slots=True)
class ObjectSpace:
    """What the groups of an object pool share."""

    store: RetryingStore
    folder: str
    """Where the local files are."""
    cache: ExtentCache
    fetchers: ThreadPoolExecutor
    senders: ThreadPoolExecutor
    wants_merging: Callable[["ObjectGroup"], None]
    trails: Trails
    fetched_bytes: int = 0
    renewed_blocks: int = 0
    uncached_bytes: int = 0
    """Fetched and not kept: the disk of the cache failed or was full."""


class _Fetch:
    """Blocks on their way here."""

    __slots__ = ("data", "done", "end", "error", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.done = threading.Event()
        self.error: Exception | None = None
        self.data: list[tuple[int, memoryview]] = []
        """What could not be kept."""


@dataclass(eq=False)
class ObjectGroup:
    """One group, shared by all its files; any thread."""

    space: ObjectSpace
    vdisk: int
    group: int
    is_mine: bool = False
    """Created by this process, which knows all of its objects."""
    is_open: bool = False
    """Appended to."""
    is_doubtful: bool = False
    """Something went up that perhaps arrived."""
    is_gone: bool = False
    counts_staged: bool = False
    written_end: int = 0
    uploaded_end: int = 0
    durable_end: int = 0
    """The local disk has it for certain."""
    table: ObjectTable | None = None
    digests: dict[Span, int] = field(default_factory=dict)
    """Of objects that this process put: what is still here can be told to be that."""
    cached: Ranges = field(default_factory=Ranges)
    sure: Ranges = field(default_factory=Ranges)
    """Of what is cached: fetched or appended by this process."""

    def __post_init__(self) -> None:
        self.lock = threading.Lock()
        self.syncing, self._listing, self._loading = threading.Lock(), threading.Lock(), threading.Lock()
        self._fetching: list[_Fetch] = []
        self._reading: list[tuple[int, int]] = []
        self._loaded = self.is_mine
        name = f"{epoch_of(self.group):06x}-{number_of(self.group):07x}"
        self.prefix = f"{vdisk_prefix(self.vdisk)}{name}/"
        self._stem = os.path.join(self.space.folder, f"{self.vdisk:016x}", name)
        self.is_staged = self.is_mine or os.path.exists(self._stem + ".staged")

    @property
    def path(self) -> str:
        """The local file; an earlier process's own kept its name."""
        return self._stem + (".staged" if self.is_staged else ".cache")

    def key(self, span: Span) -> str:
        """An object's."""
        return self.prefix + span_name(span)

    # ---- what there is

    def load(self) -> None:
        """Makes the local file be there.

        Raises:
            NotFound: the pool has no such group.
        """
        with self._loading:
            if self._loaded:
                return
            if not self.is_staged:
                self.refresh()
            try:
                os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
                os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            except OSError as exc:
                raise pool_error(exc, f"opening {self.path}") from exc
            self._loaded = True

    def note_kept(self) -> None:
        """The local file is here from an earlier process; called before anybody uses the group."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = data_ranges(fd)
            finally:
                os.close(fd)
        except OSError as exc:
            log.warning("a local file is left alone: %s file=%s", exc.strerror, self.path)
            return
        for start, end in found:
            self.cached.add(start, end)
            self.space.cache.note_stored(self, start, end)

    def refresh(self) -> ObjectTable:
        """Asks the pool which objects there are.

        Raises:
            NotFound: none, not even the one that says that the group was begun.
        """
        if self.is_mine and self.table is not None:
            return self.table
        with self._listing:
            listed = self.space.store.list(self.prefix)
            if not listed.objects:
                raise NotFound(
                    f"an extent group is missing from the pool group={self.prefix}", number=errno.EIO
                )
            table = ObjectTable(span for span in map(parse_span, listed.objects) if span)
            with self.lock:
                before, self.table = self.table, table
        for start, end in before.covered if before is not None else ():
            for low, high in table.covered.missing(start, end):
                log.error("the pool lost blocks group=%s position=%d count=%d", self.prefix, low, high - low)
        return table

    def local_count(self, start: int, end: int) -> int:
        with self.lock:
            return sum(high - low for low, high in self.cached.within(start, end))

    def drop_local(self, start: int, end: int) -> bool:
        if self.is_staged and self.table is None:
            with suppress(VdiskfsError):
                self.refresh()
        with self.lock:
            busy = [*self._reading, *((fetch.start, fetch.end) for fetch in self._fetching)]
            if self.is_open or any(low < end and start < high for low, high in busy):
                return False
            if self.is_staged and self.table is None:
                return False
            parts = self.cached.within(start, end)
            if self.is_staged and self.table is not None:  # what the pool has not stays
                parts = [each for low, high in parts for each in self.table.covered.within(low, high)]
            with suppress(OSError):
                fd = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    for low, high in parts:
                        punch_hole(fd, low, high)
                finally:
                    os.close(fd)
            for low, high in parts:
                self.cached.remove(low, high)
                self.sure.remove(low, high)
        return bool(parts)

    def renew(self, position: int, count: int) -> bool:
        """What is here of these blocks does not verify; whether the pool may have better."""
        with self.lock:
            covered = self.table.covered.within(position, position + count) if self.table is not None else []
            bad = [part for low, high in covered for part in self.cached.within(low, high)]
            for low, high in bad:
                self.cached.remove(low, high)
                self.sure.remove(low, high)
        if not bad:
            return False
        self.space.renewed_blocks += count
        log.warning("blocks of the cache did not verify and are fetched again group=%s position=%d count=%d",
                    self.prefix, position, count)  # fmt: skip
        return True

    # ---- reading

    def read(self, fd: int, view: memoryview, position: int, *, sure: bool) -> int:
        """Fills ``view`` as far as the group goes; who is not ``sure`` verifies what he gets."""
        asked = (position, position + len(view) // BLOCK_BYTES)
        with self.lock:
            self._reading.append(asked)
        try:
            count = self._readable(position, len(view) // BLOCK_BYTES, sure=sure)
            if count <= 0:
                return 0
            view = view[: count * BLOCK_BYTES]
            uncached = self._make_local(position, position + count, sure=sure)
            self._copy(fd, view, position)
            for at, data in uncached:
                low, high = max(at, position), min(at + len(data) // BLOCK_BYTES, position + count)
                if low < high:
                    part = data[(low - at) * BLOCK_BYTES : (high - at) * BLOCK_BYTES]
                    view[(low - position) * BLOCK_BYTES : (high - position) * BLOCK_BYTES] = part
        finally:
            with self.lock:
                self._reading.remove(asked)
        self.space.cache.note_read(self, position, position + count)
        return len(view)

    def warm(self, start: int, end: int) -> None:
        """Has the blocks here, as far as the cache takes them.

        Raises:
            NotFound, Unavailable: the pool has them not, or does not answer.
        """
        self.load()
        with self.lock:
            self._reading.append((start, end))
        try:
            self._make_local(start, end, sure=False)
        finally:
            with self.lock:
                self._reading.remove((start, end))

    def lacking(self, start: int, end: int) -> int:
        """How many of these blocks a read would have to fetch."""
        with self.lock:
            return sum(high - low for low, high in self._gaps(start, end, sure=False))

    def _readable(self, position: int, count: int, *, sure: bool) -> int:
        """How many of these blocks there are; for who verifies, up to the first that is missing."""
        stop = position
        for again in (False, True):
            if again or self.table is None:
                self.refresh()
            with self.lock:
                stop = min(position + count, self._end())
                absent = self._absent(position, stop)
                if absent and not sure:
                    stop = absent[0][0]
            if stop == position + count and not absent:
                break
        return stop - position

    def _end(self) -> int:
        end = max(self.written_end, self.table.end if self.table is not None else 0)
        if self.counts_staged and self.is_staged and not self.is_mine:
            end = max(end, max((high for _, high in self.cached), default=0))
        return end

    def _absent(self, start: int, end: int) -> list[tuple[int, int]]:
        """Blocks that are neither here nor in any object that is known."""
        gaps = self._gaps(start, end, sure=False)
        if self.table is None:
            return gaps
        return [gap for low, high in gaps for gap in self.table.covered.missing(low, high)]

    def _gaps(self, start: int, end: int, *, sure: bool) -> list[tuple[int, int]]:
        """Blocks that must be fetched, if the pool has them."""
        gaps = (self.sure if sure else self.cached).missing(start, end)
        if self.is_mine:
            staged = Ranges()
            staged.add(self.uploaded_end, self.written_end)
            gaps = [part for low, high in gaps for part in staged.missing(low, high)]
        return gaps

    def _make_local(self, start: int, end: int, *, sure: bool) -> list[tuple[int, memoryview]]:
        """Has the blocks here; returns those that could not be kept."""
        uncached: list[tuple[int, memoryview]] = []
        for _ in range(_ROUNDS_MAX):
            with self.lock:
                gaps = self._gaps(start, end, sure=sure)
                for at, data in uncached:
                    stop = at + len(data) // BLOCK_BYTES
                    gaps = [p for low, high in gaps for p in ((low, min(high, at)), (max(low, stop), high))]
                    gaps = [(low, high) for low, high in gaps if low < high]
                mine, others = self._claim(gaps, sure=sure) if self.table is not None else ([], [])
            if gaps and self.table is None:
                self.refresh()
                continue
            if not mine and not others:
                return uncached
            self._run(mine)
            for fetch in (*mine, *others):
                fetch.done.wait()
            for fetch in mine:
                uncached += fetch.data
            error = next((fetch.error for fetch in mine if fetch.error is not None), None)
            if isinstance(error, NotFound):
                self._find_again(error)
            elif error is not None:
                raise error
        raise Unavailable(f"the pool lists objects that are not there group={self.prefix}")

    def _find_again(self, error: NotFound) -> None:
        """An object was not there: merging took it, or the pool lost it."""
        if not self.is_mine:
            self.refresh()
            return
        listed = self.space.store.list(self.prefix).objects
        with self.lock:
            assert self.table is not None
            lost = [span for span in self.table.spans if span_name(span) not in listed]
            self.table.drop(lost)
        if lost:
            log.error("the pool lost objects: %s group=%s", error, self.prefix)

    def _claim(self, gaps: list[tuple[int, int]], *, sure: bool) -> tuple[list[_Fetch], list[_Fetch]]:
        """Under the lock: who fetches these: this thread, or others already."""
        assert self.table is not None
        mine: list[_Fetch] = []
        wanted = Ranges()
        for low, high in gaps:
            low, high = low & -GRAIN_BLOCKS, -(-high // GRAIN_BLOCKS) * GRAIN_BLOCKS
            for part in self._gaps(low, high, sure=sure):
                for start, end in self.table.covered.within(*part):
                    wanted.add(start, end)
        others = [f for f in self._fetching if any(f.start < high and low < f.end for low, high in gaps)]
        for fetch in self._fetching:
            wanted.remove(fetch.start, fetch.end)
        for low, high in wanted:
            while low < high:
                stop = min(high, (low // FETCH_BLOCKS + 1) * FETCH_BLOCKS)
                mine.append(_Fetch(low, stop))
                low = stop
        self._fetching += mine
        return mine, others

    def _run(self, fetches: list[_Fetch]) -> None:
        if len(fetches) == 1:
            self._fetch(fetches[0])
            return
        for fetch in fetches:
            self._submit(fetch)

    def _submit(self, fetch: _Fetch) -> None:
        try:
            self.space.fetchers.submit(self._fetch, fetch)
        except RuntimeError:  # the pool is being closed
            fetch.error = Unavailable("the pool is closed")
            self._end_fetch(fetch)

    def _end_fetch(self, fetch: _Fetch) -> None:
        with self.lock:
            self._fetching.remove(fetch)
        fetch.done.set()

    def _fetch(self, fetch: _Fetch) -> None:
        """Brings blocks here; what goes wrong is noted."""
        try:
            with self.lock:
                assert self.table is not None
                pieces = self.table.pieces(fetch.start, fetch.end)
            for piece in pieces:
                skip = (piece.position - piece.span.position) * BLOCK_BYTES
                data = self.space.store.get_range(self.key(piece.span), skip, piece.count * BLOCK_BYTES)
                self.space.fetched_bytes += len(data)
                self._keep(fetch, data, piece.position)
        except Exception as exc:  # whoever waits is told
            fetch.error = exc
        finally:
            self._end_fetch(fetch)
        self.space.cache.note_stored(self, fetch.start, fetch.end)

    def _keep(self, fetch: _Fetch, data: memoryview, position: int) -> None:
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                if os.pwrite(fd, data, position * BLOCK_BYTES) != len(data):
                    raise OSError(28, "short write")
            finally:
                os.close(fd)
        except OSError:
            fetch.data.append((position, data))
            self.space.uncached_bytes += len(data)
            return
        with self.lock:
            self.cached.add(position, position + len(data) // BLOCK_BYTES)
            self.sure.add(position, position + len(data) // BLOCK_BYTES)

    def _copy(self, fd: int, view: memoryview, position: int) -> None:
        """From the local file; where that ends there are zeros, and where it fails the pool is asked."""
        done = 0
        try:
            while done < len(view):
                got = os.preadv(fd, (view[done:],), position * BLOCK_BYTES + done)
                if not got:
                    view[done:] = bytes(len(view) - done)
                    return
                done += got
        except OSError as exc:
            with self.lock:
                pieces = (
                    self.table.pieces(position, position + len(view) // BLOCK_BYTES) if self.table else []
                )
            if sum(piece.count for piece in pieces) * BLOCK_BYTES != len(view):
                raise pool_error(exc, f"reading {self.path}") from exc
            for piece in pieces:
                skip = (piece.position - piece.span.position) * BLOCK_BYTES
                data = self.space.store.get_range(self.key(piece.span), skip, piece.count * BLOCK_BYTES)
                at = (piece.position - position) * BLOCK_BYTES
                view[at : at + len(data)] = data
                self.space.uncached_bytes += len(data)

    def prefetch(self, start: int, end: int) -> None:
        """Begins to fetch blocks that will be wanted, as far as the pool is known to have them."""
        with self.lock:
            if self.table is None or self.is_mine:
                return
            mine, _ = self._claim(self._gaps(start, min(end, self.table.end), sure=False), sure=False)
        for fetch in mine:
            self._submit(fetch)

    # ---- appending

    def note_written(self, end: int) -> None:
        """Blocks up to ``end`` are in the local file."""
        with self.lock:
            if end > self.written_end:
                self.written_end = end

    def sync(self) -> None:
        """Returns when the pool has all that was written here.

        Raises:
            Unavailable: it has not, or nobody knows.
            Fenced: something else is there under the name of what was to be stored.
        """
        if not self.is_mine and not (self.is_staged and self.counts_staged):
            return
        if not is_compacted(self.group):
            self.space.trails.settle(self.vdisk)
        if not self.is_mine and not self.is_gone:
            self._find_staged()
        self.send(self.written_end)

    @property
    def flushes_here(self) -> bool:
        """Whether a flush need not wait for the pool."""
        return self.is_mine and not is_compacted(self.group) and self.space.trails.flushes_here(self.vdisk)

    def note_durable(self, end: int) -> None:
        """Blocks up to ``end`` are durable here; the pool follows. Returns when a flush may be acknowledged."""
        with self.lock:
            start, self.durable_end = max(self.durable_end, self.uploaded_end), max(self.durable_end, end)
        if end > start and not self.is_gone:
            self.space.trails.of(self.vdisk).add(self, end, blocks=end - start)

    def send(self, end: int) -> None:
        """Returns when the pool has all blocks before ``end``; what another process left goes up in order.

        Raises:
            Unavailable, Fenced: as ``sync``.
        """
        with self.syncing:
            if self.is_gone:
                return
            with self.lock:
                assert self.table is not None
                start = self.uploaded_end
                parts = self.table.covered.missing(start, end)
            for some in [parts] if self.is_mine else [[part] for part in short_parts(parts)]:
                upload(self, some)
            with self.lock:
                self.uploaded_end = max(start, end)
                self.cached.add(start, end)
                if self.is_mine:
                    self.sure.add(start, end)
                many = len(self.table.spans) > OPEN_SPANS_MAX or not self.is_open
        self.space.cache.note_stored(self, start, end)
        if many:
            self.space.wants_merging(self)

    def _find_staged(self) -> None:
        """What an earlier process appended: as far as there is anything but zeros."""
        self.load()
        table = self.refresh()
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with self.lock:
                ranges = [part for low, high in self.cached for part in table.covered.missing(low, high)]
            for low, high in reversed(ranges):
                while high > low and not os.pread(fd, BLOCK_BYTES, (high - 1) * BLOCK_BYTES).strip(b"\0"):
                    high -= 1
                if high > low:
                    self.note_written(high)
                    return
        finally:
            os.close(fd)

    def local_bytes(self, span: Span) -> bytes:
        """What the local file has there."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(fd, span.count * BLOCK_BYTES, span.position * BLOCK_BYTES)
            finally:
                os.close(fd)
        except OSError as exc:
            raise pool_error(exc, f"reading {self.path}") from exc
        return data + bytes(span.count * BLOCK_BYTES - len(data))

    def finish(self) -> None:
        """Nothing is appended for now: what is small may be merged, what is here may go."""
        with self.lock:
            if not self.is_open:
                return
            self.is_open = False
        self.space.wants_merging(self)

    def may_go_on(self, end: int) -> bool:
        """Whether this process appended all there is, ended it there, and knows that it arrived."""
        with self.lock:
            if not self.is_mine or self.is_doubtful or self.is_gone or self.written_end != end:
                return False
            if self.uploaded_end != end:
                return False
            self.is_open = True
            return True

    def count_unsent(self) -> int:
        """Blocks that this process flushed here, or an earlier one appended, and that are not in the pool.

        Raises:
            NotFound, Unavailable: the pool does not say.
        """
        if self.is_mine:
            return max(0, self.durable_end - self.uploaded_end)
        self._find_staged()
        with self.lock:
            assert self.table is not None
            return sum(high - low for low, high in self.table.covered.missing(0, self.written_end))

    def put_aside(self) -> str:
        """Nobody appends here, or counts what was; returns the name under which it is kept."""
        with self.lock:
            self.is_gone = True
        self.space.cache.forget(self)
        aside = self._stem + ".refused"
        with suppress(OSError):
            os.rename(self.path, aside)
        return aside

    def remove_local(self) -> None:
        """The group is gone, or is no use."""
        with self.lock:
            self.is_gone = True
        self.space.cache.forget(self)
        with suppress(OSError):
            os.unlink(self.path)


def vdisk_prefix(vdisk: int) -> str:
    """Where a vdisk's objects are."""
    return f"vdisks/{vdisk & 0xFF:02x}/{vdisk:016x}/"
