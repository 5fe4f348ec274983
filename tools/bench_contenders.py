"""Who is measured: a raw file, QEMU's FUSE exports, and vdiskfs, each behind the same few calls.

A contender lives in a folder of its own under the scratch folder, from ``start`` to ``stop``. ``stop`` leaves
no process and no mount behind, whatever state things are in, and may be called at any time, twice too. The
folder itself is the caller's to remove.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from fusefs.mount_table import MOUNTINFO, parse_mountinfo
from metadata.errors import Unavailable, VdiskfsError
from tools.bench_interrupts import uninterrupted
from tools.bench_processes import (
    end_daemon,
    kill_process,
    run_command,
    start_daemon,
    wait_until,
)
from tools.bench_rows import OURS, QCOW2, QEMU_RAW, RAW

UNMOUNT_S_MAX = 120.0
"""``vdiskfs umount`` makes everything durable first: gigabytes, on somebody's slow disk."""


EXPORT_S_MAX = 120.0
"""Until qemu-storage-daemon has opened an image; with a thousand backing files some 15 s."""

LOG_LINES_SHOWN = 40
"""Of the daemon's log, when a command failed: a traceback, and what led to it."""


class Contender(Protocol):
    """One way to have a disk image as a file."""

    def start(self) -> None:
        """Be ready for images."""

    def create_image(self, name: str, size: int) -> None:
        """Make a sparse image and serve it."""

    def image_path(self, name: str) -> Path:
        """Where the image is a file that fio may open."""

    def backing_files(self) -> list[Path]:
        """The files on the disk that hold the images' data."""

    def daemon_pid(self, name: str) -> int | None:
        """The process that serves the image; None: the kernel alone does."""

    def stop(self) -> None:
        """Serve nothing any more, leave no process and no mount, even where it raises."""


Factory = Callable[[Path], Contender]
"""Makes a contender that lives in the folder given (which exists, and is empty)."""


class RawFile:
    """A file on the pool's own disk: what any layer above it costs shows against this."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def start(self) -> None:
        """Nothing to start."""

    def create_image(self, name: str, size: int) -> None:
        """A sparse file."""
        with self.image_path(name).open("xb") as file:
            file.truncate(size)

    def image_path(self, name: str) -> Path:
        """The file itself."""
        return self._folder / f"{name}.img"

    def backing_files(self) -> list[Path]:
        """The images themselves."""
        return list(self._folder.glob("*.img"))

    def daemon_pid(self, name: str) -> int | None:
        """Nobody."""
        return None

    def stop(self) -> None:
        """Nothing to stop."""


class QemuExport:
    """``qemu-storage-daemon`` exporting an image through FUSE: one process an image, host page cache on.

    The image appears over an ordinary empty file, which is what QEMU wants for a mountpoint.
    """

    def __init__(self, folder: Path, image_format: str) -> None:
        self._folder = folder
        self._format = image_format
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Daemons start with their images."""

    def create_image(self, name: str, size: int) -> None:
        """Make the image and export it, writable."""
        image = self._folder / f"{name}.{self._format}"
        run_command(["qemu-img", "create", "-q", "-f", self._format, str(image), str(size)])
        self.serve(name, image)

    def serve(self, name: str, image: Path) -> None:
        """Export an image that is there, writable. Opening a thousand backing files takes a while."""
        mountpoint = self.image_path(name)
        mountpoint.touch(exist_ok=False)
        arguments = [
            "qemu-storage-daemon",
            "--blockdev",
            json.dumps({"driver": "file", "node-name": "file", "filename": str(image)}),
            "--blockdev",
            json.dumps({"driver": self._format, "node-name": "disk", "file": "file"}),
            "--export",
            json.dumps(
                {
                    "type": "fuse",
                    "id": "export",
                    "node-name": "disk",
                    "mountpoint": str(mountpoint),
                    "writable": True,
                    "growable": True,
                }
            ),
        ]
        log = self._folder / f"{name}.log"
        with uninterrupted():
            self._daemons[name] = start_daemon(
                arguments, log=log, ready=lambda: is_mounted(mountpoint), allowed_s=EXPORT_S_MAX
            )

    def image_path(self, name: str) -> Path:
        """The file that QEMU mounted its export over."""
        return self._folder / f"{name}.disk"

    def backing_files(self) -> list[Path]:
        """The image files."""
        return list(self._folder.glob(f"*.{self._format}"))

    def daemon_pid(self, name: str) -> int | None:
        """The image's own daemon."""
        return self._daemons[name].pid

    def stop(self) -> None:
        """QEMU unmounts when it is told to end."""
        while self._daemons:
            name, daemon = self._daemons.popitem()
            end_daemon(daemon)
            detach_mount(self.image_path(name))


