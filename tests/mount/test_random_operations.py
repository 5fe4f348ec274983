"""Random operations on a few vdisks through the kernel, against byte arrays: the model test at the mount.

Buffered, direct and mapped I/O, cuts, holes, copies, renames and deletions mix on the same vdisks; the mount
and the daemon come and go meanwhile. ``make fuzz SECONDS=...`` takes more time, SEED=... repeats a failure.
"""

import ctypes
import mmap
import os
import pathlib
import random
import time
from collections.abc import Callable

from tests.mounted_pool import MountedPool

BLOCK = 4096
SIZE_MAX = 3 << 20
IO_MAX = 300_000
NAMES = ("first", "second", "folder/third")
SHORT_S = 15.0
PUNCH_HOLE, ZERO_RANGE, KEEP_SIZE = 2, 16, 1
HISTORY = 25
"""How many of the last operations a failure shows."""

libc = ctypes.CDLL(None, use_errno=True)
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]


class Walk:
    """One random walk: the mount's files, what they must hold, and what was done to them."""

    def __init__(self, mounted: MountedPool, seed: int) -> None:
        self.mounted = mounted
        self.chance = random.Random(seed)
        self.contents: dict[str, bytearray] = {}
        self.descriptors: dict[str, tuple[int, int]] = {}
        self.history: list[str] = []
        (mounted.mountpoint / "folder").mkdir()

    def path(self, name: str) -> pathlib.Path:
        return self.mounted.mountpoint / name

    def opened(self, name: str) -> tuple[int, int]:
        """A (buffered, direct) pair of descriptors, opened when first needed."""
        if name not in self.descriptors:
            path = self.path(name)
            self.descriptors[name] = (os.open(path, os.O_RDWR), os.open(path, os.O_RDWR | os.O_DIRECT))
        return self.descriptors[name]

    def close(self, *names: str) -> None:
        for name in names or tuple(self.descriptors):
            for descriptor in self.descriptors.pop(name, ()):
                os.close(descriptor)

    def span(self, name: str, *, unit: int = 1, inside: bool = False) -> tuple[int, int]:
        """A random (offset, length) in units; small ones, whole blocks and long stretches all come up."""
        limit = len(self.contents[name]) if inside else SIZE_MAX
        length = self.chance.choice(
            (1, 100, 512, BLOCK, BLOCK + 1, 5 * BLOCK, self.chance.randrange(1, IO_MAX))
        )
        offset = self.chance.randrange(limit + 1)
        if self.chance.random() < 0.5:
            offset -= offset % BLOCK
        offset -= offset % unit
        length += -length % unit
        return offset, max(0, min(length, (limit - offset) // unit * unit))

    def data(self, length: int) -> bytes:
        return bytes(length) if self.chance.random() < 0.1 else self.chance.randbytes(length)

    # Each operation carries itself out, notes it in the model and returns a line for the history.

    def create(self, name: str) -> str:
        self.path(name).touch()
        self.contents.setdefault(name, bytearray())
        return "create"

    def write(self, name: str) -> str:
        offset, length = self.span(name)
        data = self.data(length)
        assert os.pwrite(self.opened(name)[0], data, offset) == length
        self.note(name, offset, data)
        return f"write {offset}+{length}"

    def write_direct(self, name: str) -> str:
        offset, length = self.span(name, unit=self.chance.choice((512, BLOCK)))
        data = self.data(length)
        if length:
            with mmap.mmap(-1, length) as buffer:
                buffer[:] = data
                assert os.pwritev(self.opened(name)[1], [buffer], offset) == length
            self.note(name, offset, data)
        return f"write direct {offset}+{length}"

    def write_mapped(self, name: str) -> str:
        offset, length = self.span(name, inside=True)
        data = self.data(length)
        if length:
            with mmap.mmap(self.opened(name)[0], len(self.contents[name])) as mapping:
                mapping[offset : offset + length] = data
            self.note(name, offset, data)
        return f"write mapped {offset}+{length}"

    def truncate(self, name: str) -> str:
        size = self.span(name)[0]
        os.ftruncate(self.opened(name)[0], size)
        content = self.contents[name]
        del content[size:]
        content += bytes(size - len(content))
        return f"truncate {size}"

    def clear(self, name: str) -> str:
        offset, length = self.span(name, inside=True)
        mode = self.chance.choice((PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE))
        if length:
            assert libc.fallocate(self.opened(name)[0], mode, offset, length) == 0, ctypes.get_errno()
            self.note(name, offset, bytes(length))
        return f"clear mode {mode} {offset}+{length}"

    def copy(self, name: str) -> str:
        source = self.chance.choice(sorted(self.contents))
        offset, length = self.span(source, unit=self.chance.choice((1, BLOCK)), inside=True)
        target = offset if self.chance.random() < 0.5 else self.span(name)[0]
        overlap = source == name and abs(target - offset) < length
        if not overlap and target + length <= SIZE_MAX and length:
            descriptors = self.opened(source)[0], self.opened(name)[0]
            copied = os.copy_file_range(*descriptors, length, offset, target)
            assert copied > 0
            self.note(name, target, bytes(self.contents[source][offset : offset + copied]))
        return f"copy {source} {offset}+{length} to {target}"

    def rename(self, name: str) -> str:
        target = self.chance.choice(NAMES)
        self.close(name, target)
        os.rename(self.path(name), self.path(target))
        self.contents[target] = self.contents.pop(name)
        return f"rename to {target}"

    def unlink(self, name: str) -> str:
        if self.chance.random() < 0.3:
            self.path(name).unlink()
            self.close(name)
            del self.contents[name]
        return "unlink"

    def sync(self, name: str) -> str:
        self.chance.choice((os.fsync, os.fdatasync))(self.opened(name)[0])
        return "sync"

    def read(self, name: str) -> str:
        offset, length = self.span(name)
        self.same(name, os.pread(self.opened(name)[0], length, offset), offset, length)
        return f"read {offset}+{length}"

    def read_direct(self, name: str) -> str:
        offset, length = self.span(name, unit=512)
        if length:
            with mmap.mmap(-1, length) as buffer:
                got = os.preadv(self.opened(name)[1], [buffer], offset)
                self.same(name, buffer[:got], offset, length)
        return f"read direct {offset}+{length}"

    def seek(self, name: str) -> str:
        """Where SEEK_DATA skips there is nothing but zeros."""
        content, descriptor, end = self.contents[name], self.opened(name)[0], 0
        while end < len(content):
            try:
                start = os.lseek(descriptor, end, os.SEEK_DATA)
            except OSError:
                start = len(content)
            assert not any(content[end:start]), f"{name}: a hole where data are, {end}..{start}"
            end = os.lseek(descriptor, start, os.SEEK_HOLE) if start < len(content) else start
        return "seek"

    def note(self, name: str, offset: int, data: bytes) -> None:
        content = self.contents[name]
        if data and len(content) < offset:
            content += bytes(offset - len(content))
        content[offset : offset + len(data)] = data

    def same(self, name: str, got: bytes, offset: int, length: int) -> None:
        expected = bytes(self.contents[name][offset : offset + length])
        if got != expected:
            pairs = zip(got, expected, strict=False)
            where = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(got), len(expected)))
            raise AssertionError(f"{name} differs at {offset + where}, {len(got)} bytes of {len(expected)}")

    def same_everywhere(self) -> None:
        """The whole mount is what the model says."""
        for name in NAMES:
            assert self.path(name).exists() == (name in self.contents)
        for name, content in self.contents.items():
            assert self.path(name).stat().st_size == len(content)
            self.same(name, self.path(name).read_bytes(), 0, SIZE_MAX)

    def step(self) -> None:
        operations: list[Callable[[str], str]] = [
            *(self.write, self.write_direct, self.write_mapped, self.read, self.read_direct) * 2,
            *(
                self.truncate,
                self.clear,
                self.clear,
                self.copy,
                self.rename,
                self.unlink,
                self.sync,
                self.seek,
            ),
        ]
        name = self.chance.choice(NAMES)
        operation = self.chance.choice(operations) if name in self.contents else self.create
        self.history.append(f"{name}: {operation.__name__} fails")
        self.history[-1] = f"{name}: {operation(name)}"


def test_random_operations_leave_what_the_model_says(
    mounted: MountedPool, seed: int, seconds: float | None
) -> None:
    walk = Walk(mounted, seed)
    deadline = time.monotonic() + (seconds or SHORT_S)
    try:
        while time.monotonic() < deadline:
            for _ in range(walk.chance.randrange(50, 400)):
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
        mounted.run("check", mounted.mountpoint)
    except BaseException:
        print("\n".join(walk.history[-HISTORY:]))
        raise
    finally:
        walk.close()
