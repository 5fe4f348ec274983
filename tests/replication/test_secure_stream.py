"""One connection under TLS: who is at its ends, what goes first, who waits, and how it ends."""

import math
import pathlib
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio
import trio.testing

from metadata.errors import Unavailable
from replication.secure_stream import (
    BROKEN,
    QUEUE_BYTES_MAX,
    SMALL_BYTES,
    SecureStream,
    explain,
    secure_context,
)
from tests.replication.linked_nodes import join
from tests.replication.rig import run
from tests.replication.secured_pair import connected, secured_pair

Body = Callable[[SecureStream, SecureStream], Awaitable[None]]


def with_pair(folder: pathlib.Path, body: Body) -> None:
    async def scenario() -> None:
        async with secured_pair(folder) as (one, two):
            await body(one, two)

    run(scenario)


async def receive(stream: SecureStream, count: float = math.inf) -> bytes:
    """So many bytes at least, or all until the end."""
    found = bytearray()
    while len(found) < count and (arrived := await stream.receive()):
        found += arrived
    return bytes(found)


def fill(stream: SecureStream) -> int:
    """Writes large messages until one has to wait; returns how many bytes that were."""
    written = 0
    while not stream.queued_bytes:
        stream.write_nowait(b"L" * (1 << 20))
        written += 1 << 20
    return written


def test_each_side_knows_the_other_s_cluster_and_node(tmp_path: pathlib.Path) -> None:
    async def body(one: SecureStream, two: SecureStream) -> None:
        cluster, node = one.peer_names()
        assert (cluster, node) == (two.peer_names()[0], "two")
        assert two.peer_names()[1] == "one"
        assert cluster

    with_pair(tmp_path, body)


def test_a_message_that_finds_the_socket_free_is_sent_without_a_task(tmp_path: pathlib.Path) -> None:
    async def body(one: SecureStream, two: SecureStream) -> None:
        for source, target in ((one, two), (two, one)):
            source.write_nowait(b"first")
            source.write_nowait(b"second")
            assert source.queued_bytes == 0
            assert await receive(target, 11) == b"firstsecond"

    with_pair(tmp_path, body)


@pytest.mark.parametrize(("size", "overtakes"), [(SMALL_BYTES, True), (SMALL_BYTES + 1, False)])
def test_what_has_to_wait_is_sent_by_run_and_the_small_before_the_large(
    tmp_path: pathlib.Path, size: int, overtakes: bool
) -> None:
    async def body(one: SecureStream, two: SecureStream) -> None:
        before = fill(one) - one.queued_bytes
        one.write_nowait(b"s" * size)
        assert one.queued_bytes == (1 << 20) + size
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.run)
            found = await receive(two, before + one.queued_bytes)
            nursery.cancel_scope.cancel()
        assert (found.count(b"L"), found.count(b"s")) == (before + (1 << 20), size)
        assert found.index(b"s") == (before if overtakes else before + (1 << 20))  # and no message is cut
        assert one.queued_bytes == 0

    with_pair(tmp_path, body)


def test_whoever_would_let_too_much_wait_waits_until_there_is_room(tmp_path: pathlib.Path) -> None:
    async def body(one: SecureStream, two: SecureStream) -> None:
        before = fill(one) - one.queued_bytes
        await one.wait_room()  # that one large message waits is not too much
        one.write_nowait(b"L" * QUEUE_BYTES_MAX)
        queued, let_on = one.queued_bytes, []

        async def wait() -> None:
            await one.wait_room()
            let_on.append(one.queued_bytes)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert let_on == []
            nursery.start_soon(one.run)
            await receive(two, before + queued)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        assert len(let_on) == 1
        assert let_on[0] <= QUEUE_BYTES_MAX

    with_pair(tmp_path, body)


