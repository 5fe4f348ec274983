"""Reading a vdisk's extent groups: from a run of places to verified bytes.

Every block is checked against the checksum its group has for its position, seeded with the group's identity
and the position, so a flipped bit and a block in the wrong place are both found. ``read_run_nowait`` serves
what is in memory, on the event loop; ``read_run`` waits for disks and belongs in a thread.

This module is on the hot path: 4 KiB through ``read_run_nowait`` costs about 2 us.
"""

from array import array

from xxhash import xxh3_64_intdigest

from metadata.errors import Corrupt
from metadata.ids import POSITION_MASK, epoch_of, number_of
from metadata.index import Index, Nowait
from metadata.units import BLOCK_BYTES, SEGMENT_BLOCKS
from replication.caches import FifoCache
from replication.pool import GroupFile, Pool

_hash = xxh3_64_intdigest


_split_views: dict[int, tuple[memoryview, list[memoryview]]] = {}
"""Views that live as long as the process, by identity, with their blocks."""


def keep_split(view: memoryview) -> memoryview:
    """Makes ``block_checksums`` of this very view a third cheaper, for a buffer that is used again and again."""
    _split_views[id(view)] = view, _split(view)
    return view


def _split(view: memoryview) -> list[memoryview]:
    return [view[at : at + BLOCK_BYTES] for at in range(0, len(view), BLOCK_BYTES)]


def block_checksums(view: memoryview, seed: int) -> "array[int]":
    """Checksums of consecutive blocks; ``seed`` is the first one's (its group's plus its position)."""
    kept = _split_views.get(id(view))
    blocks = _split(view) if kept is None else kept[1]
    return array("I", [found & 0xFFFFFFFF for found in map(_hash, blocks, range(seed, seed + len(blocks)))])


