"""Watching etcd: whole revisions in order, from whichever member has them, for ever.

A stream may end, or say nothing because nothing happens, or because its member is cut off (etcd then ends it:
``hasleader``), stopped, or gone. After ``SILENCE_S`` without a word the member is asked something that it answers
only together with most of the others; if it does not, another one goes on behind the last revision seen.

etcd has lost events without a word where history was compacted meanwhile: the deletion at the very revision up to which
it was (etcd#19179), and what a watcher had not fetched for long (before 3.4.31 and 3.5.13). So a watch begins *at* the
last revision seen, which then must still be there, and one that was not looked at for ``STOPPED_S`` begins anew.
"""

import logging
from collections.abc import AsyncGenerator

import trio

from metadata.boot_clock import boot_time_s
from metadata.catalog import Compacted, Event
from metadata.errors import Corrupt
from metadata.etcd_calls import EtcdCalls
from metadata.etcd_http import HttpMember, Refused, Stream, Unreachable
from metadata.etcd_messages import end_of_prefix, events_in, number_in, range_of

SILENCE_S = 3.0
AGAIN_S, AGAIN_S_MAX = 0.1, 2.0
"""Before a watch that brought nothing is begun again: not at all the first time, then longer and longer."""
STOPPED_S = 60.0
"""Much less than history is kept (``etcd_history.COMPACT_S``)."""

log = logging.getLogger(__name__)


async def watch(
    calls: EtcdCalls, start: bytes, *, after: int, prefix: bytes
) -> AsyncGenerator[list[Event], None]:
    """What happens to keys that begin with ``start``, above a revision.

    Args:
        prefix: what is left out of the events' keys.

    Raises:
        Compacted: too long ago.
        Unavailable: no member lets it be watched.
    """
    position = after
    fragments: list[Event] = []
    stream: Stream | None = None
    failures = 0
    try:
        while True:
            if stream is None:
                stream, member = await _open(calls, start, position)
                fragments, looked_s = [], boot_time_s()
            try:
                message = None
                with trio.move_on_after(SILENCE_S):
                    message = await stream.next()
                before_s, looked_s = looked_s, boot_time_s()
                if looked_s - before_s > STOPPED_S:
                    raise Unreachable("this process was stopped")
                if message is None:
                    if not await calls.is_well(member, "kv/range", {**range_of(start), "keys_only": True}):
                        raise Unreachable("no answer")
                    continue
                if message.get("canceled"):
                    if number_in(message, "compact_revision"):
                        raise Compacted(f"the catalog's history is gone revision={position}")
                    raise Unreachable(str(message.get("cancel_reason", "")))
                fragments += events_in(message, prefix)
            except (Unreachable, Refused, Corrupt) as exc:
                log.info("a watch of the catalog goes on at another member than %s: %s", member.name, exc)
                if isinstance(exc, Refused):
                    calls.forget_login()
                calls.leave(member)
                broken, stream = stream, None
                await broken.__aexit__(None, None, None)
                await trio.sleep(min(AGAIN_S * failures, AGAIN_S_MAX))
                failures += 1
                continue
            if fragments and not message.get("fragment"):
                events, fragments = [event for event in fragments if event.revision > position], []
                if events:
                    failures = 0
                    position = events[-1].revision
                    yield events
    finally:
        if stream is not None:
            with trio.CancelScope(shield=True):  # closing waits for nothing
                await stream.__aexit__(None, None, None)


async def _open(calls: EtcdCalls, start: bytes, position: int) -> tuple[Stream, HttpMember]:
    asked = range_of(start, end_of_prefix(start)) | {
        "start_revision": str(max(1, position)),
        "fragment": True,
    }
    return await calls.open_stream("watch", {"create_request": asked})
