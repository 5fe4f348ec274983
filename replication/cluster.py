"""What the vdisks of one node know of the others: the interfaces of links and membership, and the errors that cross.

A call asks one node one thing and gets one answer, or an error: ours as the other side raised it, ``Unavailable`` if no
answer came in time, which leaves open whether it was done. Calls overtake each other. Links are in ``links.py``, the
session in ``session.py``; tests and the simulation have doubles of both.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Answer = tuple[Mapping[str, Any], bytes]
"""What a call gives back: named values (what msgpack takes), and bytes."""
Handler = Callable[[str, Mapping[str, Any], bytes], Awaitable[Answer]]
"""Given the calling node's name, the named values and the bytes of a call."""

Immediate = Callable[[str, Mapping[str, Any], bytes], Answer | None]
"""The same without waiting for anything; None: the handler has to be asked."""

CALL_DATA_BYTES_MAX = (1 << 20) + (64 << 10)
"""The bytes of one call or answer: a request of the kernel's, or one commit record; longer records are read from
the pool."""

SUBSCRIPTION_S = 2.0
"""How long a peer's subscription lives after it was last renewed; a commit waits so long for a silent peer at most."""
SESSION_S = 8.0
"""How long a node owns what it owns after it was last heard of: long enough for its daemon to start anew."""


class Links(Protocol):
    """The way to the other nodes."""

    async def call(
        self,
        node: str,
        verb: str,
        arguments: Mapping[str, Any],
        data: bytes = b"",
        *,
        deadline_s: float,
    ) -> Answer:
        """Asks a node, and waits for its answer.

        Raises:
            Unavailable: none came in time; it may have been done or not.
            VdiskfsError: what the other side raised.
        """

    def serve(self, verb: str, handler: Handler, *, at_once: Immediate | None = None) -> None:
        """Calls of this verb are answered by ``at_once``, if it can, or by ``handler`` from now on; one a verb."""


@dataclass(frozen=True, slots=True)
class Member:
    """A node that has a session."""

    node: str
    host: str
    port: int
    identity: str
    """Of its state directory: who has another identity is another node, though it may bear the same name."""


class Membership(Protocol):
    """Who is there. ``is_certain`` may be called from any thread, the others on the event loop."""

    on_lost: list[Callable[[], Awaitable[None]]]
    """Awaited one after the other when the session had ended and a new one has begun, before that is certain: another
    node may have taken over what this one believes it owns. None takes anything over meanwhile."""

    @property
    def node(self) -> str:
        """This node's name."""

    def is_certain(self) -> bool:
        """Whether this node's session is live for sure: until then nobody takes over what it owns."""

    def is_live(self, node: str) -> bool:
        """Whether a node has a session, as far as this node knows."""

    def members(self) -> Mapping[str, Member]:
        """All that have one, this node among them, by name."""

    async def catch_up(self) -> object:
        """Returns when this node knows of every session that had begun before the call.

        Raises:
            VdiskfsError: the catalog cannot be read.
        """
