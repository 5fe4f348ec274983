"""A real guest on a vdisk: it formats, writes, trims, and loses daemon, plug or state directory."""

import hashlib
import pathlib
import re
import shutil

from tests.crash.assault import Assault
from tests.guest.machine import booted, check_ext4, run_guest
from tests.mounted_pool import MountedPool

MIB = 1 << 20
SHORT_ROUNDS = 4
WORK_PER_EVENT = 40
"""Files a guest writes between one killed daemon and the next, about."""
EVENT_S = 60.0

FORMAT_AND_WRITE = """
set -e
/sbin/mke2fs -q -t ext4 -F /dev/vda
mount -t ext4 /dev/vda /mnt
for i in 0 1 2 3 4 5 6 7 8 9; do dd if=/dev/urandom of=/mnt/file$i bs=64k count=64 2>/dev/null; done
(cd /mnt; sha256sum file* > MANIFEST)
sync
umount /mnt
"""

VERIFY = """
set -e
/sbin/e2fsck -fn /dev/vda
mount -t ext4 -o ro /dev/vda /mnt
cd /mnt; sha256sum -c MANIFEST
"""

TRIM = """
set -e
mount -t ext4 /dev/vda /mnt
rm /mnt/file*
sync
fstrim -v /mnt
umount /mnt
"""

ACKNOWLEDGE = """
/sbin/mke2fs -q -t ext4 -F /dev/vda
mount -t ext4 /dev/vda /mnt
i=0
while true; do
    dd if=/dev/urandom of=/tmp/data bs=1k count=64 2>/dev/null
    sum=$(md5sum < /tmp/data | cut -d' ' -f1)
    dd if=/tmp/data of=/mnt/$i.$sum bs=64k conv=fsync 2>/dev/null || { echo GUEST-WRITE-FAILED; exit 1; }
    echo "ACKNOWLEDGED $i.$sum"
    i=$((i + 1))
done
"""

WORK = """
set -e
/sbin/mke2fs -q -t ext4 -F /dev/vda
mount -t ext4 /dev/vda /mnt
i=0
while [ $i -lt ROUNDS ]; do
    dd if=/dev/urandom of=/mnt/file$((i % 8)) bs=64k count=16 conv=fsync 2>/dev/null
    i=$((i + 1))
    echo "ROUND $i"
done
(cd /mnt; sha256sum file* > MANIFEST; sha256sum -c MANIFEST)
umount /mnt
dmesg | grep -i "i/o error\\|blk_update\\|ext4-fs error" && exit 1
true
"""

LIST = """
/sbin/e2fsck -p -f /dev/vda
[ $? -le 1 ] || exit 1
mount -t ext4 -o ro /dev/vda /mnt
for file in /mnt/*.*; do
    sum=$(md5sum < $file | cut -d' ' -f1)
    [ $sum = ${file##*.} ] && echo "FOUND ${file##*/}"
done
true
"""


def digest(path: pathlib.Path) -> str:
    """The checksum of a whole vdisk, read through the mount."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def allocated(path: pathlib.Path) -> int:
    """The bytes that a vdisk takes in the pool, as ``du`` counts."""
    return path.stat().st_blocks * 512


def test_what_a_guest_wrote_outlives_the_mount_and_the_state_directory(mounted: MountedPool) -> None:
    disk = mounted.create("guest", "128M")
    run_guest(disk, FORMAT_AND_WRITE)
    check_ext4(disk)
    before = digest(disk)

    mounted.umount()
    mounted.mount()
    assert digest(disk) == before

    mounted.umount()
    shutil.rmtree(mounted.state)
    mounted.mount()
    assert digest(disk) == before
    mounted.run("check", mounted.mountpoint)
    assert run_guest(disk, VERIFY).count(": OK") == 10


def test_fstrim_in_the_guest_gives_the_space_back(mounted: MountedPool) -> None:
    disk = mounted.create("guest", "128M")
    run_guest(disk, FORMAT_AND_WRITE)
    written = allocated(disk)
    assert written >= 40 * MIB

    run_guest(disk, TRIM)
    assert allocated(disk) < written - 35 * MIB
    check_ext4(disk)


def test_a_guest_sees_a_pause_while_the_daemon_dies_and_keeps_what_it_flushed(mounted: MountedPool) -> None:
    """The daemon dies three times under the running guest, then daemon, keeper and guest all at once."""
    disk = mounted.create("guest", "64M")
    with booted(disk, ACKNOWLEDGE) as machine:
        for number in (2, 6, 10):
            machine.wait_printed(rf"ACKNOWLEDGED {number}\.")
            mounted.kill_daemon()
        machine.wait_printed(r"ACKNOWLEDGED 14\.\w{32}")
        assert "GUEST-WRITE-FAILED" not in machine.console
        mounted.kill()
        acknowledged = set(re.findall(r"ACKNOWLEDGED (\d+\.\w{32})\n", machine.console))
    mounted.mount()
    mounted.run("check", mounted.mountpoint)
    found = set(re.findall(r"FOUND (\d+\.\w{32})", run_guest(disk, LIST)))
    assert acknowledged <= found


def test_a_guest_works_on_while_daemons_and_keepers_die(
    mounted: MountedPool, seed: int, rounds: int | None
) -> None:
    disk = mounted.create("guest", "64M")
    with booted(disk, WORK.replace("ROUNDS", str((rounds or SHORT_ROUNDS) * WORK_PER_EVENT))) as machine:
        machine.wait_printed("ROUND 1\n")
        assault = Assault(mounted, seed=seed, count=rounds or SHORT_ROUNDS)
        try:
            console = machine.wait_powered_off(timeout_s=(rounds or SHORT_ROUNDS) * EVENT_S)
        finally:
            assault.stop()
    print(assault.describe())
    assert console.count(": OK") == 8
    assert assault.done.total() > 0
    check_ext4(disk)
    mounted.run("check", mounted.mountpoint)
