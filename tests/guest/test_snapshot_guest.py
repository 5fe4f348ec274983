"""A guest is snapshotted in the middle of its writing and goes on; a clone of the snapshot boots and is sound."""

import hashlib
import pathlib
import re

from tests.guest.machine import booted, check_ext4, run_guest
from tests.guest.test_guest import ACKNOWLEDGE, LIST
from tests.mounted_pool import MountedPool

ADD = """
set -e
mount -t ext4 /dev/vda /mnt
dd if=/dev/urandom of=/mnt/new bs=64k count=32 2>/dev/null
rm /mnt/0.*
umount /mnt
/sbin/e2fsck -fn /dev/vda
"""


def digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def acknowledged(console: str) -> set[str]:
    return set(re.findall(r"ACKNOWLEDGED (\d+\.\w{32})\n", console))


def test_a_running_guest_is_snapshotted_and_its_clone_boots(mounted: MountedPool) -> None:
    disk, clone = mounted.create("guest", "64M"), mounted.mountpoint / "clone"
    with booted(disk, ACKNOWLEDGE) as machine:
        machine.wait_printed(r"ACKNOWLEDGED 4\.\w{32}")
        before = acknowledged(machine.console)
        mounted.run("snap", "create", f"{disk}@running")
        count = len(acknowledged(machine.console))
        machine.wait_printed(rf"ACKNOWLEDGED {count + 4}\.\w{{32}}")
        mounted.run("clone", f"{disk}@running", clone)
        machine.wait_printed(rf"ACKNOWLEDGED {count + 6}\.\w{{32}}")
        assert "GUEST-WRITE-FAILED" not in machine.console
        later = acknowledged(machine.console)
    frozen = mounted.mountpoint / ".snapshots" / "guest" / "running"
    was = digest(frozen)
    found = set(re.findall(r"FOUND (\d+\.\w{32})", run_guest(clone, LIST)))
    assert before <= found
    assert not {name for name in found if int(name.split(".")[0]) > count + 1}, (
        "the clone has the guest's later files"
    )
    run_guest(clone, ADD)
    check_ext4(clone)
    assert digest(frozen) == was
    found = set(re.findall(r"FOUND (\d+\.\w{32})", run_guest(disk, LIST)))
    assert later <= found
    assert mounted.json("check", mounted.mountpoint)["findings"] == []
