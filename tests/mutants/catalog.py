"""All mutants, by name."""

from tests.mutants import in_cluster, in_fusefs, in_metadata, in_object_pools, in_replication
from tests.mutants.planting import Mutant

MUTANTS: tuple[Mutant, ...] = (
    *in_metadata.MUTANTS,
    *in_replication.MUTANTS,
    *in_cluster.MUTANTS,
    *in_object_pools.MUTANTS,
    *in_fusefs.MUTANTS,
)
