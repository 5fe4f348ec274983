"""The command ``vdiskfs``: arguments, dispatch, exit codes, one line for each error.

A verb's module is imported when the verb is run, so that ``vdiskfs mount`` starts as fast as it can.
Exit codes: 0 done, 1 failed, 2 wrong usage.
"""

import argparse
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from metadata.errors import InvalidRequest, VdiskfsError
from metadata.units import CACHE_BYTES_DEFAULT, NAME_BYTES_MAX, TRASH_S_DEFAULT
from tools.cache_arguments import add_cache_verbs
from tools.cluster_arguments import cluster_verbs
from tools.difference_arguments import add_difference_verbs
from tools.durations import parse_duration
from tools.owner_arguments import add_owner_verbs
from tools.sizes import parse_size
from tools.snapshot_arguments import AddVerb, add_clone_verbs, add_snap_verbs, add_trash_verbs

DONE, FAILED, WRONG_USAGE = 0, 1, 2
UMOUNT_TIMEOUT_S = 60.0
PATH_CHARACTERS_MAX = 200
"""Shown of a path in an error."""


class OneLineParser(argparse.ArgumentParser):
    """Says in one line what is wrong, and where help is."""

    def error(self, message: str) -> NoReturn:
        """Wrong usage: says so and exits with 2."""
        sys.stderr.write(f"vdiskfs: {message}: see '{self.prog} --help'\n")
        sys.exit(WRONG_USAGE)


def _size(text: str) -> int:
    try:
        return parse_size(text)
    except InvalidRequest as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem


def _node(text: str) -> str:
    from fusefs.state_directory import check_node

    try:
        return check_node(text)
    except InvalidRequest as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem


def _listen(text: str) -> str:
    from fusefs.settings import parse_listen

    try:
        parse_listen(text)
    except InvalidRequest as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem
    return text


def _options(text: str) -> list[str]:
    from fusefs.mounting import parse_options

    words = [word for word in text.split(",") if word]
    try:
        parse_options(tuple(words), uid=os.geteuid())
    except InvalidRequest as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem
    return words


def _duration(text: str) -> int:
    try:
        return parse_duration(text)
    except InvalidRequest as problem:
        raise argparse.ArgumentTypeError(str(problem)) from problem


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError as problem:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds") from problem
    if not 0 < seconds < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r}: seconds must be more than 0")
    return seconds


def build_parser() -> argparse.ArgumentParser:
    """All verbs and their arguments; ``run`` of each names the function as MODULE:FUNCTION."""
    parser = OneLineParser(
        prog="vdiskfs", description="Virtual disks as files, kept as logs in a storage pool."
    )
    verbs = parser.add_subparsers(metavar="VERB", required=True, parser_class=OneLineParser)

    verb = _adding_to(verbs)
    _add_mount_verbs(verb)
    _add_vdisk_verbs(verb)
    _add_reading_verbs(verb)
    _add_collecting_verb(verb)
    add_clone_verbs(verb)
    add_difference_verbs(verb)
    for name, add, summary in (
        ("snap", add_snap_verbs, "make, list, delete, restore snapshots"),
        ("trash", add_trash_verbs, "list, restore, purge deleted vdisks"),
        ("cache", add_cache_verbs, "show and fill what a node keeps of a remote pool"),
        ("owner", add_owner_verbs, "say which node may write a vdisk, and change it"),
        ("cluster", cluster_verbs(_node), "say who may be a node of a pool, and who is there"),
    ):
        group = verbs.add_parser(name, help=summary, description=summary)
        add(_adding_to(group.add_subparsers(metavar="VERB", required=True, parser_class=OneLineParser)))
    verbs.add_parser("bench", help="measure, against what one would use instead", add_help=False)
    return parser


def _adding_to(verbs: "argparse._SubParsersAction[OneLineParser]") -> AddVerb:
    def verb(name: str, run: str, summary: str, *, json: bool = False) -> argparse.ArgumentParser:
        added: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary)
        added.set_defaults(run=run)
        if json:
            added.add_argument("--json", action="store_true", help="machine-readable, versioned")
        return added

    return verb


_ENDPOINT_HELP = "of an S3 server that is not Amazon's"


def _add_format(verb: AddVerb) -> None:
    added = verb("format", "tools.commands_mount:format_pool", "make a directory a pool")
    added.add_argument(
        "pool",
        metavar="POOL",
        help="an empty or a new directory, or an object store's address: s3://BUCKET/PREFIX, or rados://POOL of Ceph",
    )
    added.add_argument("--endpoint", default="", metavar="URL", help=_ENDPOINT_HELP)
    added.add_argument(
        "--catalog",
        default="",
        metavar="URL",
        help="etcd://HOST:PORT,..., for nodes on several machines; sqlite:PATH, for an object store and one machine "
        "(default: in the directory, for one machine's)",
    )
    added.add_argument(
        "--durability",
        choices=("pool", "node"),
        default="",
        help="of an object store's vdisks: a flush returns when the store has it (default), or this node's disk",
    )
    added.add_argument(
        "--trash",
        type=_duration,
        default=TRASH_S_DEFAULT,
        metavar="TIME",
        help="how long 'rm' keeps vdisks restorable: seconds, or with m, h, d or w; 0: not at all (default: 1d)",
    )


