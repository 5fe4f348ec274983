"""Snapshots and what changed between them, carried from one mounted pool to another."""

import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.mounted_pool import MountedPool, package_environment

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def elsewhere(tmp_path: pathlib.Path) -> Iterator[MountedPool]:
    """Another pool, mounted."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    pool = MountedPool(folder)
    try:
        pool.run("format", pool.pool)
        pool.mount()
        yield pool
        assert pool.stray_errors() == []
    finally:
        pool.tear_down()


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


class Source:
    """A vdisk with three snapshots, their contents, and the streams that carry them."""

    def __init__(self, pool: MountedPool, folder: pathlib.Path) -> None:
        self.pool, self.folder, self.chance = pool, folder, random.Random(4)
        self.path = pool.create("a.img", 8 * MIB)
        self.contents: dict[str, bytes] = {}
        put(self.path, 0, self.chance.randbytes(2 * MIB + 100))
        self.snapshot("one")
        put(self.path, 64 * KIB, bytes(64 * KIB))
        put(self.path, 5 * MIB, self.chance.randbytes(9000))
        self.snapshot("two")
        pool.run("resize", self.path, 9 * MIB + 77)
        put(self.path, 9 * MIB + 70, b"the end")
        put(self.path, 5 * MIB, self.chance.randbytes(100))
        self.snapshot("three")

    def snapshot(self, name: str) -> None:
        self.pool.run("snap", "create", f"{self.path}@{name}")
        self.contents[name] = self.path.read_bytes()

    def export(self, name: str, base: str | None = None) -> pathlib.Path:
        file = self.folder / f"{base}-{name}.vdiff"
        options = [] if base is None else ["--from", base]
        self.pool.run("export", *options, f"{self.path}@{name}", file)
        return file


def names(pool: MountedPool, path: pathlib.Path) -> list[str]:
    return [snapshot["name"] for snapshot in pool.json("snap", "ls", path)["snapshots"]]


def test_a_pool_is_seeded_and_brought_up_to_date(
    mounted: MountedPool, elsewhere: MountedPool, tmp_path: pathlib.Path
) -> None:
    source, target = Source(mounted, tmp_path), elsewhere.mountpoint / "copy.img"
    elsewhere.run("import", source.export("one"), target)
    assert target.read_bytes() == source.contents["one"]
    difference = source.export("two", "one")
    assert difference.stat().st_size < 40 * KIB
    elsewhere.run("import", difference, target)
    assert target.read_bytes() == source.contents["two"]
    elsewhere.run("import", source.export("three", "two"), target)
    assert target.read_bytes() == source.contents["three"]
    assert names(elsewhere, target) == ["one", "two", "three"]
    folder = elsewhere.mountpoint / ".snapshots" / "copy.img"
    assert {name: (folder / name).read_bytes() for name in source.contents} == source.contents
    assert os.listdir(elsewhere.mountpoint) == ["copy.img"]
    assert "already" in failing(elsewhere, "import", difference, target)
    assert elsewhere.json("check", elsewhere.mountpoint)["findings"] == []

    # From the replica back to where it came from.
    file = tmp_path / "back.vdiff"
    elsewhere.run("export", "--from", "one", f"{target}@three", file)
    back = mounted.mountpoint / "back.img"
    mounted.run("import", file, back)
    assert back.read_bytes() == source.contents["three"]
    assert mounted.json("info", back)["parent"]["vdisk"] == mounted.json("info", source.path)["vdisk"]


def test_a_clone_is_carried_as_what_it_differs_in(
    mounted: MountedPool, elsewhere: MountedPool, tmp_path: pathlib.Path
) -> None:
    source, clone = Source(mounted, tmp_path), mounted.mountpoint / "clone.img"
    elsewhere.run("import", source.export("one"), elsewhere.mountpoint / "copy.img")
    mounted.run("clone", f"{source.path}@one", clone)
    put(clone, 3 * MIB, b"mine")
    mounted.run("snap", "create", f"{clone}@first")
    file = tmp_path / "clone.vdiff"
    mounted.run("export", "--from", f"{source.path}@one", f"{clone}@first", file)
    assert file.stat().st_size < 16 * KIB
    elsewhere.run("import", file, elsewhere.mountpoint / "clone.img")
    assert (elsewhere.mountpoint / "clone.img").read_bytes() == clone.read_bytes()
    parents = {node["path"]: node["parent"] for node in elsewhere.json("tree", elsewhere.mountpoint)["nodes"]}
    assert parents["/clone.img"] is not None


def test_what_does_not_fit_is_refused_and_changes_nothing(
    mounted: MountedPool, elsewhere: MountedPool, tmp_path: pathlib.Path
) -> None:
    source, target = Source(mounted, tmp_path), elsewhere.mountpoint / "copy.img"
    whole, first, second = source.export("one"), source.export("two", "one"), source.export("three", "two")
    assert "not here" in failing(elsewhere, "import", second, target)
    elsewhere.run("import", whole, target)
    assert "import that first" in failing(elsewhere, "import", second, target)
    assert "exists" in failing(elsewhere, "import", whole, target)
    put(target, 0, b"changed")
    assert "rollback" in failing(elsewhere, "import", first, target)
    elsewhere.run("rm", "--now", "--snapshots", target)
    elsewhere.run("import", whole, target)
    with target.open("rb"):
        assert "in use by" in failing(elsewhere, "import", first, target)
    elsewhere.run("snap", "create", f"{target}@two")
    assert "another snapshot called" in failing(elsewhere, "import", first, target)
    elsewhere.run("snap", "rm", f"{target}@two")
    assert target.read_bytes() == source.contents["one"]
    assert os.listdir(elsewhere.mountpoint) == ["copy.img"]
    elsewhere.run("import", first, target)
    assert target.read_bytes() == source.contents["two"]
    assert "no snapshot" in failing(
        mounted, "export", "--from", "never", f"{source.path}@one", tmp_path / "x"
    )
    assert "leave -f away" in failing(
        mounted, "export", "-f", "qcow2", "--from", "one", f"{source.path}@two", tmp_path / "x"
    )


def test_a_stream_cut_or_damaged_leaves_the_old_content_until_it_comes_whole(
    mounted: MountedPool, elsewhere: MountedPool, tmp_path: pathlib.Path
) -> None:
    source, target = Source(mounted, tmp_path), elsewhere.mountpoint / "copy.img"
    whole, difference = source.export("one"), source.export("two", "one")
    cut = tmp_path / "cut.vdiff"
    cut.write_bytes(whole.read_bytes()[: MIB + 5])
    assert "cut" in failing(elsewhere, "import", cut, target)
    assert not target.exists()
    elsewhere.run("import", whole, target)
    for length in (50, 5000, difference.stat().st_size - 1):
        cut.write_bytes(difference.read_bytes()[:length])
        assert "cut" in failing(elsewhere, "import", cut, target)
        assert target.read_bytes() == source.contents["one"]
    damaged = bytearray(difference.read_bytes())
    damaged[7000] ^= 1
    cut.write_bytes(damaged)
    assert "checksum" in failing(elsewhere, "import", cut, target)
    assert names(elsewhere, target) == ["one"]
    elsewhere.run("import", difference, target)
    assert target.read_bytes() == source.contents["two"]
    assert os.listdir(elsewhere.mountpoint) == ["copy.img"]


STEPS = ("apply", "exchange_names", "copy_ranges", "_name_content", "write_note", "unlink")


def test_an_import_killed_at_any_step_goes_on_and_the_name_always_holds_a_whole_content(
    mounted: MountedPool, elsewhere: MountedPool, tmp_path: pathlib.Path
) -> None:
    source = Source(mounted, tmp_path)
    whole, difference = source.export("one"), source.export("two", "one")
    for step in STEPS:
        target = elsewhere.mountpoint / f"{step}.img"
        elsewhere.run("import", whole, target)
        for when in ("before", "after"):
            killed = _killed(difference, target, step, when)
            assert killed.returncode == 9, killed.stderr
            assert target.read_bytes() in (source.contents["one"], source.contents["two"])
        done = elsewhere.run("import", difference, target, exit_code=1 if step == "unlink" else 0)
        assert done.returncode == 0 or "already" in done.stderr
        assert target.read_bytes() == source.contents["two"]
        assert names(elsewhere, target) == ["one", "two"]
    assert sorted(os.listdir(elsewhere.mountpoint)) == sorted(f"{step}.img" for step in STEPS)


def _killed(
    difference: pathlib.Path, target: pathlib.Path, step: str, when: str
) -> subprocess.CompletedProcess[str]:
    """An import whose process ends, without a word, before or after the step is first taken."""
    program = f"""
