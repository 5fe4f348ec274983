"""A failure is reduced to the calls that it needs, and its script replays them by itself."""

import os
import pathlib
import stat
import subprocess
import sys

import pytest

from tests.calls.drawing import PlainChance
from tests.calls.file_machine import Run
from tests.calls.plain_calls import Files
from tests.calls.reduction import reduced
from tests.calls.reference import Reference
from tests.calls.script import Step, script
from tests.calls.session import Difference, Session
from tests.mounted_pool import COMMAND_S, MountedPool, package_environment

STEPS: list[Step] = [
    ("open", ("0/a", 0, os.O_CREAT | os.O_RDWR, 0o644), "ok"),
    ("pwrite", (0, 0, 10_000, 7, 0), 10_000),
    ("snapshot", (["0/a"], "one"), "ok"),
    ("unlink", ("0/a",), "EBUSY"),
    ("pread", (0, 9_990, 100, 0), "10 bytes e946cc81"),
    ("kill", ("0/",), "ok"),
    ("fstat", (0,), ["0o100644", os.geteuid(), os.getegid(), 10_000, 1]),
    ("close", (0,), "ok"),
    ("remount", ("0/",), "ok"),
    ("holes", (0,), "*"),
]


class Forgetful(Files):
    """An ordinary folder that writes zeros, the fourth time that it writes beyond the first block."""

    def __init__(self, root: str, folder: str) -> None:
        super().__init__([root], folder)
        self.count = 0
        os.mkdir(self.at("0/"))

    def open(self, path: str, handle: int, flags: int, mode: int) -> str:
        return super().open(path, handle, flags & ~os.O_DIRECT, mode)

    def pwrite(self, handle: int, offset: int, length: int, fill: int, into: int) -> int:
        self.count += offset > 4096
        return super().pwrite(handle, offset, length, 0 if self.count == 4 else fill, into)


def test_a_failure_is_reduced_to_what_it_needs(tmp_path: pathlib.Path) -> None:
    numbers = iter(range(10_000))
    for name in ("ours", "reference"):
        (tmp_path / name).mkdir()

    def begin() -> Session:
        folder = f"example{next(numbers)}"
        reference = Reference(str(tmp_path / "reference"), folder)
        return Session(Forgetful(str(tmp_path / "ours"), folder), reference, PlainChance(1))

    def clear(session: Session) -> None:
        session.reference.clear()

    def go_on_until_it_fails() -> None:
        session = begin()
        session.begin()
        while True:
            session.draw("bytes")
            if session.subject.count == 4:  # type: ignore[attr-defined]
                session.finish()

    with pytest.raises(Difference) as caught:
        go_on_until_it_fails()
    assert len(caught.value.calls) > 20
    found = reduced(Run(begin, clear), caught.value)
    assert len(found.calls) <= 8, found.calls
    assert sum(name == "pwrite" for name, _ in found.calls) == 4


def replay(folder: pathlib.Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a script as somebody would who has installed the package."""
    (folder / "script.py").write_text(text)
    (folder / "vdiskfs").write_text(f'#!/bin/sh\nexec {sys.executable} -m tools.cli "$@"\n')
    (folder / "vdiskfs").chmod(0o755)
    (folder / "top").mkdir(exist_ok=True)
    environment = {**package_environment(), "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [sys.executable, str(folder / "script.py"), str(folder / "top")]
    try:
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=COMMAND_S)
    finally:
        left = MountedPool(folder / "unused")
        left.mountpoint, left.state = folder / "top" / "mnt0", folder / "top" / "state0"
        left.tear_down()


@pytest.mark.parametrize("wrong", [False, True], ids=["right", "wrong"])
def test_a_script_replays_its_calls_on_a_pool_of_its_own(tmp_path: pathlib.Path, wrong: bool) -> None:
    steps = STEPS[:-1]
    if wrong:
        steps = [*steps[:3], ("unlink", ("0/a",), "ok"), *steps[4:]]
    text = script(steps, title=" of a test")
    assert "tests." not in text
    done = replay(tmp_path, text)
    if wrong:
        assert (done.returncode, done.stderr.strip()) == (1, "call 3, unlink, must answer ok")
    else:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "every call answered as it must" in done.stdout
    assert stat.S_ISDIR((tmp_path / "top").stat().st_mode)
