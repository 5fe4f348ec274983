"""How long each step of a daemon's start took, for one line in the log: a start is a pause for guests.

The clock runs from the process's own beginning, so that the interpreter's start and the imports count in.
"""

import os
import time

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def _process_age_s() -> float:
    with open("/proc/self/stat", "rb") as file:
        started_ticks = int(file.read().rpartition(b")")[2].split()[19])
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / _TICKS_PER_S)


class StartTimes:
    """One start: steps are noted as they end."""

    def __init__(self) -> None:
        self._began = time.monotonic() - _process_age_s()
        self._last = self._began
        self._steps: list[str] = []

    def note(self, step: str) -> None:
        """A step has ended."""
        now = time.monotonic()
        self._steps.append(f"{step} {1000 * (now - self._last):.0f}")
        self._last = now

    def restart(self) -> None:
        """What comes now counts anew: a stand-by waited for its turn until here."""
        self._steps.clear()
        self._began = self._last = time.monotonic()

    def describe(self) -> str:
        """All steps, in milliseconds."""
        return f"{1000 * (self._last - self._began):.0f} ms ({', '.join(self._steps)})"
