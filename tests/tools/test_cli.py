"""The command line: usage, sizes, exit codes, one line for each error, what it prints."""

import argparse
import errno
import io
import json
import os
import pathlib
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusefs.mount_table import MountEntry
from metadata.errors import InvalidRequest, NotFound
from metadata.units import VDISK_BYTES_MAX
from tools import cli, render
from tools.paths import locate, locate_mount, locate_snapshot
from tools.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512", 512),
        ("1K", 1024),
        ("1k", 1024),
        ("1.5G", 3 << 29),
        ("20GiB", 20 << 30),
        ("4 T", 4 << 40),
        ("0.25K", 256),
        ("1E", 1 << 60),
        ("1024P", 1 << 60),
    ],
)
def test_sizes_are_powers_of_1024(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "G", "-1", "1.", ".5G", "1e3", "0x10", "1 2", "1X", "1KK", "١", "0.1K", "1,5G"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_size(text)


@pytest.mark.parametrize("text", ["16E", "1.25E", str((1 << 60) + 1), "9" * 30])
def test_a_size_beyond_the_limit_is_refused_with_the_limit(text: str) -> None:
    with pytest.raises(InvalidRequest, match="at most 1 EiB"):
        parse_size(text)


@given(st.integers(0, VDISK_BYTES_MAX))
def test_a_printed_size_is_close_to_the_size(size: int) -> None:
    number, unit = format_size(size).split(" ")
    factor = 1 << 10 * ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"].index(unit)
    assert abs(float(number) * factor - size) <= factor * 0.0501
    assert float(number) < 1024


def test_sizes_are_printed_short() -> None:
    sizes = [0, 1023, 1024, 1536, (1 << 20) - 1, 10 << 30, 1 << 60]
    assert [format_size(size) for size in sizes] == [
        "0 B", "1023 B", "1 KiB", "1.5 KiB", "1 MiB", "10 GiB", "1 EiB",
    ]  # fmt: skip


WRONG_USAGE = [
    [],
    ["nonesuch"],
    ["create", "x"],
    ["create", "x", "16E"],
    ["create", "x", "much"],
    ["mount", "pool"],
    ["mount", "pool", "mnt", "--node", "a/b"],
    ["mount", "pool", "mnt", "-o", "rwx"],
    ["umount", "mnt", "--timeout", "0"],
    ["format", "pool", "--trash", "soon"],
    ["snap"],
    ["snap", "nonesuch"],
    ["snap", "create"],
    ["snap", "rollback", "a@x", "b@x"],
    ["snap", "rename", "a@x"],
    ["clone", "a@x"],
    ["flatten"],
    ["trash"],
    ["trash", "restore", "--id", "x"],
    ["umount", "mnt", "--timeout", "soon"],
    ["ls", "a", "b"],
    ["map", "x", "--offset", "-1"],
]


@pytest.mark.parametrize("words", WRONG_USAGE)
def test_wrong_usage_is_one_line_and_exit_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(words)
    captured = capsys.readouterr()
    assert stopped.value.code == 2
    assert captured.out == ""
    assert captured.err.startswith("vdiskfs: ")
    assert captured.err.count("\n") == 1


FAILING = [
    (["mount", "{tmp}", "{tmp}"], "no pool here: make one with 'vdiskfs format"),
    (["umount", "{tmp}"], "is not a vdiskfs mount"),
    (["status", "{tmp}"], "is not under a vdiskfs mount"),
    (["create", "{tmp}/x", "1G"], "is not under a vdiskfs mount"),
    (["resize", "{tmp}/x", "1G"], "is not under a vdiskfs mount"),
    (["rm", "{tmp}/x"], "is not under a vdiskfs mount"),
    (["top", "{tmp}"], "is not under a vdiskfs mount"),
    (["ls", "{tmp}"], "is not under a vdiskfs mount"),
    (["info", "{tmp}/x"], "is not under a vdiskfs mount"),
    (["du", "{tmp}"], "is not under a vdiskfs mount"),
    (["map", "{tmp}/x"], "is not under a vdiskfs mount"),
    (["check", "{tmp}"], "is not under a vdiskfs mount"),
    (["scrub", "{tmp}"], "is not under a vdiskfs mount"),
    (["import", "{tmp}/x", "{tmp}/y"], "is not under a vdiskfs mount"),
    (["export", "{tmp}/x", "{tmp}/y"], "is not under a vdiskfs mount"),
    (["snap", "create", "{tmp}/x@a"], "is not under a vdiskfs mount"),
    (["snap", "create", "{tmp}/x"], "is not under a vdiskfs mount"),
    (["snap", "create", "{tmp}/x@"], "write PATH@SNAP"),
    (["snap", "create", "--all", "{tmp}", "a"], "is not under a vdiskfs mount"),
    (["snap", "ls", "{tmp}"], "is not under a vdiskfs mount"),
    (["clone", "{tmp}/x@a", "{tmp}/y"], "is not under a vdiskfs mount"),
    (["trash", "restore"], "which one?"),
    (["trash", "purge"], "which one?"),
    (["trash", "purge", "--all", "--id", "7"], "exclude each other"),
    (["format", "/proc/nonesuch/pool"], "/proc/nonesuch"),
]


@pytest.mark.parametrize(("words", "reason"), FAILING)
def test_a_failure_is_one_line_and_exit_code_1(
    words: list[str], reason: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([word.format(tmp=tmp_path) for word in words]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("vdiskfs: ")
    assert reason in captured.err
    assert captured.err.count("\n") == 1


def verbs_of(parser: argparse.ArgumentParser) -> dict[str, str]:
    """Every verb, those of a group with its name before, and its function."""
    (verbs,) = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    found: dict[str, str] = {}
    for verb, added in verbs.choices.items():
        if verb in ("cache", "cluster", "owner", "snap", "trash"):
            found |= {f"{verb} {inner}": run for inner, run in verbs_of(added).items()}
        elif verb != "bench":
            found[verb] = added.get_default("run")
    return found


def test_every_verb_leads_to_a_function() -> None:
    named = verbs_of(cli.build_parser())
    assert sorted(named) == [
        "cache stats", "cache warm", "check", "clone", "cluster init", "cluster join", "cluster ls", "create",
        "diff", "du", "export", "flatten", "format", "gc", "import", "info", "ls", "map", "mount", "owner show",
        "owner take", "resize", "rm", "scrub", "set",
        "snap create", "snap ls", "snap protect", "snap rename", "snap rm", "snap rollback", "snap unprotect",
        "status", "top", "trash ls", "trash purge", "trash restore", "tree", "umount", "upgrade",
    ]  # fmt: skip
    for run in named.values():
        module, _, function = run.partition(":")
        assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_mount_command_imports_nothing_heavy() -> None:
    heavy = ("trio", "pyfuse3", "rocksdict", "sqlite3", "asyncio")
    probe = f"import sys, tools.cli, tools.commands_mount; print([n for n in {heavy} if n in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=pathlib.Path(cli.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENAMETOOLONG, "a name has at most 255 bytes"),
        (errno.ENOTCONN, "mount it again"),
        (errno.ENOSPC, "free space"),
    ],
)
def test_the_system_s_errors_come_with_advice(
    number: int, advice: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise OSError(number, os.strerror(number), "/mnt/" + "x" * 5000)

    monkeypatch.setattr("tools.commands_mount.status", fail)
    assert cli.main(["status"]) == 1
    line = capsys.readouterr().err
    assert advice in line
    assert len(line) < 400


def test_an_interruption_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.commands_mount.status", fail)
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err == "vdiskfs: interrupted\n"


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


def test_json_comes_in_a_versioned_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_json({"name": "\udcff é", "size": 1 << 60})
    printed = capsys.readouterr().out
    assert printed.isascii()
    assert json.loads(printed) == {"format": 1, "name": "\udcff é", "size": 1 << 60}


def test_a_table_lines_up_and_disarms_terminals(capsys: pytest.CaptureFixture[str]) -> None:
    render.print_table(("NAME", "SIZE"), [("a\x1b[2J\n", "1"), ("b\udcff", "1000")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME        SIZE",
        r"a\x1b[2J\n     1",
        r"b\udcff     1000",
    ]


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals_and_wiped_at_the_end() -> None:
    terminal, file = Terminal(), io.StringIO()
    for stream in (terminal, file):
        with render.ProgressLine(stream) as line:
            line.show_bytes("import", 1 << 20, 2 << 20)
            line.show("too soon to be read")
    assert terminal.getvalue().split("\r")[1] == "import: 1 MiB of 2 MiB, 50 %"
    assert terminal.getvalue().endswith(" \r")
    assert file.getvalue() == ""


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m tools.cli --help | true'],
        cwd=pathlib.Path(cli.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