def test_closing_wakes_whoever_waits_for_room_sends_or_receives(tmp_path: pathlib.Path) -> None:
    async def body(one: SecureStream, two: SecureStream) -> None:
        fill(one)
        one.write_nowait(b"L" * QUEUE_BYTES_MAX)
        ended = []

        async def fails(what: Callable[[], Awaitable[object]]) -> None:
            with pytest.raises(BROKEN):
                await what()
            ended.append(what)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.wait_room)
            nursery.start_soon(fails, one.run)
            nursery.start_soon(fails, one.receive)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert ended == []
            one.close()
            one.close()  # once is enough
        assert len(ended) == 2
        with pytest.raises(BrokenPipeError):
            one.write_nowait(b"more")
        with pytest.raises(BrokenPipeError):
            await one.receive()

    with_pair(tmp_path, body)


def test_a_receive_that_was_cancelled_has_lost_nothing(tmp_path: pathlib.Path) -> None:
    async def body(one: SecureStream, two: SecureStream) -> None:
        with trio.move_on_after(0.01):
            await two.receive()
        one.write_nowait(b"message")
        assert await receive(two, 7) == b"message"

    with_pair(tmp_path, body)


def test_the_last_words_arrive_and_then_the_other_side_hung_up(tmp_path: pathlib.Path) -> None:
    async def body(one: SecureStream, two: SecureStream) -> None:
        one.write_nowait(b"last words")

        async def leave() -> None:
            await one.linger(10)
            one.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)
            assert await receive(two, 10) == b"last words"
            with pytest.raises(ssl.SSLEOFError) as caught:
                await two.receive()
            assert explain(caught.value) == "it hung up"
            two.close()

    with_pair(tmp_path, body)


def test_nobody_lingers_for_longer_than_allowed(tmp_path: pathlib.Path) -> None:
    async def body(one: SecureStream, two: SecureStream) -> None:
        await one.linger(0.01)  # two neither reads nor goes

    with_pair(tmp_path, body)


def test_bytes_that_are_no_tls_are_an_error_and_no_message(tmp_path: pathlib.Path) -> None:
    async def body(one: SecureStream, two: SecureStream) -> None:
        one._socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))  # a record that nobody has encrypted
        with pytest.raises(ssl.SSLError):
            await two.receive()

    with_pair(tmp_path, body)


def test_an_older_tls_is_not_spoken(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        one, two = await join(tmp_path, "one", "two")
        old = secure_context(one, answers=False)
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_2
        dialling, dialled = connected()
        caller = SecureStream(dialling, old, answers=False)
        answerer = SecureStream(dialled, secure_context(two, answers=True), answers=True)
        heard = []

        async def refuse(stream: SecureStream) -> None:
            with pytest.raises(ssl.SSLError) as caught:
                await stream.shake_hands()
            heard.append(explain(caught.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse, caller)
            nursery.start_soon(refuse, answerer)
        assert heard == ["it speaks another version of TLS"] * 2
        caller.close()
        answerer.close()

    run(scenario)


def test_a_certificate_that_cannot_be_used_is_named(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        (one,) = await join(tmp_path, "one")
        for wrong in (replace(one, path=str(tmp_path / "missing.pem")), replace(one, authority="nonsense")):
            with pytest.raises(Unavailable, match=rf"certificate cannot be used.*file={wrong.path}"):
                secure_context(wrong, answers=True)

    run(scenario)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert certificate required", "none was shown"),
        ("[SSL: PEER_DID_NOT_RETURN_A_CERTIFICATE] peer did not", "it has no certificate"),
        ("[SSL: TLSV1_ALERT_UNKNOWN_CA] tlsv1 alert unknown ca", "it knows our certificate as another"),
        ("[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] alert", "it says that our certificate has expired"),
        ("[SSL: SSLV3_ALERT_BAD_CERTIFICATE] alert", "it does not take our certificate"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate has expired", "its certificate has expired"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate is not yet valid", "one of the clocks is wrong"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self signed", "its certificate is another cluster's"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "it does not speak TLS as nodes do"),
    ],
)
def test_what_ssl_says_is_put_into_an_operator_s_words(said: str, words: str) -> None:
    assert words in explain(ssl.SSLError(1, said))
