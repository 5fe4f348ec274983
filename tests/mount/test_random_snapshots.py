"""Random snapshots, clones, rollbacks and deletions among random writes, through the kernel, against full copies.

What the kernel caches of a vdisk, and what a buffered or mapping writer has left in it, is part of what is tested:
the verbs go to the daemon directly, so that they meet requests of calls that have just returned.
"""

import errno
import os
import pathlib
import shutil
import time
from collections.abc import Callable
from typing import Any

import pytest

from metadata.errors import Busy, Exists
from tests.mount import test_random_operations as files
from tests.mounted_pool import MountedPool
from tools.asking import ask
from tools.paths import locate

NAMES = ("first", "second", "folder/third", "fourth")
SNAPSHOTS = ("one", "two", "three")
SHORT_S = 10.0
STEPS_MAX = 150
HISTORY = 25


class SnapshotWalk(files.Walk):
    """As the walk over files; beside each vdisk's content, its snapshots' and what lies in the trash."""

    def __init__(self, mounted: MountedPool, seed: int) -> None:
        super().__init__(mounted, seed)
        self.snapshots: dict[str, dict[str, bytes]] = {}
        self.trash: dict[int, tuple[str, bytearray, dict[str, bytes]]] = {}

    def ask(self, verb: str, **arguments: object) -> Any:
        return ask(locate(str(self.mounted.mountpoint)), verb, arguments)

    def frozen(self, name: str, snapshot: str) -> pathlib.Path:
        return self.mounted.mountpoint / ".snapshots" / name / snapshot

    def of(self, name: str) -> dict[str, bytes]:
        return self.snapshots.setdefault(name, {})

    def pick(self, name: str) -> str | None:
        return self.chance.choice(sorted(self.of(name))) if self.of(name) else None

    # Verbs.

    def snapshot(self, name: str) -> str:
        group = [each for each in self.contents if each == name or self.chance.random() < 0.3]
        snapshot = self.chance.choice(SNAPSHOTS)
        if any(snapshot in self.of(each) for each in group):
            with pytest.raises(Exists):
                self.ask("snap_create", paths=group, name=snapshot)
        else:
            self.ask("snap_create", paths=group, name=snapshot)
            for each in group:
                self.of(each)[snapshot] = bytes(self.contents[each])
        return f"snapshot {snapshot} of {group}"

    def remove_snapshot(self, name: str) -> str:
        snapshot = self.pick(name)
        if snapshot is not None and self.chance.random() < 0.7:
            self.ask("snap_rm", path=name, name=snapshot)
            del self.of(name)[snapshot]
            assert not self.frozen(name, snapshot).exists()
        return f"remove snapshot {snapshot}"

    def rename_snapshot(self, name: str) -> str:
        snapshot, new = self.pick(name), self.chance.choice(SNAPSHOTS)
        if snapshot is not None and new not in self.of(name):
            self.ask("snap_rename", path=name, name=snapshot, new_name=new)
            self.of(name)[new] = self.of(name).pop(snapshot)
            assert not self.frozen(name, snapshot).exists()
        return f"rename snapshot {snapshot} to {new}"

    def rollback(self, name: str) -> str:
        snapshot = self.pick(name)
        if snapshot is None:
            return "rollback"
        if name in self.descriptors and self.chance.random() < 0.2:
            with pytest.raises(Busy):
                self.ask("snap_rollback", path=name, name=snapshot)
            return "rollback refused"
        self.close(name)
        kept = self.ask("snap_rollback", path=name, name=snapshot)["kept"]["name"]
        was, self.contents[name] = bytes(self.contents[name]), bytearray(self.of(name)[snapshot])
        if self.chance.random() < 0.5:
            self.of(name)[kept] = was
        else:
            self.ask("snap_rm", path=name, name=kept)
        self.same_size(name)
        return f"rollback to {snapshot}"

    def clone(self, name: str) -> str:
        snapshot = self.pick(name) if self.chance.random() < 0.5 else None
        target = self.chance.choice(NAMES)
        if target in self.contents:
            with pytest.raises(Exists):
                self.ask("clone", path=name, name=snapshot, new_path=target)
        else:
            self.ask("clone", path=name, name=snapshot, new_path=target)
            source = self.contents[name] if snapshot is None else self.of(name)[snapshot]
            self.contents[target] = bytearray(source)
            self.same_size(target)
        return f"clone {snapshot} as {target}"

    def copy_snapshot(self, name: str) -> str:
        snapshot, target = self.pick(name), self.chance.choice(NAMES)
        if snapshot is not None and target not in self.contents:
            shutil.copyfile(self.frozen(name, snapshot), self.path(target))
            self.contents[target] = bytearray(self.of(name)[snapshot])
        return f"copy snapshot {snapshot} to {target}"

    def flatten(self, name: str) -> str:
        if self.chance.random() < 0.5:
            self.ask("flatten", path=name)
        return "flatten"

    def remove(self, name: str) -> str:
        now, with_snapshots = self.chance.random() < 0.5, self.chance.random() < 0.7
        self.close(name)
        if self.of(name) and not with_snapshots:
            with pytest.raises(Busy):
                self.ask("rm", paths=[name], now=now)
            return "remove refused"
        (removed,) = self.ask("rm", paths=[name], now=now, snapshots=True)["removed"]
        content, snapshots = self.contents.pop(name), self.snapshots.pop(name, {})
        if not now:
            self.trash[removed["id"]] = name, content, snapshots
        assert not self.path(name).exists()
        return f"remove now={now}"

    def restore(self, name: str) -> str:
        if not self.trash:
            return "restore"
        number = self.chance.choice(sorted(self.trash))
        if self.chance.random() < 0.2:
            self.ask("trash_purge", id=number)
            del self.trash[number]
            return f"purge {number}"
        was, content, snapshots = self.trash[number]
        target = was if self.chance.random() < 0.5 else self.chance.choice(NAMES)
        if target in self.contents:
            with pytest.raises(Exists):
                self.ask("trash_restore", id=number, to=target)
            return "restore refused"
        self.ask("trash_restore", id=number, to=target)
        del self.trash[number]
        self.contents[target], self.snapshots[target] = content, snapshots
        self.same_size(target)
        return f"restore {number} as {target}"

    def collect(self, name: str) -> str:
        self.ask("gc", dry_run=False)
        return "collect"

    def read_snapshot(self, name: str) -> str:
        snapshot = self.pick(name)
        if snapshot is not None:
            assert self.frozen(name, snapshot).read_bytes() == self.of(name)[snapshot]
        return f"read snapshot {snapshot}"

    # What is different with snapshots.

    def rename(self, name: str) -> str:
        target = self.chance.choice(NAMES)
        self.close(name, target)
        if target != name and self.of(target):
            with pytest.raises(OSError) as caught:
                os.rename(self.path(name), self.path(target))
            assert caught.value.errno == errno.EBUSY
            return f"rename to {target} refused"
        os.rename(self.path(name), self.path(target))
        self.contents[target] = self.contents.pop(name)
        self.snapshots[target] = self.snapshots.pop(name, {})
        return f"rename to {target}"

    def unlink(self, name: str) -> str:
        if not self.of(name):
            return super().unlink(name)
        with pytest.raises(OSError) as caught:
            self.path(name).unlink()
        assert caught.value.errno == errno.EBUSY
        return "unlink refused"

    def same_size(self, name: str) -> None:
        assert self.path(name).stat().st_size == len(self.contents[name])

    def same_everywhere(self) -> None:
        for name in NAMES:
            assert self.path(name).exists() == (name in self.contents)
            for snapshot in SNAPSHOTS:
                assert self.frozen(name, snapshot).exists() == (snapshot in self.of(name)), (
                    f"{name}@{snapshot}"
                )
        for name in self.contents:
            self.same_size(name)
            self.same(name, self.path(name).read_bytes(), 0, files.SIZE_MAX)
            for snapshot, frozen in self.of(name).items():
                assert self.frozen(name, snapshot).read_bytes() == frozen, f"{name}@{snapshot}"
        assert {entry["id"] for entry in self.ask("trash_ls")["entries"]} == set(self.trash)

    def step(self) -> None:
        operations: list[Callable[[str], str]] = [
            *(
                self.write,
                self.write_direct,
                self.write_mapped,
                self.read,
                self.truncate,
                self.clear,
                self.copy,
            ),
            *(self.snapshot, self.snapshot, self.remove_snapshot, self.rename_snapshot, self.rollback),
            *(self.clone, self.copy_snapshot, self.flatten, self.remove, self.restore, self.read_snapshot),
            *(self.rename, self.unlink, self.sync, self.collect),
        ]
        name = self.chance.choice(NAMES)
        operation = self.chance.choice(operations) if name in self.contents else self.create
        self.history.append(f"{name}: {operation.__name__} fails")
        self.history[-1] = f"{name}: {operation(name)}"


def test_random_snapshots_and_clones_are_what_full_copies_are(
    mounted: MountedPool, seed: int, seconds: float | None
) -> None:
    walk = SnapshotWalk(mounted, seed)
    deadline = time.monotonic() + (seconds or SHORT_S)
    try:
        while time.monotonic() < deadline:
            for _ in range(walk.chance.randrange(20, STEPS_MAX)):
                walk.step()
            event = walk.chance.choice((mounted.kill_daemon, mounted.umount, walk.close))
            walk.history.append(event.__name__)
            if event == mounted.umount:
                walk.close()
                mounted.umount()
                mounted.mount()
            else:
                event()
            walk.same_everywhere()
        walk.close()
        assert mounted.json("check", mounted.mountpoint)["findings"] == []
    except BaseException:
        print("\n".join(walk.history[-HISTORY:]))
        raise
    finally:
        walk.close()
