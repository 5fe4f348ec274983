"""export --from and import of difference streams: snapshots and what is between them, from pool to pool."""

import argparse
import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator

from fusefs import processes
from metadata.difference_stream import MAGIC, StreamHeader, StreamRange
from metadata.differences import ChangedRange
from metadata.errors import Exists, InvalidRequest, NotFound, Unavailable
from tools.asking import ask, check_same_mount
from tools.commands_difference import changed_pages, changed_ranges
from tools.difference_export import PIPE, Difference, export_difference
from tools.difference_import import StagedFile, StreamReader, copy_ranges, opened_stream, staging_name
from tools.file_calls import exchange_names, rename_new, sync
from tools.identities import KnownSnapshot, find_base, known_snapshots, write_note
from tools.paths import Located, locate, locate_snapshot
from tools.render import ProgressLine

FORMAT = "diff"
"""As -f names it."""
EXTENSION = "vdiff"
_MODE = 0o600


def is_stream(file: str) -> bool:
    """Whether a file is a difference stream; pipes, standard input among them, are taken for one."""
    if file == PIPE:
        return True
    with contextlib.suppress(OSError):
        mode = os.stat(file).st_mode
        if stat.S_ISREG(mode):
            if _has_extension(file):  # one that is damaged or cut is refused, not taken for a raw image
                return True
            with open(file, "rb") as opened:
                return opened.read(len(MAGIC)) == MAGIC
        return stat.S_ISFIFO(mode)
    return False


def is_meant(file: str, image_format: str | None) -> bool:
    """Whether an export to ``file`` shall be a stream."""
    if image_format is not None:
        return image_format == FORMAT
    return file == PIPE or _has_extension(file)


def _has_extension(file: str) -> bool:
    return os.path.splitext(file)[1] == f".{EXTENSION}"


# ---- export


def export_stream(arguments: argparse.Namespace) -> int:
    """Write a snapshot, or what changed in it since another one, as a stream."""
    located, name = locate_snapshot(arguments.path)
    with _snapshot_to_send(located, name) as sent, ProgressLine() as line:
        known = known_snapshots(located)
        newer = next(snapshot for snapshot in known if snapshot.name == sent)
        base_at, base = None, None
        if arguments.base is not None:
            base_at, base = _base(located, arguments.base)
        header = StreamHeader(
            newer.size,
            newer.name if name is not None else "",
            base.identities if base else (),
            newer.identities,
        )
        file = ask(located, "snap_info", {"name": sent})["file"]
        pages = changed_pages(
            located, sent, base=None if base is None or base_at is None else (base_at, base.name)
        )
        difference = Difference(header, located.entry.mountpoint + str(file), changed_ranges(pages))
        export_difference(
            difference, arguments.file, progress=lambda done, total: line.show_bytes("export", done, total)
        )
    return 0


@contextlib.contextmanager
def _snapshot_to_send(located: Located, name: str | None) -> Iterator[str]:
    """The snapshot's name; of what a vdisk holds now, a snapshot for as long as this takes."""
    if name is not None:
        yield name
        return
    made = f"export-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    ask(located, "snap_create", {"paths": [located.inner], "name": made})
    try:
        yield made
    finally:
        ask(located, "snap_rm", {"name": made})


def _base(located: Located, wanted: str) -> tuple[Located, KnownSnapshot]:
    """The snapshot that --from names: one of the same vdisk, or PATH@SNAP."""
    base_at, name = located, wanted.removeprefix("@")
    if "@" in name:
        base_at, found = locate_snapshot(wanted)
        check_same_mount(located, base_at)
        if found is None:
            raise InvalidRequest(f"{wanted} names no snapshot: write --from SNAP, or --from PATH@SNAP")
        name = found
    for snapshot in known_snapshots(base_at):
        if snapshot.name == name:
            return base_at, snapshot
    raise NotFound(f"there is no snapshot {base_at.path}@{name}: see 'vdiskfs snap ls {base_at.path}'")


# ---- import


def import_stream(arguments: argparse.Namespace) -> int:
    """Make what a stream holds: a vdisk, or a newer content and snapshot of one."""
    located = locate(arguments.path)
    if os.path.isdir(located.path):
        raise InvalidRequest(f"{arguments.path} is a directory: name the vdisk that the stream shall become")
    with opened_stream(arguments.file) as stream, ProgressLine() as line:
        reader = StreamReader(stream)
        importing = _Import(located, reader.header(), line)
        try:
            if os.path.lexists(located.path):
                importing.into_existing(reader)
            else:
                importing.into_new(reader)
        except OSError as problem:
            if problem.errno == errno.ENOSPC:
                problem.filename = located.path
            raise
    return 0


