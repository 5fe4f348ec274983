"""A daemon that serves an empty directory, or dies as it is told.

It is started as ``python fake_daemon.py BEHAVIOUR SETTINGS`` and stands in for the real one, so that
keeper, mounting and unmounting are tested by themselves. Behaviours:

    serve           answers until the mount is gone
    refuse          reports an error instead of being ready
    vanish          ends without a word
    dies-N          serves once; the next N starts are ready and die at once; serves again
    deaf            reports that it is ready and then never answers
    ends-badly      serves, and fails after the mount is gone
"""

import errno
import os
import pathlib
import struct
import sys

from fusefs import handover
from fusefs.settings import NodeSettings

FORGET, GETATTR, STATFS, INIT, BATCH_FORGET = 2, 3, 17, 26, 42
IN_HEADER = struct.Struct("<IIQQIIII")
OUT_HEADER = struct.Struct("<IiQ")
REQUEST_BYTES_MAX = 1 << 21


def reply(fuse_fd: int, unique: int, *, payload: bytes = b"", error: int = 0) -> None:
    """One answer to the kernel."""
    os.write(fuse_fd, OUT_HEADER.pack(16 + len(payload), -error, unique) + payload)


def answer(settings: NodeSettings, request: bytes) -> None:
    """Answer one request of the kernel."""
    _, opcode, unique, *_ = IN_HEADER.unpack_from(request)
    fuse_fd = settings.fuse_fd
    if opcode == INIT:
        handover.store_init(settings.init_fd, request)
        (readahead,) = struct.unpack_from("<I", request, 48)
        words = struct.pack("<IIIIHHIIHH", 7, 31, readahead, 0, 12, 9, 1 << 20, 1, 256, 0)
        reply(fuse_fd, unique, payload=words.ljust(64, b"\0"))
        handover.report_ready(settings.ready_fd)
    elif opcode == GETATTR:
        times = struct.pack("<6Q3I", 1, 0, 0, 0, 0, 0, 0, 0, 0)
        rest = struct.pack("<7I", 0o40755, 2, settings.uid, settings.uid, 0, 4096, 0)
        reply(fuse_fd, unique, payload=struct.pack("<QII", 1, 0, 0) + times + rest)
    elif opcode == STATFS:
        reply(
            fuse_fd,
            unique,
            payload=struct.pack("<5Q3I", 1000, 500, 500, 9, 9, 4096, 255, 4096).ljust(80, b"\0"),
        )
    elif opcode not in (FORGET, BATCH_FORGET):
        reply(fuse_fd, unique, error=errno.ENOSYS)


def serve(settings: NodeSettings) -> None:
    """Answer until the mount is gone."""
    if handover.load_init(settings.init_fd) is not None:
        handover.report_ready(settings.ready_fd)
    while True:
        try:
            request = os.read(settings.fuse_fd, REQUEST_BYTES_MAX)
        except OSError as problem:
            if problem.errno in (errno.ENODEV, errno.ECONNABORTED):
                return
            raise
        answer(settings, request)


def behave(behaviour: str, settings: NodeSettings) -> int:
    """Do as told; the exit status."""
    starts = pathlib.Path(settings.state, "starts")
    earlier = len(starts.read_text()) if starts.exists() else 0
    starts.write_text("x" * (earlier + 1))
    if behaviour == "refuse":
        handover.report_error(settings.ready_fd, "the pool is not to my taste")
        return 1
    if behaviour == "vanish":
        return 3
    if behaviour == "deaf":
        handover.report_ready(settings.ready_fd)
        os.kill(os.getpid(), 19)  # SIGSTOP
    if behaviour.startswith("dies-") and 1 <= earlier <= int(behaviour.removeprefix("dies-")):
        handover.report_ready(settings.ready_fd)
        return 4
    serve(settings)
    return 5 if behaviour == "ends-badly" else 0


if __name__ == "__main__":
    sys.exit(behave(sys.argv[1], NodeSettings.from_json(sys.argv[2])))
