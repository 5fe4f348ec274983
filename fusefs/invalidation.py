"""Tells the kernel what other nodes have changed: names it may believe in, attributes it may hold.

The kernel keeps an entry for minutes, since this node's own changes pass through it. What another node changes comes
with the catalog's events; for each name that stands for something else now the kernel drops its entry, for each inode
whose row has changed its attributes. Names it does not know cost a refusal.

Dropping an entry waits for the directory's lock, which a request of ours in that directory may hold: so it is done
by a task, in the order of arrival, and nobody waits for it.
"""

from collections.abc import Sequence
from typing import Protocol

import trio

from metadata.catalog import (
    INODE_PREFIX,
    NAME_PREFIX,
    SNAP_PREFIX,
    SYNTHETIC_IDS_FROM,
    Event,
    Row,
    decode_value,
    id_in_key,
    name_key,
    split_name_key,
)
from metadata.namespace import Namespace

_SNAP_NAME_AT = len(SNAP_PREFIX) + 16 + 1
AT_ONCE = 16
"""Entries the kernel is told of together: one that waits for a directory's lock does not hold up the others."""


class ToldKernel(Protocol):
    """What is asked (``fusefs.notifications``, and a double in the tests)."""

    def knows_inode(self, inode: int) -> bool: ...
    async def forget_entry(self, parent: int, name: bytes) -> None: ...


class Invalidation:
    """One to a mount; ``run`` is its task. Listens to the store from its construction on."""

    def __init__(self, namespace: Namespace, kernel: ToldKernel) -> None:
        self._namespace, self._kernel = namespace, kernel
        self._entries: dict[tuple[int, bytes], None] = {}
        self._inodes: dict[int, None] = {}
        """In order of arrival. No more than there are names and inodes: each waits once."""
        self._arrived, self._settled = trio.Event(), trio.Event()
        self._settled.set()
        self._telling = 0

    async def settled(self) -> None:
        """Returns when the kernel has been told of everything."""
        while not self._settled.is_set():
            await self._settled.wait()

    def note_events(self, events: Sequence[Event], *, is_own: bool) -> None:
        """As ``CatalogListener``."""
        if is_own:
            return
        for event in events:
            if event.key.startswith(NAME_PREFIX):
                self._note_name(event)
            elif event.key.startswith(INODE_PREFIX):
                self._inodes[id_in_key(event.key, INODE_PREFIX)] = None
            elif event.key.startswith(SNAP_PREFIX) and event.value is None:
                folder = SYNTHETIC_IDS_FROM | id_in_key(event.key, SNAP_PREFIX)
                self._entries[folder, event.key[_SNAP_NAME_AT:]] = None
        self._note_arrival()

    def note_reload(self, rows: Sequence[Row], revision: int) -> None:
        """As ``CatalogListener``: whatever stands for something else than before."""
        names = {row.key: row.value for row in rows if row.key.startswith(NAME_PREFIX)}
        for parent, name, child in self._namespace.names():
            value = names.get(name_key(parent, name))
            if value is None or decode_value(b"", value) != child:
                self._entries[parent, name] = None
        for row in rows:
            if row.key.startswith(INODE_PREFIX):
                inode = id_in_key(row.key, INODE_PREFIX)
                if row.revision != self._namespace.inode_revision(inode):
                    self._inodes[inode] = None
        self._note_arrival()

    def _note_arrival(self) -> None:
        if self._entries or self._inodes:
            self._arrived.set()
            if self._settled.is_set():
                self._settled = trio.Event()

    def _note_told(self) -> None:
        if not (self._entries or self._inodes or self._telling):
            self._settled.set()

    def _note_name(self, event: Event) -> None:
        """The mirror shows what was there before; for a name that was not, the kernel has no entry."""
        parent, name = split_name_key(event.key)
        before = self._namespace.find(parent, name)
        if before is not None and (event.value is None or decode_value(event.key, event.value) != before):
            self._entries[parent, name] = None

    def note_owner(self, vdisk: int) -> None:
        """The vdisk is another node's now: its name leads to another inode. Or its size was changed elsewhere: looked up
        again, it shows the new one, unless it is open."""
        place = self._namespace.place(vdisk)
        if place is not None:
            self._entries[place.parent, place.name] = None
            self._note_arrival()

    async def forget_now(self, inode: int) -> None:
        """The kernel looks the inode's name up anew, if it has one."""
        place = self._namespace.place(inode)
        if place is not None:
            await self._kernel.forget_entry(place.parent, place.name)

    async def run(self) -> None:
        """Tells the kernel, until cancelled."""
        limit = trio.Semaphore(AT_ONCE)
        async with trio.open_nursery() as nursery:
            while True:
                await self._arrived.wait()
                self._arrived = trio.Event()
                inodes, self._inodes = self._inodes, {}
                for inode in inodes:
                    self._kernel.knows_inode(inode)
                while self._entries:
                    await limit.acquire()
                    if not self._entries:
                        limit.release()
                        break
                    entry = next(iter(self._entries))
                    del self._entries[entry]
                    self._telling += 1
                    nursery.start_soon(self._forget, entry, limit)
                self._note_told()

    async def _forget(self, entry: tuple[int, bytes], limit: trio.Semaphore) -> None:
        try:
            await self._kernel.forget_entry(*entry)
        finally:
            self._telling -= 1
            limit.release()
            self._note_told()
