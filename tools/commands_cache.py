"""The verbs about the cache of a remote pool: cache stats, cache warm."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from tools.asking import ask
from tools.paths import locate_mount, locate_snapshot
from tools.render import ProgressLine, print_facts, print_json
from tools.sizes import format_size

NO_CACHE = "the pool is a directory: the page cache is all there is, no cache to show or to warm"


def stats(arguments: argparse.Namespace) -> int:
    """Show what the node keeps of a remote pool."""
    answer: dict[str, Any] = ask(locate_mount(arguments.path).root(), "cache_stats", {})
    if arguments.json:
        print_json(answer)
    elif answer.pop("has_cache"):
        print_facts(answer)
    else:
        sys.stdout.write(f"{NO_CACHE}\n")
    return 0


def warm(arguments: argparse.Namespace) -> int:
    """Fetch what a vdisk or snapshot reads; 1 if not all of it is in the cache then."""
    located, name = locate_snapshot(arguments.path)
    with ProgressLine() as line:
        answer = ask(located, "cache_warm", {"name": name}, progress=lambda news: _show(line, news))
    if arguments.json:
        print_json({**answer, "path": located.path})
    else:
        sys.stdout.write(f"{_sentence(answer)}\n")
    return 1 if answer.get("missing_bytes") else 0


def _show(line: ProgressLine, news: Mapping[str, Any]) -> None:
    line.show_bytes("cache warm", news["done"], news["total"])


def _sentence(answer: Mapping[str, Any]) -> str:
    if not answer["has_cache"]:
        return NO_CACHE
    wanted, fetched = format_size(answer["wanted_bytes"]), format_size(answer["fetched_bytes"])
    if not answer["missing_bytes"]:
        return f"{wanted} in the cache, {fetched} of it fetched now"
    return (
        f"{format_size(answer['missing_bytes'])} of {wanted} did not fit in the cache, which holds "
        f"{format_size(answer['limit_bytes'])}: mount with a larger --cache; {fetched} fetched now"
    )
