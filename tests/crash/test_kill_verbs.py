"""The daemon is killed while verbs are under way: each has happened or has not, whole, and nothing is left behind.

A verb whose answer broke off is looked at afterwards: the pool must be as it was before or as it would be after.
At the end everything is deleted, and the pool's groups must be gone with it (invariant I8).
"""

import os
import pathlib
import random
import signal
import threading
from collections.abc import Callable
from typing import Any

from metadata.errors import Unavailable
from tests.mounted_pool import MountedPool
from tools.asking import ask
from tools.paths import locate

KIB = 1 << 10
SIZE = 256 * KIB
NAMES = ("a", "b", "c")
ROUNDS = 5
KILL_AFTER_S, KILL_WITHIN_S = 1.0, 0.3
"""A daemon that dies younger is started again after a pause."""
HISTORY = 20


class KilledWalk:
    """Random verbs on a few vdisks, a full copy of each content, and a daemon that dies among them."""

    def __init__(self, mounted: MountedPool, seed: int) -> None:
        self.mounted, self.chance = mounted, random.Random(seed)
        self.contents: dict[str, bytes] = {}
        self.snapshots: dict[str, dict[str, bytes]] = {name: {} for name in NAMES}
        self.history: list[str] = []
        self.serial = 0

    def path(self, name: str) -> pathlib.Path:
        return self.mounted.mountpoint / name

    def ask(self, verb: str, **arguments: object) -> Any:
        """The answer; None if the daemon died over it."""
        self.history.append(f"{verb} {arguments}")
        try:
            return ask(locate(str(self.mounted.mountpoint)), verb, arguments)
        except Unavailable:
            self.history[-1] += ": broke off"
            return None

    def patiently(self, verb: str, **arguments: object) -> Any:
        """The answer, from whichever daemon gives one."""
        while (answer := self.ask(verb, **arguments)) is None:
            pass
        return answer

    def read(self, name: str) -> bytes:
        return self.path(name).read_bytes()

    def listed(self, name: str) -> dict[str, bytes]:
        shown = self.patiently("snap_ls", path=name)["snapshots"]
        folder = self.mounted.mountpoint / ".snapshots" / name
        return {one["name"]: (folder / one["name"]).read_bytes() for one in shown}

    # Verbs: each is asked, and what came of it is looked at.

    def write(self, name: str) -> None:
        data = self.chance.randbytes(SIZE)
        with self.path(name).open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())
        self.contents[name] = data

    def snapshot(self, name: str) -> None:
        self.serial += 1
        new = f"s{self.serial}"
        group = [each for each in self.contents if each == name or self.chance.random() < 0.5]
        answer = self.ask("snap_create", paths=group, name=new)
        made = [new in self.listed(each) for each in group]
        assert len(set(made)) == 1, "a part of a group was made"
        assert made[0] or answer is None
        for each in group if made[0] else ():
            self.snapshots[each][new] = self.contents[each]

    def remove_snapshot(self, name: str) -> None:
        if self.snapshots[name]:
            old = self.chance.choice(sorted(self.snapshots[name]))
            answer = self.ask("snap_rm", path=name, name=old)
            if old not in self.listed(name):
                del self.snapshots[name][old]
            else:
                assert answer is None

    def rollback(self, name: str) -> None:
        if not self.snapshots[name]:
            return
        to = self.chance.choice(sorted(self.snapshots[name]))
        answer = self.ask("snap_rollback", path=name, name=to)
        new = {key: value for key, value in self.listed(name).items() if key not in self.snapshots[name]}
        assert len(new) <= 1
        assert new or answer is None
        if new:
            assert list(new.values()) == [self.contents[name]]
            self.snapshots[name] |= new
            self.contents[name] = self.snapshots[name][to]

    def clone(self, name: str) -> None:
        free = [each for each in NAMES if each not in self.contents]
        if free:
            answer = self.ask("clone", path=name, name=None, new_path=free[0])
            assert self.path(free[0]).exists() or answer is None
            if self.path(free[0]).exists():
                self.contents[free[0]] = self.contents[name]

    def flatten(self, name: str) -> None:
        self.ask("flatten", path=name)

    def collect(self, name: str) -> None:
        self.ask("gc", dry_run=False)

    def remove(self, name: str) -> None:
        now = self.chance.random() < 0.5
        answer = self.ask("rm", paths=[name], now=now, snapshots=True)
        entries = [entry for entry in self.patiently("trash_ls")["entries"] if entry["path"] == f"/{name}"]
        if self.path(name).exists():
            assert answer is None
            assert entries == []
            return
        assert (len(entries) == 1) != now
        if entries and self.chance.random() < 0.7:
            answer = self.ask("trash_restore", id=entries[0]["id"])
            assert self.path(name).exists() or answer is None
        elif entries:
            self.ask("trash_purge", id=entries[0]["id"])
        if not self.path(name).exists():
            del self.contents[name]
            self.snapshots[name] = {}
            self.patiently("trash_purge", all=True)

    def step(self) -> None:
        verbs: list[Callable[[str], None]] = [
            *(self.write, self.snapshot, self.snapshot, self.remove_snapshot, self.rollback),
            *(self.clone, self.clone, self.flatten, self.remove, self.collect, self.collect),
        ]
        name = self.chance.choice(NAMES)
        if name not in self.contents:
            self.write(name)
        self.chance.choice(verbs)(name)

    def same_everywhere(self) -> None:
        assert sorted(os.listdir(self.mounted.mountpoint)) == sorted(self.contents)
        for name, content in self.contents.items():
            assert self.read(name) == content, name
            assert self.listed(name) == self.snapshots[name], name

    def delete_everything(self) -> None:
        self.patiently("rm", paths=sorted(self.contents), snapshots=True)
        self.patiently("trash_purge", all=True)


def kill_later(pid: int, delay_s: float) -> None:
    """In a thread: kill the daemon in the middle of what it is asked meanwhile."""
    threading.Event().wait(delay_s)
    os.kill(pid, signal.SIGKILL)


def test_verbs_are_whole_though_the_daemon_is_killed_among_them(
    mounted: MountedPool, seed: int, rounds: int | None
) -> None:
    walk = KilledWalk(mounted, seed)
    try:
        for _ in range(rounds or ROUNDS):
            delay_s = KILL_AFTER_S + walk.chance.random() * KILL_WITHIN_S
            killer = threading.Thread(target=kill_later, args=(mounted.daemon_pid(), delay_s))
            killer.start()
            while killer.is_alive():
                walk.step()
            killer.join()
            walk.step()
            walk.same_everywhere()
        assert mounted.json("check", mounted.mountpoint)["findings"] == []
        walk.delete_everything()
    except BaseException:
        print("\n".join(walk.history[-HISTORY:]))
        raise
    mounted.umount()
    left = [path for path in (mounted.pool / "vdisks").rglob("*") if path.is_file()]
    assert left == [], "what nobody can reach any more is still there"
