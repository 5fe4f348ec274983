"""Makes a failure short: calls are left out, then numbers made smaller, as long as any call still answers wrongly.

Hypothesis would shrink its choices, of which a call has a dozen, at an example each; calls are fewer, and what is left of a
list of them is a list of calls again.
"""

import time
from collections.abc import Sequence
from typing import Protocol

from tests.calls.drawing import Call
from tests.calls.session import Difference, Session

REDUCING_S = 90.0
TRIES = 2
"""Of a list that has not failed: what fails may need luck."""


class Examples(Protocol):
    """Where calls can be tried."""

    def begin(self) -> Session: ...
    def clear(self, session: Session, /) -> None: ...


def reduced(run: Examples, failure: Difference) -> Difference:
    """The same failure, or another one that is met on the way, with fewer and simpler calls."""
    deadline, size = time.monotonic() + REDUCING_S, max(1, len(failure.calls) // 2)
    while size and time.monotonic() < deadline:
        at = 0
        while at < len(failure.calls) and time.monotonic() < deadline:
            calls = [*failure.calls[:at], *failure.calls[at + size :]]
            shorter = attempt(run, calls) if calls else None
            if shorter is not None and len(shorter.calls) < len(failure.calls):
                failure = shorter
            else:
                at += size
        size //= 2
    for number in range(len(failure.calls)):
        for simpler in simplifications(failure.calls[number]):
            if number < len(failure.calls) and time.monotonic() < deadline:
                calls = [*failure.calls[:number], simpler, *failure.calls[number + 1 :]]
                again = attempt(run, calls)
                if again is not None and len(again.calls) <= len(failure.calls):
                    failure = again
                    break
    return failure


def simplifications(call: Call) -> list[Call]:
    """The same call with one number smaller: nothing, whole blocks, one block."""
    name, arguments = call
    found: list[Call] = []
    if name not in (
        "pwrite",
        "pread",
        "ftruncate",
        "truncate",
        "copy",
        "fallocate",
        "mmap_write",
        "mmap_read",
    ):
        return found
    for at, value in enumerate(arguments):
        if at and isinstance(value, int) and value > 4096:
            found += [
                (name, (*arguments[:at], less, *arguments[at + 1 :])) for less in (4096, value // 4096 * 4096)
            ]
    return [simpler for simpler in found if simpler != call]


def attempt(run: Examples, calls: Sequence[Call]) -> Difference | None:
    """How these calls fail, if they do."""
    for _ in range(TRIES):
        session = run.begin()
        try:
            session.replay(calls)
            session.finish()
        except Difference as failure:
            return failure
        finally:
            run.clear(session)
    return None
