"""Streams in and out: what is taken for one, and what is said of a target that cannot be."""

import errno
import os
import pathlib

import pytest

from metadata.difference_stream import MAGIC
from tests.tools.pretended_daemon import PretendedDaemon
from tools import commands_stream, difference_import

HEADER = b"something else"


@pytest.mark.parametrize(
    ("name", "content", "is_stream"),
    [
        ("a.vdiff", MAGIC + HEADER, True),
        ("a.vdiff", b"", True),
        ("a.vdiff", MAGIC[:3], True),
        ("a.vdiff", HEADER, True),
        ("a.img", MAGIC + HEADER, True),
        ("a.img", MAGIC[:3], False),
        ("a.img", HEADER, False),
    ],
)
def test_a_stream_is_known_by_its_start_or_by_its_name(
    name: str, content: bytes, is_stream: bool, tmp_path: pathlib.Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert commands_stream.is_stream(str(tmp_path / name)) is is_stream


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "is cut"), (MAGIC[:3], "is cut"), (HEADER, "does not begin like one")]
)
def test_a_stream_without_its_start_is_not_taken_for_a_raw_image(
    content: bytes, reason: str, daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pathlib.Path(daemon.mountpoint, "a.vdiff")
    file.write_bytes(content)
    assert daemon.run("import", str(file), "/new.img") == 1
    assert reason in capsys.readouterr().err
    assert os.listdir(daemon.mountpoint) == ["a.vdiff"]


def test_a_directory_cannot_become_what_a_stream_holds(
    daemon: PretendedDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    file = pathlib.Path(daemon.mountpoint, "a.vdiff")
    file.write_bytes(b"")
    for path in ("/", "/dir"):
        pathlib.Path(daemon.mountpoint + path).mkdir(exist_ok=True)
        assert daemon.run("import", str(file), path) == 1
        assert "is a directory: name the vdisk" in capsys.readouterr().err


def test_a_full_pool_is_an_error_about_the_target(
    daemon: PretendedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = pathlib.Path(daemon.mountpoint, "a.vdiff")
    file.write_bytes(b"")
    monkeypatch.setattr(difference_import.StreamReader, "header", lambda reader: None)
    monkeypatch.setattr(commands_stream._Import, "__init__", lambda *_: None)
    monkeypatch.setattr(commands_stream._Import, "into_new", full)
    assert daemon.run("import", str(file), "/new.img") == 1
    assert f"{daemon.mountpoint}/new.img: No space left on device" in capsys.readouterr().err
