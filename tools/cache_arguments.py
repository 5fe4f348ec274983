"""The arguments of the verbs about the cache of a remote pool."""

from tools.snapshot_arguments import AddVerb

_CACHE = "tools.commands_cache"


def add_cache_verbs(verb: AddVerb) -> None:
    """What follows ``vdiskfs cache``."""
    added = verb("stats", f"{_CACHE}:stats", "show what this node keeps of a remote pool", json=True)
    added.add_argument("path", metavar="PATH", nargs="?", help="below the mount; default: the only one")
    added = verb(
        "warm", f"{_CACHE}:warm", "fetch what a vdisk or a snapshot reads, before anybody does", json=True
    )
    added.add_argument("path", metavar="PATH[@SNAP]")
