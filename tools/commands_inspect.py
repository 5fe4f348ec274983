"""The verbs that look and change nothing: ls, info, du, map, check, scrub."""

import argparse
import sys
from collections.abc import Mapping
from typing import Any

from tools.asking import ask
from tools.paths import locate, locate_mount, locate_snapshot
from tools.render import ProgressLine, format_time, print_facts, print_json, print_table, printable
from tools.sizes import format_size

PAGES_MAX = 1_000_000
"""Of one answer; a daemon that never comes to the end of it is broken."""


def list_vdisks(arguments: argparse.Namespace) -> int:
    """List a directory, or one vdisk."""
    located = locate(arguments.path)
    entries: list[dict[str, Any]] = []
    after: int | None = 0
    for _ in range(PAGES_MAX):
        answer = ask(located, "ls", {"after": after})
        entries += answer["entries"]
        after = answer["next"]
        if after is None:
            break
    entries.sort(key=lambda entry: str(entry["name"]))
    if arguments.json:
        print_json({"path": located.path, "entries": entries})
    elif entries:
        print_table(("NAME", "SIZE", "ALLOCATED", "VERSION", "MODIFIED"), [_row(entry) for entry in entries])
    return 0


def _row(entry: Mapping[str, Any]) -> list[str]:
    modified = format_time(entry["mtime_ns"])
    if entry["kind"] == "directory":
        return [f"{entry['name']}/", "-", "-", "-", modified]
    if entry["kind"] == "symlink":
        return [f"{entry['name']} -> {entry['target']}", "-", "-", "-", modified]
    if "problem" in entry:
        return [str(entry["name"]), "?", "?", "?", str(entry["problem"])]
    sizes = [format_size(entry["size"]), format_size(entry["allocated_bytes"])]
    return [str(entry["name"]), *sizes, str(entry["version"]), modified]


def info(arguments: argparse.Namespace) -> int:
    """Show what is known about one vdisk, snapshot, directory or link."""
    located, name = locate_snapshot(arguments.path)
    facts: dict[str, Any] = ask(located, "info" if name is None else "snap_info", {"name": name})
    if arguments.json:
        print_json(facts)
    else:
        print_facts(facts)
    return 0


def usage(arguments: argparse.Namespace) -> int:
    """Show what the entries of a directory occupy in the pool."""
    located = locate(arguments.path)
    with ProgressLine() as line:
        answer = ask(located, "du", {}, progress=lambda news: line.show(f"{news['done']} of {news['total']}"))
    if arguments.json:
        print_json(answer)
        return 0
    rows = [
        [entry["name"] + ("/" if entry["kind"] == "directory" else ""), entry] for entry in answer["entries"]
    ]
    rows.append(["total", answer["total"]])
    print_table(
        ("NAME", "VDISKS", "SIZE", "ALLOCATED"),
        [
            [name, str(sums["vdisks"]), format_size(sums["size"]), format_size(sums["allocated_bytes"])]
            for name, sums in rows
        ],
    )
    return 0


def show_map(arguments: argparse.Namespace) -> int:
    """Show where a stretch of a vdisk, or of a snapshot, lies in the pool."""
    located, name = locate_snapshot(arguments.path)
    end = None if arguments.length is None else arguments.offset + arguments.length
    offset: int | None = arguments.offset
    extents: list[dict[str, Any]] = []
    answer: dict[str, Any] = {}
    for _ in range(PAGES_MAX):
        assert offset is not None
        length = None if end is None else end - offset
        answer = ask(located, "map", {"name": name, "offset": offset, "length": length})
        extents += answer["extents"]
        offset = answer["next_offset"]
        if offset is None:
            break
    if arguments.json:
        facts = {key: value for key, value in answer.items() if key != "next_offset"}
        print_json({"path": located.path, **facts, "extents": extents})
    else:
        header = ("OFFSET", "LENGTH", "KIND", "VERSION", "GROUP", "POSITION", "CHECKSUM", "FILE")
        print_table(header, [_extent_row(extent) for extent in extents], left=0)
    return 0


def _extent_row(extent: Mapping[str, Any]) -> list[str]:
    shown = ("offset", "length", "kind", "version", "group", "position", "checksum", "file")
    return ["-" if extent.get(key) is None else str(extent[key]) for key in shown]


def check(arguments: argparse.Namespace) -> int:
    """Compare metadata and pool; 1 if something is wrong."""
    return _scan(arguments, "check")


def scrub(arguments: argparse.Namespace) -> int:
    """Read and verify every block; 1 if something is wrong."""
    return _scan(arguments, "scrub")


def _scan(arguments: argparse.Namespace, verb: str) -> int:
    located = locate_mount(arguments.path)
    if arguments.path is None:
        located = located.root()
    with ProgressLine() as line:
        answer = ask(located, verb, {}, progress=lambda news: _show_scan(line, verb, news))
    findings = answer["findings"]
    if arguments.json:
        print_json({"path": located.path, **answer})
    else:
        for finding in findings:
            sys.stdout.write(f"{_sentence(finding)}\n")
        sys.stdout.write(f"{answer['vdisks']} vdisks, {len(findings) or 'no'} problems\n")
    return 1 if findings else 0


def _show_scan(line: ProgressLine, verb: str, news: Mapping[str, Any]) -> None:
    done, total = news.get("done"), news.get("total")
    if isinstance(done, int) and isinstance(total, int):
        line.show_bytes(verb, done, total)


def _sentence(finding: Mapping[str, Any]) -> str:
    """``/a.img: checksum does not match offset=4096 file=...``."""
    where = finding.get("path") or f"vdisk {finding.get('vdisk')}"
    facts = [f"{key}={value}" for key, value in finding.items() if key not in ("path", "problem")]
    return printable(f"{where}: {finding.get('problem', 'damaged')} {' '.join(facts)}")
