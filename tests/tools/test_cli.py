"""The command line: usage, exit codes, one line for each error."""

import argparse
import errno
import os
import pathlib
import subprocess
import sys

import pytest

from tests.tools.pretended_daemon import PretendedDaemon
from tools import cli

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
    (["mount", "{tmp}", "{tmp}"], "no pool here: is its filesystem mounted? A new one: 'vdiskfs format"),
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
        env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
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


def test_a_name_that_the_terminal_cannot_show_is_shown_escaped(tmp_path: pathlib.Path) -> None:
    pool = os.fsencode(tmp_path) + b"/caf\xe9\n\xc3\xbc"
    for encoding, shown in (("utf-8", "caf\\udce9\n\u00fc"), ("ascii", "caf\\udce9\n\\xfc")):
        done = subprocess.run(
            [sys.executable, "-m", "tools.cli", "format", pool + encoding.encode()],
            cwd=pathlib.Path(cli.__file__).parents[1],
            env=os.environ | {"PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert done.stderr == b""
        assert f"{shown}{encoding}, pool ".encode() in done.stdout


def test_a_name_in_an_error_is_shown_as_a_table_shows_it(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["create", f"{tmp_path}/two\nlines  \udce9", "1M"]) == 1
    line = capsys.readouterr().err
    assert f"{tmp_path}/two\\nlines  \\udce9 is not under a vdiskfs mount" in line
    assert line.count("\n") == 1


def test_a_full_disk_is_named_rightly(
    daemon: PretendedDaemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path, where in ((f"{daemon.mountpoint}/a.img", "the pool's"), ("/elsewhere/a.raw", "its")):
        full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        monkeypatch.setattr("tools.commands_mount.status", lambda arguments, full=full: raise_it(full))
        assert cli.main(["status"]) == 1
        assert f"{path}: No space left on device: free space in {where} filesystem" in capsys.readouterr().err


def raise_it(problem: OSError) -> int:
    raise problem


def test_an_interruption_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(arguments: argparse.Namespace) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("tools.commands_mount.status", fail)
    assert cli.main(["status"]) == 1
    assert capsys.readouterr().err == "vdiskfs: interrupted\n"


def test_a_reader_that_leaves_early_is_no_traceback(tmp_path: pathlib.Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m tools.cli --help | true'],
        cwd=pathlib.Path(cli.__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
