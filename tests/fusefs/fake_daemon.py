"""A daemon that serves an empty directory, or dies as it is told.

It is started as ``python fake_daemon.py BEHAVIOUR SETTINGS`` and stands in for the real one, so that
keeper, mounting and unmounting are tested by themselves. Behaviours:

    serve           answers until the mount is gone
    refuse          reports an error instead of being ready
    refuses-later   serves once; every later start does the same
    vanish          ends without a word
    dies-N          serves once; the next N starts are ready and die at once; serves again
    deaf            reports that it is ready and then never answers
    ends-badly      serves, and fails after the mount is gone
    stumbles        as a successor: dies when it is its turn
    dawdles         as a successor: never stands by

Whatever it is, it hands its mount to a keeper that asks over the control socket, and makes way when it is told to.
"""

import errno
import os
import pathlib
import select
import signal
import socket
import struct
import sys

from fusefs import handover
from fusefs.daemon_process import EXIT_FINISHED, FINISH_SIGNAL
from fusefs.handover import Stage
from fusefs.settings import NO_FD, NodeSettings

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


def listen(settings: NodeSettings) -> socket.socket:
    """The control socket."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    pathlib.Path(settings.control).unlink(missing_ok=True)
    listener.bind(settings.control)
    listener.listen()
    return listener


def hand_over(settings: NodeSettings, listener: socket.socket) -> None:
    """Give whoever asks all that is the mount's."""
    client, _ = listener.accept()
    with client:
        if b"take_over" not in client.recv(4096):
            client.sendall(b'{"result": {}}\n')
        else:
            reports_fd, ready_fd = os.pipe2(os.O_CLOEXEC)
            os.dup2(ready_fd, settings.ready_fd, inheritable=False)
            mine = [settings.fuse_fd, settings.init_fd, settings.lock_fd, reports_fd]
            socket.send_fds(client, [b'{"result": {}}\n'], mine)
            os.close(reports_fd)


def make_way(settings: NodeSettings) -> None:
    """Let a successor go on."""
    handover.report_stage(settings.ready_fd, Stage.PAUSED)
    os._exit(EXIT_FINISHED)


def serve(settings: NodeSettings) -> None:
    """Answer until the mount is gone."""
    if handover.load_init(settings.init_fd) is not None:
        handover.report_ready(settings.ready_fd)
    signal.signal(FINISH_SIGNAL, lambda *_: make_way(settings))
    poller = select.poll()
    with listen(settings) as listener:
        for readable in (settings.fuse_fd, listener.fileno()):
            poller.register(readable, select.POLLIN)
        while True:
            ready = [descriptor for descriptor, _ in poller.poll()]
            if listener.fileno() in ready:
                hand_over(settings, listener)
            if settings.fuse_fd in ready:
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
    if settings.standby_fd != NO_FD and behaviour not in ("refuse", "vanish"):
        if behaviour == "dawdles":
            os.read(settings.standby_fd, 1)
        handover.report_stage(settings.ready_fd, Stage.STANDING_BY)
        if not os.read(settings.standby_fd, 1):
            return 0
        if behaviour == "stumbles":
            return 6
    if behaviour == "refuse" or (behaviour == "refuses-later" and earlier):
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
    if behaviour == "ends-badly":
        return 5
    handover.report_stage(settings.ready_fd, Stage.ENDED)
    return 0


if __name__ == "__main__":
    sys.exit(behave(sys.argv[1], NodeSettings.from_json(sys.argv[2])))
