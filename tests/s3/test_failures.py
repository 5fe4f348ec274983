"""What an S3 server, the way to it, and whoever else has the bucket, may do to a pool; a real server behind a proxy."""

import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator

import pytest

from metadata.errors import InvalidRequest, Unavailable
from replication import object_store
from replication.object_store import RetryingStore, connect
from replication.object_tables import parse_span
from replication.pool_url import canonical_url
from tests.etcd_members import EtcdMembers
from tests.mounted_pool import MountedPool
from tests.s3.object_server import ObjectServer
from tests.s3.proxy import Proxy

MIB = 1 << 20
WRITES = 40
_WRITER = """
import os, sys
with open(sys.argv[1], "r+b", buffering=0) as file:
    for number in range(int(sys.argv[2])):
        file.seek(number * 8192)
        file.write(number.to_bytes(8, "little") * 512)
        os.fsync(file.fileno())
        print(number, flush=True)
"""


@pytest.fixture
def proxy(server: ObjectServer) -> Iterator[Proxy]:
    with Proxy(server.port) as made:
        yield made


def mount(pool: MountedPool, proxy: Proxy | ObjectServer, *options: str) -> None:
    where = (pool.url, pool.mountpoint, "--state", pool.state, "--node", "here")
    pool.run("mount", *where, "--endpoint", proxy.endpoint, *options)


