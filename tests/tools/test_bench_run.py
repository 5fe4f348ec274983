"""The benchmark as a command: what it refuses, how it ends, and that it leaves nothing behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metadata.errors import NotFound, Unavailable
from tools import bench
from tools.bench_contenders import RawFile, is_mounted
from tools.bench_interrupts import signals_interrupt, uninterrupted
from tools.bench_machine import allocated_bytes, check_scratch
from tools.bench_processes import cpu_seconds, resident_bytes, run_command, start_daemon, wait_until


class NeverStarts(RawFile):
    """A contender whose daemon does not come up."""

    def start(self) -> None:
        raise Unavailable("the pool is made of cheese")


def bench_in(folder: Path, *arguments: str) -> list[str]:
    return ["--quick", "--scratch", str(folder), *arguments]


def test_a_row_is_measured_on_a_raw_file_and_nothing_is_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = tmp_path / "report.json"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    arguments = bench_in(scratch, "--contenders=raw", "--rows=buffered-randread", "--json", str(report))
    assert bench.main(arguments) == bench.DONE
    assert "buffered-randread" in capsys.readouterr().out
    [row] = json.loads(report.read_text())["rows"]
    assert row["samples"]["raw"][0] > 0
    assert list(scratch.iterdir()) == []


def test_a_contender_that_fails_costs_its_rows_and_not_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = bench_in(tmp_path, "--rows=randread-qd1,randwrite-qd1")
    assert bench.main(arguments, contenders={"vdiskfs": NeverStarts}) == bench.FAILED
    output = capsys.readouterr().out
    assert output.count("made of cheese") == 2
    assert "failed: randread-qd1, randwrite-qd1" in output
    assert list(tmp_path.iterdir()) == []


def test_a_quick_run_judges_nobody() -> None:
    quick = bench.parse_request(["--quick"], ("vdiskfs",))
    full = bench.parse_request([], ("vdiskfs",))
    assert all(row.target is None for row in quick.rows)
    assert [row.name for row in quick.rows] == [row.name for row in full.rows if row.is_quick]
    asked = bench.parse_request(["--quick", "--rows=behind-snapshots"], ("vdiskfs",))
    assert [row.name for row in asked.rows] == ["behind-snapshots"]


@pytest.mark.parametrize(
    "row",
    [
        *("snapshot-large", "rollback-small", "clones-slow-down", "diff", "tree", "gc-slows-down"),
        *(
            "peer-randread",
            "local-reads",
            "forwarded-write-qd16",
            "fsync-visible-p50",
            "hand-over",
            "node-mount",
        ),
    ],
)
def test_rows_about_vdiskfs_alone_are_measured_and_nothing_is_left_behind(tmp_path: Path, row: str) -> None:
    report, scratch = tmp_path / "report.json", tmp_path / "scratch"
    scratch.mkdir()
    arguments = bench_in(scratch, "--contenders=vdiskfs", f"--rows={row}", "--json", str(report))
    assert bench.main(arguments) == bench.DONE
    [measured] = json.loads(report.read_text())["rows"]
    assert len(measured["samples"]["vdiskfs"]) > 0
    assert measured["failure"] is None
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rows=nothing-such"],
        ["--contenders=nobody"],
        ["--rounds=0"],
        ["--rounds=1000"],
        ["--seconds=0"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(arguments) == bench.WRONG_USAGE
    errors = capsys.readouterr().err
    assert errors.startswith("vdiskfs: ")
    assert errors.count("\n") == 1


def test_a_scratch_folder_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench.main(bench_in(tmp_path / "nowhere")) == bench.FAILED
    assert capsys.readouterr().err.count("\n") == 1


def test_a_report_that_cannot_be_written_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = bench_in(tmp_path, "--contenders=raw", "--json", str(tmp_path / "no" / "report.json"))
    assert bench.main(arguments) == bench.FAILED
    captured = capsys.readouterr()
    assert captured.err.startswith("vdiskfs: cannot write ")
    assert captured.out == ""


def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bench.main(bench_in(tmp_path)) == bench.FAILED
    assert capsys.readouterr().err == "vdiskfs: fio is missing; install it with: apt-get install fio\n"


def test_a_disk_without_the_space_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="GiB free, the benchmark needs"):
        check_scratch(tmp_path, needed_bytes=1 << 60)


def test_a_failed_command_gives_its_last_line() -> None:
    with pytest.raises(Unavailable, match=r"^sh failed: too late$"):
        run_command(["sh", "-c", "echo no; echo too late; exit 3"])


def test_a_command_that_hangs_is_ended_at_its_deadline() -> None:
    with pytest.raises(Unavailable, match="did not end in time"):
        run_command(["tail", "-f", "/dev/null"], allowed_s=0.05)


def test_a_program_that_is_not_there_is_not_found() -> None:
    with pytest.raises(NotFound, match="vdiskfs-no-such-program is missing"):
        run_command(["vdiskfs-no-such-program"])


def test_a_daemon_that_ends_at_once_tells_why(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no such image"):
        start_daemon(["sh", "-c", "echo no such image; exit 1"], log=tmp_path / "log", ready=lambda: False)


def test_the_cpu_and_memory_of_a_process_are_read_from_proc() -> None:
    before = cpu_seconds(os.getpid())
    assert wait_until(lambda: cpu_seconds(os.getpid()) > before, allowed_s=30)
    resident = resident_bytes(os.getpid())
    assert 0 < resident["RssAnon"] <= resident["VmRSS"] <= resident["VmHWM"]


def test_a_daemon_that_has_died_is_said_so() -> None:
    process = subprocess.Popen([sys.executable, "-c", "pass"])
    process.wait()
    with pytest.raises(Unavailable, match=f"pid={process.pid}"):
        cpu_seconds(process.pid)


def test_allocated_bytes_leave_out_the_entries_named(tmp_path: Path) -> None:
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "log").write_bytes(bytes(8192))
    counted = allocated_bytes(tmp_path, leave_out=("journal", "log"))
    (tmp_path / "journal").write_bytes(bytes(1 << 20))
    (tmp_path / "log.1").write_bytes(bytes(1 << 20))
    assert allocated_bytes(tmp_path, leave_out=("journal", "log")) == counted >= 8192
    assert allocated_bytes(tmp_path) >= counted + (2 << 20)


def test_a_folder_that_is_no_mountpoint_is_not_mounted(tmp_path: Path) -> None:
    assert is_mounted(Path("/proc"))
    assert not is_mounted(tmp_path)


def test_a_signal_interrupts_at_once() -> None:
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_waits_for_what_must_be_finished() -> None:
    done = []

    def work() -> None:
        with signals_interrupt(), uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            done.append("finished")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == ["finished"]


def test_clean_up_after_a_signal_is_not_interrupted_by_more_of_them() -> None:
    with signals_interrupt():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)


def test_the_handlers_of_before_are_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), signals_interrupt():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before
