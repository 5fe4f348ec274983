"""Every verb of the command line against a mounted pool, and what it says about bad input."""

import json
import os
import pathlib
import random
import subprocess
import sys

import pytest

from tests.mounted_pool import MountedPool, children, package_environment

MIB = 1 << 20


def failing(pool: MountedPool, *arguments: object) -> str:
    """The one line of a command that fails."""
    done = pool.run(*arguments, exit_code=1)
    assert done.stdout == ""
    assert done.stderr.startswith("vdiskfs: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_a_created_vdisk_is_listed_with_its_size(mounted: MountedPool) -> None:
    mounted.create("a.img", "1.5G")
    (mounted.mountpoint / "dir").mkdir()
    mounted.create("dir/b.img", "10M")
    entries = {entry["name"]: entry for entry in mounted.json("ls", mounted.mountpoint)["entries"]}
    assert (entries["a.img"]["kind"], entries["a.img"]["size"]) == ("vdisk", 3 << 29)
    assert entries["dir"]["kind"] == "directory"
    lines = mounted.run("ls", mounted.mountpoint).stdout.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "ALLOCATED", "VERSION", "MODIFIED"]
    assert lines[1].split()[:3] == ["a.img", "1.5", "GiB"]
    assert lines[2].startswith("dir/")
    (entry,) = mounted.json("ls", mounted.mountpoint / "dir" / "b.img")["entries"]
    assert entry["size"] == 10 * MIB
    assert "exists" in failing(mounted, "create", mounted.mountpoint / "a.img", "1M")


def test_ls_without_a_path_lists_the_working_directory(mounted: MountedPool) -> None:
    (mounted.mountpoint / "dir").mkdir()
    mounted.create("dir/b.img", "10M")
    done = subprocess.run(
        [sys.executable, "-m", "tools.cli", "ls", "--json"],
        cwd=mounted.mountpoint / "dir",
        env=package_environment(),
        capture_output=True,
        check=True,
    )
    assert [entry["name"] for entry in json.loads(done.stdout)["entries"]] == ["b.img"]


def test_info_du_and_map_show_what_was_written(mounted: MountedPool) -> None:
    path = mounted.create("a.img", "64M")
    with path.open("r+b") as file:
        file.write(b"x" * 8192)
        file.seek(32 * MIB)
        file.write(b"y" * MIB)
        os.fsync(file.fileno())
    info = mounted.json("info", path)
    assert (info["kind"], info["size"], info["allocated_bytes"]) == ("vdisk", 64 * MIB, MIB + 8192)
    assert "allocated" in mounted.run("info", path).stdout
    assert mounted.json("du", mounted.mountpoint)["total"]["allocated_bytes"] == MIB + 8192
    assert mounted.run("du", mounted.mountpoint).stdout.splitlines()[-1].startswith("total")
    assert "no cache" in mounted.run("cache", "warm", path).stdout
    assert "directory pool" in failing(mounted, "set", path, "--durability", "node")
    assert "no cache" in mounted.run("cache", "stats", mounted.mountpoint).stdout
    extents = mounted.json("map", path)["extents"]
    assert [(e["kind"], e["offset"], e["length"]) for e in extents] == [
        ("data", 0, 8192),
        ("hole", 8192, 32 * MIB - 8192),
        ("data", 32 * MIB, MIB),
        ("hole", 33 * MIB, 31 * MIB),
    ]
    part = mounted.json("map", path, "--offset", "4K", "--length", "8K")["extents"]
    assert [(e["kind"], e["offset"], e["length"]) for e in part] == [
        ("data", 4096, 4096),
        ("hole", 8192, 4096),
    ]
    assert len(mounted.run("map", path).stdout.splitlines()) == 5


def test_resizing_grows_and_shrinks_only_when_told(mounted: MountedPool) -> None:
    path = mounted.create("a.img", "1M")
    mounted.run("resize", path, "3M")
    assert path.stat().st_size == 3 * MIB
    assert "--allow-shrink" in failing(mounted, "resize", path, "1M")
    mounted.run("resize", path, "1M", "--allow-shrink")
    assert path.stat().st_size == mounted.json("info", path)["size"] == MIB
    assert "does not exist" in failing(mounted, "resize", mounted.mountpoint / "absent", "1M")


