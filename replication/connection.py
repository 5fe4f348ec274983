"""One connection between two nodes after their hello: the dialling side's calls and what the other side answers.

A connection carries the calls of the side that dialled it, and their answers; for calls the other way the other side
dials one of its own. So whoever reads answers is never held up by calls that it has to answer.
"""

import logging
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import trio

from metadata.errors import Corrupt, InvalidRequest, Unavailable, VdiskfsError
from replication.cluster import Answer, Handler, Immediate
from replication.secure_stream import BROKEN, SecureStream, explain
from replication.wire import (
    FRAME_BYTES_MAX,
    Answered,
    Call,
    Failed,
    FrameReader,
    Message,
    decode,
    encode_answer,
    encode_call,
    encode_error,
)

CALLS_MAX = 256
"""Calls of one node to another that are not answered yet; further ones wait."""

log = logging.getLogger(__name__)


class Reader:
    """Whole messages of one connection."""

    def __init__(self, stream: SecureStream) -> None:
        self._stream = stream
        self._frames = FrameReader()

    def take_long_ones(self) -> None:
        """The other side is known by now, and may say more at once."""
        self._frames.bytes_max = FRAME_BYTES_MAX

    async def receive(self) -> list[Message]:
        """The messages that arrived together, at least one; none at the end.

        Raises:
            Corrupt: what arrived are no messages.
            OSError: the connection broke.
        """
        while True:
            arrived = await self._stream.receive()
            if not arrived:
                return []
            bodies = self._frames.feed(arrived)
            if bodies:
                return [decode(body) for body in bodies]


class _Waiting:
    """A call that is not answered yet."""

    __slots__ = ("answer", "answered")

    def __init__(self) -> None:
        self.answered = trio.Event()
        self.answer: Answer | VdiskfsError | None = None


