"""HTTP to one member of etcd: its JSON gateway over trio's streams; the one home of h11.

A connection carries one request at a time and is kept for the next. Whoever calls sets the deadline; a request that
is cancelled or fails takes its connection along, so no answer is ever taken for another's.
"""

import json
import ssl
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import h11
import trio

from metadata.errors import Corrupt, VdiskfsError
from metadata.etcd_address import EtcdAddress
from metadata.etcd_messages import Message, number_in, parse_message

IDLE_MAX = 8
"""Connections kept for the next request."""
ANSWER_BYTES_MAX = 32 << 20
"""More than a page of rows ever is; whatever says more is not etcd."""
LINE_BYTES_MAX = 32 << 20
_RECEIVE_BYTES = 64 << 10
_KEEP_ALIVE = (
    (trio.socket.SO_KEEPALIVE, trio.socket.SOL_SOCKET, 1),
    (trio.socket.TCP_KEEPIDLE, trio.socket.IPPROTO_TCP, 5),
    (trio.socket.TCP_KEEPINTVL, trio.socket.IPPROTO_TCP, 2),
    (trio.socket.TCP_KEEPCNT, trio.socket.IPPROTO_TCP, 3),
)
"""A watch is silent for long: a host that is gone is noticed after 11 s."""


class Refused(Exception):
    """etcd answered with an error: its text and gRPC's number for the kind."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.text, self.code = text, code


class Unreachable(Exception):
    """The member did not answer, or nothing that is etcd's; whether it did what was asked is not known."""


def make_tls(address: EtcdAddress) -> ssl.SSLContext | None:
    """How members prove themselves, and this node to them.

    Raises:
        Corrupt: a file cannot be read as what it should be.
    """
    if not address.has_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=address.ca or None)
        if address.cert:
            context.load_cert_chain(address.cert, address.key)
    except (OSError, ssl.SSLError) as exc:
        files = " ".join(file for file in (address.ca, address.cert, address.key) if file)
        raise Corrupt(
            f"the certificates for the catalog cannot be used: {exc.strerror or exc} files={files}"
        ) from exc
    return context


