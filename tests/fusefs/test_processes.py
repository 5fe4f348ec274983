"""Other programs' processes: told apart from later ones of the same number, waited for, ended, found by what they use."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from fusefs.processes import (
    Holder,
    ProcessId,
    describe_holders,
    holders,
    kill,
    process_id,
    statvfs_error,
    wait_gone,
)

LONG_S = 30.0
WAITS = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@pytest.fixture
def child(tmp_path: pathlib.Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends when it is told to."""
    process = subprocess.Popen(WAITS, stdin=subprocess.PIPE, cwd=tmp_path)
    yield process
    process.kill()
    process.communicate()


def test_a_process_is_alive_until_it_has_ended(child: subprocess.Popen[bytes]) -> None:
    found = process_id(child.pid)
    assert found.is_alive()
    assert process_id(os.getpid()).is_alive()
    assert found.is_owned_by(os.geteuid())
    assert not found.is_owned_by(os.geteuid() + 1)
    child.communicate()
    assert not found.is_alive()
    assert not found.is_owned_by(os.geteuid())


def test_a_zombie_is_not_alive(child: subprocess.Popen[bytes]) -> None:
    found = process_id(child.pid)
    assert child.stdin is not None
    child.stdin.close()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not found.is_alive()
    assert wait_gone([found], until=time.monotonic())


def test_a_later_process_of_the_same_number_is_another(child: subprocess.Popen[bytes]) -> None:
    found = process_id(child.pid)
    other = ProcessId(found.pid, found.started_ticks - 1)
    assert not other.is_alive()
    kill(other)
    assert wait_gone([other], until=time.monotonic())
    assert found.is_alive()


@pytest.mark.parametrize("pid", [0, -1, 1 << 22])
def test_what_is_no_process_is_never_alive(pid: int) -> None:
    found = process_id(pid)
    assert not found.is_alive()
    kill(found)
    assert wait_gone([found], until=time.monotonic())


def test_one_that_is_killed_is_waited_for_and_one_that_lives_is_not(child: subprocess.Popen[bytes]) -> None:
    found = process_id(child.pid)
    assert not wait_gone([found], until=time.monotonic() + 0.01)
    kill(found)
    assert wait_gone([found, process_id(1 << 22)], until=time.monotonic() + LONG_S)
    assert child.wait() == -signal.SIGKILL


def test_a_program_s_name_may_hold_spaces_and_parentheses(tmp_path: pathlib.Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to(sys.executable)
    process = subprocess.Popen([program, *WAITS[1:]], stdin=subprocess.PIPE)
    pathlib.Path(f"/proc/{process.pid}/comm").read_text()
    found = process_id(process.pid)
    assert found.is_alive()
    assert found.started_ticks > 0
    process.communicate()
    assert not found.is_alive()


def test_who_uses_a_path_is_found_and_named(child: subprocess.Popen[bytes], tmp_path: pathlib.Path) -> None:
    found = holders(lambda path: path == str(tmp_path))
    assert [(holder.pid, holder.path) for holder in found] == [(child.pid, str(tmp_path))]
    assert describe_holders(found) == f"{found[0].name} (pid {child.pid}, {tmp_path})"
    assert holders(lambda path: path == str(tmp_path), except_pids=frozenset({child.pid})) == []
    with (tmp_path / "held").open("w"):
        mine = holders(lambda path: path == str(tmp_path / "held"))
    assert [holder.pid for holder in mine] == [os.getpid()]
    assert holders(lambda path: path == str(tmp_path / "held")) == []


def test_holders_are_told_one_behind_the_other() -> None:
    assert describe_holders([Holder(1, "a", "/x"), Holder(2, "b", "/y")]) == "a (pid 1, /x), b (pid 2, /y)"
    assert describe_holders([]) == ""


def test_a_filesystem_s_error_is_the_kernel_s(tmp_path: pathlib.Path) -> None:
    assert statvfs_error(str(tmp_path), allowed_s=LONG_S) == 0
    assert statvfs_error(str(tmp_path / "missing"), allowed_s=LONG_S) == 2
