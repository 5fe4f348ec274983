"""Links between nodes over real sockets: calls, errors, deadlines, ends; and everybody who has no business there."""

import datetime
import logging
import pathlib
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import pytest
import trio
import trio.testing

from metadata.errors import InvalidRequest, NotOwner, Unavailable
from replication import links as links_module
from replication import wire
from replication.certificates import Signed, make_certificate
from replication.cluster import CALL_DATA_BYTES_MAX, Answer, Member
from replication.credentials import Credentials
from replication.links import NodeLinks
from replication.secure_stream import QUEUE_BYTES_MAX, secure_context
from replication.wire import Hello, encode_answer, encode_hello
from tests.replication.linked_nodes import Linked, join, linked

Scenario = Callable[[], Awaitable[None]]


def run(scenario: Scenario) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            await scenario()

    trio.run(main)


class TestCalls:
    def test_a_call_is_answered_by_the_node_that_is_asked(self, tmp_path: pathlib.Path) -> None:
        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one", "two")) as nodes:
                one, two = nodes.links["one"], nodes.links["two"]
                named = {"vdisk": 2**60, "list": [1, None, "text", b"bytes"]}
                answer = await one.call("two", "echo", named, b"data", deadline_s=5)
                assert answer == ({"from": "one", **named}, b"data")
                assert (await two.call("one", "echo", {}, deadline_s=5))[0] == {"from": "two"}

        run(scenario)

    def test_errors_cross_and_so_does_what_is_no_error_of_ours(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def refuse(node: str, _arguments: Mapping[str, Any], _data: bytes) -> Answer:
            raise NotOwner(f"not for {node}", number=11)

        async def fail(_node: str, _arguments: Mapping[str, Any], _data: bytes) -> Answer:
            raise ZeroDivisionError

        async def say_too_much(_node: str, _arguments: Mapping[str, Any], _data: bytes) -> Answer:
            return {}, bytes(2 * CALL_DATA_BYTES_MAX)

        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one", "two")) as nodes:
                one, two = nodes.links["one"], nodes.links["two"]
                two.serve("refuse", refuse)
                two.serve("fail", fail)
                two.serve("say_too_much", say_too_much)
                with pytest.raises(NotOwner, match="not for one") as caught:
                    await one.call("two", "refuse", {}, deadline_s=5)
                assert caught.value.number == 11
                with pytest.raises(Unavailable, match=r"unexpectedly.*ZeroDivisionError"):
                    await one.call("two", "fail", {}, deadline_s=5)
                with pytest.raises(InvalidRequest, match="too much for one message"):
                    await one.call("two", "say_too_much", {}, deadline_s=5)
                with pytest.raises(InvalidRequest, match="does not know the call verb='unheard'"):
                    await one.call("two", "unheard", {}, deadline_s=5)
                await one.call("two", "echo", {}, deadline_s=5)

        run(scenario)
        assert [record.levelname for record in caplog.records if record.exc_info] == ["ERROR"]
        caplog.clear()

    def test_calls_overtake_each_other_and_a_late_answer_is_nobodys(self, tmp_path: pathlib.Path) -> None:
        async def scenario() -> None:
            may_answer = trio.Event()

            async def wait(_node: str, _arguments: Mapping[str, Any], _data: bytes) -> Answer:
                await may_answer.wait()
                return {"late": True}, b""

            async with linked(*await join(tmp_path, "one", "two")) as nodes:
                one = nodes.links["one"]
                nodes.links["two"].serve("wait", wait)
                with pytest.raises(Unavailable, match="does not answer node=two verb=wait"):
                    await one.call("two", "wait", {}, deadline_s=0.05)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: one.call("two", "wait", {}, deadline_s=5))
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    assert (await one.call("two", "echo", {"n": 1}, deadline_s=5))[0]["n"] == 1
                    may_answer.set()
                assert (await one.call("two", "echo", {"n": 2}, deadline_s=5))[0]["n"] == 2

        run(scenario)

    def test_many_calls_of_all_sizes_get_their_own_answers(self, tmp_path: pathlib.Path) -> None:
        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one", "two")) as nodes:
                one = nodes.links["one"]
                answered = []

                async def ask(number: int) -> None:
                    data = number.to_bytes(4, "big") * (1, 1000, 70000, CALL_DATA_BYTES_MAX // 4)[number % 4]
                    named, back = await one.call("two", "echo", {"number": number}, data, deadline_s=20)
                    assert (named["number"], back) == (number, data)
                    answered.append(number)

                async with trio.open_nursery() as nursery:
                    for number in range(300):  # more than are let through at once
                        nursery.start_soon(ask, number)
                assert sorted(answered) == list(range(300))
                small = [number for number in answered if number % 4 == 0]
                large = [number for number in answered if number % 4 == 3]
                assert answered.index(small[-1]) < answered.index(large[-1])

        run(scenario)


class TestEnds:
    def test_calls_fail_at_once_when_the_connection_breaks(self, tmp_path: pathlib.Path) -> None:
        async def never(_node: str, _arguments: Mapping[str, Any], _data: bytes) -> Answer:
            await trio.sleep_forever()
            raise AssertionError

        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one", "two")) as nodes:
                one = nodes.links["one"]
                nodes.links["two"].serve("never", never)
                errors = []

                async def ask() -> None:
                    with pytest.raises(Unavailable, match="connection to the node broke"):
                        await one.call("two", "never", {}, deadline_s=1000)
                    errors.append(1)

                async with trio.open_nursery() as nursery:
                    nursery.start_soon(ask)
                    nursery.start_soon(ask)
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    await nodes.stop("two")
                assert len(errors) == 2

        run(scenario)

    def test_a_node_that_comes_back_is_found_at_its_new_port(self, tmp_path: pathlib.Path) -> None:
        async def scenario() -> None:
            one, two = await join(tmp_path, "one", "two")
            async with linked(one, two) as nodes:
                caller = nodes.links["one"]
                await caller.call("two", "echo", {}, deadline_s=5)
                await nodes.stop("two")
                for _ in range(3):  # the first finds it broken, the others that nobody listens, or back off
                    with pytest.raises(Unavailable):
                        await caller.call("two", "echo", {}, deadline_s=5)
                await nodes.start(two)
                assert (await caller.call("two", "echo", {"n": 1}, deadline_s=5))[0]["n"] == 1

        run(scenario)

    def test_a_node_without_a_session_is_not_called(self, tmp_path: pathlib.Path) -> None:
        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one")) as nodes:
                with pytest.raises(Unavailable, match="the node is not there node=two"):
                    await nodes.links["one"].call("two", "echo", {}, deadline_s=5)

        run(scenario)

    def test_what_was_begun_is_carried_out_though_the_caller_is_gone(self, tmp_path: pathlib.Path) -> None:
        async def scenario() -> None:
            may_go_on, is_done = trio.Event(), trio.Event()

            async def change(_node: str, _arguments: Mapping[str, Any], _data: bytes) -> Answer:
                await may_go_on.wait()
                is_done.set()
                return {}, b""

            async with linked(*await join(tmp_path, "one", "two")) as nodes:
                nodes.links["two"].serve("change", change)
                with pytest.raises(Unavailable):
                    await nodes.links["one"].call("two", "change", {}, deadline_s=0.05)
                await nodes.stop("one")
                may_go_on.set()
                await is_done.wait()

        run(scenario)


class TestASlowNode:
    def test_one_that_reads_nothing_costs_its_callers_their_deadline_and_others_nothing(
        self, tmp_path: pathlib.Path
    ) -> None:
        async def scenario() -> None:
            one, two, slow = await join(tmp_path, "one", "two", "slow")
            with socket.create_server(("127.0.0.1", 0)) as listener:

                def say_hello_and_no_more() -> ssl.SSLSocket:
                    connected, _ = listener.accept()
                    secured = secure_context(slow, answers=True).wrap_socket(connected, server_side=True)
                    assert secured.recv(1000)
                    secured.sendall(encode_hello(Hello(slow.cluster, "slow", "slow")))
                    return secured

                async with linked(one, two) as nodes:
                    caller = nodes.links["one"]
                    port = listener.getsockname()[1]
                    nodes.members["slow"] = Member("slow", "127.0.0.1", port, "slow")
                    connections, gave_up = list[ssl.SSLSocket](), list[int]()

                    async def accept() -> None:
                        connections.append(await trio.to_thread.run_sync(say_hello_and_no_more))

                    async def ask(number: int) -> None:
                        with pytest.raises(Unavailable, match="does not answer node=slow"):
                            await caller.call("slow", "echo", {}, bytes(CALL_DATA_BYTES_MAX), deadline_s=1)
                        gave_up.append(number)

                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(accept)
                        for number in range(40):  # 44 MiB
                            nursery.start_soon(ask, number)
                        await trio.testing.wait_all_tasks_blocked(0.05)
                        for _ in range(20):
                            await caller.call("two", "echo", {}, bytes(1000), deadline_s=1)
                        side = caller._peers["slow"].side
                        assert side is not None
                        assert side._stream.queued_bytes <= QUEUE_BYTES_MAX + 2 * CALL_DATA_BYTES_MAX
                    assert len(gave_up) == 40
                    connections[0].close()

        run(scenario)


async def heard(caplog: pytest.LogCaptureFixture, words: str, *, count: int = 1) -> None:
    """Waits for the lines with these words in the log: so many, and no more."""
    while sum(words in message for message in caplog.messages) < count:
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert sum(words in message for message in caplog.messages) == count


def expired(folder: pathlib.Path, node: str) -> Credentials:
    """A certificate of yesterday, of the same cluster."""
    authority = Signed(
        (folder / "authority" / "authority.key").read_text(),
        (folder / "authority" / "authority.pem").read_text(),
    )
    cluster = (folder / node / "node.pem").read_text().split()[1]
    long_ago = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=3)
    made = make_certificate(authority, cluster, node, now=long_ago, days=2)
    path = folder / f"{node}-expired.pem"
    path.write_text(made.key + made.certificate)
    return Credentials(cluster, node, str(path), authority.certificate, 0.0)


