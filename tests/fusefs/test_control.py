"""The control socket: requests and answers, progress, strangers, clients that leave."""

import contextlib
import errno
import json
import os
import pathlib
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio

from fusefs import control, control_client
from fusefs.control import ControlServer, Progress, Verb
from metadata.errors import Corrupt, InvalidRequest, NotFound, Unavailable, VdiskfsError

Client = Callable[[str], Awaitable[None]]


async def echo(arguments: dict[str, Any], progress: Progress) -> object:
    return arguments


async def count(arguments: dict[str, Any], progress: Progress) -> object:
    for done in range(3):
        progress({"done": done})
    return "counted"


async def fail(arguments: dict[str, Any], progress: Progress) -> object:
    raise Corrupt("a block does not match its checksum\noffset=4096")


async def stumble(arguments: dict[str, Any], progress: Progress) -> object:
    raise ZeroDivisionError


VERBS: dict[str, Verb] = {"echo": echo, "count": count, "fail": fail, "stumble": stumble}


def serve(
    tmp_path: pathlib.Path, client: Client, *, verbs: Mapping[str, Verb] = VERBS, uid: int | None = None
) -> None:
    """Run a server, and a client until it is done."""
    path = str(tmp_path / "control.sock")

    async def main() -> None:
        server = ControlServer(verbs, path=path, uid=os.geteuid() if uid is None else uid)
        async with trio.open_nursery() as nursery:
            await nursery.start(server.run)
            await client(path)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert not os.path.exists(path)


async def call(socket_path: str, verb: str, **arguments: object) -> Any:
    return await trio.to_thread.run_sync(control_client.call, socket_path, verb, arguments)