def read_checksums(file: GroupFile, view: memoryview, position: int) -> "array[int]":
    """Thread: fills ``view``, a cache may answer, and returns the checksums of the blocks there are."""
    got = file.read_cached(view, position)
    return block_checksums(view[: got // BLOCK_BYTES * BLOCK_BYTES], file.seed + position)


class GroupSet:
    """The groups of one vdisk on this node, shared by its head and by clones that read through it.

    ``segments`` maps place >> 8 to 256 checksums; entries named in one of ``pinned`` are not in the index yet.
    """

    def __init__(self, vdisk: int, pool: Pool, *, index: Index, cache: FifoCache) -> None:
        self.vdisk, self.pool, self.index, self._cache = vdisk, pool, index, cache
        self.files: dict[int, GroupFile] = {}
        self.segments: dict[int, array[int]] = {}
        self.pinned: list[set[int]] = [set(), set(), set()]
        """Segments changed since the last commit began, those being committed, and the one at the log's tail."""

    def read_run_nowait(self, view: memoryview, place: int, count: int) -> bool:
        """Fills ``view`` with ``count`` verified blocks from ``place`` on, if memory has all of it.

        False also when a checksum fails: the slow way will find out which block and say so.
        """
        file = self.files.get(place >> 16)
        if file is None:
            return False
        position = place & POSITION_MASK
        if not file.read_nowait(view, position):
            return False
        if count == 1:
            segment = self.segments.get(place >> 8)
            if segment is None:
                segment = self.segment_nowait(place >> 8)
                if segment is None:
                    return False
            return _hash(view, file.seed + position) & 0xFFFFFFFF == segment[place & 255]
        expected = self.checksums_nowait(place, count)
        return expected is not None and expected == block_checksums(view, file.seed + position)

    def checksums_nowait(self, place: int, count: int) -> "array[int] | None":
        """The checksums of a run, if in memory."""
        expected = array("I")
        while count:
            segment = self.segments.get(place >> 8) or self.segment_nowait(place >> 8)
            if segment is None:
                return None
            first = place & 255
            part = min(count, SEGMENT_BLOCKS - first)
            expected.extend(segment[first : first + part])
            place += part
            count -= part
        return expected

    def segment_nowait(self, key: int) -> "array[int] | None":
        """The segment, from the index's own memory; cached then."""
        segment = self.index.segment_nowait(self.vdisk, key)
        if isinstance(segment, Nowait):
            return None
        self.install_segment(key, segment)
        return segment

    def install_segment(self, key: int, segment: "array[int]") -> None:
        """Caches a segment."""
        self.segments[key] = segment
        self._cache.admit(self.segments, key, self.pinned)

    def note_checksums(self, place: int, checksums: "array[int]") -> None:
        """Remembers the checksums of blocks just appended from ``place`` on; they are pinned till committed."""
        at = key = 0
        while at < len(checksums):
            key, first = place >> 8, place & 255
            part = min(len(checksums) - at, SEGMENT_BLOCKS - first)
            segment = self.segments.get(key)
            if segment is None:
                segment = self.segment_nowait(key) or array("I", bytes(1024))
                self.install_segment(key, segment)
            segment[first : first + part] = checksums[at : at + part]
            self.pinned[0].add(key)
            at += part
            place += part
        if key not in self.pinned[2]:  # the next append goes on here: it must find what is there by then
            self.pinned[2] = {key}

    def note_applied(self, segments: "dict[int, array[int]]") -> None:
        """The index has these now: a segment that was cached while it filled is brought up to date."""
        for key, segment in segments.items():
            cached = self.segments.get(key)
            if cached is not None:
                cached[:] = segment

    def begin_appending(self) -> None:
        """A head takes over: what was cached for others may be older than the index's, and pins nobody now."""
        self.segments.clear()
        for pinned in self.pinned:
            pinned.clear()

    def missing(self, place: int, count: int) -> "Missing":
        """What a read of this run lacks in memory."""
        file = self.files.get(place >> 16)
        keys = range(place >> 8, (place + count - 1 >> 8) + 1)
        return Missing(
            self,
            place >> 16 if file is None or file.fd < 0 else None,
            [k for k in keys if k not in self.segments],
        )

    def file(self, group: int) -> GroupFile:
        """The group's file, opened or not."""
        file = self.files.get(group)
        if file is None:
            file = self.files[group] = self.pool.file(self.vdisk, group)
        return file

    def read_run(self, view: memoryview, place: int, expected: "array[int]") -> None:
        """Fills ``view`` and verifies it, waiting for the disk. The file is open.

        Raises:
            Corrupt: a block fails its checksum or is missing; names vdisk, group, position and file.
            Unavailable: the pool does not answer.
        """
        file, position = self.files[place >> 16], place & POSITION_MASK
        found = read_checksums(file, view, position)
        if found != expected and file.renew(position, len(expected)):
            found = read_checksums(file, view, position)
        for at, want in enumerate(expected):
            if at >= len(found) or found[at] != want:
                what = "is missing" if at >= len(found) else "fails its checksum"
                raise Corrupt(
                    f"a block {what} vdisk={self.vdisk} epoch={epoch_of(file.group)} "
                    f"group={number_of(file.group)} position={position + at} file={file.path}"
                )


class Missing:
    """What must be fetched before a run can be read: done by ``fetch`` in a thread, then ``install``."""

    def __init__(self, groups: GroupSet, group: int | None, segments: list[int]) -> None:
        self._groups, self._group, self._keys = groups, group, segments
        self._file: GroupFile | None = None
        self._segments: list[array[int] | None] = []

    def __bool__(self) -> bool:
        return self._group is not None or bool(self._keys)

    def begin(self) -> None:
        """On the event loop, before ``fetch``."""
        if self._group is not None:
            self._file = self._groups.file(self._group)
            self._groups.pool.hold((self._file,))

    def fetch(self) -> None:
        """Waits for disks; changes no cache."""
        if self._file is not None:
            self._file.ensure_open()
        self._segments = [self._groups.index.segment(self._groups.vdisk, key) for key in self._keys]

    def install(self) -> None:
        """On the event loop, after ``fetch``.

        Raises:
            Corrupt: the index has a row that points where it knows no checksums.
        """
        for key, segment in zip(self._keys, self._segments, strict=False):
            if key in self._groups.segments or self._groups.segment_nowait(key) is not None:
                continue  # looked up again: appends may have filled the rest of it meanwhile
            if segment is None:
                raise Corrupt(f"the index lacks checksums vdisk={self._groups.vdisk} segment={key:#x}")
            self._groups.install_segment(key, segment)

    def end(self) -> None:
        """On the event loop, whatever happened."""
        if self._file is not None:
            self._groups.pool.release((self._file,))