class Exchange:
    """One connection, and the request on it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._http = h11.Connection(h11.CLIENT)
        self._line = bytearray()

    async def send(self, head: list[tuple[str, str]], path: str, body: bytes) -> int:
        """Send a request; returns the answer's status when its head is there."""
        request = h11.Request(method="POST", target=path, headers=[*head, ("Content-Length", str(len(body)))])
        wire = b"".join(
            self._http.send(event) or b"" for event in (request, h11.Data(body), h11.EndOfMessage())
        )
        await self._stream.send_all(wire)
        while True:
            event = await self._next()
            if isinstance(event, h11.Response):
                return event.status_code
            if not isinstance(event, h11.InformationalResponse):
                raise Unreachable("the connection was closed")

    async def receive(self) -> bytes:
        """A piece of the answer; nothing: that was all."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                if event.data:
                    return bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                return b""
            else:
                raise Unreachable("the connection was closed")

    async def receive_all(self) -> bytes:
        """The rest of the answer."""
        whole = bytearray()
        while piece := await self.receive():
            whole += piece
            if len(whole) > ANSWER_BYTES_MAX:
                raise Unreachable("an answer without end")
        return bytes(whole)

    async def receive_line(self) -> bytes:
        """The next line of an answer that goes on and on; nothing: it has ended. Cancelled, nothing is lost."""
        while True:
            end = self._line.find(b"\n")
            if end >= 0:
                line = bytes(self._line[:end])
                del self._line[: end + 1]
                if line:
                    return line
                continue
            piece = await self.receive()
            if not piece:
                return b""
            self._line += piece
            if len(self._line) > LINE_BYTES_MAX:
                raise Unreachable("an answer without end")

    def is_reusable(self) -> bool:
        """Whether the next request may go this way."""
        return self._http.our_state is h11.DONE and self._http.their_state is h11.DONE

    def start_next(self) -> None:
        """Ready for the next request."""
        self._http.start_next_cycle()

    async def aclose(self) -> None:
        """Close without a word."""
        await trio.aclose_forcefully(self._stream)

    async def _next(self) -> Any:
        while True:
            event = self._http.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._http.receive_data(bytes(await self._stream.receive_some(_RECEIVE_BYTES)))


class HttpMember:
    """One member, and the connections to it that are free now."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None) -> None:
        self.host, self.port, self._tls = host, port, tls
        self._idle: list[Exchange] = []
        self._has_left = False

    @property
    def name(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    async def call(self, verb: str, message: Message, *, token: str = "", **metadata: str) -> Message:
        """Ask, and return what is answered.

        Raises:
            Unreachable: nothing came that etcd says.
            Refused: etcd says no.
        """
        async with self._exchange(is_kept=True) as exchange:
            status = await exchange.send(self._head(token, metadata), f"/v3/{verb}", _encode(message))
            return _answer(status, await exchange.receive_all())

    def stream(self, verb: str, message: Message, *, token: str = "", **metadata: str) -> "Stream":
        """Ask for an answer that goes on: to be entered, then read message by message."""
        return Stream(
            self._exchange(is_kept=False), self._head(token, metadata), f"/v3/{verb}", _encode(message)
        )

    async def aclose(self) -> None:
        """Close the connections that nobody uses; those in use close when they are given back."""
        self._has_left = True
        while self._idle:
            await self._idle.pop().aclose()

    def _head(self, token: str, metadata: Mapping[str, str]) -> list[tuple[str, str]]:
        head = [("Host", self.name), ("Content-Type", "application/json")]
        if token:
            head.append(("Authorization", token))
        return head + [(f"Grpc-Metadata-{name}", value) for name, value in metadata.items()]

    def _exchange(self, *, is_kept: bool) -> "_Borrowed":
        return _Borrowed(self, is_kept=is_kept)

    async def take(self) -> Exchange:
        """A connection, kept or new."""
        if self._idle:
            exchange = self._idle.pop()
            exchange.start_next()
            return exchange
        tcp = await trio.open_tcp_stream(self.host, self.port)
        tcp.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
        for option, level, value in _KEEP_ALIVE:
            tcp.setsockopt(level, option, value)
        if self._tls is None:
            return Exchange(tcp)
        secure = trio.SSLStream(tcp, self._tls, server_hostname=self.host, https_compatible=True)
        try:
            await secure.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(secure)
            raise
        return Exchange(secure)

    async def give_back(self, exchange: Exchange, *, is_kept: bool) -> None:
        """Keep a connection for the next request, if it can be."""
        if is_kept and exchange.is_reusable() and len(self._idle) < IDLE_MAX and not self._has_left:
            self._idle.append(exchange)
        else:
            await exchange.aclose()


class _Borrowed:
    """A connection for the length of one request; whatever goes wrong becomes ``Unreachable``."""

    def __init__(self, member: HttpMember, *, is_kept: bool) -> None:
        self._member, self._is_kept = member, is_kept
        self._exchange: Exchange | None = None

    async def __aenter__(self) -> Exchange:
        try:
            self._exchange = await self._member.take()
        except (OSError, trio.BrokenResourceError, ssl.SSLError) as exc:
            raise Unreachable(_reason(exc)) from exc
        return self._exchange

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._exchange is not None
        if exc is None or isinstance(exc, Refused):
            await self._member.give_back(self._exchange, is_kept=self._is_kept)
            return
        await self._exchange.aclose()
        if isinstance(exc, OSError | trio.BrokenResourceError | trio.ClosedResourceError | ssl.SSLError):
            raise Unreachable(_reason(exc)) from exc
        if isinstance(exc, h11.RemoteProtocolError | h11.LocalProtocolError | VdiskfsError):
            raise Unreachable("what answers there is not etcd 3.4 or newer") from exc


class Stream:
    """An answer that goes on; entered with ``async with``."""

    def __init__(self, borrowed: _Borrowed, head: list[tuple[str, str]], path: str, body: bytes) -> None:
        self._borrowed, self._head, self._path, self._body = borrowed, head, path, body
        self._exchange: Exchange | None = None

    async def __aenter__(self) -> Self:
        self._exchange = await self._borrowed.__aenter__()
        try:
            status = await self._exchange.send(self._head, self._path, self._body)
            if status != 200:
                _answer(status, await self._exchange.receive_all())
        except BaseException as exc:
            await self._borrowed.__aexit__(type(exc), exc, exc.__traceback__)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._borrowed.__aexit__(kind, exc, trace)

    async def next(self) -> Message:
        """The next message. Cancelled, nothing is lost.

        Raises:
            Unreachable: there will be none.
            Refused: etcd says why there will be none.
        """
        assert self._exchange is not None
        try:
            line = await self._exchange.receive_line()
        except (OSError, trio.BrokenResourceError, h11.RemoteProtocolError) as exc:
            raise Unreachable(_reason(exc)) from exc
        if not line:
            raise Unreachable("the answer has ended")
        message = parse_message(line)
        if "error" in message:
            problem = message["error"]
            problem = problem if isinstance(problem, dict) else message
            raise Refused(str(problem.get("message", "")), number_in(problem, "grpc_code"))
        result = message.get("result")
        return result if isinstance(result, dict) else {}


def _encode(message: Message) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def _answer(status: int, body: bytes) -> Message:
    if status == 200:
        message = parse_message(body.partition(b"\n")[0])
        if "error" not in message:
            return message
    try:  # behind an error's JSON the gateway leaves a trailer
        message, _ = json.JSONDecoder().raw_decode(body.decode(errors="replace"))
        if isinstance(message["error"], dict):  # a stream's
            message = {"code": message["error"]["grpc_code"], **message["error"]}
        raise Refused(str(message["message"]), int(message["code"]))
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        raise Corrupt(f"what answers there does not speak etcd's JSON status={status}") from None


def _reason(exc: BaseException) -> str:
    cause = exc.__cause__ if isinstance(exc, trio.BrokenResourceError) and exc.__cause__ else exc
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not to be trusted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError):
        return f"TLS fails: {cause.reason or cause}"
    if isinstance(cause, OSError):
        return cause.strerror or str(cause) or type(cause).__name__
    return str(cause) or type(cause).__name__