import os, sys
from tools import cli, commands_stream, difference_import
places = {{
    "apply": (difference_import.StagedFile, "apply"),
    "_name_content": (commands_stream._Import, "_name_content"),
    "unlink": (os, "unlink"),
}}
where, name = places.get({step!r}, (commands_stream, {step!r}))
real = getattr(where, name)
def fatal(*arguments, **named):
    if {when!r} == "after":
        real(*arguments, **named)
    os._exit(9)
setattr(where, name, fatal)
sys.exit(cli.main(["import", {str(difference)!r}, {str(target)!r}]))
"""
    return subprocess.run(
        [sys.executable, "-c", program],
        env=package_environment(),
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_stream_goes_through_a_pipe_also_of_what_a_vdisk_holds_now(
    mounted: MountedPool, elsewhere: MountedPool, tmp_path: pathlib.Path
) -> None:
    source, target = Source(mounted, tmp_path), elsewhere.mountpoint / "copy.img"
    put(source.path, 0, b"newest")
    command = [sys.executable, "-m", "tools.cli"]
    sender = subprocess.Popen(
        [*command, "export", str(source.path), "-"], env=package_environment(), stdout=subprocess.PIPE
    )
    with sender:
        subprocess.run(
            [*command, "import", "-", str(target)], env=package_environment(), stdin=sender.stdout, check=True
        )
    assert sender.returncode == 0
    assert target.read_bytes() == source.path.read_bytes()
    assert names(mounted, source.path) == ["one", "two", "three"]
    assert names(elsewhere, target) == []
    pipe, other = tmp_path / "pipe", elsewhere.mountpoint / "other.img"
    os.mkfifo(pipe)
    with subprocess.Popen(
        [*command, "import", str(pipe), str(other)], env=package_environment()
    ) as importing:
        mounted.run("export", "-f", "diff", f"{source.path}@one", tmp_path / "one")
        pipe.write_bytes((tmp_path / "one").read_bytes())
    assert importing.returncode == 0
    assert other.read_bytes() == source.contents["one"]
