"""Records a whole mount under a workload, and brings up what a power cut might have left of it.

Recorded are all writes, syncs and names below the pool and the state directory, of keeper and daemon, RocksDB
and SQLite included. What strace cannot see are stores into shared mappings. The daemon has one, its journal:
it is sampled all the time, and each page seen counts as written and never synced. SQLite has another, its
``-shm`` file, which SQLite itself throws away at the first open after a crash.
"""

import mmap
import os
import pathlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tests.crash import writer
from tests.crash.disk_model import PAGE, Recording, Sync, Tree, random_state
from tests.crash.history import BLOCK, FIRST_NAME, SIZE, History, block_bytes, file_name, observe
from tests.crash.strace_log import OPTIONS, StraceLog
from tests.crash.writer import Notes
from tests.crash.writing import Writing
from tests.mounted_pool import COMMAND_S, MountedPool, mountpoints, package_environment

PREFILL_BYTES = 56 << 20
PREFILL_COMMITS = 1985
"""So the recording sees vdisk 0 seal a group (64 MiB) and, when it comes to rest, write a checkpoint (2,000)."""

SAMPLED_BYTES = 1 << 20
"""As much of the journal's beginning as is sampled; a recording that needs more is too long."""

HOLE_BYTES = 1 << 16
STATE_LOST_SHARE = 0.1
"""So many of the states have no state directory at all: promise 1 survives the loss of the node."""

WRITE_ON_SHARE = 0.3
"""So many of the states are written to after they have come up, and killed once more."""


@dataclass(slots=True)
class Recorded:
    """A recording, and what its writers noted."""

    recording: Recording
    history: History
    mappings: set[str]
    since_ns: int
    """The pool was formatted by then."""
    prefilled: bool

    def vdisks(self) -> set[int]:
        """Every vdisk the writers touched."""
        return {vdisk for vdisk, _ in self.history.writes}

    def moments(self, chance: random.Random) -> Iterator[int]:
        """Times at which the power may fail, those right behind a sync more often than others."""
        done = [operation for operation in self.recording.operations if operation.start_ns > self.since_ns]
        syncs = [operation.end_ns + 1 for operation in done if isinstance(operation, Sync)]
        others = [operation.start_ns for operation in done]
        while True:
            yield chance.choice(syncs if chance.random() < 0.5 else others)


