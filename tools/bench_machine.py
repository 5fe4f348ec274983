"""The machine under the benchmark: what it is, whether it will do, and its caches in a known state."""

import datetime
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path

from fusefs.mount_table import MOUNTINFO, parse_mountinfo
from metadata.errors import InvalidRequest, NoSpace, NotFound, Unavailable
from tools.bench_processes import missing_program, run_command

DROP_CACHES = Path("/proc/sys/vm/drop_caches")
FUSE_DEVICE = Path("/dev/fuse")
PYTHON_PACKAGES = ("vdiskfs", "trio", "pyfuse3", "rocksdict", "msgpack", "xxhash")


def describe_machine(scratch: Path) -> dict[str, object]:
    """What a reader must know to judge the figures."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "cpu": _first_value(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "load_before": round(os.getloadavg()[0], 2),
        "filesystem": describe_filesystem(scratch),
        "python": platform.python_version(),
        "packages": {name: _package_version(name) for name in PYTHON_PACKAGES},
        "fio": _program_version("fio"),
        "qemu": _program_version("qemu-storage-daemon"),
    }


def describe_filesystem(folder: Path) -> str:
    """Type and source of the filesystem that holds a folder, such as ``ext4 on /dev/vda``."""
    entries = parse_mountinfo(Path(MOUNTINFO).read_bytes())
    holding = [entry for entry in entries if folder.is_relative_to(entry.mountpoint)]
    # The deepest mountpoint holds it; of several mounts on one, the latest.
    deepest = max(reversed(holding), key=lambda entry: len(entry.mountpoint))
    return f"{deepest.filesystem_type} on {deepest.source}"


def check_programs(programs: Iterable[str]) -> None:
    """
    Raises:
        NotFound: one is not installed; the message says how to install it.
    """
    for program in programs:
        if shutil.which(program) is None:
            raise NotFound(missing_program(program))


def check_fuse() -> None:
    """
    Raises:
        NotFound: this machine cannot mount FUSE filesystems.
    """
    if not FUSE_DEVICE.exists():
        raise NotFound(f"{FUSE_DEVICE} is missing; load the kernel module with: modprobe fuse")


def check_scratch(folder: Path, *, needed_bytes: int) -> None:
    """Whether the folder's disk has the space and takes O_DIRECT.

    Raises:
        NoSpace: it is too full.
        InvalidRequest: O_DIRECT does not work there (tmpfs, some network filesystems).
    """
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    if free < needed_bytes:
        raise NoSpace(
            f"{folder} has {free / 2**30:.1f} GiB free, the benchmark needs {needed_bytes / 2**30:.1f} GiB; "
            "name another folder with --scratch, or try --quick"
        )
    probe = folder / "probe"
    probe.write_bytes(bytes(4096))
    try:
        os.close(os.open(probe, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        raise InvalidRequest(
            f"{folder} is on a filesystem without O_DIRECT; name a folder on a disk with --scratch"
        ) from None
    finally:
        probe.unlink()


def settle(folder: Path, images: Iterable[Path] = ()) -> None:
    """Nothing dirty is left: neither in the images' own page cache nor on the disk they all share.

    So no sample pays for the write-back of the one before it.

    Raises:
        Unavailable: an image could not be made durable.
    """
    for image in images:
        try:
            descriptor = os.open(image, os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as exc:
            raise Unavailable(f"cannot flush {image}: {exc.strerror}") from None
    run_command(["sync", "--file-system", str(folder)], allowed_s=600)


def forget_pages(paths: Iterable[Path]) -> None:
    """Drop the files' clean pages from the page cache; a file that has gone has none.

    Raises:
        Unavailable: a file cannot be opened.
    """
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            continue
        except OSError as exc:
            raise Unavailable(f"cannot open {path}: {exc.strerror}") from None
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def drop_caches() -> bool:
    """Forget every clean page, entry and inode of the machine; False without the right to."""
    os.sync()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError:
        return False
    return True


def allocated_bytes(folder: Path, *, leave_out: tuple[str, ...] = ()) -> int:
    """Disk space of all below a folder, but for its own entries whose names begin with one of the words."""
    paths = [entry for entry in folder.iterdir() if not entry.name.startswith(leave_out)]
    total = 0
    while paths:
        path = paths.pop()
        total += path.lstat().st_blocks * 512
        if path.is_dir() and not path.is_symlink():
            paths.extend(path.iterdir())
    return total


def _first_value(path: Path, key: str) -> str:
    for line in path.read_text(errors="replace").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return "unknown"


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _program_version(program: str) -> str:
    try:
        return run_command([program, "--version"]).splitlines()[0].strip()
    except (NotFound, Unavailable, IndexError):
        return "not installed"
