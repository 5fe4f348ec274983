"""qemu-img and qemu-io use vdisks as they use any file, and find that holes are holes."""

import json
import os
import pathlib
import subprocess

from tests.mounted_pool import COMMAND_S, MountedPool

MIB = 1 << 20
DRIVE = "file={},if=none,id=d,format=raw,cache=none"


def tool(*command: object) -> str:
    """Run one of QEMU's tools and insist that it succeeds."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=COMMAND_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def qemu_io(disk: pathlib.Path, *steps: str, options: str = "-n -f raw") -> str:
    """Carry out qemu-io's own little commands on the vdisk; a pattern that differs is a failure."""
    output = tool("qemu-io", *options.split(), *(word for step in steps for word in ("-c", step)), disk)
    assert "Pattern verification failed" not in output, output
    return output


def sample(path: pathlib.Path) -> None:
    """A raw image of 64 MiB with data at its start, in its middle and at its end."""
    with path.open("wb") as file:
        for offset in (0, 20 * MIB, 63 * MIB):
            file.seek(offset)
            file.write(os.urandom(MIB))


def test_qemu_img_converts_to_and_from_the_mount(mounted: MountedPool, tmp_path: pathlib.Path) -> None:
    raw, disk, back = tmp_path / "raw", mounted.mountpoint / "disk", tmp_path / "back.qcow2"
    sample(raw)
    tool("qemu-img", "convert", "-f", "raw", "-O", "raw", "-t", "none", "-T", "none", raw, disk)
    tool("qemu-img", "compare", "-f", "raw", "-F", "raw", raw, disk)
    assert disk.stat().st_blocks * 512 < 4 * MIB
    tool("qemu-img", "convert", "-f", "raw", "-O", "qcow2", disk, back)
    tool("qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, back)


def test_qemu_img_maps_the_holes_of_a_vdisk(mounted: MountedPool) -> None:
    disk = mounted.mountpoint / "disk"
    sample(disk)
    extents = json.loads(tool("qemu-img", "map", "-f", "raw", "--output=json", disk))
    data = [(extent["start"], extent["length"]) for extent in extents if extent["data"]]
    assert data == [(0, MIB), (20 * MIB, MIB), (63 * MIB, MIB)]


def test_a_qcow2_image_may_live_inside_a_vdisk(mounted: MountedPool) -> None:
    image = mounted.mountpoint / "image.qcow2"
    tool("qemu-img", "create", "-f", "qcow2", image, "1G")
    qemu_io(image, "write -P 7 0 1M", "write -P 8 512M 64k", "flush", options="-n -f qcow2")
    tool("qemu-img", "check", image)
    qemu_io(image, "read -P 7 0 1M", "read -P 8 512M 64k", "read -P 0 1M 1M", options="-n -f qcow2")


def test_qemu_img_creates_preallocated_images(mounted: MountedPool) -> None:
    for mode in ("off", "falloc", "full"):
        disk = mounted.mountpoint / mode
        tool("qemu-img", "create", "-f", "raw", "-o", f"preallocation={mode}", disk, "8M")
        assert disk.stat().st_size == 8 * MIB
        qemu_io(disk, "read -P 0 0 8M")


def test_qemu_io_writes_zeroes_and_discards(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "16M")
    qemu_io(disk, "write -P 1 0 16M", "flush")
    assert disk.stat().st_blocks * 512 >= 16 * MIB
    qemu_io(
        disk, "discard 4M 4M", "write -z -u 8M 4M", "write -P 0 12M 1M", "flush", options="-n -d unmap -f raw"
    )
    qemu_io(disk, "read -P 1 0 4M", "read -P 0 4M 9M", "read -P 1 13M 3M")
    assert disk.stat().st_blocks * 512 < 8 * MIB


def test_qemu_io_works_in_sectors(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "1M")
    qemu_io(disk, "write -P 1 0 512", "write -P 2 512 512", "write -P 3 4608 1024", "flush")
    qemu_io(disk, "read -P 1 0 512", "read -P 2 512 512", "read -P 0 1024 3584", "read -P 3 4608 1024")


def test_qemu_img_bench_runs_with_native_asynchronous_io(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "16M")
    for options in ("-w", ""):
        tool(
            "qemu-img",
            "bench",
            "-f",
            "raw",
            "-t",
            "none",
            "-n",
            "-c",
            "2000",
            "-d",
            "16",
            *options.split(),
            disk,
        )
    tool(
        "qemu-img",
        "bench",
        "-f",
        "raw",
        "-t",
        "none",
        "-w",
        "--flush-interval=16",
        "-c",
        "500",
        "-d",
        "16",
        disk,
    )


def test_qemu_s_image_lock_keeps_a_running_machine_s_disk_from_others(mounted: MountedPool) -> None:
    disk = mounted.create("disk", "1M")
    machine = f"qemu-system-x86_64 -M pc -S -display none -nodefaults -qmp stdio -drive {DRIVE.format(disk)}"
    with subprocess.Popen(
        [*machine.split(), "-device", "virtio-blk-pci,drive=d"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert b"QMP" in running.stdout.readline()
        running.stdin.write(b'{"execute": "qmp_capabilities"}\n')
        running.stdin.flush()
        assert b"return" in running.stdout.readline()  # it answers when the machine has its disk
        second = subprocess.run(
            ["qemu-io", "-f", "raw", "-c", "write 0 4k", disk], capture_output=True, text=True
        )
        running.kill()
    assert 'Failed to get "write" lock' in second.stderr
    qemu_io(disk, "write -P 1 0 4k")
