"""Sizes as people write and read them: ``1.5G`` to bytes, bytes to ``1.5 GiB``."""

import re

from metadata.errors import InvalidRequest
from metadata.units import VDISK_BYTES_MAX

_LETTERS = "KMGTPE"
_PATTERN = re.compile(r"(\d{1,30})(?:\.(\d{1,30}))?\s*([KMGTPE]?)(?:iB|B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str) -> int:
    """Bytes: a number, with K, M, G, T, P or E for powers of 1024.

    Raises:
        InvalidRequest: no size, not whole bytes, or more than a vdisk can have.
    """
    match = _PATTERN.fullmatch(text.strip())
    if match is None:
        raise InvalidRequest(f"{text!r} is not a size: write bytes, or a number with K, M, G or T, like 20G")
    whole, fraction, letter = match[1], match[2] or "", match[3].upper()
    power = _LETTERS.index(letter) + 1 if letter else 0
    scale = int("1" + "0" * len(fraction))
    size, rest = divmod(int(whole + fraction) << 10 * power, scale)
    if rest:
        raise InvalidRequest(f"{text!r} is not a whole number of bytes")
    if size > VDISK_BYTES_MAX:
        raise InvalidRequest(f"{text!r} is too large: a vdisk has at most {format_size(VDISK_BYTES_MAX)}")
    return size


def format_size(size: int) -> str:
    """``size`` in the largest unit that leaves at least 1 before the point, with one decimal if needed."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, len(_LETTERS))
    if power < len(_LETTERS) and size * 10 + (5 << 10 * power) // 10 >= 10 << 10 * (power + 1):
        power += 1  # 1023.99 of one unit reads as 1.0 of the next
    value = f"{size / (1 << 10 * power):.1f}"
    return f"{value.removesuffix('.0')} {_LETTERS[power - 1]}iB"