class Vdiskfs:
    """vdiskfs as a user runs it: every step goes through the command line."""

    def __init__(self, folder: Path, *, pool: Path | None = None, node: str | None = None) -> None:
        """
        Args:
            folder: for everything of this node's.
            pool: another node's, which has formatted it.
            node: its name, if it is to have another than this machine's.
        """
        self.pool = pool or folder / "pool"
        self.mountpoint = folder / "mnt"
        self.state = folder / "state"
        self._options = () if node is None else ("--node", node)
        self._pids: set[int] = set()

    def start(self) -> None:
        """Format a pool and mount it."""
        for directory in (self.pool, self.mountpoint, self.state):
            directory.mkdir()
        run_vdiskfs("format", str(self.pool))
        self.mount()

    def pool_address(self) -> str:
        """What ``vdiskfs mount`` takes."""
        return str(self.pool)

    def mount(self) -> None:
        """Mount the pool; it was formatted before."""
        with uninterrupted():
            self._run(
                "mount", self.pool_address(), str(self.mountpoint), "--state", str(self.state), *self._options
            )
        self._pids = {int(self.status()["keeper_pid"])}

    def join(self) -> None:
        """Mount another node's pool, with a new state directory."""
        for directory in (self.mountpoint, self.state):
            directory.mkdir(parents=True)
        self.mount()

    def kill(self) -> None:
        """End keeper and daemon as the loss of the machine would, and take the dead mount away."""
        pids = {int(self.status()["keeper_pid"]), int(self.status()["pid"])}
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                os.kill(pid, number)
        detach_mount(self.mountpoint)
        self._pids = set()

    def unmount(self) -> None:
        """Everything flushed, processes gone when it returns."""
        self._run("umount", str(self.mountpoint))
        self._pids = set()

    def status(self) -> dict[str, Any]:
        """What ``vdiskfs status --json`` says."""
        text = run_vdiskfs("status", str(self.mountpoint), "--json")
        try:
            status = json.loads(text)
        except ValueError as exc:
            raise Unavailable(f"vdiskfs status --json printed no JSON: {exc}") from None
        assert isinstance(status, dict)
        return status

    def create_image(self, name: str, size: int) -> None:
        """A sparse vdisk."""
        run_vdiskfs("create", str(self.image_path(name)), str(size))

    def image_path(self, name: str) -> Path:
        """The vdisk under the mountpoint."""
        return self.mountpoint / name

    def backing_files(self) -> list[Path]:
        """Everything in the pool, extent groups above all."""
        return [path for path in self.pool.rglob("*") if path.is_file()]

    def daemon_pid(self, name: str) -> int | None:
        """The daemon of the mount, asked anew: the keeper may have started another."""
        pid = int(self.status()["pid"])
        self._pids.add(pid)
        return pid

    def stop(self) -> None:
        """Unmount in peace if possible, else by force: first the keeper and the daemon, then the mount.

        Raises:
            VdiskfsError: it had to be force; nothing is left all the same.
        """
        try:
            if is_mounted(self.mountpoint):
                self.unmount()
        except VdiskfsError:
            self._end_by_force()
            raise
        finally:
            self._pids = set()

    def _run(self, *arguments: str) -> None:
        """A command after whose failure the log matters: shown, as it goes away with the folder."""
        try:
            run_vdiskfs(*arguments, allowed_s=UNMOUNT_S_MAX)
        except VdiskfsError:
            log = self.state / "log"
            if log.exists():
                lines = log.read_text(errors="replace").splitlines()[-LOG_LINES_SHOWN:]
                print(f"the end of {log}:", *lines, sep="\n    ", file=sys.stderr)
            raise

    def _end_by_force(self) -> None:
        try:
            self._run("umount", "--force", str(self.mountpoint))
        except VdiskfsError:
            for pid in sorted(self._pids):
                kill_process(pid)
            detach_mount(self.mountpoint)


def run_vdiskfs(*arguments: str, allowed_s: float = 60.0) -> str:
    """Run this very vdiskfs's command line, installed or not."""
    home = str(Path(__file__).resolve().parent.parent)
    search = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": f"{home}{os.pathsep}{search}" if search else home}
    program = [sys.executable, "-m", "tools.cli"]
    try:
        return run_command([*program, *arguments], allowed_s=allowed_s, environment=environment)
    except Unavailable as exc:
        message = str(exc).removeprefix(f"{os.path.basename(sys.executable)} failed: ")
        raise Unavailable(f"vdiskfs {arguments[0]}: {message.removeprefix('vdiskfs: ')}") from None


def is_mounted(mountpoint: Path) -> bool:
    """Whether something is mounted exactly there; asks the kernel's list, so a dead mount cannot hang it."""
    wanted = str(mountpoint)
    return any(entry.mountpoint == wanted for entry in parse_mountinfo(Path(MOUNTINFO).read_bytes()))


def mounts_below(folder: Path) -> list[str]:
    """Every mountpoint in a folder, at any depth."""
    entries = parse_mountinfo(Path(MOUNTINFO).read_bytes())
    return [entry.mountpoint for entry in entries if Path(entry.mountpoint).is_relative_to(folder)]


def stop_contender(contender: Contender) -> None:
    """Stop it to the end, whoever interrupts. Trouble with that is told, and fails nothing else."""
    with uninterrupted():
        try:
            contender.stop()
        except VdiskfsError as exc:
            print(f"vdiskfs: {exc}", file=sys.stderr)


def detach_mount(mountpoint: Path) -> None:
    """Take a mount off the tree even if it is dead or busy; nothing to do if it is not there."""
    if not is_mounted(mountpoint):
        return
    command = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
    try:
        run_command([*command, str(mountpoint)])
    except Unavailable:
        # It may have gone by itself in the meantime; if not, that is worth the error.
        if not wait_until(lambda: not is_mounted(mountpoint), allowed_s=1.0):
            raise


CONTENDERS: dict[str, Factory] = {
    RAW: RawFile,
    QCOW2: lambda folder: QemuExport(folder, "qcow2"),
    QEMU_RAW: lambda folder: QemuExport(folder, "raw"),
    OURS: Vdiskfs,
}
"""In the order of the table's columns."""

_QEMU_PROGRAMS = ("qemu-img", "qemu-storage-daemon")

PROGRAMS: dict[str, tuple[str, ...]] = {QCOW2: _QEMU_PROGRAMS, QEMU_RAW: _QEMU_PROGRAMS}
"""What a contender needs installed; fio is needed always."""
