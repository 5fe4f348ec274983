"""Builds the test guest, once, out of Debian packages: a kernel, and an initramfs of busybox and e2fsprogs.

The result lies in ``.build/guest`` at the top of the work tree (outside git) and stays for the next run.
Nothing is installed: the kernel package is only unpacked.
"""

import gzip
import os
import pathlib
import shutil
import stat
import subprocess
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
BUILD = ROOT / ".build" / "guest"
KERNEL_PACKAGE = "linux-image-cloud-amd64"
MODULES = (
    "drivers/virtio/virtio_ring",
    "drivers/virtio/virtio",
    "drivers/virtio/virtio_pci_modern_dev",
    "drivers/virtio/virtio_pci_legacy_dev",
    "drivers/virtio/virtio_pci",
    "drivers/block/virtio_blk",
)
"""In the order in which the guest's init loads them."""

PROGRAMS = ("mke2fs", "e2fsck")
ENVIRONMENT = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin", "LC_ALL": "C"}
DOWNLOAD_S = 600.0


def guest_image() -> tuple[pathlib.Path, pathlib.Path]:
    """The paths of (kernel, initramfs), built now if they are not there yet."""
    kernel, initramfs = BUILD / "kernel", BUILD / "initramfs.gz"
    if not initramfs.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILD) as folder:
            _build(pathlib.Path(folder))
            os.rename(pathlib.Path(folder, "kernel"), kernel)
            os.rename(pathlib.Path(folder, "initramfs.gz"), initramfs)
    return kernel, initramfs


def archive(files: dict[str, bytes | pathlib.Path | str]) -> bytes:
    """A cpio archive ("newc") of executable files (bytes, or a path to copy) and symbolic links (str).

    The kernel unpacks several archives one behind the other, so that a test adds its job to the shared one.
    """
    parents = {str(parent) for name in files for parent in pathlib.PurePath(name).parents}
    entries = [(name, stat.S_IFDIR | 0o755, b"") for name in sorted(parents - {"."})]
    for name, content in sorted(files.items()):
        if isinstance(content, str):
            entries.append((name, stat.S_IFLNK | 0o777, content.encode()))
        else:
            data = content if isinstance(content, bytes) else content.read_bytes()
            entries.append((name, stat.S_IFREG | 0o755, data))
    packed = bytearray()
    for number, (name, mode, data) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
        packed += b"070701" + "".join(f"{field:08x}" for field in fields).encode() + name.encode() + b"\0"
        packed += bytes(-len(packed) % 4) + data
        packed += bytes(-len(packed) % 4)
    return bytes(packed)


def _build(folder: pathlib.Path) -> None:
    package = _download(folder)
    unpacked = folder / "unpacked"
    subprocess.run(["dpkg", "-x", package, unpacked], check=True)
    os.rename(next(unpacked.glob("boot/vmlinuz-*")), folder / "kernel")
    modules = next(unpacked.glob("lib/modules/*/kernel"))
    files: dict[str, bytes | pathlib.Path | str] = {
        "init": pathlib.Path(__file__).with_name("guest_init.sh"),
        "bin/busybox": pathlib.Path("/bin/busybox"),
        "etc/mke2fs.conf": pathlib.Path("/etc/mke2fs.conf"),
        "mnt/.keep": b"",
        "proc/.keep": b"",
        "sys/.keep": b"",
        "dev/.keep": b"",
        "tmp/.keep": b"",
    }
    for applet in _output("/bin/busybox", "--list").split():
        files.setdefault(f"bin/{applet}", "busybox")
    for number, module in enumerate(MODULES):
        files[f"modules/{number}.ko"] = modules / f"{module}.ko"
    for program in PROGRAMS:
        path = shutil.which(program, path=ENVIRONMENT["PATH"])
        assert path is not None, f"{program} is missing: apt-get install e2fsprogs"
        files[f"sbin/{program}"] = pathlib.Path(path)
        for library in (word for word in _output("ldd", path).split() if word.startswith("/")):
            files[library.lstrip("/")] = pathlib.Path(library)
    (folder / "initramfs.gz").write_bytes(gzip.compress(archive(files), compresslevel=1))


def _download(folder: pathlib.Path) -> pathlib.Path:
    """The newest kernel package that ``KERNEL_PACKAGE`` stands for, as a file in ``folder``."""
    if not _kernel_names():
        as_root = [] if os.geteuid() == 0 else ["sudo"]
        subprocess.run(
            [*as_root, "apt-get", "update", "-q"], check=True, capture_output=True, timeout=DOWNLOAD_S
        )
    command = ["apt-get", "download", "-q", _kernel_names()[0]]
    # As root apt would fetch as its own user, which must not write into our folder.
    command[1:1] = ["-o", "APT::Sandbox::User=root"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=DOWNLOAD_S)
    return next(folder.glob("linux-image-*.deb"))


def _kernel_names() -> list[str]:
    done = subprocess.run(["apt-cache", "depends", KERNEL_PACKAGE], capture_output=True, text=True)
    return [line.split()[1] for line in done.stdout.splitlines() if line.strip().startswith("Depends:")]


def _output(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, env=ENVIRONMENT).stdout
