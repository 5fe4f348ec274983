"""Where each kind of catalog is, for tests that run against all of them."""

import pathlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import trio
import trio.testing

from metadata.catalog import Catalog, Change
from metadata.catalog_etcd import EtcdCatalog, connect_etcd, open_etcd_catalog
from metadata.catalog_memory import MemoryCatalog
from metadata.catalog_sqlite import create_sqlite_catalog, open_sqlite_catalog
from metadata.etcd_address import parse_etcd_address
from tests.etcd_members import EtcdMembers


@dataclass
class Place:
    """Where a catalog is; ``connect`` gives one more node's view of the same one."""

    connect: Callable[[], Awaitable[Catalog]]
    let_pass: Callable[[float], Awaitable[None]]
    """Let time pass, as the leases see it."""
    forget_history: Callable[[], Awaitable[None]]
    """No watch can begin before now any more."""
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)

    async def node(self) -> Catalog:
        catalog = await self.connect()
        self.stack.push_async_callback(catalog.aclose)
        return catalog


@asynccontextmanager
async def sqlite_place(folder: pathlib.Path) -> AsyncIterator[Place]:
    path = folder / "catalog.sqlite"
    create_sqlite_catalog(path)
    now_ns = 10**18

    async def let_pass(seconds: float) -> None:
        nonlocal now_ns
        now_ns += int(seconds * 1e9)

    place = Place(lambda: open_sqlite_catalog(path, clock_ns=lambda: now_ns), let_pass, nothing)
    async with place.stack:
        yield place


@asynccontextmanager
async def memory_place(clock: trio.testing.MockClock) -> AsyncIterator[Place]:
    catalog = MemoryCatalog(history_max=100)

    async def connect() -> Catalog:
        return catalog

    async def let_pass(seconds: float) -> None:
        clock.jump(seconds)

    place = Place(connect, let_pass, nothing)
    async with place.stack:
        yield place


async def nothing() -> None:
    """Where little is remembered as it is."""


@asynccontextmanager
async def etcd_place(members: EtcdMembers, pool: str) -> AsyncIterator[Place]:
    """Its leases' time cannot be moved: it passes twice as fast as a test says."""
    address = parse_etcd_address(members.url)
    made = connect_etcd(address, pool)
    await made.transact(Change(puts=((b"first", b""),)))
    await made.transact(Change(deletes=(b"first",)))
    await made.aclose()

    async def connect() -> Catalog:
        return HalfTheTime(await open_etcd_catalog(address, pool))

    async def let_pass(seconds: float) -> None:
        with trio.move_on_after(seconds / 2):
            await trio.Event().wait()

    async def forget_history() -> None:
        catalog = await open_etcd_catalog(address, pool)
        for _ in range(2):
            catalog._history._noted = -1
            await catalog._history.compact()
        await catalog.aclose()

    place = Place(connect, let_pass, forget_history)
    async with place.stack:
        yield place


class HalfTheTime:
    """A catalog whose leases take half as long."""

    def __init__(self, catalog: EtcdCatalog) -> None:
        self._catalog = catalog

    async def grant_lease(self, ttl_s: float) -> int:
        return await self._catalog.grant_lease(ttl_s / 2)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalog, name)
