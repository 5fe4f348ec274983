"""How one node's verbs reach the others: owners, forwarding and jobs put together around the node's company."""

import secrets
from collections.abc import Mapping, Sequence

from fusefs.cluster_status import ClusterStatus, Loaded, Sources
from fusefs.control import Verb
from fusefs.namespace_store import NamespaceStore
from fusefs.resolution import PathResolver
from fusefs.verb_forwarding import VerbForwarding
from fusefs.verb_jobs import RemoteVerbs, VerbJobs
from fusefs.verbs_everywhere import VerbsEverywhere
from metadata.errors import NotOwner
from metadata.ids import VdiskId
from replication.company import Company
from replication.vdisks import Vdisks


def _new_id() -> str:
    return secrets.token_hex(8)


class CompanyVerbs:
    """One to a node that has others; ``jobs`` exists once the verbs do."""

    def __init__(self, company: Company, vdisks: Vdisks, store: NamespaceStore, paths: PathResolver) -> None:
        self._company, self._vdisks = company, vdisks
        remote = RemoteVerbs(company.links, _new_id)
        self.forwarding = VerbForwarding(store, paths, owners=self, acquire=self.acquire, run_on=remote.run)
        self.everywhere = VerbsEverywhere(self, self, acquire=self.acquire, run_on=remote.run)

    def jobs(self, verbs: Mapping[str, Verb], parts: Mapping[str, Verb]) -> VerbJobs:
        """Serves verbs, and this node's parts of those that all nodes do, to the others; once."""
        return VerbJobs(self._company.links, {**self.forwarding.served(verbs), **parts})

    def status(self, paths: PathResolver) -> ClusterStatus:
        """What tells of all nodes."""
        company, vdisks = self._company, self._vdisks

        def loaded() -> list[Loaded]:
            return [
                Loaded(
                    head.vdisk,
                    head.log.version,
                    vdisks.handle_count(head.vdisk),
                    head.log.pending.data_bytes(),
                )
                for head in vdisks.heads.values()
                if vdisks.is_mine(head.vdisk)
            ]

        sources = Sources(
            owners=lambda: company.mirror.owners,
            loaded=loaded,
            peers=company.publisher.statistics,
            followed=company.follower.lag,
            counters=dict,
            path_of=paths.path_of,
        )
        return ClusterStatus(company.links, company.membership, sources)

    def is_mine(self, vdisk: int) -> bool:
        """Whether this node owns a vdisk, or nobody yet."""
        return self._vdisks.is_mine(vdisk)

    def is_owned_here(self, vdisk: int) -> bool:
        """Whether the owner record names this node."""
        return self._company.mirror.is_owned_here(vdisk)

    def live_owner(self, vdisk: int) -> str | None:
        """The other live node that owns it."""
        owner = self._company.mirror.owners.get(vdisk)
        if (
            owner is None
            or owner.node == self._company.node
            or not self._company.membership.is_live(owner.node)
        ):
            return None
        return owner.node

    def others(self) -> Sequence[str]:
        """The other live nodes."""
        return sorted(set(self._company.membership.members()) - {self._company.node})

    async def acquire(self, vdisk: VdiskId) -> str | None:
        """Makes this node the owner; or says who is, and has it open for writing.

        Raises:
            NotOwner: neither can be.
        """
        owner = self.live_owner(vdisk)
        if owner is None:
            raise NotOwner(f"the vdisk's owner is gone, try again vdisk={vdisk}")
        return owner