class JournalSampler:
    """Looks at a mapped file over and over, from another process than the one that maps it."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.samples: list[tuple[int, int, bytes]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        last = bytes(SAMPLED_BYTES)
        with self.path.open("rb", buffering=0) as file:
            while not self._ended.is_set():
                now = os.pread(file.fileno(), SAMPLED_BYTES, 0)
                time_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
                for offset in range(0, len(now), PAGE):
                    page = now[offset : offset + PAGE]
                    if page != last[offset : offset + PAGE]:
                        self.samples.append((time_ns, offset, page))
                last = now

    def close(self) -> None:
        """End the looking, and insist that nothing escaped it."""
        self._ended.set()
        self._thread.join()
        with self.path.open("rb") as file:
            file.seek(SAMPLED_BYTES)
            assert not file.read(PAGE).strip(b"\0"), "the journal has outgrown what is sampled"


def prefill(pool: MountedPool, notes: pathlib.Path) -> None:
    """Bring vdisk 0 to where its group is nearly full and its next checkpoint nearly due."""
    pool.mount()
    try:
        taken = Notes(notes)
        writer.prepare(pool.mountpoint, taken)
        blocks = range(writer.DISK_BLOCKS)
        descriptor = os.open(pool.mountpoint / file_name(0, FIRST_NAME), os.O_RDWR | os.O_DIRECT)
        with mmap.mmap(-1, writer.DISK_BYTES) as buffer:
            for value in range(1, PREFILL_BYTES // writer.DISK_BYTES + 1):
                buffer[:] = b"".join(block_bytes(0, block_no, value) for block_no in blocks)
                taken.note("write", 0, blocks, value)
                os.pwritev(descriptor, [buffer], 0)
                taken.note("wrote", 0, blocks, value)
            for _ in range(PREFILL_COMMITS):
                os.pwritev(descriptor, [memoryview(buffer)[:BLOCK]], 0)
                os.fdatasync(descriptor)
        taken.flush(0, descriptor)
        os.close(descriptor)
    finally:
        pool.umount()


def record(folder: pathlib.Path, *, seed: int, writes_max: int, prefilled: bool) -> Recorded:
    """Mount a pool under the recorder, let writers loose, unmount.

    Args:
        prefilled: the recording begins with a pool in use; else with the formatting of a new one.
    """
    folder.mkdir()
    pool = MountedPool(folder)
    notes, logs = folder / "notes", folder / "logs"
    for path in (logs, pool.pool, pool.state):
        path.mkdir(mode=0o700)
    if prefilled:
        pool.run("format", pool.pool)
        prefill(pool, notes)
    log = StraceLog([pool.pool, pool.state])
    if not prefilled:
        command = [sys.executable, "-m", "tools.cli", "format", pool.pool]
        subprocess.run(
            ["strace", *OPTIONS, "-o", logs / "format", *command], env=package_environment(), check=True
        )
    since_ns = time.clock_gettime_ns(time.CLOCK_REALTIME)
    with recorded_mount(pool, logs):
        sampler = JournalSampler(pool.state / "journal")
        writing = Writing(pool.mountpoint, notes, seed=seed, writes_max=writes_max, round_no=0)
        try:
            writing.wait_ended()
            assert "lost the mount" not in writing.printed(), writing.printed()
        finally:
            writing.close()
            sampler.close()
    log.read([*logs.glob("format.*"), *logs.glob("trace.*")])
    log.sampled(str(sampler.path), sampler.samples)
    history = History()
    writing.add_to(history)
    return Recorded(log.recording, history, log.shared_mappings, since_ns, prefilled)


@contextmanager
def recorded_mount(pool: MountedPool, logs: pathlib.Path) -> Iterator[None]:
    """The pool mounted under strace; unmounted at the end."""
    arguments = ["mount", pool.pool, pool.mountpoint, "--state", pool.state, "--node", "here", "--foreground"]
    with (logs / "output").open("w+") as output:
        process = subprocess.Popen(
            ["strace", *OPTIONS, "-o", logs / "trace", sys.executable, "-m", "tools.cli", *arguments],
            env=package_environment(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        try:
            deadline = time.monotonic() + COMMAND_S
            while not mountpoints(pool.mountpoint):
                assert time.monotonic() < deadline, "no mount appears"
                try:
                    process.wait(0.02)
                except subprocess.TimeoutExpired:
                    continue
                raise AssertionError((logs / "output").read_text())
            os.listdir(pool.mountpoint)  # answered by the daemon, when it is ready
            yield
            pool.run("umount", pool.mountpoint)
            assert process.wait(COMMAND_S) == 0, (logs / "output").read_text()
        finally:
            pool.tear_down()
            process.kill()
            process.wait()


def lay_out(tree: Tree, folder: pathlib.Path) -> None:
    """Put a state of the disk into a folder."""
    for path in sorted(tree.directories):
        (folder / path).mkdir(mode=0o700, parents=True)
    for path, content in tree.files.items():
        with (folder / path).open("wb") as file:
            for offset in range(0, len(content), HOLE_BYTES):
                piece = content[offset : offset + HOLE_BYTES]
                if piece.strip(b"\0"):
                    file.seek(offset)
                    file.write(piece)
            file.truncate(len(content))


def bring_up(
    recorded: Recorded, tree: Tree, *, at_ns: int, folder: pathlib.Path, write_on: bool = False
) -> None:
    """Mount a state of the disk and insist on the promises; then, if asked, go on writing and crash again."""
    folder.mkdir()
    pool = MountedPool(folder)
    lay_out(tree, folder)
    try:
        pool.mount()
        observed = observe(pool.mountpoint, recorded.vdisks())
        recorded.history.verify(observed, at_ns)
        pool.run("check", pool.mountpoint)
        path = pool.mountpoint / file_name(0, FIRST_NAME)
        if write_on and path.exists():
            with path.open("r+b") as file:
                os.pwrite(file.fileno(), block_bytes(0, 0, 1), 0)
                os.fsync(file.fileno())
            pool.kill()
            pool.mount()
            again = observe(pool.mountpoint, recorded.vdisks())
            grown = max(observed[0, SIZE], BLOCK)  # the power may have failed before the file had a size
            assert again == {**observed, (0, 0): 1, (0, SIZE): grown}
            pool.run("check", pool.mountpoint)
        assert pool.stray_errors() == []
    finally:
        pool.tear_down()


def cut_power(recorded: Recorded, folder: pathlib.Path, chance: random.Random, at_ns: int) -> None:
    """One power cut at that time: build one of the states it may leave, and bring it up."""
    what, tree = random_state(recorded.recording, at_ns, chance)
    if chance.random() < STATE_LOST_SHARE:
        what += ", no state directory"
        tree = Tree(
            {path: content for path, content in tree.files.items() if not path.startswith("state/")},
            {path for path in tree.directories if not path.startswith("state")},
        )
    write_on = chance.random() < WRITE_ON_SHARE
    try:
        bring_up(recorded, tree, at_ns=at_ns, folder=folder, write_on=write_on)
    except Exception as error:
        error.add_note(f"power cut: {what}, at_ns={at_ns}, write_on={write_on}; the state is in {folder}")
        raise


def size_blocks(tree: Tree) -> int:
    """How much a state holds, for reports."""
    return sum(len(content) for content in tree.files.values()) // BLOCK
