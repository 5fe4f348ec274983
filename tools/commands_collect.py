"""The verb that gives space back: gc."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from tools.asking import ask
from tools.paths import locate_mount
from tools.render import ProgressLine, print_json
from tools.sizes import format_size


def collect(arguments: argparse.Namespace) -> int:
    """Collect what nobody reads any more; 1 if some vdisk could not be."""
    located = locate_mount(arguments.path)
    if arguments.path is None:
        located = located.root()
    with ProgressLine() as line:
        answer = ask(located, "gc", {"dry_run": arguments.dry_run}, progress=lambda news: _show(line, news))
    if arguments.json:
        print_json({**answer, "path": located.path})
    else:
        sys.stdout.write(f"{_sentence(answer)}\n")
    return 1 if answer["failed"] else 0


def _show(line: ProgressLine, news: Mapping[str, Any]) -> None:
    line.show_bytes(f"gc: {news['vdisks']} of {news['of']} vdisks", news["done"], news["total"])


def _sentence(answer: Mapping[str, Any]) -> str:
    found = f"{format_size(answer['pool_bytes'])} in the pool, {format_size(answer['live_bytes'])} in use"
    if answer["dry_run"]:
        return f"{found}, {format_size(answer['garbage_bytes'])} could be collected"
    failed = f"; {answer['failed']} vdisks could not be collected, see the log" if answer["failed"] else ""
    return f"{found}, {format_size(answer['freed_bytes'])} freed{failed}"
