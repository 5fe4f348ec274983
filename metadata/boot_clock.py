"""Time since the machine was started: no setting of the clock moves it, and it goes on while the machine sleeps."""

import functools
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


@functools.cache
def this_start() -> int:
    """The same in 32 bits, 0 excluded: what was in memory only under another one may be lost."""
    return boot_number() & 0xFFFFFFFF or 1
