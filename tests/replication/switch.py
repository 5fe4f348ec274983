"""Links and membership in memory, for several cores in one process; calls can be lost, delayed, cut off."""

import math
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgpack
import trio

from metadata.errors import Unavailable
from replication.cluster import CALL_DATA_BYTES_MAX, Answer, Handler, Immediate, Member
from replication.publication import STARTED


class Switch:
    """Connects any number of nodes; one to a test."""

    def __init__(self) -> None:
        self.nodes: dict[str, SwitchLinks] = {}
        self.live: set[str] = set()
        """Nodes with a session."""
        self.unheard: set[tuple[str, str]] = set()
        """(who, of whom): nodes with a session of which others have not heard yet."""
        self.cut: set[tuple[str, str]] = set()
        """(from, to): calls and answers in this direction are lost."""
        self.calls: list[tuple[str, str, str]] = []
        """(from, to, verb) of every call."""
        self.delay_s: Callable[[str, str], float] = lambda source, target: 0.0
        """How long a message takes."""

    def join(self, node: str) -> "SwitchLinks":
        """A node comes, with a session; one that was there before is gone."""
        self.live.add(node)
        links = self.nodes[node] = SwitchLinks(self, node)
        return links

    def leave(self, node: str) -> None:
        """A node dies; its session lives on until ``expire``."""
        links = self.nodes.pop(node, None)
        if links is not None:
            links.die()

    def expire(self, node: str) -> None:
        """A node's session ends."""
        self.live.discard(node)


class SwitchLinks:
    """One node's links and membership."""

    def __init__(self, switch: Switch, node: str) -> None:
        self.node = node
        self._switch = switch
        self._handlers: dict[str, Handler] = {}
        self._at_once: dict[str, Immediate] = {}
        self._serving: set[trio.CancelScope] = set()
        self.on_lost: list[Callable[[], Awaitable[None]]] = []

    def serve(self, verb: str, handler: Handler, *, at_once: Immediate | None = None) -> None:
        assert verb not in self._handlers, f"served twice verb={verb}"
        self._handlers[verb] = handler
        if at_once is not None:
            self._at_once[verb] = at_once

    async def call(
        self, node: str, verb: str, arguments: Mapping[str, Any], data: bytes = b"", *, deadline_s: float
    ) -> Answer:
        assert len(data) <= CALL_DATA_BYTES_MAX
        switch = self._switch
        if verb != STARTED:  # which each that starts says to all
            switch.calls.append((self.node, node, verb))
        with trio.move_on_after(deadline_s):
            await self._carry(self.node, node)
            target = switch.nodes.get(node)
            if target is None:
                raise Unavailable(f"the node does not answer node={node}")
            named, answer = await target._serve(verb, self.node, _copied(arguments), bytes(data))
            await self._carry(node, self.node)
            return _copied(named), bytes(answer)
        raise Unavailable(f"the node does not answer node={node}")

    async def _serve(self, verb: str, *call: Any) -> Answer:
        at_once = self._at_once.get(verb)
        answer = at_once(*call) if at_once is not None else None
        if answer is not None:
            return answer
        with trio.CancelScope() as scope:
            self._serving.add(scope)
            try:
                return await self._handlers[verb](*call)
            finally:
                self._serving.discard(scope)
        await trio.sleep_forever()  # the node has died meanwhile
        raise AssertionError

    def die(self) -> None:
        """What it was about to answer, it never answers."""
        for scope in self._serving:
            scope.cancel()

    async def _carry(self, source: str, target: str) -> None:
        cut = (source, target) in self._switch.cut
        with trio.move_on_after(math.inf if cut else self._switch.delay_s(source, target)):
            await trio.sleep_forever()

    def is_certain(self) -> bool:
        return self.node in self._switch.live

    def is_live(self, node: str) -> bool:
        return node in self._switch.live and (self.node, node) not in self._switch.unheard

    def members(self) -> Mapping[str, Member]:
        return {node: Member(node, "", 0, node) for node in self._switch.live if self.is_live(node)}

    async def catch_up(self) -> None:
        await trio.lowlevel.checkpoint()
        self._switch.unheard = {pair for pair in self._switch.unheard if pair[0] != self.node}


def _copied(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """As it would come over a wire."""
    copied: dict[str, Any] = msgpack.unpackb(msgpack.packb(dict(arguments)))
    return copied
