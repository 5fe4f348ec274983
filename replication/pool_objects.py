"""The pool as an object store: names of objects, and the node's folder of local files.

    PREFIX/vdiskfs.pool                                     format, identity, salt (JSON)
    PREFIX/vdisks/SH/VDISK/EPOCH-NUMBER/00000-00000         empty: says that the group was begun, put only if absent
    PREFIX/vdisks/SH/VDISK/EPOCH-NUMBER/POSITION-COUNT      its blocks (replication/object_groups.py)
    PREFIX/vdisks/SH/VDISK/VERSION.checkpoint               as in a directory pool
    PREFIX/vdisks/SH/VDISK/boot                             a hint (replication/boot_sets.py)
    (what of this is one object in Ceph: replication/rados_store.py)
    STATE/extents/VDISK/EPOCH-NUMBER.staged|.cache          local files: of groups begun here, of others

Two processes never append to one group: the object that begins it can be put once. What a deposed owner still
uploads therefore lands in groups of its own epoch, and the log of the epochs after it does not lead there
(replication/fence.py).
"""

import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from metadata.errors import (
    Corrupt,
    Exists,
    Fenced,
    InvalidRequest,
    NoSpace,
    NotFound,
    Unavailable,
    VdiskfsError,
)
from metadata.ids import GroupId, epoch_of, group_id, is_compacted, number_of
from metadata.records import group_seed
from metadata.units import BLOCK_BYTES, CACHE_BYTES_DEFAULT
from replication.extent_cache import ExtentCache
from replication.object_files import ObjectGroupFile
from replication.object_groups import ObjectGroup, ObjectSpace, vdisk_prefix
from replication.object_lag import BEHIND, Trails, sync_folder
from replication.object_merging import Merger
from replication.object_store import CALLS_MAX, RetryingStore, Store, connect
from replication.object_tables import ObjectTable, Span, parse_span, span_name
from replication.pool import GroupFile, Pool, pool_error
from replication.pool_checkpoints import pack_checkpoint, unpack_checkpoint
from replication.pool_url import canonical_url, is_rados_url

log = logging.getLogger(__name__)

FORMAT = 1
MARKER = "vdiskfs.pool"
_HINT = "boot"
SPARE_BYTES = 256 << 20
"""Guests leave so much of the state directory's disk free: index and journal live there too; and of a pool that can be full."""
_BEGUN = span_name(Span(0, 0))
_GROUP_NAME = re.compile(r"([0-9a-f]{6})-([0-9a-f]{7})")
_LOCAL_NAME = re.compile(_GROUP_NAME.pattern + r"\.(staged|cache)")
_CHECKPOINT_NAME = re.compile(r"([0-9a-f]{16})\.checkpoint")
_ROOM_BYTES = 1 << 50
"""What a file system of it shows as free: object stores are never full."""


