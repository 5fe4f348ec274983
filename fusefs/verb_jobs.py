"""A control verb run on another node: begun by one call, asked about by more, its answer fetched in pieces.

    verb       job, verb; arguments as JSON  ->  running, and the newest progress; or done, and the answer's first piece
    verb_more  job, position                 ->  the same; waits a moment for the end
    verb_end   job                               it is forgotten, and cancelled if it still runs

A verb may run for hours and its answer may be large; a call may do neither. The caller gives the job its number, so that a
call whose answer was lost can be repeated. A job that nobody asks about ends: whoever wanted it has gone.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from fusefs.control import Progress, Verb
from metadata.errors import InvalidRequest, Unavailable, VdiskfsError
from replication.cluster import CALL_DATA_BYTES_MAX, Answer, Links

BEGIN, MORE, END = "verb", "verb_more", "verb_end"
WAIT_S = 0.5
"""How long one call waits for the end: progress is news that often."""
CALL_S = 5.0
"""The deadline of one call."""
TRIES = 6
"""Calls in a row without an answer."""
ABANDONED_S = 2 * TRIES * CALL_S
"""A job that nobody asks about for so long is cancelled."""
JOBS_MAX = 64
PIECE_BYTES = 1 << 20
assert PIECE_BYTES <= CALL_DATA_BYTES_MAX

_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Job:
    """One verb that runs, or has run."""

    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    progress: Mapping[str, object] = field(default_factory=dict)
    answer: bytes = b""
    error: VdiskfsError | None = None
    asked_at: float = 0.0


class VerbJobs:
    """Runs verbs for other nodes; one to a daemon, ``run`` is its task."""

    def __init__(self, links: Links, verbs: Mapping[str, Verb]) -> None:
        self._verbs = dict(verbs)
        self._jobs: dict[tuple[str, str], _Job] = {}
        self._send, self._receive = trio.open_memory_channel[tuple[_Job, str, dict[str, Any]]](JOBS_MAX)
        links.serve(BEGIN, self._begin)
        links.serve(MORE, self._more)
        links.serve(END, self._end)

    async def run(self) -> None:
        """Serves, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end_abandoned)
            async for job, verb, arguments in self._receive:
                nursery.start_soon(self._carry_out, job, verb, arguments)

    async def _begin(self, node: str, named: Mapping[str, Any], data: bytes) -> Answer:
        key = node, str(named["job"])
        job = self._jobs.get(key)
        if job is None:
            if named["verb"] not in self._verbs:
                raise InvalidRequest(
                    f"the node does not know this verb: is it of another release? {named['verb']}"
                )
            if len(self._jobs) >= JOBS_MAX:
                raise Unavailable("the node runs too many commands of others, try again")
            arguments = json.loads(data)
            job = self._jobs[key] = _Job(asked_at=trio.current_time())
            self._send.send_nowait((job, named["verb"], arguments))
        return await self._tell(job, 0)

    async def _more(self, node: str, named: Mapping[str, Any], _: bytes) -> Answer:
        job = self._jobs.get((node, str(named["job"])))
        if job is None:
            raise Unavailable(
                "the node has started anew, and the command with it was cut off: look what was done"
            )
        return await self._tell(job, int(named["position"]))

    async def _end(self, node: str, named: Mapping[str, Any], _: bytes) -> Answer:
        job = self._jobs.pop((node, str(named["job"])), None)
        if job is not None:
            job.scope.cancel()
        return {}, b""

    async def _tell(self, job: _Job, position: int) -> Answer:
        job.asked_at = trio.current_time()
        with trio.move_on_after(WAIT_S):
            await job.over.wait()
        if not job.over.is_set():
            return {"done": False, "progress": json.dumps(job.progress)}, b""
        if job.error is not None:
            raise job.error
        return {"done": True, "total": len(job.answer)}, job.answer[position : position + PIECE_BYTES]

    async def _carry_out(self, job: _Job, verb: str, arguments: dict[str, Any]) -> None:
        def note(progress: Mapping[str, object]) -> None:
            job.progress = progress

        try:
            with job.scope:
                result = await self._verbs[verb](arguments, note)
                job.answer = json.dumps(result).encode()
            if job.scope.cancelled_caught:
                job.error = Unavailable("the command was cut off")
        except VdiskfsError as exc:
            job.error = exc
        except Exception:
            _log.exception("a control verb of another node failed")
            job.error = VdiskfsError("internal error, the log of the node that ran it tells more")
        job.over.set()

    async def _end_abandoned(self) -> None:
        while True:
            await trio.sleep(ABANDONED_S)
            before = trio.current_time() - ABANDONED_S
            for key, job in list(self._jobs.items()):
                if job.asked_at < before:
                    job.scope.cancel()
                    del self._jobs[key]


@dataclass(frozen=True, slots=True)
class RemoteVerbs:
    """Has verbs run by other nodes. ``new_id`` makes numbers that nobody has had."""

    links: Links
    new_id: Callable[[], str]

    async def run(self, node: str, verb: str, arguments: Mapping[str, Any], progress: Progress) -> Any:
        """What the verb answers there.

        Raises:
            VdiskfsError: what it raises there.
            Unavailable: the node does not answer; what was done will show.
        """
        job, data = self.new_id(), json.dumps(arguments).encode()
        if len(data) > PIECE_BYTES:
            raise InvalidRequest("too much at once for another node: name fewer paths")
        try:
            named, piece = await self._call(node, BEGIN, {"job": job, "verb": verb}, data)
            answer = bytearray()
            while True:
                if not named["done"]:
                    progress(json.loads(named["progress"]))
                else:
                    answer += piece
                    if len(answer) >= named["total"]:
                        return json.loads(bytes(answer))
                named, piece = await self._call(node, MORE, {"job": job, "position": len(answer)}, b"")
        finally:
            with trio.move_on_after(CALL_S) as scope:
                scope.shield = True
                try:
                    await self.links.call(node, END, {"job": job}, deadline_s=CALL_S)
                except VdiskfsError:
                    pass  # it ends by itself

    async def _call(self, node: str, verb: str, named: Mapping[str, Any], data: bytes) -> Answer:
        for tried in range(1, TRIES + 1):
            try:
                return await self.links.call(node, verb, named, data, deadline_s=CALL_S)
            except Unavailable:
                if tried == TRIES:
                    raise
        raise AssertionError
