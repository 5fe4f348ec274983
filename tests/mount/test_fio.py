"""fio writes through the kernel with checksums in every block and reads them back."""

import pathlib
import subprocess

from tests.mounted_pool import COMMAND_S, MountedPool

VERIFY = (
    "--verify_state_save=0 --verify=crc32c --verify_fatal=1 --do_verify=1 --fallocate=none --group_reporting"
)

JOBS = {
    "random direct 4 KiB": "--rw=randwrite --bs=4k --direct=1 --ioengine=libaio --iodepth=16",
    "random direct 512 bytes": "--rw=randwrite --bs=512 --direct=1 --ioengine=libaio --iodepth=8 --size=1m",
    "sequential direct 1 MiB": "--rw=write --bs=1m --direct=1 --ioengine=libaio --iodepth=4",
    "random buffered 4 KiB": "--rw=randwrite --bs=4k --ioengine=psync",
    "random buffered sizes": "--rw=randwrite --bsrange=512-64k --bs_unaligned=1 --ioengine=psync",
    "buffered with fdatasync": "--rw=randwrite --bs=4k --ioengine=psync --fdatasync=8 --io_size=4m",
    "mapped": "--rw=randwrite --bs=4k --ioengine=mmap",
    "mixed direct": "--rw=randrw --bs=4k-128k --direct=1 --ioengine=libaio --iodepth=8 --verify_backlog=64",
}


def fio(disk: pathlib.Path, options: str, *, size: str = "16m") -> None:
    """Run one verifying job on the whole vdisk."""
    command = f"fio --name=job --filename={disk} --size={size} {VERIFY} {options}"
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=COMMAND_S)
    assert done.returncode == 0, done.stdout + done.stderr


def test_fio_reads_back_what_it_wrote_now_and_after_a_remount(mounted: MountedPool) -> None:
    disks = {name: mounted.create(f"disk{number}", "16M") for number, name in enumerate(JOBS)}
    for name, disk in disks.items():
        fio(disk, JOBS[name])
    mounted.umount()
    mounted.mount()
    for name, disk in disks.items():  # the same seeds, so the same blocks in the same places
        fio(disk, f"{JOBS[name]} --verify_only")
    mounted.run("check", mounted.mountpoint)


def test_fio_overwrites_what_another_job_wrote(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "16M")
    fio(disk, JOBS["sequential direct 1 MiB"])
    fio(disk, JOBS["random direct 4 KiB"])
    fio(disk, JOBS["random buffered 4 KiB"])
    mounted.run("check", mounted.mountpoint)


def test_four_jobs_at_once_keep_to_their_own_vdisks(mounted: MountedPool) -> None:
    for number in range(4):
        mounted.create(f"job.{number}.0", "8M")
    command = (
        f"fio --name=job --directory={mounted.mountpoint} --numjobs=4 --size=8m --rw=randwrite --bs=4k "
        f"--direct=1 --ioengine=libaio --iodepth=8 --fsync=64 {VERIFY}"
    )
    done = subprocess.run(command.split(), capture_output=True, text=True, timeout=COMMAND_S)
    assert done.returncode == 0, done.stdout + done.stderr
    mounted.run("check", mounted.mountpoint)