def _add_umount_and_upgrade(verb: AddVerb) -> None:
    added = verb("umount", "tools.commands_mount:umount", "flush, unmount, wait until the processes are gone")
    added.add_argument("mountpoint", metavar="MOUNTPOINT")
    added.add_argument("--force", action="store_true", help="even if it is in use or does not answer")
    added.add_argument(
        "--timeout", type=_seconds, default=UMOUNT_TIMEOUT_S, metavar="SECONDS", help="default: %(default)g"
    )

    added = verb(
        "upgrade",
        "tools.commands_mount:upgrade",
        "put this release's daemon in the place of the one that serves a mount; guests wait a moment",
        json=True,
    )
    added.add_argument("mountpoint", metavar="MOUNTPOINT")
    added.add_argument(
        "--listen",
        type=_listen,
        metavar="HOST[:PORT]",
        help="as for 'mount', from now on (default: unchanged)",
    )
    added.add_argument(
        "--cache", type=_size, metavar="SIZE", help="as for 'mount', from now on (default: unchanged)"
    )


def _add_mount_verbs(verb: AddVerb) -> None:
    _add_format(verb)
    added = verb("mount", "tools.commands_mount:mount", "mount a pool; ready when it returns")
    added.add_argument("pool", metavar="POOL")
    added.add_argument("mountpoint", metavar="MOUNTPOINT")
    added.add_argument(
        "--node",
        type=_node,
        metavar="NAME",
        help="this node's name (default: made of host, mountpoint and pool)",
    )
    added.add_argument(
        "--state", metavar="DIR", help="index and journal (default: /var/lib/vdiskfs/NODE, or the state home)"
    )
    added.add_argument(
        "--listen",
        type=_listen,
        metavar="HOST[:PORT]",
        help="where nodes of other machines call this one (default: only this machine's do)",
    )
    added.add_argument("--endpoint", default="", metavar="URL", help=_ENDPOINT_HELP)
    added.add_argument(
        "--cache",
        type=_size,
        default=CACHE_BYTES_DEFAULT,
        metavar="SIZE",
        help="how much of an object pool is kept in the state directory too (default: 20G)",
    )
    added.add_argument("--foreground", action="store_true", help="stay, and log to stderr")
    added.add_argument(
        "-o",
        dest="options",
        action="extend",
        type=_options,
        default=[],
        metavar="OPT,...",
        help="mount options, like ro",
    )

    _add_umount_and_upgrade(verb)
    added = verb("status", "tools.commands_mount:status", "show what is mounted, and how it fares", json=True)
    added.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")

    added = verb(
        "top", "tools.commands_top:top", "watch the nodes of a pool and the vdisks in use", json=True
    )
    added.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    added.add_argument(
        "--interval", type=_seconds, default=2.0, metavar="SECONDS", help="default: %(default)g"
    )
    added.add_argument("--once", action="store_true", help="show what there is now, and end")


def _add_vdisk_verbs(verb: AddVerb) -> None:
    added = verb("create", "tools.commands_vdisk:create", "make an empty vdisk")
    added.add_argument("path", metavar="PATH")
    added.add_argument("size", metavar="SIZE", type=_size, help="bytes, or with K, M, G, T (powers of 1024)")

    added.add_argument("--durability", choices=("pool", "node"), default="", help="as 'set' has it")

    added = verb("set", "tools.commands_vdisk:change_settings", "change how a vdisk is kept")
    added.add_argument(
        "path", metavar="PATH", help="a vdisk, or the mountpoint for all of which nothing is said"
    )
    added.add_argument(
        "--durability",
        choices=("pool", "node", "default"),
        required=True,
        help="in an object store: a flush returns when the store has it, or when this node's disk has it",
    )

    added = verb("resize", "tools.commands_vdisk:resize", "change a vdisk's size")
    added.add_argument("path", metavar="PATH")
    added.add_argument("size", metavar="SIZE", type=_size)
    added.add_argument("--allow-shrink", action="store_true", help="what lies behind the new end is lost")

    added = verb("rm", "tools.commands_vdisk:remove", "delete vdisks; 'trash' brings them back", json=True)
    added.add_argument("paths", metavar="PATH", nargs="+")
    added.add_argument("--force", action="store_true", help="even if a process has it open")
    added.add_argument("--snapshots", action="store_true", help="with their snapshots")
    added.add_argument("--now", action="store_true", help="for good, not into the trash")

    added = verb(
        "import",
        "tools.commands_vdisk:import_image",
        "make a vdisk out of a disk image, or bring it up to date",
    )
    added.add_argument(
        "file",
        metavar="FILE",
        help="raw, or any format that qemu-img knows, or what 'export --from' wrote (-: standard input)",
    )
    added.add_argument("path", metavar="PATH")
    added.add_argument("-f", dest="image_format", metavar="FORMAT", help="FILE's format (default: found out)")

    added = verb("export", "tools.commands_vdisk:export_image", "make a disk image out of a vdisk")
    added.add_argument("path", metavar="PATH[@SNAP]")
    added.add_argument("file", metavar="FILE", help="a stream goes to standard output for -")
    added.add_argument(
        "-f",
        dest="image_format",
        metavar="FORMAT",
        help="as qemu-img names it, or 'diff' for a stream to import in another pool (default: by FILE's extension, or raw)",
    )
    added.add_argument(
        "--from", dest="base", metavar="SNAP", help="only what changed since this snapshot, as a stream"
    )


