"""The fence: a commit that is durable counts only if this node owned the vdisk when it became so.

A node is deposed only when its session is gone from the catalog (``ownership.take_over``). So the commit's thread
looks at the clock: while the session is live for sure, nobody has taken the vdisk over, and whoever does so later
finds this commit. If that is not sure (the daemon was stopped, the catalog did not answer), the owner record is read:
if it still names this node and epoch, the same holds. Otherwise the new owner's log goes on from a tail that may lack
this commit: it is void, and so is every later one; the head is *deposed*, and nothing is acknowledged.
"""

import logging
from collections import deque
from collections.abc import Callable

import trio

from metadata.catalog import Catalog, owner_key
from metadata.errors import Fenced, Unavailable, VdiskfsError
from replication.ownership import Owner, find_owner

log = logging.getLogger(__name__)

ASK_S = 30.0
"""A commit waits so long for the catalog, which may be electing a leader, or starting; then it fails, and is tried again
by the next flush."""
AGAIN_S = 0.25
"""Before a catalog that did not answer is asked again."""

Verdict = Callable[[VdiskfsError | None], None]
"""Told ``None`` if the vdisk was owned, ``Fenced`` if not, ``Unavailable`` if nobody knows."""


class Fence:
    """One to a daemon; ``run`` is its task.

    Args:
        catalog: where the owner records are.
        node: this one.
        is_certain: whether this node's session is live for sure; called from any thread.
        note_deposed: told of a vdisk that another node has taken over.
    """

    def __init__(
        self,
        catalog: Catalog,
        node: str,
        *,
        is_certain: Callable[[], bool],
        note_deposed: Callable[[int, VdiskfsError], None],
    ) -> None:
        self._catalog, self._node = catalog, node
        self.is_certain, self._note_deposed = is_certain, note_deposed
        self._asked: deque[tuple[int, int, Verdict]] = deque()
        self._more = trio.Event()
        self.questions = 0
        """Counts commits for which the owner record was read."""

    def ask(self, vdisk: int, epoch: int, verdict: Verdict) -> None:
        """On the event loop: ``verdict`` is called once, later, unless the daemon ends before."""
        self._asked.append((vdisk, epoch, verdict))
        self._more.set()

    async def compares(self, vdisk: int) -> tuple[tuple[bytes, int], ...]:
        """What a transaction compares that only the owner may make, or this node while there is none.

        Raises:
            Fenced: another node owns the vdisk.
        """
        owner = await find_owner(self._catalog, vdisk)
        if owner.node not in ("", self._node):
            raise Fenced(
                f"another node owns the vdisk now vdisk={vdisk} node={owner.node} epoch={owner.epoch}"
            )
        return ((owner_key(vdisk), owner.revision),)

    async def run(self) -> None:
        """Asks the catalog, until it is cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                while self._asked:
                    nursery.start_soon(self._judge, *self._asked.popleft())
                self._more = trio.Event()
                await self._more.wait()

    async def _judge(self, vdisk: int, epoch: int, verdict: Verdict) -> None:
        self.questions += 1
        silent = f"the catalog does not say who owns the vdisk vdisk={vdisk}"
        found: VdiskfsError | None = Unavailable(silent)
        with trio.move_on_after(ASK_S):
            while isinstance(found, Unavailable):
                try:
                    found = _judged(await find_owner(self._catalog, vdisk), vdisk, (self._node, epoch))
                except VdiskfsError as exc:
                    found = Unavailable(f"{silent}: {exc}")
                    await trio.sleep(AGAIN_S)
        verdict(found)
        if isinstance(found, Fenced):
            self._note_deposed(vdisk, found)


def _judged(owner: Owner, vdisk: int, ours: tuple[str, int]) -> Fenced | None:
    if (owner.node, owner.epoch) == ours:
        return None
    return Fenced(
        f"another node took the vdisk over: what was not flushed before is lost vdisk={vdisk} node={owner.node} "
        f"epoch={owner.epoch} ours={ours[1]}"
    )
