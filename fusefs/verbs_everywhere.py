"""Verbs about many vdisks: each node does its own part, the one that was asked puts the answers together.

What is about a vdisk that another live node owns is done by that node, which has its newest rows; a vdisk whose owner is
gone is acquired first. The parts have names of their own (``check_here``, ...), so that nothing goes round in circles.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import trio

from fusefs.collection_verb import AskedCollector
from fusefs.control import Progress, Verb
from fusefs.inspection import Scan
from fusefs.resolution import flag_in
from fusefs.tree_verb import Usage
from fusefs.verb_forwarding import Acquire, Owners, RunOn
from metadata.errors import InvalidRequest, NotFound, VdiskfsError
from metadata.ids import VdiskId

CHECK, SCRUB, COLLECT, USAGE = "check_here", "scrub_here", "gc_here", "usage_here"
PICTURES = "pictures_here"
IDS_AT_ONCE = 5000
"""Vdisks in one question to another node."""


class AllNodes(Protocol):
    """What is asked about the nodes."""

    def others(self) -> Sequence[str]:
        """The other live ones."""


class VerbsEverywhere:
    """One to a node.

    Args:
        owners: of the vdisks.
        nodes: the live ones.
        acquire: makes this node the owner of a vdisk whose owner is gone.
        run_on: has another node run a verb.
    """

    def __init__(self, owners: Owners, nodes: AllNodes, *, acquire: Acquire, run_on: RunOn) -> None:
        self._owners, self.nodes = owners, nodes
        self._acquire, self.run_on = acquire, run_on

    async def _parted(self, vdisks: Iterable[VdiskId]) -> tuple[list[VdiskId], dict[str, list[VdiskId]]]:
        """Those for this node, and those for others."""
        here: list[VdiskId] = []
        elsewhere: dict[str, list[VdiskId]] = {}
        for vdisk in vdisks:
            node = None
            if not self._owners.is_mine(vdisk):
                node = self._owners.live_owner(vdisk) or await self._acquired(vdisk)
            if node is None:
                here.append(vdisk)
            else:
                elsewhere.setdefault(node, []).append(vdisk)
        return here, elsewhere

    async def _acquired(self, vdisk: VdiskId) -> str | None:
        try:
            return await self._acquire(vdisk)
        except VdiskfsError:
            return None  # tried here, the attempt says what is the matter

    def scan(self, name: str, scan: Scan) -> Scan:
        """The same on all nodes."""

        async def everywhere(vdisks: Sequence[VdiskId], progress: Progress) -> list[dict[str, Any]]:
            here, elsewhere = await self._parted(vdisks)
            if not elsewhere:
                return await scan(here, progress)
            parts = _Parts(progress)
            findings: list[dict[str, Any]] = []

            async def ask(node: str, asked: list[VdiskId]) -> None:
                note = parts.begin()
                for start in range(0, len(asked), IDS_AT_ONCE):
                    piece = asked[start : start + IDS_AT_ONCE]
                    try:
                        findings.extend(await self.run_on(node, name, {"vdisks": piece}, note))
                    except VdiskfsError as exc:
                        said = f"the owner {node} did not look: {exc}"
                        findings.extend({"vdisk": vdisk, "problem": said} for vdisk in piece)

            async with trio.open_nursery() as nursery:
                for node, asked in elsewhere.items():
                    nursery.start_soon(ask, node, asked)
                findings += await scan(here, parts.begin())
            return findings

        return everywhere

    def scan_here(self, scan: Scan) -> Verb:
        """The part of this node."""

        async def here(arguments: dict[str, Any], progress: Progress) -> object:
            return await scan(_vdisks_in(arguments), progress)

        return here

    def usage(self, usage: Usage) -> Usage:
        """The same, asked where the vdisk's newest rows are."""

        async def everywhere(vdisk: VdiskId) -> Mapping[int, tuple[int, int]]:
            _, elsewhere = await self._parted([vdisk])
            if not elsewhere:
                return await usage(vdisk)
            (node,) = elsewhere
            found = await self.run_on(node, USAGE, {"vdisks": [vdisk]}, lambda news: None)
            return {int(version): (alone, shared) for version, alone, shared in found}

        return everywhere

    def usage_here(self, usage: Usage) -> Verb:
        """The part of this node."""

        async def here(arguments: dict[str, Any], _: Progress) -> object:
            (vdisk,) = _vdisks_in(arguments)
            return [(version, *counts) for version, counts in (await usage(vdisk)).items()]

        return here

    def pictures(self, verb: Verb) -> Verb:
        """The pictures of each vdisk, from the node that has its newest rows."""

        async def everywhere(arguments: dict[str, Any], progress: Progress) -> object:
            here, elsewhere = await self._parted(_vdisks_in(arguments))
            parts, found = _Parts(progress), {}
            for node, vdisks in elsewhere.items():
                try:
                    answer = await self.run_on(node, PICTURES, {**arguments, "vdisks": vdisks}, parts.begin())
                except VdiskfsError:
                    continue  # as one that cannot be read
                found.update(answer["pictures"])
            if here:
                mine: Any = await verb({**arguments, "vdisks": here}, parts.begin())
                found.update(mine["pictures"])
            return {"pictures": found}

        return everywhere

    def collector(self, collector: AskedCollector) -> AskedCollector:
        """Collects on all nodes."""
        return _CollectorEverywhere(self, collector)

    def collect_here(self, collector: AskedCollector, share: Callable[[], float]) -> Verb:
        """The part of this node."""

        async def here(arguments: dict[str, Any], progress: Progress) -> object:
            wanted = None if arguments.get("vdisks") is None else self.mine(_vdisks_in(arguments))
            dry_run = flag_in(arguments, "dry_run")
            return await collector.collect(progress, dry_run=dry_run, vdisks=wanted, share=share)

        return here

    def mine(self, vdisks: Iterable[VdiskId]) -> list[VdiskId]:
        """Those that this node owns, or nobody yet."""
        return [vdisk for vdisk in vdisks if self._owners.is_mine(vdisk)]