def _add_collecting_verb(verb: AddVerb) -> None:
    added = verb(
        "gc", "tools.commands_collect:collect", "give back the space of what nobody reads", json=True
    )
    added.add_argument("path", metavar="PATH", nargs="?", help="vdisks at and below it (default: all)")
    added.add_argument("--dry-run", action="store_true", help="only say how much that would be")


def _add_reading_verbs(verb: AddVerb) -> None:
    added = verb("ls", "tools.commands_inspect:list_vdisks", "list vdisks and directories", json=True)
    added.add_argument("path", metavar="PATH", nargs="?", default=".")
    added = verb("info", "tools.commands_inspect:info", "show one vdisk or snapshot", json=True)
    added.add_argument("path", metavar="PATH[@SNAP]")
    added = verb("du", "tools.commands_inspect:usage", "show what vdisks occupy in the pool", json=True)
    added.add_argument("path", metavar="PATH", nargs="?", default=".")
    added = verb("map", "tools.commands_inspect:show_map", "show where a vdisk's bytes lie", json=True)
    added.add_argument("path", metavar="PATH[@SNAP]")
    added.add_argument("--offset", type=_size, default=0, metavar="N")
    added.add_argument("--length", type=_size, default=None, metavar="N")
    added = verb("check", "tools.commands_inspect:check", "verify the metadata against the pool", json=True)
    added.add_argument("path", metavar="PATH", nargs="?")
    added = verb("scrub", "tools.commands_inspect:scrub", "read and verify every block", json=True)
    added.add_argument("path", metavar="PATH", nargs="?")


def main(argv: list[str] | None = None) -> int:
    """Run one verb; the exit code."""
    words = sys.argv[1:] if argv is None else argv
    _say_any_name()
    try:
        if words[:1] == ["bench"]:  # has its own arguments
            run: Callable[..., int] = importlib.import_module("tools.bench").main
            return run(words[1:])
        arguments = build_parser().parse_args(words)
        module, _, function = arguments.run.partition(":")
        run = getattr(importlib.import_module(module), function)
        code = run(arguments)
        sys.stdout.flush()
        return code
    except VdiskfsError as problem:
        return _fail(str(problem))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to say, to nobody
        return FAILED
    except OSError as problem:
        return _fail(_explain(problem))
    except KeyboardInterrupt:
        return _fail("interrupted")


def _say_any_name() -> None:
    """What the terminal's encoding lacks is shown escaped; names may hold any byte."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _explain(problem: OSError) -> str:
    """The operating system's error, with what to do where that is not plain."""
    where = f"{os.fsdecode(problem.filename)}: " if problem.filename else ""
    if len(where) > PATH_CHARACTERS_MAX:
        where = f"{where[:PATH_CHARACTERS_MAX]}...: "
    what = problem.strerror or str(problem)
    match problem.errno:
        case errno.ENAMETOOLONG:
            what += f": a name has at most {NAME_BYTES_MAX} bytes"
        case errno.ENOTCONN | errno.ECONNABORTED:
            what = "the mount has lost its daemon: mount it again with 'vdiskfs mount POOL MOUNTPOINT'"
        case errno.ENOSPC:
            what += f": free space in {_filesystem_of(problem.filename)}"
    return where + what


def _filesystem_of(path: str | bytes | None) -> str:
    """Whose space a write to ``path`` took."""
    from tools.paths import locate

    try:
        locate(os.fsdecode(path or "."))
    except VdiskfsError:
        return "its filesystem"
    return "the pool's filesystem"


def _fail(reason: str) -> int:
    from tools.render import printable

    sys.stderr.write(f"vdiskfs: {printable(reason.strip())}\n")
    return FAILED


if __name__ == "__main__":
    sys.exit(main())
