"""Asking a daemon: its answers, its errors as they were raised, and every way in which it may fail to answer."""

import contextlib
import errno
import json
import os
import pathlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from fusefs import control_client
from fusefs.control_client import call, call_for_descriptors
from metadata.errors import NotFound, Unavailable, VdiskfsError


@pytest.fixture
def path(tmp_path: pathlib.Path) -> str:
    return str(tmp_path / "control")


@contextlib.contextmanager
def answering(path: str, *lines: bytes, descriptors: tuple[int, ...] = ()) -> Iterator[list[Any]]:
    """A daemon that says this to the next who asks, and hangs up; what it was asked."""
    asked: list[Any] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()

        def answer() -> None:
            client, _ = listener.accept()
            with client, client.makefile("rb") as questions:
                asked.append(json.loads(questions.readline()))
                for line in lines:
                    if descriptors:
                        socket.send_fds(client, [line], descriptors)
                    else:
                        client.sendall(line)

        thread = threading.Thread(target=answer)
        thread.start()
        yield asked
        thread.join()


def test_a_verb_and_its_arguments_go_and_its_result_and_progress_come(path: str) -> None:
    heard: list[dict[str, Any]] = []
    lines = (b'{"progress": {"done": 1}}\n{"prog', b'ress": {"done": 2}}\n', b'{"result": [1, null]}\n')
    with answering(path, *lines) as asked:
        assert call(path, "collect", {"path": "a"}, progress=heard.append) == [1, None]
    assert asked == [{"verb": "collect", "path": "a"}]
    assert heard == [{"done": 1}, {"done": 2}]


def test_a_result_may_be_nothing_and_progress_may_interest_nobody(path: str) -> None:
    with answering(path, b'{"progress": {}}\n{"result": null}\n'):
        assert call(path, "x", {}) is None


@pytest.mark.parametrize(
    ("message", "kind", "number"),
    [
        ({"kind": "NotFound", "errno": 116}, NotFound, 116),
        ({"kind": "NotFound", "errno": None}, NotFound, errno.ENOENT),
        ({"kind": "NotFound"}, NotFound, errno.ENOENT),
        ({"kind": "OfAnotherRelease", "errno": 5}, VdiskfsError, 5),
        ({"kind": "errno", "errno": 5}, VdiskfsError, 5),
        ({}, VdiskfsError, errno.EIO),
    ],
)
def test_an_error_is_raised_as_it_was_there(
    path: str, message: dict[str, object], kind: type[VdiskfsError], number: int
) -> None:
    with (
        answering(path, json.dumps({"error": "it failed", **message}).encode() + b"\n"),
        pytest.raises(VdiskfsError, match="it failed") as caught,
    ):
        call(path, "x", {})
    assert type(caught.value) is kind
    assert caught.value.number == number


@pytest.mark.parametrize("line", [b"nonsense\n", b"5\n", b"{}\n", b'{"progress"', b"\xff\n"])
def test_what_is_no_answer_has_broken_off(path: str, line: bytes) -> None:
    with answering(path, line), pytest.raises(Unavailable, match="broke off"):
        call(path, "x", {}, progress=print)


def test_a_daemon_that_ends_before_its_answer_is_asked_again_by_its_user(path: str) -> None:
    with answering(path, b'{"progress": {}}\n'), pytest.raises(Unavailable, match="ended before it answered"):
        call(path, "x", {})


def test_one_that_is_silent_is_not_waited_for_longer_than_allowed(path: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(Unavailable, match=r"does not answer within 0\.01 s"):
            call(path, "x", {}, timeout_s=0.01)
        with pytest.raises(Unavailable, match="does not answer"):
            call_for_descriptors(path, "x", timeout_s=0.01)


def test_one_that_is_not_there_is_tried_for_a_while(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "RETRY_S", 0.0)
    with pytest.raises(Unavailable, match="see 'vdiskfs status'"):
        call(path, "x", {})
    monkeypatch.setattr(control_client, "RETRY_S", 30.0)
    tries = []

    def come(seconds: float) -> None:
        tries.append(seconds)
        if len(tries) == 2:
            daemon.enter_context(answering(path, b'{"result": 7}\n'))

    monkeypatch.setattr(control_client.time, "sleep", come)
    with contextlib.ExitStack() as daemon:
        assert call(path, "x", {}) == 7
    assert len(tries) == 2


def test_a_path_that_cannot_be_a_socket_s_says_why() -> None:
    with pytest.raises(Unavailable, match="cannot reach the daemon: Not a directory"):
        call("/proc/self/status/control", "x", {})


def test_descriptors_come_with_the_answer_and_no_child_inherits_them(path: str) -> None:
    receiver, sender = os.pipe()
    with answering(path, b'{"result": {}}\n', descriptors=(receiver, sender)):
        answer, got = call_for_descriptors(path, "take_over", timeout_s=30)
    assert answer == {}
    assert len(got) == 2
    assert not any(os.get_inheritable(descriptor) for descriptor in got)
    os.write(got[1], b"through")
    assert os.read(receiver, 100) == b"through"
    for descriptor in (*got, receiver, sender):
        os.close(descriptor)


def test_an_error_instead_of_descriptors_is_raised(path: str) -> None:
    with (
        answering(path, b'{"error": "not for you", "kind": "NotFound"}\n'),
        pytest.raises(NotFound, match="not for you"),
    ):
        call_for_descriptors(path, "take_over", timeout_s=30)
    os.unlink(path)
    with answering(path, b'{"resu'), pytest.raises(Unavailable, match="does not answer"):
        call_for_descriptors(path, "take_over", timeout_s=30)
