"""Mounts of one pool and their sessions: who is there after a kill, a pause, an unmount; who is not let in."""

import pathlib
import shutil

import pytest

from replication.cluster import SESSION_S
from tests.mounted_nodes import MountedNodes, wait_until
from tests.mounted_pool import MountedPool


def members(node: MountedPool) -> dict[str, dict]:
    return {one["node"]: one for one in node.json("cluster", "ls", node.pool)["nodes"]}


def test_nodes_come_and_go(nodes: MountedNodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    assert set(members(a)) == {"a", "b"}
    assert len({one["port"] for one in members(a).values()}) == 2
    b.umount()
    assert set(members(a)) == {"a"}
    a.umount()
    assert members(a) == {}


def test_a_killed_daemon_keeps_its_session_and_a_killed_node_loses_it(nodes: MountedNodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    before = members(a)["b"]
    b.kill_daemon()
    b.daemon_pid()
    after = members(a)["b"]
    assert (before["identity"], set(members(a))) == (after["identity"], {"a", "b"})
    b.kill()
    wait_until(lambda: set(members(a)) == {"a"}, "the session of a killed node ends", within_s=SESSION_S + 5)


def test_a_paused_node_is_gone_and_begins_anew_when_it_wakes(nodes: MountedNodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    nodes.pause(b)
    wait_until(lambda: set(members(a)) == {"a"}, "the session of a paused node ends", within_s=SESSION_S + 5)
    nodes.wake(b)
    wait_until(lambda: set(members(a)) == {"a", "b"}, "it begins a new one")
    wait_until(lambda: any("the session has begun anew" in line for line in b.log_lines()), "and says so")
    assert any("the session has ended" in line for line in b.log_lines())
    (b.mountpoint / "made").mkdir()
    assert (a.mountpoint / "made").exists()


def test_a_second_node_of_the_same_name_is_refused(nodes: MountedNodes) -> None:
    a = nodes.node("a")
    second = MountedPool(nodes.folder / "second", node="a", pool=nodes.pool)
    try:
        words = ("mount", second.pool, second.mountpoint, "--state", second.state, "--node", "a")
        refused = second.run(*words, exit_code=1)
        assert "another node of this name has the pool mounted: choose another with --node" in refused.stderr
    finally:
        second.tear_down()
    assert set(members(a)) == {"a"}
    (a.mountpoint / "works").mkdir()


def test_a_node_whose_state_directory_is_lost_is_the_same_node_at_once(nodes: MountedNodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    before = members(a)["b"]
    b.kill()
    b.tear_down()
    shutil.rmtree(b.state)
    b.mount()
    assert members(a)["b"]["identity"] != before["identity"]


@pytest.mark.parametrize("what", ["another cluster's", "no certificate"])
def test_a_node_that_does_not_belong_to_the_cluster_cannot_mount(
    what: str, nodes: MountedNodes, tmp_path: pathlib.Path
) -> None:
    nodes.node("a")
    guest = nodes.node("guest", is_mounted=False)
    guest.expects_errors = True
    authority = pathlib.Path(nodes.pool, "cluster")
    if what == "another cluster's":
        other = tmp_path / "other"
        guest.run("format", other)
        guest.run("cluster", "init", other)
        guest.run("cluster", "join", other, "--node", "guest", "--state", guest.state)
        words = "certificate is of another cluster than the pool"
    else:
        authority.rename(tmp_path / "with the administrator")
        words = "no certificate of the pool's cluster, and its authority is not here"
    mount = ("mount", guest.pool, guest.mountpoint, "--state", guest.state, "--node", "guest")
    assert words in guest.run(*mount, exit_code=1).stderr
    if what == "no certificate":
        guest.run(
            *("cluster", "join", guest.pool, "--node", "guest", "--state", guest.state),
            *("--ca-dir", tmp_path / "with the administrator"),
        )
        guest.mount("--listen", "127.0.0.1:0")
        assert set(members(guest)) == {"a", "guest"}


def test_an_upgrade_goes_on_with_the_session(nodes: MountedNodes) -> None:
    a, b = nodes.node("a"), nodes.node("b")
    before = members(a)["b"]["identity"]
    b.run("upgrade", b.mountpoint)
    assert members(a)["b"]["identity"] == before
    assert not any("the session has ended" in line for line in a.log_lines() + b.log_lines())
