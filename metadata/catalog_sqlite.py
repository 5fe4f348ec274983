"""The embedded catalog: one SQLite file in the pool directory, for all nodes of one machine.

    row    key, value (NULL: deleted), revision, lease
    lease  id, ttl_ns, ends_ns (since the machine was started)
    meta   revision of the last transaction; compacted: deletions up to here may have been dropped;
           boot: of which start of the machine the leases are

A deleted row stays as a tombstone for ``HISTORY_REVISIONS``, so "what has happened since revision N" is one
range of an index on ``revision``. That is how a watch learns of other processes' transactions; its own
process's it gets from memory. SQLite notices those others by its ``data_version``, which is polled.

Durable: WAL with synchronous=FULL, one ``fsync`` a transaction. The calls block, so they run in threads, one at
a time for each of two connections: whoever reads does not wait for a sync. **Invariant** events are published
in order of revision: the lock is held from before the transaction until its events are published.

Leases go by the time since the machine was started, which no setting of the clock moves and which goes on while it
sleeps; all who use the file are on this machine. Whoever opens it first after another start ends all leases. They
need no sync, so a busy disk does not end a session: no power cut leaves a lease.

A full disk must not keep anybody from deleting: some space is set aside (``catalog.reserve``), and given up
for a transaction that deletes, and for leases: who deletes needs a session.
"""

import os
import pathlib
import sqlite3
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

from metadata.boot_clock import boot_number, boot_time_ns
from metadata.catalog import Change, Compacted, Event, Row
from metadata.catalog_history import RecentEvents
from metadata.errors import (
    Conflict,
    Corrupt,
    Exists,
    InvalidRequest,
    NoSpace,
    NotFound,
    ReadOnly,
    Unavailable,
    VdiskfsError,
)
from metadata.local_disk import (
    RESERVE_BYTES,
    Reserve,
    filesystem_magic,
    free_bytes,
    refuse_network_filesystem,
)

SCHEMA_VERSION = 1
HISTORY_REVISIONS = 16384
"""A process that was stopped for longer reads everything again; bounds the tombstones."""
PRUNE_EVERY = 1024
POLL_S = 0.2
"""How long another process's transaction may stay unnoticed."""
BUSY_S = 10.0
"""Another process's transaction takes milliseconds; one that holds the file longer than this is stuck."""
CACHE_KIB = 2048

