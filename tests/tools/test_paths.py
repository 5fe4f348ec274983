"""From what is typed to a mount, a path below it and a snapshot, without touching the mount."""

import pathlib

import pytest

from fusefs.mount_table import MountEntry
from metadata.errors import InvalidRequest, NotFound
from tools.paths import locate, locate_mount, locate_snapshot


def test_a_path_outside_any_mount_is_not_found(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound):
        locate(str(tmp_path / "x"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fusefs.mount_table.read_mounts", list)
    with pytest.raises(NotFound, match="nothing is mounted"):
        locate_mount(None)


@pytest.mark.parametrize(
    ("path", "inner", "name"),
    [
        ("a.img", "a.img", None),
        ("a.img@one", "a.img", "one"),
        ("dir@x/a.img", "dir@x/a.img", None),
        ("dir@x/a@b@c", "dir@x/a@b", "c"),
        (".snapshots/dir/a.img/one", "dir/a.img", "one"),
        (".snapshots/a.img", ".snapshots/a.img", None),
        (".snapshots", ".snapshots", None),
        ("", "", None),
    ],
)
def test_the_last_at_divides_vdisk_and_snapshot(
    path: str, inner: str, name: str | None, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_pretended_mount(tmp_path, monkeypatch)
    located, found = locate_snapshot(f"{tmp_path}/{path}")
    assert (located.inner, found) == (inner, name)
    assert located.path == f"{tmp_path}/{inner}".rstrip("/")


def test_a_file_of_the_whole_name_wins(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_pretended_mount(tmp_path, monkeypatch)
    (tmp_path / "a@b").touch()
    located, name = locate_snapshot(f"{tmp_path}/a@b")
    assert (located.inner, name) == ("a@b", None)
    located, name = locate_snapshot(f"{tmp_path}/a@b@c")
    assert (located.inner, name) == ("a@b", "c")


@pytest.mark.parametrize("path", ["a.img@", "dir/@one", "@"])
def test_half_a_snapshot_s_name_is_refused(path: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(InvalidRequest, match="write PATH@SNAP"):
        locate_snapshot(f"{tmp_path}/{path}")


def test_paths_are_shown_as_one_would_type_them(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_pretended_mount(tmp_path, monkeypatch)
    (tmp_path / "dir").mkdir()
    located = locate(str(tmp_path))
    monkeypatch.chdir(tmp_path / "dir")
    assert (located.shown("/dir/a"), located.shown("/b")) == ("a", f"{tmp_path}/b")
    monkeypatch.chdir(tmp_path)
    assert located.shown("/dir/a") == "dir/a"


def on_a_pretended_mount(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = MountEntry(str(folder), "fuse.vdiskfs", "/pool", 99, 0)
    monkeypatch.setattr("fusefs.mount_table.read_mounts", lambda: [entry])
    monkeypatch.setattr("fusefs.launch.find_record", lambda entry: None)
