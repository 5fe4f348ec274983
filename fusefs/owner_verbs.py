"""What the command line asks of ownership: the daemon's side of owner show and owner take."""

from typing import Any

from fusefs.control import Progress, Verb
from fusefs.resolution import PathResolver, flag_in, path_in
from metadata.errors import Busy
from replication.company import Company
from replication.ownership import Owner, find_owner


class OwnerVerbs:
    """The verbs of one node that has others; live as long as its control server.

    Args:
        company: the other nodes.
        paths: of vdisks.
    """

    def __init__(self, company: Company, paths: PathResolver) -> None:
        self._company, self._paths = company, paths

    def verbs(self) -> dict[str, Verb]:
        """All of them, for a control server."""
        return {"owner_show": self._show, "owner_take": self._take}

    async def _show(self, arguments: dict[str, Any], _progress: Progress) -> object:
        """Who may commit to the vdisk at ``path``."""
        vdisk = self._paths.vdisk(path_in(arguments))
        return self._shown(vdisk, await find_owner(self._company.holdings.workspace.catalog, vdisk))

    async def _take(self, arguments: dict[str, Any], _progress: Progress) -> object:
        """Makes this node the owner; with ``force`` also if the owner has it open for writing."""
        vdisk, force = self._paths.vdisk(path_in(arguments)), flag_in(arguments, "force")
        owner = await self._company.transfers.acquire(vdisk, force=force)
        if owner.node != self._company.node:
            raise Busy(
                f"the vdisk is being written on its owner: close it there, or use --force, and it is written from there "
                f"through this node node={owner.node}"
            )
        return self._shown(vdisk, owner)

    def _shown(self, vdisk: int, owner: Owner) -> dict[str, object]:
        members = self._company.membership
        return {
            "path": self._paths.path_of(vdisk),
            "vdisk": vdisk,
            "node": owner.node or None,
            "epoch": owner.epoch,
            "here": owner.node == self._company.node,
            "live": bool(owner.node) and members.is_live(owner.node),
        }
