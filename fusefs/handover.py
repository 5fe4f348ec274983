"""The few words a keeper, its daemons and the waiting ``vdiskfs mount`` exchange.

Two channels, both inherited by descriptor:

* **The INIT file**, a memory file: a length (4 bytes, little-endian), then the kernel's INIT request. The
  first daemon stores it; each later one finds it there and replays it, for the kernel sends INIT only once
  per mount. The length is written last: a daemon that dies in between leaves no half a request.
* **The ready pipe**, JSON lines: any number of ``{"progress": "what goes on"}``, then ``{"ready": true}`` or
  ``{"error": "why"}``. A daemon may send an error after it was ready too: why it ends. ``{"stage": ...}`` says
  how far an upgrade is, and at the very end that all went well.
"""

import json
import os
import struct
from dataclasses import dataclass
from enum import Enum

_LENGTH = struct.Struct("<I")
INIT_BYTES_MAX = 4096
"""An INIT request has about 100 bytes; more than a page is not one."""
TEXT_CHARACTERS_MAX = 400
"""So that a line in JSON stays under PIPE_BUF and arrives whole or not at all."""
PENDING_BYTES_MAX = 1 << 16
"""Of a line that never ends, more than this is not kept."""


def store_init(init_fd: int, request: bytes) -> None:
    """Keep the kernel's INIT request for the daemons to come."""
    assert 0 < len(request) <= INIT_BYTES_MAX
    os.pwrite(init_fd, request, _LENGTH.size)
    os.pwrite(init_fd, _LENGTH.pack(len(request)), 0)


def load_init(init_fd: int) -> bytes | None:
    """The INIT request a predecessor stored; None at the first start."""
    content = os.pread(init_fd, _LENGTH.size + INIT_BYTES_MAX, 0)
    if len(content) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(content)
    request = content[_LENGTH.size : _LENGTH.size + length]
    return request if length and len(request) == length else None


class Stage(Enum):
    """What a daemon says of itself besides being ready."""

    STANDING_BY = "standing by"
    """A successor has checked all that can be checked, and waits until the daemon before has finished."""
    PAUSED = "paused"
    """It takes no more requests: guests wait for its successor."""
    ENDED = "ended"
    """The mount is gone and everything was put to rest."""


@dataclass(frozen=True, slots=True)
class Report:
    """One line of the ready pipe; exactly one of the four is meant."""

    ready: bool = False
    error: str | None = None
    progress: str | None = None
    stage: Stage | None = None


def send(ready_fd: int, report: Report) -> None:
    """Tell the other end. Nobody there is no error: the one who asked has given up, and knows."""
    message: dict[str, object] = {"ready": True}
    if report.error is not None:
        message = {"error": _one_line(report.error)}
    elif report.progress is not None:
        message = {"progress": _one_line(report.progress)}
    elif report.stage is not None:
        message = {"stage": report.stage.value}
    try:
        os.write(ready_fd, json.dumps(message).encode() + b"\n")
    except OSError:
        pass


def report_ready(ready_fd: int) -> None:
    """The mount is served."""
    send(ready_fd, Report(ready=True))


def report_error(ready_fd: int, reason: str) -> None:
    """There is no service, and this is why."""
    send(ready_fd, Report(error=reason))


def report_progress(ready_fd: int, text: str) -> None:
    """It takes a while, and this is what goes on."""
    send(ready_fd, Report(progress=text))


def report_stage(ready_fd: int, stage: Stage) -> None:
    """How far it is."""
    send(ready_fd, Report(stage=stage))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:TEXT_CHARACTERS_MAX]


class ReportReader:
    """The receiving end of one ready pipe: pieces of bytes in, whole reports out."""

    def __init__(self) -> None:
        self._pending = b""

    def feed(self, arrived: bytes) -> list[Report]:
        """The reports that ``arrived`` completes."""
        *lines, self._pending = (self._pending + arrived)[-PENDING_BYTES_MAX:].split(b"\n")
        return [_parse(line) for line in lines]


def _parse(line: bytes) -> Report:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    match message:
        case {"ready": True}:
            return Report(ready=True)
        case {"error": str(reason)}:
            return Report(error=reason)
        case {"progress": str(text)}:
            return Report(progress=text)
        case {"stage": str(name)} if name in {stage.value for stage in Stage}:
            return Report(stage=Stage(name))
        case _:
            return Report(error=f"unreadable report: {line[:80]!r}")
