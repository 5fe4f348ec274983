"""A mount with a fake daemon."""

import pathlib
from collections.abc import Iterator

import pytest

from tests.fusefs.fake_mount import FakeMount


@pytest.fixture
def fake_mount(tmp_path: pathlib.Path) -> Iterator[FakeMount]:
    mount = FakeMount(tmp_path)
    try:
        yield mount
    finally:
        mount.tear_down()
