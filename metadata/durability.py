"""When a flush of a vdisk in a remote pool returns: an extended attribute of the vdisk, or of the root for all others. Pure.

pool    the pool has it (what there is without the attribute)
node    the node's own disk has it; the pool follows
"""

from metadata.catalog import ROOT_ID
from metadata.errors import NotFound
from metadata.namespace import Namespace

ATTRIBUTE = b"user.vdiskfs.durability"
POOL, NODE = b"pool", b"node"


def flushes_here(namespace: Namespace, vdisk: int) -> bool:
    """Whether a flush need not wait for the pool. Any thread."""
    for inode in (vdisk, ROOT_ID):
        try:
            said = dict(namespace.inode(inode).xattrs).get(ATTRIBUTE)
        except NotFound:
            continue
        if said in (POOL, NODE):
            return said == NODE
    return False
