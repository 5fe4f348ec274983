"""What the command line shows: tables, times, JSON envelopes, and progress while something runs."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from tools.sizes import format_size

JSON_FORMAT = 1
"""Grows when a key changes its meaning or goes; new keys do not count."""
PROGRESS_PERIOD_S = 0.1


def print_json(facts: Mapping[str, object]) -> None:
    """One JSON object in the versioned envelope."""
    text = json.dumps({"format": JSON_FORMAT, **facts}, indent=2, ensure_ascii=True)
    sys.stdout.write(text + "\n")


def printable(text: str) -> str:
    """``text`` with everything escaped that could move a terminal's cursor; names may hold any byte."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> None:
    """Columns as wide as their widest cell; the first ``left`` are flush left, the others right."""
    cells = [[*header], *([printable(cell) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        padded = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        sys.stdout.write("  ".join(padded).rstrip() + "\n")


def print_facts(facts: Mapping[str, object]) -> None:
    """Names and values, one pair a line, the values under each other, units as people write them."""
    named = [(_label(key), readable(key, value)) for key, value in facts.items()]
    width = max((len(label) for label, _ in named), default=0)
    for label, value in named:
        sys.stdout.write(f"{label.ljust(width)}  {printable(value)}\n")


def _label(key: str) -> str:
    for unit in ("_ns", "_bytes", "_s"):
        key = key.removesuffix(unit)
    return key.replace("_", " ")


def readable(key: str, value: object) -> str:
    """A JSON value as text; the unit is the end of its key."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{name}={readable(name, inner)}" for name, inner in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(readable(key, inner) for inner in value) or "-"
    if key.endswith("_ns") and isinstance(value, int):
        return format_time(value)
    if (key == "size" or key.endswith("_bytes")) and isinstance(value, int):
        return f"{format_size(value)} ({value} bytes)" if value >= 1024 else format_size(value)
    return f"{value} s" if key.endswith("_s") else str(value)


def format_time(time_ns: int | None) -> str:
    """Local time to the second; ``-`` for never."""
    if not time_ns:
        return "-"
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_ns // 10**9))


class ProgressLine:
    """One line on stderr that is written over again; silent where stderr is no terminal.

    Used with ``with``: the line is wiped at the end, so that what follows starts clean.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._is_shown = self._stream.isatty()
        self._next_at = 0.0
        self._width = 0

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *_: object) -> None:
        self._write("")

    def show(self, text: str) -> None:
        """Replace the line, not more often than people can read."""
        now = time.monotonic()
        if self._is_shown and now >= self._next_at:
            self._next_at = now + PROGRESS_PERIOD_S
            self._write(printable(text))

    def show_bytes(self, what: str, done: int, total: int) -> None:
        """Replace the line by how far ``what`` is."""
        share = f"{done * 100 // total} %" if total else "100 %"
        self.show(f"{what}: {format_size(done)} of {format_size(total)}, {share}")

    def _write(self, text: str) -> None:
        if self._is_shown and (text or self._width):
            self._stream.write("\r" + text.ljust(self._width) + ("" if text else "\r"))
            self._stream.flush()
            self._width = len(text)
