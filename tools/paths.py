"""From a PATH on the command line to the mount it lies under, without touching that mount."""

import os
from dataclasses import dataclass

from fusefs import launch, mount_table
from fusefs.mount_table import MountEntry
from fusefs.registry import MountRecord
from metadata.errors import InvalidRequest, NotFound, Unavailable

SNAPSHOTS_FOLDER = ".snapshots"
"""Of a mountpoint: ``.snapshots/PATH/SNAP`` says PATH@SNAP."""


@dataclass(frozen=True, slots=True)
class Located:
    """A path under a vdiskfs mount."""

    path: str
    """Absolute, and free of links down to the mountpoint."""
    inner: str
    """Below the mountpoint, without a leading slash; empty for the mountpoint itself."""
    entry: MountEntry
    record: MountRecord | None

    def shown(self, path: str) -> str:
        """A path from this mount's root as one would type it here: relative if that does not lead up."""
        whole = self.entry.mountpoint.rstrip("/") + path
        try:
            relative = os.path.relpath(whole)
        except OSError:  # the working directory is gone, or its mount
            return whole
        return whole if relative.startswith("..") else relative

    def root(self) -> "Located":
        """The mountpoint it lies under."""
        return Located(self.entry.mountpoint, "", self.entry, self.record)

    def serving_record(self) -> MountRecord:
        """The mount's record, if anybody is there to ask.

        Raises:
            Unavailable: its keeper and its daemon are dead.
        """
        mountpoint = self.entry.mountpoint
        if self.record is None:
            raise Unavailable(
                f"nothing is registered about the mount on {mountpoint}: "
                f"only root and the user who mounted it may ask uid={self.entry.owner_uid}"
            )
        if not self.record.is_alive():
            raise Unavailable(
                f"the mount on {mountpoint} has lost its daemon: mount it again with "
                f"'vdiskfs mount {self.entry.source} {mountpoint}'"
            )
        return self.record


def locate(path: str) -> Located:
    """Where ``path`` lies; it need not exist.

    Raises:
        NotFound: under no vdiskfs mount.
    """
    mounts = mount_table.read_mounts()
    resolved = mount_table.resolve(path, mounts)
    entry = mount_table.mount_above(resolved, mounts)
    if entry is None or not entry.is_vdiskfs:
        raise NotFound(f"{path} is not under a vdiskfs mount: see 'vdiskfs status'")
    inner = os.path.normpath(resolved)[len(entry.mountpoint) :].strip("/")
    return Located(resolved, inner, entry, launch.find_record(entry))


def locate_snapshot(path: str) -> tuple[Located, str | None]:
    """Where ``PATH`` or ``PATH@SNAP`` lies, and the snapshot's name.

    The last ``@`` counts, unless there is a file of the whole name. ``.snapshots/PATH/SNAP`` is taken too.

    Raises:
        NotFound: under no vdiskfs mount.
        InvalidRequest: nothing stands before or behind the ``@``.
    """
    vdisk, at, name = path.rpartition("@")
    if not at or "/" in name or os.path.lexists(path):
        located = locate(path)
        folder, _, inner = located.inner.partition("/")
        inner, _, name = inner.rpartition("/")
        if folder != SNAPSHOTS_FOLDER or not inner:
            return located, None
        vdisk = os.path.join(located.entry.mountpoint, inner)
        return Located(vdisk, inner, located.entry, located.record), name
    if not name or not vdisk or vdisk.endswith("/"):
        raise InvalidRequest(f"{path} names no snapshot: write PATH@SNAP")
    return locate(vdisk), name


def locate_mount(path: str | None) -> Located:
    """The mount that ``path`` lies under; without a path that of the working directory, or the only one.

    Raises:
        NotFound: there is none, or several and nothing says which.
    """
    if path is not None:
        return locate(path)
    try:
        return locate(os.getcwd())
    except (NotFound, OSError):
        pass
    ours = [entry.mountpoint for entry in mount_table.read_mounts() if entry.is_vdiskfs]
    if len(ours) != 1:
        raise NotFound(f"which mount? give one of: {' '.join(ours)}" if ours else "nothing is mounted")
    return locate(ours[0])
