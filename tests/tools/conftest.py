"""What tests of the command line get: a daemon that need not be there."""

import pathlib

import pytest

from tests.tools.pretended_daemon import PretendedDaemon


@pytest.fixture
def daemon(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> PretendedDaemon:
    return PretendedDaemon(tmp_path, monkeypatch)
