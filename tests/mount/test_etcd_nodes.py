"""Nodes on hosts of their own, one directory between them, the catalog on a real etcd of three members."""

import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from replication.cluster import SESSION_S
from tests.etcd_members import EtcdMembers
from tests.mount.test_takeover import Disk, block, owned
from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool
from tests.network_lab import NetworkLab

pytestmark = pytest.mark.root

BLOCKS = 64


@pytest.fixture
def lab() -> Iterator[NetworkLab]:
    with NetworkLab(3) as made:
        yield made


@pytest.fixture
def etcd(lab: NetworkLab, tmp_path: pathlib.Path) -> Iterator[EtcdMembers]:
    """A member on each host."""
    hosts = (1, 2, 3)
    members = EtcdMembers(
        tmp_path,
        3,
        hosts=[lab.address(host) for host in hosts],
        entrances=[lab.entrance(host) for host in hosts],
    )
    with members:
        yield members


@pytest.fixture
def nodes(lab: NetworkLab, etcd: EtcdMembers, tmp_path: pathlib.Path) -> Iterator[MountedNodes]:
    found = MountedNodes(tmp_path, catalog=etcd.url, entrance=lab.entrance(3))
    try:
        yield found
    finally:
        found.tear_down()
    assert found.stray_errors() == []


@pytest.fixture
def both(nodes: MountedNodes, lab: NetworkLab) -> tuple[MountedPool, MountedPool]:
    """Node a on host 1, node b on host 2."""
    said = nodes.node("format", is_mounted=False).run("cluster", "init", nodes.pool).stdout
    assert said.startswith("made cluster ")
    found = []
    for host, name in enumerate("ab", start=1):
        node = nodes.node(name, is_mounted=False)
        node.prefix, node.options = lab.entrance(host), ("--listen", lab.address(host))
        node.mount()
        found.append(node)
    return found[0], found[1]


_WRITE_AND_SYNC = """
import mmap, os, sys, time
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_DIRECT)
room, slowest_s, number = mmap.mmap(-1, 4096), 0.0, 0
with open(sys.argv[2], "w", buffering=1) as report:
    while True:
        began = time.monotonic()
        room[:] = (number + 1).to_bytes(8, "little") * 512
        try:
            os.pwritev(fd, [room], number % int(sys.argv[3]) * 4096)
            os.fsync(fd)
        except OSError as exc:
            print("error", exc.errno, file=report)
            break
        slowest_s = max(slowest_s, time.monotonic() - began)
        print(number, round(slowest_s, 1), file=report)
        number += 1
"""


class Guest:
    """Writes and syncs one block after the other, for ever.

    A process of its own: while it waits, whoever had its file open could start no other (a fork closes it, and waits too).
    """

    def __init__(self, path: pathlib.Path, report: pathlib.Path) -> None:
        self._report = report
        report.touch()
        command = [sys.executable, "-c", _WRITE_AND_SYNC, str(path), str(report), str(BLOCKS)]
        self._process = subprocess.Popen(command)

    def _last(self) -> tuple[str, str]:
        lines = self._report.read_text().split("\n")[:-1]
        return tuple(lines[-1].split()) if lines else ("-1", "0")  # type: ignore[return-value]

    @property
    def failed(self) -> bool:
        return self._last()[0] == "error"

    @property
    def pause_s_max(self) -> float:
        return float(self._last()[1])

    def steps(self) -> int:
        """How many writes it has synced."""
        return int(self._last()[0]) + 1

    def synced(self) -> dict[int, int]:
        """The newest number synced, for each place."""
        said = [line.split()[0] for line in self._report.read_text().split("\n")[:-1]]
        return {int(number) % BLOCKS: int(number) for number in said if number != "error"}

    def goes_on(self) -> None:
        """Returns when it has done more."""
        before = self.steps()
        wait_until(lambda: self.failed or self.steps() > before + 20, "the guest writes on")
        assert not self.failed

    def stop(self) -> None:
        assert not self.failed
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def guest(both: tuple[MountedPool, MountedPool], tmp_path: pathlib.Path) -> Iterator[Guest]:
    """On node a, at work."""
    made = Guest(both[0].mountpoint / "disk", tmp_path / "report")
    try:
        made.goes_on()
        yield made
    finally:
        made.kill()


