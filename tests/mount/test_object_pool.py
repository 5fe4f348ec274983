"""A mount over an object store on this disk: formatted, written, killed, moved to a node that knows nothing."""

import os
import pathlib
import shutil
from collections.abc import Iterator

import pytest

from tests.mounted_pool import MountedPool

MIB = 1 << 20


@pytest.fixture
def pool(tmp_path: pathlib.Path) -> Iterator[MountedPool]:
    made = MountedPool(tmp_path)
    made.url = f"file://{tmp_path}/bucket/prefix"
    yield made
    made.tear_down()
    assert made.stray_errors() == []


def mount(pool: MountedPool, *options: object, node: str = "here") -> None:
    state = pool.folder / f"state-{node}"
    pool.state = state
    pool.run("mount", pool.url, pool.mountpoint, "--state", state, "--node", node, *options)


def test_a_pool_of_objects_outlives_daemons_and_nodes(pool: MountedPool, tmp_path: pathlib.Path) -> None:
    refused = pool.run("format", pool.url, exit_code=1)
    assert "--catalog" in refused.stderr
    pool.run("format", pool.url, "--catalog", f"sqlite:{tmp_path}/catalog")
    assert "a pool already" in pool.run("format", pool.url, "--catalog", "sqlite:x", exit_code=1).stderr
    mount(pool)
    path, content = pool.create("disk", "32M"), os.urandom(9 * MIB)
    with path.open("r+b", buffering=0) as file:
        file.write(content)
        os.fsync(file.fileno())
        file.seek(100_000)
        file.write(b"acknowledged")
        pool.kill_daemon()
        content = content[:100_000] + b"acknowledged" + content[100_012:]
        file.seek(0)
        assert file.read(len(content)) == content
        os.fsync(file.fileno())
    pool.run("snap", "create", f"{path}@first")
    pool.run("clone", f"{path}@first", pool.mountpoint / "clone")
    assert pool.json("status", pool.mountpoint)["cache_bytes"] > 0
    pool.umount()
    shutil.rmtree(pool.state)
    mount(pool, node="away")
    warmed = pool.json("cache", "warm", f"{path}@first")
    assert (warmed["wanted_bytes"], warmed["missing_bytes"]) == (9 * MIB, 0)
    assert "fetched now" in pool.run("cache", "warm", pool.mountpoint / "clone").stdout
    fetched = pool.json("cache", "stats", pool.mountpoint)["store_fetched_bytes"]
    assert (pool.mountpoint / "clone").read_bytes()[: len(content)] == content
    assert pool.json("cache", "stats", pool.mountpoint)["store_fetched_bytes"] == fetched
    pool.umount()
    mount(pool, "--cache", "4M", node="there")
    assert "did not fit" in pool.run("cache", "warm", path, exit_code=1).stdout
    for name in ("disk", "clone", "disk"):
        assert (pool.mountpoint / name).read_bytes()[: len(content)] == content
    facts = pool.json("status", pool.mountpoint)
    assert facts["cache_bytes"] <= 4 * MIB
    assert facts["store_fetched_bytes"] > 0
    pool.run("check", path)
    pool.run("scrub", path)
    pool.umount()


def test_a_flush_that_this_node_s_disk_has_outlives_its_daemon(
    pool: MountedPool, tmp_path: pathlib.Path
) -> None:
    pool.run("format", pool.url, "--catalog", f"sqlite:{tmp_path}/catalog", "--durability", "node")
    mount(pool)
    path, content = pool.create("disk", "32M"), b""
    with path.open("r+b", buffering=0) as file:
        for number in range(20):
            file.write(os.urandom(20_000))
            os.fsync(file.fileno())
            if number == 10:
                pool.kill_daemon()
        file.seek(0)
        content = file.read(20 * 20_000)
    facts = pool.json("info", path)
    assert (facts["durability"], set(facts) >= {"lag_bytes", "lag_s", "lag_commits"}) == ("node", True)
    assert "lag_bytes" in pool.json("status", pool.mountpoint)
    pool.run("set", path, "--durability", "pool")
    assert pool.json("info", path)["durability"] == "pool"
    pool.run("set", path, "--durability", "default")
    assert pool.json("info", path)["durability"] == "node"
    pool.run("set", pool.mountpoint, "--durability", "pool")
    assert pool.json("info", path)["durability"] == "pool"
    pool.run("create", pool.mountpoint / "other", "1M", "--durability", "node")
    assert pool.json("info", pool.mountpoint / "other")["durability"] == "node"
    pool.umount()
    shutil.rmtree(pool.state)
    mount(pool, node="there")
    assert path.read_bytes()[: len(content)] == content
    pool.run("check", path)
    pool.umount()


def test_what_is_no_pool_or_another_s_is_refused_in_one_line(
    pool: MountedPool, tmp_path: pathlib.Path
) -> None:
    told = pool.run("mount", pool.url, pool.mountpoint, exit_code=1).stderr
    assert (told.count("\n"), "no pool here" in told) == (1, True)
    told = pool.run("mount", "s3://key:secret@bucket", pool.mountpoint, exit_code=1).stderr
    assert (told.count("\n"), "secret" in told) == (1, False)
    for name in ("a", "b"):
        pool.run("format", f"{pool.url}/{name}", "--catalog", f"sqlite:{tmp_path}/{name}")
    url = pool.url
    pool.expects_errors = True
    pool.url = f"{url}/a"
    mount(pool)
    pool.umount()
    told = pool.run(
        "mount", f"{url}/b", pool.mountpoint, "--state", pool.state, "--node", "here", exit_code=1
    ).stderr
    assert "another pool's" in told
