"""What keeper and daemons tell each other: the INIT request kept whole or not at all, reports a line at a time."""

import os
from collections.abc import Iterator

import pytest

from fusefs.handover import (
    INIT_BYTES_MAX,
    PENDING_BYTES_MAX,
    TEXT_CHARACTERS_MAX,
    Report,
    ReportReader,
    Stage,
    load_init,
    report_error,
    report_progress,
    report_ready,
    report_stage,
    store_init,
)


@pytest.fixture
def init_fd() -> Iterator[int]:
    fd = os.memfd_create("init")
    yield fd
    os.close(fd)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("request_", [b"i", bytes(range(104)), bytes(INIT_BYTES_MAX)])
def test_each_later_daemon_finds_the_request_that_the_first_has_stored(init_fd: int, request_: bytes) -> None:
    assert load_init(init_fd) is None
    store_init(init_fd, request_)
    assert load_init(init_fd) == load_init(init_fd) == request_


def test_a_request_that_was_not_stored_whole_is_none(init_fd: int) -> None:
    os.pwrite(init_fd, b"request", 4)
    assert load_init(init_fd) is None  # its length is written last
    store_init(init_fd, b"request")
    os.ftruncate(init_fd, 4 + 6)
    assert load_init(init_fd) is None
    os.ftruncate(init_fd, 3)
    assert load_init(init_fd) is None


def test_reports_come_out_as_they_went_in(pipe: tuple[int, int]) -> None:
    receiver, sender = pipe
    report_progress(sender, "replaying\nthe  log")
    report_stage(sender, Stage.STANDING_BY)
    report_ready(sender)
    report_error(sender, "x" * 10000)
    assert ReportReader().feed(os.read(receiver, 65536)) == [
        Report(progress="replaying the log"),
        Report(stage=Stage.STANDING_BY),
        Report(ready=True),
        Report(error="x" * TEXT_CHARACTERS_MAX),
    ]


def test_a_report_arrives_in_whatever_pieces(pipe: tuple[int, int]) -> None:
    receiver, sender = pipe
    for stage in Stage:
        report_stage(sender, stage)
    reader, found = ReportReader(), []
    for byte in os.read(receiver, 65536):
        found += reader.feed(bytes([byte]))
    assert found == [Report(stage=stage) for stage in Stage]


def test_telling_somebody_who_has_gone_is_no_error() -> None:
    receiver, sender = os.pipe()
    os.close(receiver)
    report_ready(sender)
    os.close(sender)


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"ready",
        b"{}",
        b'{"ready": false}',
        b'{"error": 5}',
        b'{"stage": "unheard of"}',
        b'["ready"]',
        b"[" * 5000,
        b"\xff",
    ],
)
def test_what_is_no_report_is_an_error_that_shows_its_beginning(line: bytes) -> None:
    (report,) = ReportReader().feed(line + b"\n")
    assert report.error is not None
    assert report.error == f"unreadable report: {line[:80]!r}"


def test_of_a_line_that_never_ends_little_is_kept() -> None:
    reader = ReportReader()
    for _ in range(5):
        assert reader.feed(b"x" * PENDING_BYTES_MAX) == []
    assert len(reader._pending) <= PENDING_BYTES_MAX
    assert reader.feed(b'\n{"ready": true}\n')[1] == Report(ready=True)
