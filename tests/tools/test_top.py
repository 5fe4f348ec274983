"""Rates and tables of ``top`` and ``status``."""

from typing import Any

import pytest

from tools.cluster_tables import print_nodes, print_vdisks
from tools.commands_top import Look, with_rates


def vdisk(number: int, version: int, *, handles: int = 0, lag: int | None = None) -> dict[str, Any]:
    peers = [] if lag is None else [{"node": "b", "version": version - lag, "lag": lag}]
    return {
        "vdisk": number,
        "path": f"/{number}.img",
        "owner": "a",
        "version": version,
        "open_handles": handles,
        "dirty_bytes": 4096,
        "peers": peers,
    }


def test_the_busiest_vdisks_come_first_with_their_commits_a_second() -> None:
    before = Look(10.0, [], [vdisk(20, 5), vdisk(21, 5), vdisk(22, 5, handles=1)])
    now = Look(12.0, [], [vdisk(20, 5), vdisk(21, 25), vdisk(22, 5, handles=1), vdisk(23, 9)])
    shown = with_rates(now, before)
    assert [(one["vdisk"], one["commits_per_s"]) for one in shown] == [
        (21, 10.0),
        (22, 0.0),
        (20, 0.0),
        (23, None),
    ]


def test_tables_show_sessions_owners_and_lags(capsys: pytest.CaptureFixture[str]) -> None:
    nodes = [
        {"node": "a", "here": True, "session": "live", "address": "127.0.0.1:7", "vdisks_owned": 2},
        {"node": "b", "here": False, "session": "no session", "address": None, "vdisks_owned": 1},
    ]
    print_nodes(nodes)
    print_vdisks([vdisk(20, 7, handles=1, lag=2)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["a*", "live", "127.0.0.1:7", "2"]
    assert lines[2].split()[:4] == ["b", "no", "session", "-"]
    assert lines[-1].split() == ["/20.img", "a", "b:", "2", "7", "4", "KiB", "1"]
