"""One TCP connection under TLS, both sides proven: bytes in and out, on the event loop, with as little as possible between.

    receive -> socket -> _arriving -> TLS -> bytes            write_nowait -> TLS -> _leaving -> socket

A message that finds the socket free is encrypted and sent where it is made, without a task between. One that does not
waits unencrypted, and a small one goes before large ones that have not begun: ``run`` sends them when there is room.
"""

import socket
import ssl
from collections import deque
from typing import Any

import trio

from metadata.errors import Unavailable
from replication.credentials import Credentials

BROKEN = (OSError, trio.ClosedResourceError)
"""What a connection that is over raises; ssl's own errors are among them."""
RECEIVE_BYTES = 256 << 10
"""Taken from the socket at once."""
SMALL_BYTES = 16 << 10
"""A message up to this size goes before larger ones."""
QUEUE_BYTES_MAX = 8 << 20
"""Whoever would let more than this wait on one connection waits itself."""
SILENCE_MS = 6000
"""A machine that has not confirmed what was sent for so long is gone; one that only its kernel answers for is not."""
_REASONS = (
    ("CERTIFICATE_REQUIRED", "it wants a certificate, and none was shown"),
    ("DID_NOT_RETURN_A_CERTIFICATE", "it has no certificate"),
    ("ALERT_UNKNOWN_CA", "it knows our certificate as another cluster's"),
    ("ALERT_CERTIFICATE_EXPIRED", "it says that our certificate has expired"),
    ("ALERT_BAD_CERTIFICATE", "it does not take our certificate"),
    ("HAS EXPIRED", "its certificate has expired"),
    ("NOT YET VALID", "its certificate is not valid yet: one of the clocks is wrong"),
    ("CERTIFICATE_VERIFY_FAILED", "its certificate is another cluster's"),
    ("ALERT_PROTOCOL_VERSION", "it speaks another version of TLS"),
    ("UNSUPPORTED_PROTOCOL", "it speaks another version of TLS"),
)


def explain(exc: ssl.SSLError) -> str:
    """What is wrong with a connection, in a few words for an operator."""
    if isinstance(exc, ssl.SSLEOFError):
        return "it hung up"
    text = str(exc).upper().replace(" ", "_") + " " + str(exc).upper()
    return next((words for sign, words in _REASONS if sign in text), "it does not speak TLS as nodes do")


def secure_context(credentials: Credentials, *, answers: bool) -> ssl.SSLContext:
    """What both sides of a connection insist on: TLS 1.3, and a certificate of the cluster's authority.

    Raises:
        Unavailable: the node's certificate cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if answers else ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the certificate names the node, not its address
    context.verify_mode = ssl.CERT_REQUIRED
    if answers:
        context.num_tickets = 0  # nobody resumes a session, so each connection proves itself
    try:
        context.load_verify_locations(cadata=credentials.authority)
        context.load_cert_chain(credentials.path)
    except (ssl.SSLError, OSError) as exc:
        raise Unavailable(f"the node's certificate cannot be used: {exc} file={credentials.path}") from exc
    return context


class SecureStream:
    """One connection. Owned by one task that receives; any task on the loop may write."""

    def __init__(self, connected: socket.socket, context: ssl.SSLContext, *, answers: bool) -> None:
        connected.setblocking(False)
        _tune(connected)
        self._socket = connected
        self._arriving, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arriving, self._leaving, server_side=answers)
        self._unsent = memoryview(b"")
        self._small, self._large = deque[bytes](), deque[bytes]()
        self.queued_bytes = 0
        self._has_unsent = trio.Event()
        self._has_room = trio.Event()
        self.is_closed = False

    async def shake_hands(self) -> None:
        """Both sides prove themselves.

        Raises:
            ssl.SSLError: they do not.
            OSError: the connection broke.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_all()
                await self._take()
                continue
            finally:
                self._push()  # an alert, too, is to arrive
            await self._send_all()
            return

    def peer_names(self) -> tuple[str, str]:
        """Cluster and node, as the other side's certificate has them; empty where it has none."""
        certificate: Any = self._tls.getpeercert() or {}
        names = {name: value for part in certificate.get("subject", ()) for name, value in part}
        return names.get("organizationName", ""), names.get("commonName", "")

    async def receive(self) -> bytes:
        """The next bytes; none at the end. Cancelled, it has lost nothing.

        Raises:
            ssl.SSLError: what arrived is no TLS, or the other side refused.
            OSError: the connection broke.
        """
        while True:
            if self._arriving.pending or self._arriving.eof or self._tls.pending():
                try:
                    return self._tls.read(RECEIVE_BYTES)
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLZeroReturnError:
                    return b""
                self._push()  # TLS itself may have something to say
            await self._take()

    def write_nowait(self, message: bytes) -> None:
        """Sends a message, or lets it wait for ``run``; whole messages arrive, the small ones first.

        Raises:
            OSError: the connection broke.
        """
        if self.is_closed:
            raise BrokenPipeError("the connection is closed")
        if self._unsent or self._small or self._large:
            (self._small if len(message) <= SMALL_BYTES else self._large).append(message)
            self.queued_bytes += len(message)
            return
        self._tls.write(message)
        self._push()

    async def wait_room(self) -> None:
        """Waits until what is to be sent is not too much."""
        while self.queued_bytes > QUEUE_BYTES_MAX and not self.is_closed:
            await self._has_room.wait()

    async def run(self) -> None:
        """Sends what had to wait, until cancelled.

        Raises:
            OSError: the connection broke.
        """
        while True:
            await self._has_unsent.wait()
            await self._send_all()

    async def linger(self, limit_s: float) -> None:
        """Lets the other side read the last words before the end."""
        with trio.move_on_after(limit_s):
            try:
                await self._send_all()
                self._socket.shutdown(socket.SHUT_WR)
                while True:
                    await trio.lowlevel.wait_readable(self._socket)
                    if not self._socket.recv(RECEIVE_BYTES):
                        return
            except OSError:
                return

    def close(self) -> None:
        """Ends the connection; whoever waits for it is woken."""
        if self.is_closed:
            return
        self.is_closed = True
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._has_unsent.set()
        self._has_room.set()

    async def _take(self) -> None:
        while True:
            if self.is_closed:
                raise BrokenPipeError("the connection is closed")
            await trio.lowlevel.wait_readable(self._socket)
            try:
                arrived = self._socket.recv(RECEIVE_BYTES)
                break
            except BlockingIOError:
                continue
        if arrived:
            self._arriving.write(arrived)
        else:
            self._arriving.write_eof()

    async def _send_all(self) -> None:
        while not self._push():
            await trio.lowlevel.wait_writable(self._socket)

    def _push(self) -> bool:
        """Sends as much as the socket takes; returns whether that was all."""
        while True:
            if not self._unsent:
                if not self._leaving.pending and not self._encrypt_next():
                    return True
                self._unsent = memoryview(self._leaving.read())
            try:
                sent = self._socket.send(self._unsent)
            except BlockingIOError:
                self._has_unsent.set()
                return False
            self._unsent = self._unsent[sent:]

    def _encrypt_next(self) -> bool:
        if not self._small and not self._large:
            if self._has_unsent.is_set():
                self._has_unsent = trio.Event()
            return False
        message = (self._small or self._large).popleft()
        self._tls.write(message)
        self.queued_bytes -= len(message)
        if self.queued_bytes <= QUEUE_BYTES_MAX:
            self._has_room.set()
            self._has_room = trio.Event()
        return True


def _tune(connected: socket.socket) -> None:
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_MS)