def written(path: pathlib.Path) -> Iterator[int]:
    """A guest of a process of its own; yields after each write that is flushed."""
    command = [sys.executable, "-c", _WRITER, str(path), str(WRITES)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            yield int(line)
        assert writer.wait() == 0


def is_whole(path: pathlib.Path) -> bool:
    content = path.read_bytes()
    return all(content[at * 8192 :][:4096] == at.to_bytes(8, "little") * 512 for at in range(WRITES))


def anew(pool: MountedPool, server: Proxy | ObjectServer) -> None:
    """On a node that knows nothing."""
    pool.umount()
    shutil.rmtree(pool.state)
    mount(pool, server)


def test_throttling_slowness_and_broken_connections_cost_a_pause(
    pool: MountedPool, server: ObjectServer, proxy: Proxy
) -> None:
    mount(pool, proxy)
    path = pool.create("disk", "16M")
    for number in written(path):
        match number:
            case 4:
                proxy.become("flaky")
            case 12:
                proxy.become("slow")
            case 20:
                proxy.become("throttling", connections=8)
            case 28:
                proxy.become("silent", connections=1)  # until that request's deadline
    assert pool.json("status", pool.mountpoint)["store_retries"] > 8
    proxy.become("slow")
    anew(pool, proxy)
    assert is_whole(path)
    pool.umount()


@pytest.mark.parametrize(
    ("mood", "said"), [("skewed", "clock is wrong"), ("refusing", "refuses these credentials")]
)
def test_a_clock_or_credentials_that_are_refused_are_named_and_nothing_is_lost(
    pool: MountedPool, server: ObjectServer, proxy: Proxy, mood: str, said: str
) -> None:
    url = canonical_url(pool.url, options=[("endpoint", proxy.endpoint)])
    proxy.become(mood)
    with pytest.raises(InvalidRequest, match=said):
        connect(url).get("vdiskfs.pool")
    refused = pool.run("mount", pool.url, pool.mountpoint, "--endpoint", proxy.endpoint, exit_code=1).stderr
    assert (refused.count("\n"), said in refused) == (1, True)
    proxy.become("well")
    mount(pool, proxy)
    path = pool.create("disk", "16M")
    with path.open("r+b", buffering=0) as file:
        proxy.become(mood)
        file.write(b"x" * 8192)
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(file.fileno())
        proxy.become("well")
        os.fsync(file.fileno())
    assert any(said in line for line in pool.log_lines())
    anew(pool, server)
    assert path.read_bytes()[:8192] == b"x" * 8192
    pool.umount()


def test_a_store_that_only_throttles_ends_in_an_error_that_says_so(proxy: Proxy, pool: MountedPool) -> None:
    proxy.become("throttling")
    store = connect(canonical_url(pool.url, options=[("endpoint", proxy.endpoint)]))
    with pytest.raises(Unavailable, match="does not answer"):
        RetryingStore(store, budget_s=2.0).get("vdiskfs.pool")
    assert proxy.connections > 3


def test_a_connection_that_never_answers_ends_at_its_deadline(
    proxy: Proxy, pool: MountedPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "CALL_S", 1.0)
    proxy.become("silent")
    store = connect(canonical_url(pool.url, options=[("endpoint", proxy.endpoint)]))
    with pytest.raises(Unavailable, match="does not answer"):
        RetryingStore(store, budget_s=2.0).get("vdiskfs.pool")


def test_a_bucket_that_lost_an_object_fails_where_it_was_and_nowhere_else(
    pool: MountedPool, server: ObjectServer
) -> None:
    mount(pool, server)
    for name in ("hit", "sound"):
        with pool.create(name, "32M").open("r+b", buffering=0) as file:
            for _ in range(3):
                file.write(os.urandom(8 * MIB))
                os.fsync(file.fileno())
    sound = (pool.mountpoint / "sound").read_bytes()
    hit = (pool.mountpoint / "hit").read_bytes()
    vdisk = pool.json("info", pool.mountpoint / "hit")["vdisk"]
    pool.umount()
    shutil.rmtree(pool.state / "extents")  # what it had of the pool; the index it keeps
    store = connect(canonical_url(pool.url, options=[("endpoint", server.endpoint)]))
    prefix = f"vdisks/{vdisk & 0xFF:02x}/{vdisk:016x}/"
    folder = store.list(prefix).folders[0]
    names = sorted(name for name in store.list(f"{prefix}{folder}/").objects if parse_span(name))
    spans = [(name, parse_span(name)) for name in names]
    lost = max((span.count, name) for name, span in spans if span is not None)[1]
    store.delete([f"{prefix}{folder}/{lost}"])
    pool.expects_errors = True
    mount(pool, server)
    assert (pool.mountpoint / "sound").read_bytes() == sound
    read = bad = 0
    fd = os.open(pool.mountpoint / "hit", os.O_RDONLY)
    try:
        for at in range(0, 24 * MIB, MIB):
            try:
                assert os.pread(fd, MIB, at) == hit[at : at + MIB]
                read += 1
            except OSError:
                bad += 1
    finally:
        os.close(fd)
    assert bad
    told = pool.run("scrub", pool.mountpoint / "hit", exit_code=1).stdout
    assert "missing" in told or "does not" in told or "lost" in told, told
    assert pool.run("scrub", pool.mountpoint / "sound").stdout.endswith("no problems\n")
    pool.umount()


def test_a_bucket_that_another_cluster_owns_is_refused(
    pool: MountedPool, server: ObjectServer, tmp_path: pathlib.Path
) -> None:
    again = ("--endpoint", server.endpoint, "--catalog", f"sqlite:{tmp_path}/other")
    assert "a pool already" in pool.run("format", pool.url, *again, exit_code=1).stderr
    assert not (tmp_path / "other").exists()
    mount(pool, server)
    pool.umount()
    other = f"{pool.url}-other"
    pool.expects_errors = True
    pool.run("format", other, *again)
    where = ("--state", pool.state, "--node", "here", "--endpoint", server.endpoint)
    assert "another pool's" in pool.run("mount", other, pool.mountpoint, *where, exit_code=1).stderr


def test_etcd_and_s3_together_outlive_the_death_of_either(
    server: ObjectServer, tmp_path: pathlib.Path, proxy: Proxy
) -> None:
    (tmp_path / "etcd").mkdir()
    with EtcdMembers(tmp_path / "etcd", 3) as etcd:
        pool = MountedPool(tmp_path)
        pool.url = f"s3://disks/{tmp_path.name}-etcd?endpoint={server.endpoint}"
        try:
            pool.run("format", pool.url, "--catalog", etcd.url, "--durability", "node")
            pool.run("cluster", "init", pool.url, "--ca-dir", tmp_path / "ca")
            join = ("--node", "here", "--state", pool.state, "--ca-dir", tmp_path / "ca")
            pool.run("cluster", "join", pool.url, *join)
            listen = ("--listen", "127.0.0.1")
            mount(pool, proxy, *listen)
            path = pool.create("disk", "16M")
            for number in written(path):
                if number == 8:
                    etcd.kill(0)
                if number == 16:
                    server.kill()
                if number == 20:
                    server.start()
                if number == 24:
                    etcd.start(0)
                    pool.kill_daemon()
            pool.umount()
            shutil.rmtree(pool.state)
            pool.run("cluster", "join", pool.url, *join)
            mount(pool, server, *listen)
            assert is_whole(path)
            pool.umount()
        finally:
            pool.tear_down()
