"""Pools in Ceph on a real cluster, whose OSDs are killed and started again meanwhile. `make test-ceph`."""

import errno
import os
import pathlib
import shutil
import subprocess
import sys
import threading

import pytest

from metadata.errors import Exists, Fenced, InvalidRequest, NotFound
from replication.object_store import RetryingStore
from replication.pool_url import canonical_url
from replication.rados_store import RadosStore, connect
from tests.ceph.conftest import OSDS
from tests.ceph_cluster import CephCluster
from tests.mounted_nodes import wait_until
from tests.mounted_pool import MountedPool

MIB = 1 << 20
B = 4096
VDISK = "vdisks/01/0000000000000001/"
GROUP = VDISK + "000001-0000001/"
BEGUN = "00000-00000"


def store(cluster: CephCluster, prefix: str, **options: str) -> RadosStore:
    said = {"conf": str(cluster.configuration), **options}
    return connect(canonical_url(f"rados://disks/{prefix}", options=said.items()))


def mount(pool: MountedPool) -> None:
    pool.run("mount", pool.url, pool.mountpoint, "--state", pool.state, "--node", pool.node)


def test_of_many_that_put_one_object_one_makes_it(cluster: CephCluster) -> None:
    stores = [RetryingStore(store(cluster, "race")) for _ in range(8)]
    for turn, key in enumerate(["x", "a/y", GROUP + BEGUN, GROUP + "00000-00001", GROUP + "00001-00001"]):
        results: list[str] = []

        def put(number: int, key: str = key, results: list[str] = results) -> None:
            try:
                stores[number].put_new(key, bytes([number]) * B)
                results.append("made")
            except Exists:
                results.append("refused")

        threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == ["made"] + ["refused"] * 7, turn


def test_every_call_does_what_the_doubles_do(cluster: CephCluster) -> None:
    one = RetryingStore(store(cluster, "calls"))
    one.put_new("v/1/x", b"0123456789")
    one.put_new("v/1/x", b"0123456789")
    with pytest.raises(Exists):
        one.put_new("v/1/x", b"012345678")
    assert bytes(one.get_range("v/1/x", 2, 3)) == b"234"
    with pytest.raises(NotFound):
        one.get_range("v/1/x", 3, 40)
    one.put("v/2/x", b"1")
    one.put("v/y", b"12")
    assert (one.list("v/").objects, sorted(one.list("v/").folders)) == ({"y": 2}, ["1", "2"])
    one.delete(["v/y", "v/none"])
    assert one.list("v/").objects == {}
    for call in (lambda: one.get("v/y"), lambda: one.get(GROUP + "00000-00001")):
        with pytest.raises(NotFound):
            call()
    one.delete(["v/1/x", "v/2/x"])
    assert one.list("").folders == []


def test_groups_their_guard_and_long_objects(cluster: CephCluster, tmp_path: pathlib.Path) -> None:
    one, content = RetryingStore(store(cluster, "groups")), os.urandom(20 * MIB)
    one.put_new(GROUP + BEGUN, b"word")
    for position in range(1200):  # more than one request lists
        one.put_new(f"{GROUP}{position:05x}-00001", position.to_bytes(4, "little") * 1024)
    assert len(one.list(GROUP).objects) == 1201
    one.join(GROUP + "00000-004b0", [f"{GROUP}{position:05x}-00001" for position in range(1200)])
    assert sorted(one.list(GROUP).objects) == [BEGUN, "00000-004b0"]
    assert bytes(one.get_range(GROUP + "00000-004b0", 700 * B, 4)) == (700).to_bytes(4, "little")
    one.fence(VDISK, 2)
    for key in (GROUP + "01000-00001", VDISK + "000001-0000002/" + BEGUN):
        with pytest.raises(Fenced):
            one.put_new(key, bytes(B))
    one.put_new(VDISK + "000002-0000001/" + BEGUN, b"word")
    (tmp_path / "long").write_bytes(content)
    one.put_file(VDISK + "1.checkpoint", str(tmp_path / "long"))
    assert one.get(VDISK + "1.checkpoint") == content
    assert one.list(VDISK).objects == {"1.checkpoint": 20 * MIB}
    assert one.list(VDISK).folders == ["000001-0000001", "000002-0000001"]
    one.delete([VDISK + "1.checkpoint", GROUP + BEGUN, VDISK + "000002-0000001/" + BEGUN])
    assert (one.list("").objects, one.list("").folders) == ({}, [])
    total, free = one.room() or (0, 0)
    assert 0 < free <= total <= 6 << 30


def test_what_was_set_up_wrongly_is_told_at_once_in_one_line(cluster: CephCluster, pool: MountedPool) -> None:
    cluster.make_user("reader", caps='mon "allow r" osd "allow r pool=disks"')
    cluster.make_user("stranger", caps='mon "allow r"')
    cluster.run("ceph osd erasure-code-profile set narrow k=2 m=1 crush-failure-domain=osd")
    cluster.run("ceph osd pool create narrow 8 8 erasure narrow")
    catalog = ("--catalog", f"sqlite:{pool.folder}/other")
    for url, words in {
        "rados://none": "ceph osd pool create none",
        "rados://disks?conf=/none": "configuration cannot be read",
        "rados://disks?user=nobody": "does not let client.nobody in",
        "rados://disks/x?user=reader": "refuses this user the pool",
        "rados://disks/x?user=stranger": "refuses this user the pool",
        "rados://narrow": "choose a replicated one",
        "rados://": "not the address",
    }.items():
        told = pool.run("format", url, *catalog, exit_code=1).stderr
        assert words in told
        assert len(told.splitlines()) == 1, told
    assert "no pool here" in pool.run("mount", "rados://disks/none", pool.mountpoint, exit_code=1).stderr
    with pytest.raises(InvalidRequest, match="refuses this user"):
        store(cluster, pool.folder.name, user="reader").put("x", b"")