class TestWhoIsNotLetIn:
    @pytest.fixture(autouse=True)
    def _warnings(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)

    def ask(self, nodes: Linked, *, match: str) -> Callable[[], Awaitable[None]]:
        async def ask() -> None:
            with pytest.raises(Unavailable, match=match):
                await nodes.links["guest"].call("one", "echo", {}, deadline_s=10)

        return ask

    def test_a_node_of_another_cluster_is_refused_on_both_sides(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            (one,) = await join(tmp_path / "ours", "one")
            (guest,) = await join(tmp_path / "theirs", "guest")
            async with linked(one, guest) as nodes:
                await self.ask(
                    nodes, match="no connection to the node: its certificate is another cluster's"
                )()
                await heard(caplog, "refused a connection: it knows our certificate as another cluster's")

        run(scenario)

    def test_another_clusters_certificate_is_refused_though_it_trusts_ours(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            (one,) = await join(tmp_path / "ours", "one")
            (guest,) = await join(tmp_path / "theirs", "guest")
            sly = Credentials(guest.cluster, "guest", guest.path, one.authority, guest.expires)
            async with linked(one, sly) as nodes:
                await self.ask(nodes, match="it knows our certificate as another cluster's")()
                await heard(caplog, "refused a connection: its certificate is another cluster's")

        run(scenario)

    def test_an_expired_certificate_is_refused_on_both_sides(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            one, _ = await join(tmp_path, "one", "guest")
            async with linked(one, expired(tmp_path, "guest")) as nodes:
                await self.ask(nodes, match="it says that our certificate has expired")()
                with pytest.raises(Unavailable, match="its certificate has expired"):
                    await nodes.links["one"].call("guest", "echo", {}, deadline_s=10)
                await heard(caplog, "refused a connection: its certificate has expired")

        run(scenario)

    def test_a_certificate_made_by_a_clock_a_day_ahead_is_good(self, tmp_path: pathlib.Path) -> None:
        async def scenario() -> None:
            one, guest = await join(tmp_path, "one", "guest")
            folder = tmp_path / "authority"
            authority = Signed((folder / "authority.key").read_text(), guest.authority)
            tomorrow = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)
            made = make_certificate(authority, guest.cluster, "guest", now=tomorrow)
            pathlib.Path(guest.path).write_text(made.key + made.certificate)
            async with linked(one, guest) as nodes:
                await nodes.links["guest"].call("one", "echo", {}, deadline_s=5)

        run(scenario)

    def test_a_node_of_another_protocol_version_hears_so_and_so_do_we(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one", "guest")) as nodes:
                guest = nodes.links["guest"]
                monkeypatch.setattr(guest, "_hello", Hello(guest._hello.cluster, "guest", "guest", 2))
                words = (
                    "refuses this node: the nodes speak different protocols.* ours is 1, the other side's 2"
                )
                await self.ask(nodes, match=words)()
                await heard(caplog, "refused a connection: the nodes speak different")

        run(scenario)

    def test_a_node_that_says_it_is_another_is_refused(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one", "guest")) as nodes:
                guest = nodes.links["guest"]
                monkeypatch.setattr(guest, "_hello", Hello(guest._hello.cluster, "other", "guest"))
                await self.ask(nodes, match="says it is 'other', its certificate is of 'guest'")()
                await heard(caplog, "refused a connection: it says it is 'other'")

        run(scenario)

    def test_a_second_node_of_our_name_is_refused_and_a_wrong_one_not_believed(
        self, tmp_path: pathlib.Path
    ) -> None:
        async def scenario() -> None:
            one, two = await join(tmp_path, "one", "two")
            async with linked(one, two) as nodes:
                first = nodes.links["one"]
                nodes.members["three"] = Member("three", "127.0.0.1", nodes.links["two"].port, "three")
                with pytest.raises(Unavailable, match="another node is there: 'two'"):
                    await first.call("three", "echo", {}, deadline_s=5)
                first_member = nodes.members["one"]
                await nodes.start(one, identity="copy")
                nodes.members["one"] = first_member
                with pytest.raises(Unavailable, match="it has this node's name and is not this node"):
                    await nodes.links["one"].call("one", "echo", {}, deadline_s=5)

        run(scenario)


class Stranger:
    """Somebody with a plain socket, and perhaps a certificate."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=10)

    def say(self, data: bytes) -> None:
        self.socket.sendall(data)

    def hears_the_end(self) -> bool:
        """Whether the node has ended the connection, whatever it said before."""
        try:
            while self.socket.recv(65536):
                pass
        except ConnectionResetError:
            pass
        self.socket.close()
        return True


class TestStrangers:
    @pytest.fixture(autouse=True)
    def _warnings(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.WARNING)

    @pytest.mark.parametrize(
        "garbage",
        [b"GET / HTTP/1.1\r\n\r\n", bytes(1000), b"\x16\x03\x01\xff\xff" + bytes(600), b"\xff" * 70000],
        ids=["http", "zeros", "a torn hello of TLS", "ones"],
    )
    def test_garbage_on_the_port_ends_with_one_line(
        self, garbage: bytes, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one", "two")) as nodes:
                stranger = Stranger(nodes.links["one"].port)
                stranger.say(garbage)
                assert await trio.to_thread.run_sync(stranger.hears_the_end)
                await nodes.links["two"].call("one", "echo", {}, deadline_s=5)
                await heard(caplog, "refused a connection")

        run(scenario)

    def test_nobody_without_a_certificate_gets_an_answer(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one")) as nodes:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                stranger = Stranger(nodes.links["one"].port)

                def speak() -> bytes:
                    with context.wrap_socket(stranger.socket) as secured:
                        secured.sendall(encode_hello(Hello("c", "one", "i")))
                        return secured.recv(1000)

                with pytest.raises(ssl.SSLError, match=r"(?i)certificate.required"):
                    await trio.to_thread.run_sync(speak)
                await heard(caplog, "refused a connection: it has no certificate")

        run(scenario)

    @pytest.mark.parametrize("knows_hello", [False, True])
    def test_a_frame_of_4_gib_is_refused_when_it_is_announced(
        self, knows_hello: bool, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            one, two = await join(tmp_path, "one", "two")
            async with linked(one) as nodes:
                stranger = Stranger(nodes.links["one"].port)

                def speak() -> None:
                    with secure_context(two, answers=False).wrap_socket(stranger.socket) as secured:
                        if knows_hello:
                            secured.sendall(encode_hello(Hello(two.cluster, "two", "i")))
                            assert secured.recv(1000)
                        secured.sendall(b"\xff\xff\xff\xff" + bytes(100))
                        try:
                            assert not secured.recv(1000)
                        except (ssl.SSLError, ConnectionResetError):
                            pass

                await trio.to_thread.run_sync(speak)
                await heard(caplog, "a message of 4294967295 bytes is announced")

        run(scenario)

    def test_garbage_after_the_hello_ends_the_connection_and_nothing_else(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            one, two, three = await join(tmp_path, "one", "two", "three")
            async with linked(one, three) as nodes:
                for garbage in (b"\0\0\1\0" + b"\xc1" * 256, encode_answer(1, {}, b"")):
                    stranger = Stranger(nodes.links["one"].port)

                    def speak(stranger: Stranger = stranger, told: bytes = garbage) -> None:
                        with secure_context(two, answers=False).wrap_socket(stranger.socket) as secured:
                            secured.sendall(encode_hello(Hello(two.cluster, "two", "i")))
                            assert secured.recv(1000)
                            secured.sendall(told)
                            try:
                                secured.recv(1000)
                            except (ssl.SSLError, ConnectionResetError):
                                pass

                    await trio.to_thread.run_sync(speak)
                    await nodes.links["three"].call("one", "echo", {}, deadline_s=5)
                await heard(caplog, "gave up a connection", count=2)

        run(scenario)

    def test_a_thousand_that_say_nothing_keep_nobody_out(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one", "two")) as nodes:
                silent = []
                for number in range(1000):
                    silent.append(Stranger(nodes.links["one"].port))
                    if number % 50 == 49:
                        await trio.testing.wait_all_tasks_blocked(0.001)
                assert len(nodes.links["one"]._pending) <= links_module.PENDING_MAX
                await nodes.links["two"].call("one", "echo", {}, deadline_s=5)
                for stranger in silent:
                    stranger.socket.close()

        run(scenario)
        refused = [m for m in caplog.messages if "refused a connection" in m]
        assert 0 < len(refused) <= links_module.REFUSALS_LOGGED_MAX
        assert "too many say nothing at once" in refused[0]

    def test_one_that_says_nothing_is_dropped_after_a_while(
        self, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(links_module, "HELLO_S", 0.1)

        async def scenario() -> None:
            async with linked(*await join(tmp_path, "one")) as nodes:
                stranger = Stranger(nodes.links["one"].port)
                assert await trio.to_thread.run_sync(stranger.hears_the_end)
                await heard(caplog, "refused a connection: it says nothing")

        run(scenario)


def test_nothing_is_sent_in_clear(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        one, two = await join(tmp_path, "one", "two")
        async with linked(one, two) as nodes:
            seen = bytearray()
            listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
            real = nodes.members["two"]

            async def carry(source: trio.SocketStream, target: trio.SocketStream) -> None:
                async for data in source:
                    seen.extend(data)
                    await target.send_all(data)

            async def relay(stream: trio.SocketStream) -> None:
                onward = await trio.open_tcp_stream(real.host, real.port)
                async with stream, onward, trio.open_nursery() as nursery:
                    nursery.start_soon(carry, stream, onward)
                    nursery.start_soon(carry, onward, stream)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, relay, [listener])
                nodes.members["two"] = Member("two", "127.0.0.1", listener.socket.getsockname()[1], "two")
                await nodes.links["one"].call(
                    "two", "echo", {"word": "secret-word"}, b"secret-data", deadline_s=5
                )
                nursery.cancel_scope.cancel()
            assert len(seen) > 500
            assert b"secret" not in seen
            assert b"echo" not in seen
            assert one.cluster.encode() not in seen  # nor who they are

    run(scenario)


def test_an_address_that_is_not_ours_cannot_be_listened_on(tmp_path: pathlib.Path) -> None:
    async def scenario() -> None:
        (one,) = await join(tmp_path, "one")
        with pytest.raises(InvalidRequest, match=r"cannot listen for other nodes: .* host=203\.0\.113\.1"):
            async with NodeLinks(one, identity="i", host="203.0.113.1", port=0):
                pass

    run(scenario)


def test_the_protocol_number_is_the_one_that_these_tests_know() -> None:
    assert wire.PROTOCOL == 1
