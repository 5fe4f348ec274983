"""The way to the other nodes: one listener, one connection to each node that is called, made when it is needed.

    dial -> TLS, both proven -> hello there -> hello back, or a refusal in words -> calls and answers

Before its hello has been answered a connection is *pending*: it has a deadline, and of too many the oldest goes.
A node is called at the address in its session. One that cannot be reached is left alone for a moment, longer each time,
and calls fail at once meanwhile; a new session ends that.
"""

import logging
import socket
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import trio

from metadata.errors import Corrupt, InvalidRequest, Unavailable
from replication.cluster import CALL_DATA_BYTES_MAX, Answer, Handler, Immediate, Member, Membership
from replication.connection import AnsweringSide, CallingSide, Reader, reason
from replication.credentials import Credentials
from replication.secure_stream import BROKEN, SecureStream, secure_context
from replication.wire import PROTOCOL, Hello, Message, Refused, encode_hello, encode_refused

HELLO_S = 5.0
"""From the connection's beginning to its hello's answer."""
PENDING_MAX = 64
"""Connections without a hello at once; each costs some 100 KiB."""
ANSWERED_MAX = 1024
"""Connections of other nodes at once: one a node."""
LINGER_S = 1.0
BACK_OFF_S, BACK_OFF_S_MAX = 0.05, 1.0
REFUSALS_LOGGED_MAX = 20
"""Lines about refused connections in one ``REFUSALS_S``; the others are counted."""
REFUSALS_S = 60.0
BACKLOG = 256

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Peer:
    """A node that is called."""

    lock: trio.Lock = field(default_factory=trio.Lock)
    """One dials at a time."""
    side: CallingSide | None = None
    member: Member | None = None
    retry_at: float = 0.0
    back_off_s: float = 0.0
    problem: str = ""


