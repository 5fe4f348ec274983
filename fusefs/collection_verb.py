"""What the command line asks of collection: the daemon's side of gc."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from fusefs.control import Progress, Verb
from fusefs.resolution import PathResolver, flag_in, path_in
from metadata.catalog import ROOT_ID
from metadata.namespace import Kind, Namespace

SHARE_BESIDE_GUESTS = 0.1
"""Of the time that the work takes while files are open; all of it otherwise."""


def share_of_time(handles: Mapping[int, Any]) -> float:
    """What collection may take beside these open files."""
    return SHARE_BESIDE_GUESTS if handles else 1.0


class AskedCollector(Protocol):
    """What is asked (``replication.collector``, and a double in the tests)."""

    async def collect(
        self, progress: Progress, *, dry_run: bool, vdisks: Sequence[int] | None, share: Callable[[], float]
    ) -> dict[str, int]: ...


class CollectionVerb:
    """The verb of one node; lives as long as its control server.

    Args:
        namespace: the names.
        paths: of them.
        collector: does the work.
        handles: open files, by their numbers.
    """

    def __init__(
        self,
        namespace: Namespace,
        paths: PathResolver,
        *,
        collector: AskedCollector,
        handles: Mapping[int, Any],
    ) -> None:
        self._namespace, self._paths = namespace, paths
        self._collector, self._handles = collector, handles

    def verbs(self) -> dict[str, Verb]:
        """The verb, for a control server."""
        return {"gc": self._collect}

    async def _collect(self, arguments: dict[str, Any], progress: Progress) -> object:
        """All vdisks, deleted ones that are still needed too, or those at and below ``path``."""
        inode, dry_run = self._paths.resolve(path_in(arguments)), flag_in(arguments, "dry_run")
        vdisks = None if inode == ROOT_ID else sorted(self._vdisks_below(inode))
        share = functools.partial(share_of_time, self._handles)
        sums = await self._collector.collect(progress, dry_run=dry_run, vdisks=vdisks, share=share)
        return {"path": self._paths.path_of(inode), "dry_run": dry_run, **sums}

    def _vdisks_below(self, top: int) -> Iterator[int]:
        ahead = [top]
        while ahead:
            inode = ahead.pop()
            kind = self._namespace.inode(inode).kind
            if kind is Kind.FILE:
                yield inode
            elif kind is Kind.DIRECTORY:
                ahead.extend(child for _, child in self._namespace.children(inode))
