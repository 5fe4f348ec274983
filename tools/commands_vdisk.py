"""The verbs that make, change and delete vdisks: create, resize, rm, import, export.

They use plain file calls on the mount, so that the kernel's own view (cached sizes and pages) stays right; all but
rm, whose vdisks go to the trash, which the daemon tells the kernel of.
"""

import argparse
import contextlib
import errno
import os
import signal
import stat
from collections.abc import Iterator
from types import FrameType

from fusefs import processes
from metadata.durability import ATTRIBUTE
from metadata.errors import Exists, InvalidRequest, NotFound, Unavailable
from tools.asking import ask, check_same_mount
from tools.paths import Located, locate, locate_snapshot
from tools.render import ProgressLine, print_json
from tools.sizes import format_size

VDISK_MODE = 0o600
"""A disk image is its owner's; hypervisors that run as another user are given it with chown."""


def create(arguments: argparse.Namespace) -> int:
    """Make an empty vdisk; durable when it returns."""
    located = locate(arguments.path)
    path = located.path
    if arguments.durability:
        _check_has_choice(located)
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, VDISK_MODE)
    except FileExistsError as problem:
        raise Exists(f"{arguments.path} exists: choose another name, or delete it first") from problem
    try:
        with _about(path):
            if arguments.durability:
                os.setxattr(file, ATTRIBUTE, arguments.durability.encode())
            os.ftruncate(file, arguments.size)
            os.fsync(file)
    except BaseException:
        os.close(file)
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    os.close(file)
    return 0


def change_settings(arguments: argparse.Namespace) -> int:
    """Change when flushes of a vdisk return, or of all that say nothing of it."""
    located = locate(arguments.path)
    _check_has_choice(located)
    with _about(located.path):
        if arguments.durability != "default":
            os.setxattr(located.path, ATTRIBUTE, arguments.durability.encode())
            return 0
        try:
            os.removexattr(located.path, ATTRIBUTE)
        except OSError as problem:
            if problem.errno != errno.ENODATA:
                raise
    return 0


def _check_has_choice(located: Located) -> None:
    if "lag_bytes" not in ask(located, "status", {}):
        raise InvalidRequest(
            "durability is chosen for pools in object stores: a directory pool is flushed to always"
        )


def resize(arguments: argparse.Namespace) -> int:
    """Change a vdisk's size; durable when it returns."""
    located = _existing_vdisk(arguments.path)
    file = os.open(located.path, os.O_RDWR | os.O_CLOEXEC)
    try:
        size = os.fstat(file).st_size
        if arguments.size < size and not arguments.allow_shrink:
            lost = format_size(size - arguments.size)
            raise InvalidRequest(f"{arguments.path} would lose its last {lost}: say --allow-shrink to do it")
        with _about(located.path):
            os.ftruncate(file, arguments.size)
            os.fsync(file)
    finally:
        os.close(file)
    return 0


def remove(arguments: argparse.Namespace) -> int:
    """Delete vdisks, those in use only by force; nothing is deleted if one of them cannot be."""
    found = [_named_to_delete(path) for path in arguments.paths]
    for located in found:
        check_same_mount(found[0], located)
    if not arguments.force:
        meant = frozenset(located.path for located in found)
        holders = processes.holders(lambda used: used in meant, except_pids=frozenset({os.getpid()}))
        if holders:
            who = processes.describe_holders(holders)
            raise Unavailable(f"in use by {who}: end that first, or say --force")
    asked = {
        "paths": [located.inner for located in found],
        "snapshots": arguments.snapshots,
        "now": arguments.now,
        "unless_used": not arguments.force,
    }
    answer = ask(found[0], "rm", asked)
    if arguments.json:
        print_json(answer)
    return 0


def _named_to_delete(path: str) -> Located:
    located, name = locate_snapshot(path)
    if name is not None:
        raise InvalidRequest(f"{path} is a snapshot: 'vdiskfs snap rm' deletes it")
    if not os.path.lexists(located.path):
        raise NotFound(f"{path} does not exist")
    if not located.inner or stat.S_ISDIR(os.lstat(located.path).st_mode):
        raise InvalidRequest(f"{path} is a directory: rm deletes vdisks, rmdir empty directories")
    return located


def import_image(arguments: argparse.Namespace) -> int:
    """Make a vdisk out of a disk image; all of it or nothing, durable when it returns."""
    from tools import commands_stream, imaging

    streamed = arguments.image_format is None and commands_stream.is_stream(arguments.file)
    if streamed or arguments.image_format == commands_stream.FORMAT:
        with _interruptible():
            return commands_stream.import_stream(arguments)
    target = locate(arguments.path).path
    with _interruptible(), ProgressLine() as line:
        imaging.import_image(
            arguments.file,
            target,
            image_format=arguments.image_format,
            progress=lambda done, total: line.show_bytes("import", done, total),
        )
    return 0


def export_image(arguments: argparse.Namespace) -> int:
    """Make a disk image out of a vdisk; all of it or nothing, durable when it returns."""
    from tools import commands_stream, imaging

    if arguments.base is not None and arguments.image_format not in (None, commands_stream.FORMAT):
        raise InvalidRequest(f"--from makes a difference stream, not {arguments.image_format}: leave -f away")
    if arguments.base is not None or commands_stream.is_meant(arguments.file, arguments.image_format):
        with _interruptible():
            return commands_stream.export_stream(arguments)
    located, name = locate_snapshot(arguments.path)
    if name is None:
        source = _existing_vdisk(arguments.path).path
    else:
        facts = ask(located, "snap_info", {"name": name})
        source = located.entry.mountpoint + str(facts["file"])
    with _interruptible(), ProgressLine() as line:
        imaging.export_image(
            source,
            arguments.file,
            image_format=arguments.image_format,
            progress=lambda done, total: line.show_bytes("export", done, total),
        )
    return 0


def _existing_vdisk(path: str) -> Located:
    located = locate(path)
    try:
        mode = os.stat(located.path).st_mode
    except FileNotFoundError as problem:
        raise NotFound(f"{path} does not exist") from problem
    if not stat.S_ISREG(mode):
        raise InvalidRequest(f"{path} is not a vdisk")
    return located


@contextlib.contextmanager
def _about(path: str) -> Iterator[None]:
    """Gives errors of calls on a descriptor the name of its file."""
    try:
        yield
    except OSError as problem:
        problem.filename = path
        raise


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets SIGTERM clean up as Ctrl-C does."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
