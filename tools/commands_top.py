"""``vdiskfs top``: nodes and the vdisks in use, again and again, with what happened in between."""

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fusefs import control_client
from metadata.errors import Unavailable
from tools.cluster_tables import print_nodes, print_vdisks
from tools.paths import Located, locate_mount
from tools.render import print_json

CLEAR = "\x1b[H\x1b[2J"
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen at one moment."""

    at_s: float
    nodes: list[dict[str, Any]]
    vdisks: list[dict[str, Any]]


def top(arguments: argparse.Namespace) -> int:
    """Show until interrupted; once with ``--once``, or for what reads JSON."""
    located = locate_mount(arguments.mountpoint)
    before = _look(located)
    if arguments.json and arguments.once:
        print_json(_facts(located, before, None))
        return 0
    if arguments.once:
        _show(located, before, None)
        return 0
    try:
        while True:
            time.sleep(arguments.interval)
            now = _look(located)
            if arguments.json:
                print_json(_facts(located, now, before))
            else:
                sys.stdout.write(CLEAR if sys.stdout.isatty() else "\n")
                _show(located, now, before)
            sys.stdout.flush()
            before = now
    except KeyboardInterrupt:
        return 0


def _look(located: Located) -> Look:
    control = located.serving_record().control
    answer = dict(control_client.call(control, "status", {"cluster": True}, timeout_s=TIMEOUT_S))
    cluster = answer.get("cluster")
    if cluster is None:
        raise Unavailable("the daemon is of a release without 'top': upgrade the mount first")
    return Look(time.monotonic(), list(cluster["nodes"]), list(cluster["vdisks"]))


def with_rates(now: Look, before: Look | None) -> list[dict[str, Any]]:
    """The vdisks with ``commits_per_s``; the busiest first, then those with open files."""
    known = {} if before is None else {one["vdisk"]: one["version"] for one in before.vdisks}
    passed_s = 0.0 if before is None else now.at_s - before.at_s
    shown = []
    for one in now.vdisks:
        rate = None
        if passed_s > 0 and one["vdisk"] in known:
            rate = round(max(0, one["version"] - known[one["vdisk"]]) / passed_s, 1)
        shown.append({**one, "commits_per_s": rate})
    return sorted(shown, key=lambda one: (-(one["commits_per_s"] or 0), -one["open_handles"], one["vdisk"]))


def _facts(located: Located, now: Look, before: Look | None) -> Mapping[str, object]:
    return {
        "mountpoint": located.entry.mountpoint,
        "nodes": now.nodes,
        "vdisks": with_rates(now, before),
    }


def _show(located: Located, now: Look, before: Look | None) -> None:
    sys.stdout.write(f"{located.entry.mountpoint}  {time.strftime('%H:%M:%S')}\n\n")
    print_nodes(now.nodes)
    print_vdisks(with_rates(now, before))
