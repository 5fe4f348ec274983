"""What a power cut may leave of vdisks and snapshots, as values: the model of exhaustive searches. Pure.

A *world* is what is known: of each block the value flushed last, and those acknowledged since, each of which may be
there or not (promise 1, and 11: none is half there); snapshots hold exactly one content. An operation under way
may be done or not: then there are several worlds, of which one must fit.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

Content = dict[int, int]
"""Value by block number; zeros are left out."""


@dataclass
class Disk:
    """One vdisk."""

    flushed: Content = field(default_factory=dict)
    since: dict[int, list[int]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=lambda: [0])
    """In blocks: as flushed, and set since."""

    def put(self, block_no: int, value: int) -> None:
        """A write, or a discard with 0, was begun."""
        self.since.setdefault(block_no, []).append(value)

    def resize(self, size: int) -> None:
        """A truncation was begun."""
        for block_no in {*self.flushed, *self.since}:
            if block_no >= size:
                self.put(block_no, 0)
        self.sizes.append(size)

    def now(self) -> Content:
        """What a reader sees."""
        found = {**self.flushed, **{block_no: values[-1] for block_no, values in self.since.items()}}
        return {block_no: value for block_no, value in found.items() if value}

    def settle(self) -> None:
        """All of it is flushed."""
        self.flushed, self.since, self.sizes = self.now(), {}, self.sizes[-1:]

    def wrong(self, size: int, found: Content) -> str:
        """What is not legal in it; nothing if all is."""
        if size not in self.sizes:
            return f"size {size} is none of {self.sizes}"
        for block_no in {*self.flushed, *self.since, *found}:
            allowed = [self.flushed.get(block_no, 0), *self.since.get(block_no, ())]
            if block_no < size and found.get(block_no, 0) not in allowed:
                return f"block {block_no} holds {found.get(block_no, 0)}, none of {allowed}"
        return ""


@dataclass
class World:
    """All vdisks and snapshots."""

    disks: dict[int, Disk] = field(default_factory=dict)
    kept: dict[tuple[int, str], tuple[int, Content]] = field(default_factory=dict)
    """Size and content by vdisk and name."""

    def copy(self) -> "World":
        """Another one, the same."""
        return copy.deepcopy(self)

    def keep(self, vdisk: int, name: str) -> None:
        """A snapshot of now."""
        disk = self.disks[vdisk]
        self.kept[vdisk, name] = disk.sizes[-1], disk.now()

    def drop(self, vdisk: int) -> None:
        """A vdisk and its snapshots go."""
        del self.disks[vdisk]
        self.kept = {key: held for key, held in self.kept.items() if key[0] != vdisk}

    def names(self, vdisk: int) -> list[str]:
        """Of its snapshots, the oldest first."""
        return [name for each, name in self.kept if each == vdisk]

    def wrong(self, found: "Found") -> str:
        """What in it does not fit this world."""
        if set(found.disks) != set(self.disks):
            return f"vdisks {sorted(found.disks)}, not {sorted(self.disks)}"
        if set(found.kept) != set(self.kept):
            return f"snapshots {sorted(found.kept)}, not {sorted(self.kept)}"
        for vdisk, (size, content) in found.disks.items():
            if told := self.disks[vdisk].wrong(size, content):
                return f"vdisk {vdisk}: {told}"
        for key, held in found.kept.items():
            if held != self.kept[key]:
                return f"snapshot {key} holds {held}, not {self.kept[key]}"
        return ""


@dataclass(frozen=True)
class Found:
    """What is there, sizes in blocks; -1 for a block that nobody ever wrote so."""

    disks: Mapping[int, tuple[int, Content]]
    kept: Mapping[tuple[int, str], tuple[int, Content]]
