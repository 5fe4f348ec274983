"""Object pools on a real S3 server, which is killed and started again meanwhile. `make test-s3`."""

import os
import shutil
import subprocess
import sys
import threading

import pytest

from metadata.errors import Exists, InvalidRequest, NotFound
from replication.object_store import RetryingStore, connect
from replication.pool_url import canonical_url
from tests.mounted_pool import MountedPool
from tests.s3.object_server import ACCESS, ObjectServer

MIB = 1 << 20


def mount(pool: MountedPool, server: ObjectServer) -> None:
    where = (
        pool.url,
        pool.mountpoint,
        "--state",
        pool.state,
        "--node",
        "here",
        "--endpoint",
        server.endpoint,
    )
    pool.run("mount", *where)


def test_of_many_that_put_one_object_one_makes_it(server: ObjectServer) -> None:
    url = canonical_url("s3://disks/race", options=[("endpoint", server.endpoint)])
    for turn in range(5):
        results: list[str] = []

        def put(number: int, turn: int = turn, results: list[str] = results) -> None:
            try:
                RetryingStore(connect(url)).put_new(f"{turn}", b"%d" % number)
                results.append("made")
            except Exists:
                results.append("refused")

        threads = [threading.Thread(target=put, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == ["made"] + ["refused"] * 7


def test_every_call_does_what_the_doubles_do(server: ObjectServer) -> None:
    store = connect(canonical_url("s3://disks/calls", options=[("endpoint", server.endpoint)]))
    store.put_new("v/1/00000-00001", b"0123456789")
    with pytest.raises(Exists):
        store.put_new("v/1/00000-00001", b"0123456789")
    assert bytes(store.get_range("v/1/00000-00001", 2, 3)) == b"234"
    store.put("v/2/x", b"1")
    store.put("v/y", b"12")
    assert (store.list("v/").objects, sorted(store.list("v/").folders)) == ({"y": 2}, ["1", "2"])
    store.delete(["v/y", "v/none"])
    assert store.list("v/").objects == {}
    with pytest.raises(NotFound):
        store.get("v/y")


def test_no_bucket_and_wrong_credentials_are_told_at_once(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidRequest, match="no such bucket"):
        connect(canonical_url("s3://none/p", options=[("endpoint", server.endpoint)])).list("")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(InvalidRequest, match="refuses these credentials") as told:
        connect(canonical_url("s3://disks/p", options=[("endpoint", server.endpoint)])).get("x")
    assert ACCESS not in str(told.value)


def test_what_was_flushed_is_there_on_a_node_that_knows_nothing(
    pool: MountedPool, server: ObjectServer
) -> None:
    mount(pool, server)
    path, content = pool.create("disk", "64M"), os.urandom(24 * MIB)
    with path.open("r+b", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
    pool.run("snap", "create", f"{path}@one")
    pool.umount()
    shutil.rmtree(pool.state)
    mount(pool, server)
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


def test_a_server_that_dies_costs_guests_a_pause(pool: MountedPool, server: ObjectServer) -> None:
    mount(pool, server)
    path, count = pool.create("disk", "16M"), 60
    command = [sys.executable, "-c", _WRITER, str(path), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) in (10, 40):
                server.kill()
                server.start()
        assert writer.wait() == 0
    pool.umount()
    shutil.rmtree(pool.state)
    mount(pool, server)
    content = path.read_bytes()
    for number in range(count):
        assert content[number * 8192 :][:4096] == number.to_bytes(8, "little") * 512
    pool.umount()
