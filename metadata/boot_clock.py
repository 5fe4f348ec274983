"""Time since the machine was started: no setting of the clock moves it, and it goes on while the machine sleeps."""

import pathlib
import time


def boot_time_ns() -> int:
    """Since the machine was started."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def boot_time_s() -> float:
    """The same, in seconds."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def boot_number() -> int:
    """A number that each start of the machine has for itself."""
    return int(pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", ""), 16) >> 65
