"""A virtual machine under QEMU's own emulation (no KVM), with a vdisk as its only disk and a job to do."""

import os
import pathlib
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tests.guest.guest_image import archive, guest_image

BOOT_S = 120.0
"""Boot, job and power-off take 3 to 5 s on an idle machine."""

DRIVE = "if=none,id=disk,format=raw,cache=none,aio=native,discard=unmap"


class Machine:
    """One running guest, from power-on to power-off."""

    def __init__(
        self,
        disk: pathlib.Path,
        job: str,
        *,
        folder: pathlib.Path,
        drive: str = DRIVE,
        options: Sequence[str] = (),
    ) -> None:
        """``drive`` begins with ``-`` where it is whole arguments; ``options``: further ones."""
        kernel, initramfs = guest_image()
        self.console_path = folder / "console"
        self.console_path.touch()
        boot = folder / "initramfs"
        shared = initramfs.read_bytes()
        boot.write_bytes(shared + bytes(-len(shared) % 4) + archive({"job": job.encode()}))
        self._messages = (folder / "qemu.log").open("w+")
        self.process = subprocess.Popen(
            [
                *"qemu-system-x86_64 -M pc -accel tcg,thread=multi -cpu max -m 192 -display none".split(),
                *"-nodefaults -no-user-config -no-reboot -append".split(),
                "console=ttyS0 quiet panic=-1",
                *f"-serial file:{self.console_path} -kernel {kernel} -initrd {boot}".split(),
                *(drive if drive.startswith("-") else f"-drive file={disk},{drive}")
                .format(disk=disk)
                .split(),
                *"-device virtio-blk-pci,drive=disk".split(),
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=self._messages,
            stderr=subprocess.STDOUT,
        )

    @property
    def console(self) -> str:
        """What the guest has printed so far."""
        return self.console_path.read_text(errors="replace").replace("\r", "")

    def wait_printed(self, pattern: str) -> None:
        """Return when the console shows the pattern."""
        deadline = time.monotonic() + BOOT_S
        while not re.search(pattern, self.console):
            ended = self.process.poll() is not None
            assert not ended or re.search(pattern, self.console), self._report("the guest ended")
            assert time.monotonic() < deadline, self._report(f"no {pattern!r} within {BOOT_S} s")
            try:  # a bounded wait for the only thing that can end the guest's silence for good
                self.process.wait(0.05)
            except subprocess.TimeoutExpired:
                pass

    def wait_powered_off(self, *, timeout_s: float = BOOT_S) -> str:
        """Return the whole console when the guest has done its job successfully and is off."""
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(self._report(f"still running after {timeout_s} s")) from None
        assert self.process.returncode == 0, self._report(f"qemu ended with {self.process.returncode}")
        assert "GUEST-DONE status=0" in self.console, self._report("the job failed")
        return self.console

    def close(self) -> None:
        """Pull the plug, if the guest is not off already."""
        self.process.kill()
        self.process.wait()
        self._messages.close()

    def _report(self, what: str) -> str:
        self._messages.seek(0)
        return f"{what}\n--- console\n{self.console}\n--- qemu\n{self._messages.read()}"


@contextmanager
def booted(
    disk: pathlib.Path, job: str, *, drive: str = DRIVE, options: Sequence[str] = ()
) -> Iterator[Machine]:
    """A machine with ``disk`` as /dev/vda, running the shell script ``job``.

    /mnt is free; e2fsprogs go by their full paths, because busybox has its own ideas of mke2fs.
    """
    with tempfile.TemporaryDirectory(prefix="vdiskfs-guest-") as folder:
        machine = Machine(disk, job, folder=pathlib.Path(folder), drive=drive, options=options)
        try:
            yield machine
        finally:
            machine.close()


def run_guest(disk: pathlib.Path, job: str) -> str:
    """Boot, run the job, power off; what the guest printed."""
    with booted(disk, job) as machine:
        return machine.wait_powered_off()


def check_ext4(disk: pathlib.Path) -> None:
    """Insist that the ext4 on the disk is clean, by e2fsck on this side."""
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    done = subprocess.run(["e2fsck", "-fn", disk], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
