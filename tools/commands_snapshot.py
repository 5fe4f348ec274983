"""The verbs about snapshots and clones: snap create, ls, rm, rollback, rename, protect, unprotect; clone, flatten."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from metadata.errors import InvalidRequest
from tools.asking import ask, check_same_mount
from tools.paths import Located, locate, locate_snapshot
from tools.render import ProgressLine, format_time, print_json, print_table, printable
from tools.sizes import format_size


def create(arguments: argparse.Namespace) -> int:
    """Make snapshots, of several vdisks at one moment; durable when it returns."""
    if arguments.directory is not None:
        located = locate(arguments.directory)
        if len(arguments.names) != 1 or "/" in arguments.names[0]:
            raise InvalidRequest("with --all DIR goes one name and no path: snap create --all DIR SNAP")
        name = arguments.names[0].removeprefix("@")
        answer = ask(located, "snap_create", {"directory": located.inner, "name": name})
    else:
        named = _named(arguments.names)
        located = named[0][0]
        asked = {"paths": [each.inner for each, _ in named], "names": [name for _, name in named]}
        answer = ask(located, "snap_create", asked)
    return _done(arguments, answer)


def list_snapshots(arguments: argparse.Namespace) -> int:
    """List the snapshots of a vdisk, or of all below a directory."""
    located = locate(arguments.path)
    answer = ask(located, "snap_ls", {})
    if arguments.json:
        print_json(answer)
    elif answer["snapshots"]:
        columns = ("SNAPSHOT", "VERSION", "SIZE", "ALLOCATED", "CLONES", "OPEN", "PROTECTED", "CREATED")
        print_table(columns, [_row(located, snapshot) for snapshot in answer["snapshots"]])
    return 0


def _row(located: Located, snapshot: Mapping[str, Any]) -> list[str]:
    return [
        f"{located.shown(snapshot['path'])}@{snapshot['name']}",
        str(snapshot["version"]),
        format_size(snapshot["size"]),
        format_size(snapshot["own_bytes"]),
        str(snapshot["clones"]),
        str(snapshot["open_handles"]),
        "yes" if snapshot["protected"] else "-",
        format_time(snapshot["created_ns"]),
    ]


def remove(arguments: argparse.Namespace) -> int:
    """Delete snapshots; none, if one of them cannot be."""
    named = list(
        {(located.inner, name): (located, name) for located, name in _named(arguments.names)}.values()
    )
    for located, name in named:
        facts = ask(located, "snap_info", {"name": name})
        if facts["protected"]:
            raise InvalidRequest(f"{located.path}@{name} is protected: 'vdiskfs snap unprotect' it first")
    for located, name in named:
        ask(located, "snap_rm", {"name": name})
    return _done(arguments, {"removed": [f"{located.path}@{name}" for located, name in named]})


def rollback(arguments: argparse.Namespace) -> int:
    """Make a snapshot's content the newest; what was there is kept as a snapshot."""
    ((located, name),) = _named([arguments.name])
    answer = ask(located, "snap_rollback", {"name": name})
    kept = f"{located.shown(answer['path'])}@{answer['kept']['name']}"
    return _done(arguments, answer, f"rolled back; what was there before is kept as {kept}")


def rename(arguments: argparse.Namespace) -> int:
    """Give a snapshot another name."""
    ((located, name),) = _named([arguments.name])
    new_path, at, new_name = arguments.new_name.rpartition("@")
    if at and new_path and "/" not in new_path and not os.path.lexists(new_path):
        raise InvalidRequest(f"a snapshot's name cannot hold '@' name={arguments.new_name!r}")
    if at and new_path and locate(new_path).inner != located.inner:
        raise InvalidRequest(f"a snapshot stays with its vdisk: give only the new name, {new_name}")
    return _done(arguments, ask(located, "snap_rename", {"name": name, "new_name": new_name}))


def protect(arguments: argparse.Namespace) -> int:
    """Refuse to delete snapshots."""
    return _protect(arguments, on=True)


def unprotect(arguments: argparse.Namespace) -> int:
    """Let snapshots be deleted again."""
    return _protect(arguments, on=False)


def _protect(arguments: argparse.Namespace, *, on: bool) -> int:
    named = _named(arguments.names)
    answers = [ask(located, "snap_protect", {"name": name, "protected": on}) for located, name in named]
    return _done(arguments, {"snapshots": answers})


def clone(arguments: argparse.Namespace) -> int:
    """Make a vdisk that begins as a snapshot, or as what a vdisk is now; durable when it returns."""
    located, name = locate_snapshot(arguments.path)
    target = locate(arguments.new_path)
    check_same_mount(located, target)
    return _done(arguments, ask(located, "clone", {"name": name, "new_path": target.inner}))


def flatten(arguments: argparse.Namespace) -> int:
    """Copy into a clone what it reads from its parent, and let go of the parent."""
    located = locate(arguments.path)
    with ProgressLine() as line:
        answer = ask(located, "flatten", {}, progress=lambda news: line.show(_how_far(news)))
    return _done(arguments, answer)


def _how_far(news: Mapping[str, Any]) -> str:
    share = news["done"] * 100 // max(1, news["total"])
    return f"flatten: {format_size(news['copied_bytes'])} copied, {share} %"


def _named(names: Sequence[str]) -> list[tuple[Located, str]]:
    """Snapshots by their whole names, all of one mount."""
    found: list[tuple[Located, str]] = []
    for given in names:
        located, name = locate_snapshot(given)
        if name is None:
            hint = (
                ", without a '/' behind the '@'" if "/" in given.rpartition("@")[2] and "@" in given else ""
            )
            raise InvalidRequest(f"{given} names no snapshot: write PATH@SNAP{hint}")
        if "@" in os.path.basename(located.path) and not os.path.lexists(located.path):
            raise InvalidRequest(
                f"there is no vdisk {located.path}: the last '@' divides, a snapshot's name cannot hold one"
            )
        check_same_mount(found[0][0] if found else located, located)
        found.append((located, name))
    return found


def _done(arguments: argparse.Namespace, answer: Mapping[str, object], said: str = "") -> int:
    if arguments.json:
        print_json(answer)
    elif said:
        sys.stdout.write(printable(said) + "\n")
    return 0
