"""Catalogs on a real etcd, for tests: opened and closed, counted in, watched."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from metadata.catalog import Catalog, Change
from metadata.catalog_etcd import EtcdCatalog, open_etcd_catalog
from metadata.errors import Conflict, Unavailable
from metadata.etcd_address import parse_etcd_address

FIRST = Change(puts=((b"n", b"0"),))


@asynccontextmanager
async def catalog_at(url: str, pool: str = "pool") -> AsyncIterator[EtcdCatalog]:
    catalog = await open_etcd_catalog(parse_etcd_address(url), pool)
    try:
        yield catalog
    finally:
        await catalog.aclose()


def run(main: Callable[[], Awaitable[None]], *, within_s: float = 120) -> None:
    async def limited() -> None:
        with trio.fail_after(within_s):
            await main()

    trio.run(limited)


async def wait_s(seconds: float) -> None:
    with trio.move_on_after(seconds):
        await trio.Event().wait()


async def read_count(catalog: Catalog, key: bytes = b"n") -> int:
    (row,), _ = await catalog.read(key)
    return int(row.value)


class Counter:
    """Tasks that count up by compare and swap, and notes of what they were told."""

    def __init__(self, catalog: Catalog, key: bytes = b"n") -> None:
        self._catalog, self._key = catalog, key
        self.counted: list[int] = []
        """What this one was told it made of the counter."""
        self.unknown = 0
        """How often nobody could say whether it had counted."""

    async def count(self, times: int) -> None:
        while len(self.counted) < times:
            await self.count_once()

    async def count_once(self) -> None:
        try:
            (row,), _ = await self._catalog.read(self._key)
        except Unavailable:
            return
        value = int(row.value) + 1
        try:
            await self._catalog.transact(
                Change(((self._key, row.revision),), puts=((self._key, b"%d" % value),))
            )
            self.counted.append(value)
        except Conflict:
            pass
        except Unavailable:
            self.unknown += 1


def assert_none_lost_none_twice(counters: list[Counter], final: int) -> None:
    """Each value was given to one counter at most; what was given to none, somebody was not told of."""
    given = sorted(value for counter in counters for value in counter.counted)
    assert len(set(given)) == len(given), "two were told that they made the same step"
    assert not given or given[-1] <= final
    unknown = sum(counter.unknown for counter in counters)
    assert len(given) <= final <= len(given) + unknown
