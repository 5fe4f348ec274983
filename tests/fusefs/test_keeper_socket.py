"""The keeper's socket: who may ask, what is a request, and what a client hears."""

import contextlib
import os
import pathlib
import socket
import stat
import threading
from collections.abc import Callable, Iterator

import pytest

from fusefs import keeper_socket
from fusefs.handover import ReportReader, report_error, report_progress, report_ready
from fusefs.settings import UpgradeSettings
from metadata.errors import Unavailable

WANTED = UpgradeSettings(daemon=("python3", "-m", "fusefs.node"), pythonpath="/code")
UID = os.geteuid()


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "keeper")


@contextlib.contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    listener = keeper_socket.listen(path)
    with listener:
        yield listener


def said_to(path: str, listener: socket.socket, line: bytes, *, uid: int = UID) -> tuple[object, bytes]:
    """What the keeper takes a line for, and what the client hears."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)
        client.sendall(line)
        found = keeper_socket.accept(listener, uid=uid)
        if found is not None:
            found[0].close()
        heard = client.recv(65536)
    return None if found is None else found[1], heard


def test_only_its_user_may_open_it_and_an_old_one_is_replaced(path: str) -> None:
    pathlib.Path(path).touch()
    with listening(path):
        mode = os.stat(path).st_mode
        assert stat.S_ISSOCK(mode)
        assert mode & 0o777 == 0o600


def test_a_socket_that_cannot_be_made_leaves_none_open(tmp_path: pathlib.Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"No such file|not found"):
        keeper_socket.listen(str(tmp_path / "missing" / "keeper"))
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_request_arrives_as_it_was_made(path: str) -> None:
    with listening(path) as listener:
        assert keeper_socket.accept(listener, uid=UID) is None  # nobody is there
        assert said_to(path, listener, WANTED.to_json().encode() + b"\n") == (WANTED, b"")


@pytest.mark.parametrize("line", [b"\n", b"{}\n", b"nonsense\n", b"\xff\n", b'{"daemon": "x"}\n'])
def test_what_is_no_request_is_answered_with_why(path: str, line: bytes) -> None:
    with listening(path) as listener:
        found, heard = said_to(path, listener, line)
    (report,) = ReportReader().feed(heard)
    assert found is None
    assert report.error is not None
    assert report.error.startswith("not a request this keeper knows")


def test_root_may_ask_and_a_stranger_may_not(path: str) -> None:
    line = WANTED.to_json().encode() + b"\n"
    with listening(path) as listener:
        found, heard = said_to(path, listener, line, uid=UID + 1)
    if UID == 0:
        assert found == WANTED
    else:
        assert found is None
        assert b"only root and the user" in heard


def test_a_client_that_says_nothing_keeps_the_keeper_a_moment_only(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_socket, "REQUEST_S_MAX", 0.01)
    with listening(path) as listener, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(path)
        assert keeper_socket.accept(listener, uid=UID) is None
        assert client.recv(100) == b""


def asked(path: str, answer: Callable[[int], None]) -> list[str]:
    """What is heard of an upgrade while a keeper answers so."""
    heard: list[str] = []
    with listening(path) as listener:
        listener.setblocking(True)

        def keep() -> None:
            found = keeper_socket.accept(listener, uid=UID)
            assert found is not None
            answer(found[0].fileno())
            found[0].close()

        thread = threading.Thread(target=keep)
        thread.start()
        try:
            keeper_socket.ask_upgrade(path, WANTED, progress=heard.append)
        finally:
            thread.join()
    return heard


def test_an_upgrade_is_done_when_the_successor_serves(path: str) -> None:
    def answer(client: int) -> None:
        report_progress(client, "standing by")
        report_progress(client, "taking over")
        report_ready(client)

    assert asked(path, answer) == ["standing by", "taking over"]


def test_one_that_is_refused_or_cut_off_says_so(path: str) -> None:
    with pytest.raises(Unavailable, match="another one goes on"):
        asked(path, lambda client: report_error(client, "another one goes on"))
    with pytest.raises(Unavailable, match="the keeper ended before the upgrade was done"):
        asked(path, lambda client: None)
    os.unlink(path)
    with pytest.raises(Unavailable, match="the keeper does not answer: No such file"):
        keeper_socket.ask_upgrade(path, WANTED, progress=print)
