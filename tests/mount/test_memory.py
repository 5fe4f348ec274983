"""A mount in a memory cgroup that is too small for all it would like to keep: bounds hold, nothing dies."""

import os
import pathlib
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.mounted_pool import COMMAND_S, MountedPool, package_environment

MIB = 1 << 20
BLOCK = 4096
LIMIT = 128 * MIB
"""For keeper, daemon, their journal and the page cache of the pool's files."""
VDISKS = 48
SPREAD = 4 << 30
"""Each vdisk's size: with one block written here and one there, each write needs an index row of its own."""
WRITES = 250


class MemoryGroup:
    """One memory cgroup, of version 1 or 2, made for a test."""

    def __init__(self, name: str) -> None:
        roots = {
            pathlib.Path("/sys/fs/cgroup/memory"): "memory.limit_in_bytes",
            pathlib.Path("/sys/fs/cgroup"): "memory.max",
        }
        self.folder: pathlib.Path | None = None
        for root, limit in roots.items():
            folder = root / name
            if (root / "cgroup.procs").exists():
                folder.mkdir()
                if (folder / limit).exists():
                    self.folder = folder
                    (folder / limit).write_text(str(LIMIT))
                    return
                folder.rmdir()
        raise AssertionError(
            "this test needs a memory cgroup that root may make (version 1 or 2), and there is none"
        )

    def kills(self) -> int:
        """Processes that the kernel killed for want of memory."""
        assert self.folder is not None
        for name in ("memory.events", "memory.oom_control"):
            file = self.folder / name
            if file.exists():
                words = file.read_text().split()
                return int(words[words.index("oom_kill") + 1])
        raise AssertionError(f"nothing in {self.folder} tells of kills")

    def peak(self) -> int:
        """The most that was ever in use."""
        assert self.folder is not None
        for name in ("memory.max_usage_in_bytes", "memory.peak"):
            file = self.folder / name
            if file.exists():
                return int(file.read_text())
        return LIMIT


@contextmanager
def memory_group(name: str) -> Iterator[MemoryGroup]:
    """The group, gone at the end; its processes must be so before."""
    group = MemoryGroup(name)
    try:
        yield group
    finally:
        assert group.folder is not None
        group.folder.rmdir()


def mount_in(group: MemoryGroup, pool: MountedPool) -> None:
    """Mount, with keeper and daemon in the group."""
    words = ["mount", pool.pool, pool.mountpoint, "--state", pool.state, "--node", "here"]
    done = subprocess.run(
        ["sh", "-c", 'echo $$ > "$0" && exec "$@"', f"{group.folder}/cgroup.procs"]
        + [sys.executable, "-m", "tools.cli", *map(str, words)],
        env=package_environment(),
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.root
def test_writes_to_many_vdisks_in_little_memory_kill_nobody(unmounted: MountedPool, seed: int) -> None:
    chance = random.Random(seed)
    with memory_group(f"vdiskfs-test-{os.getpid()}") as group:
        mount_in(group, unmounted)
        try:
            descriptors, written = [], list[dict[int, bytes]]()
            for number in range(VDISKS):
                path = unmounted.mountpoint / f"disk{number}"
                descriptors.append(os.open(path, os.O_RDWR | os.O_CREAT))
                os.ftruncate(descriptors[-1], SPREAD)
                written.append({})
            for count in range(VDISKS * WRITES):
                which = chance.randrange(VDISKS)
                offset, data = chance.randrange(SPREAD // BLOCK) * BLOCK, chance.randbytes(BLOCK)
                os.pwrite(descriptors[which], data, offset)
                written[which][offset] = data
                if not count % 500:
                    os.fsync(descriptors[which])
            for descriptor, blocks in zip(descriptors, written, strict=True):
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                assert all(os.pread(descriptor, BLOCK, offset) == data for offset, data in blocks.items())
                os.close(descriptor)
            status = unmounted.json("status", unmounted.mountpoint)
            print(
                f"resident {status['resident_bytes'] / MIB:.0f} MiB, group at most {group.peak() / MIB:.0f} MiB"
            )
            assert (status["restarts"], group.kills()) == (0, 0)
            assert status["resident_bytes"] < LIMIT
            unmounted.run("check", unmounted.mountpoint)
            unmounted.umount()
        finally:
            unmounted.tear_down()