def test_what_is_in_use_is_deleted_only_by_force(mounted: MountedPool) -> None:
    first, second = mounted.create("a.img", "1M"), mounted.create("b.img", "1M")
    with second.open("rb"):
        assert f"pid {os.getpid()}, {second}" in failing(mounted, "rm", first, second)
        assert first.exists()
        mounted.run("rm", "--force", first, second)
    assert list(mounted.mountpoint.iterdir()) == []
    assert "does not exist" in failing(mounted, "rm", first)
    (mounted.mountpoint / "dir").mkdir()
    assert "is a directory" in failing(mounted, "rm", mounted.mountpoint / "dir")


@pytest.mark.parametrize("image_format", ["raw", "qcow2", "vmdk", "vhdx"])
def test_an_image_comes_in_and_goes_out_unchanged(mounted: MountedPool, image_format: str) -> None:
    raw, image = mounted.folder / "disk.raw", mounted.folder / f"disk.{image_format}"
    with raw.open("wb") as file:
        file.write(random.Random(7).randbytes(3 * MIB))
        file.truncate(16 * MIB)
    if image_format != "raw":
        subprocess.run(
            ["qemu-img", "convert", "-O", image_format, raw, image], check=True, capture_output=True
        )
    vdisk = mounted.mountpoint / "vdisk"
    mounted.run("import", image, vdisk)
    assert vdisk.read_bytes() == raw.read_bytes()
    assert mounted.json("info", vdisk)["allocated_bytes"] <= 4 * MIB
    assert [path.name for path in mounted.mountpoint.iterdir()] == ["vdisk"]
    out = mounted.folder / f"out.{image_format}"
    mounted.run("export", vdisk, out)
    compared = subprocess.run(["qemu-img", "compare", raw, out], capture_output=True, check=False)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    assert "exists" in failing(mounted, "import", image, vdisk)
    assert "exists" in failing(mounted, "export", vdisk, out)


def test_bad_input_is_one_line_and_leaves_nothing(mounted: MountedPool) -> None:
    image = mounted.folder / "image"
    image.write_bytes(b"x" * 4096)
    assert "Unknown driver" in failing(mounted, "import", "-f", "foo", image, mounted.mountpoint / "x")
    assert "at most 255 bytes" in failing(mounted, "import", image, mounted.mountpoint / ("x" * 256))
    assert "at most 255 bytes" in failing(mounted, "create", mounted.mountpoint / ("x" * 256), "1M")
    assert "1 EiB" in mounted.run("create", mounted.mountpoint / "x", "16E", exit_code=2).stderr
    assert list(mounted.mountpoint.iterdir()) == []


def test_status_tells_who_serves_a_mount(mounted: MountedPool) -> None:
    status = mounted.json("status", mounted.mountpoint)
    notifiers = children(status["pid"])  # of the daemon, fusefs/notifier.py
    assert sorted([status["pid"], status["keeper_pid"], *notifiers]) == mounted.processes()
    assert (status["node"], status["service"], status["requests_to_owners"]) == ("here", "serving", 0)
    mine = [m for m in mounted.json("status")["mounts"] if m["mountpoint"] == str(mounted.mountpoint)]
    assert [m["pid"] for m in mine] == [status["pid"]]
    assert str(mounted.mountpoint) in mounted.run("status").stdout
    assert "keeper pid" in mounted.run("status", mounted.mountpoint).stdout


def test_check_and_scrub_find_nothing_in_a_sound_pool(mounted: MountedPool) -> None:
    with mounted.create("a.img", "4M").open("r+b") as file:
        file.write(b"x" * MIB)
    for verb in ("check", "scrub"):
        answer = mounted.json(verb, mounted.mountpoint)
        assert (answer["vdisks"], answer["findings"]) == (1, [])
        assert mounted.run(verb, mounted.mountpoint / "a.img").stdout == "1 vdisks, no problems\n"


