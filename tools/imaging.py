"""Disk images in and out: raw ones by sparse copy, all other formats through qemu-img.

Both ways write to a temporary name beside the target, make it durable and then rename it, never replacing
anything, so a failure or an interruption leaves nothing behind (a kill: one file ``.vdiskfs-*.part``).

What an image claims to be is not trusted blindly: an image that names a backing or data file would pull other
files of this machine into the vdisk, so it is only read when its format was given on the command line.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from subprocess import PIPE
from typing import Any

from metadata.errors import Corrupt, Exists, InvalidRequest, NotFound, Unavailable
from metadata.units import VDISK_BYTES_MAX
from tools.file_calls import rename_new, sync

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

RAW = "raw"
PIECE_BYTES = 1 << 20
QEMU_IMG = "qemu-img"
FORMAT_OF_EXTENSION = {
    "": RAW,
    "img": RAW,
    "raw": RAW,
    "bin": RAW,
    "iso": RAW,
    "qcow2": "qcow2",
    "qcow": "qcow",
    "qed": "qed",
    "vmdk": "vmdk",
    "vdi": "vdi",
    "vhdx": "vhdx",
    "vhd": "vpc",
    "vpc": "vpc",
}
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
_IMAGES = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vhd",
    b"QED\x00": "qed",
}
_PERCENT = re.compile(rb"\(\s*(\d+(?:\.\d+)?)/100%\)")
COMPLAINT_BYTES_MAX = 1 << 16


@dataclass(frozen=True, slots=True)
class Image:
    """A disk image as found: where, in which format, and how large the disk in it is."""

    path: str
    image_format: str
    size: int


def import_image(file: str, target: str, *, image_format: str | None, progress: Progress) -> None:
    """Make the vdisk ``target`` out of the image ``file``.

    Args:
        image_format: as qemu-img names it; None to find it out.

    Raises:
        Exists: there is something at ``target``.
        NotFound, InvalidRequest, Corrupt: no image that can be read.
        OSError: reading or writing failed.
    """
    image = probe(file, image_format=image_format)
    if image.size > VDISK_BYTES_MAX:
        raise InvalidRequest(
            f"{file} holds a disk of {image.size} bytes, a vdisk has {VDISK_BYTES_MAX} at most"
        )
    with _growing_into_place(target) as temporary:
        with open(temporary, "r+b") as vdisk:
            vdisk.truncate(image.size)
        if image.image_format == RAW:
            _copy_sparse(image.path, temporary, size=image.size, progress=progress)
        else:
            options = ["-n", "--target-is-zero", "-f", image.image_format, "-O", RAW]
            _convert([*options, image.path, temporary], size=image.size, progress=progress)


def export_image(source: str, file: str, *, image_format: str | None, progress: Progress) -> None:
    """Make the image ``file`` out of the vdisk ``source``.

    Raises:
        Exists: there is something at ``file``.
        InvalidRequest: a format that cannot be written.
        OSError: reading or writing failed.
    """
    chosen = image_format or format_of_extension(file)
    size = os.stat(source).st_size
    with _growing_into_place(os.path.abspath(file)) as temporary:
        if chosen == RAW:
            with open(temporary, "r+b") as image:
                image.truncate(size)
            _copy_sparse(source, temporary, size=size, progress=progress)
        else:
            options = ["-f", RAW, "-O", chosen]
            _convert([*options, os.path.abspath(source), temporary], size=size, progress=progress)


def format_of_extension(file: str) -> str:
    """The format that a file's name asks for.

    Raises:
        InvalidRequest: none that we know.
    """
    extension = os.path.splitext(file)[1][1:].lower()
    if extension not in FORMAT_OF_EXTENSION:
        raise InvalidRequest(
            f"no image format is known by the extension .{extension}: name one with -f, like -f raw"
        )
    return FORMAT_OF_EXTENSION[extension]


def probe(file: str, *, image_format: str | None) -> Image:
    """Find out what ``file`` is.

    Raises:
        NotFound: there is no such file.
        InvalidRequest: it is packed, needs other files, or its format is unknown.
        Unavailable: it takes qemu-img, which is not there.
    """
    path = os.path.abspath(file)
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as problem:
        raise NotFound(f"{file} does not exist") from problem
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise InvalidRequest(f"{file} is not a file with a disk image")
    start, end, size = _ends(path)
    if image_format == RAW:
        return Image(path, RAW, size)
    for magic, name in _PACKED.items() if image_format is None else ():
        if start.startswith(magic):
            raise InvalidRequest(
                f"{file} is packed ({name}): unpack it first, or say -f raw to take it as it is"
            )
    if shutil.which(QEMU_IMG) is None:
        found = next(
            (name for magic, name in _IMAGES.items() if start.startswith(magic) or end == magic), None
        )
        if image_format is None and found is None:
            return Image(path, RAW, size)
        raise Unavailable(f"{file} is {image_format or found}, which takes qemu-img: apt install qemu-utils")
    facts = _image_facts(path, file, image_format)
    others = [facts[key] for key in ("full-backing-filename", "backing-filename") if key in facts]
    others += _data_files(facts)
    if others and image_format is None:
        raise InvalidRequest(
            f"{file} needs {others[0]}: say -f {facts['format']} to trust it and read that too"
        )
    if facts["format"] == RAW:
        return Image(path, RAW, size)
    return Image(path, str(facts["format"]), int(facts["virtual-size"]))


def _ends(path: str) -> tuple[bytes, bytes, int]:
    """The first and last bytes that tell formats apart, and the size (of a block device too)."""
    with open(path, "rb") as opened:
        size = opened.seek(0, os.SEEK_END)
        opened.seek(0)
        start = opened.read(8)
        opened.seek(max(0, size - 512))
        return start, opened.read(8), size


def _image_facts(path: str, file: str, image_format: str | None) -> dict[str, Any]:
    asked = ["-f", image_format] if image_format else []
    command = [QEMU_IMG, "info", "--output=json", "-U", *asked, path]
    done = subprocess.run(command, capture_output=True, check=False)
    if done.returncode != 0:
        raise InvalidRequest(f"qemu-img cannot read {file}: {_complaint(done.stderr, path)}")
    try:
        facts: dict[str, Any] = json.loads(done.stdout)
        int(facts["virtual-size"])
        str(facts["format"])
    except (ValueError, KeyError, TypeError) as problem:
        raise Corrupt(f"qemu-img says nothing useful about {file}") from problem
    return facts


def _data_files(facts: dict[str, Any]) -> list[str]:
    """The further files that hold the image's data."""
    data = facts.get("format-specific", {}).get("data", {})
    found = [data["data-file"]] if "data-file" in data else []
    if facts["format"] == "vmdk":  # its descriptor names the files with the extents
        found += [
            extent["filename"]
            for extent in data.get("extents", [])
            if extent["filename"] != facts["filename"]
        ]
    return [str(name) for name in found]