class ObjectPool(Pool):
    """An opened object pool; one to a daemon.

    Args:
        url: canonical; for messages.
        store: what makes the requests.
        pool_id, salt: of the marker.
        folder: of the local files; made when it is needed.
        cache_bytes: how much of what the pool has may lie there too.
    """

    def __init__(
        self, url: str, *, store: RetryingStore, pool_id: str, salt: int, folder: str,
        cache_bytes: int = CACHE_BYTES_DEFAULT,
    ) -> None:  # fmt: skip
        super().__init__(url, pool_id=pool_id, salt=salt)
        self.store, self.folder = store, folder
        self.cache, self.cache_limit_bytes = ExtentCache(cache_bytes), cache_bytes
        self.merger, self.trails = Merger(), Trails(folder)
        self._groups: dict[tuple[int, int], ObjectGroup] = {}
        self._lock = threading.Lock()
        self.space = ObjectSpace(
            store,
            folder,
            self.cache,
            ThreadPoolExecutor(CALLS_MAX, "fetch"),
            ThreadPoolExecutor(CALLS_MAX, "send"),
            self.merger.ask,
            self.trails,
        )

    def lock(self, node: str) -> None:
        """The state directory is locked by the keeper, the node's name by its session; counts what lies here from before."""
        try:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            for folder in os.scandir(self.folder):
                for name in os.listdir(folder.path):
                    match = _LOCAL_NAME.fullmatch(name)
                    if name == BEHIND:
                        self.trails.left_behind.add(int(folder.name, 16))
                    if match:
                        self._note_kept(int(folder.name, 16), group_id(int(match[1], 16), int(match[2], 16)))
        except OSError as exc:
            raise pool_error(exc, f"looking through {self.folder}") from exc

    def _note_kept(self, vdisk: int, group: int) -> None:
        with suppress(VdiskfsError):
            self.group(vdisk, group).note_kept()

    def check_writable(self) -> None:
        """Whether the store answers, and to these credentials."""
        self.store.get(MARKER)

    def group(self, vdisk: int, group: int) -> ObjectGroup:
        """What all files of a group share."""
        with self._lock:
            found = self._groups.get((vdisk, group))
            if found is None:
                found = self._groups[vdisk, group] = ObjectGroup(self.space, vdisk, group)
            return found

    def vdisk_path(self, vdisk: int) -> str:
        return f"{self.url.partition('?')[0]}/{vdisk_prefix(vdisk)}".rstrip("/")

    def group_path(self, vdisk: int, group: int) -> str:
        return f"{self.vdisk_path(vdisk)}/{epoch_of(group):06x}-{number_of(group):07x}"

    def groups(self, vdisk: int) -> list[GroupId]:
        matches = (_GROUP_NAME.fullmatch(name) for name in self.store.list(vdisk_prefix(vdisk)).folders)
        return sorted(group_id(int(match[1], 16), int(match[2], 16)) for match in matches if match)

    def group_bytes(self, vdisk: int, group: int) -> int:
        names = self.store.list(self.group(vdisk, group).prefix).objects
        table = ObjectTable(
            span for span in map(parse_span, names) if span
        )  # what is just merged counts once
        return BLOCK_BYTES * sum(end - start for start, end in table.covered)

    def checkpoints(self, vdisk: int) -> list[int]:
        matches = (_CHECKPOINT_NAME.fullmatch(name) for name in self.store.list(vdisk_prefix(vdisk)).objects)
        return sorted(int(match[1], 16) for match in matches if match)

    def vdisks(self) -> list[int]:
        shards = self.store.list("vdisks/").folders
        return sorted(
            int(name, 16) for shard in shards for name in self.store.list(f"vdisks/{shard}/").folders
        )

    def file(self, vdisk: int, group: int) -> GroupFile:
        seed = group_seed(self.salt, vdisk, group)
        return ObjectGroupFile(self.group(vdisk, group), seed=seed, url=self.group_path(vdisk, group))

    def create_group(self, vdisk: int, group: int) -> GroupFile:
        with self._lock:
            made = ObjectGroup(self.space, vdisk, group, is_mine=True, is_open=True, table=ObjectTable())
        self.store.put_new(made.prefix + _BEGUN, secrets.token_bytes(16))
        with self._lock:
            self._groups[vdisk, group] = made
            before = [
                other
                for (whose, number), other in self._groups.items()
                if whose == vdisk
                and other.is_open
                and number < group
                and is_compacted(number) == is_compacted(group)
            ]
        for other in before:
            other.finish()
        try:
            os.makedirs(os.path.dirname(made.path), mode=0o700, exist_ok=True)
            fd = os.open(made.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            sync_folder(os.path.dirname(made.path))
        except OSError as exc:
            raise pool_error(exc, f"creating {made.path}") from exc
        file = self.file(vdisk, group)
        file.fd = fd
        return file

    def may_go_on(self, vdisk: int, group: int, end: int) -> bool:
        """Only where this process ended it: what another one sent may still arrive."""
        return self.group(vdisk, group).may_go_on(end)

    def fence(self, vdisk: int, epoch: int) -> None:
        if epoch > 1:
            self.store.fence(vdisk_prefix(vdisk), epoch)

    def count_staged(self, vdisk: int) -> None:
        """The vdisk is this node's: what an earlier process of it appended, and the pool has not, counts."""
        staged = [self.group(vdisk, group) for group in self._staged(vdisk)]
        for shared in staged:
            if not shared.counts_staged and not shared.is_mine:
                shared.counts_staged = True
                self.merger.ask(shared)  # the daemon before may not have come to it
        if vdisk in self.trails.left_behind:
            for shared in staged:
                if not shared.is_mine and not is_compacted(shared.group):
                    with suppress(NotFound):  # collected since
                        shared.sync()  # in the log's order
            self.trails.note_sent(vdisk)

    def _staged(self, vdisk: int) -> list[GroupId]:
        """Groups of which there is a local file of what this node appended, sorted."""
        with suppress(FileNotFoundError):
            names = os.listdir(self.trails.folder_of(vdisk))
            matches = [_LOCAL_NAME.fullmatch(name) for name in names if name.endswith(".staged")]
            return sorted(group_id(int(match[1], 16), int(match[2], 16)) for match in matches if match)
        return []

    # ---- what the pool lacks of what was flushed here

    def flush_here(self, is_local: Callable[[int], bool]) -> None:
        self.trails.is_local = is_local

    def may_lag(self, vdisk: int) -> bool:
        return self.trails.may_lag(vdisk)

    def has_flushed_here(self, vdisk: int) -> bool:
        return self.trails.has(vdisk)

    def was_refused(self, vdisk: int) -> bool:
        return vdisk in self.trails.refused

    def settle(self, vdisk: int) -> None:
        self.trails.settle(vdisk)

    def note_followed(self, vdisk: int, followed: bool) -> None:
        (self.trails.followed.add if followed else self.trails.followed.discard)(vdisk)

    def left_behind(self) -> list[int]:
        return sorted(self.trails.left_behind)

    def lag_facts(self, vdisk: int) -> dict[str, object]:
        lag, local = self.trails.lag(vdisk), self.trails.is_local(vdisk)
        facts: dict[str, object] = {"durability": "node" if local else "pool"}
        return facts | {"lag_bytes": lag.bytes, "lag_s": lag.seconds, "lag_commits": lag.commits}

    def refuse(self, vdisk: int) -> None:
        why = Fenced(f"another node took the vdisk over vdisk={vdisk}")
        lag, aside, lacking = self.trails.drop(vdisk, why), [], 0
        for group in self._staged(vdisk):
            shared = self.group(vdisk, group)
            blocks = 0 if is_compacted(group) else shared.count_unsent()
            if blocks:
                lacking += blocks
                aside.append(shared.put_aside())
                with self._lock:
                    self._groups.pop((vdisk, group), None)
        self.trails.note_sent(vdisk)
        self.trails.refused.add(vdisk)
        if aside:
            log.error(
                "another node took the vdisk over before the pool had all that was flushed here: that is void, and "
                "kept aside vdisk=%d bytes=%d flushes=%s files=%s",
                vdisk, lacking * BLOCK_BYTES, lag.commits or "?", " ".join(aside),
            )  # fmt: skip

    def remove_group(self, vdisk: int, group: int) -> None:
        shared = self.group(vdisk, group)
        shared.is_gone = True
        with shared.syncing:  # what goes up now would be left
            names = self.store.list(shared.prefix).objects
            self.store.delete([shared.prefix + name for name in sorted(names, reverse=True)])
            shared.remove_local()
        with self._lock:
            self._groups.pop((vdisk, group), None)

    def remove_vdisk(self, vdisk: int) -> None:
        self.trails.drop(vdisk, NotFound(f"the vdisk is deleted vdisk={vdisk}"))
        with suppress(Unavailable):
            for group in self.groups(vdisk):
                self.remove_group(vdisk, group)
            prefix = vdisk_prefix(vdisk)
            self.store.delete([prefix + name for name in self.store.list(prefix).objects])
        shutil.rmtree(os.path.join(self.folder, f"{vdisk:016x}"), ignore_errors=True)

    def _checkpoint_key(self, vdisk: int, version: int) -> str:
        return f"{vdisk_prefix(vdisk)}{version:016x}.checkpoint"

    def publish_checkpoint(self, vdisk: int, version: int, source: str) -> None:
        packed = source + ".packed"
        try:
            with open(source, "rb") as sst, open(packed, "wb") as file:
                pack_checkpoint(sst, file, seed=group_seed(self.salt, vdisk, version))
            self.store.put_file(self._checkpoint_key(vdisk, version), packed)
        except OSError as exc:
            raise pool_error(exc, f"writing {packed}") from exc
        finally:
            with suppress(FileNotFoundError):
                os.unlink(packed)
        self.store.delete([self._checkpoint_key(vdisk, older) for older in self.checkpoints(vdisk)[:-1]])

    def fetch_checkpoint(self, vdisk: int, version: int, target: str) -> None:
        key, piece = self._checkpoint_key(vdisk, version), 8 << 20
        length = self.store.list(vdisk_prefix(vdisk)).objects.get(key.rpartition("/")[2])
        if length is None:
            raise Unavailable(f"there is no such checkpoint key={key}")
        packed = target + ".packed"
        try:
            with open(packed, "wb") as file:
                for at in range(0, length, piece):
                    file.write(self.store.get_range(key, at, min(piece, length - at)))
            with open(packed, "rb") as file, open(target, "wb") as sst:
                unpack_checkpoint(file, sst, seed=group_seed(self.salt, vdisk, version), name=key)
        except OSError as exc:
            raise pool_error(exc, f"reading {key}") from exc
        finally:
            with suppress(FileNotFoundError):
                os.unlink(packed)

    def statistics(self) -> os.statvfs_result:
        """Object stores are never full, Ceph is; what the local disk leaves is ``check_spare``'s."""
        total, free = (count // BLOCK_BYTES for count in self.store.room() or (_ROOM_BYTES, _ROOM_BYTES))
        return os.statvfs_result(
            (BLOCK_BYTES, BLOCK_BYTES, total, free, free, 1 << 30, 1 << 30, 1 << 30, 0, 255)
        )

    def check_spare(self, byte_count: int) -> None:
        room = self.store.room()
        if room is not None and room[1] - byte_count < min(SPARE_BYTES, room[0] // 16):
            raise NoSpace(f"the pool is full: what is left is for collection free_bytes={room[1]}")
        for _ in range(2):
            try:
                disk = os.statvfs(self.folder)
            except OSError as exc:
                raise pool_error(exc, "statfs") from exc
            if disk.f_bavail * disk.f_frsize - byte_count >= min(
                SPARE_BYTES, disk.f_blocks * disk.f_frsize // 16
            ):
                return
            self.cache.shrink(self.cache.bytes - min(self.cache.bytes, byte_count + SPARE_BYTES))
        raise NoSpace(
            f"the state directory's disk is full: what is written waits there for the pool folder={self.folder}"
        )

    def read_hint(self, vdisk: int) -> bytes:
        with suppress(NotFound):
            return self.store.get(vdisk_prefix(vdisk) + _HINT)
        return b""

    def write_hint(self, vdisk: int, data: bytes) -> None:
        self.store.put(vdisk_prefix(vdisk) + _HINT, data)

    def warm(self, vdisk: int, group: int, start: int, end: int) -> None:
        self.group(vdisk, group).warm(start, end)

    def count_lacking(self, vdisk: int, group: int, start: int, end: int) -> int:
        return self.group(vdisk, group).lacking(start, end)

    def cache_facts(self) -> dict[str, object]:
        space = self.space
        return {
            "cache_bytes": self.cache.bytes,
            "cache_bytes_max": self.cache.limit_bytes,
            "cache_evicted_bytes": self.cache.evicted_bytes,
            "cache_renewed_blocks": space.renewed_blocks,
            "cache_bypassed_bytes": space.uncached_bytes,
            "store_fetched_bytes": space.fetched_bytes,
        }

    def facts(self) -> dict[str, object]:
        return {
            **self.cache_facts(),
            "store_requests": self.store.requests,
            "store_retries": self.store.retries,
            "store_merged_objects": self.merger.merged_objects,
            **self.trails.facts(),
        }

    def close(self) -> None:
        super().close()
        self.store.close()  # a merge that the store keeps waiting gives up
        self.trails.close()
        self.merger.close()
        self.space.fetchers.shutdown(cancel_futures=True)
        self.space.senders.shutdown()


def _connect(url: str) -> Store:
    """The store at a canonical address; what speaks to it is loaded now.

    Raises:
        InvalidRequest: that is not installed, or refuses the settings.
    """
    if is_rados_url(url):
        from replication import rados_store

        return rados_store.connect(url)
    return connect(url)


def format_object_pool(
    url: str, *, store: Store | None = None, facts: dict[str, object] | None = None
) -> ObjectPool:
    """Makes a bucket, or the part of it below a prefix, a pool.

    Raises:
        Exists: it is a pool already.
        InvalidRequest, Unavailable: the store refuses, or does not answer.
    """
    url = canonical_url(url)
    store = store or _connect(url)
    retrying = RetryingStore(store)
    marker = {"format": FORMAT, "pool": secrets.token_hex(8), "salt": secrets.token_hex(8), **(facts or {})}
    try:
        retrying.put_new(MARKER, json.dumps(marker).encode())
    except Exists as exc:
        raise Exists(f"this is a pool already: choose another prefix, or delete it first url={url}") from exc
    return open_object_pool(url, store=store)


def read_marker(url: str, *, store: Store | None = None) -> dict[str, object]:
    """What the pool says of itself.

    Raises:
        NotFound: there is none.
        InvalidRequest: a newer format, or refused credentials.
        Corrupt: it cannot be read as a marker.
    """
    url = canonical_url(url)
    try:
        facts = json.loads(RetryingStore(store or _connect(url)).get(MARKER))
        if facts["format"] != FORMAT:
            raise InvalidRequest(
                f"the pool is of format {facts['format']}, this vdiskfs reads format {FORMAT} url={url}"
            )
        str(facts["pool"]), int(facts["salt"], 16)
        return dict(facts)
    except NotFound as exc:
        raise NotFound(f"no pool here: make one with 'vdiskfs format {url}': {exc}") from exc
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise Corrupt(f"the pool's marker object is damaged url={url}") from exc


def open_object_pool(
    url: str, *, state: str = "", store: Store | None = None, cache_bytes: int = CACHE_BYTES_DEFAULT
) -> ObjectPool:
    """The pool at this address, with local files in the node's state directory.

    Raises:
        NotFound, InvalidRequest, Corrupt: as ``read_marker``.
    """
    url = canonical_url(url)
    store = store or _connect(url)
    facts = read_marker(url, store=store)
    return ObjectPool(
        url,
        store=RetryingStore(store),
        pool_id=str(facts["pool"]),
        salt=int(str(facts["salt"]), 16),
        folder=str(pathlib.Path(state or ".", "extents")),
        cache_bytes=cache_bytes,
    )
