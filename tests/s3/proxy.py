"""A proxy in front of an S3 server that behaves as a bad day does: throttles, is slow, is silent, finds the clock wrong."""

import socket
import threading
from contextlib import suppress

_BUFFER_BYTES = 1 << 16
_SLOW_BYTES = 4096
_THROTTLED = b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Reduce your request rate.</Message></Error>"
_REFUSED = b"HTTP/1.1 403 Forbidden\r\nContent-Type: application/xml\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s"
_REFUSALS = {
    "skewed": b"<Error><Code>RequestTimeTooSkewed</Code><Message>The difference is too large.</Message></Error>",
    "refusing": b"<Error><Code>InvalidAccessKeyId</Code><Message>There is no such key.</Message></Error>",
}


class Proxy:
    """Used with ``with``; what it does to connections that are made from now on is set by name."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.mood = "well"
        """"well", "throttling" (all), "flaky" (every second), "slow", "silent", "skewed" or "refusing"."""
        self.connections = 0
        self._left = 1 << 30
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closing = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> "Proxy":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._listener.close()
        self.hang_up()

    def hang_up(self) -> None:
        """All connections end: what was kept alive comes anew."""
        with self._lock:
            ends = list(self._open)
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def become(self, mood: str, *, connections: int = 1 << 30) -> None:
        """For so many connections from now on, then well again; those from before end."""
        self.mood, self._left = mood, connections
        self.hang_up()

    def _next_mood(self) -> str:
        mood = self.mood
        self._left -= 1
        if self._left <= 0:
            self.mood = "well"
        return mood

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                end, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            mood = self._next_mood()
            if mood == "flaky" and not self.connections % 2:
                mood = "well"
            threading.Thread(target=self._serve, args=(end, mood), daemon=True).start()

    def _serve(self, end: socket.socket, mood: str) -> None:
        with self._lock:
            self._open.add(end)
        try:
            if mood in ("throttling", "flaky"):
                self._refuse(end, _THROTTLED % (len(_SLOW_DOWN), _SLOW_DOWN))
            elif mood in _REFUSALS:
                self._refuse(end, _REFUSED % (len(_REFUSALS[mood]), _REFUSALS[mood]))
            elif mood == "silent":
                while end.recv(_BUFFER_BYTES):
                    pass
            else:
                self._pass_on(end, slow=mood == "slow")
        except OSError:
            pass
        finally:
            with self._lock:
                self._open.discard(end)
            end.close()

    def _refuse(self, end: socket.socket, answer: bytes) -> None:
        """Once the head of a request is there; the body is not waited for."""
        if end.recv(_BUFFER_BYTES):
            end.sendall(answer)
            end.shutdown(socket.SHUT_WR)
            while end.recv(_BUFFER_BYTES):
                pass

    def _pass_on(self, end: socket.socket, *, slow: bool) -> None:
        with socket.create_connection(("127.0.0.1", self._target)) as server:
            with self._lock:
                self._open.add(server)
            back = threading.Thread(target=self._pump, args=(server, end, slow), daemon=True)
            back.start()
            self._pump(end, server, False)
            back.join()
            with self._lock:
                self._open.discard(server)

    def _pump(self, source: socket.socket, target: socket.socket, slow: bool) -> None:
        with suppress(OSError):
            while data := source.recv(_SLOW_BYTES if slow else _BUFFER_BYTES):
                if slow:
                    self._closing.wait(0.02)
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
