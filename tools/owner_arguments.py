"""The arguments of the verbs about ownership."""

from tools.snapshot_arguments import AddVerb

_OWNER = "tools.commands_owner"


def add_owner_verbs(verb: AddVerb) -> None:
    """What follows ``vdiskfs owner``."""
    added = verb("show", f"{_OWNER}:show", "say which node may write a vdisk", json=True)
    added.add_argument("path", metavar="PATH")
    added = verb("take", f"{_OWNER}:take", "make the node of this mount the owner of a vdisk", json=True)
    added.add_argument("path", metavar="PATH")
    added.add_argument(
        "--force",
        action="store_true",
        help="also if it is being written: its writers go on through this node",
    )