def assert_holds(node: MountedPool, name: str, synced: dict[int, int]) -> None:
    content = (node.mountpoint / name).read_bytes()
    for at, number in synced.items():
        newer = block(number + BLOCKS)  # the last one may be written, and not known to be synced
        assert content[at * 4096 :][:4096] in (block(number), newer)


def with_names(node: MountedPool, until: Callable[[], bool]) -> int:
    """Makes, renames and deletes files until that is so; each of them must succeed."""
    count = 0
    while not until():
        made = node.mountpoint / f"file{count}"
        made.touch()
        made.rename(made.with_suffix(".renamed"))
        if count % 2:
            made.with_suffix(".renamed").unlink()
        count += 1
    return count


def test_two_hosts_write_read_hand_over_and_take_over(both: tuple[MountedPool, MountedPool]) -> None:
    a, b = both
    disk = Disk(a.mountpoint / "disk")
    for number in range(BLOCKS):
        disk.put(number, number)
    disk.sync()
    assert_holds(b, "disk", dict(zip(range(BLOCKS), range(BLOCKS), strict=True)))
    disk.close()
    disk = Disk(b.mountpoint / "disk")
    disk.put(1, 501)
    disk.sync()
    assert owned(a) == {"a": 0, "b": 1}
    assert (a.mountpoint / "disk").read_bytes()[4096:8192] == block(501)
    b.kill()
    began = time.monotonic()
    taken = Disk(a.mountpoint / "disk")
    print(f"taken over {time.monotonic() - began:.1f} s after the owner was killed")
    assert time.monotonic() - began < 2 * SESSION_S
    assert taken.get(1) == block(501)
    taken.put(2, 502)
    taken.sync()
    taken.close()
    with suppress(OSError):  # its mount is dead
        disk.close()
    b.tear_down()
    b.mount()
    assert (b.mountpoint / "disk").read_bytes()[8192:12288] == block(502)
    assert owned(b) == {"a": 1, "b": 0}
    assert {one["node"] for one in b.json("cluster", "ls", b.pool)["nodes"]} == {"a", "b"}
    assert a.json("check", a.mountpoint)["findings"] == []


def test_guests_stall_at_most_while_each_member_of_etcd_is_killed(
    both: tuple[MountedPool, MountedPool], etcd: EtcdMembers, guest: Guest
) -> None:
    a, b = both
    leader = etcd.leader()
    for number in (leader, (leader + 1) % 3, (leader + 2) % 3):
        etcd.kill(number)
        until = time.monotonic() + SESSION_S + 2  # longer than a session lasts by itself
        made = with_names(b, lambda until=until: time.monotonic() > until)  # type: ignore[misc]
        guest.goes_on()
        assert made > 10
        assert_holds(b, "disk", {})
        etcd.start(number)
        etcd.wait_ready()
    guest.stop()
    print(f"{guest.steps()} synced writes, the longest took {guest.pause_s_max:.1f} s")
    assert_holds(b, "disk", guest.synced())
    assert owned(a)["a"] == 1
    assert sorted(os.listdir(a.mountpoint)) == sorted(os.listdir(b.mountpoint))
    assert not [line for line in a.log_lines() + b.log_lines() if "session has ended" in line]


def test_a_leader_that_stops_and_wakes_up_ends_no_session(
    both: tuple[MountedPool, MountedPool], etcd: EtcdMembers, guest: Guest
) -> None:
    a, b = both
    leader = etcd.leader()
    etcd.pause(leader)
    until = time.monotonic() + SESSION_S + 2
    with_names(b, lambda: time.monotonic() > until)
    etcd.wake(leader)
    later = time.monotonic() + SESSION_S / 2
    with_names(b, lambda: time.monotonic() > later)
    guest.goes_on()
    guest.stop()
    assert_holds(b, "disk", guest.synced())
    assert not [line for line in a.log_lines() + b.log_lines() if "session has ended" in line]


