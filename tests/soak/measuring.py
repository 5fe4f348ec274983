"""Looks at nodes from outside, again and again: memory, descriptors and threads of their processes, bytes on disks."""

import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator

from fusefs import launch, mount_table
from fusefs.registry import MountRecord
from tests.mounted_pool import MountedPool
from tests.soak.samples import Sample

PERIOD_S = 10.0
DISKS_EVERY = 3
"""Looks at processes between two at disks, which cost more."""


def record_of(node: MountedPool) -> MountRecord | None:
    """Which processes serve a mount; without asking them."""
    entry = mount_table.mount_at(str(node.mountpoint), mount_table.read_mounts())
    return launch.find_record(entry) if entry is not None else None


def process_values(pid: int) -> dict[str, int]:
    """A process's figures; empty if it is gone."""
    try:
        status = dict(
            line.split(":", 1)
            for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
            if ":" in line
        )
        return {
            "resident_bytes": int(status["VmRSS"].split()[0]) << 10,
            "threads": int(status["Threads"]),
            "descriptors": len(os.listdir(f"/proc/{pid}/fd")),
        }
    except (FileNotFoundError, ProcessLookupError, KeyError):
        return {}


def disk_bytes(folder: pathlib.Path) -> int:
    """What the files below a folder occupy; some may go meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(place, name)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


class Meter:
    """A thread that measures until ``stop``; every sample goes to a file at once, so that nothing is lost.

    Args:
        nodes: whose processes.
        file: the CSV, begun.
        on_look: called after each look.
    """

    def __init__(
        self,
        nodes: list[MountedPool],
        file: pathlib.Path,
        *,
        period_s: float = PERIOD_S,
        on_look: Callable[[], None] = lambda: None,
    ) -> None:
        self._nodes, self._file, self._period_s, self._on_look = nodes, file, period_s, on_look
        self.began_s = time.monotonic()
        self.failure: BaseException | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter")
        self._thread.start()

    def seconds(self) -> float:
        """Since the beginning."""
        return round(time.monotonic() - self.began_s, 1)

    def stop(self) -> None:
        """Returns when nothing is measured any more."""
        self._stopping.set()
        self._thread.join()
        if self.failure is not None:
            raise self.failure

    def _run(self) -> None:
        try:
            looks = 0
            with self._file.open("a") as file:
                while True:
                    for sample in self._look(with_disks=not looks % DISKS_EVERY):
                        print(
                            f"{sample.seconds},{sample.subject},{sample.quantity},{sample.value}", file=file
                        )
                    file.flush()
                    self._on_look()
                    looks += 1
                    if self._stopping.wait(self._period_s):
                        return
        except BaseException as problem:
            self.failure = problem

    def _look(self, *, with_disks: bool) -> Iterator[Sample]:
        seconds = self.seconds()
        for node in self._nodes:
            record = record_of(node)
            if record is not None:
                for role, pid in (("daemon", record.pid), ("keeper", record.keeper_pid)):
                    for quantity, value in process_values(pid).items():
                        yield Sample(seconds, f"{node.node} {role}", quantity, value)
            if with_disks:
                yield Sample(seconds, node.node, "state_bytes", disk_bytes(node.state))
        if with_disks:
            yield Sample(seconds, "pool", "pool_bytes", disk_bytes(self._nodes[0].pool))
