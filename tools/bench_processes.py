"""Processes of the benchmark: commands with a deadline, daemons started and ended, and /proc on them."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from metadata.errors import NotFound, Unavailable

POLL_S = 0.01
END_S_MAX = 10.0
"""A daemon that has not ended this long after SIGTERM is killed."""

PACKAGES = {
    "fio": "fio",
    "qemu-img": "qemu-utils",
    "qemu-io": "qemu-utils",
    "qemu-storage-daemon": "qemu-system-common",
    "vdiskfs": "vdiskfs",
}
"""Debian's package for each program the benchmark runs."""


def run_command(
    arguments: Sequence[str], *, allowed_s: float = 60.0, environment: dict[str, str] | None = None
) -> str:
    """What the command printed. Interrupted or late, it is killed before this returns.

    It runs in a session of its own: a terminal's Ctrl-C is for the benchmark, not for it.

    Raises:
        NotFound: no such program.
        Unavailable: it failed or took longer than allowed; the message holds its last line.
    """
    program = os.path.basename(arguments[0])
    try:
        done = subprocess.run(
            arguments,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=allowed_s,
            env=environment,
            start_new_session=True,
            check=False,
        )
    except FileNotFoundError:
        raise NotFound(missing_program(program)) from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{program} did not end in time seconds={allowed_s:.0f}") from None
    if done.returncode:
        raise Unavailable(f"{program} failed: {_last_line(done.stderr or done.stdout)}")
    return done.stdout


def missing_program(program: str) -> str:
    """The one line for a program that is not there."""
    package = PACKAGES.get(program, program)
    return f"{program} is missing; install it with: apt-get install {package}"


def start_daemon(
    arguments: Sequence[str], *, log: Path, ready: Callable[[], bool], allowed_s: float = END_S_MAX
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own (Ctrl-C is ours to handle) and wait until it is ready.

    Raises:
        NotFound: no such program.
        Unavailable: it ended, or was not ready in time; it is gone then.
    """
    program = os.path.basename(arguments[0])
    with log.open("wb") as output:
        try:
            process = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError:
            raise NotFound(missing_program(program)) from None
    try:
        if not wait_until(lambda: ready() or process.poll() is not None, allowed_s=allowed_s):
            raise Unavailable(f"{program} was not ready in time seconds={allowed_s:.0f}")
        if process.poll() is not None:
            raise Unavailable(f"{program} failed: {_last_line(log.read_text(errors='replace'))}")
    except BaseException:
        end_daemon(process)
        raise
    return process


def end_daemon(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, then make it."""
    process.terminate()
    try:
        process.wait(END_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def kill_process(pid: int) -> None:
    """Kill a process that is not our child; one that is gone already is fine."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def wait_until(condition: Callable[[], bool], *, allowed_s: float) -> bool:
    """Whether the condition came true in the time allowed."""
    deadline = time.monotonic() + allowed_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads, ended ones too.

    Raises:
        Unavailable: no such process.
    """
    # The name, in parentheses, may hold anything; utime and stime are the 12th and 13th words after it.
    words = _read_proc(pid, "stat").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> dict[str, int]:
    """VmRSS (all resident), RssAnon (of that, no file and no shared memory), VmHWM (the most there ever was).

    Raises:
        Unavailable: no such process.
    """
    lines = (line.partition(":") for line in _read_proc(pid, "status").splitlines())
    facts = {name: rest.split() for name, _, rest in lines}
    return {name: int(facts[name][0]) * 1024 for name in ("VmRSS", "RssAnon", "VmHWM")}


def _read_proc(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        raise Unavailable(f"the daemon has died pid={pid}") from None


def _last_line(text: str) -> str:
    """The last line with anything on it: where programs say why they failed."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
