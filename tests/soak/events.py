"""What is done to three soaked nodes, one thing after the other: snapshots, clones, collection, deaths, silence, cut networks.

Node a is never killed, b again and again, c is stopped and wakes up: what leaks in a daemon that lives long shows in a and c.
"""

import itertools
import os
import pathlib
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping

from replication.cluster import SESSION_S
from tests.mounted_nodes import MountedNodes
from tests.mounted_pool import MountedPool, wait_gone
from tests.network_lab import NetworkLab

SNAPSHOTS_KEPT, CLONES_KEPT = 4, 2
"""Of each vdisk; of all."""
WEIGHTS: Mapping[str, int] = {
    "snapshot": 6,
    "clone": 3,
    "collect": 1,
    "kill daemon": 2,
    "kill keeper": 1,
    "stop": 1,
    "cut": 2,
}
CUT_S_MAX = 8.0
"""Who forwards waits longer than that before it gives its guest an error."""


class Events:
    """One soak's; carried out by one thread."""

    def __init__(
        self,
        nodes: MountedNodes,
        lab: NetworkLab | None,
        *,
        vdisks: list[str],
        chance: random.Random,
        waiting: threading.Event,
    ) -> None:
        """
        Args:
            nodes: a, b and c.
            lab: their network, if they have one of their own.
            vdisks: names of which snapshots are made.
            chance: what comes next.
            waiting: ends every pause, once set.
        """
        self._nodes, self._lab, self._vdisks, self._chance, self._waiting = (
            nodes,
            lab,
            vdisks,
            chance,
            waiting,
        )
        self._a, self._b, self._c = (nodes.by_name[name] for name in "abc")
        self._numbers = itertools.count(1)
        self._snapshots: dict[str, list[str]] = {name: [] for name in vdisks}
        self._clones: list[str] = []
        self.done: Counter[str] = Counter()
        self._deeds: dict[str, Callable[[], str]] = {
            "snapshot": self._snapshot,
            "clone": self._clone,
            "collect": self._collect,
            "kill daemon": self._kill_daemon,
            "kill keeper": self._kill_keeper,
            "stop": self._stop,
        }
        if lab is not None:
            self._deeds["cut"] = self._cut

    def next(self) -> str:
        """Does something; returns what, in words."""
        names = list(self._deeds)
        name = self._chance.choices(names, [WEIGHTS[one] for one in names])[0]
        self.done[name] += 1
        return self._deeds[name]()

    def _any(self) -> MountedPool:
        return self._chance.choice([self._a, self._b, self._c])

    def _snapshot(self) -> str:
        name, node = self._chance.choice(self._vdisks), self._any()
        made = f"s{next(self._numbers)}"
        node.run("snap", "create", f"{node.mountpoint / name}@{made}")
        kept = self._snapshots[name]
        kept.append(made)
        if len(kept) > SNAPSHOTS_KEPT:
            other = self._any()
            other.run("snap", "rm", f"{other.mountpoint / name}@{kept.pop(0)}")
        return f"snapshot of {name} on {node.node}"

    def _clone(self) -> str:
        """Made on one node, compared with its snapshot on another."""
        name = self._chance.choice(self._vdisks)
        if not self._snapshots[name]:
            return self._snapshot()
        node, other = self._any(), self._any()
        snapshot, made = self._snapshots[name][-1], f"clone{next(self._numbers)}"
        node.run("clone", f"{node.mountpoint / name}@{snapshot}", node.mountpoint / made)
        cloned = (other.mountpoint / made).read_bytes()
        assert cloned == (other.mountpoint / ".snapshots" / name / snapshot).read_bytes(), f"{made} differs"
        self._clones.append(made)
        if len(self._clones) > CLONES_KEPT:
            other.run("rm", "--now", "--force", other.mountpoint / self._clones.pop(0))
        return f"clone of {name} on {node.node}, read on {other.node}"

    def _collect(self) -> str:
        node = self._any()
        node.run("gc", node.mountpoint)
        return f"collection asked for on {node.node}"

    def _kill_daemon(self) -> str:
        self._b.kill_daemon()
        self._b.daemon_pid()
        return "b's daemon is killed"

    def _kill_keeper(self) -> str:
        before = self._b.daemon_pid()
        keeper = self._b.json("status", self._b.mountpoint)["keeper_pid"]
        os.kill(keeper, signal.SIGKILL)
        wait_gone(keeper)
        self._b.mount()
        assert self._b.daemon_pid() == before
        return "b's keeper is killed, another takes over"

    def _stop(self) -> str:
        seconds = self._chance.choice((SESSION_S / 4, 1.5 * SESSION_S))
        self._nodes.pause(self._c)
        self._waiting.wait(seconds)
        self._nodes.wake(self._c)
        return f"c is stopped for {seconds:.0f} s"

    def _cut(self) -> str:
        assert self._lab is not None
        one, other = self._chance.sample((1, 2, 3), 2)
        seconds = self._chance.uniform(2, CUT_S_MAX)
        self._lab.cut(one, other)
        self._waiting.wait(seconds)
        self._lab.heal()
        return f"{'abc'[one - 1]} and {'abc'[other - 1]} are cut off from each other for {seconds:.0f} s"


def folder_of(hours: float) -> pathlib.Path:
    """Where a soak's samples and page go, unless told."""
    return pathlib.Path(".build", f"soak-{hours:g}h")