def test_without_most_of_etcd_for_a_while_guests_wait_and_go_on(
    both: tuple[MountedPool, MountedPool], etcd: EtcdMembers, guest: Guest
) -> None:
    a, b = both
    for number in (0, 1):
        etcd.kill(number)
    until = time.monotonic() + SESSION_S
    wait_until(lambda: time.monotonic() > until, "the sessions are in doubt")
    assert not guest.failed
    for number in (0, 1):
        etcd.start(number)
    etcd.wait_ready()
    guest.goes_on()
    guest.stop()
    print(f"the longest synced write took {guest.pause_s_max:.1f} s")
    assert_holds(b, "disk", guest.synced())
    (b.mountpoint / "new").touch()
    assert (a.mountpoint / "new").exists()


def test_a_daemon_that_dies_while_etcd_is_gone_comes_back_with_it(
    both: tuple[MountedPool, MountedPool], etcd: EtcdMembers, guest: Guest
) -> None:
    a, b = both
    daemon = a.daemon_pid()
    for number in (0, 1):
        etcd.kill(number)
    os.kill(daemon, signal.SIGKILL)
    wait_until(
        lambda: "the catalog does not answer" in "".join(a.log_lines()), "the next daemon asks in vain"
    )
    for number in (0, 1):
        etcd.start(number)
    etcd.wait_ready()
    guest.goes_on()
    guest.stop()
    assert_holds(b, "disk", guest.synced())
    a.expects_errors = True  # the daemons that could not begin


def test_a_host_cut_off_from_etcd_acknowledges_nothing_that_is_lost(
    both: tuple[MountedPool, MountedPool], etcd: EtcdMembers, lab: NetworkLab, guest: Guest
) -> None:
    a, b = both
    a.expects_errors = True  # it says that it was deposed
    for host in (2, 3):  # its own member is one of three, and says nothing alone
        lab.cut(1, host)
    taken = Disk(b.mountpoint / "disk")  # waits for the end of a's session
    synced = guest.synced()
    for at, number in synced.items():
        assert taken.get(at) in (block(number), block(number + BLOCKS))
    taken.put(0, 9000)
    taken.sync()
    lab.heal()
    wait_until(lambda: guest.failed, "the deposed owner's guest hears of it", within_s=60)
    assert guest.synced() == synced
    assert taken.get(0) == block(9000)
    taken.close()
    wait_until(lambda: owned(b) == {"a": 0, "b": 1}, "a has a session again")
    assert (a.mountpoint / "disk").read_bytes()[:4096] == block(9000)


def test_a_second_node_of_a_live_one_s_name_is_refused(
    both: tuple[MountedPool, MountedPool], nodes: MountedNodes, lab: NetworkLab
) -> None:
    a, _ = both
    other = MountedPool(nodes.folder / "other", node="a", pool=nodes.pool)
    other.prefix, other.options = lab.entrance(3), ("--listen", lab.address(3))
    where = (other.pool, other.mountpoint, "--state", other.state, "--node", "a")
    refused = other.run("mount", *where, *other.options, exit_code=1)
    assert "another node of this name has the pool mounted" in refused.stderr
    a.kill_daemon()  # the next one has the name back at once
    (a.mountpoint / "file").touch()


def test_a_mount_without_listen_or_with_a_wrong_catalog_says_what_to_do(
    both: tuple[MountedPool, MountedPool], nodes: MountedNodes, lab: NetworkLab
) -> None:
    other = MountedPool(nodes.folder / "other", node="c", pool=nodes.pool)
    other.prefix = lab.entrance(3)
    where = (other.pool, other.mountpoint, "--state", other.state, "--node", "c")
    assert "--listen" in other.run("mount", *where, exit_code=1).stderr
    address = nodes.pool / "catalog"
    for text, said in (("etcd://user:word@host", "no user and password"), ("nonsense", "etcd://HOST:PORT")):
        address.write_text(text)
        refused = other.run("mount", *where, "--listen", lab.address(3), exit_code=1).stderr
        assert said in refused
        assert refused.count("\n") == 1