_SCHEMA = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES ('revision', 0), ('compacted', 0);
CREATE TABLE row (
    key BLOB PRIMARY KEY, value BLOB, revision INTEGER NOT NULL, lease INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX row_revision ON row (revision);
CREATE INDEX row_tombstone ON row (revision) WHERE value IS NULL;
CREATE INDEX row_lease ON row (lease) WHERE lease != 0;
CREATE TABLE lease (id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ns INTEGER NOT NULL, ends_ns INTEGER NOT NULL);
PRAGMA user_version = {SCHEMA_VERSION};
"""
_PUT = """INSERT INTO row (key, value, revision, lease) VALUES (?, ?, ?, ?) ON CONFLICT (key)
DO UPDATE SET value = excluded.value, revision = excluded.revision, lease = excluded.lease"""
_DELETE = "UPDATE row SET value = NULL, revision = ?, lease = 0 WHERE key = ? AND value IS NOT NULL"
_READ = """SELECT key, value, revision FROM row
WHERE key >= ? AND key < ? AND value IS NOT NULL ORDER BY key"""
_SINCE = "SELECT key, value, revision FROM row WHERE revision > ? ORDER BY revision, key"
_PRUNE = "DELETE FROM row WHERE value IS NULL AND revision <= ?"
_LEASES_OVER = "SELECT id FROM lease WHERE ends_ns <= ?"
_KEYS_OF_LEASE = "SELECT key FROM row WHERE lease = ? AND lease != 0"  # the second term lets it use the index
_COMPARE = "SELECT revision FROM row WHERE key = ? AND value IS NOT NULL"

_NOTHING = Change()
_ResultT = TypeVar("_ResultT")


def create_sqlite_catalog(path: pathlib.Path, *, first: Change = _NOTHING) -> None:
    """Make a catalog that holds the puts of ``first``, durable when this returns.

    Blocks; formatting is its only user. A process that dies halfway leaves nothing that opens.

    Raises:
        Exists: there is one.
        InvalidRequest: the place is on a network filesystem.
    """
    refuse_network_filesystem(path, magic=filesystem_magic(path.parent))
    if path.exists():
        raise Exists(f"there is a catalog already path={path}")
    with _our_errors(path):
        db = _connect(path)
        try:
            _prepare(db)
            db.executescript(f"BEGIN; {_SCHEMA}")
            db.executemany(_PUT, ((key, value, 1, 0) for key, value in first.puts))
            db.execute("UPDATE meta SET value = 1 WHERE name = 'revision'")
            db.execute("COMMIT")
        finally:
            db.close()
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


async def open_sqlite_catalog(
    path: pathlib.Path,
    *,
    clock_ns: Callable[[], int] = boot_time_ns,
    boot: Callable[[], int] = boot_number,
    magic_of: Callable[[pathlib.Path], int] = filesystem_magic,
) -> "SqliteCatalog":
    """The catalog at ``path``, which exists.

    Raises:
        NotFound: it does not.
        InvalidRequest: it is on a network filesystem, or of a newer version.
        Corrupt: the file is no catalog.
    """

    def open_and_check() -> tuple[sqlite3.Connection, sqlite3.Connection, int]:
        refuse_network_filesystem(path, magic=magic_of(path.parent))
        if not path.exists():
            raise NotFound(f"the pool's catalog is missing path={path}")
        with _our_errors(path):
            db = _connect(path)
            try:
                _check_version(db, path)
                _prepare(db)
                _end_leases_of_other_boots(db, boot())
                return db, _connect(path), _number(db, "revision")
            except BaseException:
                db.close()
                raise

    def open_or_make_room() -> tuple[sqlite3.Connection, sqlite3.Connection, int]:
        try:
            return open_and_check()
        except NoSpace:  # even its shared memory takes some
            if not _reserve(path).give_up():
                raise
        return open_and_check()

    db, reader, revision = await trio.to_thread.run_sync(open_or_make_room)
    return SqliteCatalog(db, reader, path=path, revision=revision, clock_ns=clock_ns)


def check_sqlite_catalog(path: pathlib.Path) -> None:
    """See that this release reads the catalog, while others use it.

    Raises:
        InvalidRequest, Corrupt, Unavailable: it does not.
    """
    with _our_errors(path):
        db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", timeout=BUSY_S, uri=True)
        try:
            _check_version(db, path)
        finally:
            db.close()


def _connect(path: pathlib.Path) -> sqlite3.Connection:
    return sqlite3.connect(path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _prepare(db: sqlite3.Connection) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = FULL")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")


def lease_end_ns(path: str | os.PathLike[str], key: bytes) -> int:
    """When the lease of a key ends that nobody keeps alive any more, since the machine was started; for measurements.

    Raises:
        NotFound: the key is not there, or under no lease.
    """
    db = sqlite3.connect(path)
    try:
        question = "SELECT ends_ns FROM lease JOIN row ON row.lease = lease.id WHERE row.key = ?"
        found = db.execute(question, (key,)).fetchone()
    finally:
        db.close()
    if found is None:
        raise NotFound(f"nothing under a lease key={key!r}")
    return int(found[0])


def _end_leases_of_other_boots(db: sqlite3.Connection, boot: int) -> None:
    if db.execute("SELECT 1 FROM meta WHERE name = 'boot' AND value = ?", (boot,)).fetchone():
        return
    db.execute("BEGIN IMMEDIATE")
    try:
        if not db.execute("SELECT 1 FROM meta WHERE name = 'boot' AND value = ?", (boot,)).fetchone():
            db.execute("UPDATE lease SET ends_ns = -1")
            db.execute(
                "INSERT INTO meta VALUES ('boot', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (boot,),
            )
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _reserve(path: pathlib.Path) -> Reserve:
    return Reserve(path.with_name("catalog.reserve"))


def _check_version(db: sqlite3.Connection, path: pathlib.Path) -> None:
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > SCHEMA_VERSION:
        raise InvalidRequest(f"the catalog was made by a newer vdiskfs path={path} version={version}")
    if version < SCHEMA_VERSION:
        raise Corrupt(f"no catalog of vdiskfs path={path}")


def _number(db: sqlite3.Connection, name: str) -> int:
    (value,) = db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
    assert isinstance(value, int)
    return value


@contextmanager
def _our_errors(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        raise _our_error(exc, path) from exc


def _our_error(exc: sqlite3.Error, path: pathlib.Path) -> VdiskfsError:
    code = getattr(exc, "sqlite_errorcode", 0)
    primary = code & 0xFF
    facts = f"path={path} sqlite={getattr(exc, 'sqlite_errorname', exc)}"
    if primary == sqlite3.SQLITE_FULL:
        return NoSpace(f"the pool is full: the catalog cannot grow {facts}")
    if (
        primary == sqlite3.SQLITE_IOERR and free_bytes(path.parent) < RESERVE_BYTES
    ):  # such as when its shared memory cannot grow
        return NoSpace(f"the pool is full: the catalog cannot grow {facts}")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Corrupt(f"the catalog is damaged {facts}")
    if primary == sqlite3.SQLITE_READONLY:
        return ReadOnly(f"the catalog cannot be written {facts}")
    return Unavailable(f"the catalog does not answer: {exc} {facts}")


def _end_of_prefix(prefix: bytes) -> bytes:
    """The first key after all that start with ``prefix``; our keys hold no 0xff in their first byte."""
    trimmed = prefix.rstrip(b"\xff")
    return trimmed[:-1] + bytes([trimmed[-1] + 1]) if trimmed else b"\xff"


class SqliteCatalog:
    """One process's connections. Opened by ``open_sqlite_catalog``, closed by ``aclose``."""

    def __init__(
        self,
        db: sqlite3.Connection,
        reader: sqlite3.Connection,
        *,
        path: pathlib.Path,
        revision: int,
        clock_ns: Callable[[], int],
    ) -> None:
        self._db = db
        self._reader = reader
        self._path = path
        self._clock_ns = clock_ns
        self._lock = trio.Lock()
        self._reader_lock = trio.Lock()
        self._limiter = trio.CapacityLimiter(2)
        self._reserve = _reserve(path)
        self._history = RecentEvents(revision)
        self._data_version = -1
        self._polled_at = -POLL_S

    async def read(self, prefix: bytes) -> tuple[list[Row], int]:
        async with self._reader_lock:
            rows, revision = await self._in_thread(lambda: self._read(prefix))
        if (
            revision > self._history.revision
        ):  # another process's doing: who watches need not wait for the next look
            async with self._lock:
                if revision > self._history.revision:
                    await self._publish_news()
        return rows, revision

    async def transact(self, change: Change, *, lease: int = 0) -> int:
        async with self._lock:
            try:
                revision, events = await self._in_thread(
                    lambda: self._or_make_room(
                        lambda: self._transact(change, lease), may_use_reserve=bool(lease or change.deletes)
                    )
                )
            except Conflict:  # somebody else's doing: let the watchers know before the caller tries again
                await self._publish_news()
                raise
            self._publish(revision, events)
        return revision

    async def watch(self, prefix: bytes, *, after: int) -> AsyncGenerator[list[Event], None]:
        position = after
        while True:
            if self._history.revision <= position:
                with trio.move_on_after(POLL_S):
                    await self._history.wait_for_more(position)
                await self._poll()
                continue
            events, reached = self._history.events_after(position, prefix), self._history.revision
            if events is None:
                events, reached = await self._read_events(position, prefix)
            position = reached
            if events:
                yield events

    async def grant_lease(self, ttl_s: float) -> int:
        ttl_ns = int(ttl_s * 1e9)

        def grant() -> int:
            with self._unsynced(), self._transaction():
                ends_ns = self._clock_ns() + ttl_ns
                cursor = self._db.execute(
                    "INSERT INTO lease (ttl_ns, ends_ns) VALUES (?, ?)", (ttl_ns, ends_ns)
                )
                assert cursor.lastrowid is not None
                return cursor.lastrowid

        async with self._lock:
            return await self._in_thread(lambda: self._or_make_room(grant, may_use_reserve=True))

    async def keep_alive(self, lease: int) -> None:
        def keep() -> int:
            with self._unsynced(), self._transaction():
                now_ns = self._clock_ns()
                return self._db.execute(
                    "UPDATE lease SET ends_ns = ? + ttl_ns WHERE id = ? AND ends_ns > ?",
                    (now_ns, lease, now_ns),
                ).rowcount

        async with self._lock:
            if await self._in_thread(lambda: self._or_make_room(keep, may_use_reserve=True)) == 0:
                raise NotFound(f"the lease has ended lease={lease}")

    async def revoke(self, lease: int) -> None:
        def end() -> tuple[int, list[Event] | None]:
            self._db.execute("UPDATE lease SET ends_ns = -1 WHERE id = ?", (lease,))
            return self._transact(Change(), 0)  # which ends the leases that are over

        async with self._lock:
            self._publish(*await self._in_thread(end))

    async def damage(self) -> list[str]:
        """What SQLite's own check finds wrong with the file; nothing, normally. Reads all of it."""

        def read() -> list[str]:
            with _our_errors(self._path):
                db = _connect(
                    self._path
                )  # of its own: it takes long, and sessions are to be kept alive meanwhile
                try:
                    lines = db.execute("PRAGMA integrity_check(20)").fetchall()
                finally:
                    db.close()
            return [line for (line,) in lines if line != "ok"]

        return await trio.to_thread.run_sync(read)

    async def aclose(self) -> None:
        with trio.CancelScope(shield=True):  # closing takes a checkpoint of the log, no longer
            async with self._lock, self._reader_lock:
                await self._in_thread(self._reader.close)
                await self._in_thread(self._db.close)

    async def _in_thread(self, call: Callable[[], _ResultT]) -> _ResultT:
        def translated() -> _ResultT:
            with _our_errors(self._path):
                return call()

        return await trio.to_thread.run_sync(translated, limiter=self._limiter)

    def _publish(self, revision: int, events: list[Event] | None) -> None:
        if events is None:
            self._history.restart(revision)
        else:
            self._history.publish(events, revision)

    async def _poll(self) -> None:
        """Learn of other processes' transactions and of leases that ended; at most once a ``POLL_S``."""
        if trio.current_time() - self._polled_at < POLL_S:
            await trio.lowlevel.checkpoint()
            return
        self._polled_at = trio.current_time()
        async with self._lock:
            await self._publish_news()

    async def _publish_news(self) -> None:
        news = await self._in_thread(self._look_for_news)
        if news is not None:
            self._publish(*news)

    async def _read_events(self, position: int, prefix: bytes) -> tuple[list[Event], int]:
        async with self._lock:
            return await self._in_thread(lambda: self._events_from_file(position, prefix))

    # Below: in a thread, under the lock (``_read``: the reader's).

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _unsynced(self) -> Iterator[None]:
        """For leases: no power cut leaves one, so none needs to be durable."""
        self._db.execute("PRAGMA synchronous = NORMAL")
        try:
            yield
        finally:
            self._db.execute("PRAGMA synchronous = FULL")

    def _read(self, prefix: bytes) -> tuple[list[Row], int]:
        self._reader.execute("BEGIN")  # so that rows and revision are of one moment
        try:
            found = self._reader.execute(_READ, (prefix, _end_of_prefix(prefix)))
            return [Row(*row) for row in found], _number(self._reader, "revision")
        finally:
            self._reader.execute("ROLLBACK")

    def _or_make_room(self, write: Callable[[], _ResultT], *, may_use_reserve: bool) -> _ResultT:
        for make_room in (self._reuse_log, self._reserve.give_up):
            try:
                done = write()
                break
            except sqlite3.Error as exc:
                error = _our_error(exc, self._path)
                is_allowed = make_room != self._reserve.give_up or may_use_reserve
                if not isinstance(error, NoSpace) or not is_allowed or not make_room():
                    raise error from exc
        else:
            self._reuse_log()
            return write()
        self._reserve.fill()
        return done

    def _reuse_log(self) -> bool:
        """Copy SQLite's log into the file, so that it is overwritten instead of growing."""
        try:
            self._db.execute("PRAGMA wal_checkpoint(PASSIVE)")
        except sqlite3.Error:  # it is as full as it was
            pass
        return True

    def _transact(self, change: Change, lease: int) -> tuple[int, list[Event] | None]:
        """Returns the revision, and what has happened since the last event published (None: unknown)."""
        with self._transaction():
            before = _number(self._db, "revision")
            revision, events = self._end_leases(before)
            for key, expected in change.compares:
                row = self._db.execute(_COMPARE, (key,)).fetchone()
                if (row[0] if row else 0) != expected:
                    raise Conflict(f"the catalog has changed key={key!r}")
            if lease and not self._db.execute("SELECT 1 FROM lease WHERE id = ?", (lease,)).fetchone():
                raise NotFound(f"the lease has ended lease={lease}")
            revision, written = self._write(change, lease, base=revision)
            events += written
            if before != self._history.revision:
                return revision, self._events_since(self._history.revision)
            return revision, events

    def _write(self, change: Change, lease: int, *, base: int) -> tuple[int, list[Event]]:
        """Carry the writes out on top of revision ``base``."""
        revision = base + 1
        deleted = [key for key in change.deletes if self._db.execute(_DELETE, (revision, key)).rowcount]
        if not change.puts and not deleted:
            return base, []
        self._db.executemany(_PUT, ((key, value, revision, lease) for key, value in change.puts))
        self._db.execute("UPDATE meta SET value = ? WHERE name = 'revision'", (revision,))
        if revision % PRUNE_EVERY == 0:
            self._prune(revision - HISTORY_REVISIONS)
        events = [Event(key, value, revision) for key, value in change.puts]
        return revision, events + [Event(key, None, revision) for key in deleted]

    def _prune(self, up_to: int) -> None:
        gone = self._db.execute(_PRUNE, (up_to,)).rowcount
        if gone:
            self._db.execute("UPDATE meta SET value = ? WHERE name = 'compacted'", (up_to,))

    def _end_leases(self, base: int) -> tuple[int, list[Event]]:
        over = self._db.execute(_LEASES_OVER, (self._clock_ns(),)).fetchall()
        if not over:
            return base, []
        keys: list[bytes] = []
        for lease in over:
            keys += [key for (key,) in self._db.execute(_KEYS_OF_LEASE, lease)]
            self._db.execute("DELETE FROM lease WHERE id = ?", lease)
        return self._write(Change(deletes=tuple(sorted(keys))), 0, base=base)

    def _look_for_news(self) -> tuple[int, list[Event] | None] | None:
        if self._db.execute(_LEASES_OVER, (self._clock_ns(),)).fetchone():
            return self._transact(Change(), 0)
        (data_version,) = self._db.execute("PRAGMA data_version").fetchone()
        if data_version == self._data_version:
            return None
        self._db.execute("BEGIN")
        try:
            news = _number(self._db, "revision"), self._events_since(self._history.revision)
        finally:
            self._db.execute("ROLLBACK")
        self._data_version = data_version  # an older one than the events': at worst they are read twice
        return news

    def _events_since(self, position: int) -> list[Event] | None:
        """Every change above ``position``, or None if deletions among them have been pruned."""
        if position < _number(self._db, "compacted"):
            return None
        found = self._db.execute(_SINCE, (position,))
        return [Event(*row) for row in found]

    def _events_from_file(self, position: int, prefix: bytes) -> tuple[list[Event], int]:
        self._db.execute("BEGIN")
        try:
            events, revision = self._events_since(position), _number(self._db, "revision")
        finally:
            self._db.execute("ROLLBACK")
        if events is None:
            raise Compacted(f"the catalog's history is gone revision={position}")
        return [event for event in events if event.key.startswith(prefix)], revision