class _CollectorEverywhere:
    """Every node collects what it owns; this one also what the owners have left behind who are gone."""

    def __init__(self, everywhere: VerbsEverywhere, collector: AskedCollector) -> None:
        self._everywhere, self._collector = everywhere, collector

    async def collect(
        self, progress: Progress, *, dry_run: bool, vdisks: Sequence[int] | None, share: Callable[[], float]
    ) -> dict[str, int]:
        """As ``Collector.collect``, whose own vdisks ``None`` stands for."""
        sums: Counter[str] = Counter()
        parts, nodes = _Parts(progress), self._everywhere.nodes.others()

        async def ask(node: str) -> None:
            asked = {"vdisks": None if vdisks is None else list(vdisks), "dry_run": dry_run}
            try:
                sums.update(await self._everywhere.run_on(node, COLLECT, asked, parts.begin()))
            except VdiskfsError:
                sums["failed"] += 1

        mine = None if vdisks is None else self._everywhere.mine(VdiskId(vdisk) for vdisk in vdisks)
        async with trio.open_nursery() as nursery:
            for node in nodes:
                nursery.start_soon(ask, node)
            here = await self._collector.collect(
                parts.begin() if nodes else progress, dry_run=dry_run, vdisks=mine, share=share
            )
            sums.update(here)
        return dict(sums)


class _Parts:
    """Progress of several nodes, told as one."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._news: list[Mapping[str, Any]] = []

    def begin(self) -> Progress:
        number = len(self._news)
        self._news.append({})

        def note(news: Mapping[str, object]) -> None:
            self._news[number] = news
            sums: Counter[str] = Counter()
            for part in self._news:
                sums.update({key: value for key, value in part.items() if isinstance(value, int)})
            self._progress(dict(sums))

        return note


def _vdisks_in(arguments: Mapping[str, Any]) -> list[VdiskId]:
    vdisks = arguments.get("vdisks")
    if not isinstance(vdisks, list) or not all(type(vdisk) is int for vdisk in vdisks):
        raise InvalidRequest("vdisks is no list of numbers")
    if not vdisks:
        raise NotFound("no vdisk is named")
    return [VdiskId(vdisk) for vdisk in vdisks]