def test_a_pool_is_mounted_once(mounted: MountedPool) -> None:
    again = ("--state", mounted.state, "--node", "here")
    assert "is busy" in failing(mounted, "mount", mounted.pool, mounted.mountpoint, *again)
    elsewhere = mounted.folder / "elsewhere"
    elsewhere.mkdir()
    assert "state directory" in failing(mounted, "mount", mounted.pool, elsewhere, *again)
    assert os.listdir(mounted.mountpoint) == []
    assert not os.path.ismount(elsewhere)


def test_what_cannot_be_mounted_says_why_and_leaves_nothing(unmounted: MountedPool) -> None:
    marker = next(path for path in unmounted.pool.iterdir() if path.suffix == ".pool")
    whole = marker.read_text()
    for content, reason in ((json.dumps({**json.loads(whole), "format": 99}), "format 99"), ("{", "damaged")):
        marker.write_text(content)
        assert reason in failing(unmounted, "mount", unmounted.pool, unmounted.mountpoint)
    marker.write_text(whole)
    assert "mkdir" in failing(unmounted, "mount", unmounted.pool, unmounted.folder / "absent")
    assert "would be hidden" in failing(unmounted, "mount", unmounted.pool, unmounted.folder)
    assert not os.path.ismount(unmounted.mountpoint)
    assert unmounted.processes() == []


@pytest.mark.root
def test_a_read_only_pool_is_refused(unmounted: MountedPool) -> None:
    folder, code = (
        unmounted.folder,
        'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && shift && exec "$@"',
    )
    mount = [
        sys.executable,
        "-m",
        "tools.cli",
        "mount",
        unmounted.pool,
        unmounted.mountpoint,
        "--state",
        folder / "s",
    ]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", code, "sh", unmounted.pool, *mount],
        env=package_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("vdiskfs: the pool is read-only")
    assert done.stderr.count("\n") == 1


@pytest.mark.root
def test_a_machine_without_fuse_is_told_what_to_do(unmounted: MountedPool) -> None:
    mount = [sys.executable, "-m", "tools.cli", "mount", unmounted.pool, unmounted.mountpoint]
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", 'mount -t tmpfs none /dev && exec "$@"', "sh", *mount],
        env=package_environment(),
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (
        1,
        "vdiskfs: /dev/fuse is missing: load the module (modprobe fuse), or give this container the device\n",
    )


def test_a_mount_in_the_foreground_ends_when_its_keeper_is_told_to(unmounted: MountedPool) -> None:
    command = [
        sys.executable,
        "-m",
        "tools.cli",
        "mount",
        "--foreground",
        unmounted.pool,
        unmounted.mountpoint,
    ]
    with subprocess.Popen(
        [*command, "--state", unmounted.state, "--node", "here"],
        env=package_environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as keeper:
        assert keeper.stderr is not None
        assert any(line.endswith("keeper: ready\n") for line in keeper.stderr)
        pathlib.Path(unmounted.mountpoint, "vdisk").touch()
        keeper.terminate()
        said = keeper.stderr.read()
        assert keeper.wait() == 0, said
    assert unmounted.processes() == []
    assert not os.path.ismount(unmounted.mountpoint)


def test_gc_gives_overwritten_space_back_and_says_how_much(mounted: MountedPool) -> None:
    path, data = mounted.create("a.img", "64M"), random.Random(3).randbytes(12 * MIB)
    with path.open("r+b", buffering=0) as file:
        for _ in range(3):
            file.seek(0)
            file.write(data)
            os.fsync(file.fileno())
    foreseen = mounted.run("gc", "--dry-run", mounted.mountpoint).stdout
    assert "12 MiB in use" in foreseen
    assert "could be collected" in foreseen
    answer = mounted.json("gc", path)
    assert (answer["vdisks"], answer["failed"], answer["dry_run"]) == (1, 0, False)
    assert mounted.json("info", path)["pool_bytes"] < 18 * MIB
    assert mounted.run("gc", mounted.mountpoint).stdout.endswith("freed\n")
    assert path.read_bytes()[: len(data)] == data
    assert mounted.json("check", mounted.mountpoint)["findings"] == []
    assert "no such" in failing(mounted, "gc", mounted.mountpoint / "b.img")
