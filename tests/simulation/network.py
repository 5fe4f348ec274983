"""The network between simulated nodes: messages take their time, are lost, come late, twice, or out of order.

A message is on its way by itself: it may arrive after its sender has given up, or has died. One to a node that stands
still waits for it; one on a link that is cut is lost, or comes when the link works again.
"""

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import trio

from metadata.errors import Unavailable, VdiskfsError
from replication.cluster import CALL_DATA_BYTES_MAX, Answer
from tests.replication.switch import Switch, SwitchLinks, _copied
from tests.simulation.simulated_threads import pass_time

FAST_S = 0.002
"""The longest a message takes when nothing is wrong."""
SLOW_S = 1.5
LATER_S = 1.0
"""Between two tries over a link that is cut."""
GIVEN_UP = 0.7
"""How likely each of them is the last."""


class Network(Switch):
    """One to a world.

    Args:
        chance: of what befalls messages.
        start: begins a task that outlives the nodes.
        standing: waits while a node stands still.
    """

    def __init__(
        self,
        chance: random.Random,
        *,
        start: Callable[..., None],
        standing: Callable[[str], Awaitable[None]],
    ) -> None:
        super().__init__()
        self._chance, self.start, self.standing = chance, start, standing
        self.loss = 0.0
        """How likely a message is to be lost."""
        self.repeated = 0.0
        """How likely it is to come twice."""
        self.slow: set[str] = set()
        """Nodes whose messages take long."""

    def join(self, node: str) -> "NetworkLinks":
        self.live.add(node)
        links = self.nodes[node] = NetworkLinks(self, node)
        return links

    def times(self) -> int:
        """How often the next message comes."""
        return 1 + (self._chance.random() < self.repeated)

    async def carry(self, source: str, target: str) -> bool:
        """A message's way; False: it is lost."""
        await self.standing(source)
        while (source, target) in self.cut:
            if self._chance.random() < GIVEN_UP:
                return False
            await pass_time(self._chance.random() * LATER_S)
        if self._chance.random() < self.loss:
            return False
        await pass_time(self._chance.random() * (SLOW_S if {source, target} & self.slow else FAST_S))
        await self.standing(target)
        return True


class _Call:
    """A call, and how it ended."""

    def __init__(self, verb: str, source: str, *, arguments: Mapping[str, Any], data: bytes) -> None:
        self.verb, self.source, self.arguments, self.data = verb, source, _copied(arguments), data
        self.over = trio.Event()
        self.answer: Answer = {}, b""
        self.error: VdiskfsError | None = None


class NetworkLinks(SwitchLinks):
    """One node's links, in one of its lives."""

    _switch: Network

    async def call(
        self, node: str, verb: str, arguments: Mapping[str, Any], data: bytes = b"", *, deadline_s: float
    ) -> Answer:
        assert len(data) <= CALL_DATA_BYTES_MAX
        call = _Call(verb, self.node, arguments=arguments, data=bytes(data))
        target = self._switch.nodes.get(node)
        for _ in range(self._switch.times() if target is not None else 0):
            self._switch.start(self._deliver, node, target, call)
        with trio.move_on_after(deadline_s):
            await call.over.wait()
        if not call.over.is_set():
            raise Unavailable(f"the node does not answer node={node}")
        if call.error is not None:
            raise type(call.error)(str(call.error), number=call.error.number)
        return call.answer

    async def _deliver(self, node: str, target: "NetworkLinks", call: _Call) -> None:
        network = self._switch
        if not await network.carry(call.source, node):
            return
        if network.nodes.get(node) is not target:  # another daemon has other connections
            return
        with trio.CancelScope() as scope:
            target._serving.add(scope)
            answer, error = await target._answer(call)
            target._serving.discard(scope)
        if scope.cancelled_caught or not await network.carry(node, call.source) or call.over.is_set():
            return
        call.answer, call.error = answer, error
        call.over.set()

    async def _answer(self, call: _Call) -> tuple[Answer, VdiskfsError | None]:
        try:
            named, data = await self._handlers[call.verb](call.source, dict(call.arguments), call.data)
        except VdiskfsError as exc:
            return ({}, b""), exc
        return (_copied(named), bytes(data)), None
