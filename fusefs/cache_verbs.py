"""What the command line asks about the node's cache of a remote pool: the daemon's side of cache stats, cache warm."""

from collections.abc import Awaitable, Callable
from typing import Any

from fusefs.control import Progress, Verb
from fusefs.resolution import PathResolver, path_in, text_in
from metadata.ids import VdiskId

Warm = Callable[[VdiskId, str | None, Progress], Awaitable[dict[str, int]]]
"""As ``replication.warming.warm``, without the vdisks."""


class CacheVerbs:
    """The verbs of one node, about its own cache; lives as long as its control server.

    Args:
        paths: of the names.
        facts: what there is to know of the cache; empty: there is none.
        warm: fills it.
    """

    def __init__(self, paths: PathResolver, *, facts: Callable[[], dict[str, object]], warm: Warm) -> None:
        self._paths, self._facts, self._warm_vdisk = paths, facts, warm

    def verbs(self) -> dict[str, Verb]:
        """The verbs, for a control server."""
        return {"cache_stats": self._stats, "cache_warm": self._warm}

    async def _stats(self, arguments: dict[str, Any], _: Progress) -> object:
        facts = self._facts()
        return {"has_cache": bool(facts), **facts}

    async def _warm(self, arguments: dict[str, Any], progress: Progress) -> object:
        """Of ``path`` at its snapshot ``name``, or as it is now."""
        vdisk = self._paths.vdisk(path_in(arguments))
        name = None if arguments.get("name") is None else text_in(arguments, "name")
        facts = {"path": self._paths.path_of(vdisk), "name": name, "has_cache": bool(self._facts())}
        return facts | (await self._warm_vdisk(vdisk, name, progress) if facts["has_cache"] else {})
