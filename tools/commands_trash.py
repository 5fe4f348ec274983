"""The verbs about the trash: ls, restore, purge."""

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

from metadata.errors import InvalidRequest
from tools.asking import ask, check_same_mount
from tools.durations import format_duration
from tools.paths import Located, locate, locate_mount
from tools.render import format_time, print_json, print_table, printable
from tools.sizes import format_size


def list_trash(arguments: argparse.Namespace) -> int:
    """List deleted vdisks that can be restored, oldest first."""
    located = locate_mount(arguments.path)
    answer = ask(located, "trash_ls", {})
    if arguments.json:
        print_json(answer)
        return 0
    if answer["entries"]:
        columns = ("PATH", "ID", "SIZE", "ALLOCATED", "SNAPSHOTS", "DELETED", "PURGED IN")
        print_table(columns, [_row(located, entry) for entry in answer["entries"]])
    elif not answer["keep_s"]:
        sys.stdout.write("this pool has no trash: it was formatted with --trash 0\n")
    return 0


def _row(located: Located, entry: Mapping[str, Any]) -> list[str]:
    sizes = [format_size(entry[key]) if entry[key] is not None else "?" for key in ("size", "own_bytes")]
    left_s = max(
        0, -(-(entry["until_ns"] - time.time_ns()) // (60 * 10**9)) * 60
    )  # in whole minutes, upwards
    numbers = [str(entry["id"]), *sizes, str(entry["snapshots"])]
    return [located.shown(entry["path"]), *numbers, format_time(entry["deleted_ns"]), format_duration(left_s)]


def restore(arguments: argparse.Namespace) -> int:
    """Bring a deleted vdisk back, to where it was or to another path."""
    located = _meant(arguments)
    asked: dict[str, object] = {"id": arguments.id}
    if arguments.to is not None:
        target = locate(arguments.to)
        check_same_mount(located, target)
        asked["to"] = target.inner
    answer = ask(located, "trash_restore", asked)
    if arguments.json:
        print_json(answer)
    else:
        sys.stdout.write(printable(f"restored {located.shown(answer['path'])}") + "\n")
    return 0


def purge(arguments: argparse.Namespace) -> int:
    """Delete one vdisk in the trash, or all, for good."""
    if arguments.all and arguments.id is not None:
        raise InvalidRequest("--all and --id exclude each other")
    located = locate_mount(arguments.path) if arguments.all else _meant(arguments)
    if arguments.all and located.inner:
        raise InvalidRequest(f"--all purges the whole trash: give the mountpoint, {located.entry.mountpoint}")
    answer = ask(located, "trash_purge", {"id": arguments.id, "all": arguments.all})
    if arguments.json:
        print_json(answer)
    return 0


def _meant(arguments: argparse.Namespace) -> Located:
    if arguments.path is None and arguments.id is None:
        raise InvalidRequest("which one? give the path it had, or --id as 'vdiskfs trash ls' shows it")
    return locate_mount(arguments.path)
