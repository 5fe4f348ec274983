"""diff, tree, map of a snapshot, export and import of differences, on a mounted pool as a user types them."""

import json
import os
import pathlib
import random

from tests.mounted_pool import MountedPool
from tests.tools.test_tree_page import data_of

KIB, MIB = 1 << 10, 1 << 20


def failing(pool: MountedPool, *arguments: object) -> str:
    """The one line of a command that fails."""
    done = pool.run(*arguments, exit_code=1)
    assert done.stderr.count("\n") == 1
    return done.stderr


def put(path: pathlib.Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
        os.fsync(file.fileno())


def ranges_of(answer: dict) -> list[tuple[int, int, str]]:
    return [(found["offset"], found["length"], found["kind"]) for found in answer["ranges"]]


def test_diff_lists_what_changed_between_snapshots_and_since(mounted: MountedPool) -> None:
    path = mounted.create("a.img", "64M")
    put(path, 0, random.Random(1).randbytes(MIB))
    mounted.run("snap", "create", f"{path}@one")
    put(path, 8 * KIB, b"x" * 4096)
    put(path, 32 * MIB, b"y" * 8192)
    put(path, 64 * KIB, bytes(4096))
    mounted.run("snap", "create", f"{path}@two")
    put(path, 40 * MIB, b"z")
    changed = [
        (8 * KIB, 4096, "data"),
        (64 * KIB, 4096, "hole"),
        (32 * MIB, 8192, "data"),
    ]
    answer = mounted.json("diff", f"{path}@one", f"{path}@two")
    assert ranges_of(answer) == changed
    assert (answer["name"], answer["size"], answer["data_bytes"], answer["hole_bytes"]) == (
        "two",
        64 * MIB,
        12 * KIB,
        4 * KIB,
    )
    assert ranges_of(mounted.json("diff", f"{path}@one")) == [*changed, (40 * MIB, 4096, "data")]
    assert mounted.json("diff", f"{path}@two", f"{path}@two")["ranges"] == []
    lines = mounted.run("diff", f"{path}@one", f"{path}@two").stdout.splitlines()
    assert lines[0].split() == ["OFFSET", "LENGTH", "NOW"]
    assert lines[-1] == "3 ranges changed: 12 KiB of data, 4 KiB of holes"
    assert "names no snapshot" in failing(mounted, "diff", path)
    assert "no" in failing(mounted, "diff", f"{path}@never")
    other = mounted.create("other.img", "1M")
    assert "no relatives" in failing(mounted, "diff", f"{path}@one", other)


def test_diff_finds_what_a_buffered_writer_has_not_flushed(mounted: MountedPool) -> None:
    path = mounted.create("a.img", "1M")
    mounted.run("snap", "create", f"{path}@one")
    with path.open("r+b", buffering=0) as file:
        file.write(b"x" * 4096)
        assert ranges_of(mounted.json("diff", f"{path}@one")) == [(0, 4096, "data")]


def test_a_map_of_a_snapshot_says_where_its_bytes_live(mounted: MountedPool) -> None:
    path = mounted.create("a.img", "1M")
    put(path, 0, b"x" * 8192)
    mounted.run("snap", "create", f"{path}@one")
    put(path, 0, b"y" * 4096)
    (then, hole) = mounted.json("map", f"{path}@one")["extents"]
    assert (then["kind"], then["length"], hole["kind"]) == ("data", 8192, "hole")
    assert then["checksum"]
    assert pathlib.Path(then["file"]).is_file()
    now = mounted.json("map", path)["extents"]
    assert now[0]["position"] != then["position"]
    assert now[1]["position"] == then["position"] + 1
    assert now[0]["version"] > then["version"]
    clone = mounted.mountpoint / "clone.img"
    mounted.run("clone", f"{path}@one", clone)
    (inherited, _) = mounted.json("map", clone)["extents"]
    assert (inherited["kind"], inherited["version"]) == ("parent", then["version"])
    assert inherited["file"] == then["file"]
    assert "CHECKSUM" in mounted.run("map", f"{path}@one").stdout


def test_the_tree_is_shown_in_every_form(mounted: MountedPool, tmp_path: pathlib.Path) -> None:
    path = mounted.create("a.img", "64M")
    put(path, 0, b"x" * MIB)
    mounted.run("snap", "create", f"{path}@one")
    mounted.run("snap", "protect", f"{path}@one")
    clone = mounted.mountpoint / "clone.img"
    mounted.run("clone", f"{path}@one", clone)
    put(clone, 2 * MIB, b"x" * 4096)
    lines = mounted.run("tree", "--exact", mounted.mountpoint).stdout.splitlines()
    assert [line.strip().split("  ")[0] for line in lines[1:]] == ["/a.img", "└─ @one", "└─ /clone.img"]
    assert lines[2].endswith("protected, 1 clone")
    answer = mounted.json("tree", mounted.mountpoint)
    assert {node["path"] for node in answer["nodes"]} == {"/a.img", "/a.img@one", "/clone.img"}
    assert mounted.run("tree", "--dot", mounted.mountpoint).stdout.startswith("digraph")
    page = tmp_path / "tree.html"
    mounted.run("tree", "--html", page, mounted.mountpoint)
    data = data_of(page.read_text())
    assert len(data["nodes"]) == 3
    assert {
        len(data["maps"][str(node["id"])]["cells"]) > 0 for node in answer["nodes"] if node["kind"] == "vdisk"
    } == {True}
    assert page.stat().st_mode & 0o777 == 0o644 & ~_umask()
    assert "exists" in failing(mounted, "tree", "--html", page, mounted.mountpoint)
    assert sorted(os.listdir(tmp_path)).count("tree.html") == 1


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_empty_pool_has_an_empty_tree(mounted: MountedPool, tmp_path: pathlib.Path) -> None:
    assert mounted.json("tree", mounted.mountpoint)["nodes"] == []
    assert mounted.run("tree", mounted.mountpoint).stdout == ""
    mounted.run("tree", "--html", tmp_path / "tree.html", mounted.mountpoint)
    assert json.dumps(data_of((tmp_path / "tree.html").read_text())["nodes"]) == "[]"
