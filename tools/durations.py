"""Times as people write and read them: ``7d`` to seconds, seconds to ``7 d``."""

import re

from metadata.errors import InvalidRequest
from metadata.units import TRASH_S_MAX

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_PATTERN = re.compile(r"(\d{1,12})\s*([smhdw]?)", re.IGNORECASE | re.ASCII)


def parse_duration(text: str) -> int:
    """Seconds: a number, with s, m, h, d or w behind it.

    Raises:
        InvalidRequest: no time, or a longer one than anybody lives.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"{text!r} is not a time: write seconds, or a number with m, h, d or w, like 7d")
    seconds = int(match[1]) * _SECONDS[match[2].lower()]
    if seconds > TRASH_S_MAX:
        raise InvalidRequest(f"{text!r} is too long: at most {format_duration(TRASH_S_MAX)}")
    return seconds


def format_duration(seconds: float) -> str:
    """``seconds`` in the largest unit of which there are at least two, or one exactly; nothing below 1 s."""
    whole = max(0, int(seconds))
    for unit in ("d", "h", "m"):
        if whole >= 2 * _SECONDS[unit] or whole == _SECONDS[unit]:
            return f"{whole // _SECONDS[unit]} {unit}"
    return f"{whole} s"
