"""The catalog on etcd: for nodes on several machines. Any member may die; without most of them, calls fail in time.

    /vdiskfs/POOL/row/KEY              a row of the catalog
    /vdiskfs/POOL/last                 put by each transaction of this catalog: its revision is the catalog's
    /vdiskfs/POOL/attempt/...          so that a transaction happens once (etcd_attempts)
    /vdiskfs/POOL/compacted            up to where history may go next (etcd_history)

etcd's revisions count what everybody does there, so they grow by more than one, and not each is of this catalog.
**Invariant** the revision that a read gives is one at which something happened here, so that a watch arrives there.
(Rows that end with their lease touch no ``last``: at worst a watch tells of their end once more.)
"""

import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing

import trio

from metadata.boot_clock import boot_time_s
from metadata.catalog import Change, Event, Row
from metadata.errors import Conflict, Exists, InvalidRequest, NotFound, Unavailable
from metadata.etcd_address import EtcdAddress
from metadata.etcd_attempts import Attempts
from metadata.etcd_calls import AnswerTooLarge, EtcdCalls, RevisionGone
from metadata.etcd_history import History
from metadata.etcd_http import HttpMember, make_tls
from metadata.etcd_leases import EtcdLeases
from metadata.etcd_messages import (
    OPERATIONS_MAX,
    Message,
    check_size,
    compare_revision,
    delete_of,
    end_of_prefix,
    number_in,
    parts_in,
    put_of,
    range_of,
    ranges_in,
    revision_in,
    rows_in,
)
from metadata.etcd_watch import watch

PAGE_ROWS = 2000
"""Less than the 4 MiB that the gateway passes on; where rows are long, fewer are asked for."""
TRIES_MAX = 8
LOGIN_VARIABLE = "VDISKFS_ETCD_LOGIN"
_LOGIN_BYTES_MAX = 4096
_NOTHING = Change()


