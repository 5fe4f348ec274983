"""The verbs about differences: diff; export and import of difference streams."""

import argparse
import base64
import itertools
import json
import sys
from array import array
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from metadata.differences import DATA_KIND, HOLE_KIND, ChangedRange, ranges_of
from metadata.errors import Corrupt, InvalidRequest
from tools.asking import ask, check_same_mount
from tools.paths import Located, locate_snapshot
from tools.render import JSON_FORMAT, print_table
from tools.sizes import format_size

PAGES_MAX = 1_000_000
"""Of one answer; a daemon that never comes to the end of it is broken."""


def diff(arguments: argparse.Namespace) -> int:
    """Show what changed since a snapshot: until another one, or until now."""
    base, base_name = locate_snapshot(arguments.base)
    if base_name is None:
        raise InvalidRequest(
            f"{arguments.base} names no snapshot: write PATH@SNAP, what changed since then is shown"
        )
    newer, name = (base, None) if arguments.path is None else locate_snapshot(arguments.path)
    check_same_mount(base, newer)
    pages = changed_pages(newer, name, base=(base, base_name))
    if arguments.json:
        _print_json(newer.path, pages)
    else:
        _print_table(pages)
    return 0


def changed_pages(
    newer: Located, name: str | None, *, base: tuple[Located, str | None] | None
) -> Iterator[dict[str, Any]]:
    """The daemon's answers, the changed ranges part by part; ``base`` None: all data."""
    asked: dict[str, object] = {"name": name, "whole": base is None}
    if base is not None:
        asked |= {"base_path": base[0].inner, "base": base[1]}
    with ThreadPoolExecutor(1) as asking:  # the daemon looks for the next part while this one is shown
        answer = asking.submit(ask, newer, "diff", {**asked, "offset": 0})
        for _ in range(PAGES_MAX):
            page = answer.result()
            offset = page["next_offset"]
            if offset is None:
                yield page
                return
            answer = asking.submit(ask, newer, "diff", {**asked, "offset": offset})
            yield page
    raise Corrupt("the daemon's answer does not end")


def changed_ranges(pages: Iterable[Mapping[str, Any]]) -> Iterator[ChangedRange]:
    """The ranges of all pages."""
    for page in pages:
        words = array("Q", base64.b64decode(page["words"]))
        yield from ranges_of(words, size=page["size"])


def _print_table(pages: Iterable[Mapping[str, Any]]) -> None:
    changed, bytes_by_kind = 0, {DATA_KIND: 0, HOLE_KIND: 0}
    rows = []
    for offset, length, kind in changed_ranges(pages):
        rows.append([str(offset), str(length), kind])
        changed += 1
        bytes_by_kind[kind] += length
    if rows:
        print_table(("OFFSET", "LENGTH", "NOW"), rows, left=0)
    data, holes = (format_size(bytes_by_kind[kind]) for kind in (DATA_KIND, HOLE_KIND))
    sys.stdout.write(f"{changed} ranges changed: {data} of data, {holes} of holes\n")


def _print_json(path: str, pages: Iterator[dict[str, Any]]) -> None:
    """The envelope, a range a line: there may be a million of them."""
    first = next(pages)
    facts = {"format": JSON_FORMAT, "path": path, **{key: first[key] for key in _FACTS}}
    sys.stdout.write(json.dumps(facts, indent=2).removesuffix("\n}") + ',\n  "ranges": [')
    separator, totals = "", {DATA_KIND: 0, HOLE_KIND: 0}
    for page in itertools.chain([first], pages):
        lines = []
        for offset, length, kind in changed_ranges([page]):
            totals[kind] += length
            lines.append(f'\n    {{"offset": {offset}, "length": {length}, "kind": "{kind}"}}')
        if lines:
            sys.stdout.write(separator + ",".join(lines))
            separator = ","
    sums = f'"data_bytes": {totals[DATA_KIND]},\n  "hole_bytes": {totals[HOLE_KIND]}'
    sys.stdout.write(f"\n  ],\n  {sums}\n}}\n")


_FACTS = ("vdisk", "name", "version", "size", "base_vdisk", "base_version", "base_size")
