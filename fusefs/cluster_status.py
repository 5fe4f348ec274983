"""What ``status`` and ``top`` show of all nodes: who is live, who owns what, how far behind the peers are.

Each node tells of itself (``part``); the one that was asked asks the others, briefly, and puts it together. A vdisk's newest
version is its owner's word; a peer's *lag* is how many versions it has not acknowledged.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import trio

from metadata.errors import VdiskfsError
from replication.cluster import Answer, Links, Membership
from replication.ownership import Owner

VERB = "status_here"
ASK_S = 1.5
"""A node that takes longer is shown as not answering."""
VDISKS_MAX = 500
"""Shown at most: those with open files, of one node; the ones with the most of them first."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """One vdisk that this node owns and has at hand."""

    vdisk: int
    version: int
    open_handles: int
    dirty_bytes: int


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the facts come from; each is asked when somebody wants to know."""

    owners: Callable[[], Mapping[int, Owner]]
    loaded: Callable[[], list[Loaded]]
    peers: Callable[[], Mapping[int, Mapping[str, int]]]
    """By vdisk that this node owns, by node: the version it has acknowledged."""
    followed: Callable[[], Mapping[int, int]]
    """By vdisk of another node: the version that was applied here."""
    counters: Callable[[], Mapping[str, int]]
    """Since the start: takeovers, requests forwarded, ..."""
    path_of: Callable[[int], str | None]


class ClusterStatus:
    """One to a node that has others."""

    def __init__(self, links: Links, membership: Membership, sources: Sources) -> None:
        self._links, self._membership, self._sources = links, membership, sources
        links.serve(VERB, self._answer)

    def part(self) -> dict[str, Any]:
        """What this node tells of itself."""
        sources = self._sources
        peers, loaded = sources.peers(), sources.loaded()
        loaded.sort(key=lambda one: (-one.open_handles, one.vdisk))
        return {
            "counters": dict(sources.counters()),
            "followed": len(sources.followed()),
            "loaded": len(loaded),
            "vdisks": [
                {
                    "vdisk": one.vdisk,
                    "path": sources.path_of(one.vdisk),
                    "version": one.version,
                    "open_handles": one.open_handles,
                    "dirty_bytes": one.dirty_bytes,
                    "peers": [
                        {"node": node, "version": version, "lag": max(0, one.version - version)}
                        for node, version in sorted(peers.get(one.vdisk, {}).items())
                    ],
                }
                for one in loaded[:VDISKS_MAX]
            ],
        }

    async def whole(self) -> dict[str, Any]:
        """What all nodes tell: ``nodes``, and the ``vdisks`` that they have at hand."""
        here, members = self._membership.node, self._membership.members()
        owned = Counter(owner.node for owner in self._sources.owners().values())
        parts: dict[str, dict[str, Any]] = {here: self.part()}

        async def ask(node: str) -> None:
            try:
                parts[node], _ = await self._links.call(node, VERB, {}, deadline_s=ASK_S)  # type: ignore[assignment]
            except VdiskfsError as exc:
                _log.info("a node does not say how it is: %s node=%s", exc, node)

        async with trio.open_nursery() as nursery:
            for node in members:
                if node != here:
                    nursery.start_soon(ask, node)
        nodes = []
        for node in sorted({here, *members, *owned}):
            member, part = members.get(node), parts.get(node)
            state = "no session" if member is None else "live" if part is not None else "not answering"
            nodes.append(
                {
                    "node": node,
                    "here": node == here,
                    "session": state,
                    "address": f"{member.host}:{member.port}" if member else None,
                    "vdisks_owned": owned[node],
                    "vdisks_loaded": part["loaded"] if part else None,
                    "vdisks_followed": part["followed"] if part else None,
                    **(part["counters"] if part else {}),
                }
            )
        vdisks = [{"owner": node, **one} for node, part in sorted(parts.items()) for one in part["vdisks"]]
        return {"nodes": nodes, "vdisks": sorted(vdisks, key=lambda one: one["vdisk"])}

    async def _answer(self, _node: str, _named: Mapping[str, Any], _data: bytes) -> Answer:
        return self.part(), b""