class NodeLinks:
    """One node's links. Entered with ``async with``, which binds the listener; ``run`` serves it."""

    def __init__(self, credentials: Credentials, *, identity: str, host: str, port: int) -> None:
        self.host, self.port = host, port
        """Where other nodes find this one; the port is known after entering."""
        self._credentials = credentials
        self._hello = Hello(credentials.cluster, credentials.node, identity)
        self._handlers: dict[str, tuple[Handler, Immediate | None]] = {}
        self._peers: dict[str, _Peer] = {}
        self._pending = OrderedDict[SecureStream, None]()
        self._answering: dict[str, AnsweringSide] = {}
        self._membership: Membership | None = None
        self._nursery: trio.Nursery | None = None
        self._refusals = _Refusals()

    async def __aenter__(self) -> Self:
        """
        Raises:
            InvalidRequest: the address cannot be listened on.
            Unavailable: the node's certificate cannot be used.
        """
        self._calling = secure_context(self._credentials, answers=False)
        self._called = secure_context(self._credentials, answers=True)
        try:
            self._listeners = await trio.open_tcp_listeners(self.port, host=self.host, backlog=BACKLOG)
        except OSError as exc:
            raise InvalidRequest(
                f"cannot listen for other nodes: {exc.strerror or exc} host={self.host} port={self.port}"
            ) from exc
        for unused in self._listeners[1:]:  # a name with several addresses: the first is announced
            unused.socket.close()
        self._listener = self._listeners[0]
        self.port = self._listener.socket.getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.socket.close()
        await trio.lowlevel.checkpoint_if_cancelled()

    def serve(self, verb: str, handler: Handler, *, at_once: Immediate | None = None) -> None:
        assert verb not in self._handlers, f"served twice verb={verb}"
        self._handlers[verb] = handler, at_once

    async def run(self, membership: Membership) -> None:
        """Answers, and lets call, until cancelled."""
        self._membership = membership
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                while True:
                    await self._accept(nursery)
        finally:
            self._nursery = None
            for peer in self._peers.values():
                peer.side = None

    async def call(
        self, node: str, verb: str, arguments: Mapping[str, object], data: bytes = b"", *, deadline_s: float
    ) -> Answer:
        assert len(data) <= CALL_DATA_BYTES_MAX
        peer = self._peers.get(node)
        with trio.move_on_after(deadline_s):
            if peer is None or peer.side is None or peer.side.is_over:
                side = await self._dial(node)
            else:
                side = peer.side
            return await side.call(verb, arguments, data)
        raise Unavailable(f"the node does not answer node={node} verb={verb} deadline_s={deadline_s:g}")

    # Calling.

    async def _dial(self, node: str) -> CallingSide:
        peer = self._peers.setdefault(node, _Peer())
        async with peer.lock:
            if peer.side is not None and not peer.side.is_over:
                return peer.side
            member = self._membership.members().get(node) if self._membership is not None else None
            if member is None or self._nursery is None:
                raise Unavailable(f"the node is not there node={node}")
            if member != peer.member:
                peer.member, peer.retry_at, peer.back_off_s = member, 0.0, 0.0
            if trio.current_time() < peer.retry_at:
                raise Unavailable(peer.problem)
            try:
                peer.side = await self._connect(member)
            except (*BROKEN, Corrupt, trio.TooSlowError) as exc:
                why = "it does not answer" if isinstance(exc, trio.TooSlowError) else reason(exc)
                problem = (
                    f"no connection to the node: {why} node={node} host={member.host} port={member.port}"
                )
                if problem != peer.problem:
                    log.warning("%s", problem)
                peer.problem = problem
                peer.back_off_s = min(max(BACK_OFF_S, 2 * peer.back_off_s), BACK_OFF_S_MAX)
                peer.retry_at = trio.current_time() + peer.back_off_s
                raise Unavailable(problem) from exc
            peer.problem, peer.back_off_s = "", 0.0
            self._nursery.start_soon(peer.side.run)
            return peer.side

    async def _connect(self, member: Member) -> CallingSide:
        """A connection whose hello was answered."""
        async with AsyncExitStack() as stack:
            with trio.fail_after(HELLO_S):
                connected = await trio.open_tcp_stream(member.host, member.port)
                plain = socket.socket(fileno=connected.socket.detach())
                stream = SecureStream(plain, self._calling, answers=False)
                stack.callback(stream.close)
                await stream.shake_hands()
                reader = Reader(stream)
                stream.write_nowait(encode_hello(self._hello))
                answers = await reader.receive()
            answer = answers[0] if answers else None
            if isinstance(answer, Refused):
                raise Corrupt(f"it refuses this node: {answer.line}")
            found = self._problem_with(answer, stream, node=member.node)
            if found:
                raise Corrupt(found)
            reader.take_long_ones()
            stack.pop_all()
            return CallingSide(stream, reader, node=member.node)

    # Answering.

    async def _accept(self, nursery: trio.Nursery) -> None:
        try:
            accepted = await self._listener.accept()
            host, port = accepted.socket.getpeername()[:2]
            plain = socket.socket(fileno=accepted.socket.detach())
        except OSError as exc:  # out of descriptors or memory, or the other side was quicker
            log.warning("cannot accept a connection: %s", exc)
            await trio.sleep(BACK_OFF_S)
            return
        stream = SecureStream(plain, self._called, answers=True)
        self._pending[stream] = None
        if len(self._pending) > PENDING_MAX:
            oldest, _ = self._pending.popitem(last=False)
            oldest.close()
        nursery.start_soon(self._welcome, stream, f"{host}:{port}")

    async def _welcome(self, stream: SecureStream, address: str) -> None:
        try:
            side = None
            try:
                with trio.fail_after(HELLO_S):
                    side = await self._hear_hello(stream, address)
            except trio.TooSlowError:
                self._refusals.note(address, "it says nothing")
            except ssl.SSLError as exc:
                self._refusals.note(address, reason(exc))
                await stream.linger(LINGER_S)
            except (*BROKEN, Corrupt) as exc:
                self._refusals.note(address, reason(exc))
            finally:
                self._pending.pop(stream, None)
            if side is not None:
                await self._answer(*side)
        finally:
            stream.close()

    async def _hear_hello(self, stream: SecureStream, address: str) -> tuple[str, AnsweringSide] | None:
        await stream.shake_hands()
        reader = Reader(stream)
        messages = await reader.receive()
        found = self._problem_with(messages[0] if messages else None, stream, node="")
        node = stream.peer_names()[1]
        if not found and node not in self._answering and len(self._answering) >= ANSWERED_MAX:
            found = f"it has connections of {ANSWERED_MAX} nodes"
        if found:
            self._refusals.note(address, f"{found} node={node}")
            stream.write_nowait(encode_refused(f"{found} node={self._hello.node}"))
            await stream.linger(LINGER_S)
            return None
        assert self._nursery is not None
        reader.take_long_ones()
        stream.write_nowait(encode_hello(self._hello))
        side = AnsweringSide(
            stream, reader, node=node, handlers=self._handlers, start=self._nursery.start_soon
        )
        return node, side

    async def _answer(self, node: str, side: AnsweringSide) -> None:
        before = self._answering.pop(node, None)
        if before is not None:
            before.close()  # who dials anew has given that one up
        self._answering[node] = side
        try:
            await side.run()
        finally:
            if self._answering.get(node) is side:
                del self._answering[node]

    def _problem_with(self, hello: Message | None, stream: SecureStream, *, node: str) -> str:
        """What is wrong with the other side's first message; ``node``: who it is to be."""
        if hello is None:
            return "it hung up"
        if not isinstance(hello, Hello):
            return "its first message is no hello"
        if hello.protocol != PROTOCOL:
            return (
                f"the nodes speak different protocols, one is of another release: ours is {PROTOCOL}, "
                f"the other side's {hello.protocol}"
            )
        proven = stream.peer_names()
        if (hello.cluster, hello.node) != proven:
            return f"it says it is {hello.node!r}, its certificate is of {proven[1]!r}"
        if hello.cluster != self._hello.cluster:
            return f"it is of another cluster cluster={hello.cluster}"
        if node and hello.node != node:
            return f"another node is there: {hello.node!r}"
        if hello.node == self._hello.node and hello.identity != self._hello.identity:
            return "it has this node's name and is not this node"
        return ""


class _Refusals:
    """Says whom this node refused, and why; not without end."""

    def __init__(self) -> None:
        self._since = -REFUSALS_S
        self._count = 0

    def note(self, address: str, why: str) -> None:
        now = trio.current_time()
        if now - self._since >= REFUSALS_S:
            if self._count > REFUSALS_LOGGED_MAX:
                log.warning("refused %d further connections", self._count - REFUSALS_LOGGED_MAX)
            self._since, self._count = now, 0
        self._count += 1
        if self._count <= REFUSALS_LOGGED_MAX:
            log.warning("refused a connection: %s from=%s", why, address)
