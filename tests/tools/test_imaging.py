"""Import and export: what is read as what, that the bytes arrive, and that failures leave nothing."""

import errno
import os
import pathlib
import random
import re
import subprocess
from collections.abc import Iterator

import pytest

from metadata.errors import Exists, InvalidRequest, NotFound, Unavailable
from tools import imaging

MIB = 1 << 20


@pytest.fixture
def raw(tmp_path: pathlib.Path) -> pathlib.Path:
    """Six MiB and a bit, with holes, zeros and data."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.write(random.Random(1).randbytes(MIB + 4096))
        file.seek(3 * MIB)
        file.write(bytes(MIB))
        file.seek(5 * MIB + 100)
        file.write(b"end")
        file.truncate(6 * MIB + 512)
    return path


@pytest.fixture
def progress() -> Iterator[list[tuple[int, int]]]:
    """What was reported; never backwards."""
    seen: list[tuple[int, int]] = []
    yield seen
    assert seen == sorted(seen)


def note(seen: list[tuple[int, int]]) -> imaging.Progress:
    return lambda done, total: seen.append((done, total))


def quiet(done: int, total: int) -> None:
    """Progress for nobody."""


def qemu_img(*words: object) -> None:
    subprocess.run(["qemu-img", *map(str, words)], check=True, capture_output=True)


def test_a_raw_image_arrives_with_its_holes(raw: pathlib.Path, progress: list[tuple[int, int]]) -> None:
    target = raw.with_name("vdisk")
    imaging.import_image(str(raw), str(target), image_format=None, progress=note(progress))
    assert target.read_bytes() == raw.read_bytes()
    assert target.stat().st_blocks <= raw.stat().st_blocks
    assert progress[-1] == (6 * MIB + 512, 6 * MIB + 512)


@pytest.mark.parametrize("content", [b"", b"x", bytes(4096)])
def test_small_raw_images_arrive_as_they_are(tmp_path: pathlib.Path, content: bytes) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(content)
    imaging.import_image(str(source), str(target), image_format="raw", progress=quiet)
    assert target.read_bytes() == content


@pytest.mark.parametrize(
    ("image_format", "extension"), [("qcow2", "qcow2"), ("vmdk", "vmdk"), ("vhdx", "vhdx"), ("vpc", "vhd")]
)
def test_an_image_survives_the_way_out_and_in(
    raw: pathlib.Path, progress: list[tuple[int, int]], image_format: str, extension: str
) -> None:
    image, back = raw.with_name(f"image.{extension}"), raw.with_name("back")
    imaging.export_image(str(raw), str(image), image_format=None, progress=quiet)
    found = imaging.probe(str(image), image_format=image_format)
    assert found.image_format == image_format
    imaging.import_image(str(image), str(back), image_format=image_format, progress=note(progress))
    content = raw.read_bytes()
    assert back.read_bytes()[: len(content)] == content
    assert not any(back.read_bytes()[len(content) :])  # formats round sizes up
    assert progress[-1][0] == progress[-1][1] == found.size


def test_a_format_is_found_out_by_content_and_not_by_name(raw: pathlib.Path) -> None:
    image = raw.with_name("misleading.img")
    qemu_img("convert", "-O", "qcow2", raw, image)
    assert imaging.probe(str(image), image_format=None).image_format == "qcow2"
    assert imaging.probe(str(image), image_format="raw").size == image.stat().st_size


def test_an_image_that_would_pull_in_another_file_is_refused_unless_trusted(raw: pathlib.Path) -> None:
    image, target = raw.with_name("over.qcow2"), raw.with_name("target")
    qemu_img("create", "-q", "-f", "qcow2", "-b", raw, "-F", "raw", image)
    with pytest.raises(InvalidRequest, match=f"needs {raw}: say -f qcow2 to trust it"):
        imaging.import_image(str(image), str(target), image_format=None, progress=quiet)
    imaging.import_image(str(image), str(target), image_format="qcow2", progress=quiet)
    assert target.read_bytes() == raw.read_bytes()


def test_a_vmdk_descriptor_that_names_another_file_is_refused(raw: pathlib.Path) -> None:
    image = raw.with_name("flat.vmdk")
    qemu_img("convert", "-O", "vmdk", "-o", "subformat=monolithicFlat", raw, image)
    with pytest.raises(InvalidRequest, match=r"flat-flat\.vmdk: say -f vmdk"):
        imaging.probe(str(image), image_format=None)
    sparse = raw.with_name("sparse.vmdk")
    qemu_img("convert", "-O", "vmdk", raw, sparse)
    assert imaging.probe(str(sparse), image_format=None).image_format == "vmdk"


def test_a_format_that_qemu_img_does_not_know_is_one_error(raw: pathlib.Path) -> None:
    target = raw.with_name("target")
    with pytest.raises(InvalidRequest, match="Unknown driver 'foo'"):
        imaging.import_image(str(raw), str(target), image_format="foo", progress=quiet)
    with pytest.raises(InvalidRequest, match="foo"):
        imaging.export_image(str(raw), str(target), image_format="foo", progress=quiet)
    with pytest.raises(InvalidRequest, match=r"by the extension \.foo: name one with -f"):
        imaging.export_image(str(raw), str(raw.with_name("image.foo")), image_format=None, progress=quiet)
    assert list(raw.parent.iterdir()) == [raw]


def test_a_damaged_image_is_one_error_and_leaves_nothing(raw: pathlib.Path) -> None:
    image = raw.with_name("image.qcow2")
    qemu_img("convert", "-O", "qcow2", raw, image)
    with image.open("r+b") as file:
        file.truncate(image.stat().st_size // 2)
    before = sorted(raw.parent.iterdir())
    with pytest.raises(InvalidRequest):
        imaging.import_image(str(image), str(raw.with_name("x" * 8)), image_format="vmdk", progress=quiet)
    assert sorted(raw.parent.iterdir()) == before


@pytest.mark.parametrize(
    ("magic", "name"), [(b"\x1f\x8b\x08", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"PK\x03\x04", "zip")]
)
def test_a_packed_image_is_not_taken_for_a_raw_one(tmp_path: pathlib.Path, magic: bytes, name: str) -> None:
    path = tmp_path / "disk.img.packed"
    path.write_bytes(magic + bytes(1000))
    with pytest.raises(InvalidRequest, match=f"packed \\({name}\\): unpack it first"):
        imaging.probe(str(path), image_format=None)
    assert imaging.probe(str(path), image_format="raw").image_format == "raw"


def test_without_qemu_img_raw_images_work_and_others_say_what_is_missing(
    raw: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = raw.with_name("image")
    qemu_img("convert", "-O", "qcow2", raw, image)
    monkeypatch.setattr(imaging, "QEMU_IMG", "qemu-img-is-not-here")
    assert imaging.probe(str(raw), image_format=None).image_format == "raw"
    for path, image_format in ((image, None), (raw, "vmdk")):
        with pytest.raises(Unavailable, match="apt install qemu-utils"):
            imaging.probe(str(path), image_format=image_format)
    with pytest.raises(Unavailable, match="apt install qemu-utils"):
        imaging.export_image(str(raw), str(raw.with_name("x.qcow2")), image_format=None, progress=quiet)
    assert sorted(raw.parent.iterdir()) == [raw, image]


def test_what_is_no_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        imaging.probe(str(tmp_path / "absent"), image_format=None)
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path, tmp_path / "fifo"):
        with pytest.raises(InvalidRequest, match="not a file"):
            imaging.probe(str(path), image_format=None)


def test_nothing_is_ever_replaced(raw: pathlib.Path) -> None:
    taken = raw.with_name("taken")
    taken.write_text("precious")
    for move in (imaging.import_image, imaging.export_image):
        with pytest.raises(Exists):
            move(str(raw), str(taken), image_format="raw", progress=quiet)
    assert taken.read_text() == "precious"


def test_a_target_that_appears_meanwhile_is_not_replaced_either(raw: pathlib.Path) -> None:
    target = raw.with_name("target")
    with pytest.raises(Exists):
        imaging.import_image(
            str(raw),
            str(target),
            image_format=None,
            progress=lambda done, total: target.write_text("mine") and None,
        )
    assert target.read_text() == "mine"
    assert sorted(raw.parent.iterdir()) == [raw, target]


def test_a_name_that_cannot_be_fails_before_the_work(raw: pathlib.Path) -> None:
    def never(done: int, total: int) -> None:
        raise AssertionError("copied for nothing")

    with pytest.raises(OSError, match="File name too long"):
        imaging.import_image(str(raw), str(raw.with_name("x" * 256)), image_format=None, progress=never)
    with pytest.raises(NotFound, match=r"the directory .* does not exist"):
        imaging.import_image(str(raw), str(raw.parent / "absent" / "x"), image_format=None, progress=never)


def test_an_error_names_the_target_and_not_what_it_grows_in(
    raw: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = str(raw.with_name("target"))

    def full(path: str = "x.part", **_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    for broken in ("tempfile.mkstemp", "tools.imaging.sync"):
        with monkeypatch.context() as patched:
            patched.setattr(broken, full)
            with pytest.raises(OSError, match=re.escape(repr(target))):
                imaging.import_image(str(raw), target, image_format=None, progress=quiet)


@pytest.mark.parametrize("source", ["raw", "qcow2"])
def test_an_interruption_leaves_nothing_behind(raw: pathlib.Path, source: str) -> None:
    image = raw
    if source == "qcow2":
        image = raw.with_name("image.qcow2")
        qemu_img("convert", "-O", "qcow2", raw, image)
    before = sorted(raw.parent.iterdir())

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        imaging.import_image(str(image), str(raw.with_name("t")), image_format=None, progress=interrupt)
    assert sorted(raw.parent.iterdir()) == before
