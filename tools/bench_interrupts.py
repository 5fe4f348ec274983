"""Signals that end the benchmark: raised as KeyboardInterrupt, but never in a start or a clean-up.

What the benchmark starts lives in sessions of its own, so Ctrl-C reaches this process alone and it decides
what ends when. The first signal interrupts; from then on there is only clean-up, and more are ignored.
Signal handlers belong to the process, hence this module's one piece of state.
"""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class _State:
    held = 0
    pending = False


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """Inside, the first SIGINT, SIGTERM or SIGHUP raises KeyboardInterrupt in the main thread."""
    _State.held, _State.pending = 0, False
    before = {number: signal.signal(number, _handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Inside, an interruption waits until the end: for what must be finished or known to have failed."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if _State.pending and not _State.held:
            _State.pending = False
            raise KeyboardInterrupt


def _handle(number: int, frame: FrameType | None) -> None:
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    if _State.held:
        _State.pending = True
    else:
        raise KeyboardInterrupt
