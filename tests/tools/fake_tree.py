"""Snapshot trees as a daemon would list them, of any size, and block maps to go with them."""

import base64
import random
from typing import Any

from metadata.block_pictures import encode_cells

GIB = 1 << 30
TIME_NS = 1_790_000_000 * 10**9

SMALL: list[dict[str, Any]] = [
    {
        "id": 16,
        "kind": "vdisk",
        "path": "/b.img",
        "version": 9,
        "parent": None,
        "size": 1 << 30,
        "own_bytes": 4096,
    },
    {"id": 20, "kind": "snapshot", "name": "two", "version": 7, "parent": 16, "protected": True},
    {"id": 21, "kind": "snapshot", "name": "one", "version": 3, "parent": 16, "open_handles": 2},
    {"id": 30, "kind": "vdisk", "path": "/clone", "version": 1, "parent": 21, "exclusive_bytes": 8192},
    {"id": 31, "kind": "vdisk", "path": "/another", "version": 1, "parent": 21, "shared_bytes": 0},
    {"id": 40, "kind": "nameless", "path": None, "version": 2, "parent": None},
    {"id": 41, "kind": "vdisk", "path": "/of-the-head", "version": 2, "parent": 16},
    {"id": 42, "kind": "trash", "path": "/gone", "version": 2, "parent": 999},
    {"id": 43, "kind": "vdisk", "path": "/a.img", "parent": None},
]
"""A tree that fits on a screen."""


def fake_nodes(count: int, *, seed: int = 1) -> list[dict[str, Any]]:
    """About a third vdisks, the rest snapshots; some vdisks are clones of snapshots, a few lost their names."""
    chance = random.Random(seed)
    nodes: list[dict[str, Any]] = []
    vdisks: list[dict[str, Any]] = []
    snapshots: list[dict[str, Any]] = []
    for number in range(count):
        node: dict[str, Any] = {"id": 16 + number, "parent": None, "parent_version": None, "children": 0}
        if vdisks and chance.random() < 0.65:
            vdisk = chance.choice(vdisks[-40:])
            vdisk["version"] += chance.randrange(1, 9)
            name = f"daily-{chance.randrange(2026, 2028)}-{number:04d}"
            node |= {
                "kind": "snapshot",
                "name": name,
                "path": f"{vdisk['path']}@{name}",
                "parent": vdisk["id"],
            }
            node |= {"version": vdisk["version"], "size": vdisk["size"], "protected": chance.random() < 0.1}
            node |= {"created_ns": TIME_NS + number * 10**11, "open_handles": int(chance.random() < 0.05)}
            snapshots.append(node)
        else:
            is_clone = bool(snapshots) and chance.random() < 0.6
            folder = chance.choice(["/templates", "/vms/web", "/vms/databases", "/ci/runners", ""])
            name = f"{chance.choice(['debian', 'postgres', 'web', 'runner', 'build'])}-{number:04d}.img"
            node |= {
                "kind": "vdisk",
                "name": name,
                "path": f"{folder}/{name}",
                "version": chance.randrange(1, 50),
            }
            node |= {"size": chance.choice([8, 20, 40, 64, 512]) * GIB, "mtime_ns": TIME_NS + number * 10**11}
            node |= {"protected": False, "open_handles": int(chance.random() < 0.3)}
            if is_clone:
                origin = chance.choice(snapshots[-30:])
                origin["children"] += 1
                node |= {"parent": origin["id"], "parent_version": origin["version"], "size": origin["size"]}
            if chance.random() < 0.03:
                node |= {"kind": "nameless", "path": None, "name": ""}
            vdisks.append(node)
        node["own_bytes"] = int(node["size"] * chance.random() ** 3)
        node["exclusive_bytes"] = int(node["own_bytes"] * chance.random())
        node["shared_bytes"] = node["own_bytes"] - node["exclusive_bytes"]
        if chance.random() < 0.02:
            node["exclusive_bytes"] = node["shared_bytes"] = None
        nodes.append(node)
    return nodes


def fake_maps(nodes: list[dict[str, Any]], *, cells: int = 400, seed: int = 1) -> dict[int, dict[str, Any]]:
    """A picture for every vdisk: written at the front, scattered in the middle, a clone's parent behind."""
    chance = random.Random(seed)
    maps = {}
    for node in nodes:
        if node["kind"] != "vdisk":
            continue
        shares = []
        is_clone = node["parent"] is not None
        written, scattered = chance.randrange(cells // 2), chance.randrange(1, cells)
        for cell in range(cells):
            own = 15 if cell < written else chance.randrange(15) if chance.random() < 0.2 else 0
            parent = chance.randrange(16 - own) if is_clone and own < 15 else 0
            parent = 15 - own if is_clone and cell < cells * 0.7 else parent
            shares.append((own, parent, 220 if own and cell % scattered < 20 else 3 * own))
        maps[node["id"]] = {
            "cell_bytes": max(1 << 20, node["size"] // cells),
            "cells": base64.b64encode(encode_cells(shares)).decode(),
        }
    return maps
