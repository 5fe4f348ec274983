"""The arguments of the verbs for snapshots, clones and the trash."""

import argparse
from collections.abc import Callable

AddVerb = Callable[..., argparse.ArgumentParser]
"""Adds a verb: its name, its function as MODULE:FUNCTION, a summary, and ``json`` if it has --json."""

_SNAP, _TRASH = "tools.commands_snapshot", "tools.commands_trash"


def add_snap_verbs(verb: AddVerb) -> None:
    """What follows ``vdiskfs snap``."""
    added = verb(
        "create", f"{_SNAP}:create", "keep what vdisks hold now under a name, all at one moment", json=True
    )
    added.add_argument("names", metavar="PATH@SNAP", nargs="+", help="with --all only the snapshots' name")
    added.add_argument("--all", dest="directory", metavar="DIR", help="of every vdisk below a directory")
    added = verb("ls", f"{_SNAP}:list_snapshots", "list snapshots", json=True)
    added.add_argument("path", metavar="PATH", nargs="?", default=".", help="a vdisk, or a directory")
    added = verb(
        "rm", f"{_SNAP}:remove", "delete snapshots; clones and open files keep what they use", json=True
    )
    added.add_argument("names", metavar="PATH@SNAP", nargs="+")
    added = verb(
        "rollback", f"{_SNAP}:rollback", "make a vdisk what it was; what it is now is kept", json=True
    )
    added.add_argument("name", metavar="PATH@SNAP")
    added = verb("rename", f"{_SNAP}:rename", "give a snapshot another name", json=True)
    added.add_argument("name", metavar="PATH@SNAP")
    added.add_argument("new_name", metavar="NEWSNAP")
    added = verb("protect", f"{_SNAP}:protect", "refuse to delete snapshots", json=True)
    added.add_argument("names", metavar="PATH@SNAP", nargs="+")
    added = verb("unprotect", f"{_SNAP}:unprotect", "let snapshots be deleted again", json=True)
    added.add_argument("names", metavar="PATH@SNAP", nargs="+")


def add_clone_verbs(verb: AddVerb) -> None:
    """What makes clones, and ends their being clones."""
    added = verb(
        "clone", f"{_SNAP}:clone", "make a vdisk that begins as another one; no data is copied", json=True
    )
    added.add_argument("path", metavar="PATH[@SNAP]")
    added.add_argument("new_path", metavar="NEWPATH")
    added = verb("flatten", f"{_SNAP}:flatten", "copy into a clone what it has from its parent", json=True)
    added.add_argument("path", metavar="PATH")


def add_trash_verbs(verb: AddVerb) -> None:
    """What follows ``vdiskfs trash``."""
    added = verb("ls", f"{_TRASH}:list_trash", "list deleted vdisks that can be restored", json=True)
    added.add_argument("path", metavar="MOUNTPOINT", nargs="?")
    added = verb("restore", f"{_TRASH}:restore", "bring a deleted vdisk back", json=True)
    added.add_argument(
        "path", metavar="PATH", nargs="?", help="where it was; of several the one deleted last"
    )
    added.add_argument("--id", type=int, metavar="ID", help="which one, as 'trash ls' shows it")
    added.add_argument("--to", metavar="NEWPATH", help="where it shall be (default: where it was)")
    added = verb("purge", f"{_TRASH}:purge", "delete from the trash for good", json=True)
    added.add_argument("path", metavar="PATH", nargs="?", help="where it was; with --all the mountpoint")
    added.add_argument("--id", type=int, metavar="ID", help="which one, as 'trash ls' shows it")
    added.add_argument("--all", action="store_true", help="everything in the trash")
