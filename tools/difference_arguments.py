"""The arguments of the verbs that show what depends on what, and what changed: tree, diff."""

from tools.snapshot_arguments import AddVerb


def add_difference_verbs(verb: AddVerb) -> None:
    """diff, tree."""
    added = verb("diff", "tools.commands_difference:diff", "show what changed since a snapshot", json=True)
    added.add_argument("base", metavar="PATH@SNAP", help="the older one")
    added.add_argument(
        "path", metavar="PATH[@SNAP]", nargs="?", help="the newer one (default: what the vdisk holds now)"
    )

    added = verb("tree", "tools.commands_tree:tree", "show vdisks, snapshots and clones as a tree")
    added.add_argument("path", metavar="PATH", nargs="?", help="only what belongs to it")
    added.add_argument(
        "--exact", action="store_true", help="count exclusive and shared bytes everywhere: slow"
    )
    form = added.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="machine-readable, versioned")
    form.add_argument("--dot", action="store_true", help="a graph in Graphviz's language")
    form.add_argument("--html", metavar="FILE", help="a page with block maps, for a browser")