def _complaint(stderr: bytes, path: str) -> str:
    lines = os.fsdecode(stderr).strip().splitlines() or ["it failed without a word"]
    return lines[-1].removeprefix("qemu-img: ").replace(f"Could not open '{path}': ", "")


@contextlib.contextmanager
def _growing_into_place(target: str) -> Iterator[str]:
    """A new file beside ``target`` to fill; at the end durable and under its name, on failure gone.

    Raises:
        Exists: there is something at ``target``.
        NotFound: its directory does not exist.
    """
    folder = os.path.dirname(target)
    with contextlib.suppress(FileNotFoundError):
        os.lstat(target)  # a name that cannot be raises here, before the work
        raise Exists(f"{target} exists: choose another name, or delete it first")
    try:
        file, temporary = tempfile.mkstemp(prefix=".vdiskfs-", suffix=".part", dir=folder)
    except FileNotFoundError as problem:
        raise NotFound(f"the directory {folder} does not exist") from problem
    except OSError as problem:
        problem.filename = target
        raise
    os.close(file)
    try:
        yield temporary
        sync(temporary)
        rename_new(temporary, target)
    except BaseException as problem:
        if isinstance(problem, OSError) and problem.filename in (None, temporary):
            problem.filename = target
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync(folder)


def _copy_sparse(source: str, target: str, *, size: int, progress: Progress) -> None:
    """Copy the data of ``source``, and not its holes, into the empty file ``target`` of that size.

    Raises:
        Corrupt: the source became shorter meanwhile.
    """
    buffer = memoryview(bytearray(PIECE_BYTES))
    with open(source, "rb", buffering=0) as reading, open(target, "r+b", buffering=0) as writing:
        for start, end in _data_ranges(reading.fileno(), size):
            offset = start
            while offset < end:
                got = os.preadv(reading.fileno(), [buffer[: end - offset]], offset)
                if got == 0:
                    raise Corrupt(f"{source} became shorter while it was read")
                _write_all(writing.fileno(), buffer[:got], offset)
                offset += got
                progress(offset, size)
    progress(size, size)


def _data_ranges(file: int, size: int) -> Iterator[tuple[int, int]]:
    """The stretches of a file that are not holes; all of it where the filesystem cannot say."""
    offset = 0
    while offset < size:
        try:
            start = os.lseek(file, offset, os.SEEK_DATA)
            offset = min(os.lseek(file, start, os.SEEK_HOLE), size)
        except OSError as problem:
            if problem.errno == errno.ENXIO:  # only a hole is left
                return
            if problem.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP):
                raise
            start, offset = offset, size
        yield start, offset


def _write_all(file: int, data: memoryview, offset: int) -> None:
    done = 0
    while done < len(data):
        done += os.pwrite(file, data[done:], offset + done)


def _convert(arguments: list[str], *, size: int, progress: Progress) -> None:
    """Run ``qemu-img convert`` and pass its progress on.

    Raises:
        InvalidRequest: qemu-img does not know the format, or cannot read the image.
        Unavailable: there is no qemu-img.
    """
    command = [QEMU_IMG, "convert", "-p", *arguments]
    with tempfile.TemporaryFile() as complaints:  # a pipe could fill while only the other one is read
        try:
            converter = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=PIPE, stderr=complaints)
        except FileNotFoundError as problem:
            raise Unavailable("this format takes qemu-img: apt install qemu-utils") from problem
        with converter:
            try:
                assert converter.stdout is not None
                while said := os.read(converter.stdout.fileno(), 4096):
                    for percent in _PERCENT.findall(said):
                        progress(int(size * float(percent) / 100), size)
            except BaseException:
                converter.kill()
                raise
        if converter.returncode != 0:
            complaints.seek(0)
            complaint = _complaint(complaints.read(COMPLAINT_BYTES_MAX), arguments[-2])
            raise InvalidRequest(f"qemu-img cannot convert this: {complaint}")
