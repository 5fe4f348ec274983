"""Nodes that are late, or whose clock is wrong by a day: what the others see of it, on real mounts."""

import datetime
import pathlib
import subprocess

import pytest

from tests.mount.test_takeover import BLOCK, Disk, block, in_background
from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool

DAY_S = 86400
_WRONG_CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int failed = real(clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += OFFSET_S;
    return failed;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
"""


def first_block(node: MountedPool) -> bytes:
    return (node.mountpoint / "disk").read_bytes()[:BLOCK]


def subscribers(node: MountedPool) -> set[str]:
    vdisks = node.json("status", node.mountpoint)["cluster"]["vdisks"]
    return {peer["node"] for vdisk in vdisks for peer in vdisk["peers"]}


def wrong_clock(folder: pathlib.Path, offset_s: int) -> pathlib.Path:
    """A library that shifts the time of day of whoever loads it first."""
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_WRONG_CLOCK)
    command = ["cc", "-shared", "-fPIC", f"-DOFFSET_S={offset_s}", "-o", str(library), str(source), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def test_a_peer_that_has_stopped_holds_flushes_up_for_one_subscription_and_sees_all_when_it_wakes(
    nodes: MountedNodes,
) -> None:
    a, b, c = (nodes.node(name) for name in "abc")
    disk = Disk(a.mountpoint / "disk")
    disk.put(0, 1)
    disk.sync()
    assert first_block(b) == first_block(c) == block(1)
    assert {"b", "c"} <= subscribers(a)
    nodes.pause(b)
    for number in range(2, 60):
        disk.put(0, number)
        disk.sync()
        assert first_block(c) == block(number)
    assert subscribers(a) == {"c"}, "nobody waits for b any more"
    nodes.wake(b)
    assert first_block(b) == block(59)
    disk.put(0, 60)
    disk.sync()
    assert first_block(b) == first_block(c) == block(60)
    disk.close()


def test_a_flush_waits_for_a_peer_that_is_merely_slow(nodes: MountedNodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    disk = Disk(a.mountpoint / "disk")
    disk.put(0, 1)
    disk.sync()
    for number in range(2, 8):
        assert first_block(b) == block(number - 1)
        nodes.pause(b)
        disk.put(0, number)
        flush = in_background(disk.sync)
        nodes.wake(b)
        flush.join(60)
        assert not flush.is_alive()
        assert first_block(b) == block(number)
    disk.close()


@pytest.mark.parametrize("offset_s", [-DAY_S, DAY_S], ids=["a day behind", "a day ahead"])
def test_a_node_whose_clock_is_wrong_by_a_day_is_a_node_like_the_others(
    nodes: MountedNodes, tmp_path: pathlib.Path, offset_s: int
) -> None:
    a, b = nodes.node("a"), nodes.node("b", is_mounted=False)
    b.prefix = ("env", f"LD_PRELOAD={wrong_clock(tmp_path, offset_s)}")
    b.mount()
    said = [datetime.datetime.fromisoformat(node.log_lines()[-1][:19]) for node in (a, b)]
    assert abs((said[1] - said[0]).total_seconds() - offset_s) < DAY_S / 2, "its daemon believes it"
    disk = Disk(a.mountpoint / "disk")
    for number in range(10):
        disk.put(0, number)
        disk.sync()
        assert first_block(b) == block(number)
    shared = Disk(b.mountpoint / "disk")  # forwards
    for number in range(10, 20):
        shared.put(0, number)
        assert disk.get(0) == block(number)
    disk.close()
    wait_until(
        lambda: any(
            one["node"] == "b" and one["vdisks_owned"]
            for one in b.json("status", b.mountpoint)["cluster"]["nodes"]
        ),
        "b owns what it alone writes",
    )
    shared.put(0, 20)
    shared.sync()
    shared.close()
    assert first_block(a) == first_block(b) == block(20)
    sessions = [one["session"] for one in a.json("status", a.mountpoint)["cluster"]["nodes"]]
    assert sessions == ["live", "live"]
    lines = a.log_lines() + b.log_lines()
    assert not any("session has ended" in line for line in lines)
    b.umount()
    a.run("check", a.mountpoint)
