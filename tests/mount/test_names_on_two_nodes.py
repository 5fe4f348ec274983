"""Two mounts of one pool: what one changes of the names the other shows at once, and verbs work on both."""

import os
import pathlib
import subprocess

import pytest

from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool


@pytest.fixture
def both(nodes: MountedNodes) -> tuple[MountedPool, MountedPool]:
    return nodes.node("a"), nodes.node("b")


def names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_one_makes_the_other_finds_at_once(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint for node in both)
    for number in range(50):
        (a / f"f{number}").touch()
        assert (b / f"f{number}").exists()
        (b / f"d{number}").mkdir()
        assert (a / f"d{number}").is_dir()
    assert names(a) == names(b)
    assert len(names(a)) == 100


def test_what_one_takes_away_the_other_does_not_believe_in_any_more(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = (node.mountpoint for node in both)
    for name in ("gone", "old"):
        (a / name).mkdir()
    (a / "disk").touch()
    for name in ("gone", "old", "disk"):
        assert (b / name).exists()  # b's kernel keeps the entries
    (a / "gone").rmdir()
    (a / "old").rename(a / "new")
    (a / "disk").unlink()
    assert names(b) == ["new"]
    for name in ("gone", "old", "disk"):
        assert not (b / name).exists()
    (b / "gone").touch()
    assert (a / "gone").is_file()


def test_a_file_that_is_replaced_is_the_new_one_on_the_other_node_at_once(
    both: tuple[MountedPool, MountedPool],
) -> None:
    a, b = (node.mountpoint for node in both)
    for number in range(30):
        (a / "next").touch()
        os.setxattr(a / "next", "user.number", b"%d" % number)
        (a / "next").rename(a / "current")
        assert os.getxattr(b / "current", "user.number") == b"%d" % number
        assert not (b / "next").exists()


def test_attributes_and_links_are_seen_on_the_other_node(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint for node in both)
    (a / "dir").mkdir()
    assert (b / "dir").stat().st_mode & 0o777 == 0o755
    (a / "dir").chmod(0o700)
    wait_until(lambda: (b / "dir").stat().st_mode & 0o777 == 0o700, "b shows the new mode")
    os.symlink("dir", b / "link")
    assert os.readlink(a / "link") == "dir"
    os.setxattr(a / "dir", "user.note", b"one")
    wait_until(lambda: os.listxattr(b / "dir") == ["user.note"], "b shows the attribute")


def test_both_make_the_same_name_and_one_of_them_wins(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint for node in both)
    for number in range(20):
        made = 0
        for folder in (a, b):
            try:
                os.close(os.open(folder / f"{number}", os.O_CREAT | os.O_EXCL | os.O_RDWR))
                made += 1
            except FileExistsError:
                pass
        assert made == 1


def test_a_listing_of_thousands_is_as_fast_as_on_one_node(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = (node.mountpoint for node in both)
    (a / "many").mkdir()
    for number in range(2000):
        (a / "many" / f"{number}").touch()
    assert len(names(b / "many")) == 2000
    assert sum(1 for entry in os.scandir(b / "many") if entry.stat().st_size == 0) == 2000


def test_verbs_work_on_the_node_that_does_not_own_the_vdisk(both: tuple[MountedPool, MountedPool]) -> None:
    first, second = both
    path = first.create("disk", "16M")
    with path.open("r+b") as file:  # stays open: the vdisk remains the first node's
        file.write(b"one" * 5000)
        file.flush()
        seen = second.mountpoint / "disk"
        second.run("snap", "create", f"{seen}@s")
        assert [one["name"] for one in first.json("snap", "ls", path)["snapshots"]] == ["s"]
        assert (second.mountpoint / ".snapshots" / "disk" / "s").is_file()
        second.run("clone", f"{seen}@s", second.mountpoint / "copy")
        assert (first.mountpoint / "copy").stat().st_size == 16 << 20
        assert second.json("info", seen)["snapshots"] == ["s"]
        assert second.json("map", seen)["extents"] == first.json("map", path)["extents"]
        tree = {node["path"] for node in second.json("tree", second.mountpoint)["nodes"]}
        assert tree == {"/disk", "/disk@s", "/copy"}
        assert second.json("check", second.mountpoint)["findings"] == []
        assert second.json("scrub", second.mountpoint)["findings"] == []
        second.json("gc", second.mountpoint)
    second.run("snap", "rm", f"{seen}@s")
    assert first.json("snap", "ls", path)["snapshots"] == []


def test_rm_names_the_node_that_has_the_file_open(both: tuple[MountedPool, MountedPool]) -> None:
    first, second = both
    path = first.create("disk", "1M")
    with path.open("r+b") as file:
        done = second.run("rm", second.mountpoint / "disk", exit_code=1)
        assert "in use on a" in done.stderr
        second.run("rm", "--now", "--force", second.mountpoint / "disk")
        assert not path.exists()
        file.write(b"still there")
        file.flush()
        os.fsync(file.fileno())
        file.seek(0)
        assert file.read(11) == b"still there"


def test_status_shows_both_nodes(both: tuple[MountedPool, MountedPool]) -> None:
    first, second = both
    path = first.create("disk", "1M")
    path.write_bytes(b"x" * 8192)
    for node in both:
        cluster = node.json("status", node.mountpoint)["cluster"]
        assert [(one["node"], one["session"]) for one in cluster["nodes"]] == [("a", "live"), ("b", "live")]
        assert [one["vdisks_owned"] for one in cluster["nodes"]] == [1, 0]
        (disk,) = (one for one in cluster["vdisks"] if one["path"] == "/disk" and one["owner"] == "a")
        assert disk["version"] > 0
    assert "SESSION" in second.run("top", second.mountpoint, "--once").stdout


def test_a_file_read_on_one_node_outlives_its_name_and_goes_when_it_is_closed(
    both: tuple[MountedPool, MountedPool],
) -> None:
    first, second = both
    path = first.create("disk", "4M")
    path.write_bytes(b"frozen" * 100_000)
    vdisk = first.json("info", path)["vdisk"]
    folder = pathlib.Path(first.json("info", path)["directory"])
    with (second.mountpoint / "disk").open("rb", buffering=0) as file:
        assert file.read(6) == b"frozen"
        path.unlink()
        assert not (second.mountpoint / "disk").exists()
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        second.run("check", second.mountpoint)
        file.seek(0)
        assert file.read() == b"frozen" * 100_000
        assert folder.exists(), f"vdisk {vdisk} is still read on b"
    wait_until(lambda: not folder.exists(), "its data has gone")


def test_what_changes_a_vdisk_can_be_asked_of_any_node(both: tuple[MountedPool, MountedPool]) -> None:
    first, second = both
    for asked, other, name in ((second, first, "x"), (first, second, "y")):
        path, seen = other.create(name, "8M"), asked.mountpoint / name
        content = bytes(range(256)) * 4096
        path.write_bytes(content)
        asked.run("snap", "create", f"{seen}@one")
        asked.run("resize", seen, "16M")
        assert path.stat().st_size == 16 << 20
        with path.open("r+b") as file:
            file.write(b"changed" * 1000)
            os.fsync(file.fileno())
            ranges = asked.json("diff", f"{seen}@one")["ranges"]
            assert next((one["offset"], one["length"]) for one in ranges) == (0, 8192)
        asked.run("resize", "--allow-shrink", seen, str(len(content)))
        asked.run("snap", "rollback", f"{seen}@one")
        assert path.read_bytes() == seen.read_bytes() == content
        asked.run("clone", f"{seen}@one", asked.mountpoint / f"{name}-clone")
        asked.run("flatten", asked.mountpoint / f"{name}-clone")
        subprocess.run(["cp", "--sparse=never", seen, asked.mountpoint / f"{name}-copy"], check=True)
        for copy in (f"{name}-clone", f"{name}-copy"):
            assert (other.mountpoint / copy).read_bytes() == content
        asked.run("rm", asked.mountpoint / f"{name}-clone")
        assert not (other.mountpoint / f"{name}-clone").exists()
        other.run("trash", "restore", other.mountpoint / f"{name}-clone")
        assert (asked.mountpoint / f"{name}-clone").read_bytes() == content
        asked.run("export", f"{seen}@one", asked.folder / f"{name}.raw")
        assert (asked.folder / f"{name}.raw").read_bytes() == content
        asked.run("import", asked.folder / f"{name}.raw", asked.mountpoint / f"{name}-back")
        assert (other.mountpoint / f"{name}-back").read_bytes() == content
        asked.run("rm", "--snapshots", "--now", seen)
        assert not path.exists()
        for node in both:
            assert node.json("check", node.mountpoint)["findings"] == []
            node.json("gc", node.mountpoint)
            assert node.json("tree", "--exact", node.mountpoint)["nodes"]