class _Import:
    """One stream into one target; the steps are those of ``tools.difference_import``."""

    def __init__(self, located: Located, header: StreamHeader, line: ProgressLine) -> None:
        self._at, self._header, self._line = located, header, line
        self._target = located.path
        name = staging_name(self._target, header)
        self._staging = locate(os.path.join(os.path.dirname(self._target), name))

    def into_new(self, reader: StreamReader) -> None:
        """A vdisk that is not there yet: empty at first, or a clone of the base it belongs on."""
        self._stage(reader, self._any_base() if self._header.base else None)
        if self._header.name:
            self._name_content(self._staging)
        rename_new(self._staging.path, self._target)

    def _any_base(self) -> KnownSnapshot:
        """The base, of whatever vdisk."""
        base = find_base(known_snapshots(self._at.root()), self._header.base)
        if base is None:
            raise InvalidRequest(
                f"this is what changed since another snapshot, which is not here: import that first, to {self._target}"
            )
        return base

    def into_existing(self, reader: StreamReader) -> None:
        """A vdisk that has the base as a snapshot, and holds just that."""
        if self._is_exchanged():
            kept, clone = self._staging, self._at
            reader.apply(_Nothing(), applied=lambda done: None)  # was taken already; still it must be whole
        else:
            base = self._base_of_target()
            self._check_unused()
            self._stage(reader, base)
            exchange_names(self._staging.path, self._target)
            kept, clone = self._staging, self._at
        self._finish(kept, clone)

    def _base_of_target(self) -> KnownSnapshot:
        header, known = self._header, known_snapshots(self._at)
        if not header.base:
            raise Exists(f"{self._target} exists, and the stream is a whole vdisk: choose another name")
        if find_base(known, header.identities) is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._staging.path)  # of an import that was interrupted as its very last step
            raise Exists(f"{self._target} has this snapshot already: nothing is to be done")
        base = find_base(known, header.base)
        if base is None:
            raise InvalidRequest(
                f"{self._target} does not have the snapshot that the changes were made on: import that first"
            )
        if any(snapshot.name == header.name for snapshot in known):
            raise Exists(f"{self._target} has another snapshot called {header.name!r}: rename that first")
        since = next(changed_pages(self._at, None, base=(self._at, base.name)))
        if since["words"] or since["size"] != base.size:
            raise InvalidRequest(
                f"{self._target} was changed since {base.name!r}, which the changes were made on: "
                f"'vdiskfs snap rollback {self._target}@{base.name}' first"
            )
        return base

    def _check_unused(self) -> None:
        found = processes.holders(lambda used: used == self._target, except_pids=frozenset({os.getpid()}))
        if found:
            raise Unavailable(f"in use by {processes.describe_holders(found)}: end that first")

    def _stage(self, reader: StreamReader, base: KnownSnapshot | None) -> None:
        """The staging vdisk becomes what the stream holds; durable when it returns."""
        was_begun = os.path.lexists(self._staging.path)
        if base is not None and not was_begun:
            origin = locate(base.vdisk_path)
            ask(origin, "clone", {"name": base.name, "new_path": self._staging.inner})
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if base is None else 0)
        file = os.open(self._staging.path, flags, _MODE)
        try:
            os.ftruncate(file, self._header.size)
            reader.apply(StagedFile(file, was_begun=was_begun), applied=self._show)
            os.fsync(file)
        finally:
            os.close(file)

    def _show(self, done: int) -> None:
        self._line.show_bytes("import", done, max(done, self._header.size))

    def _is_exchanged(self) -> bool:
        """Whether an import that was interrupted has exchanged the names, and not back again."""
        if not os.path.lexists(self._staging.path):
            return False
        parent = ask(self._at, "info", {}).get("parent")
        return parent is not None and parent["vdisk"] == ask(self._staging, "info", {})["vdisk"]

    def _finish(self, kept: Located, clone: Located) -> None:
        """From names exchanged to the end: ``kept`` becomes what ``clone`` is, and gets its name back."""
        if find_base(known_snapshots(kept), self._header.identities) is None:
            base = find_base(known_snapshots(kept), self._header.base)
            if base is None:
                raise InvalidRequest(f"the snapshot that the changes were made on is gone from {kept.path}")
            pages = changed_pages(clone, None, base=(kept, base.name))
            self._copy(clone.path, kept.path, list(changed_ranges(pages)))
            if self._header.name:
                self._name_content(kept)
        exchange_names(kept.path, clone.path)
        os.unlink(kept.path)  # that name is the clone's again
        sync(os.path.dirname(kept.path))

    def _copy(self, source: str, target: str, ranges: list[ChangedRange]) -> None:
        reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            writing = os.open(target, os.O_RDWR | os.O_CLOEXEC)
            try:
                os.ftruncate(writing, self._header.size)
                total = sum(found.length for found in ranges)
                copy_ranges(
                    reading, writing, ranges, applied=lambda done: self._line.show_bytes("apply", done, total)
                )
                os.fsync(writing)
            finally:
                os.close(writing)
        finally:
            os.close(reading)

    def _name_content(self, at: Located) -> None:
        """What a vdisk holds now gets the stream's snapshot name, unless it has it, and the note of what it equals."""
        name = self._header.name
        known = known_snapshots(at)
        made = next((snapshot.version for snapshot in known if snapshot.name == name), None)
        if made is None:
            answer = ask(at, "snap_create", {"paths": [at.inner], "name": name})
            made = int(answer["snapshots"][0]["version"])
        write_note(at.path, made, self._header.identities, kept=[snapshot.version for snapshot in known])


class _Nothing:
    """Takes ranges and does nothing with them."""

    def apply(self, found: StreamRange) -> None:
        """Nothing."""
