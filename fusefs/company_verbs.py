"""How one node's verbs reach the others: owners, forwarding and jobs put together around the node's company."""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from fusefs.cluster_status import ClusterStatus, Loaded, Sources
from fusefs.control import Verb
from fusefs.namespace_store import NamespaceStore
from fusefs.owner_verbs import OwnerVerbs
from fusefs.resolution import PathResolver
from fusefs.verb_forwarding import VerbForwarding
from fusefs.verb_jobs import RemoteVerbs, VerbJobs
from fusefs.verbs_everywhere import VerbsEverywhere
from metadata.errors import Unavailable
from metadata.ids import VdiskId
from replication.company import Company
from replication.family import Family
from replication.vdisks import Vdisks


def _new_id() -> str:
    return secrets.token_hex(8)


async def acquire(company: Company, vdisk: VdiskId) -> str | None:
    """Makes this node a vdisk's owner; or says which node is, and has it open for writing.

    Raises:
        NotFound: no such vdisk.
        Unavailable: the owner is there and does not answer.
    """
    owner = await company.transfers.acquire(vdisk)
    return None if owner.node == company.node else owner.node


async def own(company: Company, vdisk: VdiskId) -> None:
    """Makes this node a vdisk's owner.

    Raises:
        NotFound: no such vdisk.
        Unavailable: the owner does not give it away now.
    """
    node = await acquire(company, vdisk)
    if node is not None:
        raise Unavailable(f"the vdisk is being written on another node vdisk={vdisk} node={node}")


def abandoned(company: Company, family: Family) -> list[int]:
    """Deleted vdisks that nobody reads any more, and whose owners are gone."""
    live, owners = company.membership.members(), company.mirror.owners
    return [
        vdisk
        for vdisk in family.nameless()
        if not family.is_needed(vdisk) and vdisk in owners and owners[vdisk].node not in live
    ]


class CompanyVerbs:
    """One to a node that has others; ``jobs`` exists once the verbs do."""

    def __init__(self, company: Company, vdisks: Vdisks, store: NamespaceStore, paths: PathResolver) -> None:
        self._company, self._vdisks = company, vdisks
        remote = RemoteVerbs(company.links, _new_id)
        self.forwarding = VerbForwarding(store, paths, owners=self, acquire=self.acquire, run_on=remote.run)
        self.owners = OwnerVerbs(company, paths)
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

        def counters() -> dict[str, int]:
            transfers, served = company.transfers, company.forwarding.served
            return {**asdict(transfers.counts), "forwarded": transfers.forwarded, "served": served}

        sources = Sources(
            owners=lambda: company.mirror.owners,
            loaded=loaded,
            peers=company.publisher.statistics,
            followed=company.follower.lag,
            counters=counters,
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
            Unavailable: the owner is there and does not answer.
        """
        return await acquire(self._company, vdisk)
