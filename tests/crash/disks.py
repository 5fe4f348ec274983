"""Disks of a test's own: one that fails on demand, one that is small. Loop devices, so root only.

    ext4 -> loop device -> nbdfuse -> nbdkit (file, with its error filter)
         -> its journal on another loop device, which never fails

A journal that cannot be written would make the whole file system read-only for good, and hide what is looked
for: single writes and syncs of files that fail, and work again later.
"""

import os
import pathlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.mounted_pool import END_S, mountpoints

ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}

JOURNAL_BYTES = 16 << 20


def run(*command: object) -> str:
    """Run a tool of the system and insist that it succeeds."""
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=ENVIRONMENT, timeout=END_S
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


@contextmanager
def small_disk(folder: pathlib.Path, size: int) -> Iterator[pathlib.Path]:
    """An ext4 of that many bytes, mounted."""
    folder.mkdir()
    image, mountpoint = folder / "image", folder / "mnt"
    mountpoint.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    run("mkfs.ext4", "-q", "-F", "-m", "0", image)
    run("mount", "-o", "loop", image, mountpoint)
    try:
        yield mountpoint
    finally:
        run("umount", "-l", mountpoint)


class FailingDisk:
    """An ext4 whose device fails reads, writes or both as long as it is told to."""

    def __init__(self, folder: pathlib.Path, size: int) -> None:
        folder.mkdir()
        self.mountpoint = folder / "mnt"
        self._image, self._export, self._flags = folder / "image", folder / "export", folder / "flags"
        self._journal = folder / "journal"
        self.mountpoint.mkdir()
        self._flags.mkdir()
        self._export.touch()
        for image, length in ((self._image, size), (self._journal, JOURNAL_BYTES)):
            with image.open("wb") as file:
                file.truncate(length)
        self._loop = self._journal_loop = ""
        self._log = (folder / "log").open("w+")
        filters = [
            f"error-{what}{option}"
            for what in ("pread", "pwrite")
            for option in ("=EIO", "-rate=100%", f"-file={self._flags / what}")
        ]
        self._server = subprocess.Popen(
            ["nbdfuse", self._export, "--socket-activation", "nbdkit", "-f", "--filter=error"]
            + ["file", self._image, *filters],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )

    def start(self) -> None:
        """Mount it, when the server is there."""
        deadline = time.monotonic() + END_S
        while not mountpoints(self._export):
            assert time.monotonic() < deadline, "nbdfuse does not mount"
            try:
                self._server.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            raise AssertionError(pathlib.Path(self._log.name).read_text())
        self._journal_loop = run("losetup", "-f", "--show", self._journal)
        self._loop = run("losetup", "-f", "--direct-io=on", "--show", self._export)
        run("mke2fs", "-q", "-F", "-b", "4096", "-O", "journal_dev", self._journal_loop)
        run(
            "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-J", f"device={self._journal_loop}", self._loop
        )
        self.mount()

    def mount(self) -> None:
        """Mount the file system."""
        run("mount", "-o", "errors=continue,commit=300,noatime", self._loop, self.mountpoint)

    def umount(self) -> None:
        """Unmount it: nothing of it stays in memory."""
        run("umount", self.mountpoint)

    def fail(self, *what: str) -> None:
        """From now on ``pread``, ``pwrite`` or both give EIO."""
        for name in what:
            (self._flags / name).touch()

    def heal(self) -> None:
        """The disk works again."""
        for path in self._flags.iterdir():
            path.unlink()

    def close(self) -> None:
        """Take all of it apart, in whatever state it is."""
        self.heal()
        for path, _ in mountpoints(self.mountpoint):
            run("umount", "-l", path)
        for loop in filter(None, (self._loop, self._journal_loop)):
            run("losetup", "-d", loop)
        if mountpoints(self._export):
            run("fusermount3", "-u", "-z", self._export)
        try:
            self._server.wait(END_S)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._log.close()


@contextmanager
def failing_disk(folder: pathlib.Path, size: int) -> Iterator[FailingDisk]:
    """A failing disk that is mounted and works, for now."""
    disk = FailingDisk(folder, size)
    try:
        disk.start()
        yield disk
    finally:
        disk.close()
