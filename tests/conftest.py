"""What every test gets: options for long runs, Hypothesis profiles, no stray errors, and a mounted pool."""

import logging
import os
import pathlib
import threading
from collections.abc import Iterator

import hypothesis
import pytest

from tests.mounted_nodes import MountedNodes
from tests.mounted_pool import MountedPool, kill_processes

hypothesis.settings.register_profile("short", deadline=None, max_examples=50, print_blob=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=500, print_blob=True)
hypothesis.settings.load_profile("short")


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vdiskfs")
    group.addoption(
        "--rounds", type=int, help="rounds of the kill and power-cut tests (default: a short slice)"
    )
    group.addoption("--seconds", type=float, help="budget of the random tests (default: a short slice)")
    group.addoption("--seed", type=int, help="the seed of random tests, as a failure printed it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what only root can do, visibly: deselected tests are counted in the summary."""
    if os.geteuid() == 0:
        return
    for_root = [item for item in items if item.get_closest_marker("root")]
    config.hook.pytest_deselected(items=for_root)
    items[:] = [item for item in items if item not in for_root]


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int | None:
    """How many rounds a long run asked for; None: the test's own short slice."""
    return request.config.getoption("--rounds")


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float | None:
    """How long a long run may take; None: the test's own short slice."""
    return request.config.getoption("--seconds")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of a random test: the one asked for, else a new one, printed when the test fails."""
    asked = request.config.getoption("--seed")
    value = int.from_bytes(os.urandom(4)) if asked is None else asked
    print(f"seed={value}")
    return value


@pytest.fixture(autouse=True)
def _no_stray_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """A logged ERROR fails the test; one that provokes it asserts on ``caplog.records``, then clears them."""
    yield
    stray = [record.getMessage() for record in caplog.get_records("call") if record.levelno >= logging.ERROR]
    assert stray == []


@pytest.fixture(autouse=True)
def _no_hang(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A test that takes too long loses its mounts: who waits for them in the kernel, unkillable, gets an error."""
    limit_s = float(request.config.getini("faulthandler_timeout")) * 0.8
    watch = threading.Timer(limit_s, kill_processes, [tmp_path_factory.getbasetemp()])
    watch.daemon = True
    if limit_s:
        watch.start()
    yield
    watch.cancel()


@pytest.fixture
def unmounted(tmp_path: pathlib.Path) -> Iterator[MountedPool]:
    """A formatted pool with a mountpoint and a state directory, not mounted; everything is cleaned up."""
    pool = MountedPool(tmp_path)
    try:
        pool.run("format", pool.pool)
        yield pool
    finally:
        pool.tear_down()
    assert pool.stray_errors() == []


@pytest.fixture
def mounted(unmounted: MountedPool) -> MountedPool:
    """The same, mounted."""
    unmounted.mount()
    return unmounted


@pytest.fixture
def nodes(tmp_path: pathlib.Path) -> Iterator[MountedNodes]:
    """A formatted pool that any number of nodes can mount; everything is cleaned up."""
    found = MountedNodes(tmp_path)
    try:
        yield found
    finally:
        found.tear_down()
    assert found.stray_errors() == []
