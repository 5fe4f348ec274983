"""What the command line asks about differences and pictures: the daemon's side of diff, export --from, tree --html."""

import base64
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fusefs.control import Progress, Verb
from fusefs.resolution import PathResolver, flag_in, number_in, path_in, text_in
from metadata.errors import InvalidRequest, VdiskfsError
from metadata.ids import VdiskId
from replication.comparing import Comparison, Named
from replication.pictures import Picture

RANGES_PAGE = 50_000
"""Ranges in one answer, about: while one is shown the next is found."""
CELLS_MAX = 1 << 14
PICTURES_MAX = 1000
"""Vdisks in one question."""

Compare = Callable[..., Awaitable[Comparison]]
"""As ``replication.comparing.compare``, without the vdisks."""
Picturing = Callable[..., Awaitable[Picture]]
"""As ``replication.pictures.picture``, without the vdisks."""
WriteBack = Callable[[VdiskId, int], Awaitable[object]]


class BufferedVdisks(Protocol):
    """What is asked of the vdisks beside that."""

    def has_buffered_writer(self, vdisk: VdiskId) -> bool: ...


class DifferenceVerbs:
    """The verbs of one node; lives as long as its control server.

    Args:
        write_back: asks the kernel for what a buffered writer has left in its cache.
    """

    def __init__(
        self,
        vdisks: BufferedVdisks,
        paths: PathResolver,
        *,
        compare: Compare,
        picture: Picturing,
        write_back: WriteBack,
    ) -> None:
        self._vdisks, self._paths = vdisks, paths
        self._compare, self._picture, self._write_back = compare, picture, write_back

    def verbs(self) -> dict[str, Verb]:
        """The verbs, for a control server."""
        return {"diff": self._diff, "pictures": self._pictures}

    async def _diff(self, arguments: dict[str, Any], _: Progress) -> object:
        """Changed ranges of ``path`` (at its snapshot ``name``) since ``base_path`` (at ``base``), or all its data.

        ``words`` are those of metadata/differences.py, little-endian and in base64: there may be a million of them.
        ``next_offset`` is set if the answer stops before the end.
        """
        newer, older = self._named(arguments, "path", "name"), None
        if not flag_in(arguments, "whole"):
            older = self._named(arguments, "base_path" if "base_path" in arguments else "path", "base")
        for side in (newer, older):
            if side is not None and side.name is None and self._vdisks.has_buffered_writer(side.vdisk):
                await self._write_back(side.vdisk, 0)
        offset = number_in(arguments, "offset", 0)
        found = await self._compare(older, newer, offset=offset, count=RANGES_PAGE)
        return {
            "path": self._paths.path_of(newer.vdisk),
            "vdisk": newer.vdisk,
            "name": newer.name,
            "version": found.version,
            "size": found.size,
            "base_vdisk": older.vdisk if older else None,
            "base_version": found.older_version,
            "base_size": found.older_size,
            "words": base64.b64encode(found.words).decode(),
            "next_offset": found.next_offset,
        }

    def _named(self, arguments: dict[str, Any], path: str, name: str) -> Named:
        vdisk = self._paths.vdisk(path_in(arguments, path))
        return Named(vdisk, None if arguments.get(name) is None else text_in(arguments, name))

    async def _pictures(self, arguments: dict[str, Any], progress: Progress) -> object:
        """The block maps of ``vdisks``, by id; one that cannot be read is left out."""
        wanted, cells = arguments.get("vdisks"), number_in(arguments, "cells", CELLS_MAX)
        if not isinstance(wanted, list) or not all(type(vdisk) is int for vdisk in wanted):
            raise InvalidRequest("vdisks is no list of numbers")
        if not 0 < cells <= CELLS_MAX or len(wanted) > PICTURES_MAX:
            raise InvalidRequest(f"at most {CELLS_MAX} cells of {PICTURES_MAX} vdisks at once")
        pictures = {}
        for number, vdisk in enumerate(wanted):
            try:
                found = await self._picture(VdiskId(vdisk), cells_max=cells)
            except VdiskfsError:
                continue  # gone meanwhile, or damaged: info says how
            packed = base64.b64encode(found.cells).decode()
            pictures[str(vdisk)] = {"cell_bytes": found.cell_bytes, "cells": packed}
            progress({"done": number + 1, "total": len(wanted)})
        return {"pictures": pictures}