def test_what_was_flushed_is_there_on_a_node_that_knows_nothing(pool: MountedPool) -> None:
    mount(pool)
    path, content = pool.create("disk", "64M"), os.urandom(24 * MIB)
    with path.open("r+b", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    pool.run("snap", "create", f"{path}@one")
    pool.umount()
    shutil.rmtree(pool.state)
    mount(pool)
    for _ in range(2):
        assert path.read_bytes()[: len(content)] == content
    facts = pool.json("status", pool.mountpoint)
    assert facts["store_fetched_bytes"] < 1.1 * len(content)
    pool.run("check", path)
    pool.run("scrub", path)
    pool.umount()


_WRITER = """
import os, sys
with open(sys.argv[1], "r+b", buffering=0) as file:
    for number in range(int(sys.argv[2])):
        file.seek(number * 8192)
        file.write(number.to_bytes(8, "little") * 512)
        os.fsync(file.fileno())
        print(number, flush=True)
"""
"""A process of its own: one forked while it waits would close its file, and wait too."""


def start_writer(path: pathlib.Path, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(path), str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def assert_holds(content: bytes, count: int) -> None:
    for number in range(count):
        assert content[number * 8192 :][:4096] == number.to_bytes(8, "little") * 512, number


def test_a_killed_node_comes_back_with_all_that_it_flushed(pool: MountedPool) -> None:
    mount(pool)
    path, flushed = pool.create("disk", "16M"), 0
    with start_writer(path, 1000) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            flushed = int(line)
            if flushed == 200:
                pool.kill()
                break
        writer.kill()
    mount(pool)
    assert_holds(path.read_bytes(), 201)
    pool.run("check", path)
    pool.umount()


def test_a_killed_owners_groups_refuse_what_may_still_come(
    pool: MountedPool, cluster: CephCluster, tmp_path: pathlib.Path
) -> None:
    mount(pool)
    path = pool.create("disk", "16M")
    with start_writer(path, 1000) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) == 100:
                pool.kill()
                break
        writer.kill()
    other = MountedPool(tmp_path / "other", node="there")
    other.url = pool.url
    try:
        mount(other)
        taken = other.mountpoint / "disk"
        with taken.open("r+b", buffering=0) as file:
            file.seek(8 * MIB)
            file.write(b"taken" * 1000)
            os.fsync(file.fileno())
        assert_holds(taken.read_bytes(), 101)
        rados = store(cluster, pool.folder.name)
        vdisk = f"vdisks/{taken.stat().st_ino & 0xFF:02x}/{taken.stat().st_ino:016x}/"
        old = [name for name in rados.list(vdisk).folders if name.startswith("000001-")]
        assert old
        for key in (f"{vdisk}{old[-1]}/04000-00001", f"{vdisk}000001-0ffffff/{BEGUN}"):
            with pytest.raises(Fenced):
                rados.put_new(key, bytes(B))
        other.run("check", taken)
        other.umount()
    finally:
        other.tear_down()


def test_osds_that_die_cost_guests_a_pause(pool: MountedPool, cluster: CephCluster) -> None:
    mount(pool)
    path, count = pool.create("disk", "16M"), 200
    with start_writer(path, count) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            match int(line):
                case 20:
                    cluster.kill_osd(0)
                case 60:
                    cluster.start_osd(0)
                    cluster.wait_up(OSDS)
                case 100:
                    cluster.kill_osd(1)
                    cluster.kill_osd(0)
                    cluster.start_osd(0)
                    cluster.start_osd(1)
        assert writer.wait() == 0
    pool.umount()
    shutil.rmtree(pool.state)
    mount(pool)
    assert_holds(path.read_bytes(), count)
    pool.run("check", path)
    pool.umount()


def test_a_full_pool_refuses_writes_keeps_what_it_accepted_and_gives_space_back(
    cluster: CephCluster, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quota_bytes = 192 * MIB
    monkeypatch.setenv("CEPH_CONF", str(cluster.configuration))
    cluster.make_pool("small")
    cluster.run(f"ceph osd pool set-quota small max_bytes {quota_bytes}")
    pool = MountedPool(tmp_path)
    pool.url = "rados://small"
    pool.run("format", pool.url, "--catalog", f"sqlite:{tmp_path}/catalog", "--trash", "0")
    try:
        mount(pool)
        path, accepted = pool.create("disk", "1G"), 0
        while put(path, accepted):
            accepted += 1
        with path.open("r+b", buffering=0) as file:
            os.fsync(file.fileno())
        assert 64 * MIB < accepted * MIB < quota_bytes
        other = pool.create("other", "16M")
        for number in range(accepted):
            with path.open("rb", buffering=0) as file:
                assert os.pread(file.fileno(), MIB, number * MIB) == number.to_bytes(4, "little") * (MIB // 4)
        path.unlink()
        pool.run("gc", pool.mountpoint)
        wait_until(lambda: put(other, 0), "there is room again", within_s=60)
        pool.umount()
    finally:
        pool.tear_down()


def put(path: pathlib.Path, number: int) -> bool:
    """Whether there was room for this MiB."""
    try:
        with path.open("r+b", buffering=0) as file:
            os.pwrite(file.fileno(), number.to_bytes(4, "little") * (MIB // 4), number * MIB)
            os.fsync(file.fileno())
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise
        return False
    return True