async def exchange(path: str, request: bytes) -> list[dict[str, Any]]:
    """Every answer to raw bytes."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(request)
        answers = b""
        with contextlib.suppress(trio.BrokenResourceError):  # closed with some of the request unread
            async for piece in stream:
                answers += piece
    return [json.loads(line) for line in answers.splitlines()]


def test_a_verb_gets_its_arguments_and_gives_its_result(tmp_path: pathlib.Path) -> None:
    async def client(path: str) -> None:
        odd = "\udcff é\n"
        assert await call(path, "echo", path=odd, number=1 << 70) == {"path": odd, "number": 1 << 70}
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600

    serve(tmp_path, client)


def test_a_large_result_arrives_whole(tmp_path: pathlib.Path) -> None:
    async def much(arguments: dict[str, Any], progress: Progress) -> object:
        return ["x" * 1000] * 5000

    async def client(path: str) -> None:
        assert await call(path, "much") == ["x" * 1000] * 5000

    serve(tmp_path, client, verbs={"much": much})


def test_progress_comes_before_the_result(tmp_path: pathlib.Path) -> None:
    async def client(path: str) -> None:
        seen: list[dict[str, Any]] = []
        result = await trio.to_thread.run_sync(
            lambda: control_client.call(path, "count", {}, progress=seen.append)
        )
        assert (result, seen) == ("counted", [{"done": 0}, {"done": 1}, {"done": 2}])

    serve(tmp_path, client)


def test_a_slow_client_misses_progress_and_not_the_result(tmp_path: pathlib.Path) -> None:
    async def chatter(arguments: dict[str, Any], progress: Progress) -> object:
        for done in range(100_000):
            progress({"done": done})
        return "done"

    async def client(path: str) -> None:
        answers = await exchange(path, b'{"verb": "chatter"}\n')
        assert answers[-1] == {"result": "done"}
        assert len(answers) < 100

    serve(tmp_path, client, verbs={"chatter": chatter})


def test_an_error_is_raised_again_in_the_client(tmp_path: pathlib.Path) -> None:
    async def client(path: str) -> None:
        with pytest.raises(Corrupt, match="a block does not match its checksum offset=4096") as caught:
            await call(path, "fail")
        assert caught.value.number == errno.EIO

    serve(tmp_path, client)


def test_an_unexpected_failure_is_logged_and_told_without_a_traceback(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def client(path: str) -> None:
        with pytest.raises(VdiskfsError, match="internal error"):
            await call(path, "stumble")
        assert await call(path, "echo") == {}  # it goes on

    serve(tmp_path, client)
    assert [record.exc_info is not None for record in caplog.records] == [True]
    caplog.clear()


@pytest.mark.parametrize(
    "request_line",
    [
        b"\n",
        b"[]\n",
        b"{}\n",
        b'"verb"\n',
        b'{"verb": "nonesuch"}\n',
        b'{"verb": ["echo"]}\n',
        b"\xff\n",
        b"x" * 200_000,
    ],
)
def test_what_is_no_request_gets_one_line(tmp_path: pathlib.Path, request_line: bytes) -> None:
    async def client(path: str) -> None:
        (answer,) = await exchange(path, request_line)
        assert (answer["kind"], answer["errno"]) == ("InvalidRequest", errno.EINVAL)
        assert await call(path, "echo") == {}

    serve(tmp_path, client)


def test_a_client_that_says_nothing_is_sent_away(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_S_MAX", 0.01)

    async def client(path: str) -> None:
        (answer,) = await exchange(path, b"")
        assert answer["error"] == "no request arrived"

    serve(tmp_path, client)


def test_a_client_that_hangs_up_cancels_its_verb(tmp_path: pathlib.Path) -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def endless(arguments: dict[str, Any], progress: Progress) -> object:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def client(path: str) -> None:
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(b'{"verb": "endless"}\n')
            await started.wait()
        await cancelled.wait()
        assert await call(path, "echo") == {}

    serve(tmp_path, client, verbs={"endless": endless, "echo": echo})


def test_too_many_clients_at_once_are_told_so(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "CONNECTIONS_MAX", 1)

    async def client(path: str) -> None:
        async with await trio.open_unix_socket(path):
            with pytest.raises(Unavailable, match="too many"):
                await call(path, "echo")

    serve(tmp_path, client)


@pytest.mark.root
def test_another_user_s_process_is_refused_even_if_it_gets_at_the_socket(tmp_path: pathlib.Path) -> None:
    def stranger(path: str) -> dict[str, Any]:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            child = os.fork()
            if child == 0:
                os.setresuid(65534, 65534, 65534)
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(path)
                    theirs.send(connection.recv(1000))
                os._exit(0)
            os.waitpid(child, 0)
            answer: dict[str, Any] = json.loads(ours.recv(1000))
            return answer

    async def client(path: str) -> None:
        for folder in (tmp_path, *tmp_path.parents):
            if folder.stat().st_uid == os.geteuid() and str(folder) not in ("/", "/tmp"):
                folder.chmod(folder.stat().st_mode | 0o011)
        os.chmod(path, 0o666)
        answer = await trio.to_thread.run_sync(stranger, path)
        assert (answer["errno"], answer["kind"]) == (errno.EPERM, "InvalidRequest")

    serve(tmp_path, client, uid=1000)


def test_a_socket_left_by_a_dead_daemon_is_replaced(tmp_path: pathlib.Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control.sock"))

    async def client(path: str) -> None:
        assert await call(path, "echo") == {}

    serve(tmp_path, client)


def test_a_socket_that_cannot_be_made_is_said(tmp_path: pathlib.Path) -> None:
    async def client(path: str) -> None:
        raise AssertionError("not reached")

    with pytest.raises(BaseExceptionGroup) as caught:
        serve(tmp_path / "absent", client)
    assert caught.group_contains(Unavailable, match="cannot make the control socket")


def test_a_daemon_that_is_not_there_is_waited_for_and_then_said(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_client, "RETRY_S", 0.0)
    with pytest.raises(Unavailable, match="does not answer"):
        control_client.call(str(tmp_path / "absent.sock"), "echo", {})


def answer_with(tmp_path: pathlib.Path, answer: bytes) -> Any:
    """What the client makes of a server that says ``answer`` and hangs up."""
    path = str(tmp_path / "odd.sock")

    async def main() -> Any:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path)
            listening.listen()

            def serve_once() -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(1000)
                    connection.sendall(answer)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.to_thread.run_sync, serve_once)
                try:
                    return await call(path, "echo"), None
                except VdiskfsError as problem:
                    return None, problem

    return trio.run(main)


@pytest.mark.parametrize(
    "answer", [b"", b"nonsense\n", b"[]\n", b"{}\n", b"null\n", b'{"result": 1', b'{"progress": {}}\n']
)
def test_a_broken_answer_is_one_error(tmp_path: pathlib.Path, answer: bytes) -> None:
    _, problem = answer_with(tmp_path, answer)
    assert isinstance(problem, Unavailable)


def test_an_error_of_an_unknown_kind_is_still_an_error(tmp_path: pathlib.Path) -> None:
    for kind in (b'"annotations"', b'"errno"', b"7", b"null", b'"VdiskfsError"'):
        _, problem = answer_with(tmp_path, b'{"error": "why", "kind": %b, "errno": 28}\n' % kind)
        os.unlink(tmp_path / "odd.sock")
        assert (str(problem), problem.number) == ("why", 28)
    _, problem = answer_with(tmp_path, b'{"error": "gone", "kind": "NotFound"}\n')
    assert isinstance(problem, NotFound)
    assert not isinstance(problem, InvalidRequest)
