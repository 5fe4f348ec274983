"""Daemons and keepers of a mount are killed, upgraded and killed while they start, at random moments; pauses are noted.

What uses the mount meanwhile must not notice anything but the pauses.
"""

import os
import pathlib
import random
import signal
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable

from fusefs import launch, mount_table
from fusefs.keeper import QUICK_DEATH_S
from fusefs.registry import MountRecord
from tests.mounted_pool import END_S, MountedPool, wait_gone

EVENTS = (
    "daemon",
    "daemon",
    "daemon",
    "daemon and its successor",
    "daemon and index",
    "keeper",
    "upgrade",
)
BETWEEN_S = (0.2, 2.5)
"""From one event to the next, at least and at most."""
YOUNG_S = 0.4
"""Within so long after its start a successor is killed too: it replays the journal, or builds its index."""


class Assault:
    """A thread that does this to one mount until ``stop``, or until it has done so ``count`` times."""

    def __init__(self, mounted: MountedPool, *, seed: int, count: int | None = None) -> None:
        self.mounted, self.chance, self.count = mounted, random.Random(seed), count
        self.pauses_ms: dict[str, list[int]] = {"kill": [], "upgrade": []}
        self.done: Counter[str] = Counter()
        self.finished = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        """Return when nobody is attacked any more and the mount is served; raises what went wrong."""
        self._stopping.set()
        self._thread.join()
        if self._failure is not None:
            raise self._failure

    def describe(self) -> str:
        """A line for the table: what was done, and the pauses."""
        parts = [", ".join(f"{count} x {event}" for event, count in sorted(self.done.items()))]
        for kind, pauses in self.pauses_ms.items():
            if pauses:
                parts.append(
                    f"{kind}: {len(pauses)} pauses, median {statistics.median(pauses):.0f} ms, longest {max(pauses)} ms"
                )
        return "; ".join(parts)

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self.chance.uniform(*BETWEEN_S)) and not self._is_enough():
                event = self.chance.choice(EVENTS)
                self._do(event)
                self.done[event] += 1
        except BaseException as problem:
            self._failure = problem
        finally:
            self.finished.set()

    def _is_enough(self) -> bool:
        return self.count is not None and self.done.total() >= self.count

    def _do(self, event: str) -> None:
        before = self._served()
        if event == "upgrade":
            self.pauses_ms["upgrade"].append(
                self.mounted.json("upgrade", self.mounted.mountpoint)["pause_ms"]
            )
            return
        if event == "keeper":
            os.kill(before.keeper_pid, signal.SIGKILL)
            wait_gone(before.keeper_pid)
            self.mounted.mount()
            assert self._served().daemon == before.daemon
            return
        if event == "daemon and index":
            pathlib.Path(self.mounted.state, "index.damaged").touch()
        os.kill(before.pid, signal.SIGKILL)
        if event != "daemon":
            young = self._another_than(before.pid)
            self._stopping.wait(self.chance.uniform(0, YOUNG_S))
            os.kill(young.pid, signal.SIGKILL)
            wait_gone(young.pid)
        wait_gone(before.pid)
        after = self._served(other_than=before.pid)
        assert after.last_pause_ms is not None
        if event == "daemon":
            self.pauses_ms["kill"].append(after.last_pause_ms)
        else:  # or the keeper would wait ever longer before each start
            self._stopping.wait(QUICK_DEATH_S)

    def _served(self, *, other_than: int = 0) -> MountRecord:
        """The mount's record, once a daemon serves it."""
        return self._record(lambda record: record.serving and record.pid != other_than)

    def _another_than(self, pid: int) -> MountRecord:
        """The same, once another daemon was started."""
        return self._record(lambda record: record.pid not in (0, pid))

    def _record(self, is_wanted: Callable[[MountRecord], bool]) -> MountRecord:
        deadline = time.monotonic() + END_S
        while True:
            entry = mount_table.mount_at(str(self.mounted.mountpoint), mount_table.read_mounts())
            record = entry and launch.find_record(entry)
            if record is not None and is_wanted(record):
                return record
            assert time.monotonic() < deadline, f"not served: {record}"
            threading.Event().wait(0.005)