class CallingSide:
    """The side that dialled: it calls. Lives until the connection breaks or is closed."""

    def __init__(self, stream: SecureStream, reader: Reader, *, node: str) -> None:
        self._stream, self._reader, self._node = stream, reader, node
        self._waiting: dict[int, _Waiting] = {}
        self._last_number = 0
        self._has_room: trio.Event | None = None
        self.is_over = False

    async def call(self, verb: str, arguments: Mapping[str, Any], data: bytes) -> Answer:
        """Asks, and waits for the answer.

        Raises:
            Unavailable: the connection broke.
            VdiskfsError: what the other side raised.
        """
        while len(self._waiting) >= CALLS_MAX and not self.is_over:
            if self._has_room is None:
                self._has_room = trio.Event()
            await self._has_room.wait()
        if self._stream.queued_bytes:
            await self._stream.wait_room()
        if self.is_over:
            raise self._broken()
        number = self._last_number = self._last_number + 1
        waiting = _Waiting()
        message = encode_call(number, verb, arguments, data)
        self._waiting[number] = waiting
        try:
            self._stream.write_nowait(message)
            await waiting.answered.wait()
        except BROKEN:
            raise self._broken() from None
        finally:
            self._waiting.pop(number, None)
            self._tell_room()
        if isinstance(waiting.answer, VdiskfsError):
            raise waiting.answer
        assert waiting.answer is not None
        return waiting.answer

    async def run(self) -> None:
        """Sends and receives until the connection breaks."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, self._stream)
                await self._receive()
                nursery.cancel_scope.cancel()
        finally:
            self.is_over = True
            self._stream.close()
            for waiting in self._waiting.values():
                waiting.answer = self._broken()
                waiting.answered.set()
            self._tell_room()

    def _tell_room(self) -> None:
        if self._has_room is not None:
            self._has_room.set()
            self._has_room = None

    async def _receive(self) -> None:
        try:
            while messages := await self._reader.receive():
                for message in messages:
                    self._take(message)
        except BROKEN as exc:
            log.debug("the connection broke: %s node=%s", exc, self._node)
        except Corrupt as exc:
            log.warning("gave up a connection: %s node=%s", exc, self._node)

    def _take(self, message: Message) -> None:
        if isinstance(message, Answered):
            answer: Answer | VdiskfsError = (message.named, message.data)
        elif isinstance(message, Failed):
            answer = message.error
        else:
            raise Corrupt("a message that is no answer")
        waiting = self._waiting.get(message.number)
        if waiting is not None:  # else it comes after its caller has given up
            waiting.answer = answer
            waiting.answered.set()

    def _broken(self) -> Unavailable:
        return Unavailable(f"the connection to the node broke node={self._node}")


class AnsweringSide:
    """The side that was dialled: it answers. Calls under way go on when the connection is gone."""

    def __init__(
        self,
        stream: SecureStream,
        reader: Reader,
        *,
        node: str,
        handlers: Mapping[str, tuple[Handler, Immediate | None]],
        start: Callable[..., None],
    ) -> None:
        self._stream, self._reader, self._node = stream, reader, node
        self._handlers = handlers
        self._start = start
        """Starts a task that outlives the connection: what has begun is not left half done."""
        self._running = 0
        self._has_room: trio.Event | None = None
        self._over = trio.Event()

    async def run(self) -> None:
        """Answers until the connection breaks."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send, self._stream)
                self._start(self._receive)
                await self._over.wait()
                nursery.cancel_scope.cancel()
        finally:
            self._stream.close()

    def close(self) -> None:
        """Ends the connection."""
        self._stream.close()

    async def _receive(self) -> None:
        """Reads on. What takes time is done by tasks; a call that came alone by this one, while another one reads on."""
        alone = None
        try:
            while alone is None and (messages := await self._reader.receive()):
                for message in messages:
                    if not isinstance(message, Call):
                        raise Corrupt("a message that is no call")
                    if self._answer_nowait(message):
                        continue
                    while self._running >= CALLS_MAX:
                        self._has_room = trio.Event()
                        await self._has_room.wait()
                    self._running += 1
                    if len(messages) == 1:
                        alone = message
                    else:
                        self._start(self._answer, message)
        except BROKEN as exc:
            log.debug("the connection broke: %s node=%s", exc, self._node)
        except Corrupt as exc:
            log.warning("gave up a connection: %s node=%s", exc, self._node)
        if alone is None:
            self._over.set()
        else:
            self._start(self._receive)
            await self._answer(alone)

    def _answer_nowait(self, call: Call) -> bool:
        """Answers what can be answered without waiting."""
        _, at_once = self._handlers.get(call.verb, (None, None))
        if at_once is None or self._stream.queued_bytes:
            return False
        try:
            answer = at_once(self._node, call.arguments, call.data)
            if answer is None:
                return False
            message = encode_answer(call.number, *answer)
        except Exception as exc:
            message = self._failed(call, exc)
        self._stream.write_nowait(message)
        return True

    async def _answer(self, call: Call) -> None:
        try:
            message = await self._carry_out(call)
            if self._stream.queued_bytes:
                await self._stream.wait_room()
            self._stream.write_nowait(message)
        except BROKEN:
            pass  # nobody is there to hear it
        finally:
            self._running -= 1
            if self._has_room is not None:
                self._has_room.set()

    async def _carry_out(self, call: Call) -> bytes:
        handler, _ = self._handlers.get(call.verb, (None, None))
        try:
            if handler is None:
                raise InvalidRequest(f"this node does not know the call verb={call.verb[:64]!r}")
            named, data = await handler(self._node, call.arguments, call.data)
            return encode_answer(call.number, named, data)
        except Exception as exc:
            return self._failed(call, exc)

    def _failed(self, call: Call, exc: Exception) -> bytes:
        if isinstance(exc, VdiskfsError):
            return encode_error(call.number, exc)
        log.error(
            "a call of another node failed unexpectedly node=%s verb=%s",
            self._node,
            call.verb,
            exc_info=exc,
        )
        return encode_error(call.number, Unavailable(f"it failed unexpectedly: {exc!r}"))


async def _send(stream: SecureStream) -> None:
    try:
        await stream.run()
    except BROKEN:
        stream.close()


def reason(exc: Exception) -> str:
    """Why a connection did not come about, in a few words."""
    if isinstance(exc, ssl.SSLError):
        return explain(exc)
    if isinstance(exc, OSError):
        return exc.strerror or "it hung up"
    if isinstance(exc, trio.ClosedResourceError):
        return "too many say nothing at once"
    return str(exc)