def read_login(address: EtcdAddress, environment: Mapping[str, str]) -> tuple[str, str] | None:
    """User and password: the environment's, or those in the file that the address names.

    Raises:
        InvalidRequest: they are not there, or for everybody's eyes.
    """
    text, place = environment.get(LOGIN_VARIABLE, ""), LOGIN_VARIABLE
    if not text and address.login:
        place = address.login
        try:
            with open(address.login, "rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o007:
                    raise InvalidRequest(f"others may read the catalog's password: chmod o= {address.login}")
                text = file.read(_LOGIN_BYTES_MAX).decode("utf-8", errors="replace")
        except OSError as exc:
            raise InvalidRequest(
                f"the catalog's user and password cannot be read: {exc.strerror} file={address.login}"
            ) from exc
    if not text:
        return None
    user, colon, password = text.strip("\n").partition(":")
    if not user or not colon:
        raise InvalidRequest(
            f"the catalog's user and password are written USER:PASSWORD, in one line place={place}"
        )
    return user, password


async def open_etcd_catalog(
    address: EtcdAddress, pool_id: str, *, clock_s: Callable[[], float] = boot_time_s
) -> "EtcdCatalog":
    """The catalog of this pool, which exists.

    Raises:
        NotFound: etcd knows nothing of it.
        InvalidRequest: etcd does not let this node in.
        Unavailable: no member answers.
    """
    catalog = connect_etcd(address, pool_id, clock_s=clock_s)
    try:
        if not await catalog.exists():
            raise NotFound(
                "the catalog's etcd knows nothing of this pool: is it the right one, or did it lose its data? "
                f"pool={pool_id}"
            )
    except BaseException:
        with trio.CancelScope(shield=True):
            await catalog.aclose()
        raise
    return catalog


def connect_etcd(
    address: EtcdAddress, pool_id: str, *, clock_s: Callable[[], float] = boot_time_s
) -> "EtcdCatalog":
    """The way to a pool's catalog, whether there is one or not."""
    tls = make_tls(address)
    members = [HttpMember(host, port, tls) for host, port in address.members]
    calls = EtcdCalls(members, login=read_login(address, os.environ))
    return EtcdCatalog(calls, pool_id, clock_s=clock_s)


def create_etcd_catalog(address: EtcdAddress, pool_id: str, *, first: Change = _NOTHING) -> None:
    """Make a catalog that holds the puts of ``first``. Blocks; formatting is its only user.

    Raises:
        Exists: there is one.
        InvalidRequest, Unavailable: etcd says no, or nothing.
    """

    async def main() -> None:
        catalog = connect_etcd(address, pool_id)
        async with aclosing(catalog):
            if await catalog.exists():
                raise Exists(f"there is a catalog already pool={pool_id}")
            await catalog.transact(first)

    trio.run(main)


def forget_etcd_catalog(address: EtcdAddress, pool_id: str) -> None:
    """Take everything of a pool away; formatting that failed halfway is its only user."""

    async def main() -> None:
        catalog = connect_etcd(address, pool_id)
        async with aclosing(catalog):
            await catalog.forget()

    trio.run(main)


class EtcdCatalog:
    """One process's connections. Closed by ``aclose``."""

    def __init__(self, calls: EtcdCalls, pool_id: str, *, clock_s: Callable[[], float]) -> None:
        self._calls = calls
        self._prefix = f"/vdiskfs/{pool_id}/".encode()
        self._rows = self._prefix + b"row/"
        self._last = self._prefix + b"last"
        self._attempts = Attempts(calls, self._prefix + b"attempt/", clock_s=clock_s)
        self._leases = EtcdLeases(calls, self._attempts)
        self._history = History(calls, self._prefix + b"compacted", clock_s=clock_s)
        self._seen = 0
        """The newest revision of this catalog that anybody here has been told of."""

    async def exists(self) -> bool:
        """Whether etcd has it."""
        answer = await self._calls.call("kv/range", range_of(self._last))
        return bool(answer.get("kvs"))

    async def read(self, prefix: bytes) -> tuple[list[Row], int]:
        page_rows = PAGE_ROWS
        for _ in range(TRIES_MAX):
            seen = self._seen
            try:
                rows, last = await self._read_pages(self._rows + prefix, page_rows)
            except AnswerTooLarge:
                page_rows = max(1, page_rows // 8)
                continue
            except RevisionGone:  # reading took longer than history is kept
                continue
            revision = max(seen, last, max((row.revision for row in rows), default=0))
            self._seen = max(self._seen, revision)
            return rows, revision
        raise Unavailable("the catalog changes faster than it can be read")

    async def transact(self, change: Change, *, lease: int = 0) -> int:
        for _ in range(TRIES_MAX):
            try:
                found = await self._found(change)
                if not change.puts and not found:
                    return await self._compare(change)
                return await self._write(change, found, lease=lease)
            except _Moved:
                continue
        raise Unavailable("other nodes keep changing the same rows")

    async def watch(self, prefix: bytes, *, after: int) -> AsyncGenerator[list[Event], None]:
        following = watch(self._calls, self._rows + prefix, after=after, prefix=self._rows)
        async with aclosing(following):
            async for events in following:
                self._seen = max(self._seen, events[-1].revision)
                yield events

    async def grant_lease(self, ttl_s: float) -> int:
        return await self._leases.grant(ttl_s)

    async def keep_alive(self, lease: int) -> None:
        await self._leases.keep_alive(lease)
        await self._history.compact_now_and_then()

    async def revoke(self, lease: int) -> None:
        await self._leases.revoke(lease)

    async def forget(self) -> None:
        """Take everything away."""
        await self._calls.call("kv/deleterange", range_of(self._prefix, end_of_prefix(self._prefix)))

    async def aclose(self) -> None:
        await self._attempts.aclose()
        await self._calls.aclose()

    # Reading.

    async def _read_pages(self, start: bytes, page_rows: int) -> tuple[list[Row], int]:
        """The rows, and the revision of this catalog's last transaction, of one moment."""
        end = end_of_prefix(start)
        asked = [range_of(start, end, limit=page_rows), range_of(self._last)]
        answer = await self._calls.call("kv/txn", {"success": [{"request_range": one} for one in asked]})
        page, last = ranges_in(answer, 2)
        rows, revision = rows_in(page, self._rows), revision_in(answer)
        while page.get("more"):
            behind = self._rows + rows[-1].key + b"\0"
            page = await self._calls.call(
                "kv/range", range_of(behind, end, limit=page_rows, revision=revision)
            )
            rows += rows_in(page, self._rows)
        return rows, _mod_revision(last)

    # Writing.

    async def _found(self, change: Change) -> bytes:
        """A key to delete that exists, if nothing else is sure to be written; else nothing.

        A transaction that only deletes, and finds nothing, must not write anything.
        """
        if change.puts or not change.deletes:
            return b""
        compared = dict(change.compares)
        for key in change.deletes:
            if compared.get(key):
                return key
        for start in range(0, len(change.deletes), OPERATIONS_MAX):
            keys = change.deletes[start : start + OPERATIONS_MAX]
            asked = [{"request_range": range_of(self._rows + key) | {"keys_only": True}} for key in keys]
            answer = await self._calls.call("kv/txn", {"success": asked})
            for key, found in zip(keys, ranges_in(answer, len(keys)), strict=True):
                if found.get("kvs"):
                    return key
        return b""

    async def _compare(self, change: Change) -> int:
        """The compares alone, and that there is nothing to delete."""
        keys = [self._last, *(self._rows + key for key in change.deletes[: OPERATIONS_MAX - 1])]
        asked: Message = {
            "compare": self._compares(change),
            "success": [{"request_range": range_of(key)} for key in keys],
        }
        seen = self._seen
        answer = await self._calls.call("kv/txn", asked)
        if not answer.get("succeeded"):
            raise Conflict("the catalog has changed")
        last, *others = ranges_in(answer, len(keys))
        if any(found.get("kvs") for found in others):
            raise _Moved
        return max(seen, _mod_revision(last))

    async def _write(self, change: Change, found: bytes, *, lease: int) -> int:
        under = self._leases.current(lease) if lease else 0
        puts = [(self._rows + key, value) for key, value in change.puts]
        deletes = [self._rows + key for key in change.deletes]
        check_size([*(piece for pair in puts for piece in pair), *deletes])
        compares = self._compares(change)
        is_found_compared = dict(change.compares).get(found, 0) != 0
        if found and not is_found_compared:
            compares.append(_compare_exists(self._rows + found))
        operations = [put_of(key, value, lease=under) for key, value in puts]
        operations += [delete_of(key) for key in deletes]
        operations.append(put_of(self._last, b""))
        outcome = await self._attempts.transact(compares, operations)
        if not outcome.is_done:
            if found and not is_found_compared:
                await self._compare(Change(change.compares))
                raise _Moved
            raise Conflict("the catalog has changed")
        self._leases.note_written([key for key, _ in puts], lease, under=under)
        self._leases.note_written(deletes, 0)
        self._seen = max(self._seen, outcome.revision)
        return outcome.revision

    def _compares(self, change: Change) -> list[Message]:
        return [compare_revision(self._rows + key, revision) for key, revision in change.compares]


class _Moved(Exception):
    """What was looked up before the transaction does not hold any more: look again."""


def _compare_exists(key: bytes) -> Message:
    return compare_revision(key, 0) | {"result": "NOT_EQUAL"}


def _mod_revision(answer: Message) -> int:
    rows = parts_in(answer, "kvs")
    return number_in(rows[0], "mod_revision") if rows else 0
