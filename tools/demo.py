"""``make demo``: a pool, two nodes and a real disk image in and out, each step shown as a user would type it.

Nothing outside one scratch folder is touched, and that is gone at the end, mount and processes included.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from fusefs import mount_table

CONTENT = "/usr/share/doc"
"""Any tree of files on every Debian; the demo's disk image is a file system of it."""

STEPS = """
# A disk image to begin with: an ext4 of this machine's documentation, as qcow2.
mke2fs -q -t ext4 -d {content} image.raw {megabytes}M
qemu-img convert -f raw -O qcow2 image.raw image.qcow2

# A pool is a directory; mounted, the files in it are virtual disks.
vdiskfs format pool
vdiskfs mount pool disks --state state --node here

# The image comes in, whatever its format was, and goes on being a file to everybody.
vdiskfs import image.qcow2 disks/documentation
qemu-img compare -f qcow2 -F raw image.qcow2 disks/documentation
e2fsck -fn disks/documentation

# A fresh disk, written the way a hypervisor writes it: past the page cache, flushed, trimmed.
vdiskfs create disks/scratch 256M
qemu-io -n -d unmap -f raw -c "write -P 7 0 4M" -c flush -c "discard 1M 2M" -c flush disks/scratch
qemu-img map -f raw disks/scratch

# A copy shares the bytes of its original. (cp shares what it copies whole; sparse files it would read and write.)
du -sh pool
cp --sparse=never disks/documentation disks/clone
du -sh pool

# A snapshot is made in no time, and read as a file; a clone of it is a disk of its own.
vdiskfs snap create disks/scratch@before
qemu-io -n -f raw -c "write -P 9 0 2M" -c flush disks/scratch
vdiskfs diff disks/scratch@before
vdiskfs clone disks/scratch@before disks/attempt
vdiskfs snap rollback disks/scratch@before
cmp disks/scratch disks/attempt

# What is deleted by mistake comes back from the trash.
vdiskfs rm disks/attempt
vdiskfs trash ls disks
vdiskfs trash restore disks/attempt
vdiskfs tree disks

# What is there, and where it lies in the pool.
vdiskfs ls disks
vdiskfs info disks/clone
vdiskfs map disks/scratch
vdiskfs du disks
vdiskfs status disks

# Away and back again: every byte is the same, and every block agrees with its checksum.
sha256sum disks/documentation disks/clone disks/scratch > before
vdiskfs umount disks
vdiskfs mount pool disks --state state --node here
sha256sum -c before
vdiskfs scrub disks

# A second node of the same pool: what one has flushed, the other reads, from an index of its own.
vdiskfs mount pool there --state there.state --node there
qemu-io -n -f raw -c "write -P 3 0 1M" -c flush disks/scratch
cmp disks/scratch there/scratch

# A file that is open there stays as it is, whatever is published; opened again, it is the newest.
sha256sum there/scratch
sh -c "exec 3<there/scratch; qemu-io -n -f raw -c 'write -P 4 0 1M' -c flush disks/scratch; sha256sum <&3"
cmp disks/scratch there/scratch

# A node may write what another owns: idle, the vdisk is handed over. Verbs work on any node.
vdiskfs snap create there/scratch@from-there
qemu-io -n -f raw -c "write -P 5 1M 1M" -c flush there/scratch
cmp disks/scratch there/scratch
qemu-io -n -f raw -c "write -P 6 2M 1M" -c flush disks/scratch
vdiskfs status there

# The first node, which owns it now, dies at once, as by a power cut. Reading goes on.
sha256sum disks/scratch there/scratch
power-off disks
sha256sum there/scratch

# Writing, too, once the dead node's session has ended: there takes the vdisk over.
qemu-io -n -f raw -c "write -P 8 3M 1M" -c flush there/scratch
vdiskfs status there
vdiskfs check there

# The first node comes back, and sees what happened meanwhile.
vdiskfs umount --force disks
vdiskfs mount pool disks --state state --node here
cmp disks/scratch there/scratch
vdiskfs umount there

# And out again, as an image for somebody else.
vdiskfs export disks/documentation out.qcow2
qemu-img compare -f qcow2 -F qcow2 image.qcow2 out.qcow2
vdiskfs umount disks
"""

MOUNTPOINTS = ("disks", "there")
POWER_OFF = "power-off "
"""A step of the demo's own: what it does is shown as well."""


def main() -> int:
    """Run every step; 0 if all of them succeed."""
    with _scratch() as folder:
        for line in STEPS.strip().splitlines():
            step = line.format(content=CONTENT, megabytes=_megabytes(CONTENT))
            if not step or step.startswith("#"):
                print(step, flush=True)
            elif step.startswith(POWER_OFF):
                _power_off(step.removeprefix(POWER_OFF), folder)
            elif not _run(step, folder):
                return 1
    print("\nThat was all of it; the scratch folder is gone again.")
    return 0


@contextmanager
def _scratch() -> Iterator[str]:
    """A folder for pool, state and mount, with nothing left of them afterwards."""
    with tempfile.TemporaryDirectory(prefix="vdiskfs-demo-") as folder:
        for name in MOUNTPOINTS:
            os.mkdir(os.path.join(folder, name))
        try:
            yield folder
        finally:
            for name in MOUNTPOINTS:
                if _is_mounted(os.path.join(folder, name)):
                    subprocess.run(_command(f"vdiskfs umount --force {name}"), cwd=folder, env=_environment())


def _is_mounted(path: str) -> bool:
    """Also one that has lost its daemon."""
    return any(entry.mountpoint == os.path.realpath(path) for entry in mount_table.read_mounts())


def _power_off(name: str, folder: str) -> None:
    """Keeper and daemon of a mount die together."""
    asked = subprocess.run(
        _command(f"vdiskfs status {name} --json"),
        cwd=folder,
        env=_environment(),
        capture_output=True,
        check=True,
    )
    facts = json.loads(asked.stdout)
    pids = [int(facts["keeper_pid"]), int(facts["pid"])]
    print(f"$ kill -9 {' '.join(map(str, pids))}", flush=True)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that neither sees the other's end
        for pid in pids:
            os.kill(pid, number)


def _run(step: str, folder: str) -> bool:
    print(f"$ {step}", flush=True)
    words, _, target = step.partition(" > ")
    if target:
        with open(os.path.join(folder, target), "wb") as output:
            done = subprocess.run(_command(words), cwd=folder, env=_environment(), stdout=output)
    else:
        done = subprocess.run(_command(words), cwd=folder, env=_environment())
    if done.returncode:
        print(f"this step failed with exit code {done.returncode}", file=sys.stderr)
    return done.returncode == 0


def _command(step: str) -> list[str]:
    words = shlex.split(step)
    if words[0] == "vdiskfs":  # installed or not, it is this one
        return [sys.executable, "-m", "tools.cli", *words[1:]]
    return words


def _environment() -> dict[str, str]:
    packages = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"
    return {**os.environ, "PATH": path, "PYTHONPATH": packages}


def _megabytes(content: str) -> int:
    """Room for the tree, generously."""
    total = 0
    for parent, _, names in os.walk(content):
        for name in names:
            path = os.path.join(parent, name)
            if not os.path.islink(path):
                total += os.path.getsize(path) + 4096
    return 64 + 2 * (total >> 20)


if __name__ == "__main__":
    sys.exit(main())
