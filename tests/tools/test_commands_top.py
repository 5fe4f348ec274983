"""Rates of ``top``: what happened between two looks."""

from typing import Any

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
