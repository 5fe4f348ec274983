"""A running guest moves from one node's mount to another's, and back; what it was told is written stays written."""

import pathlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.guest.machine import DRIVE, Machine, booted, check_ext4, run_guest
from tests.guest.monitor import Monitor
from tests.guest.test_guest import ACKNOWLEDGE, LIST
from tests.mounted_nodes import MountedNodes
from tests.mounted_pool import MountedPool

BOTH_WRITING = DRIVE
"""As without libvirt: the destination has the file open for writing from its start on."""
AS_LIBVIRT = (
    "-blockdev driver=file,filename={disk},node-name=file,cache.direct=on,aio=native,discard=unmap,auto-read-only=on "
    "-blockdev driver=raw,file=file,node-name=disk,discard=unmap,auto-read-only=on"
)
"""The destination opens for reading, and for writing at the switch-over, when the source has closed."""


@contextmanager
def folder() -> Iterator[pathlib.Path]:
    """Short enough for a unix socket's path."""
    with tempfile.TemporaryDirectory(prefix="vdm-") as path:
        yield pathlib.Path(path)


def acknowledged(console: str) -> set[str]:
    return set(re.findall(r"ACKNOWLEDGED (\d+\.\w{32})\n", console))


def wait_for_more(machine: Machine, count: int) -> None:
    """Return when the guest has written ``count`` files more than it has by now."""
    last = max((int(name.split(".")[0]) for name in acknowledged(machine.console)), default=-1)
    machine.wait_printed(rf"ACKNOWLEDGED {last + count}\.\w{{32}}\n")


def moved_on(machine: Machine, before: int) -> None:
    """The guest goes on behind what it had written before."""
    machine.wait_printed(rf"ACKNOWLEDGED {before + 4}\.\w{{32}}\n")


@pytest.mark.parametrize("drive", [BOTH_WRITING, AS_LIBVIRT], ids=["both writing", "as libvirt"])
def test_a_guest_migrates_to_the_other_node_and_back_and_loses_nothing(
    nodes: MountedNodes, drive: str
) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    a.create("guest", "64M")
    found: set[str] = set()
    with folder() as sockets, ExitStack() as stack:

        def start(node: MountedPool, name: str, *options: str) -> tuple[Machine, Monitor]:
            qmp = sockets / f"{name}.qmp"
            asked = ["-qmp", f"unix:{qmp},server=on,wait=off", *options]
            machine = stack.enter_context(
                booted(node.mountpoint / "guest", ACKNOWLEDGE, drive=drive, options=asked)
            )
            return machine, stack.enter_context(Monitor(qmp))

        machine, monitor = start(a, "first")
        wait_for_more(machine, 4)
        for number, node in enumerate((b, a, b)):
            channel = f"unix:{sockets}/{number}"
            target, other = start(node, f"to{number}", "-incoming", channel)
            monitor.run("migrate", uri=channel)
            monitor.wait_migrated()
            written = acknowledged(machine.console)
            found |= written
            monitor.run("quit")
            machine.process.wait()
            last = max(int(name.split(".")[0]) for name in written)
            machine, monitor = target, other
            moved_on(machine, last)
            assert "GUEST-WRITE-FAILED" not in machine.console
        found |= acknowledged(machine.console)
    assert len(found) > 12
    for node in (a, b):
        there = set(re.findall(r"FOUND (\d+\.\w{32})", run_guest(node.mountpoint / "guest", LIST)))
        assert found <= there
    check_ext4(a.mountpoint / "guest")
    assert a.json("check", a.mountpoint)["findings"] == []
